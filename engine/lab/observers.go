package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"qmigrate/engine/record/units"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// Defaults of Spec's intervals. Under TCG each datagram and each wake-up of the guest's kernel is emulated, which a busy guest pays for with its vCPU's time: docs/timeline.md has how much.
const (
	BeatInterval    = 5 * time.Millisecond
	BeatIntervalTCG = 100 * time.Millisecond
	PingInterval    = 5 * time.Millisecond
	PingIntervalTCG = 20 * time.Millisecond
)

// Interval checks one of the observers' intervals as people give it, and is what Spec takes: 0s is none there, and 0 the default here.
func Interval(asked time.Duration) (time.Duration, error) {
	if asked == 0 {
		return -1, nil
	}
	if asked < minInterval || asked > maxInterval {
		return 0, fmt.Errorf("%s: 0s, or %s to %s", units.FormatDuration(asked), units.FormatDuration(minInterval), units.FormatDuration(maxInterval))
	}
	return asked, nil
}

const (
	minInterval = time.Millisecond
	maxInterval = 250 * time.Millisecond // some of them in the second before the migration, in each second of the guest's clock
)

const (
	pingGrace = time.Second     // how long a reply may be under way at the end
	echoGrace = 5 * time.Second // the same for an echo, which TCP sends again after up to some seconds
)

// pinger sends ICMP echo requests from the observer to the guest and stamps the replies. Every observer is one such thing: run
// begins it, close ends it, and only then is what it has collected read.
type pinger struct {
	conn  net.PacketConn
	to    net.Addr
	id    int
	every time.Duration
	stop  context.CancelFunc
	all   sync.WaitGroup

	mu       sync.Mutex
	sent     int
	answered map[uint16]int // how often each sequence number was answered; it wraps after 65536 pings, over 5 minutes
	arrivals []time.Time
	err      error
}

func startPinger(ctx context.Context, from host.Host, to netip.Addr, every time.Duration) (*pinger, error) {
	conn, err := from.ListenPacket(ctx, "ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("open ping socket: %w", err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	p := &pinger{conn: conn, to: &net.IPAddr{IP: to.AsSlice()}, id: int(time.Now().UnixNano() & 0xffff), every: every, stop: stop, answered: map[uint16]int{}}
	p.all.Go(func() { p.send(ctx) })
	p.all.Go(p.receive)
	return p, nil
}

func (p *pinger) send(ctx context.Context) {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for seq := 0; ; seq++ {
		m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: seq & 0xffff, Data: []byte("qmigrate")}}
		packet, err := m.Marshal(nil)
		if err == nil {
			_, err = p.conn.WriteTo(packet, p.to)
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

func (p *pinger) receive() {
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

// close stops sending, waits for replies that may be under way, and returns what was seen. A reply that came twice is not a reply
// to another ping.
func (p *pinger) close() (arrivals []time.Time, sent, lost int) {
	p.stop()
	for deadline := time.Now().Add(pingGrace); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if p.missing() <= 0 {
			break
		}
	}
	p.conn.Close()
	p.all.Wait()
	return p.arrivals, p.sent, max(p.missing(), 0)
}

func (p *pinger) missing() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	answered := len(p.answered)
	if p.sent > 1<<16 { // the numbers wrapped: count replies
		answered = len(p.arrivals)
	}
	return p.sent - answered
}

// Pings sends pings and TCP echoes to a guest, as a lab's observer does, until stop, which returns the number of pings.
func Pings(ctx context.Context, from host.Host, guest netip.Addr, every time.Duration) (stop func() int, err error) {
	p, err := startPinger(ctx, from, guest, every)
	if err != nil {
		return nil, err
	}
	e, err := startEchoer(ctx, from, netip.AddrPortFrom(guest, wire.DefaultEchoPort), every)
	if err != nil {
		p.close()
		return nil, err
	}
	return func() int {
		e.close()
		_, sent, _ := p.close()
		return sent
	}, nil
}

// listener receives the guest's heartbeats by UDP and stamps them.
type listener struct {
	conn net.PacketConn
	all  sync.WaitGroup

	mu    sync.Mutex
	beats []beat
}

// beat is one heartbeat and when it was there, by the observer's clock.
type beat struct {
	wire.Beat
	arrived time.Time
}

func startListener(ctx context.Context, on host.Host, address netip.AddrPort) (*listener, error) {
	conn, err := on.ListenPacket(ctx, "udp", address.String())
	if err != nil {
		return nil, fmt.Errorf("listen for heartbeats: %w", err)
	}
	l := &listener{conn: conn}
	l.all.Go(l.receive)
	return l, nil
}

func (l *listener) receive() {
	b := make([]byte, 1500)
	for {
		n, _, err := l.conn.ReadFrom(b)
		now := time.Now()
		if err != nil {
			return
		}
		if t, ok := wire.ParseBeat(b[:n]); ok {
			l.mu.Lock()
			l.beats = append(l.beats, beat{t, now})
			l.mu.Unlock()
		}
	}
}

func (l *listener) close() []beat {
	l.conn.Close()
	l.all.Wait()
	return l.beats
}

// echoer keeps one TCP connection to the guest's echo server, sends a number at each tick and stamps the echoes.
type echoer struct {
	conn  net.Conn
	every time.Duration
	stop  context.CancelFunc
	all   sync.WaitGroup

	mu       sync.Mutex
	sent     uint64
	arrivals []time.Time
	err      error
}

func startEchoer(ctx context.Context, from host.Host, to netip.AddrPort, every time.Duration) (*echoer, error) {
	conn, err := from.Dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, fmt.Errorf("connect to the guest's echo server: %w", err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	e := &echoer{conn: conn, every: every, stop: stop}
	e.all.Go(func() { e.send(ctx) })
	e.all.Go(e.receive)
	return e, nil
}

func (e *echoer) send(ctx context.Context) {
	tick := time.NewTicker(e.every)
	defer tick.Stop()
	var b [8]byte
	for n := uint64(0); ; n++ {
		binary.BigEndian.PutUint64(b[:], n)
		_, err := e.conn.Write(b[:])
		e.mu.Lock()
		if err != nil {
			e.err = errors.Join(e.err, err)
			e.mu.Unlock()
			return
		}
		e.sent++
		e.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// receive takes the echoes in; one that is out of order means that the stream is not what was sent.
func (e *echoer) receive() {
	var b [8]byte
	for n := uint64(0); ; n++ {
		if _, err := io.ReadFull(e.conn, b[:]); err != nil {
			e.mu.Lock()
			e.err = errors.Join(e.err, err)
			e.mu.Unlock()
			return
		}
		now := time.Now()
		e.mu.Lock()
		if got := binary.BigEndian.Uint64(b[:]); got != n {
			e.err = errors.Join(e.err, fmt.Errorf("echo %d came back as %d", n, got))
			e.mu.Unlock()
			return
		}
		e.arrivals = append(e.arrivals, now)
		e.mu.Unlock()
	}
}

// close waits for the echoes under way and returns what was seen: survived if every number came back in order.
func (e *echoer) close() (arrivals []time.Time, survived bool, retransmits *int64) {
	e.stop()
	for deadline := time.Now().Add(echoGrace); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		e.mu.Lock()
		done := e.err != nil || uint64(len(e.arrivals)) == e.sent
		e.mu.Unlock()
		if done {
			break
		}
	}
	e.mu.Lock()
	survived = e.err == nil && uint64(len(e.arrivals)) == e.sent && e.sent > 0
	e.mu.Unlock()
	retransmits = retransmitsOf(e.conn)
	e.conn.Close()
	e.all.Wait()
	return e.arrivals, survived, retransmits
}
