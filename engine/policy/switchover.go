package policy

import (
	"fmt"
	"math"
	"time"

	"qmigrate/engine/record/units"
)

// switchover moves the guest as soon as the downtime limit can be met at the rate of the last stage.
//
// QEMU stops the guest when what is left takes less than downtime-limit at the rate of the last 0.1 s. But the last
// stage is not limited by max-bandwidth. So under a cap below the line rate QEMU waits for a state that a busy guest
// never reaches, while the true downtime would be far below its limit. This policy finds out the true rate, and has
// QEMU itself apply its rule with it:
//
//	e = max((1 - margin) d - device, d/4)     what of the downtime may be spent on sending
//	S = L e                                   what may be left when the guest stops
//	8.2 and newer:   avail-switchover-bandwidth <- L,  downtime-limit <- e,        so that QEMU's threshold is S
//	before:          downtime-limit <- e L / B,                                    the same with QEMU's own B
//
//	d   the downtime limit asked for, s          device  what stop, device state and start take, s (parameter)
//	L   rate of the last stage, bytes/s          B       max-bandwidth, bytes/s
//
// QEMU then decides on its own exact count, after a sync, so no page is dirtied between the decision and the stop. L is
// found by a sprint in the first pass: max-bandwidth is lifted for min(d, 0.3 s), which is no longer than the last
// stage may use the line as well. The first 10 MiB are not counted: socket buffers swallow them. A sprint is worth it
// only if max-bandwidth is what limits: when less than 0.8 B goes out, L is that, and QEMU's own rule is right. A known
// link rate bounds L: L <= 0.9 * link rate; with probe=off it is L.
//
// When waiting does not reach S, that is when a sync found r >= 0.9 r' with r' found at least patience ago, a second
// sprint comes first. It tells whether the first was slowed down by a busy moment, and brings a guest to S that writes
// less than L in so short a time.
//
// When that does not reach S either, the guest is throttled as little as brings it there. Freshly dirtied pages then
// come, near S, at half of the rate at which they are sent:
//
//	R (1 - theta) (1 - S/W) = B/2      =>      theta = 1 - B / (2 R (1 - S/W)),     theta <= d / (d + 10 ms)
//
//	theta  throttle: share of time in which the vCPUs sleep; QEMU lets them run 10 ms and sleep 10 ms theta/(1 - theta), and the
//	       bound keeps each such sleep within the downtime limit, for a longer one is a downtime by another name
//	W      working set: the most that a sync after the first pass found, bytes
//	R      writes, bytes/s, from what the syncs of the last second found, for writes spread evenly over W:
//	       f = (W - u)(1 - exp(-R (1 - theta) t / W)) for f found fresh in the time t with u left over before; at most 98 % of W - u
//
// Strong and short is also the least in sum: the work that the guest loses is theta times the time until S is reached.
// QEMU applies a throttle at the second sync, more than 1 s after the last, that finds it necessary. A guest that does
// not need all of its processor time writes on undiminished at first: if a throttle in force for patience has not
// helped, the highest allowed follows. If R (1 - theta)(1 - S/W) > B at that one, or it has been in force without
// success for 4 (patience + r/B), post-copy takes over where it is allowed; else parameter hopeless.
//
// Source: ours. QEMU's rule: migration/migration.c, migration_update_counters; throttle: migration/ram.c and
// system/cpu-throttle.c.
func switchover() kind {
	return kind{
		name: "switchover", meaning: "the earliest switch-over that meets the downtime limit, by the true rate of the last " +
			"stage; then the least throttle; then post-copy",
		parameters: []parameter{
			{name: "margin", form: percent, value: 20, most: 90, meaning: "of the downtime limit, kept free"},
			{name: "device", form: duration, value: value(30 * time.Millisecond), meaning: "for stop, device state and start"},
			{name: "probe", form: choice, words: []string{"on", "off"},
				meaning: "lift max-bandwidth at most twice, each time for min(downtime limit, 0.3 s), to learn the rate of the last stage"},
			{name: "throttle", form: choice, words: []string{"on", "off"},
				meaning: "slow the guest down where waiting cannot do it"},
			{name: "patience", form: duration, value: value(2 * time.Second), least: value(time.Millisecond),
				meaning: "without progress before the guest is throttled"},
			{name: "hopeless", form: choice, words: []string{"wait", "abort"}, meaning: "when nothing can meet the limit"},
		},
		initial: func(s Spec, l Limits) Setting {
			setting := (&History{Setting: l.start()}).raise(s.effective(l))
			if l.CanThrottle && s.word("throttle") == "on" {
				// the least there is: none until it is asked for
				setting.ThrottleInitial, setting.ThrottleIncrement, setting.ThrottleMax = 1, 1, 1
			}
			return setting
		},
		needs: func(s Spec, l Limits) (capabilities []string, err error) {
			if l.CanThrottle && s.word("throttle") == "on" {
				capabilities = append(capabilities, "auto-converge")
			}
			if l.CanPostCopy {
				capabilities = append(capabilities, "postcopy-ram")
			}
			return capabilities, nil
		},
		policy: func(s Spec) Policy { return switcher{s, s.duration("patience"), s.word("throttle") == "on"}.decide },
	}
}

