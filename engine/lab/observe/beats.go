package observe

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/lab/observe/on"
	"qmigrate/engine/record"
	"qmigrate/hostnet/host"
)

// beats are the guest's heartbeats at the observer.
type beats struct {
	on    host.Host
	clock *clock.Follower // of on
	at    netip.AddrPort
	every time.Duration // not positive: the guest sends none

	task *task     // nil: not started
	got  []on.Beat // with instants of on
}

// Start begins to listen.
func (b *beats) Start(ctx context.Context) (err error) {
	b.task, err = begin(ctx, "heartbeats", on.Beats(), b.on, on.BeatSpec{At: b.at}, func(o on.Beaten) {
		b.at = o.At
		b.got = append(b.got, o.Beats...)
	})
	return err
}

// Stop ends it.
func (b *beats) Stop() { b.task.end() }

// all are they, with our instants.
func (b *beats) all() []on.Beat {
	all := slices.Clone(b.got)
	for i := range all {
		all[i].Arrived = b.clock.Ours(all[i].Arrived)
	}
	return all
}

// arrivals are when they came.
func (b *beats) arrivals() []time.Time {
	all := make([]time.Time, len(b.got))
	for i := range b.got {
		all[i] = b.clock.Ours(b.got[i].Arrived)
	}
	return all
}

// Note writes down the longest silence among them.
func (b *beats) Note(rec *record.Migration, _, _ time.Time) error {
	b.task.doubt(rec)
	if rec.Network == nil {
		return nil
	}
	if b.every > 0 {
		rec.Network.BeatInterval = &b.every
	}
	noteSilence(rec, "heartbeat", b.arrivals(), &rec.Downtime.Heartbeat, &rec.Downtime.HeartbeatError)
	return nil
}
