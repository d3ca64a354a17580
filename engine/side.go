package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// side is one of the two QEMUs, and what its events have told so far.
type side struct {
	role    record.Holder
	ep      *endpoint.Endpoint
	options qmp.Options
	control *qmp.Conn
	events  *qmp.Conn // control itself where there is but one monitor
	sampler *qmp.Sampler
	sub     *qmp.Subscription
	C       <-chan qmp.Event // nil once the monitor has gone
	facts   *facts.Facts
	offset  time.Duration // that host's realtime clock minus ours
	skew    time.Duration // the error of offset

	heard     atomic.Int64 // when it last answered while it was watched, in ns of the epoch
	status    string       // of the last MIGRATION event, or of the last answer since
	runState  string       // of the first answer to query-status, or of the last that was asked for a decision
	outgoing  bool         // the last answer to query-migrate was a source's: it had a section ram
	since     *int64       // bytes sent when it was first asked after it had gone over to post-copy
	given     bool         // and more was sent since: it cannot take its guest back any more
	finished  bool         // its migration has come to an end: what comes later is somebody else's
	parted    bool         // it was in post-copy
	completed time.Time    // MIGRATION completed
	gone      error        // why the monitor went away
	blind     bool         // it went away, and not because QEMU died: events may have been missed
	secured   bool         // TLS objects of ours may be there
	mute      bool         // it did not answer when an undo asked it last
	quit      bool         // QEMU took `quit` and then closed the monitor, which it does when its vCPUs have stopped
	life                   // the guest's
}

// eventBuffer holds every event that a migration sends while we are busy with a command; MIGRATION_PASS, the most
// frequent one, comes at most once a bitmap sync.
const eventBuffer = 4096

