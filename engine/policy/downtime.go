package policy

import (
	"fmt"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
)

// doubling polls each second, and each 0.1 s from the first poll on at which less is left than went out per poll on
// average. A sign of no progress is a poll at which more is left than at the one before, or nothing is left. At the
// signs-th sign
//
//	d <- min(2 d, max)           and the signs are counted anew
//
//	d    downtime-limit; at first the plan's
//
// Source: Proxmox VE, qemu-server, src/PVE/QemuMigrate.pm, phase2 (its own first value is 0.1 s; its counter is `> 5`).
func doubling() kind {
	const slow, fast = time.Second, 100 * time.Millisecond
	return kind{
		name: "doubling", meaning: "double downtime-limit at each 6th sign of no progress (Proxmox VE)",
		parameters: []parameter{
			{name: "signs", form: count, value: 6, least: 1, most: 1000, meaning: "signs of no progress for one doubling"},
			{name: "max", form: duration, value: value(MaxDowntimeLimit), least: value(time.Millisecond),
				most: value(MaxDowntimeLimit), meaning: "highest downtime-limit"},
		},
		policy: func(s Spec) Policy {
			signs, most := s.number("signs"), s.duration("max")
			return func(h *History) Decision {
				if !h.due(fast) || h.Setting.DowntimeLimit >= most {
					return Decision{}
				}
				// What Proxmox keeps in variables is folded anew from the series: period, number of polls, last values, signs.
				period, polls, seen := slow, int64(0), 0
				var last *record.Sample
				for t := h.Begin + period; t <= h.Now.T; t += period {
					i := h.since(t)
					x := &h.Series[i]         // there is one: t is not after Now
					gap := (x.T - t) / period // polls that got no answer of their own
					t += gap * period
					polls += 1 + int64(gap)
					if last != nil && *x.Transferred == *last.Transferred {
						continue
					}
					if last != nil {
						if *x.Remaining < *last.Transferred/polls {
							period = fast
						}
						if *last.Remaining > 0 && *x.Remaining > *last.Remaining || *x.Remaining == 0 {
							seen++
						}
					}
					last = x
					if seen < signs {
						continue
					}
					if x.T == h.Now.T {
						limit := min(2*h.Setting.DowntimeLimit, most)
						return Decision{Action: Set, Setting: h.raise(limit),
							Text: fmt.Sprintf("%d signs of no progress, %s left; raise downtime-limit to %s", signs,
								units.FormatSize(*x.Remaining), units.FormatDuration(limit))}
					}
					seen = 0
				}
				return Decision{}
			}
		},
	}
}

// steps raises downtime-limit by time, and goes over to post-copy, where that is allowed, when a pass has made little
// progress:
//
//	d(i) = max/n + i (max - max/n)/n     from t > i * delay * max(M, least)     for i = 0 .. n
//	post-copy when   1 - r/r' < progress   at the end of a pass
//
//	d  downtime-limit    n  parameter steps    t  time since `migrate`    M  the guest's memory, GiB
//	delay  parameter, per GiB    r, r'  what the sync at the pass's end, and the one before, found to send
//
// Source: Nova, nova/virt/libvirt/migration.py, downtime_steps and (until 2017) should_switch_to_postcopy; defaults of
// live_migration_downtime 500 ms, _steps 10, _delay 75 s per GiB of at least 2 GiB. libvirt's VIR_MIGRATE_POSTCOPY is
// the means.
func steps() kind {
	return kind{
		name: "steps", meaning: "raise downtime-limit in steps by time and memory size; post-copy when a pass gains under " +
			"10 % (Nova, libvirt)",
		parameters: []parameter{
			{name: "max", form: duration, value: value(500 * time.Millisecond), least: value(time.Millisecond),
				most: value(MaxDowntimeLimit), meaning: "last downtime-limit"},
			{name: "steps", form: count, value: 10, least: 1, most: 1000, meaning: "number of steps"},
			{name: "delay", form: duration, value: value(75 * time.Second), least: value(time.Millisecond),
				meaning: "time of a step per GiB of memory"},
			{name: "least", form: size, value: 2 << 30, meaning: "memory to reckon with at least"},
			{name: "progress", form: percent, value: 10, most: 100, meaning: "of a pass, under which post-copy starts"},
		},
		initial: func(s Spec, l Limits) Setting {
			return (&History{Setting: l.start()}).raise(s.duration("max") / time.Duration(s.number("steps")))
		},
		needs: func(_ Spec, l Limits) ([]string, error) {
			capabilities, _ := postCopyNeeded(l) // it can do without
			return capabilities, nil
		},
		policy: func(s Spec) Policy {
			most, n, progress := s.duration("max"), s.number("steps"), s.share("progress")
			delay, least := s.duration("delay"), float64(s.bytes("least"))/(1<<30)
			return func(h *History) Decision {
				if last, ok := h.Last(); ok && h.Edge && h.Limits.CanPostCopy &&
					float64(last.Begin-h.Current.Begin) < progress*float64(last.Begin) {
					return Decision{Action: PostCopy, Text: fmt.Sprintf("%s left after %s: progress under %.0f %%; post-copy",
						units.FormatSize(h.Current.Begin), units.FormatSize(last.Begin), 100*progress)}
				}
				wait := max(times(delay, max(h.Limits.gib(), least)), time.Millisecond)
				i := min(max((h.Elapsed()-1)/wait, 0), time.Duration(n))
				base := most / time.Duration(n)
				next := h.raise(base + i*((most-base)/time.Duration(n)))
				if next == h.Setting {
					return Decision{}
				}
				return Decision{Action: Set, Setting: next,
					Text: fmt.Sprintf("step %d of %d after %s; set downtime-limit to %s", i, n, units.FormatDuration(i*wait),
						units.FormatDuration(next.DowntimeLimit))}
			}
		},
	}
}

