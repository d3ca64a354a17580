package observe

import (
	"context"
	"fmt"
	"slices"
	"time"

	"qmigrate/engine/lab/observe/on"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/wire"
)

// guestClock places readings of the guest's CLOCK_MONOTONIC on our clock. Its heartbeats carry both: what a beat's
// arrival here is after its stamp there, its lag, is the two clocks' difference and what the way took, never less. The
// guest's clock stands still while it is stopped, so the difference only grows, and by a step for each stop; in between
// the least lag of a second's beats is the difference, too large by the shortest way that a beat of that second had.
type guestClock struct {
	clock []time.Duration // the guest's, at each beat, ascending
	diff  []time.Duration // ours, from origin on, less the guest's: from that beat back to the one before
	begin time.Time
	stop  time.Duration // when the guest was stopped, after begin, if that is known; else 0
}

const (
	lagWindow = time.Second      // over which the least lag is looked for
	lagNoise  = time.Millisecond // a step that is no greater may be the way's
)

// newGuestClock is nil if there are no two beats. stop may be the zero time: then a step is placed at the last beat
// before it.
func newGuestClock(beats []on.Beat, origin, stop time.Time) *guestClock {
	if len(beats) < 2 {
		return nil
	}
	beats = slices.Clone(beats)
	slices.SortFunc(beats, func(a, b on.Beat) int { return int(a.Clock - b.Clock) })
	c := &guestClock{begin: origin}
	if !stop.IsZero() {
		c.stop = stop.Sub(origin)
	}
	lags := make([]time.Duration, len(beats))
	for i, b := range beats {
		lags[i] = b.Arrived.Sub(origin) - b.Clock
		c.clock = append(c.clock, b.Clock)
	}
	ahead := leastAhead(c.clock, lags)
	// The same backwards in time: the mirror image of both.
	n := len(lags)
	mirrored, reversed := make([]time.Duration, n), make([]time.Duration, n)
	for i := range lags {
		mirrored[n-1-i], reversed[n-1-i] = -c.clock[i], lags[i]
	}
	behind := leastAhead(mirrored, reversed)
	for i := range lags {
		d := ahead[i] // no stop between this beat and its window's least lag can make that too small
		if past := behind[n-1-i]; past < d && d-past <= lagNoise {
			d = past
		}
		c.diff = append(c.diff, d)
	}
	return c
}

// leastAhead is, for each beat, the least lag among it and those that follow within lagWindow.
func leastAhead(clock, lags []time.Duration) []time.Duration {
	least := make([]time.Duration, len(lags))
	var queue []int // of beats whose lags ascend: the first is the window's least
	for i := len(lags) - 1; i >= 0; i-- {
		for len(queue) > 0 && lags[queue[len(queue)-1]] >= lags[i] {
			queue = queue[:len(queue)-1]
		}
		queue = append(queue, i)
		for clock[queue[0]]-clock[i] > lagWindow {
			queue = queue[1:]
		}
		least[i] = lags[queue[0]]
	}
	return least
}

// at is where a reading of the guest's clock lies on ours. Where it was read around a stop it may lie on either side of
// that.
func (c *guestClock) at(reading time.Duration) time.Time {
	return c.begin.Add(reading + c.diffAt(reading))
}

func (c *guestClock) diffAt(reading time.Duration) time.Duration {
	i, _ := slices.BinarySearch(c.clock, reading) // the first beat that is not before
	switch {
	case i == 0:
		return c.diff[0]
	case i == len(c.clock):
		return c.diff[i-1]
	case reading <= c.step(i):
		return c.diff[i-1]
	}
	return c.diff[i]
}

// step is the guest's clock at the stop, if there was any, between beat i-1 and beat i.
func (c *guestClock) step(i int) time.Duration {
	if s := c.stop - c.diff[i-1]; c.stop != 0 && s > c.clock[i-1] && s < c.clock[i] {
		return s
	}
	return c.clock[i-1]
}

// stops are the guest's readings of its clock at which it stood still, and for how long, between two readings.
func (c *guestClock) stops(from, to time.Duration) (at, length []time.Duration) {
	for i := 1; i < len(c.clock); i++ {
		if d := c.diff[i] - c.diff[i-1]; d > lagNoise {
			if s := c.step(i); s >= from && s < to {
				at, length = append(at, s), append(length, d)
			}
		}
	}
	return at, length
}

// uncertainty is how much too late a reading that was asked for may be placed: we know that the guest read it after we
// had asked.
func (c *guestClock) uncertainty(asked time.Time, reading time.Duration) time.Duration {
	return max(c.at(reading).Sub(asked), 0)
}

// ResetClock makes the guest count its looks at its own clock anew.
func ResetClock(ctx context.Context, agent *guest.Agent) error {
	if err := agent.Call(ctx, wire.DoClockReset, nil, nil); err != nil {
		return fmt.Errorf("count the guest's looks at its clock: %w", err)
	}
	return nil
}

// NoteClock ends the count, and writes down the longest time between two of the guest's looks.
func NoteClock(ctx context.Context, agent *guest.Agent, rec *record.Migration) {
	var report wire.ClockReport
	if err := agent.Call(ctx, wire.DoClockStop, nil, &report); err != nil {
		rec.Warn("the guest's heartbeat does not answer: %v", err)
	} else if rec.Outcome == record.Completed && report.Turns > 0 {
		rec.Downtime.GuestClock, rec.Downtime.GuestClockError = record.Of(report.Longest), record.Of(report.Resolution)
	}
}
