package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/anatomy"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/tracing"
	"qmigrate/qmp"
)

// traces has both QEMUs write down what they do in the switch-over, and takes the downtime apart by it. All of it is
// before `migrate` and after the wall time, and each step has a short limit. What fails is a warning, but for a log
// that the user has named: that is refused before anything is changed.
type traces struct {
	run.Plain
	run   *run.Run
	sides []*traced // those with a log
	told  []told    // the MIGRATION events
	taken bool      // End has taken the downtime apart
}

// traced is a QEMU whose trace lines can be read.
type traced struct {
	side   *run.Side
	log    endpoint.TraceLog
	named  bool             // by the user
	events []qmp.TraceEvent // nil: its log is not to be read
	from   int64            // the log's size before
	on     *tracing.Switch
	bare   bool // its lines have no time stamps
}

// told is an event of a side.
type told struct {
	side *run.Side
	ev   qmp.Event
}

// Limits of what traces cost before `migrate` and after the wall time.
const (
	logLimit    = 3 * time.Second        // one look into a log
	ownPatience = 200 * time.Millisecond // until a line is in the log that QEMU itself writes
	patience    = time.Second            // and in one that somebody has named, where another program may write it
)

// checkpoints are the trace events without which there is nothing to read. QEMU has them from 8.2 on.
const checkpoints = "vmstate_downtime*"

// Check finds the logs of both QEMUs and the events that each has. A log that the user has named is proved here, where
// a refusal changes nothing.
func (t *traces) Check(ctx context.Context) error {
	if t.run.Plan.Anatomy == plan.AnatomyOff {
		return nil
	}
	names := map[*run.Side]string{t.run.Src: t.run.Plan.TraceLogs.Source, t.run.Dst: t.run.Plan.TraceLogs.Destination}
	for _, s := range []*run.Side{t.run.Src, t.run.Dst} {
		if t.run.Opts.EventsAlone && t.run.Plan.Anatomy == "" && names[s] == "" {
			continue
		}
		x, err := t.find(ctx, s, names[s])
		switch {
		case err == nil:
			t.sides = append(t.sides, x)
		case names[s] != "":
			return err
		case t.run.Plan.Anatomy == plan.AnatomyOn:
			t.run.Rec.Warn("anatomy: what the %s does in the downtime is not told apart: %v", s.Role, err)
		}
	}
	return t.each(ctx, func(ctx context.Context, x *traced) error {
		if !x.named {
			return nil
		}
		return x.prove(ctx, tracing.Notes(t.run.Opts.Traces))
	}, refused)
}

// each does something with both sides at the same time, and tells of each that failed, in their order. The first error
// that tell returns is the error.
func (t *traces) each(ctx context.Context, do func(context.Context, *traced) error,
	tell func(x *traced, err error) error) error {
	work, failed := make([]func(context.Context) error, len(t.sides)), make([]error, len(t.sides))
	for i, x := range t.sides {
		work[i] = func(ctx context.Context) error {
			failed[i] = do(ctx, x)
			return nil // the other side's goes on
		}
	}
	_ = facts.Together(ctx, work...)
	for i, x := range t.sides {
		if failed[i] == nil {
			continue
		}
		if err := cmp.Or(context.Cause(ctx), tell(x, failed[i])); err != nil {
			return err
		}
	}
	return nil
}

