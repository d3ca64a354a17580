package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/holder"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// COLOPlan is what to do in mode colo; Plan's capabilities may be no others than events and auto-converge.
type COLOPlan struct {
	plan.Plan
	CheckpointDelay time.Duration // between two checkpoints that no packet asks for (x-checkpoint-delay, whole ms); 0: 200 ms
	Run             time.Duration // how long the two are to run in step before the secondary is let go; 0: until ctx ends or a side is lost
	Mirror          string        // the primary host's address at which the secondary reaches it, for the guest's packets; needed where the guest has a network card
	Unfiltered      bool          // no filters although the guest has a network card: the caller sees to it that nothing hears the secondary
	Checkpoints     int           // and until so many checkpoints are whole
	Checkpointed    func(n int)   // called after the n-th whole checkpoint, from 1 on; nil: nobody. It must not block
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
	*migration
	plan  COLOPlan
	cards [2][]string // the NICs' backends, of the primary and of the secondary

	threads []int        // of the primary's process before `migrate`: those that come later yield
	hurry   func() error // ends the yielding; nil: it has not begun

	entered   time.Time // the primary's first RESUME in COLO
	sent      []passEdge
	stops     []time.Time // of each whole checkpoint, on the primary
	resumes   []time.Time
	exit      map[*side]bool // COLO_EXIT came
	lost      *side
	lostAt    time.Time
	lostCause error
}

// COLO makes the QEMU behind secondary follow the one behind primary, checkpoint by checkpoint, and when one of the two is lost it sees to it
// that the other one, and nobody else, runs the guest. Only the primary is heard outside: the secondary's packets go to the
// primary to be compared, and what a filter holds back is not sent. What is guaranteed, and what not, is docs/colo.md.
//
// It returns when plan.Run is over and the secondary has been let go, or when a side was lost and the other one runs alone, which is
// no error: the record's outcome is then recovered. The record is returned also with an error, which is a *StageError.
func COLO(ctx context.Context, primary, secondary *endpoint.Endpoint, p COLOPlan, o plan.Options) (*record.Migration, error) {
	c := newCOLO(primary, secondary, p, o)
	defer c.close()
	for _, s := range []stage{
		{record.Initialization, c.initialize}, // both answer; everything that this pair would refuse later is refused
		{record.Reservation, c.reserve},       // the secondary hears and says nothing, and listens; the primary's filters are there, off
		{record.PreCopy, c.preCopy},           // passes while the guest runs, until QEMU stops it
		{record.StopAndCopy, c.enter},         // STOP .. the first checkpoint is whole: from here either side may die
	} {
		if err := c.do(ctx, s); err != nil {
			return c.rec, c.abort(ctx, s.name, err)
		}
	}
	ended := c.do(ctx, stage{record.Protection, c.protect}) // .. a side was lost, or its time is over
	if err := c.do(context.WithoutCancel(ctx), stage{record.Failover, c.failOver}); err != nil {
		return c.rec, c.abort(ctx, record.Failover, err)
	}
	c.figures(ctx)
	c.rec.GuestOn, c.rec.Outcome = record.Source, record.Completed
	switch {
	case c.lost == c.src:
		c.rec.GuestOn, c.rec.Outcome = record.Destination, record.Recovered
	case c.lost != nil:
		c.rec.Outcome = record.Recovered
	case ended != nil: // somebody wanted it to end before its time
		c.rec.Outcome, c.rec.Error = record.Cancelled, &record.Error{Stage: record.Protection, Message: ended.Error()}
		return c.rec, &record.StageError{Stage: record.Protection, Guest: record.Source, Issued: true, Err: ended}
	}
	return c.rec, nil
}

func newCOLO(primary, secondary *endpoint.Endpoint, p COLOPlan, o plan.Options) *colo {
	p.Mode = record.COLOMode
	if p.CheckpointDelay == 0 {
		p.CheckpointDelay = defaultCheckpointDelay
	}
	c := &colo{migration: newMigration(primary, secondary, p.Plan, o), plan: p, exit: map[*side]bool{}}
	c.undo = c.settle
	c.rec.COLO = &record.COLOFigures{}
	c.rec.Name += ",checkpoint=" + p.CheckpointDelay.String()
	c.rec.Plan["checkpoint_delay_ns"] = p.CheckpointDelay
	if p.Run > 0 {
		c.rec.Plan["run_ns"] = p.Run
	}
	return c
}

