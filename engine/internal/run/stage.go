package run

import (
	"context"
	"errors"
	"time"

	"qmigrate/engine/record"
)

// Do runs one stage, which begins where the one before ended.
func (r *Run) Do(ctx context.Context, name record.StageName, step func(context.Context) error) error {
	r.Begin(name)
	err := step(ctx)
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = r.Cause(ctx) // what stopped us, not which command it cut short
	}
	if !r.Ended {
		r.End(time.Now())
	}
	r.Log.Info("stage", "name", name, "duration", r.Rec.Stage(name).Duration, "err", err)
	return err
}

// Begin begins a stage where the one before ended, or now if that one runs.
func (r *Run) Begin(name record.StageName) {
	if len(r.Rec.Stages) > 0 && !r.Ended {
		r.End(time.Now())
	}
	r.Rec.Stages = append(r.Rec.Stages, record.Stage{Name: name, Start: r.edge.Sub(r.Rec.Origin)})
	r.Ended = false
}

// running is the name of the stage that runs, or has run last.
func (r *Run) stage() record.StageName {
	if len(r.Rec.Stages) == 0 {
		return record.Initialization
	}
	return r.Rec.Stages[len(r.Rec.Stages)-1].Name
}

// End ends the running stage: by a stage itself at the event that ends it, else by do.
func (r *Run) End(at time.Time) {
	r.Ended = true
	s := &r.Rec.Stages[len(r.Rec.Stages)-1]
	r.edge = Later(at, r.edge)
	s.Duration = r.edge.Sub(r.Rec.Origin) - s.Start
}

// endEmpty ends the running stage at the given instant with no duration: the stage before it lasts until then.
func (r *Run) endEmpty(at time.Time) {
	n := len(r.Rec.Stages)
	before, now := &r.Rec.Stages[n-2], &r.Rec.Stages[n-1]
	r.edge = Later(at, r.edge)
	now.Start, now.Duration = r.edge.Sub(r.Rec.Origin), 0
	before.Duration = now.Start - before.Start
	r.Ended = true
}

func Later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
