package policy

import (
	"errors"
	"fmt"
	"time"

	"qmigrate/engine/record/units"
)

var errNoPostCopy = errors.New("post-copy is not possible, or not allowed, for this pair")

// timeout acts once, when
//
//	t > after                    or, if after is 0,      t > p * M
//
//	t      time since `migrate`                          after  parameter
//	p      parameter per-gib: time per GiB of memory     M      the guest's memory, GiB
//
// Source: KubeVirt's completionTimeoutPerGiB (150 s, then abort, pause or post-copy by what is allowed) and Nova's
// live_migration_completion_timeout (800 s per GiB, abort or force-complete).
func timeout() kind {
	return kind{
		name: "timeout", meaning: "act when a time has passed (KubeVirt, Nova)",
		parameters: []parameter{
			{name: "after", form: duration, meaning: "time since the start; 0s: by per-gib"},
			{name: "per-gib", form: duration, value: value(150 * time.Second), least: 1, meaning: "time per GiB of memory"},
			{name: "action", form: choice, words: []string{string(Abort), string(Stop), string(PostCopy)},
				meaning: "abort, stop or post-copy"},
		},
		needs: func(s Spec, l Limits) ([]string, error) {
			if Action(s.word("action")) != PostCopy {
				return nil, nil
			}
			return postCopyNeeded(l)
		},
		policy: func(s Spec) Policy {
			after, perGiB, action := s.duration("after"), s.duration("per-gib"), Action(s.word("action"))
			return func(h *History) Decision {
				limit := after
				if limit == 0 {
					limit = times(perGiB, h.Limits.gib())
				}
				if h.Elapsed() <= limit || action == PostCopy && !h.Limits.CanPostCopy {
					return Decision{}
				}
				return Decision{Action: action, Text: fmt.Sprintf("not done after %s, %s left; %s", units.FormatDuration(limit),
					units.FormatSize(*h.Now.Remaining), action)}
			}
		},
	}
}

// postCopyNeeded is the capability of a policy that is nothing without post-copy.
func postCopyNeeded(l Limits) ([]string, error) {
	if !l.CanPostCopy {
		return nil, errNoPostCopy
	}
	return []string{"postcopy-ram"}, nil
}

// times is d * f, within what a duration can hold.
func times(d time.Duration, f float64) time.Duration {
	const most = 1 << 62
	return time.Duration(min(max(float64(d)*f, -most), most))
}

// over is the time that n bytes take at a rate in bytes/s: a day if the rate is so small that this does not matter.
func over(n int64, rate float64) time.Duration {
	const day = 24 * time.Hour
	if rate <= 0 {
		return day
	}
	return min(time.Duration(min(float64(n)/rate, day.Seconds())*float64(time.Second)), day)
}
