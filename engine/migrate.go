package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/holder"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
)

// migration is one hand-over from the source to the destination.
type migration struct {
	run      *run.Run
	security *security
	policy   *converging
	mirrors  *mirrors
	traces   *traces
	mendBy   time.Time // when a post-copy that lost its link is given up; zero: something was sent since the last mend
}

// stage is one row of the line: a step, and the condition under which it is there.
type stage struct {
	name record.StageName
	when func() bool
	run  func(context.Context) error
}

func always() bool { return true }

// Migrate moves the guest behind src to dst in the six stages of Clark et al., NSDI 2005. Until commitment an error
// leaves the guest running on src, after it on dst, and never on both. A guest that was paused moves and stays paused.
// The record is returned also with an error, which is a *record.StageError.
func Migrate(ctx context.Context, src, dst *endpoint.Endpoint, p plan.Plan, o plan.Options) (*record.Migration, error) {
	m := newMigration(src, dst, p, o)
	defer m.run.Close()
	for _, s := range []stage{
		{record.Initialization, always, m.initialize},       // both monitors answer; versions, capabilities and machine agree
		{record.Reservation, always, m.reserve},             // both sides configured, dst listens
		{record.Storage, m.mirrors.wanted, m.mirrors.start}, // disks are copied until they are in step
		{record.PreCopy, m.running, m.preCopy},              // passes while the guest runs, until QEMU stops it
		{record.PreCopy, m.standing, m.run.StandStill},      // or none: the guest stands still before it is copied
		{record.StopAndCopy, m.whole, m.stopAndCopy},        // STOP .. both completed: last pages and device state
		{record.StopAndCopy, m.parted, m.handOverGuest},     // or STOP .. dst has all but memory
		{record.Commitment, always, m.commit},               // src stopped and dst has it: from here dst runs the guest
		{record.Activation, always, m.activate},             // our cont on dst .. RESUME
		{record.PostCopy, m.parted, m.follow},               // the rest of the memory follows the guest
	} {
		if !s.when() {
			continue
		}
		if err := m.run.Do(ctx, s.name, s.run); err != nil {
			return m.run.Rec, m.run.Abort(ctx, err)
		}
	}
	return m.run.Rec, m.verdict(ctx)
}

// newMigration is a run with the features that a migration may have, in the order in which they are asked.
func newMigration(src, dst *endpoint.Endpoint, p plan.Plan, o plan.Options) *migration {
	r := run.New(src, dst, p, o)
	m := &migration{run: r, security: &security{run: r}, policy: &converging{run: r}, mirrors: &mirrors{run: r},
		traces: &traces{run: r}}
	r.Features = []run.Feature{m.traces, m.security, m.policy, m.mirrors} // a log that is not a QEMU's is refused first
	r.Undo = r.Settle
	if r.Plan.PostCopies() {
		r.Rec.PostCopy = &record.PostCopyFigures{}
	}
	return m
}

// verdict is the end of a migration that went through all its stages: the last figures, and a last look at both sides
// when everything that takes time is done.
func (m *migration) verdict(ctx context.Context) error {
	m.run.Finish(ctx)
	if err := m.confirm(ctx); err != nil {
		return m.run.AbortIn(ctx, record.Activation, err)
	}
	m.run.Rec.Outcome, m.run.Rec.GuestOn = record.Completed, record.Destination
	m.run.TellLife()
	return nil
}

// standing tells whether the guest is copied while it stands still: there are no passes that a policy could end.
func (m *migration) standing() bool { return m.run.Plan.StopsFirst() || !m.run.Src.Facts.Live() }

func (m *migration) running() bool { return !m.standing() }

// parted tells whether the migration has gone over to post-copy: from then on each side has a part of the guest.
func (m *migration) parted() bool { return m.run.Split }

func (m *migration) whole() bool { return !m.parted() }

