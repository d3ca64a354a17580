package observe

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

	"qmigrate/engine/record"
	"qmigrate/hostnet/host"
)

// how long an echo may be under way at the end: TCP sends again after up to some seconds
const echoGrace = 5 * time.Second

// echoes keeps one TCP connection to the guest's echo server, sends a number at each tick and stamps the echoes.
type echoes struct {
	from  host.Host
	to    netip.AddrPort
	every time.Duration // not positive: none

	conn net.Conn // nil: not started
	stop context.CancelFunc
	all  sync.WaitGroup

	mu       sync.Mutex
	sent     uint64
	arrivals []time.Time
	err      error

	survived    bool // every number came back in order
	retransmits *int64
}

// Start connects and begins to send, unless the interval is none.
func (e *echoes) Start(ctx context.Context) error {
	if e.every <= 0 {
		return nil
	}
	conn, err := e.from.Dial(ctx, "tcp", e.to.String())
	if err != nil {
		return fmt.Errorf("connect to the guest's echo server: %w", err)
	}
	ctx, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	e.conn = conn
	e.all.Go(func() { e.send(ctx) })
	e.all.Go(e.receive)
	return nil
}

func (e *echoes) send(ctx context.Context) {
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
func (e *echoes) receive() {
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

// Stop waits for the echoes under way.
func (e *echoes) Stop() {
	if e.conn == nil {
		return
	}
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
	e.survived = e.err == nil && uint64(len(e.arrivals)) == e.sent && e.sent > 0
	e.mu.Unlock()
	if counts := CountsOf(e.conn); counts != nil {
		e.retransmits = &counts.Retransmits
	}
	e.conn.Close()
	e.all.Wait()
}

// Note writes down whether the connection survived, and its longest silence.
func (e *echoes) Note(rec *record.Migration, _, _ time.Time) error {
	if rec.Network == nil {
		return nil
	}
	e.count(rec.Network)
	noteSilence(rec, "tcp", e.arrivals, &rec.Downtime.TCP, &rec.Downtime.TCPError)
	return nil
}

// count writes down what became of the connection.
func (e *echoes) count(n *record.Network) {
	n.Retransmits = e.retransmits
	if e.every > 0 {
		n.TCPSurvived = &e.survived
	}
}
