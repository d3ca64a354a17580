package observe

import (
	"context"
	"fmt"
	"time"

	"qmigrate/hostnet/host"
)

// clocks are those of the hosts that are looked at. It is the one place where a host's instants become ours.
type clocks struct {
	all map[string]*clock // by the host's name; none: ours
}

// clock is a host's realtime clock. nil is our own.
type clock struct {
	offset      time.Duration // theirs less ours
	uncertainty time.Duration
}

// Start looks at the clocks of hosts. Of those on this machine there is nothing to be known.
func (c *clocks) start(ctx context.Context, hosts ...host.Host) error {
	c.all = map[string]*clock{}
	for _, h := range hosts {
		far, ok := h.(*host.Far)
		if !ok || c.all[h.Name()] != nil {
			continue
		}
		look, err := far.Clock(ctx)
		if err != nil {
			return fmt.Errorf("compare the clock of host %s: %w", h.Name(), err)
		}
		c.all[h.Name()] = &clock{look.Offset, look.Error}
	}
	return nil
}

// of is a host's clock.
func (c *clocks) of(h host.Host) *clock { return c.all[h.Name()] }

// ours is when by our clock theirs showed an instant.
func (c *clock) ours(theirs time.Time) time.Time {
	if c == nil {
		return theirs
	}
	return theirs.Add(-c.offset)
}

// each are instants of theirs, as ours.
func (c *clock) each(theirs []time.Time) []time.Time {
	if c == nil {
		return theirs
	}
	ours := make([]time.Time, len(theirs))
	for i, t := range theirs {
		ours[i] = c.ours(t)
	}
	return ours
}

// error is that of one of their instants which has an error by their own clock; nil: none is known.
func (c *clock) error(theirs *time.Duration) *time.Duration {
	if c == nil || theirs == nil {
		return theirs
	}
	sum := *theirs + c.uncertainty
	return &sum
}
