package main

import (
	"context"
	"fmt"
	"math"
	"math/bits"
	"time"

	"qmigrate/guest/wire"
)

// dirtier writes pages of the filled memory, at a rate, in a pattern.
type dirtier struct {
	mem   *memory
	clock clock
	pace  pacer
	pick  picker
	lines int // lines that one write alters

	// Under mem.mu:
	seen []uint64 // a bit for each page of the working set that was written
	res  wire.Dirtied
}

// batch is how many writes are done under one lock: about 1 ms of them under TCG.
const batch = 256

func newDirtier(a *agent, w wire.Workload) (*dirtier, error) {
	size := int64(w.Number("working-set"))
	c, err := contentOf(w.Choice("content"))
	if err != nil {
		return nil, err
	}
	if a.mem.size.Load() == 0 {
		if _, err := a.fill(wire.Fill{Bytes: max(size, a.defaultFill())}); err != nil {
			return nil, err
		}
	}
	d := &dirtier{mem: &a.mem, clock: a.clock, pace: pacer{rate: w.Number("rate")}, lines: int(w.Number("change")) / 64}
	a.mem.mu.Lock()
	defer a.mem.mu.Unlock()
	set := int((size + wire.PageSize - 1) / wire.PageSize)
	if set > len(a.mem.table) {
		return nil, fmt.Errorf("working-set of %d bytes is more than the filled %d: fill more first", size, len(a.mem.data))
	}
	d.pick = picker{pattern: w.Choice("pattern"), set: set, state: a.mem.seed}
	d.seen = make([]uint64, (set+63)/64)
	d.res.WorkingSet = int64(set)
	for i := range set {
		if a.mem.table[i].content != c {
			a.mem.rewrite(i, c)
			d.res.Prepared++
		}
	}
	return d, nil
}

func (d *dirtier) run(ctx context.Context, m *meter) error {
	d.pace.start(d.clock.now())
	for ctx.Err() == nil {
		n := d.pace.due(d.clock.now())
		if n == 0 {
			d.clock.sleep(d.pace.wait())
			continue
		}
		d.write(min(n, batch))
		d.pace.spend(min(n, batch))
		m.add(d.clock.now(), min(n, batch))
	}
	return nil
}

func (d *dirtier) write(n int) {
	d.mem.mu.Lock()
	defer d.mem.mu.Unlock()
	for range n {
		i := d.pick.next()
		d.mem.write(i, d.lines)
		if bit := uint64(1) << (i % 64); d.seen[i/64]&bit == 0 {
			d.seen[i/64] |= bit
			d.res.Distinct++
		}
	}
	d.mem.claimed += uint64(n)
	d.res.Writes += uint64(n)
	d.res.Missed = uint64(d.pace.missed)
}

func (d *dirtier) result() any {
	d.mem.mu.Lock()
	defer d.mem.mu.Unlock()
	return d.res
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