// ramp raises downtime-limit in equal steps, each a cooldown after the one before, the first a cooldown after pass
// `from` began:
//
//	d <- min(d + (max - initial)/(n - 1), max)     when t - t' >= cooldown
//
//	d  downtime-limit, at first initial    n  parameter levels: the first and the last are among them
//	t  now    t'  when d was changed last; at first the start of pass `from`
//
// Source: KubeVirt, enhancement 291 (2026): 150 to 1050 ms in 7 levels 10 s apart, from the third iteration on.
func ramp() kind {
	return kind{
		name: "ramp", meaning: "raise downtime-limit in equal steps from the 3rd pass on (KubeVirt VEP 291)",
		parameters: []parameter{
			{name: "initial", form: duration, value: value(150 * time.Millisecond), least: value(time.Millisecond),
				most: value(MaxDowntimeLimit), meaning: "first downtime-limit"},
			{name: "max", form: duration, value: value(1050 * time.Millisecond), least: value(time.Millisecond),
				most: value(MaxDowntimeLimit), meaning: "last downtime-limit"},
			{name: "levels", form: count, value: 7, least: 2, most: 1000, meaning: "levels, the first and the last among them"},
			{name: "from", form: count, value: 3, least: 1, most: 1 << 20,
				meaning: "pass at whose start the first cooldown begins"},
			{name: "cooldown", form: duration, value: value(10 * time.Second), least: value(time.Millisecond),
				meaning: "time between two steps"},
		},
		initial: func(s Spec, l Limits) Setting { return (&History{Setting: l.start()}).raise(s.duration("initial")) },
		policy: func(s Spec) Policy {
			first, most, from, cooldown := s.duration("initial"), s.duration("max"), s.number("from"), s.duration("cooldown")
			step := max(most-first, 0) / time.Duration(s.number("levels")-1)
			return func(h *History) Decision {
				if h.Current.Number < from || h.Setting.DowntimeLimit >= most {
					return Decision{}
				}
				since := h.Current.Start
				for i := len(h.Passes) - 1; i >= 0 && h.Passes[i].Number >= from; i-- {
					since = h.Passes[i].Start
				}
				if n := len(h.Made); n > 0 {
					since = h.Made[n-1].At
				}
				next := h.raise(min(h.Setting.DowntimeLimit+step, most))
				if h.Now.T-since < cooldown || next == h.Setting {
					return Decision{}
				}
				return Decision{Action: Set, Setting: next,
					Text: fmt.Sprintf("%s left, %s since the last step; raise downtime-limit to %s",
						units.FormatSize(*h.Now.Remaining), units.FormatDuration(h.Now.T-since),
						units.FormatDuration(next.DowntimeLimit))}
			}
		},
	}
}
