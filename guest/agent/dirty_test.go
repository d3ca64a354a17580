package main

import (
	"encoding/json"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"qmigrate/guest/wire"
)

func dirtied(t *testing.T, s wire.Status) (d wire.Dirtied) {
	t.Helper()
	if err := json.Unmarshal(s.Result, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// What the marks claim, interval by interval, sums to what the dirtier claims in all, and every page of the intervals was written: by writers on several
// vCPUs, in phases, over a working set that drifts, at a rate that changes.
func TestMarks(t *testing.T) {
	specs := []string{
		"dirty:rate=0/s,working-set=1MiB",
		"dirty:rate=100000/s,working-set=1MiB,pattern=sequential,period=20ms,duty=50%",
		"dirty:rate=0/s,working-set=1MiB,pattern=hot-cold,drift=40MiB/s,content=compressible",
	}
	if runtime.NumCPU() > 1 {
		specs = append(specs, "dirty:rate=0/s,working-set=1MiB,vcpus=2,drift=40MiB/s,content=zero", "dirty:rate=50000/s,working-set=1020KiB,vcpus=2,period=10ms,duty=30%,pattern=sequential")
	}
	for _, spec := range specs {
		a := testAgent(t, newMonotonic())
		must[wire.Filled](t)(a.fill(wire.Fill{Bytes: 4 << 20}))
		w := must[wire.Workload](t)(wire.ParseWorkload(spec))
		must[wire.Status](t)(a.startWorkload(w))
		j := must[*job](t)(a.currentJob())
		set := int64(w.Number("working-set")) / wire.PageSize
		writes, longest, last := uint64(0), int64(0), time.Duration(0)
		for range 20 {
			before := j.status(a.clock, wire.Bins{Max: -1}).Events
			until(t, a, func(s wire.Status) bool { return s.Events > before+200 })
			m := must[any](t)(a.do(wire.Request{Do: wire.DoWorkloadMark})).(wire.Marked)
			if m.Distinct == 0 || m.Writes < uint64(m.Distinct) || m.At <= m.From || last != 0 && m.From != last || w.Number("drift") == 0 && m.Distinct > set {
				t.Errorf("%s: %+v after one that ended at %v", spec, m, last)
			}
			last = m.At
			writes += m.Writes
			longest = max(longest, m.Distinct)
		}
		until(t, a, func(s wire.Status) bool { return w.Number("drift") == 0 || dirtied(t, s).Distinct > set })
		s := must[wire.Status](t)(a.stopWorkload(wire.Bins{}))
		m := must[any](t)(a.do(wire.Request{Do: wire.DoWorkloadMark})).(wire.Marked) // what came after the last
		d := dirtied(t, s)
		if writes+m.Writes != d.Writes || d.Distinct < longest || d.Writes != s.Events {
			t.Errorf("%s: marks say %d writes, the result %+v, events %d", spec, writes+m.Writes, d, s.Events)
		}
		if w.Number("drift") > 0 && d.Prepared != map[bool]int64{true: 0, false: 1024}[w.Choice("content") == wire.Random] {
			t.Errorf("%s: %d pages prepared, not all that it may come to", spec, d.Prepared)
		}
		if d.VCPUs != int(w.Number("vcpus")) || d.WorkingSet != set {
			t.Errorf("%s: %+v", spec, d)
		}
		if v := must[wire.Verified](t)(a.mem.verify()); !v.OK() || v.Found != d.Writes {
			t.Errorf("%s: %+v, %+v", spec, d, v)
		}
	}
}

// The intervals' pages are the pages that were written in them, no more and no fewer: the counts in the table before and after say which.
func TestMarkCountsPages(t *testing.T) {
	a := testAgent(t, newMonotonic())
	must[wire.Filled](t)(a.fill(wire.Fill{Bytes: 1 << 20}))
	d := must[*dirtier](t)(newDirtier(a, must[wire.Workload](t)(wire.ParseWorkload("dirty:rate=0/s,working-set=512KiB,pattern=hot-cold"))))
	for round := range 10 {
		before := make([]uint64, len(a.mem.table))
		for i, p := range a.mem.table {
			before[i] = p.count
		}
		for range round {
			d.writers[0].turn(0)
		}
		written, writes := int64(0), uint64(0)
		for i, p := range a.mem.table {
			if p.count > before[i] {
				written++
			}
			writes += p.count - before[i]
		}
		if m := d.mark(); m.Distinct != written || m.Writes != writes {
			t.Errorf("round %d: marked %+v, written %d pages, %d times", round, m, written, writes)
		}
	}
}

// A working set divided among writers is written whole, each page by one of them.
func TestShares(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("one processor: each writer is bound to one of its own, so there are no two")
	}
	a := testAgent(t, newMonotonic())
	must[wire.Filled](t)(a.fill(wire.Fill{Bytes: 1 << 20}))
	d := must[*dirtier](t)(newDirtier(a, must[wire.Workload](t)(wire.ParseWorkload("dirty:rate=1000/s,working-set=404KiB,pattern=sequential,vcpus=2"))))
	d.first = len(a.mem.table) - 10 // it reaches over the end
	sum := 0.0
	for i, w := range d.writers {
		sum += w.pace.rate
		w.pace.rate = 0
		if w.cpu != i {
			t.Errorf("writer %d is on vCPU %d", i, w.cpu)
		}
		w.turn(0)
	}
	if math.Abs(sum-1000) > 1e-9 {
		t.Errorf("rates of %v/s in all", sum)
	}
	for i := range a.mem.table {
		inside := i >= d.first || i < 101-10
		if (a.mem.table[i].count > 0) != inside {
			t.Errorf("page %d: written %d times, in the set: %v", i, a.mem.table[i].count, inside)
		}
	}
}

func TestPhase(t *testing.T) {
	p := phase{period: time.Second, work: 300 * time.Millisecond}
	for _, c := range []struct{ at, worked, rest time.Duration }{
		{0, 0, 0}, {299, 299, 0}, {300, 300, 700}, {999, 300, 1}, {1000, 300, 0}, {1150, 450, 0}, {5299, 1799, 0}, {5300, 1800, 700},
	} {
		if at := c.at * time.Millisecond; p.worked(at) != c.worked*time.Millisecond || p.rest(at) != c.rest*time.Millisecond {
			t.Errorf("at %v: worked %v, rest %v", at, p.worked(at), p.rest(at))
		}
	}
	for _, p := range []phase{{}, {period: time.Second, work: time.Second}} {
		if at := 12345 * time.Millisecond; p.worked(at) != at || p.rest(at) != 0 {
			t.Errorf("%+v: worked %v, rest %v", p, p.worked(at), p.rest(at))
		}
	}
}

// The rate can be changed while it runs, and only to what it could have begun with.
func TestRateChanges(t *testing.T) {
	a := testAgent(t, newMonotonic())
	must[wire.Filled](t)(a.fill(wire.Fill{Bytes: 1 << 20}))
	rate := func(r string) error {
		_, err := a.do(wire.Request{Do: wire.DoWorkloadRate, Args: json.RawMessage(`{"rate_per_s":` + r + `}`)})
		return err
	}
	if err := rate("5"); err != errNoJob {
		t.Errorf("without a workload: %v", err)
	}
	must[wire.Status](t)(a.startWorkload(must[wire.Workload](t)(wire.ParseWorkload("dirty:rate=0.001/s,working-set=1MiB"))))
	for r, want := range map[string]string{"-1": "rate -1/s is out of range", "2e9": "out of range"} {
		if err := rate(r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", r, err)
		}
	}
	if s := must[*job](t)(a.currentJob()).status(a.clock, wire.Bins{}); s.Events != 0 {
		t.Errorf("%d writes at one in 1000 s", s.Events)
	}
	if err := rate("0"); err != nil { // as fast as it can
		t.Fatal(err)
	}
	s := until(t, a, func(s wire.Status) bool { return s.Events > 1000 })
	if d := dirtied(t, s); d.Rate != 0 {
		t.Errorf("%+v", d)
	}
	if err := rate("0.001"); err != nil {
		t.Fatal(err)
	}
	j := must[*job](t)(a.currentJob())
	stands := j.status(a.clock, wire.Bins{}).Events
	a.clock.sleep(20 * time.Millisecond)
	if n := j.status(a.clock, wire.Bins{}).Events; n > stands+batch { // one turn may have been under way
		t.Errorf("%d writes at one in 1000 s", n-stands)
	}
	must[wire.Status](t)(a.stopWorkload(wire.Bins{}))
	if err := rate("5"); err == nil || !strings.Contains(err.Error(), "dirty has one while it runs") {
		t.Errorf("of a workload that has ended: %v", err)
	}
	must[wire.Status](t)(a.startWorkload(wire.Workload{Name: "clock"}))
	if err := rate("5"); err == nil || !strings.Contains(err.Error(), "clock has no rate") {
		t.Errorf("of clock: %v", err)
	}
	if _, err := a.do(wire.Request{Do: wire.DoWorkloadMark}); err == nil || !strings.Contains(err.Error(), "clock claims no pages") {
		t.Errorf("mark of clock: %v", err)
	}
}

func TestDirtierRefuses(t *testing.T) {
	a := testAgent(t, newMonotonic())
	must[wire.Filled](t)(a.fill(wire.Fill{Bytes: 1 << 20}))
	for spec, want := range map[string]string{
		"dirty:vcpus=64,working-set=1MiB":   "vcpus=64, but the guest has",
		"dirty:working-set=1MiB,period=1ms": "period=1ms is too short",
		"dirty:working-set=2MiB":            "fill more first",
	} {
		if _, err := a.startWorkload(must[wire.Workload](t)(wire.ParseWorkload(spec))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", spec, err)
		}
	}
}