// initialize learns what both sides are and refuses what cannot be kept in step; it changes nothing.
func (c *colo) initialize(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
	if err := c.openBoth(ctx); err != nil {
		return err
	}
	if err := c.introspect(ctx); err != nil {
		return err
	}
	src, dst := c.src.facts, c.dst.facts
	q := &c.rec.QEMU
	q.SourceVersion, q.DestinationVersion, q.Accelerator, q.Machine, q.MemoryBytes, q.VCPUs = src.Version, dst.Version, src.Accelerator, src.Machine, src.MemoryBytes, src.VCPUs
	if err := c.compare(ctx); err != nil {
		return err
	}
	var err error
	if c.parameters, err = fit.Resolve(c.migration.plan, src, dst); err != nil {
		return err
	}
	if !src.Running {
		return fmt.Errorf("the guest on %s is %s: a secondary follows one that runs: `cont` first", src.Name, src.RunState)
	}
	for _, s := range []*side{c.src, c.dst} {
		if err := inStep(s); err != nil {
			return err
		}
		if err := diskless(ctx, s); err != nil {
			return err
		}
	}
	if src.Accelerator == "tcg" {
		if err := mayYield(c.src.ep.Process); err != nil {
			return &plan.UnsupportedError{Feature: "COLO under TCG on " + src.Name,
				Have: fmt.Sprintf("its migration thread dead-locks at a checkpoint unless it can be made to yield (%v): use KVM otherwise", err)}
		}
	}
	for i, s := range []*side{c.src, c.dst} {
		if c.cards[i], err = netdevs(ctx, s.control); err != nil {
			return fmt.Errorf("find the network cards of %s: %w", s.ep.Name, err)
		}
	}
	switch {
	case len(c.cards[0]) != len(c.cards[1]):
		return fmt.Errorf("the primary has %d network cards with a backend and the secondary %d: start the secondary like the primary", len(c.cards[0]), len(c.cards[1]))
	case len(c.cards[0]) > 0 && c.plan.Mirror == "" && !c.plan.Unfiltered:
		return fmt.Errorf("the guest has a network card and no filters are asked for: both sides run it, and both would be heard: give the primary's address for the filters (Mirror), or say that nothing hears the secondary (Unfiltered)")
	case c.plan.Unfiltered && len(c.cards[0]) > 0:
		c.rec.Warn("without filters both sides' guests are heard on the network, and no packet asks for a checkpoint")
		c.cards = [2][]string{}
	}
	return nil
}

// check refuses what needs no QEMU to be refused.
func (c *colo) check() error {
	if c.migration.plan.TLS != nil || c.migration.plan.Tunnel != "" {
		return &plan.UnsupportedError{Feature: "encryption in mode colo", Have: "checkpoints go over a plain stream; leave tls and tunnel out"}
	}
	for name, on := range c.plan.Capabilities {
		if on && name != "events" && name != "auto-converge" && name != "x-colo" {
			return &plan.UnsupportedError{Feature: "capability " + name + " in mode colo", Have: "have auto-converge: checkpoints go over the plain stream"}
		}
	}
	if on, set := c.plan.Capabilities["x-colo"]; set && !on {
		return errors.New("capability x-colo=off: mode colo is this capability: leave it out")
	}
	if _, set := c.plan.Parameters["x-checkpoint-delay"]; set {
		return errors.New("parameter x-checkpoint-delay: give it as --checkpoint-delay, with its unit")
	}
	if d := c.plan.CheckpointDelay; d < time.Millisecond || d%time.Millisecond != 0 || d > time.Hour {
		return fmt.Errorf("checkpoint delay %s: QEMU takes whole milliseconds from 1ms, and no more than 1h is sensible", d)
	}
	plain := c.migration.plan
	plain.Mode, plain.Capabilities = record.PreCopyMode, maps.Clone(plain.Capabilities)
	delete(plain.Capabilities, "x-colo")
	if err := plain.Check(); err != nil {
		return err
	}
	c.migration.plan.Capabilities = map[string]bool{"x-colo": true}
	if c.plan.Capabilities["auto-converge"] {
		c.migration.plan.Capabilities["auto-converge"] = true
	}
	return nil
}

