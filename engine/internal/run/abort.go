package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/holder"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// Verdict is where an undo left the guest, and what remains to be done by hand.
type Verdict struct {
	Guest   record.Holder
	Mend    string
	Outcome record.Outcome // if it does not follow from guest and cause
	Ended   *Side          // GuestEnded: where
}

// Abort brings the guest back to where it can run, whatever the failure, and says where that is. Ctrl-C does not stop
// it.
func (r *Run) Abort(ctx context.Context, cause error) error { return r.AbortIn(ctx, r.stage(), cause) }

// AbortIn is abort for a failure that belongs to another stage than the last one.
func (r *Run) AbortIn(ctx context.Context, name record.StageName, cause error) error {
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), UndoLimit+r.Src.Endpoint.Again+r.Dst.Endpoint.Again)
	defer cancel()
	r.Unwatch()
	r.CatchUp()
	if s := r.Src; s.Shutdown != "" && !s.LivesOn() && !s.Done() { // the destination may have failed of it first
		cause = r.HowEnded(s)
	}
	r.undoing = true
	if reason := r.Dst.why(); reason != "" && r.Listening && !strings.Contains(cause.Error(), reason) {
		cause = fmt.Errorf("%w (destination QEMU%s)", cause, reason)
	}
	for _, f := range r.Features {
		cause = f.Explain(undo, cause)
		f.Free(undo)
	}
	v := r.Undo(undo)
	if v.Outcome == record.GuestEnded {
		cause = fmt.Errorf("%w: nothing was lost", r.HowEnded(v.Ended)) // not what broke because of it
	}
	r.End(time.Now()) // the stage that failed lasts until the guest is where it can run
	for _, f := range r.Features {
		f.Undo(undo)
	}
	r.Finish(undo)
	r.Rec.GuestOn = v.Guest
	r.Rec.Error = &record.Error{Stage: name, Message: cause.Error()}
	switch {
	case v.Outcome != "":
		r.Rec.Outcome = v.Outcome
	case v.Guest == record.Destination, name == record.Commitment && v.Guest == record.Source, r.ContSent &&
		v.Guest == record.Source:
		r.Rec.Outcome = record.Recovered
	case v.Guest == record.Source && gaveUp(cause):
		r.Rec.Outcome = record.Cancelled
	default:
		r.Rec.Outcome = record.Failed
	}
	err := &record.StageError{Stage: name, Guest: v.Guest, Issued: !r.IssuedAt.IsZero(), Err: cause, Mend: v.Mend,
		Ended: v.Outcome == record.GuestEnded}
	if v.Mend != "" {
		r.Rec.Error.Message += ": " + v.Mend
	}
	r.TellLife()
	r.Log.Info("aborted", "stage", name, "guest", v.Guest, "cause", cause)
	return err
}

// EndSource ends the source's migration: by `migrate_cancel`; if the source hangs in a write to a destination that
// hangs, by `yank`, which QEMU takes out of band and which closes the migration's connection. The error is QEMU's
// refusal.
func (r *Run) EndSource(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, AnswerLimit)
	defer cancel()
	err := r.Src.Control.MigrateCancel(limited)
	if qmp.IsRefusal(err) { // post-copy, on 10.0 and newer
		return err
	}
	jams := r.Split && r.Src.Facts.Jams()
	if limited.Err() != nil && !jams { // it hangs
		r.Yank(ctx, r.Src)
		_ = r.DrainFor(ctx, AnswerLimit, r.Src.Ended)
		return err
	}
	if info, err := r.Src.Control.QueryMigrate(limited); err == nil {
		switch info.Status {
		case "", "none": // `migrate` was refused, or never got there, and no event will tell of it
			r.Src.Status = "none"
		case "cancelled", "failed": // or this is how a former migration ended
			r.Src.Status = info.Status
		}
	}
	if r.DrainFor(ctx, AnswerLimit, r.Src.Ended) == nil || jams {
		return err
	}
	r.Yank(ctx, r.Src)
	_ = r.DrainFor(ctx, AnswerLimit, r.Src.Ended)
	return err
}

// ContinueSource makes the source run the guest, as it did before; the caller has seen to the fence.
func (r *Run) ContinueSource(ctx context.Context) Verdict {
	if !r.Src.Facts.Live() || r.Held != "" {
		return Verdict{Guest: record.Source}
	}
	if err := Resume(ctx, r.Src); err != nil {
		switch {
		case r.Src.Control.Err() == nil:
			return Verdict{Guest: record.None, Mend: fmt.Sprintf("it is paused on the source, which does not continue it "+
				"(%v): `cont` on %s, the destination is dead", err, r.Src.Endpoint.Name)}
		case r.Src.Dead(ctx):
			return Verdict{Guest: record.None, Mend: fmt.Sprintf("it is lost: the source QEMU died too (%v)", err)}
		}
		return Verdict{Guest: record.Unknown, Mend: fmt.Sprintf("the destination is dead and the source's monitor was lost "+
			"(%v): ask %s for query-status, `cont` runs it", err, r.Src.Endpoint.Name)}
	}
	return Verdict{Guest: record.Source}
}

// Resume makes a QEMU run its guest. QEMU continues by itself when a migration fails, a moment after it says so, so a
// `cont` that it refuses is tried again. One that still waits for its guest only notes the `cont`.
func Resume(ctx context.Context, s *Side) error {
	var refused error
	state := ""
	for range 100 {
		status, err := s.Asked(ctx)
		if err != nil {
			return err
		}
		if state = status.Status; status.Running || state == facts.Asleep { // which takes a `cont`, and sleeps on
			return nil
		}
		limited, cancel := context.WithTimeout(ctx, AnswerLimit)
		refused = s.Control.Cont(limited)
		cancel()
		if refused == nil && state == string(holder.InMigrate) {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return cmp.Or(refused, ctx.Err())
		}
	}
	if refused == nil {
		refused = &qmp.CommandError{Command: "cont", Class: "GenericError",
			Desc: "it takes `cont` and does not stay running: " + state}
	}
	return refused
}

// Untouched tells whether the source has never connected to this destination.
func (s *Side) Untouched(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, AnswerLimit)
	defer cancel()
	info, err := s.Control.QueryMigrate(ctx)
	return err == nil && (info.Status == "setup" || info.Status == "none" || info.Status == "")
}

// Ended tells whether this side's migration has come to an end, or its monitor has.
func (s *Side) Ended() bool {
	switch s.Status {
	case "completed", "failed", "cancelled", "none":
		return true
	}
	return s.Gone != nil
}

// gaveUp tells whether a failure is a wish: ours, the plan's time-out's or the policy's.
func gaveUp(cause error) bool {
	return errors.Is(cause, context.Canceled) || errors.Is(cause, ErrTimeout) || errors.Is(cause, ErrGaveUp) ||
		errors.Is(cause, ErrNotInStep)
}
