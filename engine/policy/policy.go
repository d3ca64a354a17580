// Package policy holds convergence policies: what to do about a migration that does not come to its end by itself. A
// policy is a pure function of the history: no clock, no input or output, no state of its own. So the engine asks it
// live at every sample, a simulation asks it in no time, and Replay asks it again over a recorded series and must get
// the same decisions.
//
// Sizes are in bytes, rates in bytes per second, times count from the first command, as in record. docs/policies.md has
// each policy's formula and where it comes from.
package policy

import (
	"fmt"
	"sort"
	"time"

	"qmigrate/engine/record"
)

// Limits are what the plan allows and starts from: constant over a migration.
type Limits struct {
	MemoryBytes            int64
	MaxBandwidth           int64         // bytes/s; 0: unlimited
	DowntimeLimit          time.Duration // what was asked for
	CanPostCopy            bool          // both sides can, and it may be used
	CanThrottle            bool          // the capability auto-converge is there and may be used
	CanSwitchoverBandwidth bool          // the parameter avail-switchover-bandwidth is there: QEMU 8.2 and newer
	LinkRate               int64         // bytes/s; 0: not known
	TimedSyncs             bool          // bitmap syncs come by time and end no pass; see Turns
}

// Turns counts passes by the pages that were sent. QEMU 11.1 with postcopy-ram on syncs its bitmap each 100 ms,
// wherever it is, so that the count of syncs tells nothing of passes. There a pass ends at the first sync by which as
// many pages have been sent as were found dirty when it began.
type Turns struct {
	begun              bool
	syncs, sent, found int64 // of the last sync seen; the pages sent before the pass, and those that it began with
}

// Ends takes the next sample and reports whether it is the first one of a new pass. A sample without figures ends
// none.
func (t *Turns) Ends(x *record.Sample) bool {
	if x.SyncCount == nil || x.Pages == nil || x.Remaining == nil {
		return false
	}
	if !t.begun {
		*t = Turns{begun: true, syncs: *x.SyncCount, found: *x.Pages + *x.Remaining/pageSize}
		return false
	}
	if *x.SyncCount <= t.syncs {
		return false
	}
	t.syncs = *x.SyncCount
	if *x.Pages-t.sent < t.found {
		return false
	}
	t.sent, t.found = *x.Pages, *x.Remaining/pageSize
	return true
}

// pageSize is that of the x86 guest's RAM in QEMU's dirty bitmap.
const pageSize = 4096

// gib is the guest's memory in GiB.
func (l Limits) gib() float64 { return float64(l.MemoryBytes) / (1 << 30) }

// start is the setting of a plan without a policy.
func (l Limits) start() Setting {
	return Setting{MaxBandwidth: l.MaxBandwidth, DowntimeLimit: l.DowntimeLimit}
}

// Setting is what is in force now. A zero in a field but MaxBandwidth means that it was never set, and QEMU has its
// default.
type Setting struct {
	MaxBandwidth        int64         // max-bandwidth, bytes/s; 0: unlimited
	DowntimeLimit       time.Duration // downtime-limit, in whole ms
	ThrottleInitial     int           // cpu-throttle-initial, percent
	ThrottleIncrement   int           // cpu-throttle-increment, percent
	ThrottleMax         int           // max-cpu-throttle, percent
	SwitchoverBandwidth int64         // avail-switchover-bandwidth, bytes/s
}

// Changed is what of s differs from before, by QEMU's names and in QEMU's units: the arguments of
// migrate-set-parameters.
func (s Setting) Changed(before Setting) map[string]int64 {
	p := map[string]int64{}
	for _, f := range []struct {
		name     string
		now, was int64
	}{
		{"max-bandwidth", s.MaxBandwidth, before.MaxBandwidth},
		{"downtime-limit", s.DowntimeLimit.Milliseconds(), before.DowntimeLimit.Milliseconds()},
		{"cpu-throttle-initial", int64(s.ThrottleInitial), int64(before.ThrottleInitial)},
		{"cpu-throttle-increment", int64(s.ThrottleIncrement), int64(before.ThrottleIncrement)},
		{"max-cpu-throttle", int64(s.ThrottleMax), int64(before.ThrottleMax)},
		{"avail-switchover-bandwidth", s.SwitchoverBandwidth, before.SwitchoverBandwidth},
	} {
		if f.now != f.was {
			p[f.name] = f.now
		}
	}
	return p
}

