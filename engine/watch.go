package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// watcher looks on while somebody else migrates. It sends questions alone. It takes events as a feature of its run,
// because the run would not keep the instants that it needs.
type watcher struct {
	run.Plain
	run   *run.Run
	alone bool // there is no destination to be watched
	begun bool
	state string             // the source's run state when we came, if that was in the middle
	split bool               // post-copy had begun when we came
	still bool               // the guest did not run when the migration began, or when we came
	heard map[*run.Side]bool // the capability `events` is on there, so that each status comes as an event
	syncs int64              // the last dirty-sync-count, where no events tell of it
	lost  bool               // post-copy has lost its link
	turns []turn
}

// turn is where post-copy lost its link, or went on.
type turn struct {
	name record.StageName
	at   time.Time
}

// ErrNoMigration is the cause of a watch that ended because no migration began within Plan.Timeout.
var ErrNoMigration = errors.New("no migration began")

// Watch records a migration from src to dst that somebody else drives. It changes nothing on either QEMU. It waits
// until a migration begins, or begins in the middle of one, and returns when that one has ended. dst may be nil: then
// what only the destination can tell is absent. Of the plan it takes SampleInterval, and Timeout: how long it waits for
// a migration to begin.
//
// The record is returned also with an error. That is a *record.StageError once a migration was seen. If ctx ended it,
// the outcome is record.Unfinished.
func Watch(ctx context.Context, src, dst *endpoint.Endpoint, p plan.Plan, o plan.Options) (*record.Migration, error) {
	w := newWatcher(src, dst, p, o)
	defer w.run.Close()
	err := w.open(ctx)
	if err == nil && !w.begun {
		err = w.await(ctx)
	}
	if err != nil {
		w.run.Rec.Outcome, w.run.Rec.Error = record.Failed, &record.Error{Stage: record.Initialization, Message: err.Error()}
		return w.run.Rec, err
	}
	w.learn(ctx)
	err = w.follow(ctx)
	return w.run.Rec, w.conclude(ctx, err)
}

func newWatcher(src, dst *endpoint.Endpoint, p plan.Plan, o plan.Options) *watcher {
	w := &watcher{alone: dst == nil, heard: map[*run.Side]bool{}}
	if w.alone {
		dst = &endpoint.Endpoint{}
	}
	o.Traces = "" // what a qmigrate that has died left on is for a command that may change something
	w.run = run.New(src, dst, plan.Plan{SampleInterval: p.SampleInterval, Timeout: p.Timeout}, o)
	w.run.Features = []run.Feature{w}
	w.run.Decider = &run.Decider{Samples: make(chan record.Sample, 4096), Over: make(chan struct{}), Decide: w.sampled}
	rec := w.run.Rec
	rec.Plan = map[string]any{"sample_interval_ns": max(w.run.Plan.SampleInterval, 0)}
	if p.Timeout > 0 {
		rec.Plan["timeout_ns"] = p.Timeout
	}
	rec.Watched = &record.Watched{Destination: !w.alone}
	return w
}

// open opens the monitors and refuses what cannot be watched.
func (w *watcher) open(ctx context.Context) (err error) {
	r := w.run
	if w.alone {
		err = r.Src.Open(ctx, r.Opts)
	} else {
		err = r.OpenBoth(ctx)
	}
	if err != nil {
		return err
	}
	r.Rec.Hosts.Source, r.Rec.Hosts.Destination = r.Src.Endpoint.Host, r.Dst.Endpoint.Host
	r.Describe()
	// asked anew, because events are taken in by now and were not when the facts were read
	limited, cancel := context.WithTimeout(ctx, facts.ReadLimit)
	defer cancel()
	info, err := r.Src.Control.QueryMigrate(limited)
	if err != nil {
		return fmt.Errorf("ask source %s for its migration: %w", r.Src.Endpoint.Name, err)
	}
	status, err := r.Src.Asked(limited)
	if err != nil {
		return fmt.Errorf("ask source %s for its state: %w", r.Src.Endpoint.Name, err)
	}
	r.Src.RunState = status.Status
	underWay := facts.UnderWay(info.Status)
	if err := w.refuse(ctx, info.Status, underWay); err != nil {
		return err
	}
	if r.CatchUp(); underWay && !w.begun {
		now := time.Now()
		r.Midway, r.Rec.Watched.Midway, r.Rec.Watched.Status = true, true, info.Status
		w.begins(now)
		w.says(r.Src, info.Status, now)
		w.split = r.Src.Parted()
		switch w.state = r.Src.RunState; w.state {
		case "running", facts.Asleep:
		case "finish-migrate", "postmigrate": // it ran until the switch-over
			w.still, r.Src.Facts.Running = true, true
		default:
			w.still = true
		}
	}
	return nil
}

