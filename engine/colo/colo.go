package colo

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/fit"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// COLOPlan is what to do in mode colo; Plan's capabilities may be no others than events and auto-converge.
type Plan struct {
	plan.Plan
	// between two checkpoints that no packet asks for (x-checkpoint-delay, whole ms); 0: 200 ms
	CheckpointDelay time.Duration
	// how long the two are to run in step before the secondary is let go; 0: until ctx ends or a side is lost
	Run time.Duration
	// the primary host's address at which the secondary reaches it, for the guest's packets; needed where the guest has a
	// network card
	Mirror string
	// no filters although the guest has a network card: the caller sees to it that nothing hears the secondary
	Unfiltered   bool
	Checkpoints  int         // and until so many checkpoints are whole
	Checkpointed func(n int) // called after the n-th whole checkpoint, from 1 on; nil: nobody. It must not block
}

const (
	defaultCheckpointDelay = 200 * time.Millisecond
	longCheckpointDelay    = 20 * time.Second // QEMU's default, while the pair is made
	firstCheckpointLimit   = 30 * time.Second // COLO entered .. the first checkpoint is whole
	heartbeatInterval      = 250 * time.Millisecond
	heartbeatLimit         = 5 * time.Second // a QEMU that has not answered query-status for so long is lost
	coloExit               = "COLO_EXIT"
)

// colo is one run of COLO: a migration that does not end, and what ends it.
type colo struct {
	run   *run.Run
	want  Plan
	cards [2][]string // the NICs' backends, of the primary and of the secondary

	threads []int        // of the primary's process before `migrate`: those that come later yield
	hurry   func() error // ends the yielding; nil: it has not begun

	entered   time.Time // the primary's first RESUME in COLO
	sent      []run.PassEdge
	stops     []time.Time // of each whole checkpoint, on the primary
	resumes   []time.Time
	exit      map[*run.Side]bool // COLO_EXIT came
	lost      *run.Side
	lostAt    time.Time
	lostCause error
}

// COLO makes the QEMU behind secondary follow the one behind primary, checkpoint by checkpoint, and when one of the two
// is lost it sees to it that the other one, and nobody else, runs the guest. Only the primary is heard outside: the
// secondary's packets go to the primary to be compared, and what a filter holds back is not sent. What is guaranteed,
// and what not, is docs/colo.md.
//
// It returns when plan.Run is over and the secondary has been let go, or when a side was lost and the other one runs
// alone, which is no error: the record's outcome is then recovered. The record is returned also with an error, which is
// a *StageError.
func Protect(ctx context.Context, primary, secondary *endpoint.Endpoint, p Plan, o plan.Options) (*record.Migration,
	error) {
	c := newCOLO(primary, secondary, p, o)
	defer c.run.Close()
	for _, s := range []struct {
		name record.StageName
		run  func(context.Context) error
	}{
		{record.Initialization, c.initialize}, // both answer; everything that this pair would refuse later is refused
		// the secondary hears and says nothing, and listens; the primary's filters are there, off
		{record.Reservation, c.reserve},
		{record.PreCopy, c.preCopy},   // passes while the guest runs, until QEMU stops it
		{record.StopAndCopy, c.enter}, // STOP .. the first checkpoint is whole: from here either side may die
	} {
		if err := c.run.Do(ctx, s.name, s.run); err != nil {
			return c.run.Rec, c.run.Abort(ctx, err)
		}
	}
	ended := c.run.Do(ctx, record.Protection, c.protect) // .. a side was lost, or its time is over
	if err := c.run.Do(context.WithoutCancel(ctx), record.Failover, c.failOver); err != nil {
		return c.run.Rec, c.run.Abort(ctx, err)
	}
	c.figures(ctx)
	c.run.Rec.GuestOn, c.run.Rec.Outcome = record.Source, record.Completed
	switch {
	case c.lost == c.run.Src:
		c.run.Rec.GuestOn, c.run.Rec.Outcome = record.Destination, record.Recovered
	case c.lost != nil:
		c.run.Rec.Outcome = record.Recovered
	case ended != nil: // somebody wanted it to end before its time
		c.run.Rec.Outcome, c.run.Rec.Error = record.Cancelled, &record.Error{Stage: record.Protection, Message: ended.Error()}
		return c.run.Rec, &record.StageError{Stage: record.Protection, Guest: record.Source, Issued: true, Err: ended}
	}
	return c.run.Rec, nil
}

