package observe

import (
	"math/rand/v2"
	"testing"
	"time"

	"qmigrate/engine/lab/observe/on"
	"qmigrate/engine/record"
	"qmigrate/guest/wire"
)

// TestGuestClock: a guest's clock that runs, stands still, and runs on is placed right on both sides, whatever single beats do.
func TestGuestClock(t *testing.T) {
	origin := time.Now()
	const ms = time.Millisecond
	random := rand.New(rand.NewPCG(1, 2))
	// Ours, from origin: the guest was 5 s old at -2 s, stopped at 1000 ms for 300 ms, and at 2000 ms, unknown to us, for 40 ms.
	truth := func(guest time.Duration) time.Duration {
		at := guest - 7*time.Second
		if at >= 1000*ms {
			at += 300 * ms
		}
		if at >= 2000*ms {
			at += 40 * ms
		}
		return at
	}
	var beats []on.Beat
	for i := 0; i < 1200; i++ {
		sent := 5*time.Second + time.Duration(i)*5*ms + time.Duration(random.IntN(1000))*time.Microsecond
		way := 100*time.Microsecond + time.Duration(random.ExpFloat64()*float64(300*time.Microsecond))
		if i%50 == 0 {
			way += 30 * ms
		}
		if i >= 598 && i < 606 { // lost around the stop, and late behind it
			continue
		}
		if i >= 606 && i < 620 {
			way += time.Duration(620-i) * 4 * ms
		}
		beats = append(beats, on.Beat{Beat: wire.Beat{Seq: uint64(i), Clock: sent}, Arrived: origin.Add(truth(sent) + way)})
	}
	for i := range beats { // the last ones before the stop are all a little late
		if at := truth(beats[i].Clock); at > 960*ms && at < 1000*ms {
			beats[i].Arrived = origin.Add(at + 900*time.Microsecond)
		}
	}
	c := newGuestClock(beats, origin, origin.Add(1000*ms))
	if off := c.at(7988*ms).Sub(origin) - truth(7988*ms); off > 500*time.Microsecond {
		t.Errorf("just before the stop a reading is placed %v too late, though the beats of the second before tell better", off)
	}
	for guest := 5100 * ms; guest < 10_800*ms; guest += 777 * time.Microsecond {
		at := guest - 7*time.Second
		if at > 995*ms && at < 1005*ms || at > 1695*ms && at < 1705*ms { // around a stop it may lie on either side, for want of a beat
			continue
		}
		if off := c.at(guest).Sub(origin) - truth(guest); off < 0 || off > 1500*time.Microsecond {
			t.Fatalf("%v of the guest's clock is placed %v too late", guest, off)
		}
	}
	at, lengths := c.stops(5*time.Second, 11*time.Second)
	if len(at) != 2 || (at[0]-8000*ms).Abs() > ms || (lengths[0]-300*ms).Abs() > 2*ms || (at[1]-8700*ms).Abs() > 10*ms || (lengths[1]-40*ms).Abs() > 2*ms {
		t.Errorf("stops at %v for %v", at, lengths)
	}
	if c := newGuestClock(beats[:1], origin, time.Time{}); c != nil {
		t.Error("one beat places a clock")
	}
	if late := c.uncertainty(origin.Add(truth(6*time.Second)-2*ms), 6*time.Second); late < 2*ms || late > 3500*time.Microsecond {
		t.Errorf("asked 2 ms before it was read, it may be %v too late", late)
	}
}

// TestGuestClockDrifts: a guest's clock that is 100 ppm fast is followed.
func TestGuestClockDrifts(t *testing.T) {
	origin := time.Now()
	truth := func(guest time.Duration) time.Duration { return guest - guest/10_000 }
	var beats []on.Beat
	for i := range 12_000 {
		sent := time.Duration(i) * 5 * time.Millisecond
		beats = append(beats, on.Beat{Beat: wire.Beat{Clock: sent}, Arrived: origin.Add(truth(sent) + 200*time.Microsecond)})
	}
	c := newGuestClock(beats, origin, time.Time{})
	for guest := time.Second; guest < 59*time.Second; guest += 333 * time.Millisecond {
		if off := c.at(guest).Sub(origin) - truth(guest); off < 0 || off > 400*time.Microsecond {
			t.Fatalf("%v of the guest's clock is placed %v too late", guest, off)
		}
	}
	if at, _ := c.stops(0, time.Minute); len(at) > 0 {
		t.Errorf("stops at %v", at)
	}
}