// inStep refuses a QEMU that is known not to stay in step.
func inStep(s *side) error {
	f := s.facts
	if _, ok := f.Parameters["x-checkpoint-delay"]; !ok {
		return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO on %s (QEMU %s)", f.Name, f.Version), Have: "this build has no x-checkpoint-delay"}
	}
	if strings.Contains(f.Machine, "q35") {
		return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO with machine %s on %s", f.Machine, f.Name),
			Have: "its secondary aborts at the first checkpoint: ich9_lpc_post_load (hw/isa/lpc_ich9.c; read and seen in 7.2.22 and 10.0.2) maps the chipset's registers each time that device state is loaded, and they are mapped already: use machine pc, as in pc-i440fx-7.2"}
	}
	if f.Accelerator == "tcg" && f.Before(9, 0) && f.MemoryBytes%(256<<10) == 0 {
		return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO on %s (QEMU %s, TCG) with RAM a multiple of 256 KiB", f.Name, f.Version),
			Have: fmt.Sprintf("it loses dirty pages (fixed upstream in 9.0, commit 03bfc2188f), and checkpoints are made of them: use RAM such as %dk", f.MemoryBytes>>10+8)}
	}
	return nil
}

// diskless refuses a guest with a disk that it may write to: the two sides would both write it.
func diskless(ctx context.Context, s *side) error {
	disks, err := writable(ctx, s.control)
	if err != nil {
		return fmt.Errorf("%s: %w", s.ep.Name, err)
	}
	if len(disks) > 0 {
		d := disks[0]
		return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO with the disk %s of %s", strings.TrimSpace(d.Device+" "+d.Path), s.ep.Name),
			Have: "memory, devices and network are kept in step here, disks are not, and both sides would write this one: detach it, or make it read-only"}
	}
	return nil
}

// reserve prepares the secondary and makes it listen, then the primary. The secondary's filters come first: it runs as soon as it
// has everything, and from then on nothing may hear it.
func (c *colo) reserve(ctx context.Context) error {
	if err := c.mirrorPorts(ctx); err != nil {
		return err
	}
	if err := c.holdSecondary(ctx); err != nil {
		return err
	}
	if err := c.dst.control.Stop(ctx); err != nil {
		return fmt.Errorf("keep secondary paused: %w", err)
	}
	if err := c.configure(ctx, c.dst); err != nil {
		return err
	}
	c.listening = true
	if err := c.dst.control.MigrateIncoming(ctx, c.plan.Listen); err != nil {
		c.listening = !strings.Contains(err.Error(), "already been started")
		return fmt.Errorf("listen on %s: %w", c.plan.Listen, err)
	}
	connect, err := connectURI(ctx, c.dst.control, c.plan.Listen)
	if err != nil {
		return err
	}
	if c.migration.plan.Connect == "" {
		c.migration.plan.Connect = connect
	}
	if err := c.comparePrimary(ctx); err != nil {
		return err
	}
	c.parameters["x-checkpoint-delay"] = longCheckpointDelay.Milliseconds()
	if err := c.configure(ctx, c.src); err != nil {
		return err
	}
	if c.rec.Capabilities, err = c.src.control.QueryMigrateCapabilities(ctx); err != nil {
		return fmt.Errorf("read capabilities back: %w", err)
	}
	if c.rec.Parameters, err = c.src.control.QueryMigrateParameters(ctx); err != nil {
		return fmt.Errorf("read parameters back: %w", err)
	}
	return nil
}

