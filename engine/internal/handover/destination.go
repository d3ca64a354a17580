package handover

// reads tells whether the destination can read what the source has written.
func (s *State) reads() bool { return s.net == netUp && !s.d.err || s.d.err && s.drains }

// exit is the end of a destination that cannot load.
func (s *State) exit() {
	s.d.turn(failed)
	s.perish(&s.d)
}

// perish is the end of a process: its socket closes, and what it has sent still arrives.
func (s *State) perish(q *qemu) {
	s.hangUp(q)
	q.dead, q.lock, q.hung, q.sent, q.reply = true, false, false, noCommand, noReply
}

// start runs the guest: RESUME is sent before the vCPUs go.
func (s *State) start(q *qemu) {
	q.tell(resumeEvent)
	q.run = running
	if q == &s.d && q.at != waiting {
		s.ran = true
	}
}

// destinationSteps are the next steps of the destination.
func (m *model) destinationSteps(st State, put func(string, State)) {
	if st.d.dead || st.d.hung || m.Elsewhere {
		if m.Elsewhere && st.wrote == wroteEnd && !st.other && (st.net == netUp || st.drains) {
			t := st
			t.other = true
			put("the other QEMU has everything and starts the guest", t)
		}
		return
	}
	t := st
	d := &t.d
	reads := st.reads()
	broken := d.err && (!reads || st.wrote != wroteEnd && !st.post) // and nothing more comes
	switch d.at {
	case waiting:
		switch {
		case st.wrote == wroteNothing:
		case reads:
			d.turn(active)
			d.at = loading
			put("destination: takes the connection", t)
		case d.err:
			d.turn(active)
			t.exit()
			put("destination: takes a broken connection, and ends", t)
		}
	case loading:
		switch {
		case broken:
			t.exit()
			put("destination: loses the link, and ends", t)
		case reads && st.post:
			d.at = unpacking
			if m.Destination == v11 {
				d.turn(splitDevice)
			} else {
				d.turn(split)
			}
			put("destination: has the package", t)
		case reads && st.wrote == wroteEnd:
			d.at = loaded
			put("destination: has everything", t)
		}
	case loaded:
		m.begin(&t, m.Destination == v7 && !m.Late)
		d.turn(arrived)
		d.at, t.shut = done, st.net == netUp
		put("destination: completed", t)
	case unpacking:
		if d.err && !(st.drains && st.wrote == wroteEnd) {
			u := st
			u.exit()
			put("destination: loses the link while it loads devices, and ends", u)
		}
		d.at = unpacked
		t.pong = st.net == netUp
		put("destination: has loaded the package", t)
	case unpacked:
		m.begin(&t, m.Destination == v7)
		if m.Destination == v11 {
			d.turn(split)
		}
		d.at = receiving
		put("destination: has the guest, without its memory", t)
	case receiving:
		switch {
		case reads && st.wrote == wroteEnd:
			d.turn(arrived)
			d.at, t.shut = done, st.net == netUp
			put("destination: has all memory", t)
		case d.err:
			d.turn(splitPaused)
			d.at = halted
			t.hangUp(d)
			put("destination: pauses post-copy", t)
		}
	case handshake:
		switch {
		case d.err && m.Destination == v7:
			d.at = stuck
			put("destination: loses the link in the handshake", t)
		case d.err:
			d.turn(splitPaused)
			d.at = halted
			put("destination: loses the link in the handshake", t)
		case reads:
			d.turn(split)
			d.at = receiving
			put("destination: post-copy goes on", t)
		}
	}
}

// begin is the bottom half at the end of loading: the guest stands still there, unless somebody said `cont`
// meanwhile.
func (m *model) begin(t *State, takesDisks bool) {
	d := &t.d
	ok := true
	if takesDisks || d.was {
		ok = m.activate(d, &t.s)
	}
	d.run = paused
	if d.was && ok {
		t.start(d)
	}
}
