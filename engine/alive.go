package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// Limits of what a QEMU that hangs would hold up for ever.
const (
	answerLimit = 2 * time.Second // one question, or reaching its monitor again
	politeLimit = 2 * time.Second // `quit`, before the process is killed
	killLimit   = 5 * time.Second // the kill
	deathLimit  = time.Second     // the last moment of a process that was killed by somebody else
)

// reached tells whether the monitors are still connected.
func (s *side) reached() bool {
	return s.gone == nil && s.control.Err() == nil && s.events.Err() == nil
}

// dead tells whether the process is known to have ended. Of a process that is not known nothing follows from a monitor that does not
// answer: what went away may be a forwarder.
func (s *side) dead(ctx context.Context) bool {
	if s.ep.Process == nil {
		return false
	}
	select {
	case <-s.ep.Process.Done():
		return true
	default:
	}
	select {
	case <-s.ep.Process.Done():
		return true
	case <-time.After(deathLimit):
	case <-ctx.Done():
	}
	return false
}

// over tells whether the QEMU is certain to run nothing any more.
func (s *side) over(ctx context.Context) bool { return s.quit || s.dead(ctx) }

// deaf tells whether nobody listens behind the control socket any more. A process that is just dying gets a moment to be gone.
func (s *side) deaf(ctx context.Context) bool {
	for range 50 {
		nc, err := s.ep.Control(ctx)
		if err != nil {
			return refused(err)
		}
		nc.Close()
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
	return false
}

// refused tells whether err is that nobody listens.
func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}

// asked is query-status with a limit of its own.
func (s *side) asked(ctx context.Context) (qmp.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	return s.control.QueryStatus(ctx)
}

// promptly runs a step of commands that any QEMU answers at once, within the limit of hanging.
func (m *migration) promptly(ctx context.Context, step func(context.Context) error) error {
	limit := m.plan.HangLimit()
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := step(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: no answer within %s: is this QEMU stopped, or stuck?", err, limit)
	}
	return err
}

