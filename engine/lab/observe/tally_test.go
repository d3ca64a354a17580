package observe

import (
	"testing"
	"time"

	"qmigrate/engine/record"
)

// TestTally: what was counted in a second lands in the bins by its share, and what was not looked at is no zero.
func TestTally(t *testing.T) {
	origin := time.Now()
	at := func(ms int) time.Time { return origin.Add(time.Duration(ms) * time.Millisecond) }
	l := &Tallies{}
	sums := l.Row("sysbench", "events/s", "a test", time.Second)
	for _, s := range []struct {
		from, to int
		n        float64
	}{{-9000, -8000, 7}, {-1500, -500, 100}, {-500, 500, 100}, {500, 1500, 10}, {1500, 1500, 99}, {1500, 3500, 400}, {4000, 5500, 15}, {5500, 6400, 9}} {
		sums.Add(at(s.from), at(s.to), s.n)
	}
	l.Row("nothing", "events/s", "a test", time.Second)
	rec := &record.Migration{Origin: origin}
	l.Note(rec, at(-2000))
	if len(rec.Timeline) != 1 {
		t.Fatalf("%d rows, want the one that has something", len(rec.Timeline))
	}
	got := rec.Timeline[0]
	want := []float64{100, 100, 10, 200, 200, -1, 10} // the last bin is not whole; the one from 3500 to 4500 is half looked at
	if got.Name != "sysbench" || got.Unit != "events/s" || got.Start != -1500*time.Millisecond || got.Bin != time.Second || len(got.Values) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i, v := range got.Values {
		if (v == nil) != (want[i] < 0) || v != nil && (*v < want[i]-1e-9 || *v > want[i]+1e-9) {
			t.Errorf("bin %d: %v, want %v", i, v, want[i])
		}
	}
	rec = &record.Migration{Origin: origin}
	if l.Note(rec, at(-2000)); len(rec.Timeline) != 0 {
		t.Error("the next migration has the last one's counts")
	}
}
