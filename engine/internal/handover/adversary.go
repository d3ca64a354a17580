package handover

// adversary: what breaks, and what others do.
func (m *model) adversary(st State, put func(string, State)) {
	ended := st.k.at == pEnd
	if st.recovers > 0 && (ended && st.k.guest > onDestination || st.k.at == pGone) {
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
	// Ctrl-C is obeyed when it is known whether `migrate` was refused.
	awaits := st.k.at == pMigrate && !m.Former.has(cutsReply)
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
