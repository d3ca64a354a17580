package observe

import (
	"context"
	"fmt"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/record"
	"qmigrate/hostnet/host"
)

// clocks are those of the hosts that are looked at, by the hosts' names. It is the one place where a host's instants
// become ours. Ours has none.
type clocks map[string]*clock.Follower

// lastLook is how long the last look at the clocks may take.
const lastLook = 2 * time.Second

// start begins to look at the clocks of hosts. Of those on this machine there is nothing to be known.
func (c clocks) start(ctx context.Context, hosts ...host.Host) error {
	for _, h := range hosts {
		far, ok := h.(*host.Far)
		if !ok || c[h.Name()] != nil {
			continue
		}
		f, err := clock.Follow(ctx, func(ctx context.Context) (clock.Look, error) {
			look, err := far.Clock(ctx)
			return clock.Look(look), err
		})
		if err != nil {
			c.stop()
			return fmt.Errorf("compare the clock of host %s: %w", h.Name(), err)
		}
		c[h.Name()] = f
	}
	return nil
}

// stop looks a last time. Harmless twice.
func (c clocks) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), lastLook)
	defer cancel()
	for _, f := range c {
		f.Stop(ctx)
	}
}

// of is a host's clock; nil: it is ours.
func (c clocks) of(h host.Host) *clock.Follower { return c[h.Name()] }

// note writes down the observer's clock, and warns of its steps.
func (c clocks) note(rec *record.Migration, observer host.Host) {
	f := c.of(observer)
	if f == nil {
		return
	}
	if rec.Clocks == nil {
		rec.Clocks = &record.Clocks{}
	}
	rec.Clocks.Observer = f.Fit().Record(rec.Origin)
	for _, s := range rec.Clocks.Observer.Steps {
		rec.Warn("%s: what was seen there between these two may be placed wrong", s.Words("the observer's host"))
	}
}

// seenAt is the error of an instant that a host's kernel stamped.
func seenAt(f *clock.Follower, theirs time.Time) *time.Duration {
	return record.Of(stamp + f.Error(theirs))
}
