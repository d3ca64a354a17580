package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"qmigrate/engine/record"
)

// verdictLimit is how long the destination may take to say whether it had everything when the source died.
const verdictLimit = 5 * time.Second

// verdict is where an undo left the guest, and what remains to be done by hand.
type verdict struct {
	guest   record.Holder
	mend    string
	outcome record.Outcome // if it does not follow from guest and cause
}

// abort brings the guest back to where it can run, whatever the failure, and says where that is. Ctrl-C does not stop it.
func (m *migration) abort(ctx context.Context, name record.StageName, cause error) error {
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	m.unwatch()
	if reason := m.dst.why(); reason != "" && m.listening && !strings.Contains(cause.Error(), reason) {
		cause = fmt.Errorf("%w (destination QEMU%s)", cause, reason)
	}
	cause = m.explain(undo, cause)
	v := m.undo(undo)
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
	err := &StageError{Stage: name, Guest: v.guest, Issued: m.issued, Err: cause, Mend: v.mend}
	if v.mend != "" {
		m.rec.Error.Message += ": " + v.mend
	}
	m.log.Info("aborted", "stage", name, "guest", v.guest, "cause", cause)
	return err
}

// settle decides where the guest is to run, by what was sent and who is left. Why it is safe is docs/decisions/0002-who-holds-the-guest.md.
//
//	`migrate` not sent              the source never lost the guest, and is continued if we stopped it
//	`migrate` sent, `cont` not      the destination never ran: it is ended, then the source goes on; if the source has died, the
//	                                destination takes over when it has everything
//	`cont` sent                     the destination may have run: only if it surely did not does the source go on
//	post-copy begun                 afterSwitch has its own table
func (m *migration) settle(ctx context.Context) verdict {
	if m.src.facts == nil {
		return verdict{guest: record.Unknown, mend: "the source was not reached, and nothing was changed"}
	}
	m.look(ctx)
	switch {
	case !m.issued:
		return m.release(ctx)
	case m.split:
		return m.afterSwitch(ctx)
	case m.contSent || !m.dst.resumed.IsZero(): // by us, or by somebody else
		return m.afterCont(ctx)
	case m.src.gone != nil:
		return m.takeOver(ctx)
	default:
		return m.rollBack(ctx)
	}
}

// look finds out who is left: of a side whose monitor has ended, whether it is dead, and if not, what it says when it is reached again.
func (m *migration) look(ctx context.Context) {
	m.catchUp()
	for _, s := range []*side{m.src, m.dst} {
		if s.facts == nil {
			continue
		}
		_, _ = s.asked(ctx) // a QEMU that was just killed is found out
		if s.reached() {
			continue
		}
		if !s.dead(ctx) {
			limited, cancel := context.WithTimeout(ctx, answerLimit)
			m.stopPolling(limited) // it uses the monitors
			cancel()
			s.regain(ctx)
			m.log.Info("monitor was lost", "side", s.role, "regained", s.gone == nil)
		}
	}
	m.settled(ctx)
}

// settled takes in every event of a side that has died: the socket still holds what QEMU sent.
func (m *migration) settled(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	_ = m.drain(ctx, func() bool {
		for _, s := range []*side{m.src, m.dst} {
			if s.C != nil && !s.reached() {
				return false
			}
		}
		return true
	})
}

// release undoes what came before `migrate`: a destination that was told to listen is of no more use and is ended; a source
// that we stopped goes on.
func (m *migration) release(ctx context.Context) verdict {
	if m.listening {
		if err := m.dst.kill(ctx); err != nil {
			m.rec.Warn("the destination QEMU still waits for a migration: %v", err)
		}
	}
	switch {
	case m.src.gone != nil && m.src.dead(ctx):
		return verdict{guest: record.None, mend: "it is lost: the source QEMU died before any of it was sent"}
	case m.src.gone != nil:
		return verdict{guest: record.Unknown, mend: fmt.Sprintf("the source's monitor was lost and nothing was sent: if that QEMU lives, it holds the guest: ask %s for query-status", m.src.ep.Name)}
	case m.paused:
		return m.continueSource(ctx)
	case m.src.facts.RunState != "inmigrate" && m.src.facts.RunState != "postmigrate":
		return verdict{guest: record.Source}
	case m.dst.facts != nil && m.dst.facts.Running:
		return verdict{guest: record.Destination}
	}
	return verdict{guest: record.Unknown} // the source is not the one that has it, and the error says so
}