// find finds a QEMU's log and its events. The error says why its lines cannot be had.
func (t *traces) find(ctx context.Context, s *run.Side, name string) (*traced, error) {
	x := &traced{side: s, named: name != ""}
	if s.Endpoint.Log != nil {
		x.log = s.Endpoint.Log(name)
	}
	const mend = "leave trace-log out, and this side is not told apart"
	if x.log == nil && x.named {
		return nil, fmt.Errorf("trace log %s of %s %s: files of its host cannot be read from here: %s", name, s.Role,
			s.Endpoint.Name, mend)
	}
	if x.log == nil {
		return nil, errNoLog
	}
	names := append(anatomy.Events(), tracing.Request)
	if s == t.run.Src {
		names = append(names, anatomy.Pending)
	}
	var err error
	if x.events, err = tracing.Available(ctx, s.Control, names); err != nil {
		return nil, fmt.Errorf("ask %s for its trace events: %w", s.Role, err)
	}
	if !slices.ContainsFunc(x.events, func(e qmp.TraceEvent) bool {
		return strings.HasPrefix(e.Name, strings.TrimSuffix(checkpoints, "*"))
	}) {
		err := fmt.Errorf("%s QEMU %s has no trace events %s, which QEMU has from 8.2 on", s.Role, s.Facts.Version, checkpoints)
		if x.named {
			err = fmt.Errorf("%w: %s", err, mend)
		}
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, logLimit)
	defer cancel()
	switch _, err = x.log.Read(limited, 0); {
	case err != nil && x.named:
		return nil, fmt.Errorf("read trace log of %s %s: %w: name the file of its -D, or the one of its standard error, as "+
			"its host has it", s.Role, s.Endpoint.Name, err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, errNoLog
	}
	return x, err
}

// errNoLog is that of a QEMU that somebody else has started.
var errNoLog = errors.New("where its QEMU writes trace lines is not known: name the file with trace-log")

// Reserve switches the events on, in a QEMU whose log is proved.
func (t *traces) Reserve(ctx context.Context) error {
	err := t.each(ctx, func(ctx context.Context, x *traced) error {
		if !x.named {
			if err := x.prove(ctx, tracing.Notes(t.run.Opts.Traces)); err != nil {
				return err
			}
		}
		return x.begin(ctx)
	}, func(x *traced, err error) error {
		x.events = nil // there is nothing to read
		x.end(ctx)
		if x.named || !errors.Is(err, tracing.ErrNotItsLog) || t.run.Plan.Anatomy == plan.AnatomyOn {
			t.untold(x.side, x.log, err)
		}
		return nil
	})
	for _, x := range t.sides {
		if x.bare {
			t.run.Rec.Warn("the lines of the %s's trace log %s have no time stamps: its parts have a duration and no place in "+
				"the downtime; start QEMU with -msg timestamp=on", x.side.Role, x.log.Name())
		}
	}
	return err
}

// untold warns of a side whose lines cannot be had.
func (t *traces) untold(s *run.Side, log endpoint.TraceLog, err error) {
	t.run.Rec.Warn("anatomy: what the %s does in the downtime is not told apart: trace log %s: %v", s.Role, log.Name(), err)
}

// refused is the error of a log that the user has named.
func refused(x *traced, err error) error {
	who := fmt.Sprintf("%s %s", x.side.Role, x.side.Endpoint.Name)
	if errors.Is(err, tracing.ErrNotItsLog) {
		return fmt.Errorf("trace log %s is not that of %s: %w: name the file of its -D, or without -D the one of its standard "+
			"error (libvirt: /var/log/libvirt/qemu/NAME.log); a QEMU built without the trace back end `log` has none",
			x.log.Name(), who, err)
	}
	return fmt.Errorf("trace log %s of %s: %w", x.log.Name(), who, err)
}

// prove notes what is off and proves the log.
func (x *traced) prove(ctx context.Context, notes tracing.Notes) (err error) {
	if x.on, err = tracing.Reserve(notes, tracing.Who(x.side.Endpoint), x.events); err != nil {
		return err
	}
	x.events = slices.DeleteFunc(x.events, func(e qmp.TraceEvent) bool { return e.Name == tracing.Request })
	wait := ownPatience
	if x.named {
		wait = patience
	}
	limited, cancel := context.WithTimeout(ctx, logLimit)
	defer cancel()
	line, err := x.on.Proves(limited, x.side.Control, x.log, wait)
	for _, l := range anatomy.Parse(line) {
		x.bare = l.Stamp.IsZero()
	}
	return err
}

// begin switches the events on.
func (x *traced) begin(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, logLimit)
	defer cancel()
	before, err := x.log.Read(limited, 0)
	if err != nil {
		return err
	}
	x.from = before.Size
	return x.on.On(ctx, x.side.Control, x.events)
}

// Take notes the status events.
func (t *traces) Take(s *run.Side, ev qmp.Event, _ time.Time) {
	if ev.Name == "MIGRATION" {
		t.told = append(t.told, told{s, ev})
	}
}

