package fit

import (
	"maps"

	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/engine/setting"
)

// TimedSyncs tells whether the source's bitmap syncs come by time instead of at the ends of passes: seen on 11.1.3
// with postcopy-ram on, not on 10.0.2.
func TimedSyncs(p plan.Plan, src *facts.Facts) bool {
	return p.Capabilities["postcopy-ram"] && !src.Before(11, 0)
}

// Converging says what the plan's policy may do on this pair and what it needs before `migrate`: the limits within
// which it decides, the values that it begins with, and the capabilities that it needs on. A plan without a policy
// needs nothing.
func Converging(p plan.Plan, src, dst *facts.Facts) (limits policy.Limits, initial policy.Setting,
	capabilities []string, err error) {
	switch {
	case !p.Decides():
		return limits, initial, nil, nil
	case p.Mode == record.StopAndCopyMode:
		return limits, initial, nil, setting.Errorf("policy", p.Policy.Name, "mode %s has no passes that a policy could end",
			p.Mode)
	case p.SampleInterval <= 0:
		return limits, initial, nil, setting.Errorf("sample-interval", "0ms",
			"policy %s decides on samples: give an interval", p.Policy.Name)
	}
	limits = allowed(p, src, dst)
	if initial, capabilities, err = p.Policy.Initial(limits); err != nil {
		return limits, initial, nil, setting.About(err, "policy")
	}
	p.Capabilities = maps.Clone(p.Capabilities)
	for _, name := range capabilities {
		p.Capabilities[name] = true
	}
	limits.TimedSyncs = TimedSyncs(p, src)
	return limits, initial, capabilities, nil
}

// allowed are the limits within which a policy decides on this pair. Post-copy is among them if the plan has it on. A
// policy that cannot do without post-copy gets it where both sides have it.
func allowed(p plan.Plan, src, dst *facts.Facts) policy.Limits {
	_, srcPost := src.Capabilities["postcopy-ram"]
	_, dstPost := dst.Capabilities["postcopy-ram"]
	_, throttle := src.Capabilities["auto-converge"]
	_, switchover := src.Parameters["avail-switchover-bandwidth"]
	l := policy.Limits{
		MemoryBytes: src.MemoryBytes, MaxBandwidth: p.MaxBandwidth, DowntimeLimit: p.DowntimeLimit,
		CanPostCopy: srcPost && dstPost && p.Capabilities["postcopy-ram"],
		CanThrottle: throttle, CanSwitchoverBandwidth: switchover, LinkRate: p.LinkRate,
	}
	if on, set := p.Capabilities["auto-converge"]; set && !on {
		l.CanThrottle = false
	}
	if _, _, err := p.Policy.Initial(l); err != nil {
		if _, set := p.Capabilities["postcopy-ram"]; !set {
			l.CanPostCopy = srcPost && dstPost
		}
	}
	return l
}
