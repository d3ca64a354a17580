package handover

import "qmigrate/engine/holder"

// waitsFor is the side that qmigrate waits for a reply of.
func (s *State) waitsFor() *qemu {
	switch s.k.at {
	case pStop, pMigrate, pStopFirst, pSwitch, pMigrateAgain, pStopAgain, uCancel, uRunSource, uStopSource:
		return &s.s
	case pCont, uEnd, uRunDestination:
		return &s.d
	}
	return nil
}

// send sends a command. A side that has not answered the last one does not get it (QEMU would take it after that
// one).
func (s *State) send(q *qemu, c command, then pc) {
	s.k.at = then
	if q.sent == noCommand && !q.dead {
		q.sent, q.reply = c, noReply
	}
}

// start is where the run begins: both are configured, and the destination waits with `stop` taken.
func (m *model) start() State {
	st := State{faults: m.Faults, slow: m.Slow, third: m.Third, asks: m.Asks, crashes: m.Crashes, recovers: m.Recovers}
	st.s = qemu{run: running, lock: true}
	st.d = qemu{run: inMigrate, at: waiting, mig: listening, was: m.Elsewhere}
	st.k.sent = holderSent(holder.SentIncoming)
	st.k.dest.run, st.k.dest.mig = inMigrate, listening
	if m.Arrived {
		st.s.mig, st.k.source.mig = arrived, none
	}
	if m.Stranger {
		st.d = qemu{run: paused, at: done, mig: arrived}
		st.s.mig, st.net = arrived, netDown
		st.k = mind{at: uLookSource, recovers: true}
		return st
	}
	if m.Mode == stopAndCopy {
		st.send(&st.s, cmdStop, pStop)
	} else {
		m.migrate(&st)
	}
	return st
}

func (m *model) migrate(t *State) {
	t.k.sent = holderSent(holder.SentMigrate)
	t.send(&t.s, cmdMigrate, pMigrate)
}

// asks: a STOP may be somebody else's.
func (m *model) asks(k *mind) bool {
	return m.Mode != stopAndCopy && k.ask == 0 && (k.at == pMigrate || k.at == pPre || k.at == pSwitch && m.runsInto())
}

// take is one event of one side.
func (m *model) take(t *State, q *qemu) {
	e := mig(q.events & 15)
	q.events >>= 4
	k := &t.k
	switch {
	case e == stopEvent && q == &t.s:
		k.stopped, k.again = true, false
		if m.asks(k) {
			k.ask = 1
		}
	case e == resumeEvent && q == &t.s:
		k.again = k.stopped
		t.sees()
		if k.at >= pMigrate && k.at <= pSwitch {
			k.leave = false
			if !m.Former.has(staleAnswer) {
				k.ask = 0 // what was asked for is over
			}
		}
	case e == resumeEvent:
		k.ran = 2
	case e == stopEvent:
	case q == &t.s:
		k.source.mig, k.failed = e, k.failed || bad(e)
		k.parted = k.parted || e >= splitDevice
	default:
		k.dest.mig = e
	}
}

// runsInto: the guest is not stopped by us before the switch to post-copy.
func (m *model) runsInto() bool { return m.IntoSwitch || m.Former.has(runsIntoSwitch) }

// switchOver asks for post-copy.
func (m *model) switchOver(t *State) {
	t.k.begun, t.k.sent = true, holderSent(holder.SentSwitch)
	t.send(&t.s, cmdSwitch, pSwitch)
}

// handed: the source has given the guest away in post-copy for good.
func (m *model) handed(k *mind) bool {
	switch {
	case k.source.mig == splitDevice:
		return m.Former.has(deviceIsHanded)
	case k.source.mig == split && m.Source == v7 && !k.pages:
		return m.Former.has(noTentative)
	}
	return k.source.mig >= split && k.source.mig <= splitRecover || k.source.mig == departed
}

// switchesOver: a STOP was the switch-over's.
func (k *mind) switchesOver() bool {
	return k.source.mig == device || k.source.mig.parts() || k.source.mig == departed
}

func bad(g mig) bool { return g == failed || g == cancelling || g == cancelled }

// broken: events say that it cannot go on.
func (t *State) broken() bool {
	k := &t.k
	return k.failed || bad(k.dest.mig) || k.dest.reach != answers ||
		k.source.reach != answers && k.source.mig != departed
}

// undo begins to settle a failure.
func (k *mind) undo() {
	k.at, k.steps, k.ask = uLookSource, 0, 0
	k.waited, k.cancelled, k.yanked, k.unended, k.stuck, k.halted, k.refused = false, false, false, false, false, false,
		false
}

// advance goes on as far as what is known allows.
func (m *model) advance(t *State) {
	for at := pGone; at != t.k.at && !t.k.at.undoes() && t.k.at < pEnd; {
		at = t.k.at
		m.advanceOne(t)
	}
}

