package policy

import (
	"errors"
	"fmt"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
)

var errNoThrottle = errors.New("the capability auto-converge is not there, or may not be used")

// throttleNeeded is the capability of a policy that is nothing without QEMU's throttle.
func throttleNeeded(_ Spec, l Limits) ([]string, error) {
	if !l.CanThrottle {
		return nil, errNoThrottle
	}
	return []string{"auto-converge"}, nil
}

// throttled is the plan's setting with QEMU's throttle at the spec's initial, increment and max.
func throttled(s Spec, l Limits) Setting {
	setting := l.start()
	setting.ThrottleInitial, setting.ThrottleIncrement = s.number("initial"), s.number("increment")
	setting.ThrottleMax = max(s.number("max"), setting.ThrottleInitial) // QEMU refuses less
	return setting
}

// throttleParameters are those of QEMU's throttle, with its defaults.
func throttleParameters() []parameter {
	return []parameter{
		{name: "initial", form: percent, value: 20, least: 1, most: 99, meaning: "first throttle"},
		{name: "increment", form: percent, value: 10, least: 1, most: 99, meaning: "added each time"},
		{name: "max", form: percent, value: 99, least: 1, most: 99, meaning: "highest throttle"},
	}
}

// autoConverge leaves all to QEMU's own throttle: at every second sync, more than 1 s after the last, that finds more
// than half as much dirtied as was sent
//
//	theta <- initial,  then  min(theta + increment, max)
//
//	theta  share of time in which the vCPUs sleep, percent
//
// Source: QEMU, migration/ram.c, migration_trigger_throttle.
func autoConverge() kind {
	return kind{
		name: "auto-converge", meaning: "QEMU's own throttle of the vCPUs",
		parameters: throttleParameters(), initial: throttled, needs: throttleNeeded,
		policy: none().policy,
	}
}

// quickFinish has QEMU's throttle on. It polls each 5 s; once the throttle is at its maximum and expected-downtime
// above downtime-limit, and more than one further sync has passed since this was seen first,
//
//	d <- min(e, limit)       whenever e > d
//
//	d  downtime-limit    e  QEMU's expected-downtime: what the last sync found, over the bandwidth
//
// Source: CloudPods, pkg/hostman/guestman/guesttasks.go, onGetMigrateStatus, option quickly_finish.
func quickFinish() kind {
	const period = 5 * time.Second
	return kind{
		name: "quick-finish", meaning: "throttle to the maximum, then raise downtime-limit to expected-downtime (CloudPods)",
		parameters: append(throttleParameters(),
			parameter{name: "limit", form: duration, value: value(MaxDowntimeLimit), least: value(time.Millisecond),
				most: value(MaxDowntimeLimit), meaning: "highest downtime-limit"}),
		initial: throttled, needs: throttleNeeded,
		policy: func(s Spec) Policy {
			most, limit := int64(s.number("max")), s.duration("limit")
			return func(h *History) Decision {
				eligible := func(x *record.Sample, d time.Duration) bool {
					return *x.Remaining > 0 && x.Throttle != nil && *x.Throttle >= most && x.ExpectedDowntime != nil &&
						*x.ExpectedDowntime > d
				}
				if !h.due(period) || !eligible(&h.Now, h.Setting.DowntimeLimit) {
					return Decision{}
				}
				if len(h.Made) == 0 {
					first := int64(-1) // the sync count when this was seen first
					h.ticks(period, func(x *record.Sample) {
						if first < 0 && eligible(x, h.Setting.DowntimeLimit) {
							first = *x.SyncCount
						}
					})
					if *h.Now.SyncCount <= first+1 {
						return Decision{}
					}
				}
				next := h.raise(min(*h.Now.ExpectedDowntime, limit))
				if next.DowntimeLimit <= h.Setting.DowntimeLimit {
					return Decision{}
				}
				return Decision{Action: Set, Setting: next,
					Text: fmt.Sprintf("throttle is at %d %%, expected downtime %s; raise downtime-limit to %s", *h.Now.Throttle,
						units.FormatDuration(*h.Now.ExpectedDowntime), units.FormatDuration(next.DowntimeLimit))}
			}
		},
	}
}
