package observe

import (
	"strings"
	"testing"
	"time"

	"qmigrate/engine/record"
)

func TestLongestGap(t *testing.T) {
	origin := time.Now()
	at := func(ms ...int) (all []time.Time) {
		for _, n := range ms {
			all = append(all, origin.Add(time.Duration(n)*time.Millisecond))
		}
		return all
	}
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for _, c := range []struct {
		name          string
		arrivals      []int
		begin, end    int
		length, usual int // -1: none is measured
	}{
		{"within", []int{0, 5, 10, 15, 20, 60, 65, 70}, 12, 66, 40, 5},
		{"over the begin", []int{0, 5, 10, 50, 55, 60}, 30, 52, 40, 5},
		{"over the end", []int{0, 5, 10, 15, 55, 60}, 12, 30, 40, 5},
		{"over all", []int{0, 5, 10, 100, 105}, 20, 90, 90, 5},
		{"a longer one before does not count, but tells what is usual", []int{0, 50, 55, 60, 70, 75}, 56, 72, 10, 50},
		{"a longer one after does not count", []int{0, 5, 10, 20, 25, 125}, 7, 22, 10, 5},
		{"the first of two that are as long", []int{0, 5, 10, 30, 50, 55}, 7, 52, 20, 5},
		{"nothing came after", []int{0, 5, 10, 15}, 12, 20, -1, 0},
		{"nothing came before", []int{20, 25, 30, 35}, 10, 30, -1, 0},
		{"one before tells not what is usual", []int{5, 20, 25, 30}, 10, 28, -1, 0},
		{"one", []int{5}, 1, 3, -1, 0},
		{"none", nil, 1, 3, -1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, ok := longestGap(at(c.arrivals...), at(c.begin)[0], at(c.end)[0])
			if ok != (c.length >= 0) || ok && (g.length() != ms(c.length) || g.usual != ms(c.usual)) {
				t.Errorf("gap %v, usual %v, %v; want %d ms, %d ms", g.length(), g.usual, ok, c.length, c.usual)
			}
		})
	}
}

// TestGapElsewhere: a longest gap that is not around the stop is a doubt about what it measures.
func TestGapElsewhere(t *testing.T) {
	origin := time.Now()
	rec := func() *record.Migration {
		return &record.Migration{Origin: origin, Stages: []record.Stage{
			{Name: record.PreCopy, Start: 0, Duration: 100}, {Name: record.Activation, Start: 150, Duration: 50}}}
	}
	for _, c := range []struct {
		from, to time.Duration
		doubt    bool
	}{{90, 210, false}, {110, 120, false}, {50, 100, false}, {200, 300, false}, {10, 99, true}, {201, 300, true}} {
		r := rec()
		var value, uncertainty *time.Duration
		gap{origin.Add(c.from), origin.Add(c.to), 7}.put(r, "ping", &value, &uncertainty)
		if *value != c.to-c.from || *uncertainty != 7 {
			t.Errorf("%+v: put %v, %v", c, *value, *uncertainty)
		}
		if doubt := len(r.Warnings) == 1 && strings.HasPrefix(r.Warnings[0], "ping: the longest gap was not around the stop"); doubt != c.doubt {
			t.Errorf("%+v: warnings %q", c, r.Warnings)
		}
	}
}

func TestAround(t *testing.T) {
	origin := time.Now()
	at := func(ms ...int) (all []time.Time) {
		for _, m := range ms {
			all = append(all, origin.Add(time.Duration(m)*time.Millisecond))
		}
		return all
	}
	begin, stop, resume := at(100)[0], at(500)[0], at(530)[0]
	got, ok := around("ping", at(0, 90, 110, 300, 490, 560, 570, 900), begin, stop, resume)
	if !ok || got.Before != 10*time.Millisecond || got.During != 30*time.Millisecond || got.After != 30*time.Millisecond || got.BeforeStop == nil || *got.BeforeStop != 190*time.Millisecond {
		t.Errorf("%+v %v", got, ok)
	}
	if got, ok := around("ping", at(0, 90, 110), begin, stop, resume); ok {
		t.Errorf("a stream that broke off has a gap: %+v", got)
	}
	// One that begins after STOP has no part before it, and one that ends before RESUME none after.
	if got, ok = around("ping", at(499, 505, 528, 531), begin, stop, resume); !ok || got.Before+got.During+got.After != 23*time.Millisecond || got.Before != 0 || got.After != 0 {
		t.Errorf("%+v %v", got, ok)
	}
}