// refuse says why these two cannot be watched, or have nothing to be watched.
func (w *watcher) refuse(ctx context.Context, status string, underWay bool) error {
	src, dst := w.run.Src.Facts, w.run.Dst.Facts
	switch state := w.run.Src.RunState; {
	case src.RunState == "inmigrate":
		return fmt.Errorf("%s waits for a guest itself (inmigrate): name the QEMU that runs the guest first", src.Name)
	case status == "colo":
		return fmt.Errorf("the guest of %s is kept in step with a secondary (colo): that is no migration", src.Name)
	case !underWay && state == "postmigrate":
		return fmt.Errorf("the guest has left %s already (postmigrate, migration %s): there is no migration to be watched",
			src.Name, cmp.Or(status, "none"))
	case w.alone:
		return nil
	}
	if why := strangers(ctx, w.run); why != "" {
		return errors.New(why)
	}
	if dst.RunState != "inmigrate" && !(underWay && !facts.Idle(dst.MigrationStatus)) {
		return fmt.Errorf("destination %s does not wait for a guest (%s): name the QEMU that was started with -incoming",
			dst.Name, dst.RunState)
	}
	return nil
}

// await waits for a migration to begin. The event tells of it, if the capability `events` is on by then. Else an answer
// does.
func (w *watcher) await(ctx context.Context) error {
	r := w.run
	if r.Opts.Watching != nil {
		r.Opts.Watching()
	}
	limited := ctx
	if limit := r.Plan.Timeout; limit > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w within %s", ErrNoMigration, limit))
		defer cancel()
	}
	var before *qmp.MigrationInfo
	for {
		asked := time.Now()
		info, err := r.Src.Control.QueryMigrate(limited)
		if err == nil && before != nil && changed(before, info) {
			w.catchEvent(limited)
			if !w.begun {
				r.Midway = !facts.UnderWay(info.Status) // it was over before it was seen
				w.begins(asked)
				w.says(r.Src, info.Status, asked)
			}
		}
		if err == nil {
			before = info
		}
		tick, cancel := context.WithTimeout(limited, cmp.Or(max(r.Plan.SampleInterval, 0), run.WatchInterval))
		_ = r.Attend(tick, func() bool { return w.begun || r.Src.Gone != nil || r.Dst.Gone != nil })
		cancel()
		switch {
		case w.begun:
			return nil
		case r.Src.Gone != nil, r.Dst.Gone != nil:
			return fmt.Errorf("%w, and no migration had begun", cmp.Or(r.Src.Gone, r.Dst.Gone))
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", ErrNoMigration, context.Cause(ctx))
		case limited.Err() != nil:
			return context.Cause(limited)
		}
	}
}

// changed tells whether an answer to query-migrate is of another migration than the one before it.
func changed(before, now *qmp.MigrationInfo) bool {
	if facts.Idle(before.Status) && facts.Idle(now.Status) {
		return false
	}
	return before.Status != now.Status || before.Transferred != now.Transferred || before.TotalTime != now.TotalTime
}

