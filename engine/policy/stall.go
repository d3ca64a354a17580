package policy

import (
	"fmt"
	"math"
	"slices"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
)

// stall looks at the end of each pass at what the sync found to send:
//
//	stalled     r >= (1 - margin) min{ r' : found at least `timeout` ago }
//	switch      when stalled and r <= (1 + margin) best: a local minimum
//	relax       best <- the least r since the stall, which is then left out, each time a patience has passed; patience <- decay * patience
//	w = r / b   the downtime that a switch would mean, with   b <- alpha s + (1 - alpha) b   each 0.4 s
//	w <= max * hopeless                    set downtime-limit to max; abort if that has not ended it within `switchover`
//	w >  max * hopeless                    abort: hopeless
//	w >  factor * per-gib * M - t          wait: it would not fit into what is left of the time
//	t >  per-gib * M                       post-copy or abort
//
//	r, r'  bytes found, now and before    best  at first the least r from the least of `timeout` ago on    patience  at first `timeout`
//	b, s   QEMU's throughput, smoothed and as it is, bytes/s    w  s    M  the guest's memory, GiB    t  time since `migrate`
//
// Where post-copy is allowed, it takes the place of downtime-limit and of hopeless. Source: KubeVirt, enhancement 248
// (2026), with its defaults: 40 s, 4 %, 900 ms, 1.5, 0.5, 0.4, 60 s, 150 s per GiB, 2. QEMU's threshold at the start is
// min(max, 300 ms) there; here it is the plan's, if that is less than max.
func stall() kind {
	return kind{
		name: "stall", meaning: "when progress stalls, switch at a local minimum, or abort as hopeless (KubeVirt VEP 248)",
		parameters: []parameter{
			{name: "timeout", form: duration, value: value(40 * time.Second), least: value(time.Millisecond),
				meaning: "without progress for a stall; first patience"},
			{name: "margin", form: percent, value: 4, most: 100, meaning: "about the best, within which it counts as equal"},
			{name: "max", form: duration, value: value(900 * time.Millisecond), least: value(time.Millisecond),
				most: value(MaxDowntimeLimit), meaning: "downtime-limit after a stall"},
			{name: "hopeless", form: percent, value: 150, least: 100, most: 100000,
				meaning: "of max: a downtime beyond it is hopeless"},
			{name: "decay", form: percent, value: 50, most: 100, meaning: "of the patience that is left at each relaxation"},
			{name: "alpha", form: percent, value: 40, least: 1, most: 100,
				meaning: "weight of a new value in the smoothed bandwidth"},
			{name: "switchover", form: duration, value: value(60 * time.Second), least: value(time.Millisecond),
				meaning: "for the switch-over, then abort"},
			{name: "per-gib", form: duration, value: value(150 * time.Second), least: value(time.Millisecond),
				meaning: "for the migration per GiB of memory"},
			{name: "factor", form: percent, value: 200, least: 100, most: 100000,
				meaning: "of that time, into which a switch-over must fit"},
		},
		initial: func(s Spec, l Limits) Setting {
			return (&History{Setting: l.start()}).raise(min(l.DowntimeLimit, s.duration("max")))
		},
		needs: func(_ Spec, l Limits) ([]string, error) {
			capabilities, _ := postCopyNeeded(l) // it can do without
			return capabilities, nil
		},
		policy: func(s Spec) Policy { return stallPolicy(s) },
	}
}

// found is what one sync found.
type found struct {
	at    time.Duration
	bytes int64
}

func stallPolicy(s Spec) Policy {
	window, margin, most, hopeless := s.duration("timeout"), s.share("margin"), s.duration("max"), s.share("hopeless")
	decay, alpha, perGiB, factor := s.share("decay"), s.share("alpha"), s.duration("per-gib"), s.share("factor")
	return func(h *History) Decision {
		total := times(perGiB, h.Limits.gib())
		if n := len(h.Made); n > 0 { // the limit was raised: QEMU has its time for the switch-over
			if h.Now.T-h.Made[n-1].At > s.duration("switchover") {
				return Decision{Action: Abort, Text: fmt.Sprintf("no switch-over within %s of raising downtime-limit; abort",
					units.FormatDuration(s.duration("switchover")))}
			}
			return Decision{}
		}
		late := h.Elapsed() > total
		if !h.Edge && !late {
			return Decision{}
		}
		r := h.Current.Begin
		if !h.Edge {
			r = *h.Now.Remaining
		}
		down := over(r, h.smoothed(400*time.Millisecond, alpha))
		fits := h.Elapsed()+down <= times(total, factor)
		if late {
			d := Decision{Action: Abort}
			if h.Limits.CanPostCopy && fits {
				d.Action = PostCopy
			}
			d.Text = fmt.Sprintf("not done after %s, %s left; %s", units.FormatDuration(total), units.FormatSize(r), d.Action)
			return d
		}
		seen := seen(h)
		least, stalledFor, minimum := localMinimum(seen, window, margin, decay)
		if !minimum || !fits {
			return Decision{}
		}
		why := fmt.Sprintf("stalled: %s >= %.2f x %s since %s; local minimum, downtime would be %s", units.FormatSize(r),
			1-margin,
			units.FormatSize(least), units.FormatDuration(stalledFor), units.FormatDuration(down))
		switch {
		case h.Limits.CanPostCopy:
			return Decision{Action: PostCopy, Text: why + "; post-copy"}
		case down > times(most, hopeless):
			return Decision{Action: Abort, Text: fmt.Sprintf("%s, over %.1f x %s: hopeless; abort", why, hopeless,
				units.FormatDuration(most))}
		}
		return Decision{Action: Set, Setting: h.raise(most),
			Text: why + "; raise downtime-limit to " + units.FormatDuration(most)}
	}
}

