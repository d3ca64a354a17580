package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"qmigrate/qmp"
)

// DrainFor is drain with a limit of its own.
func (r *Run) DrainFor(ctx context.Context, limit time.Duration, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return r.drain(ctx, done)
}

// drain takes in the events of both sides until done or ctx ends; unlike until it does not mind failures.
func (r *Run) drain(ctx context.Context, done func() bool) error {
	for !done() {
		select {
		case ev, ok := <-r.Src.C:
			r.Take(r.Src, ev, ok)
		case ev, ok := <-r.Dst.C:
			r.Take(r.Dst, ev, ok)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// ErrGaveUp is a policy's decision to leave the guest where it is.
var ErrGaveUp = errors.New("the policy gave up")

// ErrTimeout is the cause of a context that Plan.Timeout ended.
var ErrTimeout = errors.New("not converged within the time-out")

// CatchUp takes in the events that have come.
func (r *Run) CatchUp() {
	for {
		select {
		case ev, ok := <-r.Src.C:
			r.Take(r.Src, ev, ok)
		case ev, ok := <-r.Dst.C:
			r.Take(r.Dst, ev, ok)
		default:
			return
		}
	}
}

// Until takes in the events of both sides until done, or until one side has failed or gone away, or ctx ends.
func (r *Run) Until(ctx context.Context, done func() bool) error {
	for {
		if done() {
			return nil
		}
		if err := r.Broken(); err != nil {
			return err
		}
		if err := r.next(ctx, done); err != nil {
			return err
		}
	}
}

// Attend is Until for a migration that somebody else drives: a side that fails or goes away does not end it.
func (r *Run) Attend(ctx context.Context, done func() bool) error {
	for !done() {
		if err := r.next(ctx, done); err != nil {
			return err
		}
	}
	return nil
}

// next takes in one thing that comes: an event of either side, an answer, a sample.
func (r *Run) next(ctx context.Context, done func() bool) error {
	select {
	case ev, ok := <-r.Src.C:
		r.Take(r.Src, ev, ok)
	case ev, ok := <-r.Dst.C:
		r.Take(r.Dst, ev, ok)
	case state := <-r.Asked:
		if r.Asked = nil; stands(state) {
			r.Held = state
			r.speakAgain()
		}
	case x := <-r.observed():
		return r.Decider.Decide(ctx, x)
	case s := <-r.silent:
		if r.CatchUp(); done() { // nobody took in what came while a question waited for its answer
			return nil
		}
		return r.hangs(s)
	case <-r.Alarm:
		r.Alarm = nil
	case <-ctx.Done():
		return r.Cause(ctx)
	}
	return nil
}

// Cause says why ctx ended, with how far the migration had come when it was the plan's time-out.
func (r *Run) Cause(ctx context.Context) error {
	err := context.Cause(ctx)
	if errors.Is(err, ErrNotInStep) {
		return fmt.Errorf("%w of %s: raise timeout, or let the guest's writes wait for the copy: copy-mode=write-blocking",
			err, r.Plan.Timeout)
	}
	if errors.Is(err, ErrTimeout) {
		return fmt.Errorf("%w of %s (pass %d): raise timeout, max-bandwidth or downtime-limit", err, r.Plan.Timeout,
			len(r.Passes))
	}
	return err
}

// Broken is why the migration cannot go on, as far as the events told.
func (r *Run) Broken() error {
	for _, s := range []*Side{r.Src, r.Dst} {
		failed, cancelled := s.Broke(), s.Status == "cancelled" || s.Status == "cancelling"
		switch {
		case s.Shutdown != "" && !s.LivesOn() && (failed || cancelled), // it ends its migration on its way out
			s.Shutdown != "" && s.Gone != nil && (s.Itself || s == r.Dst || !s.Done()):
			return r.HowEnded(s)
		case failed:
			return fmt.Errorf("%s QEMU: migration failed%s", s.Role, s.why())
		case cancelled:
			return fmt.Errorf("%s QEMU: migration was cancelled by somebody else", s.Role)
		}
	}
	if r.Src.Gone != nil && r.Src.Status != "completed" {
		return r.Src.Gone
	}
	if r.Dst.Gone != nil {
		return r.Dst.Gone
	}
	for _, f := range r.Features {
		if err := f.Broken(); err != nil {
			return err
		}
	}
	return nil
}

// Take notes one event.
func (r *Run) Take(s *Side, ev qmp.Event, ok bool) {
	if !ok {
		s.lost()
		return
	}
	at := s.at(ev)
	r.Log.Debug("event", "side", s.Role, "name", ev.Name, "data", string(ev.Data), "lag", ev.Arrived.Sub(at))
	for _, f := range r.Features {
		f.Take(s, ev, at)
	}
	if s == r.Src && ev.Name == "RESUME" {
		r.Asked = nil // an answer to a question about the STOP before it would be stale
		if !r.undoing {
			r.Held = ""
		}
	}
	if s == r.Src && ev.Name == "RESUME" && r.Committed {
		defer r.stopAgain()
	}
	if pass, ok := s.take(ev, at, r.undisturbed(s)); ok && s == r.Src {
		r.Passes = append(r.Passes, PassEdge{Raw: pass, At: at})
		r.Poll.kick()
	}
	r.hush(s, ev)
}

// undisturbed tells whether a RESUME of this side now is not the migration's own: its undo's, a failure's, or the
// destination's first.
func (r *Run) undisturbed(s *Side) bool {
	switch {
	case r.undoing:
		return false
	case s == r.Dst:
		return !s.started.IsZero()
	}
	return slices.Contains([]string{"", "none", "setup", "active"}, s.Status)
}

// ErrNotInStep is the cause of a context that Plan.Timeout ended before the disks were the same.
var ErrNotInStep = errors.New("the disks are not in step within the time-out")

// Arrived tells whether the destination has all of the guest.
func (r *Run) Arrived() bool { return r.Src.Done() && r.Dst.Done() }
