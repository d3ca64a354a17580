package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"qmigrate/guest/wire"
)

// A workload is one piece of work that runs across the migration.
type workload interface {
	// run works until ctx ends, which is no error, and counts its events. An error, and a panic, is the workload's
	// failure.
	run(ctx context.Context, m *meter) error
	// result is the workload's own result so far, or nil; it may be called while run runs and after it.
	result() any
}

// scored is a workload whose result has a unit of its own beside events a second.
type scored interface {
	score() *wire.Score // so far; nil: none yet
}

// spoiled is a workload whose own check can be made to fail, for tests: before its next check it alters one value.
type spoiled struct{ due atomic.Bool }

func (s *spoiled) spoil()       { s.due.Store(true) }
func (s *spoiled) spoilt() bool { return s.due.CompareAndSwap(true, false) }

// newWorkload makes the workload of a valid description; what it prepares here is not part of its measured time.
func (a *agent) newWorkload(w wire.Workload) (workload, error) {
	switch w.Name {
	case "idle":
		return idle{}, nil
	case "clock":
		return &ticks{clock: a.clock, interval: w.Duration("interval")}, nil
	case "dirty":
		return newDirtier(a, w)
	case "livermore":
		return newLivermore(a.clock, w)
	case "dhrystone":
		return newDhrystone(a.clock), nil
	case "linpack":
		n, err := strconv.Atoi(w.Choice("n"))
		return newLinpack(a.clock, n), err
	case "web":
		s, err := a.newTraffic(wire.WebPort)
		return &web{traffic: s, size: int(w.Number("size"))}, err
	case "tcp":
		s, err := a.newTraffic(wire.StreamPort)
		return &stream{traffic: s, rate: w.Number("rate")}, err
	}
	if load, ok, err := a.newTool(w); ok {
		return load, err
	}
	return nil, fmt.Errorf("workload %q is known but not built in", w.Name)
}

type idle struct{}

func (idle) run(ctx context.Context, _ *meter) error { <-ctx.Done(); return nil }
func (idle) result() any                             { return nil }

// ticks is study K's loop: sleep, read the clock, count.
type ticks struct {
	clock    clock
	interval time.Duration

	mu   sync.Mutex
	gaps gaps
	from time.Duration
	last time.Duration
}

func (t *ticks) run(ctx context.Context, m *meter) error {
	last := t.clock.now()
	t.mu.Lock()
	t.from, t.last = last, last
	t.mu.Unlock()
	for ctx.Err() == nil {
		t.clock.sleep(t.interval)
		now := t.clock.now()
		if now < last {
			return fmt.Errorf("the clock went back from %v to %v", last, now)
		}
		t.mu.Lock()
		t.gaps.add(last, now)
		t.last = now
		t.mu.Unlock()
		m.add(now, 1)
		last = now
	}
	return nil
}

func (t *ticks) result() any {
	t.mu.Lock()
	defer t.mu.Unlock()
	return wire.ClockReport{
		Interval: t.interval, Turns: t.gaps.n, Elapsed: t.last - t.from, Longest: t.gaps.longest, LongestAt: t.gaps.at,
		Resolution: t.gaps.quantile(0.5), P99: t.gaps.quantile(0.99),
	}
}

// meter counts events in bins of time. It keeps the last 64 Ki bins: 655 s.
type meter struct {
	mu    sync.Mutex
	start time.Duration
	total uint64
	last  int64 // the newest bin that is in use
	bins  [1 << 16]uint32

	lags  bool          // what it counts comes in reports: nothing is known after the last one's end
	known time.Duration // that end
}

// binWidth is a bin's width on the guest's clock.
const binWidth = 10 * time.Millisecond

// add counts n events that ended at a time of the guest's clock.
func (m *meter) add(at time.Duration, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.advance(int64((at - m.start) / binWidth))
	m.bins[m.last%int64(len(m.bins))] += uint32(n)
	m.total += uint64(n)
}

// lag says that all counts will come by spread.
func (m *meter) lag() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lags = true
}

// spread counts events evenly between two times, the second of which is later than that of every count before, and
// returns the rest of less than one event.
func (m *meter) spread(from, to time.Duration, n float64) (rest float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first, end := int64((max(from, m.start)-m.start)/binWidth), int64((to-m.start)/binWidth)
	first = max(first, end+1-int64(len(m.bins)))
	m.advance(end)
	each := n / float64(end-first+1)
	for b := first; b <= end; b++ {
		rest += each
		whole := uint64(rest)
		rest -= float64(whole)
		m.bins[b%int64(len(m.bins))] += uint32(whole)
		m.total += whole
	}
	m.known = to
	return rest
}

func (m *meter) advance(bin int64) {
	m.last = max(m.last, bin-int64(len(m.bins))) // what is older is overwritten anyway
	for m.last < bin {
		m.last++
		m.bins[m.last%int64(len(m.bins))] = 0
	}
}