// effective is e: what of the downtime limit may be spent on sending.
func (s Spec) effective(l Limits) time.Duration {
	return max(times(l.DowntimeLimit, 1-s.share("margin"))-s.duration("device"), l.DowntimeLimit/4, time.Millisecond)
}

const (
	rateWindow = 200 * time.Millisecond // over which the rate of sending is taken: two of QEMU's windows
	capped     = 0.8                    // of max-bandwidth, from which on it is what limits
	// bytes that socket buffers may swallow: Linux's tcp_wmem and tcp_rmem, 4 and 6 MiB
	probeLead    = 10 << 20
	probeTime    = 300 * time.Millisecond // a sprint's longest
	probeLeast   = 20 * time.Millisecond  // to tell a rate from
	settle       = 300 * time.Millisecond // until QEMU's own bandwidth is that of a window wholly after the probe
	linkPayload  = 0.9                    // of a link's rate: what framing and headers leave
	progress     = 0.9                    // of what an earlier sync found: more is no progress
	mostFound    = 0.98                   // of what could be found fresh: more tells only that R is large
	wirePage     = 4104                   // bytes of a page with data on the wire
	slice        = 10 * time.Millisecond  // that QEMU lets a throttled vCPU run (CPU_THROTTLE_TIMESLICE_NS)
	fastestKnown = 1 << 30                // bytes/s of one stream on a fast machine: the bound on an unprobed rate
)

type switcher struct {
	Spec
	patience time.Duration
	throttle bool
}

func (s switcher) decide(h *History) Decision {
	probes, probing, ended, rate := s.probe(h)
	switch {
	case probing:
		return s.endProbe(h, ended, rate)
	case rate == 0:
		b, ok := h.sending(rateWindow)
		cap := float64(h.Limits.MaxBandwidth)
		switch {
		case !ok:
			return Decision{}
		case cap == 0 || b < capped*cap:
			rate = int64(b) // the line or the machine limits: QEMU's own rule is right
		default:
			if d := s.begin(h, "max-bandwidth "+units.FormatRate(cap)+" is what limits"); d.Action != "" || len(h.Passes) == 0 {
				return d
			}
			rate = int64(b) // nothing is known of the line: QEMU's own rule stands
		}
	case !h.Limits.CanSwitchoverBandwidth && h.Setting.DowntimeLimit == h.raise(s.effective(h.Limits)).DowntimeLimit &&
		h.Now.T-ended >= settle && rate > h.Limits.MaxBandwidth:
		limit := times(s.effective(h.Limits), float64(rate)/float64(h.Limits.MaxBandwidth))
		return Decision{Action: Set, Setting: h.raise(limit), Rate: rate,
			Text: fmt.Sprintf("%s fit into %s of the last stage; set downtime-limit to %s, so that QEMU stops at them while "+
				"it sends %s",
				s.fits(h, rate), units.FormatDuration(s.effective(h.Limits)), units.FormatDuration(limit),
				units.FormatRate(float64(h.Limits.MaxBandwidth)))}
	}
	return s.unstall(h, float64(rate), probes)
}