// catchEvent waits a moment for the event of a beginning that an answer has told of: it came before, over another
// monitor.
func (w *watcher) catchEvent(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, run.AnswerLimit)
	defer cancel()
	if on, err := w.run.Src.Control.QueryMigrateCapabilities(ctx); err == nil && on["events"] {
		_ = w.run.DrainFor(ctx, 100*time.Millisecond, func() bool { return w.begun || w.run.Src.Gone != nil })
	}
}

// Take notes when the migration begins and where it loses its link, before the run takes the event.
func (w *watcher) Take(s *run.Side, ev qmp.Event, at time.Time) {
	var data struct{ Status string }
	if ev.Name != "MIGRATION" || json.Unmarshal(ev.Data, &data) != nil {
		return
	}
	if !w.begun && s == w.run.Src && facts.UnderWay(data.Status) {
		w.begins(at)
	}
	w.noteTurn(s, data.Status, at)
}

// begins is the first sign of the migration.
func (w *watcher) begins(at time.Time) {
	src := w.run.Src
	w.begun = true
	w.still = src.Still() || !src.Facts.Running && src.Resumed.IsZero()
	if !src.Facts.Running && !src.Resumed.IsZero() { // it was continued while we waited
		src.Facts.Running = true
	}
	w.run.Begins(at)
}

// says takes in a status that no event tells of.
func (w *watcher) says(s *run.Side, status string, at time.Time) {
	if status == s.Status || facts.Idle(status) {
		return
	}
	w.noteTurn(s, status, at)
	s.Says(status, at)
	w.noteSplit()
}

// noteTurn notes where post-copy loses its link or goes on.
func (w *watcher) noteTurn(s *run.Side, status string, at time.Time) {
	other := w.run.Src
	if s == other {
		other = w.run.Dst
	}
	switch {
	case !w.lost && status == "postcopy-paused":
		w.lost, w.turns = true, append(w.turns, turn{record.Recovery, at})
	case w.lost && status == "postcopy-active" && !other.Linkless():
		w.lost, w.turns = false, append(w.turns, turn{record.PostCopy, at})
	}
}

// noteSplit notes that the migration has gone over to post-copy.
func (w *watcher) noteSplit() {
	if !w.run.Split && (w.run.Src.Parted() || w.run.Dst.Parted()) {
		w.run.Split, w.run.Rec.PostCopy = true, &record.PostCopyFigures{}
	}
}

// sampled takes from a sample what no event tells: the status, and where a pass begins.
func (w *watcher) sampled(_ context.Context, x record.Sample) error {
	if w.heard[w.run.Src] {
		return nil
	}
	at := w.run.Rec.Origin.Add(x.T)
	w.says(w.run.Src, x.Status, at)
	if x.SyncCount != nil && *x.SyncCount > w.syncs {
		if w.syncs > 0 || !w.run.Midway {
			w.run.Passes = append(w.run.Passes, run.PassEdge{Raw: int(*x.SyncCount), At: at})
		}
		w.syncs = *x.SyncCount
	}
	return nil
}

// learn begins to sample, and reads what holds for a migration that has begun.
func (w *watcher) learn(ctx context.Context) {
	r := w.run
	r.StartPolling(ctx)
	limited, cancel := context.WithTimeout(ctx, facts.ReadLimit)
	defer cancel()
	if err := r.ReadBack(limited); err != nil {
		r.Rec.Warn("the source's capabilities and parameters are not known: %v", err)
	}
	if r.Rec.Capabilities != nil {
		w.heard[r.Src] = r.Rec.Capabilities["events"]
	}
	if !w.alone {
		on, err := r.Dst.Control.QueryMigrateCapabilities(limited)
		if err == nil {
			w.heard[r.Dst] = on["events"]
		}
		if info, err := r.Dst.Control.QueryMigrate(limited); err == nil && r.Dst.Status == "" && r.Midway {
			w.says(r.Dst, info.Status, time.Now())
		}
	}
	if limit, ok := r.Rec.Parameters["downtime-limit"].(int64); ok { // ms
		r.Plan.DowntimeLimit = time.Duration(limit) * time.Millisecond
	}
	if rate, ok := r.Rec.Parameters["max-bandwidth"].(int64); ok { // bytes/s
		r.Plan.MaxBandwidth = rate
	}
	r.Log.Info("the migration is watched", "midway", r.Midway, "status", r.Src.Status)
	r.Plan.Capabilities = map[string]bool{}
	for name, on := range r.Rec.Capabilities {
		if on && name != "events" {
			r.Plan.Capabilities[name] = true
		}
	}
}

