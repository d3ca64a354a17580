package observe

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"qmigrate/engine/record"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// beats receives the guest's heartbeats by UDP and stamps them.
type beats struct {
	on    host.Host
	at    netip.AddrPort
	every time.Duration // not positive: the guest sends none

	conn net.PacketConn // nil: not started
	all  sync.WaitGroup

	mu  sync.Mutex
	got []beat
}

// beat is one heartbeat and when it was there, by the observer's clock.
type beat struct {
	wire.Beat
	arrived time.Time
}

// Start begins to listen.
func (b *beats) Start(ctx context.Context) (err error) {
	if b.conn, err = b.on.ListenPacket(ctx, "udp", b.at.String()); err != nil {
		return fmt.Errorf("listen for heartbeats: %w", err)
	}
	b.all.Go(b.receive)
	return nil
}

func (b *beats) receive() {
	datagram := make([]byte, 1500)
	for {
		n, _, err := b.conn.ReadFrom(datagram)
		now := time.Now()
		if err != nil {
			return
		}
		if t, ok := wire.ParseBeat(datagram[:n]); ok {
			b.mu.Lock()
			b.got = append(b.got, beat{t, now})
			b.mu.Unlock()
		}
	}
}

// Stop ends it.
func (b *beats) Stop() {
	if b.conn != nil {
		b.conn.Close()
		b.all.Wait()
	}
}

// arrivals are when they came.
func (b *beats) arrivals() []time.Time {
	all := make([]time.Time, len(b.got))
	for i := range b.got {
		all[i] = b.got[i].arrived
	}
	return all
}

// Note writes down the longest silence among them.
func (b *beats) Note(rec *record.Migration, _, _ time.Time) error {
	if rec.Network == nil {
		return nil
	}
	if b.every > 0 {
		rec.Network.BeatInterval = &b.every
	}
	noteSilence(rec, "heartbeat", b.arrivals(), &rec.Downtime.Heartbeat, &rec.Downtime.HeartbeatError)
	return nil
}
