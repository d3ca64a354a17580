package run

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

const ms = time.Millisecond

// series makes samples that are answered at once.
func series(points ...[4]int64) []record.Sample { // t in ms, transferred, remaining, pages
	var all []record.Sample
	for _, p := range points {
		t := time.Duration(p[0]) * ms
		all = append(all, record.Sample{T: t, Asked: t, Status: "active", Transferred: record.Of(p[1]),
			Remaining: record.Of(p[2]), Pages: record.Of(p[3])})
	}
	return all
}

func TestPasses(t *testing.T) {
	origin := time.Now()
	at := func(n int) time.Time { return origin.Add(time.Duration(n) * ms) }
	final := &qmp.MigrationInfo{Has: qmp.FieldTransferred, Status: "completed", Transferred: 2500, Normal: 30,
		Duplicate: 5}
	type want struct {
		start, duration    int   // ms
		bytes, dirty, left int64 // -1: absent
		stopped            bool
	}
	for _, test := range []struct {
		name    string
		stop    int
		edges   []PassEdge
		samples []record.Sample
		want    []want
	}{{
		name:  "7.2 to 10.2: set-up and final sync are announced, the deciding sync opens no pass",
		stop:  900,
		edges: []PassEdge{{Raw: 1, At: at(11)}, {Raw: 2, At: at(500)}, {Raw: 3, At: at(899)}, {Raw: 4, At: at(901)}},
		samples: series([4]int64{20, 0, 40960, 0}, [4]int64{490, 1000, 4096, 10}, [4]int64{501, 1010, 8192, 11},
			[4]int64{898, 2000, 4096, 20}),
		want: []want{{10, 490, 1010, 10, 4096, false}, {500, 400, 990, 2, 4096, false}, {900, 50, 500, 15, 0, true}},
	}, {
		name:    "11.1: neither set-up nor final sync are announced",
		stop:    900,
		edges:   []PassEdge{{Raw: 2, At: at(500)}, {Raw: 3, At: at(899)}},
		samples: series([4]int64{20, 0, 40960, 0}, [4]int64{501, 1000, 8192, 10}, [4]int64{898, 2000, 4096, 20}),
		want:    []want{{10, 490, 1000, 10, 40960, false}, {500, 400, 1000, 2, 4096, false}, {900, 50, 500, 15, 0, true}},
	}, {
		name:  "one pass, then stopped: a reply that waited over STOP tells nothing of the pass before",
		stop:  100,
		edges: []PassEdge{{Raw: 1, At: at(11)}, {Raw: 2, At: at(99)}},
		samples: append(series([4]int64{20, 0, 40960, 0}, [4]int64{90, 2000, 4096, 20}),
			record.Sample{Asked: 98 * ms, T: 160 * ms, Transferred: record.Of(int64(2500)), Remaining: record.Of(int64(0)),
				Pages: record.Of(int64(35))}),
		want: []want{{10, 90, 2000, 10, 4096, false}, {100, 850, 500, 15, 0, true}},
	}, {
		name: "stop-and-copy: one pass, the guest stopped",
		stop: 5,
		want: []want{{10, 940, 2500, -1, 0, true}},
	}, {
		name:  "no samples: the edges stand, the bytes are absent",
		stop:  900,
		edges: []PassEdge{{Raw: 1, At: at(11)}, {Raw: 2, At: at(500)}},
		want:  []want{{10, 490, -1, -1, -1, false}, {500, 400, -1, -1, -1, false}, {900, 50, -1, -1, 0, true}},
	}} {
		t.Run(test.name, func(t *testing.T) {
			got := passes(at(10), at(test.stop), at(950), 300*ms, test.edges, test.samples, final, origin)
			if len(got) != len(test.want) {
				t.Fatalf("%d passes, want %d: %+v", len(got), len(test.want), got)
			}
			value := func(p *int64) int64 {
				if p == nil {
					return -1
				}
				return *p
			}
			for i, w := range test.want {
				p := got[i]
				if p.Pass != i+1 || p.Start != time.Duration(w.start)*ms || p.Duration != time.Duration(w.duration)*ms ||
					p.Stopped != w.stopped {
					t.Errorf("pass %d: start %v duration %v stopped %v, want %+v", p.Pass, p.Start, p.Duration, p.Stopped, w)
				}
				if value(p.Transferred) != w.bytes || value(p.DirtyPages) != w.dirty || value(p.Remaining) != w.left {
					t.Errorf("pass %d: bytes %d dirty %d left %d, want %+v", p.Pass, value(p.Transferred), value(p.DirtyPages),
						value(p.Remaining), w)
				}
			}
		})
	}
}