// preCopy sends `migrate` and waits for the guest to be stopped by QEMU's own rule.
func (m *migration) preCopy(ctx context.Context) error {
	m.run.StartPolling(ctx)
	m.run.Watch(ctx)
	m.policy.start()
	defer m.policy.stop()
	limited := ctx
	if m.run.Plan.Timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, m.run.Plan.Timeout, run.ErrTimeout)
		defer cancel()
	}
	if err := m.run.SendMigrate(limited); err != nil {
		return err
	}
	if s := m.run.Plan.Splits(); s != nil && s.Time > 0 {
		alarm := time.NewTimer(s.Time)
		defer alarm.Stop()
		m.run.Alarm = alarm.C
	}
	for {
		if err := m.run.Until(limited, func() bool { return m.run.Src.Still() || m.due() || m.run.Src.Done() }); err != nil {
			return err
		}
		if m.run.Src.Done() && m.run.Src.Again() {
			return errors.New("somebody has continued the source, which had sent everything")
		}
		if m.due() {
			if err := m.startPostCopy(ctx); err != nil {
				return err
			}
			ctx = context.WithoutCancel(ctx)
			limited = ctx
			if err := m.handOver(ctx, m.run.Src.Still); err != nil {
				return err
			}
			continue
		}
		if err := m.whoStopped(ctx, limited); err != nil {
			return err
		}
		if !m.run.Src.Again() {
			m.run.End(m.run.Src.Stopped)
			return nil
		}
	}
}

// whoStopped finds out after a STOP whether it was the switch-over's or somebody else's `stop`. The source is asked,
// but not waited for: during the switch-over it answers late, and then the events have told. A guest that somebody
// holds is copied on until he continues it, or until the switch-over comes and it moves as it is: paused.
func (m *migration) whoStopped(ctx, limited context.Context) error {
	asked, control := make(chan string, 1), m.run.Src.Control // an undo may replace that one
	m.run.Asked = asked
	go func() {
		status, _ := control.QueryStatus(ctx) // without an answer the status is empty
		asked <- status.Status
	}()
	switching := func() bool {
		return m.run.Src.Again() || m.run.Src.HandedOver() ||
			slices.Contains([]string{"device", "postcopy-device", "pre-switchover"}, m.run.Src.Status)
	}
	wait := m.run.Until
	if m.run.Split { // which nobody can cancel
		wait = m.handOver
	}
	if err := wait(ctx, func() bool { return m.run.Asked == nil || switching() }); err != nil || m.run.Held == "" {
		return err
	}
	return wait(limited, switching)
}

// sendRest waits until the source has sent everything. A link that was lost without notice holds it for ever: in a
// write, or for the destination's last word. So a source that answers and has sent nothing for the limit of hanging
// is given up. One that does not answer is at its switch-over.
func (m *migration) sendRest(ctx context.Context) error {
	for sent, moved := int64(-1), time.Now(); ; {
		limited, cancel := context.WithTimeoutCause(ctx, run.AnswerLimit, errOnTheWay)
		err := m.run.Until(limited, m.run.Src.Done)
		cancel()
		if !errors.Is(err, errOnTheWay) {
			return err
		}
		asked, cancel := context.WithTimeout(ctx, run.AnswerLimit)
		info, err := m.run.Src.Control.QueryMigrate(asked)
		cancel()
		switch limit := m.run.Plan.HangLimit(); {
		case err != nil || info.Transferred != sent:
			moved = time.Now()
			if err == nil {
				sent = info.Transferred
			}
		case time.Since(moved) > limit && m.run.Dst.Done():
			return fmt.Errorf("the destination has all of it, and the source does not say so within %s: its link is lost", limit)
		case time.Since(moved) > limit:
			return fmt.Errorf("the source has stopped the guest and has sent nothing for %s: its link is lost", limit)
		}
	}
}

// stopAndCopy waits until the source has sent everything and the destination has loaded it.
func (m *migration) stopAndCopy(ctx context.Context) error {
	if !m.run.Issued {
		if err := m.run.SendMigrate(ctx); err != nil {
			return err
		}
	}
	if err := m.pastSwitchover(ctx, m.run.Until); err != nil {
		return err
	}
	if err := m.sendRest(ctx); err != nil {
		return err
	}
	if err := m.arrive(ctx); err != nil {
		return err
	}
	m.run.Unwatch()
	m.run.End(run.Later(m.run.Src.Completed, m.run.Dst.Completed))
	return nil
}

// handOverGuest waits until the destination has all of the guest but memory, which follows. Nobody can cancel it.
func (m *migration) handOverGuest(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	if err := m.pastSwitchover(ctx, m.handOver); err != nil {
		return err
	}
	if err := m.handOver(ctx, func() bool { return m.run.Src.HandedOver() && m.run.Dst.Loading() }); err != nil {
		return err
	}
	return m.surelyGiven(ctx)
}

