package run

import (
	"context"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// Run is one run: two sides, what was sent to them, what their events told, and the record. Its state is touched by one
// goroutine alone; the pollers own what they collect until they have ended.
type Run struct {
	Plan plan.Plan
	Opts plan.Options
	Log  *slog.Logger
	Rec  *record.Migration

	Src, Dst   *Side
	Parameters map[string]any // the plan's, in QEMU's types
	Features   []Feature
	Undo       func(context.Context) Verdict // where a failure leaves the guest

	// What was sent.
	Listening bool      // migrate-incoming was sent: this destination can do nothing else any more
	Paused    bool      // we stopped the source ourselves
	PausedAt  time.Time // and when it had answered
	Stream    *os.File  // the source's end of a stream by descriptors, until it has it
	Issued    bool      // `migrate` was sent
	IssuedAt  time.Time // and when
	Split     bool      // `migrate-start-postcopy` was sent
	Yanked    bool      // the source's connection was closed in the switch to post-copy
	Elsewhere bool      // where the source connects to was not told by the destination itself
	ContSent  bool      // `cont` was sent to the destination
	ContAt    time.Time // and when
	Committed bool      // and the guest is the destination's: a source that runs it again is stopped
	Watched   bool      // somebody else drives: nothing of all this was sent by us
	Midway    bool      // and what came before Origin was not seen

	// What the events told.
	Held    string        // the run state of a guest that something else has stopped; "": nothing has
	Asked   <-chan string // the source's run state, asked for after a STOP; nil once it is known
	Passes  []PassEdge
	undoing bool // what happens now is the undo's doing

	last  *qmp.MigrationInfo // the source's last figures; nil: they are not read, or there are none
	edge  time.Time          // the end of the last stage
	Ended bool               // the running stage has set its own end

	Poll      *poll
	quiet     quiet
	Decider   *Decider         // looks at each sample of the passes; nil: nobody does, or no more
	far       atomic.Bool      // a guest that was stopped first is far from its switch-over
	silent    <-chan *Side     // while they are watched: a side that has not answered for the limit of hanging
	unwatched func()           // ends the watching; nil: there is none
	Alarm     <-chan time.Time // it is time to look whether something is due
}

// Feature is what takes part in a run beside the hand-over itself. Each method is called for every feature, in the
// order of the run's list.
type Feature interface {
	// both sides are known and nothing is changed: refuses what would fail later
	Check(ctx context.Context) error
	Reserve(ctx context.Context) error              // before anything else is configured
	Take(s *Side, ev qmp.Event, at time.Time)       // an event
	Broken() error                                  // why the run cannot go on; nil: as far as it knows it can
	Explain(ctx context.Context, cause error) error // a failure, in better words if it knows them
	Free(ctx context.Context)                       // after a failure: lets go of what may hold the source's main loop
	Undo(ctx context.Context)                       // after a failure, when the guest is where it can run
	End(ctx context.Context)                        // at the end in any case: takes out what it made, notes what it knows
}

// Plain is a feature that does nothing, for the others to begin from.
type Plain struct{}

func (Plain) Check(context.Context) error                  { return nil }
func (Plain) Reserve(context.Context) error                { return nil }
func (Plain) Take(*Side, qmp.Event, time.Time)             {}
func (Plain) Broken() error                                { return nil }
func (Plain) Explain(_ context.Context, cause error) error { return cause }
func (Plain) Free(context.Context)                         {}
func (Plain) Undo(context.Context)                         {}
func (Plain) End(context.Context)                          {}

// Decider looks at each sample while passes go on, in their order.
type Decider struct {
	Samples chan record.Sample // from the poller
	Over    chan struct{}      // closed when nobody reads them any more
	Decide  func(ctx context.Context, x record.Sample) error
}

// newRun is a run of the plan, with its defaults, that has done nothing yet.
func New(src, dst *endpoint.Endpoint, p plan.Plan, o plan.Options) *Run {
	r := &Run{Plan: p.WithDefaults(), Opts: o, Log: o.Logger}
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	r.Src, r.Dst = &Side{Role: record.Source, Endpoint: src}, &Side{Role: record.Destination, Endpoint: dst}
	now := time.Now()
	r.edge = now
	r.Rec = &record.Migration{
		Schema: record.Schema, ID: record.NewID(now), StartedAt: now.Round(0), Origin: now,
		Mode: r.Plan.Mode, Name: r.Plan.Name(), Plan: r.Plan.Words(), GuestOn: record.Unknown,
		Hosts:  record.Hosts{Source: src.Host, Destination: dst.Host},
		Stages: []record.Stage{}, Passes: []record.Pass{},
	}
	return r
}

// observed are the samples for the decider; nil, which blocks, without one.
func (r *Run) observed() chan record.Sample {
	if r.Decider == nil {
		return nil
	}
	return r.Decider.Samples
}

// StandStill stops a guest that is to be copied while it stands still. The running stage ends there, and is empty.
func (r *Run) StandStill(ctx context.Context) error {
	r.Decider = nil
	r.StartPolling(ctx)
	r.Watch(ctx)
	if f := r.Src.Facts; f.Live() && !(f.RunState == facts.Asleep && f.Wakes()) {
		if err := r.stopSource(ctx); err != nil {
			return err
		}
	}
	r.endEmpty(Later(r.Src.Stopped, r.edge))
	return nil
}

// Limits of the steps that nobody can interrupt.
const (
	UndoLimit     = time.Minute      // the whole undo after a failure
	ActivateLimit = 30 * time.Second // `cont` .. RESUME
	figuresLimit  = 5 * time.Second  // the last figures
)

// Finish reads the last figures and derives the passes and downtimes; it comes after the wall time.
func (r *Run) Finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), figuresLimit)
	defer cancel()
	r.ReadFigures(ctx)
	r.StopPolling(ctx)
	r.settleClocks(ctx)
	r.Rec.Total.Wall = r.edge.Sub(r.Rec.Origin)
	r.figures(r.last)
	for _, f := range r.Features {
		f.End(ctx)
	}
}

// ReadFigures reads the source's last figures, as long as the source has them.
func (r *Run) ReadFigures(ctx context.Context) {
	if r.Src.mute || r.last != nil && r.last.Status == "completed" {
		return
	}
	if r.last = r.Src.lastFigures(ctx); r.last != nil && r.Src.finished && facts.UnderWay(r.last.Status) {
		r.last = nil // they are of another migration, which has begun since
	}
}

// Begins sets the beginning of a migration that somebody else drives: what came before it is no part of it. A guest
// that was stopped and has not been continued is still stopped.
func (r *Run) Begins(at time.Time) {
	r.Rec.ID, r.Rec.StartedAt, r.Rec.Origin, r.edge = record.NewID(at), at.Round(0), at, at
	r.Watched, r.Issued, r.IssuedAt = true, true, at
	r.Passes = nil
	for _, s := range []*Side{r.Src, r.Dst} {
		s.once, s.finished = true, false
		before := s.life
		s.life = life{wakes: before.wakes, Asleep: before.Asleep}
		if before.Still() {
			s.Stopped = before.Stopped
		}
	}
}

// Close ends the pollers and lets the monitors go.
func (r *Run) Close() {
	r.Unwatch()
	ctx, cancel := context.WithTimeout(context.Background(), AnswerLimit)
	defer cancel()
	r.StopPolling(ctx)
	if r.Stream != nil {
		r.Stream.Close()
	}
	r.Src.close()
	r.Dst.close()
}