// seen lists what each sync found, the running pass's last.
func seen(h *History) []found {
	var all []found
	for _, p := range h.Passes {
		if p.Number > 1 {
			all = append(all, found{p.Start, p.Begin})
		}
	}
	return append(all, found{h.Current.Start, h.Current.Begin})
}

// localMinimum tells whether the last of all is a good moment to switch after a stall; least is what it stalls against,
// and since for how long that has stood.
func localMinimum(all []found, window time.Duration, margin, decay float64) (least int64, since time.Duration,
	ok bool) {
	stalled, best := false, int64(0)
	var history []int64 // found since the stall, in order
	var patience, deadline time.Duration
	near := func(r int64) bool { return float64(r) <= float64(best)*(1+margin) }
	for i, f := range all {
		last := i == len(all)-1
		if !stalled {
			from := -1
			for j := range all[:i] {
				if all[j].at <= f.at-window && (from < 0 || all[j].bytes < all[from].bytes) {
					from = j
				}
			}
			if from < 0 || float64(f.bytes) < float64(all[from].bytes)*(1-margin) {
				continue
			}
			stalled, least, since = true, all[from].bytes, all[from].at
			best = f.bytes
			for _, g := range all[from:i] {
				best = min(best, g.bytes)
			}
			patience, deadline = window, f.at+window
		} else {
			at, _ := slices.BinarySearch(history, f.bytes)
			history = slices.Insert(history, at, f.bytes)
			if !near(f.bytes) && f.at >= deadline {
				best, history = history[0], history[1:]
				patience = times(patience, decay)
				deadline = f.at + patience
			}
		}
		if last && near(f.bytes) {
			return least, f.at - since, true
		}
	}
	return 0, 0, false
}

// smoothed is QEMU's throughput, smoothed with weight alpha at each tick, bytes/s; 0 if it was never told.
func (h *History) smoothed(period time.Duration, alpha float64) float64 {
	rate, any := 0.0, false
	h.ticks(period, func(x *record.Sample) {
		switch {
		case x.Throughput == nil || math.IsNaN(*x.Throughput) || *x.Throughput < 0:
		case !any:
			rate, any = *x.Throughput, true
		default:
			rate = alpha**x.Throughput + (1-alpha)*rate
		}
	})
	return rate
}

// postCopyOnStall goes over to post-copy at the end of the first pass that has gained too little:
//
//	r > (1 - progress) r'
//
//	r, r'  what the sync at the pass's end, and the one before, found to send, bytes
//
// Source: the rule of Nova's should_switch_to_postcopy (10 %) alone.
func postCopyOnStall() kind {
	return kind{
		name: "post-copy-on-stall", meaning: "post-copy when a pass gains under 10 %",
		parameters: []parameter{{name: "progress", form: percent, value: 10, most: 100,
			meaning: "of a pass, under which post-copy starts"}},
		needs: func(_ Spec, l Limits) ([]string, error) { return postCopyNeeded(l) },
		policy: func(s Spec) Policy {
			progress := s.share("progress")
			return func(h *History) Decision {
				last, ok := h.Last()
				if !ok || !h.Edge || !h.Limits.CanPostCopy || float64(h.Current.Begin) <= (1-progress)*float64(last.Begin) {
					return Decision{}
				}
				return Decision{Action: PostCopy, Text: fmt.Sprintf("stalled: %s > %.2f x %s; post-copy",
					units.FormatSize(h.Current.Begin), 1-progress, units.FormatSize(last.Begin))}
			}
		},
	}
}