func newCOLO(primary, secondary *endpoint.Endpoint, p Plan, o plan.Options) *colo {
	p.Mode = record.COLOMode
	if p.CheckpointDelay == 0 {
		p.CheckpointDelay = defaultCheckpointDelay
	}
	c := &colo{run: run.New(primary, secondary, p.Plan, o), want: p, exit: map[*run.Side]bool{}}
	c.run.Undo = c.settle
	c.run.Rec.COLO = &record.COLOFigures{}
	c.run.Rec.Name += ",checkpoint=" + p.CheckpointDelay.String()
	c.run.Rec.Plan["checkpoint_delay_ns"] = p.CheckpointDelay
	if p.Run > 0 {
		c.run.Rec.Plan["run_ns"] = p.Run
	}
	return c
}

// initialize learns what both sides are and refuses what cannot be kept in step; it changes nothing.
func (c *colo) initialize(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
	if err := c.run.OpenBoth(ctx); err != nil {
		return err
	}
	if err := c.run.Introspect(ctx); err != nil {
		return err
	}
	src, dst := c.run.Src.Facts, c.run.Dst.Facts
	q := &c.run.Rec.QEMU
	q.SourceVersion, q.DestinationVersion, q.Accelerator, q.Machine, q.MemoryBytes, q.VCPUs = src.Version, dst.Version,
		src.Accelerator, src.Machine, src.MemoryBytes, src.VCPUs
	if err := c.run.Compare(ctx); err != nil {
		return err
	}
	var err error
	if c.run.Parameters, err = fit.Resolve(c.run.Plan, src, dst); err != nil {
		return err
	}
	if !src.Running {
		return fmt.Errorf("the guest on %s is %s: a secondary follows one that runs: `cont` first", src.Name, src.RunState)
	}
	for _, s := range []*run.Side{c.run.Src, c.run.Dst} {
		if err := inStep(s); err != nil {
			return err
		}
		if err := diskless(ctx, s); err != nil {
			return err
		}
	}
	if src.Accelerator == "tcg" {
		if err := mayYield(c.run.Src.Endpoint.Process); err != nil {
			return &plan.UnsupportedError{Feature: "COLO under TCG on " + src.Name,
				Have: fmt.Sprintf("its migration thread dead-locks at a checkpoint unless it can be made to yield (%v): use KVM otherwise", err)}
		}
	}
	for i, s := range []*run.Side{c.run.Src, c.run.Dst} {
		if c.cards[i], err = netdevs(ctx, s.Control); err != nil {
			return fmt.Errorf("find the network cards of %s: %w", s.Endpoint.Name, err)
		}
	}
	switch {
	case len(c.cards[0]) != len(c.cards[1]):
		return fmt.Errorf("the primary has %d network cards with a backend and the secondary %d: start the secondary like "+
			"the primary", len(c.cards[0]), len(c.cards[1]))
	case len(c.cards[0]) > 0 && c.want.Mirror == "" && !c.want.Unfiltered:
		return fmt.Errorf("the guest has a network card and no filters are asked for: both sides run it, and both would be " +
			"heard: give the primary's address for the filters (Mirror), or say that nothing hears the secondary (Unfiltered)")
	case c.want.Unfiltered && len(c.cards[0]) > 0:
		c.run.Rec.Warn("without filters both sides' guests are heard on the network, and no packet asks for a checkpoint")
		c.cards = [2][]string{}
	}
	return nil
}

