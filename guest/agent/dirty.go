package main

import (
	"context"
	"fmt"
	"math"
	"math/bits"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
)

// dirtier writes pages of the filled memory, at a rate, in a pattern, by one writer or several.
type dirtier struct {
	mem     *memory
	clock   clock
	lines   int // lines that one write alters
	set     int // pages of the working set
	drift   float64
	phase   phase
	writers []*writer

	// Under mem.mu:
	first  int // page at which the working set begins now: shared to read, alone to change
	res    wire.Dirtied
	since  uint32 // the interval in which it started
	marked wire.Marked
	begun  time.Duration // when run began
}

// writer is one writer of a dirtier: it alone writes the pages [from, to) of the working set.
type writer struct {
	d        *dirtier
	cpu      int // on which it stays; -1: wherever the kernel puts it
	from, to int

	// Written by the writer while it shares mem.mu; read and reset by who has it alone:
	pace     pacer
	pick     picker
	writes   uint64
	distinct int64  // pages first written since the start
	interval int64  // pages first written since the last mark
	marked   uint64 // writes at the last mark
}

// batch is how many writes are done under one lock: about 1 ms of them under TCG.
const batch = 256

// leastPeriod is ten batches: the shortest in which work and rest can be told apart.
const leastPeriod = 10 * time.Millisecond

func newDirtier(a *agent, w wire.Workload) (*dirtier, error) {
	size := int64(w.Number("working-set"))
	c, err := contentOf(w.Choice("content"))
	if err != nil {
		return nil, err
	}
	n := int(w.Number("vcpus"))
	if have := runtime.NumCPU(); n > have {
		return nil, fmt.Errorf("vcpus=%d, but the guest has %d", n, have)
	}
	if p := w.Duration("period"); p > 0 && p < leastPeriod {
		return nil, fmt.Errorf("period=%v is too short: 0s (no rest), or %v and more", p, leastPeriod)
	}
	if a.mem.size.Load() == 0 {
		if _, err := a.fill(wire.Fill{Bytes: max(size, a.defaultFill())}); err != nil {
			return nil, err
		}
	}
	d := &dirtier{
		mem: &a.mem, clock: a.clock, lines: int(w.Number("change")) / 64, drift: w.Number("drift") / wire.PageSize,
		phase: phase{period: w.Duration("period"), work: time.Duration(w.Number("duty") / 100 * w.Number("period"))},
	}
	a.mem.mu.Lock()
	defer a.mem.mu.Unlock()
	d.set = int((size + wire.PageSize - 1) / wire.PageSize)
	if d.set > len(a.mem.table) {
		return nil, fmt.Errorf("working-set of %d bytes is more than the filled %d: fill more first", size, len(a.mem.data))
	}
	if d.set < n {
		return nil, fmt.Errorf("working-set of %d pages is too small for %d writers", d.set, n)
	}
	for i := range n {
		wr := &writer{d: d, cpu: i, from: d.set * i / n, to: d.set * (i + 1) / n}
		if n == 1 {
			wr.cpu = -1
		}
		wr.pick = picker{pattern: w.Choice("pattern"), set: wr.to - wr.from, state: a.mem.seed + uint64(i)<<56}
		d.writers = append(d.writers, wr)
	}
	d.share(w.Number("rate"))
	a.mem.interval++
	d.since = a.mem.interval
	reach := d.set
	if d.drift > 0 {
		reach = len(a.mem.table) // it comes through all of it
	}
	for i := range reach {
		if a.mem.table[i].content != c {
			a.mem.rewrite(i, c)
			d.res.Prepared++
		}
	}
	return d, nil
}

// share divides a rate among the writers as the working set is divided.
func (d *dirtier) share(rate float64) {
	d.res.Rate = rate
	for _, w := range d.writers {
		w.pace.rate = rate * float64(w.to-w.from) / float64(d.set)
	}
}

func (d *dirtier) setRate(rate float64) error {
	for _, p := range (wire.Workload{Name: "dirty"}).Type().Params {
		if p.Name == "rate" && !(rate >= p.Min && rate <= p.Max) {
			return fmt.Errorf("rate %v/s is out of range: %v/s to %v/s", rate, p.Min, p.Max)
		}
	}
	d.mem.mu.Lock()
	defer d.mem.mu.Unlock()
	d.share(rate)
	now := d.phase.worked(d.clock.now() - d.begun)
	for _, w := range d.writers {
		w.pace.start(now) // what was due at the old rate is not owed
	}
	return nil
}

