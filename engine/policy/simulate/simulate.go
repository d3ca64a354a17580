// Package simulate runs QEMU's own pre-copy loop over a guest that is arithmetic: no clock, no input or output. It
// makes the samples that query-migrate would give, asks a policy at each, does what it says, and tells what came of it.
//
// What is QEMU's: windows of 100 ms with a budget of max-bandwidth, the bandwidth and the threshold of each, the
// circular cursor over RAM, the bitmap sync when less is left than the threshold, zero pages, the unlimited last stage,
// auto-converge (docs/policies.md). What is simplified: time goes in ticks of 10 ms, writes of a tick come before its
// sends, the link is a constant rate, and a guest in post-copy runs at half its speed until its pages are there, which
// is an assumption and not a measurement.
package simulate

import (
	"math/bits"
	"time"

	"qmigrate/engine/policy"
	"qmigrate/engine/record"
)

// Pattern is the order in which the guest writes.
type Pattern string

// The patterns; the zero one is uniform.
const (
	Uniform    Pattern = "uniform"
	Sequential Pattern = "sequential"
	HotCold    Pattern = "hot-cold" // 9 of 10 writes go to a tenth of the set
)

// Guest is what moves.
type Guest struct {
	Memory     int64   // bytes, a multiple of 4096
	Data       int64   // bytes of it that are not zero; they come last
	WorkingSet int64   // bytes that it rewrites: the end of Data
	Rate       float64 // writes, pages/s, when nothing holds it up
	Pattern    Pattern
	Seed       uint64
}

// Machine is what it moves on.
type Machine struct {
	Line     float64       // bytes/s that a stream gets when max-bandwidth does not limit it
	Device   time.Duration // stop, device state and start
	Forced   bool          // a sync each 5 s while throttling: QEMU 9.2 and newer
	Sampling time.Duration // of the series; 0: 10 ms
	Limit    time.Duration // the simulation ends here; 0: 300 s
}

// Outcome is how it ended.
type Outcome string

// The outcomes.
const (
	Moved    Outcome = "moved"
	PostCopy Outcome = "post-copy" // moved, and its pages followed
	Aborted  Outcome = "aborted"
	Running  Outcome = "not done" // at Machine.Limit
)

// Result is what came of it.
type Result struct {
	Outcome  Outcome
	Time     time.Duration // `migrate` to RESUME; in post-copy to the last page
	Downtime time.Duration
	Bytes    int64   // on the wire
	Slowdown float64 // percent of the guest's writes lost while it ran: the downtime is not in it
	Lost     float64 // seconds of the guest's writes lost in all, the downtime among them
	Passes   int
	Made     []policy.Decision
	Series   []record.Sample
}

const (
	page     = 4096
	wire     = 4104 // a page with data
	zero     = 9    // a page of zeros
	tick     = 10 * time.Millisecond
	window   = 100 * time.Millisecond
	perPage  = 300 * time.Nanosecond // to look at a page of zeros
	slowPost = 0.5
)

type run struct {
	g      Guest
	m      Machine
	set    policy.Setting
	can    map[string]bool
	pages  int
	first  int      // of the working set
	dirty  []uint64 // QEMU's bitmap: to be sent
	log    []uint64 // written since the last sync
	sent   []uint64 // at least once: a page of zeros is cheap until it was written
	left   int      // bits in dirty
	cursor int
	state  uint64 // of the random numbers
	next   int    // of the sequential pattern
	due    float64

	now                      time.Duration
	bytes                    int64
	count, syncs             int64
	budget                   float64 // left in this window
	windowAt                 time.Duration
	windowBytes              int64
	threshold, throughput    float64
	expected                 time.Duration
	lastSync                 int64 // bytes left after it
	periodAt                 time.Duration
	periodDirty, periodBytes int64
	dirtyRate                int64
	high, throttle           int
	forcedAt                 time.Duration
	possible, written        float64
}

// Run moves the guest under a policy.
func Run(g Guest, m Machine, s policy.Spec, l policy.Limits) (Result, error) {
	setting, capabilities, err := s.Initial(l)
	if err != nil {
		return Result{}, err
	}
	return RunPolicy(g, m, s.Policy(), l, setting, capabilities), nil
}

