package run

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

// Side is one of the two QEMUs, and what its events have told so far.
type Side struct {
	Role     record.Holder
	Endpoint *endpoint.Endpoint
	options  qmp.Options
	Control  *qmp.Conn
	events   *qmp.Conn // control itself where there is but one monitor
	sampler  *qmp.Sampler
	sub      *qmp.Subscription
	C        <-chan qmp.Event // nil once the monitor has gone
	Facts    *facts.Facts

	heard     atomic.Int64 // when it last answered while it was watched, in ns of the epoch
	Status    string       // of the last MIGRATION event, or of the last answer since
	RunState  string       // of the first answer to query-status, or of the last that was asked for a decision
	outgoing  bool         // the last answer to query-migrate was a source's: it had a section ram
	since     *int64       // bytes sent when it was first asked after it had gone over to post-copy
	given     bool         // and more was sent since: it cannot take its guest back any more
	finished  bool         // its migration has come to an end: what comes later is somebody else's
	once      bool         // and is not taken in: somebody else drives, and may begin another migration at once
	parted    bool         // it was in post-copy
	Completed time.Time    // MIGRATION completed
	Gone      error        // why the monitor went away
	blind     bool         // it went away, and not because QEMU died: events may have been missed
	mute      bool         // it did not answer when an undo asked it last
	quit      bool         // QEMU took `quit` and then closed the monitor, which it does when its vCPUs have stopped
	life                   // the guest's
	timing                 // its clock, beside ours
}

// eventBuffer holds every event that a migration sends while we are busy with a command; MIGRATION_PASS, the most
// frequent one, comes at most once a bitmap sync.
const eventBuffer = 4096