// fits is S as text.
func (s switcher) fits(h *History, rate int64) string {
	return units.FormatSize(int64(float64(rate) * s.effective(h.Limits).Seconds()))
}

// probe reads from the decisions made how many probes there were, whether one runs, when the last began or ended, and
// what is known of the rate.
func (s switcher) probe(h *History) (probes int, running bool, edge time.Duration, rate int64) {
	for _, d := range h.Made {
		switch lifted := d.Setting.MaxBandwidth != h.Limits.MaxBandwidth; {
		case lifted:
			probes, running, edge = probes+1, true, d.At
		case running || rate == 0:
			running, edge = false, d.At
		}
		rate = max(rate, d.Rate)
	}
	return probes, running, edge, rate
}

// sprint is how long max-bandwidth is lifted.
func sprint(l Limits) time.Duration { return min(l.DowntimeLimit, probeTime) }

// begin starts the probe, or does without where there is none.
func (s switcher) begin(h *History, why string) Decision {
	if s.word("probe") == "on" {
		lifted := h.Setting
		lifted.MaxBandwidth = 0
		lifted.DowntimeLimit = h.raise(s.effective(h.Limits)).DowntimeLimit // for QEMU's own bandwidth is the true one now
		return Decision{Action: Set, Setting: lifted,
			Text: fmt.Sprintf("%s; lift max-bandwidth for %s to learn what the last stage can send", why,
				units.FormatDuration(sprint(h.Limits)))}
	}
	if h.Limits.LinkRate == 0 {
		return Decision{}
	}
	rate := int64(min(linkPayload*float64(h.Limits.LinkRate), fastestKnown))
	return s.learnt(h, rate, fmt.Sprintf("the link has %s", units.FormatRate(float64(h.Limits.LinkRate))))
}

// endProbe ends the probe when it has seen enough. What an earlier one found holds, if it was more: what slows a probe
// down, the guest or a busy machine, can only make it find less.
func (s switcher) endProbe(h *History, began time.Duration, known int64) Decision {
	i := h.since(began)
	first := &h.Series[i] // the sample on which it began
	lead := i
	for lead < len(h.Series)-1 && *h.Series[lead].Transferred-*first.Transferred < probeLead {
		lead++
	}
	if h.Now.T-began < sprint(h.Limits) {
		return Decision{}
	}
	sent, took := *h.Now.Transferred-*h.Series[lead].Transferred, h.Now.T-h.Series[lead].T
	if took < probeLeast { // hardly more went than buffers take: count without them
		sent, took = max(*h.Now.Transferred-*first.Transferred-probeLead, 0), h.Now.T-began
	}
	rate := max(float64(sent)/max(took, time.Millisecond).Seconds(), float64(h.Limits.MaxBandwidth))
	if link := float64(h.Limits.LinkRate); link > 0 {
		rate = min(rate, linkPayload*link)
	}
	return s.learnt(h, max(int64(rate), known, 1),
		fmt.Sprintf("%s in %s", units.FormatSize(sent), units.FormatDuration(took)))
}

// learnt puts the cap back and tells QEMU the rate.
func (s switcher) learnt(h *History, rate int64, why string) Decision {
	next := h.Setting
	next.MaxBandwidth = h.Limits.MaxBandwidth
	text := fmt.Sprintf("the last stage can send %s (%s), and %s in %s; max-bandwidth is %s",
		units.FormatRate(float64(rate)), why, s.fits(h, rate),
		units.FormatDuration(s.effective(h.Limits)), units.FormatRate(float64(next.MaxBandwidth)))
	if h.Limits.CanSwitchoverBandwidth {
		next.SwitchoverBandwidth = rate
		text += "; set avail-switchover-bandwidth to that rate"
	}
	return Decision{Action: Set, Setting: next, Rate: rate, Text: text}
}

// sending is the rate on the wire over the last window, bytes/s; ok is false while that is not known, or mostly pages
// of zeros were sent, which cost next to nothing on the wire and so tell nothing of the line.
func (h *History) sending(window time.Duration) (rate float64, ok bool) {
	i := h.since(h.Now.T-window) - 1
	if i < 0 || h.Now.Pages == nil || h.Series[i].Pages == nil {
		return 0, false
	}
	sent, pages := float64(*h.Now.Transferred)-float64(*h.Series[i].Transferred),
		float64(*h.Now.Pages)-float64(*h.Series[i].Pages)
	return sent / (h.Now.T - h.Series[i].T).Seconds(), sent > 0 && sent >= pages*wirePage/2
}

