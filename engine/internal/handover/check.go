package handover

// What qmigrate must not do.
const (
	endedTheOnly = "6: a destination is ended that is the only one with the guest"
	endsTheirs   = "9: somebody else's migration is cancelled"
)

// runnable tells which side could still run the guest as it is now.
func (m *model) runnable(t *State) (source, destination bool) {
	if t.other || t.off {
		return false, false
	}
	source = !t.s.dead && !t.ran && !t.gave && m.goesBack(t)
	if t.d.dead {
		return source, false
	}
	all := t.reads() && t.wrote == wroteEnd // has come, or is on its way
	switch t.d.at {
	case done, loaded:
		destination = true
	case loading:
		destination = all
	case unpacking, unpacked, receiving, halted, handshake:
		switch t.s.at {
		case packaged, pages, allPages, halted, reconnecting, handshake:
			destination = !t.s.dead
		}
		destination = destination || all
	}
	return source, destination
}

// goesBack tells whether the source can be made to run its guest, or does so by itself.
func (m *model) goesBack(t *State) bool {
	s := &t.s
	if s.run != finishing {
		return true
	}
	switch s.at {
	case idle, stuck, halted, reconnecting, handshake:
		return false
	case pages, allPages:
		switch {
		case s.mig == splitDevice:
			return true
		case m.Source == v7: // takes migrate_cancel
			return t.d.dead && (!s.err || s.mig == cancelling)
		}
		return s.at == allPages && s.err // fails
	}
	return true
}

// wrongNow is what no state may be.
func (m *model) wrongNow(t *State) string {
	sourceRuns := !t.s.dead && t.s.run == running
	switch {
	case t.wrong != "":
		return t.wrong
	case t.twice() && t.excuse == 0:
		return "1: two run the guest"
	case !m.NoLocks && t.s.lock && t.d.lock && !t.s.dead && !t.d.dead:
		return "3: two have the disk"
	case !m.NoLocks && sourceRuns && !t.s.lock && t.excuse == 0:
		return "3: the source runs without its disk"
	case t.gave && sourceRuns && !t.they():
		return "8: the source runs, and has given its memory away"
	}
	source, destination := m.runnable(t)
	some, end := source || destination, t.k.at == pEnd
	switch {
	case end && t.k.saysLost && (some || t.off) && !t.late && t.slow == m.Slow: // what is slow may look lost
		return "4: it is said to be lost, and is not"
	case some || t.off || t.other || t.they() || t.meddled || m.lostAlone(t):
	case end && t.k.unfinished && !t.late:
		return "4: it is said to be unfinished, and is lost"
	case end && !t.killed || t.k.at == pGone && !t.killed:
		return "7: the guest is lost though no QEMU was killed"
	}
	return ""
}

// lostAlone: QEMU itself has lost the guest, whatever qmigrate does.
func (m *model) lostAlone(t *State) bool {
	switch {
	case t.s.at == stuck, t.d.at == stuck: // waits for ever
		return true
	case m.Source >= v10 && t.post && t.s.mig == failed: // lost the link before SHUT
		return true
	case t.s.run == finishing, t.d.dead: // lost the link before the package was loaded, and one of them cannot go on
		return !t.k.unfinished
	}
	return m.Release || t.theirs
}

// vague: qmigrate cannot know better, or was told that somebody else has a hand in it.
func (m *model) vague(t *State) bool {
	k := &t.k
	switch {
	case t.unclear, m.Unknown, t.they(), t.meddled, k.source.reach == silent, k.dest.reach == silent:
		return true
	case k.recovers && t.d.dead: // whether it has run is not known
		return true
	case k.guest != unknown:
		return false
	}
	return m.Elsewhere || k.recovers && (k.dest.mig <= listening || t.net >= netSilent) // it may be another destination
}

// wrongAtRest is what must not be when qmigrate has ended and no QEMU moves by itself any more.
func (m *model) wrongAtRest(t *State) string {
	k := &t.k
	source, destination := m.runnable(t)
	sourceRuns := !t.s.dead && t.s.run == running
	destinationRuns := !t.d.dead && t.d.run == running
	others := t.they() || t.meddled
	wedged := m.Source == v11 && m.Destination == v7 && t.s.run == finishing && t.s.at == idle // see goBack
	switch {
	case t.twice():
		if t.excuse == itself && !k.saysTwice && !t.late {
			return "1: two run the guest in the end, and it is not said"
		}
	case m.Source >= v10 && m.Destination >= v10 && k.unfinished && (t.s.at == handshake || t.d.at == handshake):
		return "2: post-copy is left in a handshake, in which it cannot be mended"
	case t.off, t.late:
	case t.other:
		if k.guest != unknown {
			return "4: the guest runs on another QEMU, and a side is named"
		}
	case sourceRuns && k.guest == onDestination, destinationRuns && k.guest == onSource:
		if !others {
			return "4: the wrong side is named"
		}
	case sourceRuns && t.ran && k.guest != unknown && !k.saysBack && !others:
		return "4: the source runs the guest of before the hand-over, and that is not said"
	case sourceRuns || destinationRuns:
		whole := sourceRuns && source || destinationRuns && destination
		if whole && k.guest > onDestination && !m.vague(t) && !k.doubt {
			return "4: a guest that runs is not found"
		}
	case k.leave && t.moved && k.guest == onDestination && !k.recovers && !t.d.dead && t.d.run == paused:
		return "2: the guest arrives paused, and nobody holds it"
	case k.leave || t.meddled:
	case !k.told:
		return "2: nobody runs the guest, and nothing is said"
	case (source || destination) && !m.vague(t) && !wedged && !t.d.sick && !k.unfinished && !(m.Release && k.begun):
		return "2: nobody runs the guest, and a side could"
	}
	return ""
}