// open dials the monitors and learns the facts, which are nil after an error. The first monitor is asked while the others are
// opened.
func (s *side) open(ctx context.Context, o plan.Options) error {
	if o.Logger != nil {
		s.options.Logger = o.Logger.With("side", s.role)
	}
	dial := func(ctx context.Context, d endpoint.Dialer) (*qmp.Conn, error) {
		return s.ep.Talk(ctx, d, string(s.role), s.options)
	}
	var err error
	if s.control, err = dial(ctx, s.ep.Control); err != nil {
		return err
	}
	s.events = s.control
	var found *facts.Facts
	err = facts.Together(ctx, func(ctx context.Context) (err error) {
		if found, err = facts.Read(ctx, s.control, s.ep.Name); err != nil {
			return fmt.Errorf("inspect %s %s: %w", s.role, s.ep.Name, s.ep.Because(err, nil))
		}
		return nil
	}, func(ctx context.Context) (err error) {
		if s.ep.Events != nil {
			conn, err := dial(ctx, s.ep.Events)
			if err != nil {
				return monitorError{err}
			}
			s.events = conn
			if err := s.agrees(ctx, conn, "events"); err != nil {
				return err
			}
		}
		s.sub = s.events.Subscribe(eventBuffer)
		s.C = s.sub.C
		return nil
	}, func(ctx context.Context) (err error) {
		if s.ep.Sampler == nil || s.role != record.Source {
			return nil
		}
		if err := s.ep.Greet(ctx, s.ep.Sampler, string(s.role), func(ctx context.Context, nc net.Conn) error {
			s.sampler, err = qmp.NewSampler(ctx, nc)
			return err
		}); err != nil {
			return monitorError{err}
		}
		return s.agrees(ctx, s.sampler, "the sampler")
	}, func(ctx context.Context) (err error) {
		if s.ep.Clock == nil {
			return nil
		}
		if s.offset, s.skew, err = s.ep.Clock(ctx); err != nil {
			return fmt.Errorf("compare clocks with %s: %w", s.ep.Name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.learn(found)
	return nil
}

// learn takes the facts, and what the process adds to them.
func (s *side) learn(f *facts.Facts) {
	s.facts, s.runState, s.wakes = f, f.RunState, f.Wakes()
	if s.asleep = (time.Time{}); f.RunState == facts.Asleep {
		s.asleep = time.Now()
	}
	f.Here = f.Proved(s.ep.Process)
	if f.Here {
		facts.ReadOpened(s.ep, f.Disks)
	}
	if s.ep.Process != nil && !f.Here {
		ep := *s.ep // the caller's stays as it is
		ep.Process, ep.ReadFile = nil, nil
		s.ep = &ep
	}
	if l, ok := s.ep.Process.(endpoint.MemoryLocker); ok {
		if limit, limited, err := l.MemoryLock(); err == nil && limited {
			f.MemoryLock = &limit
		}
	}
}

// agrees refuses a monitor that belongs to another QEMU than the first one.
func (s *side) agrees(ctx context.Context, other asker, role string) error {
	limited, cancel := context.WithTimeout(ctx, endpoint.GreetLimit)
	defer cancel()
	if err := agree(limited, s.control, other, role); err != nil {
		return monitorError{fmt.Errorf("%s %s: %w", s.role, s.ep.Name, s.ep.Because(err, nil))}
	}
	return nil
}

// close lets the monitors go; it is harmless on a side that was never opened.
func (s *side) close() {
	if s.sampler != nil {
		s.sampler.Close()
	}
	if s.sub != nil {
		s.sub.Close()
	}
	if s.events != nil {
		s.events.Close()
	}
	if s.control != nil {
		s.control.Close()
	}
}

// at places QEMU's own stamp of an event on our monotonic clock. Its age on arrival is the difference of two readings of the
// realtime clock a moment apart, so that a step of that clock can spoil it only within that moment; an age that cannot
// be is taken as 0.
func (s *side) at(ev qmp.Event) time.Time {
	age := ev.Arrived.Round(0).Sub(ev.QEMUTime.Add(-s.offset))
	if age < 0 || age > undoLimit {
		age = 0
	}
	return ev.Arrived.Add(-age)
}

// stampError is the error of a time from at: the stamp's microsecond and the clock's offset.
func (s *side) stampError() time.Duration { return time.Microsecond + s.skew }

// take notes one event; pass is the number of a MIGRATION_PASS. Undisturbed is life.take's.
func (s *side) take(ev qmp.Event, at time.Time, undisturbed bool) (pass int, ok bool) {
	var data eventData
	if len(ev.Data) > 0 && json.Unmarshal(ev.Data, &data) != nil {
		return 0, false // data of another shape belongs to an event that we do not know
	}
	switch ev.Name {
	case "MIGRATION":
		if s.parted && data.Status == "setup" { // it is to listen anew, which may fail: it is paused all the same (7.2)
			break
		}
		s.status = data.Status
		s.finished = s.finished || s.done() || data.Status == "failed" || data.Status == "cancelled"
		s.parted = s.parted || strings.HasPrefix(data.Status, "postcopy-")
		if data.Status == "completed" {
			s.completed = at
		}
	case "MIGRATION_PASS":
		return data.Pass, true
	default:
		s.life.take(ev.Name, data, at, ev.Arrived, undisturbed)
	}
	return 0, false
}

// done tells whether this side has said `completed`.
func (s *side) done() bool { return s.status == "completed" }

// lost notes that the events ended: QEMU closed the monitor, which it does when it exits, or the way to it broke.
func (s *side) lost() {
	s.C = nil
	s.gone = fmt.Errorf("%s QEMU went away: %w", s.role, s.events.Err())
}

// why is what QEMU itself says about a failure; empty if it cannot be asked.
func (s *side) why() string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.control == nil || s.gone != nil {
		return ""
	}
	info, err := s.control.QueryMigrate(ctx)
	if err != nil || info.ErrorDesc == "" {
		return ""
	}
	return ": " + info.ErrorDesc
}

// failure waits a little for a migration that has broken to be failed on this side too, and returns what QEMU says about it; empty if it says nothing.
func (s *side) failure(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for s.control != nil && s.gone == nil {
		info, err := s.control.QueryMigrate(ctx)
		if err != nil {
			return ""
		}
		if info.ErrorDesc != "" {
			return info.ErrorDesc
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ""
		}
	}
	return ""
}

// lastFigures asks until the totals are there: the first `completed` may come with zeros (seen on 7.2 and 10.0).
func (s *side) lastFigures(ctx context.Context) *qmp.MigrationInfo {
	if s.control == nil {
		return nil
	}
	for range 50 {
		info, err := s.control.QueryMigrate(ctx)
		if err != nil {
			return nil
		}
		if info.Status != "completed" || info.TotalTime > 0 {
			return info
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil
}
