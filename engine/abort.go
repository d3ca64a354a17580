package engine

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/holder"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// verdict is where an undo left the guest, and what remains to be done by hand.
type verdict struct {
	guest   record.Holder
	mend    string
	outcome record.Outcome // if it does not follow from guest and cause
	ended   *side          // GuestEnded: where
}

// abort brings the guest back to where it can run, whatever the failure, and says where that is. Ctrl-C does not stop it.
func (m *migration) abort(ctx context.Context, name record.StageName, cause error) error {
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	m.unwatch()
	m.catchUp()
	if s := m.src; s.shutdown != "" && !s.livesOn() && !s.done() { // the destination may have failed of it first
		cause = m.howEnded(s)
	}
	m.undoing = true
	if reason := m.dst.why(); reason != "" && m.listening && !strings.Contains(cause.Error(), reason) {
		cause = fmt.Errorf("%w (destination QEMU%s)", cause, reason)
	}
	cause = m.explain(undo, cause)
	if m.mirrored && !m.issued && !m.paused && m.dropMirrors(undo) == nil { // they may hold the main loop of a source whose guest runs
		m.mirrored = false
	}
	v := m.undo(undo)
	if v.outcome == record.GuestEnded {
		cause = fmt.Errorf("%w: nothing was lost", m.howEnded(v.ended)) // not what broke because of it
	}
	m.end(time.Now()) // the stage that failed lasts until the guest is where it can run
	m.undoMirrors(undo)
	m.finish(undo)
	m.rec.GuestOn = v.guest
	m.rec.Error = &record.Error{Stage: name, Message: cause.Error()}
	switch {
	case v.outcome != "":
		m.rec.Outcome = v.outcome
	case v.guest == record.Destination, name == record.Commitment && v.guest == record.Source, m.contSent && v.guest == record.Source:
		m.rec.Outcome = record.Recovered
	case v.guest == record.Source && gaveUp(cause):
		m.rec.Outcome = record.Cancelled
	default:
		m.rec.Outcome = record.Failed
	}
	err := &record.StageError{Stage: name, Guest: v.guest, Issued: !m.issuedAt.IsZero(), Err: cause, Mend: v.mend, Ended: v.outcome == record.GuestEnded}
	if v.mend != "" {
		m.rec.Error.Message += ": " + v.mend
	}
	m.tellLife()
	m.log.Info("aborted", "stage", name, "guest", v.guest, "cause", cause)
	return err
}

// endSource ends the source's migration: by `migrate_cancel`; if the source hangs in a write to a destination that hangs, by `yank`,
// which QEMU takes out of band and which closes the migration's connection. The error is QEMU's refusal.
func (m *migration) endSource(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	err := m.src.control.MigrateCancel(limited)
	if qmp.IsRefusal(err) { // post-copy, on 10.0 and newer
		return err
	}
	jams := m.split && m.src.facts.Jams()
	if limited.Err() != nil && !jams { // it hangs
		m.yank(ctx, m.src)
		_ = m.drainFor(ctx, answerLimit, m.src.ended)
		return err
	}
	if info, err := m.src.control.QueryMigrate(limited); err == nil {
		switch info.Status {
		case "", "none": // `migrate` was refused, or never got there, and no event will tell of it
			m.src.status = "none"
		case "cancelled", "failed": // or this is how a former migration ended
			m.src.status = info.Status
		}
	}
	if m.drainFor(ctx, answerLimit, m.src.ended) == nil || jams {
		return err
	}
	m.yank(ctx, m.src)
	_ = m.drainFor(ctx, answerLimit, m.src.ended)
	return err
}

// continueSource makes the source run the guest, as it did before; the caller has seen to the fence.
func (m *migration) continueSource(ctx context.Context) verdict {
	if !m.src.facts.Live() || m.held != "" {
		return verdict{guest: record.Source}
	}
	if err := resume(ctx, m.src); err != nil {
		switch {
		case m.src.control.Err() == nil:
			return verdict{guest: record.None, mend: fmt.Sprintf("it is paused on the source, which does not continue it (%v): `cont` on %s, the destination is dead", err, m.src.ep.Name)}
		case m.src.dead(ctx):
			return verdict{guest: record.None, mend: fmt.Sprintf("it is lost: the source QEMU died too (%v)", err)}
		}
		return verdict{guest: record.Unknown, mend: fmt.Sprintf("the destination is dead and the source's monitor was lost (%v): ask %s for query-status, `cont` runs it", err, m.src.ep.Name)}
	}
	return verdict{guest: record.Source}
}

// resume makes a QEMU run its guest. QEMU continues by itself when a migration fails, a moment after it says so, so a `cont`
// that it refuses is tried again. One that still waits for its guest only notes the `cont`.
func resume(ctx context.Context, s *side) error {
	var refused error
	state := ""
	for range 100 {
		status, err := s.asked(ctx)
		if err != nil {
			return err
		}
		if state = status.Status; status.Running || state == facts.Asleep { // which takes a `cont`, and sleeps on
			return nil
		}
		limited, cancel := context.WithTimeout(ctx, answerLimit)
		refused = s.control.Cont(limited)
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
		refused = &qmp.CommandError{Command: "cont", Class: "GenericError", Desc: "it takes `cont` and does not stay running: " + state}
	}
	return refused
}

// untouched tells whether the source has never connected to this destination.
func (s *side) untouched(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	info, err := s.control.QueryMigrate(ctx)
	return err == nil && (info.Status == "setup" || info.Status == "none" || info.Status == "")
}

// drainFor is drain with a limit of its own.
func (m *migration) drainFor(ctx context.Context, limit time.Duration, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return m.drain(ctx, done)
}

// drain takes in the events of both sides until done or ctx ends; unlike until it does not mind failures.
func (m *migration) drain(ctx context.Context, done func() bool) error {
	for !done() {
		select {
		case ev, ok := <-m.src.C:
			m.take(m.src, ev, ok)
		case ev, ok := <-m.dst.C:
			m.take(m.dst, ev, ok)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// ended tells whether this side's migration has come to an end, or its monitor has.
func (s *side) ended() bool {
	switch s.status {
	case "completed", "failed", "cancelled", "none":
		return true
	}
	return s.gone != nil
}