// MaxDowntimeLimit is the largest downtime-limit that QEMU takes (migration/options.c, 7.2 to 11.1).
const MaxDowntimeLimit = 2000 * time.Second

// Pass is one turn over the pages that a bitmap sync found, by the samples: off by up to one sampling interval at each
// end.
type Pass struct {
	// from 1: the set-up's copy of all memory; a pass too short to be seen is counted, and not kept
	Number   int
	Start    time.Duration // its first sample
	Duration time.Duration // to the next pass's first sample
	Sent     int64         // bytes on the wire
	// bytes remaining at its first and its last sample: Begin is what the sync found dirty, and what it left over
	Begin, End int64
	Throttle   int // percent, at its last sample
}

// History is what a policy may know.
type History struct {
	Limits  Limits
	Setting Setting       // in force now
	Begin   time.Duration // `migrate`, on the samples' clock
	Passes  []Pass        // that have ended
	Current Pass          // the running one, up to Now
	Edge    bool          // Now is the first sample of Current, which is not the first pass
	Now     record.Sample // the newest
	// all of the source's samples of the running pre-copy, Now last; each has transferred, remaining and sync count
	Series []record.Sample
	Made   []Decision // so far
}

// Action is what a policy wants to be done.
type Action string

// The actions. The zero one is to go on.
const (
	Set Action = "set" // change parameters to those of Decision.Setting
	// stop the guest now and finish: set downtime-limit to MaxDowntimeLimit, for after `stop` QEMU would go on at
	// max-bandwidth
	Stop     Action = "stop"
	PostCopy Action = "post-copy" // migrate-start-postcopy
	Abort    Action = "abort"     // cancel; the guest stays on the source
)

// final tells whether nothing can be decided after it.
func (a Action) final() bool { return a == Stop || a == PostCopy || a == Abort }

// Decision is one step.
type Decision struct {
	Action  Action
	Setting Setting       // for Set: the whole new setting
	Rate    int64         // what the last stage was found able to send, bytes/s; 0: the decision does not rest on it
	Pass    int           // during which it was taken
	At      time.Duration // the sample that it was taken on
	Text    string        // what was seen, and what is done about it
}

// Record is the decision as the migration's record keeps it.
func (d Decision) Record() record.Decision {
	return record.Decision{Pass: d.Pass, At: d.At, Text: d.Text}
}

// Policy decides; the zero Decision is to go on. It must be a pure function of the history, and must not change it.
// Pass, At and the number of the pass before the text are filled in by the Follower.
type Policy func(h *History) Decision

// horizon is where times end, so that sums of them cannot overflow: 36 years.
const horizon = time.Duration(1) << 60

// Follower folds samples one by one into a History and asks the policy at each.
type Follower struct {
	policy Policy
	turns  Turns
	h      History
	ended  bool
}

// Follow starts a history: s is what is in force when `migrate` is sent, begin that instant on the samples' clock.
func Follow(p Policy, l Limits, s Setting, begin time.Duration) *Follower {
	return &Follower{policy: p, h: History{Limits: l, Setting: s, Begin: begin}}
}

// Observe takes one sample and returns the decision on it, which is taken to be carried out. Samples that tell nothing
// of a running pre-copy are skipped. Nothing is decided any more after a decision to stop, to go over to post-copy, or
// to abort.
func (f *Follower) Observe(x record.Sample) Decision {
	h := &f.h
	if x.Transferred == nil || x.Remaining == nil || x.SyncCount == nil || *x.Transferred < 0 || *x.Remaining < 0 ||
		x.Status != "active" || x.Side == record.Destination || x.T < h.Begin || x.T > horizon || len(h.Series) > 0 &&
		x.T <= h.Now.T || f.ended {
		return Decision{}
	}
	f.fold(x)
	d := f.policy(h)
	if d.Action == "" {
		return Decision{}
	}
	d.Pass, d.At = h.Current.Number, x.T
	d.Text = fmt.Sprintf("pass %d: %s", d.Pass, d.Text)
	if d.Action == Set {
		h.Setting = d.Setting
	} else {
		d.Setting = h.Setting
	}
	h.Made = append(h.Made, d)
	f.ended = d.Action.final()
	return d
}