// RunPolicy is Run for a policy that is not in the package.
func RunPolicy(g Guest, m Machine, p policy.Policy, l policy.Limits, setting policy.Setting,
	capabilities []string) Result {
	if m.Sampling == 0 {
		m.Sampling = tick
	}
	if m.Limit == 0 {
		m.Limit = 300 * time.Second
	}
	r := newRun(g, m, setting, capabilities)
	f := policy.Follow(p, l, setting, 0)
	var res Result
	end := func(o Outcome, down time.Duration) Result {
		res.Outcome, res.Time, res.Downtime, res.Bytes, res.Passes = o, r.now, down, r.bytes, int(r.syncs)
		if r.possible > 0 {
			res.Slowdown = 100 * (1 - r.written/r.possible)
			res.Lost = down.Seconds() + (r.possible-r.written)/g.Rate
		}
		res.Made = f.Made()
		return res
	}
	for r.now < m.Limit {
		r.write(tick)
		r.now += tick
		if r.iterate(tick) {
			down := m.Device + r.finish()
			r.now += down
			return end(Moved, down)
		}
		if r.now%m.Sampling != 0 {
			continue
		}
		x := r.sample()
		res.Series = append(res.Series, x)
		switch d := f.Observe(x); d.Action {
		case policy.Set:
			r.set = d.Setting
		case policy.Stop:
			r.set.DowntimeLimit = policy.MaxDowntimeLimit
		case policy.Abort:
			return end(Aborted, 0)
		case policy.PostCopy:
			r.sync()
			r.now += m.Device
			took := r.finish()
			r.now += took
			r.possible += took.Seconds() * g.Rate
			r.written += took.Seconds() * g.Rate * slowPost
			return end(PostCopy, m.Device)
		}
	}
	return end(Running, 0)
}

func newRun(g Guest, m Machine, setting policy.Setting, capabilities []string) *run {
	n := int(g.Memory / page)
	r := &run{g: g, m: m, set: setting, pages: n, can: map[string]bool{}, state: g.Seed, budget: -1}
	for _, c := range capabilities {
		r.can[c] = true
	}
	words := (n + 63) / 64
	r.dirty, r.log, r.sent = make([]uint64, words), make([]uint64, words), make([]uint64, words)
	for i := range n {
		r.dirty[i/64] |= 1 << (i % 64)
	}
	r.left, r.syncs, r.expected = n, 1, setting.DowntimeLimit
	r.lastSync = int64(n) * page
	r.first = max(n-int(min(g.WorkingSet, g.Data)/page), 0)
	r.refill()
	return r
}

// write lets the guest run.
func (r *run) write(d time.Duration) {
	r.possible += r.g.Rate * d.Seconds()
	r.due += r.g.Rate * d.Seconds() * (1 - float64(r.throttle)/100)
	set := r.pages - r.first
	for ; r.due >= 1 && set > 0; r.due-- {
		i := 0
		switch r.g.Pattern {
		case Sequential:
			i = r.next
			r.next = (r.next + 1) % set
		case HotCold:
			if hot := max(set/10, 1); r.below(10) > 0 || hot == set {
				i = r.below(hot)
			} else {
				i = hot + r.below(set-hot)
			}
		default:
			i = r.below(set)
		}
		i += r.first
		r.log[i/64] |= 1 << (i % 64)
		r.written++
	}
}

// below is a random number in [0, n), by splitmix64.
func (r *run) below(n int) int {
	r.state += 0x9e3779b97f4a7c15
	z := r.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	hi, _ := bits.Mul64(z^z>>31, uint64(n))
	return int(hi)
}

// iterate is a tick of the migration thread; true when the guest is to be stopped.
func (r *run) iterate(d time.Duration) bool {
	if r.now-r.windowAt >= window {
		r.endWindow()
	}
	if r.throttle > 0 && r.m.Forced && r.now-r.forcedAt >= 5*time.Second {
		r.sync()
	}
	if float64(r.left)*page < r.threshold {
		r.sync()
	}
	if r.left == 0 || float64(r.left)*page < r.threshold {
		r.sync()
		return true
	}
	able := r.m.Line * d.Seconds()
	if r.set.MaxBandwidth > 0 {
		able = min(able, r.budget)
	}
	before := r.bytes
	r.send(able, d)
	r.budget -= float64(r.bytes - before)
	return false
}