func TestBracket(t *testing.T) {
	zero := time.Now()
	a := func(asked, answered int, running bool) answer {
		return answer{zero.Add(time.Duration(asked) * ms), zero.Add(time.Duration(answered) * ms), running}
	}
	// The source stopped in 10..21 and the destination started in 30..41, so it stood still for 9 to 31 ms.
	src := []answer{a(0, 1, true), a(10, 11, true), a(20, 21, false)}
	dst := []answer{a(20, 21, false), a(30, 31, false), a(40, 41, true)}
	down, e, ok := bracket(src, dst, time.Time{}, time.Time{})
	if !ok || down != 20*ms || e != 11*ms {
		t.Errorf("bracket: %v +/- %v, %v; want 20ms +/- 11ms", down, e, ok)
	}
	for name, sides := range map[string][2][]answer{
		"never stopped":  {{a(0, 1, true)}, dst},
		"never started":  {src, {a(0, 1, false)}},
		"no edge before": {{a(20, 21, false)}, dst},
		"nothing":        {},
	} {
		if _, _, ok := bracket(sides[0], sides[1], time.Time{}, time.Time{}); ok {
			t.Errorf("%s: there is no bracket", name)
		}
	}
}

func TestQuantile(t *testing.T) {
	values := []time.Duration{5, 1, 4, 2, 3}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := Quantile(values, q); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := Quantile(nil, 0.5); got != 0 {
		t.Errorf("quantile of nothing is %v", got)
	}
}

// clockOf is how events of a host are placed, in which the clock is ahead of ours by so much.
func clockOf(t *testing.T, offset time.Duration) (x timing) {
	if offset == 0 {
		return x
	}
	var err error
	x.follower, err = clock.Follow(t.Context(), func(context.Context) (clock.Look, error) {
		return clock.Look{Offset: offset, Error: ms - 1, At: time.Now()}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.follower.Close)
	return x
}

func TestEventOnOurClock(t *testing.T) {
	arrived := time.Now()
	for _, test := range []struct {
		name        string
		age, offset time.Duration
		want        time.Duration // before arrival
	}{
		{"same clock", 2 * ms, 0, 2 * ms},
		{"their clock is ahead", 2 * ms, time.Second, 2 * ms},
		{"from the future", -5 * ms, 0, 0},
		{"the clock was stepped", time.Hour, 0, 0},
	} {
		s := &Side{timing: clockOf(t, test.offset)}
		ev := qmp.Event{Arrived: arrived, QEMUTime: arrived.Round(0).Add(-test.age + test.offset)}
		// the realtime clock of this machine may be slewed meanwhile
		if got := arrived.Sub(s.at(ev)); (got - test.want).Abs() > time.Microsecond {
			t.Errorf("%s: %v before arrival, want %v", test.name, got, test.want)
		}
	}
}

// TestEmptyPostCopy: when nothing is left to follow the guest, the last pass takes no time, and has no rate: 0 bytes in
// 0 s is no number.
func TestEmptyPostCopy(t *testing.T) {
	origin := time.Now()
	at := func(n int) time.Time { return origin.Add(time.Duration(n) * ms) }
	m := &Run{
		Plan: plan.Plan{DowntimeLimit: 300 * ms}, IssuedAt: at(10), edge: at(100),
		Rec: &record.Migration{Origin: origin, Samples: series([4]int64{20, 0, 40960, 0}, [4]int64{101, 2500, 0, 10})},
		Src: &Side{life: life{Stopped: at(90)}, Completed: at(100)}, Dst: &Side{life: life{started: at(100)},
			Completed: at(100)},
	}
	m.splitPasses(&qmp.MigrationInfo{Has: qmp.FieldTransferred, Status: "completed", Transferred: 2500})
	p := m.Rec.Passes[len(m.Rec.Passes)-1]
	if !p.PostCopy || p.Duration != 0 || p.Transferred == nil || *p.Transferred != 0 || p.Throughput != nil {
		t.Errorf("the pass that followed the guest: %+v", p)
	}
	if _, err := json.Marshal(m.Rec); err != nil {
		t.Error(err)
	}
}

// TestTurned: of syncs that come by time, those that end no pass are left out.
func TestTurned(t *testing.T) {
	now := time.Now()
	var edges []PassEdge
	var samples []record.Sample
	for n, sent := range []int64{0, 300, 600, 1000, 1100, 1250} { // of 1,000 pages, and then of 200
		left := []int64{1000, 750, 500, 200, 120, 90}[n]
		at := time.Duration(n+1) * 100 * ms
		edges = append(edges, PassEdge{Raw: n + 2, At: now.Add(at - ms)})
		samples = append(samples, series([4]int64{int64(at / ms), sent * 4100, left * facts.PageSize, sent})...)
		samples[n].SyncCount = record.Of(int64(n + 2))
	}
	if got := turned(edges, samples); len(got) != 2 || got[0] != edges[3] || got[1] != edges[5] {
		t.Errorf("kept %+v of %+v", got, edges)
	}
}