// reserve prepares the secondary and makes it listen, then the primary. The secondary's filters come first: it runs as
// soon as it has everything, and from then on nothing may hear it.
func (c *colo) reserve(ctx context.Context) error {
	if err := c.mirrorPorts(ctx); err != nil {
		return err
	}
	if err := c.holdSecondary(ctx); err != nil {
		return err
	}
	if err := c.run.Dst.Control.Stop(ctx); err != nil {
		return fmt.Errorf("keep secondary paused: %w", err)
	}
	if err := c.run.Configure(ctx, c.run.Dst); err != nil {
		return err
	}
	c.run.Listening = true
	if err := c.run.Dst.Control.MigrateIncoming(ctx, c.run.Plan.Listen); err != nil {
		c.run.Listening = !strings.Contains(err.Error(), "already been started")
		return fmt.Errorf("listen on %s: %w", c.run.Plan.Listen, err)
	}
	connect, err := run.ConnectURI(ctx, c.run.Dst.Control, c.run.Plan.Listen)
	if err != nil {
		return err
	}
	if c.run.Plan.Connect == "" {
		c.run.Plan.Connect = connect
	}
	if err := c.comparePrimary(ctx); err != nil {
		return err
	}
	c.run.Parameters["x-checkpoint-delay"] = longCheckpointDelay.Milliseconds()
	if err := c.run.Configure(ctx, c.run.Src); err != nil {
		return err
	}
	if c.run.Rec.Capabilities, err = c.run.Src.Control.QueryMigrateCapabilities(ctx); err != nil {
		return fmt.Errorf("read capabilities back: %w", err)
	}
	if c.run.Rec.Parameters, err = c.run.Src.Control.QueryMigrateParameters(ctx); err != nil {
		return fmt.Errorf("read parameters back: %w", err)
	}
	return nil
}

// preCopy sends `migrate` and waits for the guest to be stopped.
func (c *colo) preCopy(ctx context.Context) error {
	if p, ok := c.run.Src.Endpoint.Process.(endpoint.Scheduler); ok && c.run.Src.Facts.Accelerator == "tcg" {
		var err error
		if c.threads, err = p.Threads(); err != nil {
			return err
		}
	}
	c.run.StartPolling(ctx)
	limited := ctx
	if c.run.Plan.Timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, c.run.Plan.Timeout, run.ErrTimeout)
		defer cancel()
	}
	if err := c.run.SendMigrate(limited); err != nil {
		return err
	}
	if err := c.run.Until(limited, func() bool { return !c.run.Src.Stopped.IsZero() }); err != nil {
		return err
	}
	c.run.End(c.run.Src.Stopped)
	return nil
}

// enter follows the pair into COLO and through the first checkpoint, before which a lost primary would take with it
// what was heard of it. The primary waits for the secondary while its filters are switched on, so that most often not
// even its first packet passes them.
func (c *colo) enter(ctx context.Context) error {
	stopped := c.run.Src.Stopped
	ctx, cancel := context.WithTimeoutCause(ctx, firstCheckpointLimit,
		fmt.Errorf("no whole checkpoint within %s", firstCheckpointLimit))
	defer cancel()
	if err := c.run.Until(ctx, func() bool {
		return c.run.Src.Status == "colo" || c.run.Src.Status == "device" ||
			c.run.Src.Done()
	}); err != nil {
		return err
	}
	c.run.StopPolling(ctx)
	if c.run.Src.Status != "colo" {
		return neverEnters(c.run.Src.Facts)
	}
	if c.threads != nil {
		if err := c.yield(); err != nil {
			return err
		}
	}
	if err := c.filterPrimary(ctx, "on"); err != nil {
		return err
	}
	if err := c.await(ctx, func() bool { return c.run.Src.Resumed.After(stopped) && c.run.Dst.Status == "colo" }); err != nil {
		return err
	}
	c.entered, c.sent = c.run.Src.Resumed, slices.Clone(c.run.Passes)
	c.stops, c.resumes = nil, nil // the filters may have been late for what has run until here
	delay := map[string]any{"x-checkpoint-delay": c.want.CheckpointDelay.Milliseconds()}
	if err := c.run.Src.Control.SetMigrateParameters(ctx, delay); err != nil { // it asks for a checkpoint at once
		return fmt.Errorf("set primary's checkpoint delay: %w", err)
	}
	c.run.Rec.Parameters["x-checkpoint-delay"] = c.want.CheckpointDelay.Milliseconds()
	if err := c.await(ctx, func() bool { return len(c.resumes) > 0 }); err != nil {
		return err
	}
	c.run.End(c.resumes[0])
	c.run.Rec.COLO.Protected = record.Of(c.resumes[0].Sub(c.run.Rec.Origin))
	return nil
}

