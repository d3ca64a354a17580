package engine

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

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

// again tells whether this side has run the guest since it was stopped.
func (s *side) again() bool { return s.resumed.After(s.stopped) }

// proved tells whether the endpoint's process is this QEMU: it has the vCPU threads that QEMU names. Who listens on a socket may
// also be a forwarder, or a manager that made the socket, and neither's death would be the guest's.
func (s *side) proved() bool {
	return s.facts.vcpuThread > 0 && s.ep.Process.HasThread(s.facts.vcpuThread)
}

// regain reaches a QEMU again whose monitor was lost, over the control monitor alone. The pollers must have ended. From here on the
// side is blind to what it missed.
func (s *side) regain(ctx context.Context) {
	s.blind = true
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if s.gone == nil {
		s.gone = fmt.Errorf("%s QEMU's monitor was lost: %w", s.role, errors.Join(s.control.Err(), s.events.Err()))
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
	if err != nil {
		conn.Close()
		return
	}
	s.control, s.events, s.sub, s.C, s.gone = conn, conn, sub, sub.C, nil
	s.status = info.Status
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