// unstall does something about a guest that keeps more dirty than fits.
func (s switcher) unstall(h *History, rate float64, probes int) Decision {
	fits := rate * s.effective(h.Limits).Seconds()
	r := float64(h.Current.Begin)
	if !h.Edge || r <= fits {
		return Decision{}
	}
	all := seen(h)
	before := math.Inf(1)
	for _, f := range all {
		if f.at <= h.Now.T-s.patience {
			before = min(before, float64(f.bytes))
		}
	}
	if r < progress*before {
		return Decision{}
	}
	stalled := fmt.Sprintf("stalled: %s >= %.2f x %s, %s fit", units.FormatSize(int64(r)), progress,
		units.FormatSize(int64(before)), units.FormatSize(int64(fits)))
	if probes == 1 {
		return s.begin(h, stalled)
	}
	writes, set := h.writes(all)
	b, ok := h.sending(time.Second)
	if !ok || b <= 0 {
		b = float64(h.Limits.MaxBandwidth)
	}
	fresh := writes * (1 - min(fits/set, 1)) // dirtied anew near S, unthrottled, bytes/s
	why := fmt.Sprintf("%s; the guest writes %s in %s, %s go out", stalled, units.FormatRate(writes),
		units.FormatSize(int64(set)), units.FormatRate(b))
	most := int(100 * float64(h.Limits.DowntimeLimit) / float64(h.Limits.DowntimeLimit+slice))
	most = min(max(most, 1), 99)
	if now := h.Setting.ThrottleMax; s.throttle && h.Limits.CanThrottle && fresh*(1-float64(most)/100) < b || now > 1 {
		want := min(max(int(math.Ceil(100*(1-b/(2*fresh)))), 1), most)
		if now > 1 {
			want = most
		}
		applied, since := h.throttledFor(now)
		switch {
		case now > 1 && (!applied || since < s.patience): // it has not had its time
			return Decision{}
		case want > now:
			next := h.Setting
			next.ThrottleInitial, next.ThrottleIncrement, next.ThrottleMax = want, want, want
			return Decision{Action: Set, Setting: next, Rate: int64(rate), Text: fmt.Sprintf("%s; throttle to %d %%", why, want)}
		case since < 4*(s.patience+over(int64(r), b)):
			return Decision{}
		}
	}
	switch {
	case h.Limits.CanPostCopy:
		return Decision{Action: PostCopy, Rate: int64(rate), Text: why + "; post-copy"}
	case s.word("hopeless") == "abort":
		return Decision{Action: Abort, Rate: int64(rate), Text: why + "; nothing can meet the limit: abort"}
	}
	return Decision{}
}

// throttledFor tells whether QEMU has the throttle at that percentage, and since when.
func (h *History) throttledFor(percent int) (applied bool, since time.Duration) {
	if h.Now.Throttle == nil || *h.Now.Throttle < int64(percent) {
		return false, 0
	}
	at := h.Current.Start
	for i := len(h.Passes) - 1; i >= 0 && h.Passes[i].Throttle >= percent; i-- {
		at = h.Passes[i].Start
	}
	return true, h.Now.T - at
}

// writes are R and W: how fast the guest writes if nothing holds it up, bytes/s, and over how much, bytes.
func (h *History) writes(all []found) (rate, set float64) {
	for _, f := range all {
		set = max(set, float64(f.bytes))
	}
	set = max(set, 4096)
	exponent, took := 0.0, 0.0
	next := &h.Current
	for i := len(h.Passes) - 1; i >= 0 && took < 1; i-- {
		p := &h.Passes[i]
		left := min(float64(p.End), set-1)
		part := max(float64(next.Begin)-left, 0) / (set - left)
		exponent -= math.Log(1 - min(part, mostFound))
		took += p.Duration.Seconds() * (1 - float64(min(p.Throttle, 99))/100)
		next = p
	}
	return set * exponent / max(took, 1e-3), set
}
