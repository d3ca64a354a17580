package handover

// execute is QEMU's answer to a command in band.
func (m *model) execute(t *State, q *qemu, c command) reply {
	if q == &t.s {
		return m.executeSource(t, c)
	}
	d := &t.d
	switch c {
	case cmdStop:
		if d.run == inMigrate {
			d.was = false
		}
		d.stop()
	case cmdCont:
		switch d.run {
		case inMigrate:
			d.was = true
		case paused:
			if d.sick || !m.activate(d, &t.s) {
				return refused
			}
			t.start(d)
		}
	case cmdQuit:
		t.perish(d)
	}
	return yes
}

func (q *qemu) stop() {
	if q.run == running {
		q.run = paused
		q.tell(stopEvent)
	}
}

func (m *model) executeSource(t *State, c command) reply {
	s := &t.s
	switch c {
	case cmdStop:
		s.stop()
	case cmdCont:
		switch s.run {
		case finishing: // "Migration is not finalized yet"
			return refused
		case paused, post:
			if !m.activate(s, &t.d) {
				return refused
			}
			t.start(s)
		}
	case cmdMigrate:
		if !s.mig.final() || s.run == post || s.at != idle {
			return refused
		}
		s.turn(setup)
		s.at = connecting
	case cmdSwitch:
		t.wantsPost = true
	case cmdResume:
		if s.mig != splitPaused || s.at != halted {
			return refused
		}
		if m.Source >= v10 {
			s.turn(splitRecover)
		}
		s.at = reconnecting
	case cmdCancel:
		return m.cancel(t)
	}
	return yes
}

// cancel is migrate_cancel.
func (m *model) cancel(t *State) reply {
	s := &t.s
	switch {
	case s.mig.final():
		return yes
	case m.Source >= v10 && (s.mig == split || s.mig == splitPaused || s.mig == splitRecover || s.mig == splitDevice):
		return refused
	}
	if s.mig != cancelling {
		s.turn(cancelling)
	}
	switch {
	case s.at == connecting && m.Source >= v10:
		s.turn(cancelled)
		s.at = idle
		return yes
	case s.at == connecting: // 7.2 waits for the attempt to end
		return yes
	case s.at == halted, s.at == reconnecting: // nobody wakes the thread
		s.at = stuck
	case m.Source == v7 && s.run == finishing && !t.post:
		m.activate(s, &t.d)
	}
	t.hangUp(s)
	return yes
}

// yank closes the migration's connection, out of band.
func (m *model) yank(t *State, q *qemu) {
	switch {
	case q.dead || q.at == connecting || q.at == idle:
		return
	case q.hung: // it takes it when it wakes
		q.err = true
		return
	}
	t.hangUp(q)
}

// pause is migrate-pause, out of band.
func (m *model) pause(t *State, q *qemu, version version) {
	if !q.dead && !q.hung && (q.mig == split || q.mig == splitRecover && version >= v10) {
		t.hangUp(q)
	}
}