// watch has both sides asked again and again, over both monitors, whether they answer, until unwatch; until takes in
// what is found. QEMU answers while it copies, for its incoming side lets the main loop go on every so many pages
// (migration/ram.c, ram_load_precopy).
func (m *migration) watch(ctx context.Context) {
	if m.dst.control == nil { // a file
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	limit := m.plan.HangLimit()
	silent := make(chan *side)
	var both sync.WaitGroup
	m.far.Store(m.plan.Mode == record.StopAndCopyMode) // until it answers
	question := func(ctx context.Context, control *qmp.Conn, s *side) error {
		_, err := control.QueryStatus(ctx)
		if err == nil && s == m.src && m.plan.Mode == record.StopAndCopyMode {
			err = m.noteFar(ctx, control)
		}
		return err
	}
	for _, s := range []*side{m.src, m.dst} {
		control, events := s.control, s.events // an undo may replace these
		s.heard.Store(time.Now().UnixNano())
		both.Go(func() {
			tick := time.NewTicker(min(watchInterval, limit/8))
			defer tick.Stop()
			for control.Err() == nil { // its end is told by the events
				limited, done := context.WithTimeout(ctx, limit)
				err := question(limited, control, s)
				if err == nil && events != control { // without it nothing that is waited for would come
					_, err = events.QueryStatus(limited)
				}
				late := limited.Err() != nil
				done()
				switch {
				case ctx.Err() != nil:
					return
				case err != nil && late:
					select {
					case silent <- s:
					case <-ctx.Done():
						return
					}
				default:
					s.heard.Store(time.Now().UnixNano())
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	m.silent, m.unwatched = silent, func() {
		cancel()
		both.Wait()
		m.silent, m.unwatched = nil, nil
	}
}

// noteFar notes whether the end of a copy of a stopped guest is far: QEMU has more to send than its last stage will,
// by a second at the present rate.
func (m *migration) noteFar(ctx context.Context, control *qmp.Conn) error {
	info, err := control.QueryMigrate(ctx)
	if err == nil {
		begins := facts.Idle(info.Status) || info.Status == "setup"
		m.far.Store(begins || info.Status == "active" && float64(info.Remaining) > info.Throughput*(m.plan.DowntimeLimit+time.Second).Seconds())
	}
	return err
}

func (m *migration) unwatch() {
	if m.unwatched != nil {
		m.unwatched()
	}
}

// hangs is why a side that was silent for the limit of hanging is given up; nil if it is not. A source in its switch-over answers late, and that takes as
// long as it takes, until the destination has it all. A source whose guest was stopped first is not in it as long as
// the end is far. When both are silent while the guest runs, it is rather the way to them that is broken: nothing
// that is sent would arrive, and the migration may go on well without us.
func (m *migration) hangs(s *side) error {
	limit, other := m.plan.HangLimit(), m.src
	if s == m.src {
		other = m.dst
	}
	running := !m.src.still()
	switch {
	case s == m.src && !running && !m.dst.done() && !m.far.Load():
		return nil
	case running && time.Since(time.Unix(0, other.heard.Load())) > limit/2:
		m.rec.Warn("neither QEMU answered for %s while the guest ran on the source: the way to both was taken to be broken, and nothing was done", limit)
		return nil
	}
	return fmt.Errorf("%s QEMU has not answered for %s: is it stopped, or stuck?", s.role, limit)
}

// regain reaches a QEMU again whose monitor was lost, over the control monitor alone. The pollers must have ended. From here on the
// side is blind to what it missed.
func (s *side) regain(ctx context.Context) {
	s.blind = true
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if s.gone == nil {
		s.gone = fmt.Errorf("%s QEMU's monitor was lost: %w", s.role, cmp.Or(s.control.Err(), s.events.Err()))
	}
	s.control.Close()
	s.events.Close()
	s.C = nil
	nc, err := s.ep.Control(ctx)
	if err != nil {
		return
	}
	conn, err := qmp.NewConn(ctx, nc, s.options)
	if err != nil {
		return
	}
	sub := conn.Subscribe(eventBuffer)
	info, err := conn.QueryMigrate(ctx)
	if err == nil {
		err = s.another(ctx, conn, info)
	}
	if err != nil {
		s.gone = fmt.Errorf("%w; %w", s.gone, err)
		conn.Close()
		return
	}
	s.control, s.events, s.sub, s.C, s.gone = conn, conn, sub, sub.C, nil
	s.status = info.Status
}

// another is an error if what answers at the endpoint now is a QEMU that was started since: its vCPU's thread is
// another one, or it knows nothing of a migration that was under way, which a QEMU never forgets.
func (s *side) another(ctx context.Context, conn *qmp.Conn, info *qmp.MigrationInfo) error {
	cpus, err := conn.CPUs(ctx)
	switch {
	case err != nil:
		return err
	case len(cpus) > 0 && s.facts != nil && cpus[0].Thread != s.facts.VCPUThread, !facts.Idle(s.status) && s.status != "setup" &&
		facts.Idle(info.Status):
		return errors.New("another QEMU answers there now")
	}
	return nil
}

// kill ends the QEMU and returns nil when it is gone as far as can be seen: its process is dead, or it took `quit` and closed its
// monitor, or nobody listens on its socket any more. The last is enough for a QEMU that surely never ran the guest; for
// one that may have, over is what counts.
func (s *side) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), politeLimit+killLimit)
	defer cancel()
	if s.control != nil && s.control.Err() == nil {
		polite, cancel := context.WithTimeout(ctx, politeLimit)
		defer cancel()
		// A monitor that merely closes proves nothing, it may be a forwarder's. It counts after QEMU's own yes.
		if s.control.Execute(polite, "quit", nil, nil) == nil {
			select {
			case <-s.control.Done():
				s.quit = true
			case <-polite.Done():
			}
		}
	}
	if s.ep.Process != nil {
		if err := s.ep.Process.Kill(ctx); err == nil {
			return nil
		}
	}
	// One whose incoming migration has failed exits by itself, and holds nothing that it could run.
	if s.quit || s.status == "failed" && !s.reached() || s.deaf(ctx) {
		return nil
	}
	return fmt.Errorf("%s QEMU does not answer and its process cannot be ended", s.role)
}
