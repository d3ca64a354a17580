package handover

import (
	"strings"

	"qmigrate/engine/holder"
	"qmigrate/engine/record"
)

// maxSteps bounds an undo: more decisions than that are taken for one without an end.
const maxSteps = 25

func reachOf(r reach) holder.Reach {
	return [...]holder.Reach{holder.Answers, holder.Silent, holder.Lost, holder.Dead}[r]
}

// situation is what the engine would ask about.
func (m *model) situation(t *State) holder.Situation {
	k := &t.k
	side := func(reach reach, run run, status holder.Status) holder.QEMU {
		return holder.QEMU{Reach: reachOf(reach), Run: run.of(), Status: status, Known: !m.Unknown}
	}
	s := holder.Situation{
		Asker:       holder.Undo,
		Source:      side(k.source.reach, k.source.run, m.status(k.source.mig)),
		Destination: side(k.dest.reach, k.dest.run, k.dest.mig.of()),
		Sent:        holder.Sent(k.sent),
		Ran:         [...]holder.Ran{holder.Never, holder.Maybe, holder.Has}[k.ran],
		Leave:       k.leave,
		Tentative:   m.Source == v7 && k.source.mig == split && !k.pages && k.dest.mig != arrived,
		Elsewhere:   m.Elsewhere,
		Refused:     k.refused,
		Gives:       m.Release,
		Takes:       m.Source == v7,
		Locks:       m.Destination == v7 && !m.Late,
		Waited:      k.waited,
		Cancelled:   k.cancelled,
		Yanked:      k.yanked,
		Unended:     k.unended,
		Stuck:       k.stuck,
		Stopped:     k.halted,
	}
	// A switch that came too late is none: the source has ended and has never said postcopy-*.
	s.Begun = k.begun && (k.parted || !k.source.mig.final() || m.Release && k.source.mig != departed)
	if k.ran == 0 && k.blind {
		s.Ran = holder.Maybe
	}
	if !k.at.undoes() { // the forward path knows it by events
		s.Source.Run = holder.Finishing
		if k.again {
			s.Source.Run = holder.Running
		}
	}
	if k.recovers {
		s.Asker, s.Ran, s.Leave, s.Elsewhere, s.Begun = holder.Recover, "", false, false, m.Mode == postCopy
		s.Ended = k.ended
	}
	return s
}

// status tells apart a guest that has left from one that has arrived.
func (m *model) status(g mig) holder.Status {
	if g == arrived && m.Former.has(arrivalIsDeparture) {
		return holder.Departed
	}
	return g.of()
}

// look takes in what one side answers, or that it does not. It reports false while that is open.
func (m *model) look(t *State, q *qemu, patience bool) bool {
	k := &t.k
	seen, first := &k.source, true
	if q == &t.d {
		seen, first = &k.dest, false
	}
	before := *seen
	switch {
	case first && q.dead && t.off && !m.Former.has(offIsLost): // SHUTDOWN was told
		seen.reach = dead
		k.at, k.guest, k.told = pEnd, nowhere, true
		if !t.d.dead {
			t.perish(&t.d)
		}
	case q.dead && (!m.Unknown || !first && (k.fenced || q.mig == failed && !q.deaf)), !first && k.fenced:
		m.drain(t, q)
		seen.reach = dead
		if !q.deaf {
			seen.mig = q.mig
		}
	case q.dead:
		m.drain(t, q)
		k.blind = k.blind || !first
		seen.reach = lost
	case q.hung || m.bigLock(q) || q.sent != noCommand && q.reply == noReply:
		if patience {
			return false
		}
		m.drain(t, q) // what it has sent has come meanwhile
		seen.reach = silent
	default:
		if q.deaf {
			q.deaf = false
			k.blind = k.blind || !first && !m.Former.has(trustsSilence)
			k.parted = k.parted || first
		}
		q.sent, q.reply = noCommand, noReply
		if !m.Former.has(looksBeside) {
			m.drain(t, q) // it is asked over the connection on which its events come, so they come first
		}
		seen.reach, seen.run, seen.mig = answers, q.run, q.mig
		if first && q.run == running {
			t.sees()
		}
		// Ours has ended.
		k.cancelled = k.cancelled || first && (q.mig == cancelled || q.mig == failed || q.mig == departed)
		k.parted = k.parted || first && q.mig >= splitDevice
		if first && q.at >= pages && q.at <= handshake {
			k.pages = true
		}
		if !first && q.run == running {
			k.ran = 2
		}
	}
	if before != *seen {
		k.waited, k.refused = false, false
	}
	return true
}

// drain takes in the last events of a dead side.
func (m *model) drain(t *State, q *qemu) {
	if q.deaf {
		q.events = 0
		if q == &t.d && !m.Former.has(trustsSilence) {
			t.k.blind = true
		}
	}
	for q.events != 0 {
		m.take(t, q)
	}
}

// changed tells whether a side would answer something else than it did.
func (m *model) changed(t *State) bool {
	u := *t
	if !m.look(&u, &u.s, true) || !m.look(&u, &u.d, true) {
		return false
	}
	return u.k.source != t.k.source || u.k.dest != t.k.dest
}

