package on

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

	"qmigrate/hostnet/host"
)

// how long an echo may be under way at the end: TCP sends again after up to some seconds
const echoGrace = 5 * time.Second

// EchoSpec is which echo server is connected to, and how often a number is sent.
type EchoSpec struct {
	To    netip.AddrPort `json:"to"`
	Every time.Duration  `json:"every_ns"`
}

// Echoed is what came of the echoes since the last output.
type Echoed struct {
	Sent   uint64      `json:"sent"` // since the begin
	Echoes []time.Time `json:"echoes,omitempty"`
	Broken string      `json:"broken,omitempty"` // how the connection ended, or was not what was sent
	Counts *TCPCounts  `json:"counts,omitempty"` // at the end
}

// Echoes keeps one TCP connection to an echo server, sends a number at each tick and stamps the echoes, until ctx ends;
// then it waits for those under way.
func Echoes() host.Task[EchoSpec, Echoed] {
	return host.Task[EchoSpec, Echoed]{Name: "observe.echoes",
		Work: func(ctx context.Context, at host.Host, s EchoSpec, give func(Echoed) error) error {
			conn, err := at.Dial(ctx, "tcp", s.To.String())
			if err != nil {
				return fmt.Errorf("connect to the guest's echo server: %w", err)
			}
			return (&echoer{at: at, spec: s, conn: conn}).run(ctx, give)
		}}
}

type echoer struct {
	at   host.Host
	spec EchoSpec
	conn net.Conn

	mu   sync.Mutex
	sent uint64
	came uint64
	got  []time.Time // and not handed over
	err  error
}

func (e *echoer) run(ctx context.Context, give func(Echoed) error) error {
	var all sync.WaitGroup
	defer all.Wait()
	defer e.conn.Close()
	if err := give(Echoed{}); err != nil {
		return last(ctx, err)
	}
	sending, stop := context.WithCancel(ctx)
	defer stop()
	all.Go(func() { e.send(sending) })
	all.Go(e.receive)
	take := func() (out Echoed) {
		e.mu.Lock()
		defer e.mu.Unlock()
		out = Echoed{Sent: e.sent, Echoes: e.got}
		if e.got = nil; e.err != nil {
			out.Broken = e.err.Error()
		}
		return out
	}
	err := batches(ctx, func() error { return give(take()) })
	stop()
	for deadline := time.Now().Add(echoGrace); err == nil && time.Now().Before(deadline); time.Sleep(turn) {
		e.mu.Lock()
		done := e.err != nil || e.came == e.sent
		e.mu.Unlock()
		if done {
			break
		}
	}
	out := take()
	if out.Broken == "" && out.Sent > e.came {
		out.Broken = fmt.Sprintf("%d of %d echoes came", e.came, out.Sent)
	}
	out.Counts = CountsOf(e.conn)
	return last(ctx, errors.Join(err, give(out)))
}

func (e *echoer) send(ctx context.Context) {
	tick := time.NewTicker(e.spec.Every)
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
		_, err := io.ReadFull(e.conn, b[:])
		now := e.at.Now()
		if got := binary.BigEndian.Uint64(b[:]); err == nil && got != n {
			err = fmt.Errorf("echo %d came back as %d", n, got)
		}
		e.mu.Lock()
		if err != nil {
			e.err = errors.Join(e.err, err)
			e.mu.Unlock()
			return
		}
		e.came++
		e.got = append(e.got, now)
		e.mu.Unlock()
	}
}
