package handover

// next are all states that may follow. It reports whether qmigrate, or a QEMU by itself, can go on.
func (m *model) next(st State, put func(string, State)) bool {
	if st.wrong != "" {
		return true
	}
	n := 0
	do := func(what string, t State) {
		n++
		put(what, m.tidy(t))
	}
	m.sourceSteps(st, false, do)
	m.destinationSteps(st, do)
	m.execution(st, do)
	m.qmigrateSteps(st, do)
	if n == 0 || st.slow > 0 && m.delivered(&st) {
		t := st
		if n > 0 {
			t.slow, t.unclear = t.slow-1, true
		}
		if m.expires(&t) {
			m.advance(&t)
			do("qmigrate: its limit is over", t)
		}
	}
	m.sourceSteps(st, true, do)
	m.adversary(st, func(what string, t State) { put(what, m.tidy(t)) })
	return n > 0
}

// delivered: what the QEMUs have sent has come. A limit of ours is longer than any delivery takes.
func (m *model) delivered(t *State) bool {
	if q := t.waitsFor(); q != nil && q.reply != noReply {
		return false
	}
	return t.k.at.undoes() || (t.s.events == 0 || t.s.deaf) && (t.d.events == 0 || t.d.deaf)
}

// tidy forgets what can have no effect any more, so that equal futures are equal states.
func (m *model) tidy(t State) State {
	k := &t.k
	switch {
	case k.at >= pEnd:
		t.s.events, t.d.events = 0, 0
	case k.recovers:
		t.s.events, t.d.events = 0, 0
	case k.at.undoes():
		m.seeParting(&t)
		t.s.events = 0
		t.d.events = onlyResume(t.d.events)
		if k.ran == 2 {
			t.d.events = 0
		}
	}
	waited := t.waitsFor()
	for _, q := range []*qemu{&t.s, &t.d} {
		if q != waited && q.reply != noReply {
			q.sent, q.reply = noCommand, noReply
		}
	}
	if k.at == pGone {
		k.clear()
		k.at = pGone
	}
	return t
}

// seeParting notes whether the events of the source tell of post-copy.
func (m *model) seeParting(t *State) {
	for e := t.s.events; e != 0 && !t.s.deaf; e >>= 4 {
		t.k.parted = t.k.parted || mig(e&15).parts()
	}
}

func onlyResume(events uint64) uint64 {
	for ; events != 0; events >>= 4 {
		if mig(events&15) == resumeEvent {
			return uint64(resumeEvent)
		}
	}
	return 0
}

func (k *mind) clear() { *k = mind{} }

// execution: a QEMU takes the command that lies in its monitor.
func (m *model) execution(st State, put func(string, State)) {
	for i, name := range []string{"source", "destination"} {
		t := st
		q := &t.s
		if i == 1 {
			q = &t.d
		}
		if q.sent == noCommand || q.reply != noReply || q.dead || q.hung || m.bigLock(q) {
			continue
		}
		c := q.sent
		if c == cmdCancel && t.theirs {
			t.wrong = endsTheirs
		}
		r := m.execute(&t, q, c)
		if !q.dead || c == cmdQuit {
			q.sent, q.reply = c, r
		}
		what := name + " executes " + c.String()
		if r == refused {
			what += ": refused"
		}
		put(what, t)
	}
}