// preCopy sends `migrate` and waits for the guest to be stopped.
func (c *colo) preCopy(ctx context.Context) error {
	if p, ok := c.src.ep.Process.(endpoint.Scheduler); ok && c.src.facts.Accelerator == "tcg" {
		var err error
		if c.threads, err = p.Threads(); err != nil {
			return err
		}
	}
	c.startPolling(ctx)
	limited := ctx
	if c.plan.Timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, c.plan.Timeout, errTimeout)
		defer cancel()
	}
	if err := c.sendMigrate(limited); err != nil {
		return err
	}
	if err := c.until(limited, func() bool { return !c.src.stopped.IsZero() }); err != nil {
		return err
	}
	c.end(c.src.stopped)
	return nil
}

// enter follows the pair into COLO and through the first checkpoint, before which a lost primary would take with it what was heard
// of it. The primary waits for the secondary while its filters are switched on, so that most often not even its first packet passes them.
func (c *colo) enter(ctx context.Context) error {
	stopped := c.src.stopped
	ctx, cancel := context.WithTimeoutCause(ctx, firstCheckpointLimit, fmt.Errorf("no whole checkpoint within %s", firstCheckpointLimit))
	defer cancel()
	if err := c.until(ctx, func() bool { return c.src.status == "colo" || c.src.status == "device" || c.src.done() }); err != nil {
		return err
	}
	c.stopPolling(ctx)
	if c.src.status != "colo" {
		return neverEnters(c.src.facts)
	}
	if c.threads != nil {
		if err := c.yield(); err != nil {
			return err
		}
	}
	if err := c.filterPrimary(ctx, "on"); err != nil {
		return err
	}
	if err := c.await(ctx, func() bool { return c.src.resumed.After(stopped) && c.dst.status == "colo" }); err != nil {
		return err
	}
	c.entered, c.sent = c.src.resumed, slices.Clone(c.passes)
	c.stops, c.resumes = nil, nil // the filters may have been late for what has run until here
	delay := map[string]any{"x-checkpoint-delay": c.plan.CheckpointDelay.Milliseconds()}
	if err := c.src.control.SetMigrateParameters(ctx, delay); err != nil { // it asks for a checkpoint at once
		return fmt.Errorf("set primary's checkpoint delay: %w", err)
	}
	c.rec.Parameters["x-checkpoint-delay"] = c.plan.CheckpointDelay.Milliseconds()
	if err := c.await(ctx, func() bool { return len(c.resumes) > 0 }); err != nil {
		return err
	}
	c.end(c.resumes[0])
	c.rec.COLO.Protected = record.Of(c.resumes[0].Sub(c.rec.Origin))
	return nil
}

// neverEnters says why a primary has gone past COLO: there, every migration goes through `device`, and COLO is begun from `active` only.
func neverEnters(f *facts.Facts) error {
	return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO on %s (QEMU %s) as the primary", f.Name, f.Version),
		Have: "its migration completed instead: migration_switchover_prepare always goes to `device`, and migration_completion begins COLO only from `active` (migration/migration.c; read and seen in 10.0.2): use a primary such as QEMU 7.2; this one can be the secondary"}
}

// mayYield tries yielding on a thread that is there.
func mayYield(process endpoint.Process) error {
	p, ok := process.(endpoint.Scheduler)
	if !ok {
		return errors.New("for which its process must be known: give an endpoint on a host of ours")
	}
	threads, err := p.Threads()
	if err != nil {
		return err
	}
	undo, err := p.Yield(threads[:1])
	if err != nil {
		return err
	}
	return undo()
}

