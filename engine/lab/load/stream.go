package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"qmigrate/engine/lab/observe"
	"qmigrate/engine/lab/observe/on"
	"qmigrate/engine/record"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

const (
	streamBin   = 10 * time.Millisecond
	streamTurn  = 5 * time.Millisecond // between two sendings at a rate
	streamDepth = 200 * time.Millisecond
	streamChunk = 32 << 10
)

// streamer keeps one TCP connection to the guest on which both send all the time, and looks at it every 10 ms.
type streamer struct {
	from    host.Host
	address string
	rate    float64 // bytes/s; 0: as fast as it goes

	conn     net.Conn
	stop     context.CancelFunc // nil: not started
	all      sync.WaitGroup
	received atomic.Int64
	closing  atomic.Bool

	mu  sync.Mutex
	err error // the first

	looks []streamLook // to be read when it has ended
}

// streamLook is what had been done by an instant.
type streamLook struct {
	at       time.Time
	received int64
	tcp      *on.TCPCounts
}

func newStreamer(from host.Host, address string, w wire.Workload) *streamer {
	return &streamer{from: from, address: address, rate: w.Number("rate")}
}

// Start connects and begins to send.
func (s *streamer) Start(ctx context.Context) (err error) {
	if s.conn, err = dial(ctx, s.from, s.address); err != nil {
		return fmt.Errorf("connect to the guest's stream: %w", err)
	}
	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.look()
	s.all.Go(func() { s.send(ctx) })
	s.all.Go(s.receive)
	s.all.Go(func() {
		tick := time.NewTicker(streamBin)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.look()
			case <-ctx.Done():
				return
			}
		}
	})
	return nil
}

func (s *streamer) look() {
	s.looks = append(s.looks, streamLook{time.Now(), s.received.Load(), on.CountsOf(s.conn)})
}

func (s *streamer) broke(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && !s.closing.Load() {
		s.err = err
	}
}

// send sends the pattern; at a rate, what was due and could not be sent for longer than streamDepth is given up.
func (s *streamer) send(ctx context.Context) {
	buf := make([]byte, 0, streamChunk)
	begin := time.Now()
	sent, forgone := 0.0, 0.0
	for position := uint64(0); ctx.Err() == nil; {
		n := streamChunk
		if s.rate > 0 {
			due := s.rate*time.Since(begin).Seconds() - sent - forgone
			if most := s.rate * streamDepth.Seconds(); due > most {
				forgone += due - most
				due = most
			}
			n = min(int(due), streamChunk) &^ 7
		}
		if n > 0 {
			if _, err := s.conn.Write(wire.Pattern(buf[:0:n], 0, position)); err != nil {
				s.broke(fmt.Errorf("send: %w", err))
				return
			}
			sent += float64(n)
			position += uint64(n) / 8
		}
		if n < streamChunk {
			select {
			case <-time.After(streamTurn):
			case <-ctx.Done():
			}
		}
	}
}

var errStream = errors.New("the stream from the guest is not what was sent")

func (s *streamer) receive() {
	buf, space := make([]byte, streamChunk), make([]byte, 0, streamChunk)
	have := 0 // bytes of a word that is not whole
	for position := uint64(0); ; {
		n, err := s.conn.Read(buf[have:])
		have += n
		words := have &^ 7
		if want := wire.Pattern(space[:0:words], 0, position); !bytes.Equal(buf[:words], want) {
			s.broke(fmt.Errorf("%w, within %d bytes from its %d-th on", errStream, words, position*8))
			return
		}
		position += uint64(words) / 8
		have = copy(buf, buf[words:have])
		s.received.Add(int64(n))
		if err != nil {
			s.broke(fmt.Errorf("receive: %w", err))
			return
		}
	}
}

// Stop ends it.
func (s *streamer) Stop() {
	if s.stop == nil {
		return
	}
	s.closing.Store(true)
	s.stop()
	_ = s.conn.SetDeadline(time.Now()) // which ends what waits, and keeps TCP_INFO
	s.all.Wait()
	s.look()
	s.conn.Close()
}

// Note writes down what went over the stream, bin by bin and phase by phase.
func (s *streamer) Note(rec *record.Migration, began, ended time.Time) error {
	last := s.looks[len(s.looks)-1]
	x := &record.Stream{Received: last.received, Survived: s.err == nil, Phases: []record.StreamPhase{}}
	rec.Stream = x
	if s.err != nil {
		x.Broken = s.err.Error()
	}
	if last.tcp != nil {
		x.Acked, x.Retransmits = last.tcp.Acked, &last.tcp.Retransmits
	}
	var received, acked, resent []observe.Span
	for i := 1; i < len(s.looks); i++ {
		a, b := s.looks[i-1], s.looks[i]
		received = append(received, observe.Span{From: a.at, To: b.at, N: float64(b.received - a.received)})
		if a.tcp != nil && b.tcp != nil {
			acked = append(acked, observe.Span{From: a.at, To: b.at, N: float64(b.tcp.Acked - a.tcp.Acked)})
			resent = append(resent, observe.Span{From: a.at, To: b.at, N: float64(b.tcp.Retransmits - a.tcp.Retransmits)})
		}
	}
	from := rec.Origin.Add(-rec.Origin.Sub(s.looks[0].at) / streamBin * streamBin)
	for _, row := range []struct {
		name, unit, source string
		spans              []observe.Span
	}{
		{"tcp_received", "bytes/s", "the observer, bytes from the guest that its program had read, each 10 ms", received},
		{"tcp_acked", "bytes/s", "the observer's TCP_INFO, bytes that the guest's TCP had acknowledged, each 10 ms", acked},
		{"tcp_retransmits", "segments/s", "the observer's TCP_INFO, segments sent again, each 10 ms", resent},
	} {
		if len(row.spans) > 0 {
			rec.Timeline = append(rec.Timeline, record.Series{Name: row.name, Unit: row.unit, Source: row.source,
				Start: from.Sub(rec.Origin), Bin: streamBin,
				Values: observe.Bins(row.spans, from, streamBin), EdgeError: record.Of(streamBin)})
		}
	}
	for _, p := range observe.Phases(rec, began, ended) {
		r := observe.Rate(received, p.From, p.To)
		if r == nil {
			continue
		}
		y := record.StreamPhase{Phase: p.Name, Received: *r}
		if a, n := observe.Rate(acked, p.From, p.To), observe.Rate(resent, p.From, p.To); a != nil && n != nil {
			y.Acked = *a
			y.Retransmits = record.Of(int64(*n*p.To.Sub(p.From).Seconds() + 0.5))
		}
		x.Phases = append(x.Phases, y)
	}
	if errors.Is(s.err, errStream) {
		return observe.WorkloadError{Name: "tcp", Text: s.err.Error()}
	}
	return nil
}
