package observe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"qmigrate/engine/record"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

const pingGrace = time.Second // how long a reply may be under way at the end

// pings sends ICMP echo requests from the observer to the guest and stamps the replies.
type pings struct {
	from  host.Host
	to    netip.Addr
	every time.Duration // not positive: none

	conn net.PacketConn // nil: not started
	id   int
	stop context.CancelFunc
	all  sync.WaitGroup

	mu       sync.Mutex
	sent     int
	answered map[uint16]int // how often each sequence number was answered; it wraps after 65536 pings, over 5 minutes
	arrivals []time.Time
	err      error
}

// Start begins to send, unless the interval is none.
func (p *pings) Start(ctx context.Context) error {
	if p.every <= 0 {
		return nil
	}
	conn, err := p.from.ListenPacket(ctx, "ip4:icmp", "0.0.0.0")
	if err != nil {
		return fmt.Errorf("open ping socket: %w", err)
	}
	ctx, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	p.conn, p.id, p.answered = conn, int(time.Now().UnixNano()&0xffff), map[uint16]int{}
	p.all.Go(func() { p.send(ctx) })
	p.all.Go(p.receive)
	return nil
}

func (p *pings) send(ctx context.Context) {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	to := &net.IPAddr{IP: p.to.AsSlice()}
	for seq := 0; ; seq++ {
		m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: seq & 0xffff, Data: []byte("qmigrate")}}
		packet, err := m.Marshal(nil)
		if err == nil {
			_, err = p.conn.WriteTo(packet, to)
		}
		p.mu.Lock()
		p.sent++ // one that could not be sent counts as sent and lost: the guest was not reachable
		p.err = errors.Join(err)
		p.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *pings) receive() {
	b := make([]byte, 1500)
	for {
		n, _, err := p.conn.ReadFrom(b)
		now := time.Now()
		if err != nil {
			return
		}
		m, err := icmp.ParseMessage(ipv4.ICMPTypeEcho.Protocol(), b[:n])
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
			continue
		}
		echo, ok := m.Body.(*icmp.Echo)
		if !ok || echo.ID != p.id {
			continue
		}
		p.mu.Lock()
		p.answered[uint16(echo.Seq)]++
		p.arrivals = append(p.arrivals, now)
		p.mu.Unlock()
	}
}

// Stop stops sending and waits for replies that may be under way. A reply that came twice is not a reply to another
// ping.
func (p *pings) Stop() {
	if p.conn == nil || p.stop == nil {
		return
	}
	p.stop()
	for deadline := time.Now().Add(pingGrace); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if p.missing() <= 0 {
			break
		}
	}
	p.conn.Close()
	p.all.Wait()
}

// Note writes down how many replies came, and the longest silence among them.
func (p *pings) Note(rec *record.Migration, _, _ time.Time) error {
	if rec.Network == nil {
		return nil
	}
	p.count(rec.Network)
	noteSilence(rec, "ping", p.arrivals, &rec.Downtime.Ping, &rec.Downtime.PingError)
	return nil
}

// count writes down how many pings there were.
func (p *pings) count(n *record.Network) {
	n.PingsSent, n.PingsLost = p.sent, max(p.missing(), 0)
	if p.every > 0 {
		n.PingInterval = &p.every
	}
}

func (p *pings) missing() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	answered := len(p.answered)
	if p.sent > 1<<16 { // the numbers wrapped: count replies
		answered = len(p.arrivals)
	}
	return p.sent - answered
}

// Pings sends pings and TCP echoes to a guest, as Observers do, until stop, which returns the number of pings.
func Pings(ctx context.Context, from host.Host, guest netip.Addr, every time.Duration) (stop func() int, err error) {
	p := &pings{from: from, to: guest, every: every}
	if err := p.Start(ctx); err != nil {
		return nil, err
	}
	e := &echoes{from: from, to: netip.AddrPortFrom(guest, wire.DefaultEchoPort), every: every}
	if err := e.Start(ctx); err != nil {
		p.Stop()
		return nil, err
	}
	return func() int {
		e.Stop()
		p.Stop()
		return p.sent
	}, nil
}