// Made are the decisions so far.
func (f *Follower) Made() []Decision { return f.h.Made }

// fold adds a sample. A pass begins where the count of bitmap syncs rises, or with Limits.TimedSyncs where Turns says
// so. QEMU 7.2 to 10.2 count the set-up's sync as the first, 11.1 does not: the rise from 0 to 1 opens no pass.
func (f *Follower) fold(x record.Sample) {
	h := &f.h
	throttle := 0
	if x.Throttle != nil {
		throttle = int(min(max(*x.Throttle, 0), 100))
	}
	h.Edge = false
	turned := f.turns.Ends(&x)
	if len(h.Series) == 0 {
		h.Current = Pass{Number: 1, Start: h.Begin, Begin: *x.Remaining}
	} else {
		risen := *x.SyncCount - *h.Now.SyncCount
		if *h.Now.SyncCount == 0 && risen > 0 {
			risen--
		}
		if h.Limits.TimedSyncs {
			risen = 0
			if turned {
				risen = 1
			}
		}
		if risen > 0 {
			p := h.Current
			p.Duration, p.Sent = x.T-p.Start, p.Sent+max(*x.Transferred-*h.Now.Transferred, 0)
			h.Passes = append(h.Passes, p)
			h.Current = Pass{Number: p.Number + int(min(risen, 1<<20)), Start: x.T, Begin: *x.Remaining}
			h.Edge = true
		} else {
			h.Current.Sent += max(*x.Transferred-*h.Now.Transferred, 0)
		}
	}
	h.Current.End, h.Current.Duration, h.Current.Throttle = *x.Remaining, x.T-h.Current.Start, throttle
	h.Now = x
	h.Series = append(h.Series, x)
}

// Replay runs a policy over a recorded series. Its decisions must be those in the record.
func Replay(p Policy, l Limits, s Setting, begin time.Duration, series []record.Sample) []Decision {
	f := Follow(p, l, s, begin)
	for _, x := range series {
		f.Observe(x)
	}
	return f.Made()
}

// Elapsed is the time since `migrate`.
func (h *History) Elapsed() time.Duration { return h.Now.T - h.Begin }

// Last is the pass that ended last; ok is false while the first one runs.
func (h *History) Last() (p Pass, ok bool) {
	if len(h.Passes) == 0 {
		return Pass{}, false
	}
	return h.Passes[len(h.Passes)-1], true
}

// due tells whether a tick of the given period since `migrate` has come since the sample before.
func (h *History) due(period time.Duration) bool {
	before := h.Begin
	if n := len(h.Series); n > 1 {
		before = h.Series[n-2].T
	}
	return (h.Now.T-h.Begin)/period > (before-h.Begin)/period
}

// since is the index of the first sample at or after t; len(h.Series) if there is none.
func (h *History) since(t time.Duration) int {
	return sort.Search(len(h.Series), func(i int) bool { return h.Series[i].T >= t })
}

// ticks calls f with the first sample at or after each tick of the given period since `migrate`, in order.
func (h *History) ticks(period time.Duration, f func(x *record.Sample)) {
	for t := h.Begin + period; t <= h.Now.T; t += period {
		if i := h.since(t); i < len(h.Series) {
			f(&h.Series[i])
			t += (h.Series[i].T - t) / period * period // ticks without a sample of their own have none
		}
	}
}

// raise is the setting with another downtime-limit, in whole ms and within QEMU's limits.
func (h *History) raise(limit time.Duration) Setting {
	s := h.Setting
	s.DowntimeLimit = min(max(limit.Truncate(time.Millisecond), time.Millisecond), MaxDowntimeLimit)
	return s
}
