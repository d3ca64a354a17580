package main

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
)

// Over a minute of a guest's clock that moves only in sleeps and by what a batch takes, the rate is the asked one.
func TestRateIsRightOnAverage(t *testing.T) {
	for _, rate := range []float64{0.5, 100, 333, 2000, 50_000, 200_000} {
		for _, cost := range []time.Duration{0, 400 * time.Microsecond, 1100 * time.Microsecond} { // of a batch; the last leaves 232,727/s
			c := &fakeClock{t: time.Hour}
			p := pacer{rate: rate}
			p.start(c.now())
			done, turns := 0, 0
			for c.now() < time.Hour+time.Minute {
				n := min(p.due(c.now()), batch)
				if turns++; n == 0 {
					c.sleep(p.wait())
					continue
				}
				p.spend(n)
				done += n
				c.advance(cost)
			}
			want := rate * 60
			if d := math.Abs(float64(done) - want); d > max(want/1000, 1.5) || p.missed > 1e-6 {
				t.Errorf("rate %v, batch of %v: %d writes in a minute, want %v; missed %v", rate, cost, done, want, p.missed)
			}
			if turns > 3*60_000 {
				t.Errorf("rate %v: %d turns a minute", rate, turns)
			}
		}
	}
}

// A guest that stood still owes at most the depth, and says how much it gave up.
func TestPacerGivesUpOldDebt(t *testing.T) {
	p := pacer{rate: 1000}
	p.start(0)
	if n := p.due(5 * time.Second); n != 200 || p.missed != 4800 {
		t.Errorf("after 5 s: %d due, %v missed", n, p.missed)
	}
	p = pacer{rate: 1}
	p.start(0)
	if n := p.due(time.Second); n != 1 || p.missed != 0 {
		t.Errorf("slow: %d due, %v missed", n, p.missed)
	}
	p = pacer{}
	if n := p.due(0); n != batch {
		t.Errorf("without a rate: %d due", n)
	}
}

func TestPatterns(t *testing.T) {
	count := func(pattern string, set, n int) []int {
		c := make([]int, set)
		for p := (picker{pattern: pattern, set: set, state: 1}); n > 0; n-- {
			c[p.next()]++
		}
		return c
	}
	for i, n := range count(wire.Sequential, 10, 25) {
		if want := 2 + map[bool]int{true: 1}[i < 5]; n != want {
			t.Errorf("sequential: page %d %d times", i, n)
		}
	}
	for i, n := range count(wire.Uniform, 100, 1_000_000) {
		if n < 9_500 || n > 10_500 {
			t.Errorf("uniform: page %d %d times of 10,000", i, n)
		}
	}
	hot := 0
	for i, n := range count(wire.HotCold, 1000, 1_000_000) {
		if i < 100 {
			hot += n
		} else if n == 0 {
			t.Errorf("hot-cold: cold page %d never", i)
		}
	}
	if hot < 898_000 || hot > 902_000 {
		t.Errorf("hot-cold: %d of a million writes on the hot tenth", hot)
	}
	for _, pattern := range []string{wire.Sequential, wire.Uniform, wire.HotCold} {
		if c := count(pattern, 1, 10); c[0] != 10 {
			t.Errorf("%s on one page: %v", pattern, c)
		}
	}
}

// Every workload that the host may ask for is built in.
func TestEveryWorkloadExists(t *testing.T) {
	for _, w := range wire.WorkloadTypes() {
		if w.Guest != "" { // its programs are not here
			continue
		}
		a := testAgent(t, newMonotonic())
		must[wire.Filled](t)(a.fill(wire.Fill{Bytes: 16 << 20}))
		s := must[wire.Status](t)(a.startWorkload(wire.Workload{Name: w.Name}))
		if s.State != wire.Running || s.Unit != w.Event {
			t.Errorf("%s: %+v", w.Name, s)
		}
		if s := must[wire.Status](t)(a.stopWorkload(wire.Bins{})); s.State != wire.Done {
			t.Errorf("%s: %+v", w.Name, s)
		}
	}
}

