package handover

// bigLock: QEMU holds its main loop, and takes no command in band.
func (m *model) bigLock(q *qemu) bool {
	switch q.at {
	case saving, packaging:
		return true
	case packaged:
		return m.Source >= v10
	}
	return false
}

// hears tells whether the source can read what the destination has written; see drains.
func (s *State) hears() bool { return s.net == netUp && !s.s.err || s.s.err && s.drains }

// hangUp is what the end of one side's socket means to both.
func (s *State) hangUp(q *qemu) {
	if s.net == netUp {
		s.s.err, s.d.err, s.drains, s.net = true, true, true, netDown
	}
	q.err = true
}

// activate takes the disks back, where the other side's lock allows it.
func (m *model) activate(q, other *qemu) bool {
	if !m.NoLocks && other.lock && !other.dead {
		return false
	}
	q.lock = true
	return true
}

// halt stops the guest at the end of a migration.
func (s *State) halt() {
	q := &s.s
	q.was = q.run == running
	if s.moved = q.was; q.was {
		q.tell(stopEvent)
	}
	q.run, q.lock = finishing, false
}

// sourceSteps are the next steps of the source's migration thread; minutes: those that need minutes.
func (m *model) sourceSteps(st State, minutes bool, put func(string, State)) {
	if st.s.dead || st.s.hung {
		return
	}
	t := st
	s := &t.s
	if minutes {
		switch {
		case s.at == connecting && st.net >= netSilent:
			m.fallFlat(&t)
			put("source: its attempt to connect runs out", t)
		case (s.at == saved || s.at == allPages) && st.d.at == done: // nothing is to be sent again
		case s.at == idle, s.at == stuck, s.at == halted, s.at == reconnecting, s.at == ending:
		case st.net >= netSilent && !s.err:
			s.err = true
			put("source: TCP gives the connection up", t)
		}
		return
	}
	switch s.at {
	case connecting:
		m.connect(st, put)
	case iterating:
		m.iterate(st, put)
	case saving:
		switch {
		case s.err:
			m.fail(&t)
			put("source: cannot send the rest", t)
		case st.net != netFull:
			t.wrote, s.at = wroteEnd, saved
			put("source: has sent all", t)
		}
	case saved:
		m.complete(st, put)
	case ending:
		s.run, s.at = post, idle
		t.hangUp(s)
		put("source: postmigrate", t)
	case failing:
		m.goBack(&t)
		put("source: ends its failed migration", t)
	case switching:
		t.halt()
		s.was = false // 7.2 notes it in migration_completion only, so nothing is continued later
		s.at = packaging
		put("source: stops the guest for post-copy", t)
	case packaging:
		switch {
		case s.err:
			m.failSwitch(&t, true)
			put("source: cannot send the package", t)
		case st.net != netFull:
			t.post, s.at = true, packaged
			put("source: has sent the package", t)
		}
	case packaged:
		t.gave = m.Release
		if s.err {
			m.failSwitch(&t, false)
			put("source: sees an error after the package", t)
			return
		}
		s.at = pages
		switch {
		case m.Source == v10:
			s.turn(split)
		case m.Source == v11:
			s.turn(splitDevice)
		}
		put("source: has switched to post-copy", t)
	case pages:
		m.follow(st, put)
	case allPages:
		m.completePost(st, put)
	case reconnecting:
		m.reconnect(st, put)
	case handshake:
		switch {
		case s.err:
			if m.Source == v7 {
				s.at = stuck
			} else {
				s.turn(splitPaused)
				s.at = halted
			}
			put("source: loses the link in the handshake", t)
		case st.net == netUp && st.d.at == receiving:
			s.turn(split)
			s.at = pages
			put("source: post-copy goes on", t)
		}
	}
}

func (m *model) connect(st State, put func(string, State)) {
	t := st
	s := &t.s
	switch {
	case st.net >= netSilent: // see minutes
	case st.theirs: // goes somewhere, and comes to no end of its own
	case s.err || !m.Elsewhere && (st.d.dead || st.d.at != waiting):
		m.fallFlat(&t)
		put("source: cannot connect", t)
	case s.mig == cancelling:
		s.turn(cancelled)
		s.at, t.wrote = idle, wroteRAM
		t.hangUp(s)
		put("source: connects, and ends a cancelled migration", t)
	default:
		s.turn(active)
		s.at, t.wrote = iterating, wroteRAM
		put("source: connects", t)
	}
}

// fallFlat is the end of an attempt to connect: the guest was not touched.
func (m *model) fallFlat(t *State) {
	if t.s.mig == cancelling {
		t.s.turn(cancelled)
	} else {
		t.s.turn(failed)
	}
	t.s.at = idle
}

func (m *model) iterate(st State, put func(string, State)) {
	t := st
	s := &t.s
	switch {
	case s.mig == cancelling:
		s.was = false
		s.at = failing
		put("source: sees that it was cancelled", t)
		return
	case s.err:
		s.turn(failed)
		s.was = false
		s.at = failing
		put("source: sees that the connection broke", t)
		return
	case st.net == netFull:
		return
	}
	if st.wantsPost {
		u := st
		if m.Source == v7 {
			u.s.turn(split)
			u.s.at = switching
		} else {
			u.halt()
			u.s.turn(device)
			u.s.at = packaging
		}
		put("source: begins the switch to post-copy", u)
	}
	t.halt()
	if m.Source >= v10 {
		s.turn(device)
	}
	s.at = saving
	put("source: begins its last stage", t)
}

