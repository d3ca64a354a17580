package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

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
	conn     net.Conn
	rate     float64 // bytes/s; 0: as fast as it goes
	stop     context.CancelFunc
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
	tcp      *tcpCounts
}

func startStreamer(ctx context.Context, from host.Host, address string, w wire.Workload) (*streamer, error) {
	conn, err := dialGuest(ctx, from, address)
	if err != nil {
		return nil, fmt.Errorf("connect to the guest's stream: %w", err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &streamer{conn: conn, rate: w.Number("rate"), stop: stop}
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
	return s, nil
}

func (s *streamer) look() {
	s.looks = append(s.looks, streamLook{time.Now(), s.received.Load(), countsOf(s.conn)})
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

func (s *streamer) close() {
	s.closing.Store(true)
	s.stop()
	_ = s.conn.SetDeadline(time.Now()) // which ends what waits, and keeps TCP_INFO
	s.all.Wait()
	s.look()
	s.conn.Close()
}

func (s *streamer) fill(rec *record.Migration, began, ended time.Time) error {
	last := s.looks[len(s.looks)-1]
	x := &record.Stream{Received: last.received, Survived: s.err == nil, Phases: []record.StreamPhase{}}
	rec.Stream = x
	if s.err != nil {
		x.Broken = s.err.Error()
	}
	if last.tcp != nil {
		x.Acked, x.Retransmits = last.tcp.acked, &last.tcp.retransmits
	}
	var received, acked, resent []span
	for i := 1; i < len(s.looks); i++ {
		a, b := s.looks[i-1], s.looks[i]
		received = append(received, span{a.at, b.at, float64(b.received - a.received)})
		if a.tcp != nil && b.tcp != nil {
			acked = append(acked, span{a.at, b.at, float64(b.tcp.acked - a.tcp.acked)})
			resent = append(resent, span{a.at, b.at, float64(b.tcp.retransmits - a.tcp.retransmits)})
		}
	}
	from := rec.Origin.Add(-rec.Origin.Sub(s.looks[0].at) / streamBin * streamBin)
	for _, row := range []struct {
		name, unit, source string
		spans              []span
	}{
		{"tcp_received", "bytes/s", "the observer, bytes from the guest that its program had read, each 10 ms", received},
		{"tcp_acked", "bytes/s", "the observer's TCP_INFO, bytes that the guest's TCP had acknowledged, each 10 ms", acked},
		{"tcp_retransmits", "segments/s", "the observer's TCP_INFO, segments sent again, each 10 ms", resent},
	} {
		if len(row.spans) > 0 {
			rec.Timeline = append(rec.Timeline, record.Series{Name: row.name, Unit: row.unit, Source: row.source, Start: from.Sub(rec.Origin), Bin: streamBin,
				Values: binned(row.spans, from, streamBin), EdgeError: record.Of(streamBin)})
		}
	}
	for _, p := range phases(rec, began, ended) {
		r := rateOf(received, p.from, p.to)
		if r == nil {
			continue
		}
		y := record.StreamPhase{Phase: p.name, Received: *r}
		if a, n := rateOf(acked, p.from, p.to), rateOf(resent, p.from, p.to); a != nil && n != nil {
			y.Acked = *a
			y.Retransmits = record.Of(int64(*n*p.to.Sub(p.from).Seconds() + 0.5))
		}
		x.Phases = append(x.Phases, y)
	}
	if errors.Is(s.err, errStream) {
		return workloadError{"tcp", s.err.Error()}
	}
	return nil
}
