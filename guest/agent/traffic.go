package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"qmigrate/guest/wire"
)

// traffic is what the workloads that serve the observer share: a listener, and its connections, which all end with the
// workload.
type traffic struct {
	a        *agent
	listener net.Listener

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	err   error // the first of a connection's that is the workload's failure
}

func (a *agent) newTraffic(port int) (*traffic, error) {
	l, err := a.listen("tcp4", ":"+strconv.Itoa(port))
	if err != nil {
		return nil, err
	}
	return &traffic{a: a, listener: l, conns: map[net.Conn]struct{}{}}, nil
}

// run serves until ctx ends, or a connection brings an error, which is the workload's.
func (s *traffic) run(ctx context.Context, serve func(net.Conn) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end := context.AfterFunc(ctx, func() {
		s.listener.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			c.Close()
		}
		s.conns = nil
	})
	defer end()
	var all sync.WaitGroup
	for {
		c, err := s.listener.Accept()
		if err != nil {
			cancel()
			all.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.err == nil && !errors.Is(err, net.ErrClosed) {
				s.err = err
			}
			return s.err
		}
		s.mu.Lock()
		if s.conns == nil {
			c.Close()
		} else {
			s.conns[c] = struct{}{}
		}
		s.mu.Unlock()
		all.Add(1)
		s.a.spawn("connection", func() {
			defer all.Done()
			err := serve(c)
			c.Close()
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.conns, c)
			if err != nil && s.err == nil {
				s.err = err
				cancel()
			}
		})
	}
}

// web is an HTTP/1.1 server that knows GET of a number, over connections that are kept. It is written out here because
// net/http would double the agent's size, and with it what each guest unpacks and checks at its boot.
type web struct {
	*traffic
	size                           int
	requests, connections, refused atomic.Uint64
}

func (w *web) run(ctx context.Context, m *meter) error {
	return w.traffic.run(ctx, func(c net.Conn) error {
		w.connections.Add(1)
		in := bufio.NewReaderSize(c, 4<<10)
		for {
			n, err := readRequest(in)
			if err != nil {
				if errors.Is(err, errRequest) {
					w.refused.Add(1)
					// it may be gone
					_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				}
				return nil // the client hung up, which is its right
			}
			if _, err := c.Write(response(n, w.size)); err != nil {
				return nil
			}
			w.requests.Add(1)
			m.add(w.a.clock.now(), 1)
		}
	})
}

func (w *web) result() any {
	return wire.Served{Requests: w.requests.Load(), Connections: w.connections.Load(), Refused: w.refused.Load()}
}

var errRequest = errors.New("not a request that is understood")

// readRequest reads one request's head and returns the number that it asks for.
func readRequest(in *bufio.Reader) (n uint64, err error) {
	for i := 0; ; i++ {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) || i > 100 {
			return 0, errRequest
		}
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case i > 0 && len(line) == 0:
			return n, nil
		case i == 0:
			fields := strings.Fields(string(line))
			if len(fields) != 3 || fields[0] != "GET" || fields[2] != "HTTP/1.1" {
				return 0, errRequest
			}
			if n, err = strconv.ParseUint(strings.TrimPrefix(fields[1], "/"), 10, 64); err != nil {
				return 0, errRequest
			}
		}
	}
}

// response is the n-th: head and body in one, for one segment is one frame.
func response(n uint64, size int) []byte {
	head := "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: " + strconv.Itoa(size) +
		"\r\n\r\n"
	b := make([]byte, len(head)+size)
	copy(b, head)
	wire.Pattern(b[len(head):len(head):len(head)+size], n, 0)
	return b
}

// stream sends a stream of bytes at a rate and receives and checks another, on each connection.
type stream struct {
	*traffic
	rate                        float64
	received, sent, connections atomic.Uint64
}

const (
	streamChunk = 32 << 10
	streamTurn  = 5 * time.Millisecond // between two sendings at a rate: half of a bin
)

func (s *stream) run(ctx context.Context, m *meter) error {
	return s.traffic.run(ctx, func(c net.Conn) error {
		s.connections.Add(1)
		done := make(chan struct{})
		s.a.spawn("stream", func() {
			defer close(done)
			s.send(c)
		})
		err := s.receive(c, m)
		c.Close()
		<-done
		return err
	})
}

// send ends when the connection does.
func (s *stream) send(c net.Conn) {
	p := pacer{rate: s.rate}
	p.start(s.a.clock.now())
	buf := make([]byte, 0, streamChunk)
	for position := uint64(0); ; {
		n := streamChunk
		if s.rate > 0 {
			if n = min(p.due(s.a.clock.now()), streamChunk) &^ 7; n == 0 {
				time.Sleep(streamTurn)
				continue
			}
		}
		b := wire.Pattern(buf[:0:n], 0, position)
		sent, err := c.Write(b)
		s.sent.Add(uint64(sent))
		if err != nil {
			return
		}
		p.spend(n)
		position += uint64(n) / 8
		if n < streamChunk {
			time.Sleep(streamTurn)
		}
	}
}

// receive ends when the connection does; a byte that is not the one that was sent is an error.
func (s *stream) receive(c net.Conn, m *meter) error {
	buf, space := make([]byte, streamChunk), make([]byte, 0, streamChunk)
	have := 0 // bytes of a word that is not whole
	for position := uint64(0); ; {
		n, err := c.Read(buf[have:])
		have += n
		words := have &^ 7
		if want := wire.Pattern(space[:0:words], 0, position); !bytes.Equal(buf[:words], want) {
			return fmt.Errorf("the stream from the observer is not what was sent, within %d bytes from its %d-th on", words,
				position*8)
		}
		position += uint64(words) / 8
		have = copy(buf, buf[words:have])
		s.received.Add(uint64(n))
		if n > 0 {
			m.add(s.a.clock.now(), n)
		}
		if err != nil {
			return nil
		}
	}
}

func (s *stream) result() any {
	return wire.Streamed{Received: s.received.Load(), Sent: s.sent.Load(), Connections: s.connections.Load()}
}
