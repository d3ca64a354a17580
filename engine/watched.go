package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/record"
)

// conclude closes the record: cut says why the watching ended before the migration did, nil if it did not.
func (w *watcher) conclude(ctx context.Context, cut error) error {
	r := w.run
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), run.UndoLimit)
	defer cancel()
	r.CatchUp()
	w.noteSplit()
	r.Decider = nil
	w.stages()
	guest := w.holder(ctx)
	if r.Split && r.Dst.Done() && r.Dst.Gone == nil {
		readFaultTimes(ctx, r)
	}
	r.Finish(ctx)
	r.Rec.GuestOn = guest
	w.name()
	w.doubts()
	outcome, cause := w.verdict(ctx, guest, cut)
	if r.Rec.Outcome = outcome; cause == nil {
		r.TellLife()
		return nil
	}
	err := &record.StageError{Stage: r.Rec.Stages[len(r.Rec.Stages)-1].Name, Guest: guest, Issued: true, Err: cause,
		Ended: outcome == record.GuestEnded}
	r.Rec.Error = &record.Error{Stage: err.Stage, Message: cause.Error()}
	if guest == record.None && r.Src.Gone == nil && !r.Split && r.Dst.Started().IsZero() {
		err.Mend = fmt.Sprintf("the source has all of it (%s): `cont` on %s runs it, if it surely runs nowhere else",
			r.Src.RunState, r.Src.Endpoint.Name)
		r.Rec.Error.Message += ": " + err.Mend
	}
	r.TellLife()
	return err
}

// verdict is what became of the migration, and why where it did not complete.
func (w *watcher) verdict(ctx context.Context, guest record.Holder, cut error) (record.Outcome, error) {
	src, dst := w.run.Src, w.run.Dst
	switch {
	case cut != nil:
		return record.Unfinished, fmt.Errorf("%w; the migration was not ended: the source says %q", cut, src.Status)
	case src.Gone != nil && !src.Done() && src.Shutdown != "" && src.Itself && guest != record.Destination:
		return record.GuestEnded, fmt.Errorf("%w: nothing was lost", w.run.HowEnded(src))
	case src.Done() && guest == record.Source:
		return record.Recovered, errors.New("somebody has continued the source, which had sent everything")
	case guest == record.Destination && (src.Done() || dst.Done()):
		return record.Completed, nil
	case src.Done() && dst.Gone == nil && !dst.Broke():
		return record.Completed, nil
	case src.Status == "cancelled":
		return record.Cancelled, errors.New("the migration was cancelled")
	case src.Gone != nil && !src.Done():
		return record.Failed, cmp.Or(w.run.HowEnded(src), src.Gone)
	case dst.Gone != nil && !src.Broke():
		return record.Failed, cmp.Or(w.run.HowEnded(dst), dst.Gone)
	}
	why := src.Failure(ctx)
	if why == "" {
		why = dst.Failure(ctx)
	}
	return record.Failed, errors.New("the migration failed: " + cmp.Or(why, "QEMU does not say why"))
}

// holder is the side that has the guest, by what both say now and have said.
func (w *watcher) holder(ctx context.Context) record.Holder {
	r := w.run
	src, dst := r.Src, r.Dst
	runs := func(s *run.Side) bool { // a source is in finish-migrate for a moment
		if s.Control == nil || s.Gone != nil {
			return false
		}
		status, err := s.Asked(ctx)
		s.RunState = cmp.Or(status.Status, s.RunState)
		return err == nil && status.Running
	}
	here, there := runs(src), runs(dst)
	split := r.Split && !dst.Started().IsZero()
	switch {
	case here && there:
		r.Rec.Warn("BOTH SIDES RUN THE GUEST: end one of them at once")
		return record.Unknown
	case here:
		return record.Source
	case there || split && dst.Gone == nil:
		return record.Destination
	case src.Done() && w.alone:
		return record.Destination
	case (src.Done() || src.Gone != nil) && dst.Done() && dst.Gone == nil:
		return record.Destination
	case (src.Done() || split) && dst.Gone != nil && dst.Over(ctx):
		return record.None
	case src.Gone != nil && !src.Done() && !w.alone && src.Over(ctx) && !dst.Done():
		return record.None
	case src.Gone != nil && !src.Done() && src.Stopped.IsZero() && !r.Split && !w.still && src.Over(ctx):
		return record.None // it was far from the end
	case src.Done() || src.Gone != nil || split || r.Split && w.alone:
		return record.Unknown
	}
	return record.Source
}

