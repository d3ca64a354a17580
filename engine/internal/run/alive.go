package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// Limits of what a QEMU that hangs would hold up for ever.
const (
	AnswerLimit = 2 * time.Second // one question, or reaching its monitor again
	politeLimit = 2 * time.Second // `quit`, before the process is killed
	KillLimit   = 5 * time.Second // the kill
	DeathLimit  = time.Second     // the last moment of a process that was killed by somebody else
)

// reached tells whether the monitors are still connected.
func (s *Side) reached() bool {
	return s.Gone == nil && s.Control.Err() == nil && s.events.Err() == nil
}

// Dead tells whether the process is known to have ended. Of a process that is not known nothing follows from a monitor
// that does not answer: what went away may be a forwarder.
func (s *Side) Dead(ctx context.Context) bool {
	if s.Endpoint.Process == nil {
		return false
	}
	select {
	case <-s.Endpoint.Process.Done():
		return true
	default:
	}
	select {
	case <-s.Endpoint.Process.Done():
		return true
	case <-time.After(DeathLimit):
	case <-ctx.Done():
	}
	return false
}

// Over tells whether the QEMU is certain to run nothing any more.
func (s *Side) Over(ctx context.Context) bool { return s.quit || s.Dead(ctx) }

// deaf tells whether nobody listens behind the control socket any more. A process that is just dying gets a moment to
// be gone.
func (s *Side) deaf(ctx context.Context) bool {
	for range 50 {
		nc, err := s.Endpoint.Control(ctx)
		if err != nil {
			return Refused(err)
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

// Refused tells whether err is that nobody listens.
func Refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}

// Asked is query-status with a limit of its own.
func (s *Side) Asked(ctx context.Context) (qmp.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, AnswerLimit)
	defer cancel()
	return s.Control.QueryStatus(ctx)
}

// Promptly runs a step of commands that any QEMU answers at once, within the limit of hanging.
func (r *Run) Promptly(ctx context.Context, step func(context.Context) error) error {
	limit := r.Plan.HangLimit()
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := step(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: no answer within %s: is this QEMU stopped, or stuck?", err, limit)
	}
	return err
}

// Watch has both sides asked again and again, over both monitors, whether they answer, until unwatch; until takes in
// what is found. QEMU answers while it copies, because its incoming side lets the main loop go on every so many pages
// (migration/ram.c, ram_load_precopy).
func (r *Run) Watch(ctx context.Context) {
	if r.Dst.Control == nil { // a file
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	limit := r.Plan.HangLimit()
	silent := make(chan *Side)
	var both sync.WaitGroup
	r.far.Store(r.Plan.Mode == record.StopAndCopyMode) // until it answers
	question := func(ctx context.Context, control *qmp.Conn, s *Side) error {
		_, err := control.QueryStatus(ctx)
		if err == nil && s == r.Src && r.Plan.Mode == record.StopAndCopyMode {
			err = r.noteFar(ctx, control)
		}
		return err
	}
	for _, s := range []*Side{r.Src, r.Dst} {
		control, events := s.Control, s.events // an undo may replace these
		s.heard.Store(time.Now().UnixNano())
		both.Go(func() {
			tick := time.NewTicker(min(WatchInterval, limit/8))
			defer tick.Stop()
			for control.Err() == nil { // its end is told by the events
				limited, done := context.WithTimeout(ctx, limit)
				asks, err := !r.quiet.now(), error(nil)
				if asks {
					err = question(limited, control, s)
				}
				if asks && err == nil && events != control { // without it nothing that is waited for would come
					_, err = events.QueryStatus(limited)
				}
				late := limited.Err() != nil
				done()
				switch {
				case ctx.Err() != nil:
					return
				case !asks:
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
	r.silent, r.unwatched = silent, func() {
		cancel()
		both.Wait()
		r.silent, r.unwatched = nil, nil
	}
}

// noteFar notes whether the end of a copy of a stopped guest is far: QEMU has more to send than its last stage will,
// by a second at the present rate.
func (r *Run) noteFar(ctx context.Context, control *qmp.Conn) error {
	info, err := control.QueryMigrate(ctx)
	if err == nil {
		begins := facts.Idle(info.Status) || info.Status == "setup"
		r.far.Store(begins || info.Status == "active" &&
			float64(info.Remaining) > info.Throughput*(r.Plan.DowntimeLimit+time.Second).Seconds())
	}
	return err
}

func (r *Run) Unwatch() {
	if r.unwatched != nil {
		r.unwatched()
	}
}

// hangs is why a side that was silent for the limit of hanging is given up; nil if it is not. A source in its
// switch-over answers late, and that takes as long as it takes, until the destination has it all. A source whose guest
// was stopped first is not in it as long as the end is far. When both are silent while the guest runs, it is rather the
// way to them that is broken: nothing that is sent would arrive, and the migration may go on well without us.
func (r *Run) hangs(s *Side) error {
	limit, other := r.Plan.HangLimit(), r.Src
	if s == r.Src {
		other = r.Dst
	}
	running := !r.Src.Still()
	switch {
	case s == r.Src && !running && !r.Dst.Done() && !r.far.Load():
		return nil
	case running && time.Since(time.Unix(0, other.heard.Load())) > limit/2:
		r.Rec.Warn("neither QEMU answered for %s while the guest ran on the source: the way to both was taken to be "+
			"broken, and nothing was done", limit)
		return nil
	}
	return fmt.Errorf("%s QEMU has not answered for %s: is it stopped, or stuck?", s.Role, limit)
}

// regain reaches a QEMU again whose monitor was lost, over the control monitor alone. The pollers must have ended. From
// here on the side is blind to what it missed.
func (s *Side) regain(ctx context.Context) {
	s.blind = true
	limit := AnswerLimit
	if s.Gone == nil {
		s.Gone = fmt.Errorf("%s QEMU's monitor was lost: %w", s.Role, cmp.Or(s.Control.Err(), s.events.Err()))
	}
	if endpoint.WayLost(s.Gone) {
		limit = max(limit, s.Endpoint.Again)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s.Control.Close()
	s.events.Close()
	s.C = nil
	conn, err := s.redial(ctx)
	if err != nil {
		if endpoint.WayLost(s.Gone) {
			s.Gone = fmt.Errorf("%w; over a new way: %w", s.Gone, err)
		}
		return
	}
	sub := conn.Subscribe(eventBuffer)
	info, err := conn.QueryMigrate(ctx)
	if err == nil {
		err = s.another(ctx, conn, info)
	}
	if err != nil {
		s.Gone = fmt.Errorf("%w; %w", s.Gone, err)
		conn.Close()
		return
	}
	s.Control, s.events, s.sub, s.C, s.Gone = conn, conn, sub, sub.C, nil
	s.Status = info.Status
}

// ReachAgain reaches the sides again whose way broke, where QEMU goes on without us: after activation. It is false if
// there was none, or one is not reached.
func (r *Run) ReachAgain(ctx context.Context) bool {
	found := false
	for _, s := range []*Side{r.Src, r.Dst} {
		if s.Gone == nil {
			continue
		}
		if !endpoint.WayLost(s.Gone) {
			return false
		}
		limited, cancel := context.WithTimeout(ctx, AnswerLimit)
		r.StopPolling(limited) // it uses the monitors
		cancel()
		broke := s.Gone
		if s.regain(ctx); s.Gone != nil {
			return false
		}
		if s.Done() && s.Completed.IsZero() {
			s.Completed = time.Now()
		}
		r.Rec.Warn("%v; it was reached again: what it told meanwhile, and the samples since, are missing", broke)
		found = true
	}
	return found
}

// redial opens the control monitor again. A way that was lost may come back, and whoever served that may hold the
// monitor until it notices: that is waited for.
func (s *Side) redial(ctx context.Context) (*qmp.Conn, error) {
	for {
		nc, err := s.Endpoint.Control(ctx)
		var conn *qmp.Conn
		if err == nil {
			conn, err = qmp.NewConn(ctx, nc, s.options)
		}
		if err == nil || !endpoint.WayLost(s.Gone) || Refused(err) {
			return conn, err
		}
		select {
		case <-time.After(redialPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

const redialPause = 500 * time.Millisecond

// another is an error if what answers at the endpoint now is a QEMU that was started since: its vCPU's thread is
// another one, or it knows nothing of a migration that was under way, which a QEMU never forgets.
func (s *Side) another(ctx context.Context, conn *qmp.Conn, info *qmp.MigrationInfo) error {
	cpus, err := conn.CPUs(ctx)
	switch {
	case err != nil:
		return err
	case len(cpus) > 0 && s.Facts != nil && cpus[0].Thread != s.Facts.VCPUThread, !facts.Idle(s.Status) &&
		s.Status != "setup" &&
		facts.Idle(info.Status):
		return errors.New("another QEMU answers there now")
	}
	return nil
}

// Kill ends the QEMU and returns nil when it is gone as far as can be seen: its process is dead, or it took `quit` and
// closed its monitor, or nobody listens on its socket any more. The last is enough for a QEMU that surely never ran the
// guest; for one that may have, over is what counts.
func (s *Side) Kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), politeLimit+KillLimit)
	defer cancel()
	if s.Control != nil && s.Control.Err() == nil {
		polite, cancel := context.WithTimeout(ctx, politeLimit)
		defer cancel()
		// A monitor that merely closes proves nothing, it may be a forwarder's. It counts after QEMU's own yes.
		if s.Control.Execute(polite, "quit", nil, nil) == nil {
			select {
			case <-s.Control.Done():
				s.quit = !endpoint.WayLost(s.Control.Err())
			case <-polite.Done():
			}
		}
	}
	if s.Endpoint.Process != nil {
		if err := s.Endpoint.Process.Kill(ctx); err == nil {
			return nil
		}
	}
	// One whose incoming migration has failed exits by itself, and holds nothing that it could run.
	if s.quit || s.Status == "failed" && !s.reached() || s.deaf(ctx) {
		return nil
	}
	return fmt.Errorf("%s QEMU does not answer and its process cannot be ended", s.Role)
}

const WatchInterval = 500 * time.Millisecond // between two looks at the source's progress