func (r *run) refill() { r.budget = float64(r.set.MaxBandwidth) * window.Seconds() }

// endWindow is migration_update_counters.
func (r *run) endWindow() {
	took := r.now - r.windowAt
	r.throughput = float64(r.bytes-r.windowBytes) / took.Seconds()
	b := r.throughput
	if r.set.SwitchoverBandwidth > 0 {
		b = float64(r.set.SwitchoverBandwidth)
	}
	r.threshold = b * r.set.DowntimeLimit.Seconds()
	if r.dirtyRate > 0 && r.bytes-r.windowBytes > 10000 && b > 0 {
		r.expected = time.Duration(float64(r.lastSync) / b * float64(time.Second)).Truncate(time.Millisecond)
	}
	r.windowAt, r.windowBytes = r.now, r.bytes
	r.refill()
}

// sync is migration_bitmap_sync, auto-converge included.
func (r *run) sync() {
	fresh := 0
	for i, w := range r.log {
		fresh += bits.OnesCount64(w &^ r.dirty[i])
		r.dirty[i] |= w
		r.log[i] = 0
	}
	r.left += fresh
	r.syncs++
	r.lastSync = int64(r.left) * page
	r.forcedAt = r.now
	r.periodDirty += int64(fresh)
	if r.now <= r.periodAt+time.Second {
		return
	}
	if r.can["auto-converge"] {
		if 2*r.periodDirty*page > r.bytes-r.periodBytes {
			if r.high++; r.high >= 2 {
				r.high = 0
				initial, increment, most := or(r.set.ThrottleInitial, 20), or(r.set.ThrottleIncrement, 10),
					or(r.set.ThrottleMax, 99)
				if r.throttle == 0 {
					r.throttle = initial
				} else {
					r.throttle = min(r.throttle+increment, most)
				}
			}
		}
	}
	r.dirtyRate = int64(float64(r.periodDirty) / (r.now - r.periodAt).Seconds())
	r.periodAt, r.periodDirty, r.periodBytes = r.now, 0, r.bytes
}

func or(v, otherwise int) int {
	if v == 0 {
		return otherwise
	}
	return v
}

// send sends from the cursor on until the bytes or the time are used up, or a whole turn was fruitless.
func (r *run) send(able float64, d time.Duration) {
	spent := time.Duration(0)
	data := r.pages - int(r.g.Data/page)
	for turned := 0; able > 0 && spent < d && r.left > 0 && turned < r.pages; {
		if r.cursor%64 == 0 && r.dirty[r.cursor/64] == 0 {
			turned += 64
			if r.cursor += 64; r.cursor >= r.pages {
				r.cursor = 0
			}
			continue
		}
		i := r.cursor
		if r.cursor++; r.cursor >= r.pages {
			r.cursor = 0
		}
		turned++
		bit := uint64(1) << (i % 64)
		if r.dirty[i/64]&bit == 0 {
			continue
		}
		turned = 0
		cost := wire
		if i < data && r.sent[i/64]&bit == 0 {
			cost = zero
			spent += perPage
		}
		r.sent[i/64] |= bit
		r.dirty[i/64] &^= bit
		r.left--
		r.count++
		r.bytes += int64(cost)
		able -= float64(cost)
	}
}

// finish sends all that is left, at the line's rate.
func (r *run) finish() time.Duration {
	before := r.bytes
	for r.left > 0 {
		r.send(float64(r.left+1)*wire, time.Hour)
	}
	return time.Duration(float64(r.bytes-before) / r.m.Line * float64(time.Second))
}

func (r *run) sample() record.Sample {
	return record.Sample{
		T: r.now, Asked: r.now, Side: record.Source, Status: "active",
		Transferred: record.Of(r.bytes), Remaining: record.Of(int64(r.left) * page), DirtyPagesRate: record.Of(r.dirtyRate),
		Throughput: record.Of(r.throughput), Throttle: record.Of(int64(r.throttle)), ExpectedDowntime: record.Of(r.expected),
		SyncCount: record.Of(r.syncs), Pages: record.Of(r.count),
	}
}
