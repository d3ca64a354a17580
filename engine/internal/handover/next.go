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
		t.k.parted = t.k.parted || mig(e&15) >= splitDevice && mig(e&15) <= splitRecover
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
			k.cancelled, k.at = true, uLookSource
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

// adversary: what breaks, and what others do.
func (m *model) adversary(st State, put func(string, State)) {
	ended := st.k.at == pEnd
	if st.recovers > 0 && (ended && st.k.guest > 2 || st.k.at == pGone) {
		t := st
		t.recovers--
		t.k.clear()
		t.k.recovers, t.k.at = true, uLookSource
		t.s.deaf, t.d.deaf = false, false
		put("somebody runs --recover", t)
	}
	if ended {
		return
	}
	t := st
	awaits := st.k.at == pMigrate && !m.Former.has(cutsReply) // Ctrl-C is obeyed when it is known whether `migrate` was refused
	if st.asks > 0 && st.k.at <= pArrive && !st.k.begun && !st.k.recovers && !awaits {
		t.asks--
		t.k.undo()
		put("somebody presses Ctrl-C", t)
	}
	if st.crashes > 0 && st.k.at != pGone {
		t = st
		t.crashes--
		t.k.at = pGone
		put("qmigrate is killed", t)
		if t.s.sent != noCommand && t.s.reply == noReply || t.d.sent != noCommand && t.d.reply == noReply {
			t.s.sent, t.d.sent = noCommand, noCommand
			put("qmigrate is killed, and its last command is lost", t)
		}
	}
	for i, name := range []string{"source", "destination"} {
		if st.faults > 0 {
			m.sideFaults(st, i == 1, name, put)
		}
		t := st
		q := &t.s
		if i == 1 {
			q = &t.d
		}
		if q.hung {
			q.hung = false
			put(name+" wakes up", t)
		}
	}
	if st.faults > 0 {
		m.linkFaults(st, put)
	}
	if st.third > 0 {
		m.thirdParty(st, put)
	}
}

func (m *model) sideFaults(st State, second bool, name string, put func(string, State)) {
	side := func(t *State) *qemu {
		if second {
			return &t.d
		}
		return &t.s
	}
	st.faults--
	st.late = st.late || st.k.at == uLook && !second
	t := st
	q := side(&t)
	if q.dead || second && m.Elsewhere {
		return
	}
	t.killed = true
	t.perish(q)
	put(name+" is killed", t)
	if t.drains && st.net == netUp {
		t.drains = false
		put(name+" is killed, and what it wrote last is lost", t)
	}
	if !q.deaf && st.k.at != pGone {
		t = st
		q = side(&t)
		q.deaf, q.events, t.unclear = true, 0, true
		if q.reply != noReply {
			q.sent, q.reply = noCommand, noReply
		}
		put("the monitor of "+name+" is cut", t)
		if q.sent != noCommand {
			q.sent = noCommand
			put("the monitor of "+name+" is cut, and the last command is lost", t)
		}
	}
	if m.Hangs && !side(&st).hung {
		t = st
		side(&t).hung, t.unclear = true, true
		put(name+" hangs", t)
	}
	if m.Sick && second && !st.d.sick {
		t = st
		t.d.sick = true
		put("the destination's disk breaks", t)
	}
	if m.PowersOff && !second && st.s.run == running {
		t = st
		t.off = true
		t.perish(&t.s)
		put("the guest powers itself off, and the source QEMU exits", t)
	}
}

func (m *model) linkFaults(st State, put func(string, State)) {
	st.faults--
	if st.net != netUp {
		return
	}
	if st.wrote != wroteNothing {
		t := st
		t.s.err, t.d.err, t.net = true, true, netDown
		put("the connection breaks", t)
		t.drains = true
		put("the connection breaks, after what is on its way", t)
	}
	t := st
	t.net = netSilent
	put("the route is dropped", t)
	if st.wrote != wroteNothing {
		t.net = netFull
		put("the route is dropped, and the source's socket is full", t)
	}
}

// thirdParty is somebody else with a monitor.
func (m *model) thirdParty(st State, put func(string, State)) {
	st.third--
	for _, c := range []command{cmdStop, cmdCont, cmdCancel} {
		if st.s.dead || st.s.hung || m.bigLock(&st.s) {
			break
		}
		t := st
		t.late = st.late || st.k.at == uLook
		if m.execute(&t, &t.s, c) == refused {
			continue
		}
		switch {
		case c == cmdStop, c == cmdCancel && st.post: // 7.2 takes a cancel in post-copy, and the guest is lost
			t.meddled = true
		case c == cmdCont && (st.post || st.wrote == wroteEnd || st.k.begun || st.k.at == pStopFirst):
			t.excuse |= theySource
		}
		if c == cmdCancel && st.s.mig.final() || t.s == st.s {
			continue
		}
		put("somebody sends the source "+c.String(), t)
	}
	for _, c := range []command{cmdStop, cmdCont} {
		if st.d.dead || st.d.hung {
			break
		}
		t := st
		if m.execute(&t, &t.d, c) == refused || t == st {
			continue
		}
		if t.meddled = true; c == cmdCont {
			t.excuse |= theyDestination // nobody but us may send it that
		}
		put("somebody sends the destination "+c.String(), t)
	}
	if m.Theirs && st.s.at == idle && st.s.run != post && st.s.mig.final() && !st.s.dead && !st.s.hung {
		t := st
		t.s.turn(setup)
		t.s.at, t.theirs = connecting, true
		put("somebody else migrates the source elsewhere", t)
	}
}
