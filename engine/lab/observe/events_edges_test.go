package observe

import (
	"testing"
	"time"

	"qmigrate/engine/lab/observe/on"
	"qmigrate/guest/wire"
)

// TestGuestClockLateBeats: beats that were late, with none before them that was faster, do not place the guest's clock late where those of the second
// that follows tell better.
func TestGuestClockLateBeats(t *testing.T) {
	origin := time.Now()
	const ms = time.Millisecond
	var beats []on.Beat
	for i := range 40 {
		clock, late := time.Duration(i)*50*ms, 200*time.Microsecond
		if i < 10 {
			late = 30 * ms
		}
		beats = append(beats, on.Beat{Beat: wire.Beat{Clock: clock}, Arrived: origin.Add(clock + late)})
	}
	c := newGuestClock(beats, origin, time.Time{})
	for reading := time.Duration(0); reading < 1900*ms; reading += 7 * ms {
		if off := c.at(reading).Sub(origin) - reading; off < 0 || off > ms {
			t.Fatalf("%v of the guest's clock is placed %v too late", reading, off)
		}
	}
}

// TestSilenceWithoutEnd: a workload that ended before the migration did, or did nothing any more, has no blackout: neither one of 0 nor one that lasts as long as
// it was looked at.
func TestSilenceWithoutEnd(t *testing.T) {
	origin := time.Now()
	const ms = time.Millisecond
	for _, c := range []struct {
		name  string
		until time.Duration
		rate  func(at time.Duration) float64
		ok    bool
	}{
		{"works on", 2 * time.Second, func(at time.Duration) float64 { return 20 }, true},
		{"dark for a while", 2 * time.Second, func(at time.Duration) float64 {
			return map[bool]float64{true: 0, false: 20}[at > 500*ms && at < 700*ms]
		}, true},
		{"ended before", -100 * ms, func(at time.Duration) float64 { return 20 }, false},
		{"ended in between", 600 * ms, func(at time.Duration) float64 { return 20 }, false},
		{"never came back", 2 * time.Second, func(at time.Duration) float64 { return map[bool]float64{true: 0, false: 20}[at > 500*ms] }, false},
		{"did nothing at all", 2 * time.Second, func(time.Duration) float64 { return 0 }, false},
		{"nothing counted", -2 * time.Second, nil, false},
	} {
		if _, _, ok := silence(counts(origin, c.until, c.rate), origin.Add(-time.Second), origin, origin.Add(1200*ms)); ok != c.ok {
			t.Errorf("%s: %v, want %v", c.name, ok, c.ok)
		}
	}
}