// End switches off what was off before, on each side that still lives, reads what was written, and takes the downtime
// apart. It is harmless twice.
func (t *traces) End(ctx context.Context) {
	_ = t.each(ctx, func(ctx context.Context, x *traced) error { x.end(ctx); return nil }, nil)
	for _, x := range t.sides {
		if x.on != nil && x.on.Failed != nil {
			t.run.Rec.Warn("trace events of the %s QEMU stay on: %v: the next command that speaks to it switches them off, "+
				"or trace-event-set-state of %s", x.side.Role, x.on.Failed, checkpoints)
			x.on.Failed = nil
		}
	}
	if wire := t.run.Rec.Downtime.Wire; t.run.Plan.Anatomy != plan.AnatomyOff && wire != nil && !t.taken {
		t.taken = true
		t.run.Rec.Anatomy = anatomy.Take(t.known(ctx, *wire))
		t.run.Rec.Pending = anatomy.Left(t.marks(ctx, t.run.Src, anatomy.Pending), t.run.Rec.Origin)
	}
}

// end brings the former state back on one side.
func (x *traced) end(ctx context.Context) {
	if x.on == nil {
		return
	}
	if err := x.side.Control.Err(); err != nil && !endpoint.WayLost(err) { // QEMU has closed its monitor
		x.on.Gone()
		return
	}
	x.on.Off(ctx, x.side.Control)
}

// known is what is known of this migration.
func (t *traces) known(ctx context.Context, wire time.Duration) anatomy.Migration {
	r := t.run
	instant := func(s *run.Side, at time.Time) anatomy.Instant {
		return anatomy.Instant{At: at, Error: s.StampError(at)}
	}
	m := anatomy.Migration{Origin: r.Rec.Origin,
		Stop: instant(r.Src, r.Src.Stopped), Resume: instant(r.Dst, r.Dst.Started()),
		Wire: wire, PostCopy: r.Split, StoppedFirst: r.Paused, Stopped: r.PausedAt, Issued: r.IssuedAt, ContSent: r.ContAt,
		// QEMU has one too where it may go over to post-copy: migration/migration.c.
		ReturnPath: r.Rec.Capabilities["return-path"] || r.Rec.Capabilities["postcopy-ram"]}
	if e := r.Rec.Downtime.WireError; e != nil {
		m.WireError = *e
	}
	m.Source.Marks = t.marks(ctx, r.Src, anatomy.Events()...)
	m.Destination.Marks = t.marks(ctx, r.Dst, anatomy.Events()...)
	if r.Opts.Passed != nil {
		m.PassedSource = "frames"
		for _, at := range r.Opts.Passed() {
			m.Passed = append(m.Passed, anatomy.Instant{At: at, Error: time.Microsecond})
		}
	}
	waits := map[*run.Side]bool{r.Src: true, r.Dst: true}
	for _, x := range t.told {
		side := &m.Source
		if x.side == r.Dst {
			side = &m.Destination
		}
		status, p := x.side.StatusOf(x.ev), x.side.Told(x.ev)
		s := anatomy.Status{Name: status}
		if x.side.Timed() && !p.Doubtful {
			s.Instant = anatomy.Instant{At: p.At, Error: p.Error}
		}
		side.Events = append(side.Events, s)
		over := status == "completed" || r.Split && (x.side == r.Dst && status == "postcopy-active" || x.side == r.Src &&
			strings.HasPrefix(status, "postcopy-") && status != "postcopy-device")
		if over && waits[x.side] && (r.ContAt.IsZero() || x.ev.Arrived.Before(r.ContAt)) {
			waits[x.side] = false
			m.Heard = run.Later(m.Heard, x.ev.Arrived)
		}
	}
	return m
}

// marks are the lines of these events that a side has written since they were switched on.
func (t *traces) marks(ctx context.Context, s *run.Side, events ...string) (all []anatomy.Mark) {
	i := slices.IndexFunc(t.sides, func(x *traced) bool { return x.side == s && x.events != nil })
	if i < 0 {
		return nil
	}
	x := t.sides[i]
	ctx, cancel := context.WithTimeout(ctx, logLimit)
	defer cancel()
	lines, err := x.log.Read(ctx, x.from, events...)
	switch {
	case err != nil:
	case lines.Size < x.from:
		err = errors.New("it was replaced meanwhile")
	case lines.More && !slices.Contains(events, anatomy.Pending): // of those the first will do
		err = errors.New("it has too many lines")
	}
	if err != nil {
		t.untold(s, x.log, err)
		return nil
	}
	for _, l := range anatomy.Parse(lines.Text) {
		m := anatomy.Mark{Line: l}
		if !l.Stamp.IsZero() && s.Timed() {
			if p := s.Stamped(l.Stamp); !p.Doubtful {
				m.Instant = anatomy.Instant{At: p.At, Error: p.Error}
			}
		}
		all = append(all, m)
	}
	return all
}
