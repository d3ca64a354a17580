package on

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

	"qmigrate/hostnet/host"
)

const pingGrace = time.Second // how long a reply may be under way at the end

// PingSpec is who is pinged, and how often.
type PingSpec struct {
	To    netip.Addr    `json:"to"`
	Every time.Duration `json:"every_ns"`
}

// Pinged is what came of the pings since the last output.
type Pinged struct {
	Sent    int     `json:"sent"` // since the begin
	Replies []Reply `json:"replies,omitempty"`
}

// Reply is one echo reply.
type Reply struct {
	Seq uint16    `json:"seq"`
	At  time.Time `json:"at"`
}

// Pings sends ICMP echo requests and stamps the replies, until ctx ends; then it waits for those that may be under way.
func Pings() host.Task[PingSpec, Pinged] {
	return host.Task[PingSpec, Pinged]{Name: "observe.pings",
		Work: func(ctx context.Context, at host.Host, s PingSpec, give func(Pinged) error) error {
			conn, err := at.ListenPacket(ctx, "ip4:icmp", "0.0.0.0")
			if err != nil {
				return fmt.Errorf("open ping socket: %w", err)
			}
			p := &pinger{at: at, spec: s, conn: conn, id: int(time.Now().UnixNano() & 0xffff), answered: map[uint16]bool{}}
			return p.run(ctx, give)
		}}
}

type pinger struct {
	at   host.Host
	spec PingSpec
	conn net.PacketConn
	id   int

	mu       sync.Mutex
	sent     int
	all      int             // replies
	answered map[uint16]bool // by sequence number, which wraps after 65536 pings, over 5 minutes
	got      []Reply         // and not handed over
}

func (p *pinger) run(ctx context.Context, give func(Pinged) error) error {
	var all sync.WaitGroup
	defer all.Wait()
	defer p.conn.Close()
	if err := give(Pinged{}); err != nil {
		return last(ctx, err)
	}
	sending, stop := context.WithCancel(ctx)
	defer stop()
	all.Go(func() { p.send(sending) })
	all.Go(p.receive)
	flush := func() error {
		p.mu.Lock()
		out := Pinged{p.sent, p.got}
		p.got = nil
		p.mu.Unlock()
		return give(out)
	}
	err := batches(ctx, flush)
	stop()
	for deadline := time.Now().Add(pingGrace); err == nil && time.Now().Before(deadline); time.Sleep(turn) {
		if p.missing() <= 0 {
			break
		}
	}
	p.conn.Close()
	all.Wait()
	return last(ctx, errors.Join(err, flush()))
}

func (p *pinger) send(ctx context.Context) {
	tick := time.NewTicker(p.spec.Every)
	defer tick.Stop()
	to := &net.IPAddr{IP: p.spec.To.AsSlice()}
	for seq := 0; ; seq++ {
		m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: seq & 0xffff, Data: []byte("qmigrate")}}
		if packet, err := m.Marshal(nil); err == nil {
			_, _ = p.conn.WriteTo(packet, to)
		}
		p.mu.Lock()
		p.sent++ // one that could not be sent counts as sent and lost: the guest was not reachable
		p.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *pinger) receive() {
	b := make([]byte, 1500)
	for {
		n, _, err := p.conn.ReadFrom(b)
		now := p.at.Now()
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
		p.all++
		p.answered[uint16(echo.Seq)] = true
		p.got = append(p.got, Reply{uint16(echo.Seq), now})
		p.mu.Unlock()
	}
}

// missing is how many replies have not come. One that came twice is not a reply to another ping.
func (p *pinger) missing() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	answered := len(p.answered)
	if p.sent > 1<<16 { // the numbers wrapped: count replies
		answered = p.all
	}
	return p.sent - answered
}