// advanceOne takes one step. It is one function because it is a table: the steps of engine.Migrate, each with what is
// known after it.
func (m *model) advanceOne(t *State) {
	k := &t.k
	switch q := t.waitsFor(); {
	case q == &t.s && k.source.reach != answers || q == &t.d && k.dest.reach != answers:
		k.undo()
		return
	case q == nil && k.at < pConfirm && t.broken():
		if !(k.at == pFollow && k.source.mig == departed && k.dest.mig == arrived) {
			m.fallBack(k)
			return
		}
	}
	switch k.at {
	case pStopped:
		if k.stopped && !k.again {
			m.migrate(t)
		}
	case pPre:
		if m.Mode == postCopy && !k.begun && !k.stopped && k.source.mig == active {
			if !m.runsInto() {
				t.send(&t.s, cmdStop, pStopFirst)
				return
			}
			m.switchOver(t)
			return
		}
		switch {
		case k.again && k.source.mig == departed && !m.Former.has(waitsOn): // somebody has continued it
			k.undo()
		case !k.stopped || k.again:
		case k.ask == 1 && k.switchesOver():
			k.at = pAll
		case k.ask >= 4:
			if k.leave = k.ask == 5; !k.leave || k.switchesOver() {
				k.at, k.ask = pAll, 0
			}
		case k.ask == 0 && k.leave && k.switchesOver():
			k.at = pAll
		}
	case pAll:
		if k.ask >= 4 { // of a question whose answer was not waited for
			if m.Former.has(staleAnswer) && k.ask == 5 {
				k.leave = true
			}
			k.ask = 0
		}
		switch {
		case k.begun && m.handed(k) && (k.dest.mig == split || k.dest.mig == splitPaused || k.dest.mig == arrived):
			m.commit(t)
		case !k.begun && k.source.mig == departed,
			m.Former.has(earlyCont) && k.dest.mig == arrived, m.Former.has(contBeforeArrival):
			k.at = pArrive
		}
	case pArrive:
		if k.dest.mig == arrived || m.Former.has(contBeforeArrival) {
			m.commit(t)
		}
	case pResume:
		if k.ran == 2 {
			if k.at = pConfirm; k.begun {
				k.at = pFollow
			}
		}
	case pFollow:
		switch {
		case k.source.mig == departed && k.dest.mig == arrived:
			k.at = pConfirm
			if k.recovers {
				k.at = uLookSource
			}
		case k.source.mig == splitPaused || k.source.mig == splitRecover,
			k.dest.mig == splitPaused || k.dest.mig == splitRecover:
			m.mend(t)
		}
	case pPaused:
		if k.source.mig == splitPaused && k.dest.mig == splitPaused {
			if t.d.mig == splitPaused && !t.d.dead && !t.d.hung { // migrate-recover is taken out of band
				t.again = true
			}
			t.send(&t.s, cmdResume, pMigrateAgain)
		}
	case pGoesOn:
		switch {
		case k.source.mig == split && k.dest.mig == split:
			k.at = pFollow // the limit counts from the first loss
			if m.Former.has(freshLimit) {
				k.mends = 0
			}
		case k.source.mig == splitPaused && k.left:
			if m.Former.has(freshLimit) {
				k.mends = 0
			}
			m.mend(t)
		case k.source.mig == splitRecover:
			k.left = true
		}
	}
}

// commit tells the destination to run, if it may.
func (m *model) commit(t *State) {
	k := &t.k
	if k.leave && t.d.dead {
		return // its end is seen
	}
	if k.leave {
		k.at, k.guest, k.told = pEnd, onDestination, true
		if k.begun {
			k.at = pFollow
		}
		return
	}
	s := m.situation(t)
	if !m.Former.moved() && !holder.MayRun(s) {
		if k.again {
			k.undo()
		}
		return
	}
	if k.again {
		k.undo()
		return
	}
	k.sent = holderSent(holder.SentCont)
	t.send(&t.d, cmdCont, pCont)
}

// mend begins, or begins again, to give post-copy a new connection.
func (m *model) mend(t *State) {
	k := &t.k
	k.left = false
	k.mends++
	source, dest := m.Source, m.Destination
	if m.Former.has(recoverIsActive) {
		source, dest = v7, v7
	}
	m.pause(t, &t.s, source)
	m.pause(t, &t.d, dest)
	if k.at = pPaused; k.mends > maxMends {
		m.giveUp(t)
	}
}

// giveUp leaves a post-copy whose link could not be mended.
func (m *model) giveUp(t *State) {
	k := &t.k
	if k.recovers && (t.s.dead || t.d.dead) {
		k.at = uLookSource
		return
	}
	if k.recovers {
		k.at, k.guest, k.unfinished, k.told = pEnd, onDestination, true, true
		return
	}
	k.undo()
}

// fallBack is the end of the forward path: an undo, or for `--recover` another look.
func (m *model) fallBack(k *mind) {
	if k.recovers {
		k.at = uLookSource
		return
	}
	k.undo()
}

const maxMends = 2

// replied takes in the reply to the command that was waited for.
func (m *model) replied(t *State, r reply) {
	k := &t.k
	switch k.at {
	case pStop:
		k.at = pStopped
	case pMigrate:
		if r == refused {
			if !m.Former.has(refusedIsSent) {
				k.sent = holderSent(holder.SentIncoming)
			}
			k.undo()
			return
		}
		if k.at = pPre; m.Mode == stopAndCopy {
			k.at = pAll
		}
	case pStopFirst:
		m.switchOver(t)
	case pSwitch:
		if k.at = pPre; !m.runsInto() {
			k.at = pAll // what stopped the guest is known
		}
	case pCont:
		if r == refused {
			k.sent = holderSent(holder.SentMigrate)
			if k.begun {
				k.sent = holderSent(holder.SentSwitch)
			}
			k.undo()
			return
		}
		k.at = pResume
	case pMigrateAgain:
		if k.at = pGoesOn; r == refused {
			m.mend(t)
		}
	case pStopAgain:
		m.succeed(k)
	default:
		m.undone(t, r)
	}
}

func (m *model) succeed(k *mind) { k.at, k.guest = pEnd, onDestination }