// stages derives the stages from the instants that the events told: those whose edges cannot be known are not there.
func (w *watcher) stages() {
	r := w.run
	src, dst := r.Src, r.Dst
	stop, ran, now := src.Stopped, dst.Started(), time.Now()
	came := r.Rec.Origin // when we came, or it began
	step := func(name record.StageName, until time.Time) {
		r.Begin(name)
		r.End(until)
	}
	both := run.Later(src.Completed, dst.Completed)
	end := both
	switch {
	case !r.Split && !ran.IsZero():
		end = ran
	case end.IsZero() || !src.Ended():
		end = now
	}
	if r.Split && (!src.Done() || !w.alone && !dst.Done()) {
		end = now
	}
	if !(r.Midway && (w.still || w.split)) {
		until := end
		if !stop.IsZero() {
			until = stop
		}
		step(record.PreCopy, until)
	}
	switch {
	case stop.IsZero() && !w.still: // it was not stopped, or in post-copy before we came
	case r.Split && (w.alone || r.Midway && ran.IsZero()): // when the destination ran is not known
	case r.Split:
		step(record.StopAndCopy, cmp.Or(ran, end))
	case src.Done() && dst.Done() && !ran.IsZero() && ran.After(both):
		step(record.StopAndCopy, both)
		step(record.Activation, ran)
	default:
		step(record.StopAndCopy, end)
	}
	if !r.Split || end.Before(cmp.Or(ran, came)) {
		return
	}
	name := record.PostCopy
	for _, t := range w.turns {
		step(name, t.at)
		if name = t.name; name == record.Recovery {
			r.Rec.PostCopy.Pauses++
		}
	}
	step(name, end)
}

// name finds out the mode, and derives the name from what was in force.
func (w *watcher) name() {
	r := w.run
	before := slices.IndexFunc(r.Rec.Passes, func(p record.Pass) bool { return p.Stopped || p.PostCopy })
	switch {
	case r.Split && before > 1:
		r.Rec.Mode = record.HybridMode
	case r.Split:
		r.Rec.Mode = record.PostCopyMode
	case w.still && w.state != "finish-migrate" && w.state != "postmigrate":
		r.Rec.Mode = record.StopAndCopyMode
	}
	r.Plan.Mode = r.Rec.Mode
	r.Rec.Name = r.Plan.Name()
}

// doubts says what this record lacks, and why.
func (w *watcher) doubts() {
	r := w.run
	if r.Midway {
		r.Rec.Warn("the migration was under way (%s) when watching began: what came before is not in this record",
			cmp.Or(r.Rec.Watched.Status, r.Src.Status))
	}
	if w.alone && (r.Src.Done() || r.Split) {
		r.Rec.Warn("the destination was not watched: there is no wire downtime, and when it ran the guest is not known")
	}
	for _, s := range []*run.Side{r.Src, r.Dst} {
		if on, known := w.heard[s]; known && !on {
			r.Rec.Warn("the %s's capability events is off: what its events would tell is known by query-migrate alone, and later",
				s.Role)
		}
	}
	if !w.alone && r.Src.Done() && !r.Dst.Done() && r.Dst.Gone == nil && facts.Idle(r.Dst.Status) {
		r.Rec.Warn("destination %s has heard nothing of this migration: the guest went to another QEMU", r.Dst.Endpoint.Name)
	}
	if r.Src.Done() && r.Rec.Total.QEMUTotal == nil {
		r.Rec.Warn("the source QEMU was gone before its last figures could be read: its totals and its own downtime are missing")
	}
}
