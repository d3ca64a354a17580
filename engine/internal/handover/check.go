package handover

// What is wrong.
const endedTheOnly = "6: a destination is ended that is the only one with the guest"

const endsTheirs = "9: somebody else's migration is cancelled"

// runnable tells which side could still run the guest as it is now; fenced: if the destination were dead.
func (m *model) runnable(t *State, fenced bool) (source, destination bool) {
	s, d := &t.s, &t.d
	if t.other || t.off {
		return false, false
	}
	if !s.dead && !t.ran && !t.gave {
		switch {
		case s.run != finishing:
			source = true
		case s.at == idle || s.at == stuck || s.at == halted || s.at == reconnecting || s.at == handshake:
		case s.at == pages || s.at == allPages:
			source = m.Source == v7 && (!s.err || s.mig == cancelling) && (t.d.dead || fenced) || s.mig == splitDevice || m.Source >= v10 && s.at == allPages && s.err
		default:
			source = true
		}
	}
	if d.dead {
		return source, false
	}
	switch d.at {
	case done, loaded:
		destination = true
	case loading:
		destination = t.reads() && t.wrote == wroteEnd
	case unpacking, unpacked, receiving, halted, handshake:
		switch s.at {
		case packaged, pages, allPages, halted, reconnecting, handshake:
			destination = !s.dead
		}
		destination = destination || t.reads() && t.wrote == wroteEnd
	}
	return source, destination
}

// wrongNow is what no state may be.
func (m *model) wrongNow(t *State) string {
	switch {
	case t.wrong != "":
		return t.wrong
	case t.twice() && t.excuse == 0:
		return "1: two run the guest"
	case !m.NoLocks && t.s.lock && t.d.lock && !t.s.dead && !t.d.dead:
		return "3: two have the disk"
	case !m.NoLocks && !t.s.dead && t.s.run == running && !t.s.lock && t.excuse == 0:
		return "3: the source runs without its disk"
	}
	if t.gave && !t.s.dead && t.s.run == running && !t.they() {
		return "8: the source runs, and has given its memory away"
	}
	source, destination := m.runnable(t, false)
	if t.k.at == pEnd && t.k.saysLost && (source || destination || t.off) && !t.late && t.slow == m.Slow {
		return "4: it is said to be lost, and is not"
	}
	if t.k.at == pEnd && t.k.unfinished && !destination && !source && !t.off && !t.they() && !t.late && !t.meddled && t.s.at != stuck && t.d.at != stuck && !t.theirs && !(m.Source >= v10 && t.s.mig == failed) {
		return "4: it is said to be unfinished, and is lost"
	}
	if !source && !destination && !t.killed && !t.other && !t.off && !t.they() && !t.meddled && !m.lostAlone(t) {
		return "7: the guest is lost though no QEMU was killed"
	}
	return ""
}

// lostAlone: QEMU itself has lost the guest, whatever qmigrate does.
func (m *model) lostAlone(t *State) bool {
	if t.k.at != pEnd && t.k.at != pGone {
		return true // looked at in the end only
	}
	return m.Release || t.theirs || t.s.at == stuck || t.d.at == stuck || t.s.run == finishing || t.d.dead || m.Source >= v10 && t.post && t.s.mig == failed
}

// wrongAtRest is what must not be when qmigrate has ended and no QEMU moves by itself any more.
func (m *model) wrongAtRest(t *State) string {
	k := &t.k
	sourceRuns := !t.s.dead && t.s.run == running
	destinationRuns := !t.d.dead && t.d.run == running
	source, destination := m.runnable(t, false)
	vague := t.unclear || m.Elsewhere && k.guest == 4 || k.recovers && (t.d.dead || k.guest == 4 && (k.dest.mig <= listening || t.net >= netSilent)) || k.source.reach == silent || k.dest.reach == silent || m.Unknown || t.they() || t.meddled
	wedged := m.Source == v11 && m.Destination == v7 && t.s.run == finishing && t.s.at == idle
	switch {
	case t.excuse == itself && t.twice() && !k.saysTwice && !t.late:
		return "1: two run the guest in the end, and it is not said"
	case t.excuse != 0 && t.twice():
		return ""
	case m.Source >= v10 && m.Destination >= v10 && k.unfinished && (t.s.at == handshake || t.d.at == handshake):
		return "2: post-copy is left in a handshake, in which it cannot be mended"
	case t.off, t.late:
		return ""
	case t.other:
		if k.guest != 4 {
			return "4: the guest runs on another QEMU, and a side is named"
		}
	case sourceRuns && k.guest == 2, destinationRuns && k.guest == 1:
		if t.they() || t.meddled {
			return ""
		}
		return "4: the wrong side is named"
	case sourceRuns && t.ran && k.guest != 4 && !k.saysBack && !t.they() && !t.meddled && !t.late:
		return "4: the source runs the guest of before the hand-over, and that is not said"
	case sourceRuns || destinationRuns:
		if (sourceRuns && source || destinationRuns && destination) && k.guest > 2 && !vague && !k.doubt {
			return "4: a guest that runs is not found"
		}
	case k.leave && t.moved && k.guest == 2 && !k.recovers && !t.d.dead && t.d.run == paused:
		return "2: the guest arrives paused, and nobody holds it"
	case k.leave || t.meddled:
	case !k.told:
		return "2: nobody runs the guest, and nothing is said"
	case (source || destination) && !vague && !wedged && !t.d.sick && !k.unfinished && !(m.Release && k.begun):
		return "2: nobody runs the guest, and a side could"
	}
	return ""
}