// yield makes the primary's migration thread give way to the others. Why: at each checkpoint QEMU under TCG waits for its vCPUs on a
// condition variable with the big lock, which that thread does not hold then (docs/colo.md), unless they have answered before it looks.
func (c *colo) yield() error {
	p := c.src.ep.Process.(endpoint.Scheduler)
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
func (c *colo) note(s *side, ev qmp.Event, ok bool) {
	if ok && ev.Name == coloExit {
		var data struct {
			Reason string `json:"reason"`
		}
		_ = json.Unmarshal(ev.Data, &data)
		c.exit[s] = true
		c.miss(nil, fmt.Errorf("%s QEMU has left COLO: %s", s.role, data.Reason))
		return
	}
	stopped := s.stopped
	resumed := s.resumed
	c.take(s, ev, ok)
	switch {
	case !ok:
		c.miss(s, s.gone)
	case s == c.src && s.status == "colo" && s.resumed != resumed && s.resumed.After(stopped):
		c.stops, c.resumes = append(c.stops, stopped), append(c.resumes, s.resumed)
		if c.plan.Checkpointed != nil && !c.entered.IsZero() {
			c.plan.Checkpointed(len(c.resumes))
		}
	}
}

// miss notes the first sign that a side is lost; nil: it is not known which.
func (c *colo) miss(s *side, cause error) {
	if c.lostCause == nil {
		c.lostAt, c.lostCause = time.Now(), cause
	}
	if c.lost == nil {
		c.lost = s
	}
}

// await takes in events until done, or until a side is missed, or ctx ends.
func (c *colo) await(ctx context.Context, done func() bool) error {
	for !done() {
		if c.lostCause != nil {
			return c.lostCause
		}
		if err := c.broken(); err != nil {
			return err
		}
		select {
		case ev, ok := <-c.src.C:
			c.note(c.src, ev, ok)
		case ev, ok := <-c.dst.C:
			c.note(c.dst, ev, ok)
		case <-ctx.Done():
			return c.cause(ctx)
		}
	}
	return nil
}

// protect lets the two run in step until a side is lost, or the plan's time is over, or ctx ends: the last is an error if the time was
// not over. A side is lost when its process ends, its monitor closes, it leaves COLO, or it does not answer query-status.
func (c *colo) protect(ctx context.Context) error {
	beating, stop := context.WithCancel(ctx)
	var hearts sync.WaitGroup
	defer hearts.Wait()
	defer stop()
	silent := make(chan *side, 2)
	for _, s := range []*side{c.src, c.dst} {
		hearts.Go(func() { heartbeat(beating, s, silent) })
	}
	var over <-chan time.Time
	if c.plan.Run > 0 {
		t := time.NewTimer(c.plan.Run)
		defer t.Stop()
		over = t.C
	}
	ended := func(s *side) <-chan struct{} {
		if s.ep.Process == nil {
			return nil
		}
		return s.ep.Process.Done()
	}
	timeUp := false
	for c.lostCause == nil {
		if timeUp && len(c.resumes) >= c.plan.Checkpoints {
			return nil
		}
		select {
		case ev, ok := <-c.src.C:
			c.note(c.src, ev, ok)
		case ev, ok := <-c.dst.C:
			c.note(c.dst, ev, ok)
		case s := <-silent:
			c.miss(s, fmt.Errorf("%s QEMU does not answer for %s", s.role, heartbeatLimit))
		case <-ended(c.src):
			c.miss(c.src, errors.New("source QEMU's process has ended"))
		case <-ended(c.dst):
			c.miss(c.dst, errors.New("destination QEMU's process has ended"))
		case <-over:
			timeUp = true
		case <-ctx.Done():
			if c.plan.Run == 0 {
				return nil
			}
			return c.cause(ctx)
		}
	}
	c.end(c.lostAt)
	if c.lost == nil { // one has left COLO, which each does when the other is gone
		c.which(ctx, ended)
	}
	c.rec.COLO.LostAt, c.rec.COLO.Lost = record.Of(c.lostAt.Sub(c.rec.Origin)), c.lost.role
	c.log.Info("lost", "side", c.lost.role, "cause", c.lostCause)
	return nil
}

// which finds out which side is lost after COLO was left. If both live, the link between them is: the primary stays, for it is the one
// that is heard.
func (c *colo) which(ctx context.Context, ended func(*side) <-chan struct{}) {
	moment := time.NewTimer(deathLimit)
	defer moment.Stop()
	for c.lost == nil {
		select {
		case ev, ok := <-c.src.C:
			c.note(c.src, ev, ok)
		case ev, ok := <-c.dst.C:
			c.note(c.dst, ev, ok)
		case <-ended(c.src):
			c.lost = c.src
		case <-ended(c.dst):
			c.lost = c.dst
		case <-moment.C:
			c.lost = c.dst
			if !answers(ctx, c.src) {
				c.lost = c.src
			}
		}
	}
}

// answers tells whether a side answers query-status within the heartbeat's limit.
func answers(ctx context.Context, s *side) bool {
	ctx, cancel := context.WithTimeout(ctx, heartbeatLimit)
	defer cancel()
	_, err := s.control.QueryStatus(ctx)
	return err == nil
}

// heartbeat is QEMU's missing one: it asks query-status and tells when there was no answer in time.
func heartbeat(ctx context.Context, s *side, silent chan<- *side) {
	tick := time.NewTicker(heartbeatInterval)
	defer tick.Stop()
	for {
		alive := answers(ctx, s)
		if ctx.Err() != nil {
			return
		}
		if !alive {
			silent <- s
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// failOver makes the side that is left run the guest alone. The other one is known dead before: a primary that lives would be heard
// beside a secondary that took over.
func (c *colo) failOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, undoLimit)
	defer cancel()
	var err error
	if c.lost == c.src {
		err = c.promote(ctx)
	} else {
		err = c.retreat(ctx)
	}
	if err == nil && c.lost != nil {
		c.rec.COLO.Failover = record.Of(time.Since(c.lostAt))
	}
	return err
}

// promote ends the primary and lets the secondary out.
func (c *colo) promote(ctx context.Context) error {
	if err := c.src.kill(ctx); err != nil || !c.src.over(ctx) {
		return errors.Join(fmt.Errorf("the primary (%w) is not known dead, and may be heard", c.lostCause), err)
	}
	if err := c.leave(ctx, c.dst); err != nil {
		return err
	}
	if err := c.releaseSecondary(ctx); err != nil {
		return err
	}
	announce := map[string]any{"initial": 50, "max": 550, "rounds": 5, "step": 100} // ms: QEMU's own figures for a migration
	if err := c.dst.control.Execute(ctx, "announce-self", announce, nil); err != nil {
		c.rec.Warn("the guest did not announce itself on the network: %v", err)
	}
	return nil
}

// retreat ends the secondary and lets the primary go on alone. A secondary that cannot be ended stays behind its filters.
func (c *colo) retreat(ctx context.Context) error {
	if err := c.dst.kill(ctx); err != nil {
		c.rec.Warn("the secondary was not ended (%v): it runs on, heard by nobody while its filters stand: end %s", err, c.dst.ep.Name)
	}
	// Before COLO is left: what the filters hold flows out, and no comparison can hold up the end.
	if err := c.releasePrimary(ctx); err != nil {
		return err
	}
	if err := c.leave(ctx, c.src); err != nil {
		return err
	}
	if c.hurry != nil {
		if err := c.hurry(); err != nil {
			c.rec.Warn("threads of the primary go on yielding: %v", err)
		}
	}
	return nil
}

// leave makes a side, the other one being dead, end COLO and run the guest as a QEMU of its own.
func (c *colo) leave(ctx context.Context, s *side) error {
	if before := s.resumed; !s.done() { // an undo may come here again
		if err := s.control.Execute(ctx, "x-colo-lost-heartbeat", nil, nil); err != nil {
			return fmt.Errorf("tell %s to go on alone: %w", s.ep.Name, err)
		}
		_ = c.drainFor(ctx, killLimit, func() bool { return s.gone != nil || s.done() && s.resumed != before })
	}
	if err := resume(ctx, s); err != nil { // it runs by now: this asks
		return fmt.Errorf("run the guest on %s: %w", s.ep.Name, err)
	}
	if err := s.control.SetMigrateCapabilities(ctx, map[string]bool{"x-colo": false}); err != nil {
		c.rec.Warn("%s keeps its capability x-colo: %v", s.ep.Name, err)
	}
	return nil
}

// settle brings the guest back to where it can run after a failure: the primary goes on if it lives; if not, the secondary takes over if it has
// been in COLO. It is migration.settle for this mode.
func (c *colo) settle(ctx context.Context) verdict {
	if c.src.facts == nil {
		return verdict{guest: record.Unknown, mend: "the primary was not reached, and nothing was changed"}
	}
	c.look(ctx)
	defer c.restore()
	had := c.dst.status == "colo" || c.dst.done() // the secondary has been in COLO
	if c.lost == nil && c.issued && had && c.src.gone == nil && !answers(ctx, c.src) {
		c.miss(c.src, fmt.Errorf("source QEMU does not answer for %s", heartbeatLimit))
	}
	gone := c.src.gone != nil || c.lost == c.src
	switch {
	case !c.issued:
		v := c.settleAs(ctx, nil)
		if err := c.releasePrimary(ctx); err != nil && c.src.gone == nil {
			c.rec.Warn("something of the filters is left on the primary, switched off: %v", err)
		}
		return v
	case gone && (c.src.kill(ctx) != nil || !c.src.over(ctx)):
		return verdict{guest: record.Unknown, mend: fmt.Sprintf("the primary is lost and not known dead: ask %s for query-status: if it lives, it holds the guest; once it is surely dead, `x-colo-lost-heartbeat` on %s and object-del of its filters lets the secondary, which stands by unheard, take over",
			c.src.ep.Name, c.dst.ep.Name)}
	case gone && had && c.dst.gone == nil:
		if len(c.resumes) == 0 {
			c.rec.Warn("the primary died before the first checkpoint was whole: what it did since it was copied is lost, though it may have been heard")
		}
		c.lost = c.src
		if err := c.promote(ctx); err != nil {
			if status, asked := c.dst.asked(ctx); asked == nil && status.Running && c.dst.done() {
				return verdict{guest: record.Destination, mend: fmt.Sprintf("it runs there, and something stands in its way to the network (%v): object-del it on %s", err, c.dst.ep.Name)}
			}
			return verdict{guest: record.None, mend: fmt.Sprintf("the primary is dead and the secondary does not take over (%v): `x-colo-lost-heartbeat` on %s", err, c.dst.ep.Name)}
		}
		return verdict{guest: record.Destination}
	case gone && had:
		return verdict{guest: record.None, mend: "it is lost: both QEMUs died"}
	case gone:
		_ = c.dst.kill(ctx)
		return verdict{guest: record.None, mend: "it is lost: the primary QEMU died before the secondary had all of it"}
	}
	if c.src.status == "colo" {
		if err := c.retreat(ctx); err != nil {
			return verdict{guest: record.None, mend: fmt.Sprintf("the primary does not go on alone (%v): `x-colo-lost-heartbeat`, then `cont` on %s", err, c.src.ep.Name)}
		}
		return verdict{guest: record.Source}
	}
	// Not in COLO: what ran on the secondary was heard by nobody, and ends now. The source is `active`, or has completed past COLO.
	if c.src.status == "device" {
		_ = c.drainFor(ctx, answerLimit, c.src.ended)
	}
	v := c.settleAs(ctx, func(s *holder.Situation) { s.Destination.Run, s.Ran = holder.Paused, holder.Never })
	if err := c.releasePrimary(ctx); err != nil && c.src.gone == nil {
		c.rec.Warn("filters are left on the primary: %v", err)
	}
	if c.hurry != nil {
		_ = c.hurry()
	}
	return v
}

// restore takes what the checkpoints did out of what the passes and totals are made of.
func (c *colo) restore() {
	if !c.entered.IsZero() {
		c.passes, c.src.completed = c.sent, c.entered
		c.src.stopped = c.rec.End(record.PreCopy)
	}
}

// figures derives the record's numbers; it comes after the wall time.
func (c *colo) figures(ctx context.Context) {
	c.restore()
	c.finish(ctx)
	f := c.rec.COLO
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
		f.CheckpointP50, f.CheckpointP99 = record.Of(quantile(costs, 0.50)), record.Of(quantile(costs, 0.99))
		f.StoppedPercent = record.Of(100 * still.Seconds() / c.resumes[len(c.resumes)-1].Sub(c.stops[0]).Seconds())
	}
	if len(intervals) > 0 {
		f.IntervalP50 = record.Of(quantile(intervals, 0.50))
	}
}
