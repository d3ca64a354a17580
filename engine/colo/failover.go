package colo

import (
	"context"
	"errors"
	"fmt"
	"qmigrate/engine/holder"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/record"
	"sync"
	"time"
)

// miss notes the first sign that a side is lost; nil: it is not known which.
func (c *colo) miss(s *run.Side, cause error) {
	if c.lostCause == nil {
		c.lostAt, c.lostCause = time.Now(), cause
	}
	if c.lost == nil {
		c.lost = s
	}
}

// protect lets the two run in step until a side is lost, or the plan's time is over, or ctx ends: the last is an error
// if the time was not over. A side is lost when its process ends, its monitor closes, it leaves COLO, or it does not
// answer query-status.
func (c *colo) protect(ctx context.Context) error {
	beating, stop := context.WithCancel(ctx)
	var hearts sync.WaitGroup
	defer hearts.Wait()
	defer stop()
	silent := make(chan *run.Side, 2)
	for _, s := range []*run.Side{c.run.Src, c.run.Dst} {
		hearts.Go(func() { heartbeat(beating, s, silent) })
	}
	var over <-chan time.Time
	if c.want.Run > 0 {
		t := time.NewTimer(c.want.Run)
		defer t.Stop()
		over = t.C
	}
	ended := func(s *run.Side) <-chan struct{} {
		if s.Endpoint.Process == nil {
			return nil
		}
		return s.Endpoint.Process.Done()
	}
	timeUp := false
	for c.lostCause == nil {
		if timeUp && len(c.resumes) >= c.want.Checkpoints {
			return nil
		}
		select {
		case ev, ok := <-c.run.Src.C:
			c.note(c.run.Src, ev, ok)
		case ev, ok := <-c.run.Dst.C:
			c.note(c.run.Dst, ev, ok)
		case s := <-silent:
			c.miss(s, fmt.Errorf("%s QEMU does not answer for %s", s.Role, heartbeatLimit))
		case <-ended(c.run.Src):
			c.miss(c.run.Src, errors.New("source QEMU's process has ended"))
		case <-ended(c.run.Dst):
			c.miss(c.run.Dst, errors.New("destination QEMU's process has ended"))
		case <-over:
			timeUp = true
		case <-ctx.Done():
			if c.want.Run == 0 {
				return nil
			}
			return c.run.Cause(ctx)
		}
	}
	c.run.End(c.lostAt)
	if c.lost == nil { // one has left COLO, which each does when the other is gone
		c.which(ctx, ended)
	}
	c.run.Rec.COLO.LostAt, c.run.Rec.COLO.Lost = record.Of(c.lostAt.Sub(c.run.Rec.Origin)), c.lost.Role
	c.run.Log.Info("lost", "side", c.lost.Role, "cause", c.lostCause)
	return nil
}

// which finds out which side is lost after COLO was left. If both live, the link between them is: the primary stays,
// for it is the one that is heard.
func (c *colo) which(ctx context.Context, ended func(*run.Side) <-chan struct{}) {
	moment := time.NewTimer(run.DeathLimit)
	defer moment.Stop()
	for c.lost == nil {
		select {
		case ev, ok := <-c.run.Src.C:
			c.note(c.run.Src, ev, ok)
		case ev, ok := <-c.run.Dst.C:
			c.note(c.run.Dst, ev, ok)
		case <-ended(c.run.Src):
			c.lost = c.run.Src
		case <-ended(c.run.Dst):
			c.lost = c.run.Dst
		case <-moment.C:
			c.lost = c.run.Dst
			if !answers(ctx, c.run.Src) {
				c.lost = c.run.Src
			}
		}
	}
}

// answers tells whether a side answers query-status within the heartbeat's limit.
func answers(ctx context.Context, s *run.Side) bool {
	ctx, cancel := context.WithTimeout(ctx, heartbeatLimit)
	defer cancel()
	_, err := s.Control.QueryStatus(ctx)
	return err == nil
}