// read fills in a status's events and its bins up to a time; the bin of that time only if it is the last for ever.
func (m *meter) read(s *wire.Status, ask wire.Bins, now time.Duration, ended bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Started, s.Elapsed, s.Bin = m.start, now-m.start, binWidth
	if m.lags {
		now = min(now, max(m.known, m.start))
	}
	m.advance(int64((now - m.start) / binWidth))
	end := m.last
	if ended {
		end++
	}
	limit := int64(ask.Max)
	switch {
	case ask.Max == 0 || ask.Max > 2048:
		limit = 2048
	case ask.Max < 0:
		limit = 0
	}
	first := min(max(ask.From, m.last+1-int64(len(m.bins)), 0), end) // older ones are gone, newer ones not there yet
	s.Events, s.First, s.Next = m.total, first, min(end, first+limit)
	for b := first; b < s.Next; b++ {
		s.Bins = append(s.Bins, uint64(m.bins[b%int64(len(m.bins))]))
	}
}

// job is the workload that runs, or the last that ran.
type job struct {
	w      wire.Workload
	load   workload
	meter  *meter
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended; what follows is then known
	end    time.Duration
	err    error
}

func (j *job) running() bool {
	select {
	case <-j.done:
		return false
	default:
		return true
	}
}

func (j *job) status(c clock, ask wire.Bins) wire.Status {
	s := wire.Status{Workload: j.w, State: wire.Running, Unit: j.w.Type().Event}
	ended, now := !j.running(), c.now()
	if ended {
		s.State, now = wire.Done, j.end
		if j.err != nil {
			s.State, s.Error = wire.Failed, j.err.Error()
		}
	}
	j.meter.read(&s, ask, now, ended)
	if r := j.load.result(); r != nil {
		s.Result, _ = json.Marshal(r) // plain structs of numbers
	}
	if l, ok := j.load.(scored); ok {
		s.Score = l.score()
	}
	return s
}

// setRate changes the rate of the workload that runs.
func (a *agent) setRate(r wire.NewRate) (wire.Status, error) {
	j, err := a.currentJob()
	if err != nil {
		return wire.Status{}, err
	}
	d, ok := j.load.(*dirtier)
	if !ok || !j.running() {
		return wire.Status{}, fmt.Errorf("%s has no rate that could be changed now: dirty has one while it runs", j.w.Name)
	}
	if err := d.setRate(r.Rate); err != nil {
		return wire.Status{}, err
	}
	return j.status(a.clock, wire.Bins{Max: -1}), nil
}

// spoil spoils the workload that runs.
func (a *agent) spoil() (struct{}, error) {
	j, err := a.currentJob()
	if err != nil {
		return struct{}{}, err
	}
	s, ok := j.load.(interface{ spoil() })
	if !ok {
		return struct{}{}, fmt.Errorf("%s does not check itself", j.w.Name)
	}
	s.spoil()
	return struct{}{}, nil
}

// mark ends an interval of the page dirtier's claim and begins the next.
func (a *agent) mark() (wire.Marked, error) {
	j, err := a.currentJob()
	if err != nil {
		return wire.Marked{}, err
	}
	d, ok := j.load.(*dirtier)
	if !ok {
		return wire.Marked{}, fmt.Errorf("%s claims no pages: dirty does", j.w.Name)
	}
	return d.mark(), nil
}

var errNoJob = errors.New("no workload was started")

// stopLimit is how long a workload may take to notice that it is to stop.
const stopLimit = 10 * time.Second

func (a *agent) startWorkload(w wire.Workload) (wire.Status, error) {
	if err := w.Validate(); err != nil {
		return wire.Status{}, err
	}
	a.work.Lock()
	defer a.work.Unlock()
	if j, err := a.currentJob(); err == nil && j.running() {
		return wire.Status{}, fmt.Errorf("%s runs already: workload.stop comes first", j.w.Name)
	}
	load, err := a.newWorkload(w)
	if err != nil {
		return wire.Status{}, fmt.Errorf("start %s: %w", w.Name, err)
	}
	return a.launch(w, load).status(a.clock, wire.Bins{}), nil
}

// launch runs a workload; its end is told as a note.
func (a *agent) launch(w wire.Workload, load workload) *job {
	ctx, cancel := context.WithCancel(context.Background())
	if d := w.Duration("duration"); d > 0 {
		time.AfterFunc(d, cancel) // harmless after a stop
	}
	j := &job{w: w, load: load, meter: &meter{start: a.clock.now()}, cancel: cancel, done: make(chan struct{})}
	a.mu.Lock()
	a.job = j
	a.mu.Unlock()
	a.spawn("workload "+w.Name, func() {
		j.err = runGuarded(ctx, load, j.meter)
		j.end = a.clock.now()
		cancel()
		close(j.done)
		a.note(wire.EventDone, j.status(a.clock, wire.Bins{Max: -1}))
	})
	return j
}

// runGuarded makes a workload's panic its error: the agent outlives it.
func runGuarded(ctx context.Context, w workload, m *meter) (err error) {
	debug.SetPanicOnFault(true)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return w.run(ctx, m)
}

func (a *agent) currentJob() (*job, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.job == nil {
		return nil, errNoJob
	}
	return a.job, nil
}

// stopWorkload ends the workload and returns its result; of one that has ended, its result again.
func (a *agent) stopWorkload(ask wire.Bins) (wire.Status, error) {
	j, err := a.currentJob()
	if err != nil {
		return wire.Status{}, err
	}
	j.cancel()
	select {
	case <-j.done:
		return j.status(a.clock, ask), nil
	case <-time.After(stopLimit):
		return wire.Status{}, fmt.Errorf("%s has not stopped within %v", j.w.Name, stopLimit)
	}
}