// yield makes the primary's migration thread give way to the others. Why: at each checkpoint QEMU under TCG waits for
// its vCPUs on a condition variable with the big lock, which that thread does not hold then (docs/colo.md), unless they
// have answered before it looks.
func (c *colo) yield() error {
	p := c.run.Src.Endpoint.Process.(endpoint.Scheduler)
	now, err := p.Threads()
	if err != nil {
		return err
	}
	since := slices.DeleteFunc(now, func(id int) bool { return slices.Contains(c.threads, id) })
	if c.hurry, err = p.Yield(since); err != nil {
		return fmt.Errorf("COLO under TCG dead-locks unless QEMU's migration thread yields to the others: %w", err)
	}
	return nil
}

// note takes in one event and counts the checkpoints that are whole.
func (c *colo) note(s *run.Side, ev qmp.Event, ok bool) {
	if ok && ev.Name == coloExit {
		var data struct {
			Reason string `json:"reason"`
		}
		_ = json.Unmarshal(ev.Data, &data)
		c.exit[s] = true
		c.miss(nil, fmt.Errorf("%s QEMU has left COLO: %s", s.Role, data.Reason))
		return
	}
	stopped := s.Stopped
	resumed := s.Resumed
	c.run.Take(s, ev, ok)
	switch {
	case !ok:
		c.miss(s, s.Gone)
	case s == c.run.Src && s.Status == "colo" && s.Resumed != resumed && s.Resumed.After(stopped):
		c.stops, c.resumes = append(c.stops, stopped), append(c.resumes, s.Resumed)
		if c.want.Checkpointed != nil && !c.entered.IsZero() {
			c.want.Checkpointed(len(c.resumes))
		}
	}
}

// await takes in events until done, or until a side is missed, or ctx ends.
func (c *colo) await(ctx context.Context, done func() bool) error {
	for !done() {
		if c.lostCause != nil {
			return c.lostCause
		}
		if err := c.run.Broken(); err != nil {
			return err
		}
		select {
		case ev, ok := <-c.run.Src.C:
			c.note(c.run.Src, ev, ok)
		case ev, ok := <-c.run.Dst.C:
			c.note(c.run.Dst, ev, ok)
		case <-ctx.Done():
			return c.run.Cause(ctx)
		}
	}
	return nil
}

// restore takes what the checkpoints did out of what the passes and totals are made of.
func (c *colo) restore() {
	if !c.entered.IsZero() {
		c.run.Passes, c.run.Src.Completed = c.sent, c.entered
		c.run.Src.Stopped = c.run.Rec.End(record.PreCopy)
	}
}

// figures derives the record's numbers; it comes after the wall time.
func (c *colo) figures(ctx context.Context) {
	c.restore()
	c.run.Finish(ctx)
	f := c.run.Rec.COLO
	f.Checkpoints = len(c.resumes)
	var costs, intervals []time.Duration
	var still time.Duration
	for i := range c.resumes {
		costs = append(costs, c.resumes[i].Sub(c.stops[i]))
		still += costs[i]
		if i > 0 {
			intervals = append(intervals, c.stops[i].Sub(c.resumes[i-1]))
		}
	}
	if len(costs) > 0 {
		f.CheckpointP50, f.CheckpointP99 = record.Of(run.Quantile(costs, 0.50)), record.Of(run.Quantile(costs, 0.99))
		f.StoppedPercent = record.Of(100 * still.Seconds() / c.resumes[len(c.resumes)-1].Sub(c.stops[0]).Seconds())
	}
	if len(intervals) > 0 {
		f.IntervalP50 = record.Of(run.Quantile(intervals, 0.50))
	}
}