// heartbeat is QEMU's missing one: it asks query-status and tells when there was no answer in time.
func heartbeat(ctx context.Context, s *run.Side, silent chan<- *run.Side) {
	tick := time.NewTicker(heartbeatInterval)
	defer tick.Stop()
	for {
		alive := answers(ctx, s)
		if ctx.Err() != nil {
			return
		}
		if !alive {
			silent <- s
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// failOver makes the side that is left run the guest alone. The other one is known dead before: a primary that lives
// would be heard beside a secondary that took over.
func (c *colo) failOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, run.UndoLimit)
	defer cancel()
	var err error
	if c.lost == c.run.Src {
		err = c.promote(ctx)
	} else {
		err = c.retreat(ctx)
	}
	if err == nil && c.lost != nil {
		c.run.Rec.COLO.Failover = record.Of(time.Since(c.lostAt))
	}
	return err
}

// promote ends the primary and lets the secondary out.
func (c *colo) promote(ctx context.Context) error {
	if err := c.run.Src.Kill(ctx); err != nil || !c.run.Src.Over(ctx) {
		return errors.Join(fmt.Errorf("the primary (%w) is not known dead, and may be heard", c.lostCause), err)
	}
	if err := c.leave(ctx, c.run.Dst); err != nil {
		return err
	}
	if err := c.releaseSecondary(ctx); err != nil {
		return err
	}
	// ms: QEMU's own figures for a migration
	announce := map[string]any{"initial": 50, "max": 550, "rounds": 5, "step": 100}
	if err := c.run.Dst.Control.Execute(ctx, "announce-self", announce, nil); err != nil {
		c.run.Rec.Warn("the guest did not announce itself on the network: %v", err)
	}
	return nil
}

// retreat ends the secondary and lets the primary go on alone. A secondary that cannot be ended stays behind its
// filters.
func (c *colo) retreat(ctx context.Context) error {
	if err := c.run.Dst.Kill(ctx); err != nil {
		c.run.Rec.Warn("the secondary was not ended (%v): it runs on, heard by nobody while its filters stand: end %s", err,
			c.run.Dst.Endpoint.Name)
	}
	// Before COLO is left: what the filters hold flows out, and no comparison can hold up the end.
	if err := c.releasePrimary(ctx); err != nil {
		return err
	}
	if err := c.leave(ctx, c.run.Src); err != nil {
		return err
	}
	if c.hurry != nil {
		if err := c.hurry(); err != nil {
			c.run.Rec.Warn("threads of the primary go on yielding: %v", err)
		}
	}
	return nil
}

// leave makes a side, the other one being dead, end COLO and run the guest alone.
func (c *colo) leave(ctx context.Context, s *run.Side) error {
	if before := s.Resumed; !s.Done() { // an undo may come here again
		if err := s.Control.Execute(ctx, "x-colo-lost-heartbeat", nil, nil); err != nil {
			return fmt.Errorf("tell %s to go on alone: %w", s.Endpoint.Name, err)
		}
		_ = c.run.DrainFor(ctx, run.KillLimit, func() bool { return s.Gone != nil || s.Done() && s.Resumed != before })
	}
	if err := run.Resume(ctx, s); err != nil { // it runs by now: this asks
		return fmt.Errorf("run the guest on %s: %w", s.Endpoint.Name, err)
	}
	if err := s.Control.SetMigrateCapabilities(ctx, map[string]bool{"x-colo": false}); err != nil {
		c.run.Rec.Warn("%s keeps its capability x-colo: %v", s.Endpoint.Name, err)
	}
	return nil
}

// settle brings the guest back to where it can run after a failure: the primary goes on if it lives; if not, the
// secondary takes over if it has been in COLO. It is run.settle for this mode.
func (c *colo) settle(ctx context.Context) run.Verdict {
	if c.run.Src.Facts == nil {
		return run.Verdict{Guest: record.Unknown, Mend: "the primary was not reached, and nothing was changed"}
	}
	c.run.Look(ctx)
	defer c.restore()
	had := c.run.Dst.Status == "colo" || c.run.Dst.Done() // the secondary has been in COLO
	if c.lost == nil && c.run.Issued && had && c.run.Src.Gone == nil && !answers(ctx, c.run.Src) {
		c.miss(c.run.Src, fmt.Errorf("source QEMU does not answer for %s", heartbeatLimit))
	}
	gone := c.run.Src.Gone != nil || c.lost == c.run.Src
	switch {
	case !c.run.Issued:
		v := c.run.SettleAs(ctx, nil)
		if err := c.releasePrimary(ctx); err != nil && c.run.Src.Gone == nil {
			c.run.Rec.Warn("something of the filters is left on the primary, switched off: %v", err)
		}
		return v
	case gone && (c.run.Src.Kill(ctx) != nil || !c.run.Src.Over(ctx)):
		return run.Verdict{Guest: record.Unknown, Mend: fmt.Sprintf("the primary is lost and not known dead: ask %s for "+
			"query-status: if it lives, it holds the guest; once it is surely dead, `x-colo-lost-heartbeat` on %s and "+
			"object-del of its filters lets the secondary, which stands by unheard, take over",
			c.run.Src.Endpoint.Name, c.run.Dst.Endpoint.Name)}
	case gone && had && c.run.Dst.Gone == nil:
		if len(c.resumes) == 0 {
			c.run.Rec.Warn("the primary died before the first checkpoint was whole: what it did since it was copied is lost, " +
				"though it may have been heard")
		}
		c.lost = c.run.Src
		if err := c.promote(ctx); err != nil {
			if status, asked := c.run.Dst.Asked(ctx); asked == nil && status.Running && c.run.Dst.Done() {
				return run.Verdict{Guest: record.Destination,
					Mend: fmt.Sprintf("it runs there, and something stands in its way to the network (%v): object-del it on %s", err,
						c.run.Dst.Endpoint.Name)}
			}
			return run.Verdict{Guest: record.None, Mend: fmt.Sprintf("the primary is dead and the secondary does not take "+
				"over (%v): `x-colo-lost-heartbeat` on %s", err, c.run.Dst.Endpoint.Name)}
		}
		return run.Verdict{Guest: record.Destination}
	case gone && had:
		return run.Verdict{Guest: record.None, Mend: "it is lost: both QEMUs died"}
	case gone:
		_ = c.run.Dst.Kill(ctx)
		return run.Verdict{Guest: record.None, Mend: "it is lost: the primary QEMU died before the secondary had all of it"}
	}
	if c.run.Src.Status == "colo" {
		if err := c.retreat(ctx); err != nil {
			return run.Verdict{Guest: record.None, Mend: fmt.Sprintf("the primary does not go on alone (%v): "+
				"`x-colo-lost-heartbeat`, then `cont` on %s", err, c.run.Src.Endpoint.Name)}
		}
		return run.Verdict{Guest: record.Source}
	}
	// Not in COLO: what ran on the secondary was heard by nobody, and ends now. The source is `active`, or has completed
	// past COLO.
	if c.run.Src.Status == "device" {
		_ = c.run.DrainFor(ctx, run.AnswerLimit, c.run.Src.Ended)
	}
	v := c.run.SettleAs(ctx, func(s *holder.Situation) { s.Destination.Run, s.Ran = holder.Paused, holder.Never })
	if err := c.releasePrimary(ctx); err != nil && c.run.Src.Gone == nil {
		c.run.Rec.Warn("filters are left on the primary: %v", err)
	}
	if c.hurry != nil {
		_ = c.hurry()
	}
	return v
}
