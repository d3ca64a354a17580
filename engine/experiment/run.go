package experiment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"qmigrate/engine/lab"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// Options is what a run needs beside the experiment.
type Options struct {
	Owner    string     // of its labs: a name of its own
	Hosts    *host.Pool // finds hosts that are elsewhere; nil knows this machine and its namespaces
	Command  string     // that made it, for experiment.json
	Learn    []*record.Migration
	Schemas  qmp.SchemaCache
	Logger   *slog.Logger
	Say      func(text string) // one line for people; nil is silent
	Progress func(Progress)    // at the begin and the end of each trial; nil: none
}

// Progress is where a run is.
type Progress struct {
	Trial  Trial
	WarmUp bool              // not one of the experiment's
	Begun  time.Time         // of the trial
	Record *record.Migration // of the trial, when it has ended; nil at its begin
	Done   int               // trials with a record, those of former runs included
	Failed int               // of this run, not completed
	Total  int
	Left   time.Duration // until the end, by what was learnt so far
}

// Summary is what a run did.
type Summary struct {
	Total   int // trials of the experiment
	Before  int // of them done by former runs
	Done    int // by this one
	Failed  int // of this one's: not completed
	Lost    int // guests that no side runs
	Wrong   int // guests whose memory was wrong
	Elapsed time.Duration
	Booted  time.Duration // median time to a ready guest that was booted; 0: none was
	Again   time.Duration // the same for one that was there; 0: none was
	Stayed  int           // trials whose guest was there
}

// PerHour is the trials per hour of this run.
func (s Summary) PerHour() float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return float64(s.Done) / s.Elapsed.Hours()
}

// PerHourBooted is what PerHour would have been with a guest booted for each trial, by what a boot took; 0 if each was,
// or none.
func (s Summary) PerHourBooted() float64 {
	if s.Stayed == 0 || s.Booted == 0 {
		return 0
	}
	return float64(s.Done) / (s.Elapsed + time.Duration(s.Stayed)*(s.Booted-s.Again)).Hours()
}

// errTrialTimeout is the cause of a trial's context that has run out.
var errTrialTimeout = errors.New("the trial took longer than trial-timeout")

// Plan is what of the experiment is left to do in a folder.
type Plan struct {
	Seed     int64
	Trials   []Trial // all, in their order
	Left     []Trial
	Estimate Estimate

	held *State
	done map[string]bool
}

