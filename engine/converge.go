package engine

import (
	"context"
	"fmt"

	"qmigrate/engine/fit"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/policy"
	"qmigrate/engine/record"
)

// converging is the plan's policy at work: it is asked at each sample of the running pre-copy, in their order, so that
// the recorded series asked again gives the same decisions.
type converging struct {
	run.Plain
	run      *run.Run
	limits   policy.Limits
	follower *policy.Follower
	setting  policy.Setting // in force
	postCopy bool           // it has decided to go over
}

// Check adds what the plan's policy needs in force before `migrate` to what is set; nothing is changed yet.
func (c *converging) Check(context.Context) error {
	if !c.run.Plan.Decides() {
		return nil
	}
	limits, setting, capabilities, err := fit.Converging(c.run.Plan, c.run.Src.Facts, c.run.Dst.Facts)
	if err != nil {
		return err
	}
	for _, name := range capabilities {
		c.run.Plan.Capabilities[name] = true
	}
	for name, value := range setting.Changed(policy.Setting{MaxBandwidth: c.run.Plan.MaxBandwidth,
		DowntimeLimit: c.run.Plan.DowntimeLimit}) {
		c.run.Parameters[name] = value
	}
	if c.run.Plan.Capabilities["postcopy-ram"] && c.run.Rec.PostCopy == nil {
		c.run.Rec.PostCopy = &record.PostCopyFigures{}
	}
	c.run.Rec.Plan["policy"], c.run.Rec.Plan["policy_limits"] = c.run.Plan.Policy.String(), limits
	c.limits, c.setting = limits, setting
	c.run.Decider = &run.Decider{Samples: make(chan record.Sample, 4096), Over: make(chan struct{}), Decide: c.decide}
	return nil
}

// start starts the policy's history at the beginning of pre-copy.
func (c *converging) start() {
	if c.run.Decider != nil {
		c.follower = policy.Follow(c.run.Plan.Policy.Policy(), c.limits, c.setting, c.run.Rec.Stage(record.PreCopy).Start)
	}
}

// decide asks the policy at one sample and does what it says.
func (c *converging) decide(ctx context.Context, x record.Sample) error {
	d := c.follower.Observe(x)
	if d.Action == "" {
		return nil
	}
	c.run.Rec.Decisions = append(c.run.Rec.Decisions, d.Record())
	c.run.Log.Info("policy", "action", d.Action, "pass", d.Pass, "text", d.Text)
	if c.run.Split || c.run.Src.Still() {
		return nil // it was decided before: after migrate-start-postcopy neither side could go back
	}
	set := func(s policy.Setting) error {
		changed := map[string]any{}
		for name, value := range s.Changed(c.setting) {
			changed[name] = value
		}
		c.setting = s
		if len(changed) == 0 {
			return nil
		}
		limited, cancel := context.WithTimeout(ctx, run.AnswerLimit)
		defer cancel()
		err := c.run.Src.Control.SetMigrateParameters(limited, changed)
		// it has it, and answers late in its switch-over; one that hangs is until's to find
		if err != nil && limited.Err() != nil && ctx.Err() == nil {
			c.run.Rec.Warn("the source did not answer within %s to what the policy set (%v): whether it was in force in time "+
				"is not known", run.AnswerLimit, changed)
			return nil
		}
		if err != nil {
			return fmt.Errorf("set what the policy decided: %w", err)
		}
		return nil
	}
	switch d.Action {
	case policy.Set:
		return set(d.Setting)
	case policy.Stop:
		s := c.setting
		s.DowntimeLimit = policy.MaxDowntimeLimit
		return set(s)
	case policy.PostCopy:
		c.postCopy = true
	case policy.Abort:
		return fmt.Errorf("%w: %s", run.ErrGaveUp, d.Text)
	}
	return nil
}

// stop lets the policy see the samples that came before the guest stopped and were not seen yet: what is recorded is
// then what the recorded series gives. Nothing is done about its decisions any more.
func (c *converging) stop() {
	if c.run.Decider == nil {
		return
	}
	stopped := c.run.Src.Stopped.Sub(c.run.Rec.Origin)
	for {
		select {
		case x := <-c.run.Decider.Samples:
			if x.T <= stopped {
				if d := c.follower.Observe(x); d.Action != "" {
					c.run.Rec.Decisions = append(c.run.Rec.Decisions, d.Record())
				}
			}
			continue
		default:
		}
		break
	}
	close(c.run.Decider.Over)
	c.run.Decider = nil
}

// Replay asks the policy of a record again, over the record's own series, and returns its decisions: they must be those
// of the record.
func Replay(rec *record.Migration, spec policy.Spec, limits policy.Limits) ([]record.Decision, error) {
	setting, _, err := spec.Initial(limits)
	if err != nil {
		return nil, err
	}
	pre := rec.Stage(record.PreCopy)
	if pre == nil {
		return nil, nil
	}
	until := pre.Start + pre.Duration
	if n := len(rec.Decisions); n > 0 {
		until = max(until, rec.Decisions[n-1].At)
	}
	var series []record.Sample
	for _, x := range rec.Samples {
		if x.T <= until {
			series = append(series, x)
		}
	}
	var all []record.Decision
	for _, d := range policy.Replay(spec.Policy(), limits, setting, pre.Start, series) {
		all = append(all, d.Record())
	}
	return all, nil
}