// qmigrateSteps are what qmigrate does with what has reached it.
func (m *model) qmigrateSteps(st State, put func(string, State)) {
	k := &st.k
	if k.at >= pEnd {
		return
	}
	for i, name := range []string{"the source", "the destination"} {
		t := st
		q, seen := &t.s, &t.k.source
		if i == 1 {
			q, seen = &t.d, &t.k.dest
		}
		switch {
		case k.at.undoes() || k.recovers:
		case q.events != 0 && !q.deaf:
			what := "qmigrate: event of " + name + ": " + mig(q.events&15).String()
			m.take(&t, q)
			m.advance(&t)
			put(what, t)
		case (q.dead || q.deaf) && seen.reach == answers:
			if seen.reach = dead; q.deaf {
				seen.reach = lost
			}
			m.advance(&t)
			put("qmigrate: the monitor of "+name+" ends", t)
		}
	}
	t := st
	if q := t.waitsFor(); q != nil && q.reply != noReply && !q.deaf {
		r := q.reply
		what := "qmigrate: reply to " + q.sent.String()
		q.sent, q.reply = noCommand, noReply
		m.replied(&t, r)
		m.advance(&t)
		put(what, t)
		return
	}
	if k.at.undoes() {
		m.undoSteps(st, put)
		return
	}
	free := !st.s.dead && !st.s.hung && !m.bigLock(&st.s)
	switch {
	case k.ask == 1 && free:
		t.k.ask = 2
		if st.s.run == paused {
			t.k.ask = 3
		}
		put("source answers what stopped it", t)
		t = st
	case k.ask == 2 || k.ask == 3:
		t.k.ask += 2
		m.advance(&t)
		put("qmigrate: what stopped the source", t)
		t = st
	}
	switch {
	case k.recovers && m.changed(&t):
		m.look(&t, &t.s, true)
		m.look(&t, &t.d, true)
		m.advance(&t)
		put("qmigrate: sees a new state", t)
	case k.at == pAll && k.begun && m.Source == v7 && !k.pages && free && st.s.at >= pages && st.s.at <= handshake:
		t.k.pages = true
		m.advance(&t)
		put("qmigrate: sees that memory is on its way", t)
	case k.at == pConfirm && (free || st.s.dead):
		if st.d.dead {
			t.k.dest.reach = dead
			t.k.undo()
		} else if st.s.dead || st.s.run != running {
			m.succeed(&t.k)
		} else {
			t.send(&t.s, cmdStop, pStopAgain)
		}
		put("qmigrate: looks at the source a last time", t)
	}
}

// undoSteps are the looks of an undo.
func (m *model) undoSteps(st State, put func(string, State)) {
	t := st
	k := &t.k
	switch k.at {
	case uLookSource:
		if m.look(&t, &t.s, true) {
			if t.late = false; k.at != pEnd {
				k.at = uLook
			}
			put("qmigrate: looks at the source: "+t.s.word(k.source.reach), t)
		}
	case uLook:
		if m.look(&t, &t.d, true) {
			what := "qmigrate: looks at the destination: " + t.d.word(k.dest.reach)
			if k.steps >= maxSteps {
				t.wrong = "5: an undo comes to no end"
				put(what, t)
				return
			}
			rule := m.decide(&t)
			put(what+"; decides: "+rule, t)
		}
	case uWait, uRetry:
		if m.changed(&t) {
			k.at = uLookSource
			put("qmigrate: a state has changed", t)
		}
	case uCancelled, uYanked:
		if t.s.dead || t.s.mig.final() || k.at == uYanked && m.changed(&t) {
			k.at = uLookSource
			put("qmigrate: the source has obeyed", t)
		}
	case uCancel, uRunSource, uStopSource:
		if t.s.dead || t.s.deaf {
			k.at = uLookSource
			put("qmigrate: the source's monitor ends", t)
		}
	case uRunDestination:
		if t.d.dead || t.d.deaf {
			k.at = uLookSource
			put("qmigrate: the destination's monitor ends", t)
		}
	case uEnd:
		if t.d.dead && t.d.reply == noReply || t.d.deaf {
			k.unended, k.at = true, uLookSource
			put("qmigrate: the destination's monitor ends", t)
		}
	}
}

func (q *qemu) word(r reach) string {
	switch r {
	case answers:
		return q.run.String() + ", " + q.mig.String()
	case silent:
		return "no answer"
	case lost:
		return "gone"
	}
	return "dead"
}
