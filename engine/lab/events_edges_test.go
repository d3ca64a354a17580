package lab

import (
	"testing"
	"time"

	"qmigrate/guest/wire"
)

// TestGuestClockLateBeats: beats that were late, with none before them that was faster, do not place the guest's clock late where those of the second
// that follows tell better.
func TestGuestClockLateBeats(t *testing.T) {
	origin := time.Now()
	const ms = time.Millisecond
	var beats []beat
	for i := range 40 {
		clock, late := time.Duration(i)*50*ms, 200*time.Microsecond
		if i < 10 {
			late = 30 * ms
		}
		beats = append(beats, beat{wire.Beat{Clock: clock}, origin.Add(clock + late)})
	}
	c := newGuestClock(beats, origin, time.Time{})
	for reading := time.Duration(0); reading < 1900*ms; reading += 7 * ms {
		if off := c.at(reading).Sub(origin) - reading; off < 0 || off > ms {
			t.Fatalf("%v of the guest's clock is placed %v too late", reading, off)
		}
	}
}