// rollBack ends the migration and the destination, and sees to it that the source runs the guest.
func (m *migration) rollBack(ctx context.Context) verdict {
	m.endSource(ctx)
	if m.src.gone != nil {
		return m.takeOver(ctx)
	}
	if _, err := m.src.asked(ctx); err != nil && !m.src.ended() && m.dst.done() && m.dst.gone == nil { // it may be dead, its host above all, and then the destination has the only guest
		return verdict{guest: record.Unknown, mend: fmt.Sprintf("the source does not answer, and the destination holds all of it, paused: `qmigrate migrate --recover` runs it where that is safe once the source answers; if the source QEMU is surely dead, `cont` on %s", m.dst.ep.Name)}
	}
	// The fence: the source is continued only after the destination is known dead. A destination that hangs may hold the
	// source in its last write, and lets it go with its own end.
	fence := m.dst.kill(ctx)
	if !m.src.ended() {
		if err := m.drainFor(ctx, killLimit, m.src.ended); err != nil {
			return verdict{guest: record.Unknown, mend: fmt.Sprintf("the source does not end its migration: the guest is its own; ask %s for query-status", m.src.ep.Name)}
		}
		if m.src.gone != nil {
			return m.takeOver(ctx)
		}
	}
	if fence != nil {
		if status, err := m.src.asked(ctx); err == nil && status.Running {
			m.rec.Warn("the destination QEMU is paused and was not ended: %v", fence)
			return verdict{guest: record.Source}
		}
		return verdict{guest: record.None, mend: fmt.Sprintf("it is paused on both sides, for the destination could not be ended (%v): end the destination QEMU, then `cont` on %s", fence, m.src.ep.Name)}
	}
	return m.continueSource(ctx)
}

// endSource ends the source's migration: by `migrate_cancel`; if the source hangs in a write to a destination that hangs, by `yank`,
// which QEMU takes out of band and which closes the migration's connection.
func (m *migration) endSource(ctx context.Context) {
	if m.src.ended() {
		return
	}
	limited, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if err := m.src.control.MigrateCancel(limited); err != nil {
		m.log.Info("cancel", "err", err)
	}
	if info, err := m.src.control.QueryMigrate(limited); err == nil {
		switch info.Status {
		case "", "none": // `migrate` was refused, or never got there, and no event will tell of it
			m.src.status = "none"
		case "cancelled", "failed": // or this is how a former migration ended
			m.src.status = info.Status
		}
	}
	if m.drainFor(ctx, answerLimit, m.src.ended) == nil {
		return
	}
	m.yank(ctx, m.src)
	_ = m.drainFor(ctx, answerLimit, m.src.ended)
}

