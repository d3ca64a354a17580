package main

import (
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
)

// beats sends the heartbeats: one line, by UDP or, in a guest that was not told where to send them, on the port. Not
// both, for under TCG each way costs a guest about as much as the other; and for the same reason the looks at the clock
// are no loop of their own, but taken at each beat. It allocates nothing and never waits for a reader.
type beats struct {
	clock    clock
	looks    looks
	port     atomic.Pointer[port] // nil until it is open
	udp      int                  // socket; -1: none
	to       unix.Sockaddr
	interval atomic.Int64  // ns; 0: off
	changed  chan struct{} // holds one: the interval is another one
	seq      atomic.Uint64
	lost     atomic.Uint64 // by UDP
	line     [96]byte
}

func newBeats(c clock, to netip.AddrPort, interval time.Duration) (*beats, error) {
	b := &beats{clock: c, udp: -1, changed: make(chan struct{}, 1)}
	b.set(max(interval, 0))
	if !to.IsValid() {
		return b, nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return b, err
	}
	// Not connected: an observer that is not there yet must not make every second send an error.
	b.udp, b.to = fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	return b, nil
}

// set changes the interval; 0 is off.
func (b *beats) set(interval time.Duration) {
	b.interval.Store(int64(interval))
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// run beats at fixed times while it can. After a pause it goes on from there: beats that were due in between are not
// made up for.
//
// It waits in a way that Go's scheduler sees, unlike clock.sleep: that is woken by the scheduler's signals every 10 ms,
// which costs a guest under TCG more than some ten beats a second do.
func (b *beats) run() {
	realtime()
	due := time.NewTimer(0)
	next := b.clock.now()
	for {
		interval := time.Duration(b.interval.Load())
		if interval == 0 {
			<-b.changed
			continue
		}
		now := b.clock.now()
		next = min(next, now+interval) // the interval may have become shorter
		if now < next {
			due.Reset(next - now)
			select {
			case <-due.C:
			case <-b.changed:
			}
			continue
		}
		b.looks.look(now, interval)
		b.beat(now)
		if next += interval; next <= now {
			next = now + interval
		}
	}
}

func (b *beats) beat(now time.Duration) {
	seq := b.seq.Add(1)
	line := wire.AppendBeat(b.line[:0], wire.Beat{Seq: seq, Clock: now})
	if b.udp >= 0 {
		if unix.Sendto(b.udp, line, 0, b.to) != nil {
			b.lost.Add(1)
		}
	} else if p := b.port.Load(); p != nil {
		p.try(line)
	}
}

func (b *beats) report() wire.BeatReport {
	r := wire.BeatReport{
		Interval: time.Duration(b.interval.Load()), Seq: b.seq.Load(),
		UDPLost: b.lost.Load(),
	}
	if p := b.port.Load(); p != nil {
		r.Dropped = p.dropped.Load()
	}
	return r
}
