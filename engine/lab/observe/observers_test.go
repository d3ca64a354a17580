package observe

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"qmigrate/engine/record"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

const interval = 5 * time.Millisecond

func TestEchoer(t *testing.T) {
	for _, c := range []struct {
		name     string
		serve    func(net.Conn)
		survives bool
	}{
		{"echoes", func(c net.Conn) { _, _ = io.Copy(c, c) }, true},
		{"echoes what was not sent", func(c net.Conn) {
			b := make([]byte, 8)
			for {
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				b[7] += 3
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}, false},
		{"hangs up", func(c net.Conn) { _, _ = io.CopyN(c, c, 16) }, false},
		{"leaves half a number out", func(c net.Conn) {
			_, _ = io.CopyN(c, c, 16)
			_, _ = io.CopyN(io.Discard, c, 4)
			_, _ = io.Copy(c, c)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &echoes{from: host.Local(), to: within.Echo(t, c.serve), every: interval}
			if err := e.Start(within.Context(t)); err != nil {
				t.Fatal(err)
			}
			within.Until(t, "three echoes or an end", func() bool {
				e.task.mu.Lock()
				defer e.task.mu.Unlock()
				return len(e.came) >= 3 || e.broken != ""
			})
			e.Stop()
			arrivals, survived, resent := e.arrivals(), e.survived(), e.retransmits
			if survived != c.survives {
				t.Errorf("survived is %v after %d echoes of %d: %v", survived, len(arrivals), e.sent, e.broken)
			}
			if c.survives && (len(arrivals) < 3 || resent == nil) {
				t.Errorf("%d echoes, retransmits %v", len(arrivals), resent)
			}
			for i := 1; i < len(arrivals); i++ {
				if arrivals[i].Before(arrivals[i-1]) {
					t.Error("arrivals are out of order")
				}
			}
		})
	}
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	e := &echoes{from: host.Local(), to: netip.MustParseAddrPort(nobody.Addr().String()), every: interval}
	if err := e.Start(within.Context(t)); err == nil {
		t.Error("connected to nobody")
	}
}

func TestListener(t *testing.T) {
	ctx, cancel := context.WithCancel(within.Context(t))
	l := &beats{on: host.Local(), at: netip.MustParseAddrPort("127.0.0.1:0")}
	if err := l.Start(ctx); err != nil {
		t.Fatal(err)
	}
	cancel() // a migration that is cancelled is observed to its end
	c, err := net.Dial("udp", l.at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 3 {
		for _, b := range [][]byte{wire.AppendBeat(nil, wire.Beat{Seq: uint64(i), Clock: time.Duration(i) * time.Second}), []byte("noise"), {}} {
			if _, err := c.Write(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	within.Until(t, "three beats", func() bool {
		l.task.mu.Lock()
		defer l.task.mu.Unlock()
		return len(l.got) >= 3
	})
	l.Stop()
	for i, b := range l.got {
		if b.Seq != uint64(i) || b.Clock != time.Duration(i)*time.Second || b.Arrived.IsZero() {
			t.Errorf("beat %d: %+v", i, b)
		}
	}
	l = &beats{on: host.Local(), at: netip.MustParseAddrPort("192.0.2.1:7")}
	if err := l.Start(within.Context(t)); err == nil {
		t.Error("listens on an address that is not this machine's")
	}
}

func TestPinger(t *testing.T) {
	p := &pings{from: host.Local(), to: netip.MustParseAddr("127.0.0.1"), every: interval}
	err := p.Start(within.Context(t))
	if errors.Is(err, os.ErrPermission) {
		guesttest.Unable(t, "no raw ICMP socket without root: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	within.Until(t, "three replies", func() bool {
		p.task.mu.Lock()
		defer p.task.mu.Unlock()
		return len(p.replies) >= 3
	})
	p.Stop()
	var n record.Network
	p.count(&n)
	if arrivals, sent, lost := p.arrivals(), n.PingsSent, n.PingsLost; sent < 3 || lost != 0 || len(arrivals) != sent {
		t.Errorf("%d sent, %d lost, %d replies", sent, lost, len(arrivals))
	}
	p = &pings{from: host.Local(), to: netip.MustParseAddr("240.0.0.1"), every: interval} // nobody's, and not to be reached
	if err := p.Start(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	within.Until(t, "pings that go nowhere", func() bool {
		p.task.mu.Lock()
		defer p.task.mu.Unlock()
		return p.sent >= 5
	})
	p.Stop()
	p.count(&n)
	if arrivals, sent, lost := p.arrivals(), n.PingsSent, n.PingsLost; lost != sent || len(arrivals) > 0 {
		t.Errorf("%d sent, %d lost, %d replies", sent, lost, len(arrivals))
	}
}

// TestMissing: a reply that came twice does not stand for another ping.
func TestMissing(t *testing.T) {
	var n record.Network
	p := &pings{sent: 3, answered: map[uint16]bool{1: true}, replies: make([]time.Time, 2)}
	if p.count(&n); n.PingsLost != 2 {
		t.Errorf("%d missing of 3, one of which was answered twice", n.PingsLost)
	}
	p = &pings{sent: 1<<16 + 10, answered: map[uint16]bool{}, replies: make([]time.Time, 1<<16)}
	if p.count(&n); n.PingsLost != 10 {
		t.Errorf("%d missing after the numbers wrapped, want 10", n.PingsLost)
	}
}

// TestStopWithoutStart: an observer that never began can be stopped, and so can all of them, twice.
func TestStopWithoutStart(t *testing.T) {
	o := &Observers{}
	o.Stop()
	o.Stop()
	o = nil
	o.Stop()
}
