package engine

import (
	"context"
	"errors"
	"fmt"

	"qmigrate/engine/fit"
	"qmigrate/engine/policy"
	"qmigrate/engine/record"
)

// errGaveUp is a policy's decision to leave the guest where it is.
var errGaveUp = errors.New("the policy gave up")

// converge is a policy at work: it is asked at each sample of the running pre-copy, in their order, so that the recorded series asked
// again gives the same decisions.
type converge struct {
	follower *policy.Follower
	setting  policy.Setting     // in force
	samples  chan record.Sample // from the poller
	over     chan struct{}      // closed when nobody reads them any more
	postCopy bool               // it has decided to go over
}

// preparePolicy adds what the plan's policy needs in force before `migrate` to what is set; nothing is changed yet.
func (m *migration) preparePolicy() error {
	if !m.plan.Decides() {
		return nil
	}
	limits, setting, capabilities, err := fit.Converging(m.plan, m.src.facts, m.dst.facts)
	if err != nil {
		return err
	}
	for _, name := range capabilities {
		m.plan.Capabilities[name] = true
	}
	for name, value := range setting.Changed(policy.Setting{MaxBandwidth: m.plan.MaxBandwidth, DowntimeLimit: m.plan.DowntimeLimit}) {
		m.parameters[name] = value
	}
	if m.plan.Capabilities["postcopy-ram"] && m.rec.PostCopy == nil {
		m.rec.PostCopy = &record.PostCopyFigures{}
	}
	m.rec.Plan["policy"], m.rec.Plan["policy_limits"] = m.plan.Policy.String(), limits
	m.converge = &converge{setting: setting, samples: make(chan record.Sample, 4096), over: make(chan struct{})}
	return nil
}

// beginPolicy starts the policy's history at the beginning of pre-copy.
func (m *migration) beginPolicy() {
	if c := m.converge; c != nil {
		limits := m.rec.Plan["policy_limits"].(policy.Limits)
		c.follower = policy.Follow(m.plan.Policy.Policy(), limits, c.setting, m.rec.Stage(record.PreCopy).Start)
	}
}

// observed are the samples for the policy; nil, which blocks, without one.
func (m *migration) observed() chan record.Sample {
	if m.converge == nil {
		return nil
	}
	return m.converge.samples
}

// decide asks the policy at one sample and does what it says.
func (m *migration) decide(ctx context.Context, x record.Sample) error {
	c := m.converge
	d := c.follower.Observe(x)
	if d.Action == "" {
		return nil
	}
	m.rec.Decisions = append(m.rec.Decisions, d.Record())
	m.log.Info("policy", "action", d.Action, "pass", d.Pass, "text", d.Text)
	if m.split || m.src.still() {
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
		limited, cancel := context.WithTimeout(ctx, answerLimit)
		defer cancel()
		err := m.src.control.SetMigrateParameters(limited, changed)
		if err != nil && limited.Err() != nil && ctx.Err() == nil { // it has it, and answers late in its switch-over; one that hangs is until's to find
			m.rec.Warn("the source did not answer within %s to what the policy set (%v): whether it was in force in time is not known", answerLimit, changed)
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
		return fmt.Errorf("%w: %s", errGaveUp, d.Text)
	}
	return nil
}

// endPolicy lets the policy see the samples that came before the guest stopped and were not seen yet: what is recorded is then what the
// recorded series gives. Nothing is done about its decisions any more.
func (m *migration) endPolicy() {
	c := m.converge
	if c == nil {
		return
	}
	stopped := m.src.stopped.Sub(m.rec.Origin)
	for {
		select {
		case x := <-c.samples:
			if x.T <= stopped {
				if d := c.follower.Observe(x); d.Action != "" {
					m.rec.Decisions = append(m.rec.Decisions, d.Record())
				}
			}
			continue
		default:
		}
		break
	}
	m.converge = nil
	close(c.over)
}

// Replay asks the policy of a record again, over the record's own series, and returns its decisions: they must be those of the record.
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

// gaveUp tells whether a failure is a wish: ours, the plan's time-out's or the policy's.
func gaveUp(cause error) bool {
	return errors.Is(cause, context.Canceled) || errors.Is(cause, errTimeout) || errors.Is(cause, errGaveUp) || errors.Is(cause, errNotInStep)
}