// TestPlaced: the events of a bin in which the guest stood still lie before and behind the stop, none in it and none lost.
func TestPlaced(t *testing.T) {
	origin := time.Now()
	var beats []on.Beat
	for i := range 400 {
		clock := time.Duration(i) * 5 * time.Millisecond
		at := clock
		if clock >= 1003*time.Millisecond {
			at += 50 * time.Millisecond
		}
		beats = append(beats, on.Beat{Beat: wire.Beat{Clock: clock}, Arrived: origin.Add(at)})
	}
	c := newGuestClock(beats, origin, origin.Add(1003*time.Millisecond))
	spans := placed(c, 1000*time.Millisecond, 1010*time.Millisecond, 100)
	if len(spans) != 3 {
		t.Fatalf("%d spans", len(spans))
	}
	for i, want := range []struct {
		from, to time.Duration
		n        float64
	}{{1000, 1003, 30}, {1003, 1053, 0}, {1053, 1060, 70}} {
		s := spans[i]
		if s.From.Sub(origin) != want.from*time.Millisecond || s.To.Sub(origin) != want.to*time.Millisecond || s.N < want.n-0.01 || s.N > want.n+0.01 {
			t.Errorf("span %d: %v to %v, %v events; want %+v", i, s.From.Sub(origin), s.To.Sub(origin), s.N, want)
		}
	}
	// A beat that was 20 ms faster than those of the second before it makes the clock seem to go back: no event may be lost by it, and no value be none.
	beats[200].Arrived = beats[200].Arrived.Add(-20 * time.Millisecond)
	c = newGuestClock(beats, origin, time.Time{})
	var all []Span
	for at := 500 * time.Millisecond; at < 1900*time.Millisecond; at += agentBin {
		all = append(all, placed(c, at, at+agentBin, 5)...)
	}
	sum := 0.0
	for _, s := range all {
		if sum += s.N; !s.To.After(s.From) || s.N != s.N {
			t.Fatalf("%+v", s)
		}
	}
	if sum < 699 || sum > 701 {
		t.Errorf("%v events of 700", sum)
	}
	for _, v := range Bins(append(all, Span{origin.Add(time.Second), origin.Add(time.Second), 0}), origin, timelineBin) {
		if v != nil && !(*v >= 0) {
			t.Errorf("a bin has %v", *v)
		}
	}
	if spans := placed(c, 500*time.Millisecond, 510*time.Millisecond, 7); len(spans) != 1 || spans[0].N != 7 {
		t.Errorf("a bin without a stop: %+v", spans)
	}
}

// counts are spans of 10 ms from -1 s on, as many a bin as f says.
func counts(origin time.Time, until time.Duration, f func(at time.Duration) float64) (all []Span) {
	for at := -time.Second; at < until; at += agentBin {
		all = append(all, Span{origin.Add(at), origin.Add(at + agentBin), f(at)})
	}
	return all
}

// TestBrownout: what is slow and what is dark are told apart, and a noisy guest is said to be one.
func TestBrownout(t *testing.T) {
	origin := time.Now()
	const ms = time.Millisecond
	for _, c := range []struct {
		name               string
		rate               func(at time.Duration) float64 // events in 10 ms
		brownout, blackout time.Duration                  // -1: absent
		error              time.Duration
		doubt              bool
	}{
		{"even", func(at time.Duration) float64 { return 20 }, 0, 0, 100 * ms, false},
		{"dark for 200 ms, slow for 300", func(at time.Duration) float64 {
			switch {
			case at >= 500*ms && at < 700*ms:
				return 0
			case at >= 700*ms && at < 1000*ms:
				return 18
			}
			return 20
		}, 300 * ms, 200 * ms, 100 * ms, false},
		{"slow to the end", func(at time.Duration) float64 {
			if at >= 1500*ms {
				return 10
			}
			return 20
		}, 500 * ms, 0, 100 * ms, true},
		{"just at 95 %", func(at time.Duration) float64 {
			if at >= 0 {
				return 19
			}
			return 20
		}, 0, 0, 100 * ms, false},
		{"every tenth bin slow all the time", func(at time.Duration) float64 {
			if (at+time.Second)/(100*ms)%10 == 3 {
				return 15
			}
			return 20
		}, 200 * ms, 0, 300 * ms, false},
		{"an event each 10 ms is too few for 100 ms, not for 1 s", func(at time.Duration) float64 {
			if at >= 1000*ms {
				return 0.5
			}
			return 1
		}, time.Second, 0, time.Second, false},
		{"too few for any", func(at time.Duration) float64 { return 0.1 }, -1, 0, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := counts(origin, 2*time.Second, c.rate)
			rec := &record.Migration{Origin: origin, Guest: &record.Guest{}, Total: record.Total{Wall: 1200 * ms}}
			dark, _, ok := silence(all, origin.Add(-time.Second), origin, origin.Add(1200*ms))
			if !ok || dark.To.Sub(dark.From) != c.blackout {
				t.Errorf("blackout %v, want %v", dark.To.Sub(dark.From), c.blackout)
			}
			found := false
			for _, width := range []time.Duration{timelineBin, time.Second} {
				if found = brownout(rec, eventSeries(all, all[0].From, origin, origin.Add(2*time.Second), width), dark); found {
					break
				}
			}
			if !found || c.brownout < 0 {
				if found != (c.brownout >= 0) || rec.Guest.Brownout != nil {
					t.Errorf("brownout %v, want %v", rec.Guest.Brownout, c.brownout)
				}
				return
			}
			if *rec.Guest.Brownout != c.brownout || *rec.Guest.BrownoutError != c.error || (len(rec.Warnings) > 0) != c.doubt {
				t.Errorf("brownout %v +/- %v, %q; want %v +/- %v", *rec.Guest.Brownout, *rec.Guest.BrownoutError, rec.Warnings, c.brownout, c.error)
			}
		})
	}
}

// TestRateOf: a rate is of what was observed, and absent where a good part was not.
func TestRateOf(t *testing.T) {
	origin := time.Now()
	all := counts(origin, time.Second, func(at time.Duration) float64 {
		if at < 0 {
			return 10
		}
		return 5
	})
	for _, c := range []struct {
		from, to time.Duration
		want     float64
	}{{-time.Second, 0, 1000}, {0, time.Second, 500}, {-500 * time.Millisecond, 500 * time.Millisecond, 750}, {-1005 * time.Millisecond, 0, 1000}, {0, 2 * time.Second, -1}, {time.Second, time.Second, -1}} {
		got := Rate(all, origin.Add(c.from), origin.Add(c.to))
		if (got == nil) != (c.want < 0) || got != nil && (*got-c.want > 1e-6 || *got-c.want < -1e-6) {
			t.Errorf("from %v to %v: %v, want %v", c.from, c.to, got, c.want)
		}
	}
}
