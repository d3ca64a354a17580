package run

import (
	"context"
	"fmt"
	"time"

	"qmigrate/qmp"
)

// stopSource stops a guest that is to be copied while it stands still. One that stands still already is held, and stays
// so. A guest that sleeps has no STOP before QEMU 9.0.
func (r *Run) stopSource(ctx context.Context) error {
	if r.CatchUp(); r.Src.Still() {
		status, err := r.Src.Asked(ctx)
		if err != nil {
			return fmt.Errorf("ask source why the guest stands still: %w", err)
		}
		if stands(status.Status) {
			r.Held = status.Status
			return nil
		}
	}
	r.Paused = true
	if err := r.Promptly(ctx, r.Src.Control.Stop); err != nil {
		return fmt.Errorf("stop source: %w", err)
	}
	r.PausedAt = time.Now()
	return r.Until(ctx, func() bool { return r.Src.Still() || !r.Src.Asleep.IsZero() })
}

func (r *Run) SendMigrate(ctx context.Context) error {
	r.Issued, r.IssuedAt = true, time.Now()
	// Whoever wants to stop waits a little for QEMU's answer, because a refusal means that what is under way is somebody
	// else's.
	patient, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { time.AfterFunc(AnswerLimit, func() { cancel(context.Cause(ctx)) }) })()
	if err := r.Promptly(patient, r.connect); err != nil {
		if qmp.IsRefusal(err) { // nothing of ours is under way: what QEMU says of a migration is somebody else's
			r.Issued = false
			info, asked := r.Src.Control.QueryMigrate(ctx)
			if asked == nil && info.Has.Contains(qmp.FieldTransferred) { // under way, or completed from here
				return fmt.Errorf("migrate to %s: %w (the source's migration is %s)", r.Plan.Connect, err, info.Status)
			}
		}
		return fmt.Errorf("migrate to %s: %w", r.Plan.Connect, err)
	}
	return r.Tells(ctx, r.Src)
}

// stopAgain stops a source that runs although the guest is the destination's: somebody has continued it, which QEMU
// does not refuse, or QEMU itself has. A post-copy whose link is lost while the source waits for the destination's
// last word fails there, and 10.0 and newer then run the guest (migration/migration.c, migration_completion and
// migration_iteration_finish).
func (r *Run) stopAgain() {
	ctx, cancel := context.WithTimeout(context.Background(), AnswerLimit)
	defer cancel()
	who, past := "somebody has continued the source", "somebody continued the source"
	if r.Split && (r.Src.Status == "failed" || r.Src.Status == "failing") {
		who, past = "the link was lost at the end of post-copy, and the source QEMU has continued its guest",
			"the link was lost at the end of post-copy, and the source QEMU continued its guest"
	}
	if err := r.Src.Control.Stop(ctx); err != nil {
		r.Rec.Warn("%s after the switch-over, and it does not stop (%v): THE GUEST RUNS TWICE: end %s", who, err,
			r.Src.Endpoint.Name)
	} else {
		r.Rec.Warn("%s after the switch-over: the guest ran twice until the source was stopped again; end %s", past,
			r.Src.Endpoint.Name)
	}
}

// Yank closes a side's migration connections, out of band.
func (r *Run) Yank(ctx context.Context, s *Side) {
	ctx, cancel := context.WithTimeout(ctx, AnswerLimit)
	defer cancel()
	instances := map[string]any{"instances": []map[string]string{{"type": "migration"}}}
	if err := s.Control.ExecuteOOB(ctx, "yank", instances, nil); err != nil {
		r.Log.Info("yank", "side", s.Role, "err", err)
	}
}