// continueSource makes the source run the guest, as it did before; the caller has seen to the fence.
func (m *migration) continueSource(ctx context.Context) verdict {
	if !m.src.facts.Running || m.held {
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
// that it refuses is tried again.
func resume(ctx context.Context, s *side) error {
	var refused error
	for range 100 {
		status, err := s.asked(ctx)
		if err != nil {
			return err
		}
		if status.Running {
			return nil
		}
		limited, cancel := context.WithTimeout(ctx, answerLimit)
		refused = s.control.Cont(limited)
		cancel()
		if refused != nil {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return errors.Join(refused, ctx.Err())
			}
		}
	}
	return refused
}

// takeOver is for a source that has gone away: the destination runs the guest if it has all of it and the source surely
// runs it no more.
func (m *migration) takeOver(ctx context.Context) verdict {
	dead := m.src.over(ctx)
	waited := m.drainFor(ctx, verdictLimit, m.dst.ended)
	if waited != nil && m.dst.untouched(ctx) { // asked after the wait, for a connection may lie in its queue
		waited = nil
	}
	switch {
	case m.dst.done() && m.dst.gone == nil: // it has all of it
	case dead && (m.dst.gone == nil || m.dst.over(ctx)) && waited == nil:
		if m.dst.gone != nil {
			return verdict{guest: record.None, mend: "it is lost: both QEMUs died"}
		}
		_ = m.dst.kill(ctx)
		return verdict{guest: record.None, mend: "it is lost: the source QEMU died before the destination had all of it"}
	case dead:
		return verdict{guest: record.None, mend: fmt.Sprintf("the source QEMU died, and the destination does not say whether it has all of it: when query-migrate on %s says completed, `qmigrate migrate --recover` runs it", m.dst.ep.Name)}
	default:
		return verdict{guest: record.Unknown, mend: fmt.Sprintf("the source's monitor was lost and the destination has not all of it: if that QEMU lives, it holds the guest: ask %s for query-status", m.src.ep.Name)}
	}
	if m.src.status != "completed" && !dead {
		return verdict{guest: record.None, mend: fmt.Sprintf("the destination holds all of it, paused, but the source's monitor was lost and its process is not known dead: make sure that it is, then `cont` on %s", m.dst.ep.Name)}
	}
	if !m.src.facts.Running || m.held {
		return verdict{guest: record.Destination}
	}
	m.contSent = true
	if err := resume(ctx, m.dst); err != nil {
		if m.dst.control.Err() != nil && m.dst.dead(ctx) {
			return verdict{guest: record.None, mend: fmt.Sprintf("it is lost: both QEMUs died (%v)", err)}
		}
		return verdict{guest: record.None, mend: fmt.Sprintf("the source is dead and the destination does not start (%v): `cont` on %s", err, m.dst.ep.Name)}
	}
	return verdict{guest: record.Destination}
}

// untouched tells whether the source has never connected to this destination.
func (s *side) untouched(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	info, err := s.control.QueryMigrate(ctx)
	return err == nil && (info.Status == "setup" || info.Status == "none" || info.Status == "")
}

// afterCont is for a failure after `cont` was sent. QEMU sends RESUME before it lets the vCPUs go (vm_prepare_start in
// system/cpus.c; seen to hold on 7.2.22 and 10.0.2), so a destination that is dead without one has never run, and the source may go on. That
// holds only if every event has been seen up to its death.
func (m *migration) afterCont(ctx context.Context) verdict {
	unsure := verdict{guest: record.Unknown, mend: fmt.Sprintf("the destination was told to run it, cannot be asked any more, and is not known dead: ask %s for query-status; if that QEMU is surely dead, `cont` on %s goes back to when the source stopped", m.dst.ep.Name, m.src.ep.Name)}
	if m.dst.gone == nil {
		status, err := m.dst.asked(ctx)
		m.catchUp()
		switch {
		case err == nil && status.Running:
			return verdict{guest: record.Destination}
		case err == nil && m.dst.blind && resume(ctx, m.dst) == nil: // the `cont` may have been lost with the monitor
			return verdict{guest: record.Destination}
		case err == nil && (m.dst.blind || !m.dst.resumed.IsZero()):
			return verdict{guest: record.Destination, mend: fmt.Sprintf("it is there, %s: `cont` on %s", status.Status, m.dst.ep.Name)}
		case m.dst.control.Err() == nil && !m.dst.resumed.IsZero():
			return verdict{guest: record.Destination, mend: fmt.Sprintf("it was started there, and %s does not answer since", m.dst.ep.Name)}
		case m.dst.control.Err() == nil && err != nil && m.dst.ep.Process == nil:
			// It can be asked to quit only, and would obey right after the `cont`. If it wakes it had better run the guest.
			return unsure
		}
	}
	if err := m.dst.kill(ctx); err != nil || !m.dst.over(ctx) {
		return unsure
	}
	_ = m.drainFor(ctx, killLimit, func() bool { return m.dst.gone != nil }) // every event that it sent before it died
	if !m.dst.resumed.IsZero() || m.dst.gone == nil || m.dst.blind || m.dst.sub.Dropped() > 0 {
		ran := "it ran"
		if m.dst.resumed.IsZero() {
			ran = "it may have run"
		}
		return verdict{guest: record.None, mend: fmt.Sprintf("%s on the destination, which died. The source holds it as it was when it stopped; `cont` on %s goes back to then, which is safe only if nothing outside it, a disk above all, has seen what it did since", ran, m.src.ep.Name)}
	}
	switch {
	case m.src.gone == nil:
		return m.continueSource(ctx)
	case m.src.dead(ctx):
		return verdict{guest: record.None, mend: "it is lost: both QEMUs died"}
	}
	return verdict{guest: record.Unknown, mend: fmt.Sprintf("the destination died before it ran, and the source's monitor was lost: if that QEMU lives, `cont` on %s runs it", m.src.ep.Name)}
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