// The dirtier's claim, its bins, its distinct pages, the counters in the pages and the check agree.
func TestDirtier(t *testing.T) {
	for _, spec := range []string{
		"dirty:rate=50000/s,working-set=1MiB,pattern=sequential",
		"dirty:rate=0/s,working-set=2MiB,pattern=uniform,content=compressible,change=4032B",
		"dirty:rate=20000/s,working-set=4KiB,pattern=hot-cold,content=zero",
	} {
		a := testAgent(t, newMonotonic())
		must[wire.Filled](t)(a.fill(wire.Fill{Bytes: 4 << 20}))
		w := must[wire.Workload](t)(wire.ParseWorkload(spec))
		must[wire.Status](t)(a.startWorkload(w))
		if _, err := a.startWorkload(w); err == nil || !strings.Contains(err.Error(), "runs already") {
			t.Errorf("a second workload: %v", err)
		}
		set := int64(w.Number("working-set")) / wire.PageSize
		result := func(s wire.Status) (d wire.Dirtied) {
			if err := json.Unmarshal(s.Result, &d); err != nil {
				t.Fatal(err)
			}
			return d
		}
		for late := time.Now().Add(within.Limit); ; { // until every page was written; verify in between stops it for as long as it takes and no longer
			j := must[*job](t)(a.currentJob())
			if d := result(j.status(a.clock, wire.Bins{})); d.Distinct == set && d.Writes > 3*uint64(set) {
				break
			}
			if time.Now().After(late) {
				t.Fatalf("%s: not every page was written within %s", spec, within.Limit)
			}
			if v := must[wire.Verified](t)(a.mem.verify()); !v.OK() {
				t.Fatalf("%s: while it runs: %+v", spec, v)
			}
			a.clock.sleep(time.Millisecond)
		}
		s := must[wire.Status](t)(a.stopWorkload(wire.Bins{}))
		d, v, sum := result(s), must[wire.Verified](t)(a.mem.verify()), uint64(0)
		for _, n := range s.Bins {
			sum += n
		}
		if !v.OK() || s.Events != d.Writes || sum != d.Writes || v.Found != d.Writes || d.WorkingSet != set || s.Next != int64(len(s.Bins)) {
			t.Errorf("%s: %d in bins, %+v, %+v, %+v", spec, sum, s, d, v)
		}
		if want := map[bool]int64{true: 0, false: set}[w.Choice("content") == wire.Random]; d.Prepared != want {
			t.Errorf("%s: prepared %d, want %d", spec, d.Prepared, want)
		}
		if n, _ := within.Receive(t, "the workload's note", a.notes); !strings.Contains(string(n), `"event":"done"`) || !strings.Contains(string(n), `"state":"done"`) {
			t.Errorf("%s: note %s", spec, n)
		}
		if again := must[wire.Status](t)(a.stopWorkload(wire.Bins{})); again.Events != s.Events || again.Elapsed != s.Elapsed {
			t.Errorf("%s: stopped twice: %+v, %+v", spec, s, again)
		}
	}
	a := testAgent(t, newMonotonic())
	must[wire.Filled](t)(a.fill(wire.Fill{Bytes: 1 << 20}))
	if _, err := a.startWorkload(wire.Workload{Name: "dirty", Params: map[string]string{"working-set": "2MiB"}}); err == nil || !strings.Contains(err.Error(), "fill more first") {
		t.Errorf("a working set larger than the filled memory: %v", err)
	}
	if _, err := a.startWorkload(wire.Workload{Name: "dirt"}); err == nil || !strings.Contains(err.Error(), "did you mean dirty?") {
		t.Errorf("no such workload: %v", err)
	}
	if _, err := a.stopWorkload(wire.Bins{}); err != errNoJob {
		t.Errorf("stop of nothing: %v", err)
	}
}

// A bounded workload says done by itself.
func TestBoundedWorkload(t *testing.T) {
	a := testAgent(t, newMonotonic())
	must[wire.Status](t)(a.startWorkload(wire.Workload{Name: "clock", Params: map[string]string{"duration": "30ms"}}))
	var n struct {
		Event string
		Data  wire.Status
	}
	note, _ := within.Receive(t, "the workload's note", a.notes)
	if err := json.Unmarshal(note, &n); err != nil || n.Event != wire.EventDone || n.Data.State != wire.Done || n.Data.Elapsed < 30*time.Millisecond || n.Data.Events == 0 {
		t.Errorf("%+v, %v", n, err)
	}
}

type broken struct{ f func() error }

func (b broken) run(context.Context, *meter) error { return b.f() }
func (broken) result() any                         { return nil }

// A workload that fails or panics is reported as failed, and the agent lives.
func TestWorkloadFails(t *testing.T) {
	for want, f := range map[string]func() error{
		"check failed":      func() error { return errors.New("check failed") },
		"panic: off by one": func() error { panic("off by one") },
		"panic: runtime error: invalid memory address": func() error { var p *int; *p = 1; return nil },
	} {
		a := testAgent(t, newMonotonic())
		a.launch(wire.Workload{Name: "idle"}, broken{f})
		note, _ := within.Receive(t, "the workload's note", a.notes)
		n := string(note)
		s := must[wire.Status](t)(a.stopWorkload(wire.Bins{}))
		if s.State != wire.Failed || !strings.HasPrefix(s.Error, want) || !strings.Contains(n, `"state":"failed"`) {
			t.Errorf("%+v, note %s", s, n)
		}
	}
}

func TestMeter(t *testing.T) {
	m := &meter{start: time.Second}
	for i := range 200_000 { // more than it keeps: every bin i holds i%7
		m.add(time.Second+time.Duration(i)*binWidth+1, i%7)
	}
	var s wire.Status
	end := time.Second + 200_000*binWidth
	m.read(&s, wire.Bins{From: 10, Max: 5}, end, false)
	if s.First != 200_001-1<<16 || len(s.Bins) != 5 || s.Bins[0] != uint64(s.First%7) || s.Next != s.First+5 {
		t.Errorf("the oldest: first %d, bins %v, next %d", s.First, s.Bins, s.Next)
	}
	s = wire.Status{}
	m.read(&s, wire.Bins{From: 199_998}, end, false)
	if len(s.Bins) != 2 || s.Bins[1] != 199_999%7 || s.Next != 200_000 {
		t.Errorf("the newest that are whole: %v, next %d", s.Bins, s.Next)
	}
	s = wire.Status{}
	m.read(&s, wire.Bins{From: 199_998}, end, true)
	if len(s.Bins) != 3 || s.Bins[2] != 0 {
		t.Errorf("at the end: %v", s.Bins)
	}
	for _, ask := range []wire.Bins{{Max: -1}, {From: 1 << 40}, {From: math.MaxInt64}} {
		s = wire.Status{}
		if m.read(&s, ask, end, false); len(s.Bins) != 0 || s.Events == 0 {
			t.Errorf("%+v: %v", ask, s.Bins)
		}
	}
	m.add(end+time.Hour, 3) // an hour without events
	s = wire.Status{}
	if m.read(&s, wire.Bins{From: math.MinInt64}, end+time.Hour, true); s.Bins[0] != 0 || len(s.Bins) != 2048 {
		t.Errorf("after an hour: %v...", s.Bins[:3])
	}
}