// Open dials the monitors and learns the facts, which are nil after an error. The first monitor is asked while the
// others are opened.
func (s *Side) Open(ctx context.Context, o plan.Options) error {
	if o.Logger != nil {
		s.options.Logger = o.Logger.With("side", s.Role)
	}
	dial := func(ctx context.Context, d endpoint.Dialer) (*qmp.Conn, error) {
		return s.Endpoint.Talk(ctx, d, string(s.Role), s.options)
	}
	var err error
	if s.Control, err = dial(ctx, s.Endpoint.Control); err != nil {
		return err
	}
	s.events = s.Control
	var found *facts.Facts
	err = facts.Together(ctx, func(ctx context.Context) (err error) {
		if found, err = facts.Read(ctx, s.Control, s.Endpoint.Name); err != nil {
			return fmt.Errorf("inspect %s %s: %w", s.Role, s.Endpoint.Name, s.Endpoint.Because(err, nil))
		}
		return nil
	}, func(ctx context.Context) (err error) {
		if s.Endpoint.Events != nil {
			conn, err := dial(ctx, s.Endpoint.Events)
			if err != nil {
				return MonitorError{err}
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
		if s.Endpoint.Sampler == nil || s.Role != record.Source {
			return nil
		}
		if err := s.Endpoint.Greet(ctx, s.Endpoint.Sampler, string(s.Role), func(ctx context.Context, nc net.Conn) error {
			s.sampler, err = qmp.NewSampler(ctx, nc)
			return err
		}); err != nil {
			return MonitorError{err}
		}
		return s.agrees(ctx, s.sampler, "the sampler")
	}, s.follow)
	if err != nil {
		return err
	}
	s.learn(found)
	facts.RestoreTraces(ctx, s.Control, s.Endpoint, o)
	return nil
}

// learn takes the facts, and what the process adds to them.
func (s *Side) learn(f *facts.Facts) {
	s.Facts, s.RunState, s.wakes = f, f.RunState, f.Wakes()
	if s.Asleep = (time.Time{}); f.RunState == facts.Asleep {
		s.Asleep = time.Now()
	}
	if f.Locate(s.Endpoint); f.Found() {
		facts.ReadOpened(s.Endpoint, f.Disks)
	}
	if s.Endpoint.Process != nil && !f.Found() {
		ep := *s.Endpoint // the caller's stays as it is
		ep.Process, ep.ReadFile = nil, nil
		s.Endpoint = &ep
	}
	if l, ok := s.Endpoint.Process.(endpoint.MemoryLocker); ok {
		if limit, limited, err := l.MemoryLock(); err == nil && limited {
			f.MemoryLock = &limit
		}
	}
}

// agrees refuses a monitor that belongs to another QEMU than the first one.
func (s *Side) agrees(ctx context.Context, other asker, role string) error {
	limited, cancel := context.WithTimeout(ctx, endpoint.GreetLimit)
	defer cancel()
	if err := agree(limited, s.Control, other, role); err != nil {
		return MonitorError{fmt.Errorf("%s %s: %w", s.Role, s.Endpoint.Name, s.Endpoint.Because(err, nil))}
	}
	return nil
}

// close lets the monitors go; it is harmless on a side that was never opened.
func (s *Side) close() {
	if s.follower != nil {
		s.follower.Close()
	}
	if s.sampler != nil {
		s.sampler.Close()
	}
	if s.sub != nil {
		s.sub.Close()
	}
	if s.events != nil {
		s.events.Close()
	}
	if s.Control != nil {
		s.Control.Close()
	}
}

// take notes one event; pass is the number of a MIGRATION_PASS. Undisturbed is life.take's.
func (s *Side) take(ev qmp.Event, at time.Time, undisturbed bool) (pass int, ok bool) {
	var data eventData
	if len(ev.Data) > 0 && json.Unmarshal(ev.Data, &data) != nil {
		return 0, false // data of another shape belongs to an event that we do not know
	}
	switch ev.Name {
	case "MIGRATION":
		s.Says(data.Status, at)
	case "MIGRATION_PASS":
		return data.Pass, true
	default:
		s.life.take(ev.Name, data, at, ev.Arrived, undisturbed)
	}
	return 0, false
}

// Says notes the status of this side's migration, by an event or by an answer.
func (s *Side) Says(status string, at time.Time) {
	if s.once && s.finished {
		return
	}
	if s.parted && status == "setup" { // it is to listen anew, which may fail: it is paused all the same (7.2)
		return
	}
	s.Status = status
	s.finished = s.finished || s.Done() || status == "failed" || status == "cancelled"
	s.parted = s.parted || strings.HasPrefix(status, "postcopy-")
	if status == "completed" {
		s.Completed = at
	}
}

// Parted tells whether this side has been in post-copy.
func (s *Side) Parted() bool { return s.parted }

// Started is the first RESUME; zero: the guest was not started here.
func (s *Side) Started() time.Time { return s.started }

// StatusOf is the status that an event MIGRATION tells.
func (s *Side) StatusOf(ev qmp.Event) string {
	var data eventData
	_ = json.Unmarshal(ev.Data, &data) // data of another shape has none
	return data.Status
}

// Done tells whether this side has said `completed`.
func (s *Side) Done() bool { return s.Status == "completed" }

// lost notes that the events ended: QEMU closed the monitor, which it does when it exits, or the way to it broke.
func (s *Side) lost() {
	s.C = nil
	if s.Gone = s.events.Err(); endpoint.WayLost(s.Gone) { // there may have been more of them
		s.blind = true
		s.Gone = fmt.Errorf("the way to the %s QEMU broke: %w", s.Role, s.Gone)
		return
	}
	s.Gone = fmt.Errorf("%s QEMU went away: %w", s.Role, s.Gone)
}

// why is what QEMU itself says about a failure; empty if it cannot be asked.
func (s *Side) why() string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.Control == nil || s.Gone != nil {
		return ""
	}
	info, err := s.Control.QueryMigrate(ctx)
	if err != nil || info.ErrorDesc == "" {
		return ""
	}
	return ": " + info.ErrorDesc
}

// Failure waits a little for a migration that has broken to be failed on this side too, and returns what QEMU says
// about it; empty if it says nothing.
func (s *Side) Failure(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for s.Control != nil && s.Gone == nil {
		info, err := s.Control.QueryMigrate(ctx)
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
func (s *Side) lastFigures(ctx context.Context) *qmp.MigrationInfo {
	if s.Control == nil {
		return nil
	}
	for range 50 {
		info, err := s.Control.QueryMigrate(ctx)
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

// Loading tells whether the destination has the device state, or is at it, so that it may be told to run.
func (s *Side) Loading() bool {
	return s.Status == "postcopy-active" || s.Status == "postcopy-paused" || s.Done()
}

// HandedOver tells whether the source has given the guest away. In postcopy-device (10.2 and newer) it has not: there
// it waits for the destination's word that everything is loaded, and runs the guest itself if the link breaks before
// that.
func (s *Side) HandedOver() bool {
	return strings.HasPrefix(s.Status, "postcopy-") && s.Status != "postcopy-device" || s.Done()
}

// Broke tells whether this side's migration has failed, or is at it (11.1).
func (s *Side) Broke() bool { return s.Status == "failed" || s.Status == "failing" }

// Linkless tells whether this side waits for a connection, or for the other side on one that it has just got.
func (s *Side) Linkless() bool {
	return s.Status == "postcopy-paused" || strings.HasPrefix(s.Status, "postcopy-recover")
}

// Uuid is the guest's; "" if it has none.
func (s *Side) Uuid(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, AnswerLimit)
	defer cancel()
	return facts.ReadUUID(ctx, s.Control)
}