// Plan looks into the folder, which need not be there, for what was done before. Check comes first.
func (e *Experiment) Plan(dir string, learn []*record.Migration) (*Plan, error) {
	trials := 0
	for _, c := range e.Cells {
		trials += c.Sweep.Repeats
	}
	if trials > maxTrials {
		return nil, fmt.Errorf("%s makes %d trials, more than %d: give fewer values or repeats", e.File, trials, maxTrials)
	}
	seed, held, err := e.resume(dir)
	if err != nil {
		return nil, err
	}
	records, err := record.Read(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	p := &Plan{Seed: seed, Trials: e.Trials(seed), held: held, done: map[string]bool{}}
	for _, r := range records {
		if r.Experiment == e.Name {
			if held == nil {
				return nil, fmt.Errorf("%s has records of experiment %s and no experiment.json that says what they are of: give "+
					"another folder", dir, e.Name)
			}
			p.done[r.Trial] = true
		}
	}
	for _, t := range p.Trials {
		if !p.done[t.ID()] {
			p.Left = append(p.Left, t)
		}
	}
	p.Estimate = newEstimator(e, append(records, learn...)).all(p.Left[:min(e.WarmUp, len(p.Left))], p.Left)
	return p, nil
}

// runner is one run.
type runner struct {
	*Experiment
	opts   Options
	folder *record.Folder
	learnt *estimator
	sum    Summary

	lab   *lab.Lab // that stands; nil: none
	cell  *Cell    // what it is a lab of
	moved int      // how often its guest was migrated

	booted, again []time.Duration
}

// Run does what is left of the experiment: each trial has a record when it returns, or it was stopped, and the same
// call goes on where it was. ready is told the plan when the host's slot is taken and nothing has started.
func (e *Experiment) Run(ctx context.Context, folder *record.Folder, o Options, ready func(*Plan)) (*Summary, error) {
	holder := fmt.Sprintf("process %d, %s into %s, since %s", os.Getpid(), e.Name, absolute(folder.Path()),
		time.Now().Format("15:04:05"))
	slot, err := takeSlot(holder)
	if err != nil {
		return nil, err
	}
	defer slot.release()
	own, by, err := take(folder.Path(), holder)
	switch {
	case by != "":
		return nil, fmt.Errorf("%s is in use by an experiment of %s", folder.Path(), by)
	case err != nil:
		return nil, fmt.Errorf("lock %s: %w", folder.Path(), err)
	}
	defer own.release()
	p, err := e.Plan(folder.Path(), o.Learn)
	if err != nil {
		return nil, err
	}
	said, err := lab.Sweep(ctx, o.Hosts)
	if o.Say != nil {
		for _, line := range said {
			o.Say(line)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("clean up after a killed run: %w", err)
	}
	if slices.ContainsFunc(p.Left, func(t Trial) bool { return t.Lab.OnNamespaces() }) {
		if err := canHaveLabs(hostnet.Check(ctx)); err != nil {
			return nil, err
		}
	}
	if err := e.keep(folder.Path(), o.Command, p.Seed, len(p.Trials), p.held); err != nil {
		return nil, err
	}
	if ready != nil {
		ready(p)
	}
	records, err := record.Read(folder.Path())
	if err != nil {
		return nil, err
	}
	r := &runner{Experiment: e, opts: o, folder: folder, learnt: newEstimator(e, append(records, o.Learn...)),
		sum: Summary{Total: len(p.Trials), Before: len(p.Trials) - len(p.Left)}}
	err = r.run(ctx, p.Left)
	return &r.sum, errors.Join(err, r.down())
}

// canHaveLabs refuses a host on which every trial would fail: a failed trial is a result, and is not tried again when
// the host has been mended.
func canHaveLabs(found hostnet.Capabilities) error {
	var errs []error
	for _, c := range found.Missing() {
		text := c.Name + ": " + c.Reason
		if c.Mend != "" {
			text += "; " + c.Mend
		}
		errs = append(errs, fmt.Errorf("no lab can be had here: %s", text))
	}
	return errors.Join(errs...)
}

func absolute(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

func (r *runner) run(ctx context.Context, trials []Trial) error {
	warmUp := trials[:min(r.WarmUp, len(trials))]
	for i := range warmUp {
		r.progress(Progress{Trial: trials[i], WarmUp: true, Begun: time.Now()}, slices.Concat(warmUp[i:], trials))
		rec, begun := r.trial(ctx, trials[i]), time.Now()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := r.down(); err != nil {
			return err
		}
		r.progress(Progress{Trial: trials[i], WarmUp: true, Begun: begun, Record: rec}, slices.Concat(warmUp[i+1:], trials))
	}
	begun := time.Now()
	defer func() { r.sum.Elapsed = time.Since(begun) }()
	for i, t := range trials {
		start := time.Now()
		r.progress(Progress{Trial: t, Begun: start}, trials[i:])
		rec := r.trial(ctx, t)
		if ctx.Err() != nil && rec.Outcome != record.Completed && rec.GuestOn != record.None {
			return context.Cause(ctx) // it is run again
		}
		if err := r.keep(rec); err != nil {
			return fmt.Errorf("keep the record of trial %s: %w", t.ID(), err)
		}
		r.count(rec)
		r.learnt.learn(t.Cell, rec.Boot.Trial)
		if r.Boot == PerTrial || rec.Outcome != record.Completed || i+1 == len(trials) || trials[i+1].Cell != t.Cell {
			if err := r.down(); err != nil {
				return err
			}
		}
		r.progress(Progress{Trial: t, Begun: start, Record: rec}, trials[i+1:])
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// keep appends the record. One that holds no number where one should be cannot be written: then it is recorded that the
// trial failed so, because it would be run again and again.
func (r *runner) keep(rec *record.Migration) error {
	err := r.folder.Append(rec)
	var unsupported *json.UnsupportedValueError
	if !errors.As(err, &unsupported) {
		return err
	}
	rec.Warn("measured, and not kept: %v", err)
	rec.Error = &record.Error{Stage: record.Activation, Message: fmt.Sprintf("the record could not be written: %v", err)}
	rec.Outcome, rec.Passes, rec.Stages, rec.Timeline, rec.CPU, rec.Guest, rec.Samples = record.Failed, []record.Pass{},
		[]record.Stage{}, nil, nil, nil, nil
	return r.folder.Append(rec)
}

func (r *runner) count(rec *record.Migration) {
	r.sum.Done++
	if rec.Outcome != record.Completed {
		r.sum.Failed++
	}
	if rec.GuestOn == record.None {
		r.sum.Lost++
	}
	if m := rec.MemoryCheck; m != nil && m.PagesWrong > 0 {
		r.sum.Wrong++
	}
	if b := rec.Boot; b.Ready != nil && b.Migration == 1 {
		r.booted = append(r.booted, *b.Ready)
		r.sum.Booted = median(r.booted)
	} else if b.Ready != nil {
		r.again = append(r.again, *b.Ready)
		r.sum.Stayed++
		r.sum.Again = median(r.again)
	}
}

// progress fills in what follows from the run, and tells.
func (r *runner) progress(p Progress, left []Trial) {
	if r.opts.Progress == nil {
		return
	}
	p.Total, p.Done, p.Failed = r.sum.Total, r.sum.Before+r.sum.Done, r.sum.Failed
	for _, t := range left {
		p.Left += r.learnt.trial(t.Cell)
	}
	r.opts.Progress(p)
}

// trial runs one trial in a lab of its own, or in that of its cell, and returns its record in any case: a failure is a
// result.
func (r *runner) trial(ctx context.Context, t Trial) *record.Migration {
	begun := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, r.TrialTimeout, errTrialTimeout)
	defer cancel()
	boot := record.Boot{Per: r.Boot, Migration: 1}
	rec, err := r.migrate(ctx, t, begun, &boot)
	late := errors.Is(context.Cause(ctx), errTrialTimeout)
	if rec == nil && late {
		err = fmt.Errorf("%w of %s: %w", errTrialTimeout, r.TrialTimeout, err)
	} else if late {
		rec.Warn("%v of %s", errTrialTimeout, r.TrialTimeout)
	}
	if rec == nil {
		rec = notBegun(t, begun, err)
	}
	boot.Trial = time.Since(begun)
	rec.Experiment, rec.Trial, rec.Order, rec.Factors, rec.Boot = r.Name, t.ID(), record.Of(t.Order), t.Factors, &boot
	return rec
}

func (r *runner) migrate(ctx context.Context, t Trial, begun time.Time, boot *record.Boot) (*record.Migration, error) {
	if r.lab != nil && r.cell == t.Cell {
		if err := r.lab.Again(ctx); err != nil {
			if ctx.Err() != nil {
				return nil, errors.Join(err, r.down())
			}
			r.say("%s: %v: booted anew", t.ID(), err)
			if err := r.down(); err != nil {
				return nil, err
			}
		}
	}
	if r.lab == nil || r.cell != t.Cell {
		if err := r.down(); err != nil {
			return nil, err
		}
		s := t.Lab
		s.Owner, s.Logger, s.Pool = r.opts.Owner, r.opts.Logger, r.opts.Hosts
		var err error
		if r.lab, err = lab.Up(ctx, s); err != nil {
			r.lab = nil
			return nil, err
		}
		r.cell, r.moved = t.Cell, 0
	}
	r.moved++
	boot.Migration, boot.Ready = r.moved, record.Of(time.Since(begun))
	return r.lab.Migrate(ctx, t.Plan, plan.Options{Logger: r.opts.Logger, Schemas: r.opts.Schemas,
		EventsAlone: true}) // trials that are compared pay for trace lines only if the experiment asks for them
}

// down removes the lab that stands.
func (r *runner) down() error {
	if r.lab == nil {
		return nil
	}
	l := r.lab
	r.lab, r.cell = nil, nil
	if err := l.Close(); err != nil {
		return fmt.Errorf("remove the lab: %w", err)
	}
	return nil
}

func (r *runner) say(format string, args ...any) {
	if r.opts.Say != nil {
		r.opts.Say(fmt.Sprintf(format, args...))
	}
}

// notBegun is the record of a trial whose guest, or whose observers, did not come up: no migration was begun, and there
// is no guest to ask for.
func notBegun(t Trial, begun time.Time, err error) *record.Migration {
	mode := t.Plan.Mode
	if mode == "" {
		mode = record.PreCopyMode
	}
	return &record.Migration{Schema: record.Schema, ID: record.NewID(begun), StartedAt: begun.Round(0), Origin: begun,
		Mode: mode, Name: t.Name, Outcome: record.Failed, GuestOn: record.Unknown,
		Workload: t.Lab.Workload.String(), Plan: map[string]any{}, Stages: []record.Stage{}, Passes: []record.Pass{},
		Error: &record.Error{Stage: record.Initialization, Message: err.Error()}}
}