func (d *dirtier) run(ctx context.Context, m *meter) error {
	now := d.clock.now()
	d.mem.mu.Lock()
	d.begun, d.marked.At = now, now
	for _, w := range d.writers {
		w.pace.start(0)
	}
	d.mem.mu.Unlock()
	if len(d.writers) == 1 {
		return d.writers[0].run(ctx, m)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	for _, w := range d.writers {
		all.Go(func() {
			if err := runGuarded(ctx, w, m); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	if err := context.Cause(ctx); err != context.Canceled {
		return err
	}
	return nil
}

func (w *writer) result() any { return nil }

func (w *writer) run(ctx context.Context, m *meter) error {
	d := w.d
	if w.cpu >= 0 {
		runtime.LockOSThread() // and never given back: the thread ends with its writer
		var one unix.CPUSet
		one.Set(w.cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("stay on vCPU %d: %w", w.cpu, err)
		}
	}
	for ctx.Err() == nil {
		at := d.clock.now() - d.begun
		if d.drift > 0 {
			d.move(at)
		}
		if rest := d.phase.rest(at); rest > 0 {
			d.clock.sleep(min(rest, nap))
			continue
		}
		n, wait := w.turn(d.phase.worked(at))
		if n == 0 {
			d.clock.sleep(wait)
			continue
		}
		m.add(d.clock.now(), n)
	}
	return nil
}

// turn writes what is due, a batch at most, and says how long to wait if that is nothing.
func (w *writer) turn(at time.Duration) (n int, wait time.Duration) {
	mem := w.d.mem
	mem.mu.RLock()
	defer mem.mu.RUnlock()
	if n = min(w.pace.due(at), batch); n == 0 {
		return 0, w.pace.wait()
	}
	w.pace.spend(n)
	for range n {
		i := (w.d.first + w.from + w.pick.next()) % len(mem.table)
		mem.write(i, w.d.lines)
		if p := &mem.table[i]; p.interval != mem.interval {
			if p.interval < w.d.since {
				w.distinct++
			}
			p.interval = mem.interval
			w.interval++
		}
	}
	mem.claimed.Add(uint64(n))
	w.writes += uint64(n)
	return n, 0
}

// driftStep is how often the working set moves at most: moving it stops all writers for a moment.
const driftStep = 10 * time.Millisecond

// move lets the working set begin where it should at this time of the run.
func (d *dirtier) move(at time.Duration) {
	pages := d.drift * (at - at%driftStep).Seconds()
	first := int(math.Mod(pages, float64(len(d.mem.table)))) // the table stays while a workload runs
	d.mem.mu.RLock()
	same := first == d.first
	d.mem.mu.RUnlock()
	if !same {
		d.mem.mu.Lock()
		d.first = first
		d.mem.mu.Unlock()
	}
}

func (d *dirtier) mark() wire.Marked {
	d.mem.mu.Lock()
	defer d.mem.mu.Unlock()
	d.marked = wire.Marked{From: d.marked.At, At: d.clock.now()}
	for _, w := range d.writers {
		d.marked.Writes += w.writes - w.marked
		d.marked.Distinct += w.interval
		w.marked, w.interval = w.writes, 0
	}
	d.mem.interval++
	return d.marked
}

func (d *dirtier) result() any {
	d.mem.mu.Lock()
	defer d.mem.mu.Unlock()
	r := d.res
	r.WorkingSet, r.VCPUs, r.Start = int64(d.set), len(d.writers), int64(d.first)
	missed := 0.0
	for _, w := range d.writers {
		r.Writes += w.writes
		r.Distinct += w.distinct
		missed += w.pace.missed
	}
	r.Missed = uint64(missed)
	return r
}

// phase is a period that begins with work and ends with rest; without a period all is work.
type phase struct{ period, work time.Duration }

// worked is how much of the time since the beginning was work. The pacer's time: a rate is one of the working phases.
func (p phase) worked(at time.Duration) time.Duration {
	if p.period == 0 {
		return at
	}
	return at/p.period*p.work + min(at%p.period, p.work)
}

// rest is how long the rest still lasts; 0: it is time to work.
func (p phase) rest(at time.Duration) time.Duration {
	if p.period == 0 || at%p.period < p.work {
		return 0
	}
	return p.period - at%p.period
}

// pacer holds a rate right on average by tokens, a token a write:
//
//	b(t) = min(D*r, b(t') + r*(t - t'))    and, after n = min(floor(b(t)), batch) writes,    b <- b - n
//
//	b  tokens in hand, pages            r  rate, pages/s            t, t'  this turn and the last, on the guest's clock, s
//	D  depth, s: debt that is older is given up and counted as missed, so that a guest which got no CPU for a while (a throttled
//	   or stopped one) does not answer with a burst that nobody asked for
//
// Between turns it sleeps until the next token, and at least quantum: many writes a turn at a high rate, one at a low.
// r = 0 is no limit.
type pacer struct {
	rate   float64
	tokens float64
	last   time.Duration
	missed float64
}

const (
	paceDepth   = 200 * time.Millisecond
	paceQuantum = time.Millisecond
)

func (p *pacer) start(now time.Duration) { p.last, p.tokens = now, 0 }

// due is how many writes may be done now.
func (p *pacer) due(now time.Duration) int {
	if p.rate == 0 {
		return batch
	}
	now = max(now, p.last) // who changed the rate may have read the clock later than the writer
	p.tokens += p.rate * (now - p.last).Seconds()
	p.last = now
	if most := max(p.rate*paceDepth.Seconds(), 1); p.tokens > most {
		p.missed += p.tokens - most
		p.tokens = most
	}
	return int(p.tokens)
}

func (p *pacer) spend(n int) {
	if p.rate != 0 {
		p.tokens -= float64(n)
	}
}

// nap is the longest sleep, so that a stop or a new rate is noticed.
const nap = 50 * time.Millisecond

// wait is how long to sleep when nothing is due: at most nap, so that a stop is noticed.
func (p *pacer) wait() time.Duration {
	next := time.Duration(math.Ceil((1 - p.tokens) / p.rate * 1e9))
	return min(max(next, paceQuantum), nap)
}

// picker says which page is next.
type picker struct {
	pattern string
	set     int // pages
	at      int // of the sequential pattern
	state   uint64
}

func (p *picker) next() int {
	switch p.pattern {
	case wire.Sequential:
		i := p.at
		if p.at++; p.at == p.set {
			p.at = 0
		}
		return i
	case wire.HotCold:
		hot := max(p.set/10, 1)
		if p.below(10) > 0 || hot == p.set {
			return p.below(hot)
		}
		return hot + p.below(p.set-hot)
	}
	return p.below(p.set)
}

// below is a random number in [0, n), by Lemire's multiplication: its bias, n / 2^64, is nothing here.
func (p *picker) below(n int) int {
	p.state += 0x9e3779b97f4a7c15
	hi, _ := bits.Mul64(mix(p.state), uint64(n))
	return int(hi)
}