// pastSwitchover lets a source that pauses before its switch-over go on, when the mirrors have ended.
func (m *migration) pastSwitchover(ctx context.Context, wait func(context.Context, func() bool) error) error {
	if !m.run.Plan.Capabilities["pause-before-switchover"] {
		return nil
	}
	if err := wait(ctx, func() bool { return m.run.Src.Status == "pre-switchover" || m.run.Src.HandedOver() }); err != nil {
		return err
	}
	if err := m.mirrors.finish(ctx); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, run.ActivateLimit)
	defer cancel()
	if err := m.run.Src.Control.MigrateContinue(limited, "pre-switchover"); err != nil {
		return fmt.Errorf("continue past pre-switchover: %w", err)
	}
	return nil
}

// commit is the decision, and it costs nothing: the source has stopped and sent all, the destination has loaded all (in
// post-copy: all but memory), and neither runs the guest. From here an error goes back to the source only if the
// destination is known never to have run.
func (m *migration) commit(ctx context.Context) error {
	m.run.CatchUp()
	if m.run.Dst.Gone != nil {
		return m.run.Dst.Gone
	}
	if m.run.Src.Again() {
		return errors.New("somebody has continued the source, which runs the guest again")
	}
	if s := m.run.Src; s.Shutdown != "" && s.Itself && m.run.Held == "" { // just before it was stopped
		_ = m.run.DrainFor(context.WithoutCancel(ctx), run.DeathLimit, func() bool { return s.Gone != nil })
		if s.Gone != nil {
			return m.run.HowEnded(s)
		}
		m.run.Held = "shutdown" // -no-shutdown: what is on the destination is a guest that has shut down
	}
	if s := m.run.AsTold(); !holder.MayRun(s) {
		return fmt.Errorf("the source says %q and the destination %q: it may not be told to run", m.run.Src.Status,
			m.run.Dst.Status)
	}
	return nil
}

// activate starts the guest on the destination and looks at both sides at once. Nobody can cancel it.
func (m *migration) activate(ctx context.Context) error {
	if err := m.cont(ctx); err != nil {
		return err
	}
	if !m.run.Ended {
		m.run.End(time.Now())
	}
	return m.confirm(ctx)
}

// cont tells the destination to run the guest, unless the guest did not run on the source.
func (m *migration) cont(ctx context.Context) error {
	if !m.run.Src.Facts.Live() {
		return nil
	}
	if m.run.Held != "" { // tellLife says why
		return nil
	}
	// A guest that fell asleep on the way arrives asleep at a QEMU before 9.0, which takes `cont` and does nothing.
	if !m.run.Src.Asleep.IsZero() && m.run.Dst.Facts.Wakes() {
		if status, err := m.run.Dst.Asked(ctx); err == nil && status.Status == facts.Asleep {
			m.run.Rec.Warn("the guest fell asleep (S3) during the migration: on the destination, QEMU %s, its clock stands "+
				"still when it wakes up, until `stop` and `cont`", m.run.Dst.Facts.Version)
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), run.ActivateLimit)
	defer cancel()
	m.run.ContSent, m.run.Committed, m.run.ContAt = true, true, time.Now()
	if err := m.run.Dst.Control.Cont(ctx); err != nil {
		return fmt.Errorf("start guest on destination: %w", err)
	}
	if err := m.run.Until(ctx, func() bool { return !m.run.Dst.Resumed.IsZero() }); err != nil {
		return err
	}
	m.run.End(m.run.Dst.Resumed)
	return nil
}

// confirm looks once more, after the wall time: is the destination alive, and has nobody continued the source
// meanwhile, which QEMU would not refuse? The guest is the destination's now, so such a source is stopped again.
func (m *migration) confirm(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	status, err := m.run.Dst.Asked(ctx)
	if endpoint.WayLost(m.run.Dst.Control.Err()) {
		_ = m.run.DrainFor(ctx, run.AnswerLimit, func() bool { return m.run.Dst.Gone != nil })
		if m.run.ReachAgain(ctx) {
			status, err = m.run.Dst.Asked(ctx)
		}
	}
	if m.run.Dst.RunState = cmp.Or(status.Status, m.run.Dst.RunState); m.run.Dst.Control.Err() != nil {
		return fmt.Errorf("the destination's monitor has ended: %w", m.run.Dst.Control.Err())
	} else if err != nil {
		m.run.Rec.Warn("the destination has started the guest and does not answer since: %v", err)
	}
	if err := m.run.Src.Ask(ctx); err != nil { // its events come before its answer, and take sees to a source that runs
		m.run.Log.Info("ask source", "err", err)
	}
	m.run.CatchUp()
	return nil
}