// follow takes in what comes until the migration has ended.
func (w *watcher) follow(ctx context.Context) error {
	r := w.run
	var limit time.Time // of waiting for what may never come; zero: it is not waited for yet
	for read := false; ; {
		tick, cancel := context.WithTimeout(ctx, run.WatchInterval)
		_ = r.Attend(tick, func() bool { return w.sign() || w.over() })
		cancel()
		w.noteSplit()
		if r.Src.Done() && !read { // a source may be ended as soon as it has completed
			read = true
			w.readFigures(ctx)
		}
		if w.over() {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if wayLost(r.Src) || wayLost(r.Dst) {
			r.ReachAgain(ctx)
		}
		if w.look(ctx); !w.sign() {
			limit = time.Time{}
			continue
		}
		if limit.IsZero() {
			limit = time.Now().Add(w.patience())
		}
		if time.Now().After(limit) {
			return nil
		}
		tick, cancel = context.WithTimeout(ctx, 20*time.Millisecond) // sign holds, so Attend above does not wait
		_ = r.Attend(tick, w.over)
		cancel()
	}
}

func (w *watcher) readFigures(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, run.AnswerLimit)
	defer cancel()
	w.run.ReadFigures(ctx)
}

func wayLost(s *run.Side) bool { return s.Gone != nil && endpoint.WayLost(s.Gone) }

// sign tells whether the source has come to an end, or can never come to one.
func (w *watcher) sign() bool {
	return w.run.Src.Ended() || w.run.Src.Linkless() && w.run.Dst.Gone != nil
}

// over tells whether nothing more will come of this migration.
func (w *watcher) over() bool {
	src, dst := w.run.Src, w.run.Dst
	switch {
	case !w.sign():
		return false
	case src.Done() && src.Again(): // somebody has continued it
		return true
	case src.Done() && w.alone:
		return true
	case src.Done() || src.Gone != nil && dst.Done():
		return dst.Gone != nil && !dst.Started().IsZero() || dst.Done() && (!dst.Started().IsZero() || !src.Facts.Running)
	case src.Gone != nil:
		return w.alone || dst.Ended() || dst.Linkless()
	case src.Status == "failed" || src.Status == "cancelled":
		return w.still || !src.Still() || w.run.Split && !dst.Started().IsZero()
	}
	return dst.Gone != nil
}

// patience is how long the rest is waited for after the source's end: the destination's word and `cont`, or that the
// source runs its guest again.
func (w *watcher) patience() time.Duration {
	src, dst := w.run.Src, w.run.Dst
	if src.Broke() || src.Status == "cancelled" || dst.Gone != nil || dst.Broke() || facts.Idle(dst.Status) && w.heard[dst] {
		return run.AnswerLimit
	}
	return run.ActivateLimit
}

// look asks the sides whose status comes neither as an event nor as a sample.
func (w *watcher) look(ctx context.Context) {
	r := w.run
	for _, s := range []*run.Side{r.Src, r.Dst} {
		if s.Control == nil || s.Gone != nil || w.heard[s] || s == r.Src && r.Polls() {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, run.AnswerLimit)
		asked := time.Now()
		if info, err := s.Control.QueryMigrate(limited); err == nil {
			w.says(s, info.Status, asked)
		}
		cancel()
	}
}