// complete is the end of a pre-copy. With return-path the source waits for SHUT.
func (m *model) complete(st State, put func(string, State)) {
	t := st
	s := &t.s
	if s.mig == cancelling {
		s.at = failing
		put("source: sees at its end that it was cancelled", t)
		if m.Source < v10 || m.ReturnPath && !st.shut { // 10.0 and newer overwrite it after their last look at errors
			return
		}
	} else if s.err && (!m.ReturnPath || !st.shut || !st.hears()) {
		m.fail(&t)
		put("source: sees an error at its end", t)
	}
	if m.ReturnPath && (!st.shut || !st.hears()) {
		return
	}
	t = st
	t.s.turn(departed)
	t.s.at = ending
	put("source: completed", t)
}

// fail is a pre-copy that fails in its last stage.
func (m *model) fail(t *State) {
	if m.Source == v7 {
		m.activate(&t.s, &t.d)
	}
	if t.s.mig != cancelling {
		t.s.turn(failed)
	}
	t.s.at = failing
}

// failSwitch is a postcopy_start that fails, early (before the package was sent) or late.
func (m *model) failSwitch(t *State, early bool) {
	s := &t.s
	switch m.Source {
	case v7:
		if early {
			m.activate(s, &t.d)
		}
		if s.mig != cancelling {
			s.turn(failed)
		}
		s.at = failing
	case v10: // fails from postcopy-active, but is in device: the state stays, and the thread ends
		m.activate(s, &t.d)
		s.at = stuck
		t.hangUp(s)
	default:
		s.turn(failed)
		s.at = failing
	}
}

// goBack is migration_iteration_finish after a failure, and the clean-up.
func (m *model) goBack(t *State) {
	s := &t.s
	s.at = idle
	starts := true
	if m.Source >= v10 {
		ok := m.activate(s, &t.d)
		starts = ok || m.Source == v10
	}
	switch {
	case !starts: // "wait for mgmt to decide": it stays finish-migrate, in which `cont` is refused
	case s.was:
		s.tell(resumeEvent)
		s.run = running
	case s.run == finishing && m.Source == v7:
		s.run = post
	case s.run == finishing:
		s.run = paused
	}
	s.was = false
	if s.mig == cancelling {
		s.turn(cancelled)
	}
	t.hangUp(s)
}

// follow is post-copy from the package to the last page.
func (m *model) follow(st State, put func(string, State)) {
	t := st
	s := &t.s
	switch {
	case s.mig == cancelling:
		s.at = failing
		put("source: sees in post-copy that it was cancelled", t)
	case s.mig == splitDevice && st.pong && st.hears():
		s.turn(split)
		t.pong = false
		put("source: the destination has loaded the package", t)
		if !s.err {
			return
		}
		fallthrough
	case s.err:
		t = st
		if t.s.mig == splitDevice {
			t.s.turn(failed)
			t.s.at = failing
			put("source: loses the link before the destination has loaded the package", t)
			return
		}
		t.s.turn(splitPaused)
		t.s.at = halted
		t.hangUp(&t.s)
		put("source: pauses post-copy", t)
	case st.net != netFull && s.mig == split:
		t.wrote, s.at = wroteEnd, allPages
		put("source: has sent all memory", t)
	}
}

// completePost waits for SHUT, which post-copy always does.
func (m *model) completePost(st State, put func(string, State)) {
	t := st
	s := &t.s
	switch {
	case s.mig == cancelling:
		s.at = failing
		put("source: sees at the end of post-copy that it was cancelled", t)
	case st.shut && st.hears():
		s.turn(departed)
		s.at = ending
		put("source: completed", t)
	case s.err && m.Source == v7:
		s.at = stuck // its return-path thread waits for a recovery, and nobody can begin one
		put("source: loses the link before SHUT, and waits", t)
	case s.err:
		s.turn(failed)
		s.at = failing
		if m.IntoSwitch && s.was {
			t.excuse |= itself
		}
		put("source: loses the link before SHUT, and fails", t)
	}
}

// reconnect is `migrate` with resume.
func (m *model) reconnect(st State, put func(string, State)) {
	t := st
	if !st.d.dead && st.again {
		t.net, t.s.err, t.d.err, t.drains, t.again = netUp, false, false, false, false
		if m.Source == v7 {
			t.s.turn(splitRecover)
		}
		t.s.at = handshake
		if t.wrote == wroteEnd {
			t.wrote = wroteRAM
		}
		t.d.turn(splitRecover)
		t.d.at = handshake
		put("source: connects again", t)
	}
	t = st
	if m.Source >= v10 {
		t.s.turn(splitPaused)
	}
	t.s.at = halted
	put("source: cannot connect again", t)
}