// decide asks for the next step and begins it. It returns the rule.
func (m *model) decide(t *State) string {
	k := &t.k
	k.steps++
	s := m.situation(t)
	d := m.decision(s)
	switch d.Do {
	case holder.Stay:
		m.settle(t, d)
	case holder.Wait:
		k.at = uWait
	case holder.Cancel:
		k.cancelled = true
		t.send(&t.s, cmdCancel, uCancel)
	case holder.Yank:
		m.yank(t, &t.s)
		k.yanked, k.at = true, uYanked
	case holder.End:
		m.end(t)
	case holder.RunSource:
		t.send(&t.s, cmdCont, uRunSource)
	case holder.StopSource:
		t.send(&t.s, cmdStop, uStopSource)
	case holder.RunDestination:
		k.before, k.sent = k.sent, holderSent(holder.SentCont)
		t.send(&t.d, cmdCont, uRunDestination)
	case holder.Mend:
		k.at = pFollow
		m.advance(t)
	default:
		panic("no such step: " + string(d.Do))
	}
	return string(d.Do) + ": " + d.Rule
}

// settle is the end, and what is said.
func (m *model) settle(t *State, d holder.Decision) {
	k := &t.k
	k.at = pEnd
	switch d.Guest {
	case record.Source:
		k.guest = onSource
	case record.Destination:
		k.guest = onDestination
	case record.None:
		k.guest = nowhere
	default:
		k.guest = unknown
	}
	k.told, k.unfinished, k.doubt = d.Text != "", d.Unfinished, d.Doubt
	k.saysLost = strings.HasPrefix(d.Text, "it is lost")
	k.saysBack = strings.Contains(d.Text, "has gone back")
	for _, words := range []string{"TWICE", "end the one", "end the other"} {
		k.saysTwice = k.saysTwice || strings.Contains(d.Text, words)
	}
}

// end is the fence: quit, then SIGKILL where the process is known.
func (m *model) end(t *State) {
	k := &t.k
	switch {
	case m.Former.has(noFence):
		k.at, k.ended, k.fenced = uLookSource, true, true
	case !m.Unknown:
		m.killDestination(t)
		k.at, k.ended, k.fenced = uLookSource, true, true
	case t.d.dead: // nobody listens there any more: enough for one that surely never ran
		k.at = uLookSource
		if m.told(k) {
			k.unended = true
		} else {
			k.ended, k.fenced = true, true
		}
	default:
		t.send(&t.d, cmdQuit, uEnd)
	}
}

// told: the destination was told to run, or was seen to.
func (m *model) told(k *mind) bool { return k.sent == holderSent(holder.SentCont) || k.ran == 2 }

func (m *model) killDestination(t *State) {
	if t.d.dead {
		return
	}
	after := *t
	after.perish(&after.d)
	src, _ := m.runnable(&after)
	_, dst := m.runnable(t)
	if (t.ran || dst && !src || m.Stranger) && !t.late {
		t.wrong = endedTheOnly
	}
	t.perish(&t.d)
}

// undone takes in the reply to a command of an undo.
func (m *model) undone(t *State, r reply) {
	k := &t.k
	switch k.at {
	case uCancel:
		if k.at = uCancelled; r == refused {
			k.at = uLookSource
		}
	case uEnd:
		k.at, k.ended, k.fenced = uLookSource, true, true // it said yes and closed its monitor
	case uRunSource:
		if k.at = uLookSource; r == refused {
			k.at = uRetry
		}
	case uStopSource:
		k.halted, k.at = true, uLookSource
	case uRunDestination:
		if k.refused, k.at = r == refused, uLookSource; k.refused { // it was not done
			k.sent = k.before
		}
	}
}

// expires is what happens when the limit of a wait is over; false if the wait has none.
func (m *model) expires(t *State) bool {
	k := &t.k
	switch k.at {
	case pPre:
		if !t.s.hung && !t.s.dead && t.s.run == running { // the guest runs on, and TCP ends what never moves
			return false
		}
		k.undo()
	case pStop, pStopped, pMigrate, pStopFirst, pSwitch, pArrive, pCont, pResume:
		if m.Former.has(noHangLimit) && k.at <= pMigrate {
			return false
		}
		k.undo()
	case pAll:
		if m.Former.has(noAllLimit) && !k.begun {
			return false
		}
		if k.begun {
			m.yank(t, &t.s)
		}
		begun := k.begun
		k.undo()
		k.yanked = begun
	case pFollow:
		m.mend(t)
	case pPaused, pMigrateAgain, pGoesOn:
		if m.Former.has(freshLimit) {
			k.mends = 0
		}
		m.mend(t)
	case pConfirm, pStopAgain:
		if m.succeed(k); t.d.dead {
			k.dest.reach = dead
			k.undo()
		}
	case uLookSource:
		m.look(t, &t.s, false)
		k.at, t.late = uLook, false
	case uLook:
		m.look(t, &t.d, false)
		m.decide(t)
	case uWait:
		k.waited, k.at = true, uLookSource
	case uCancel, uCancelled:
		m.yank(t, &t.s)
		k.at = uYanked
	case uYanked:
		k.at = uLookSource
	case uEnd:
		k.unended, k.at = true, uLookSource
	case uRetry:
		k.stuck, k.at = true, uLookSource
	case uRunSource:
		k.stuck, k.at = true, uLookSource
	case uStopSource:
		k.halted, k.at = true, uLookSource
	case uRunDestination:
		k.at = uLookSource
	default:
		return false
	}
	return true
}
