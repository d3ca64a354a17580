package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"qmigrate/engine/lab/observe"
	"qmigrate/engine/record"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

const (
	requestLimit = 30 * time.Second // a request that has no answer by then has failed
	mostLatency  = time.Hour        // of the histogram: it counts from when a request was due, a stop included
	webGrace     = 5 * time.Second  // without an answer, at the end
	redialPause  = 20 * time.Millisecond
)

// webClient asks the guest's web server at a fixed rate. Request n is due at start + n/rate on connection n mod
// connections, which asks one at a time: the next waits there, and its latency counts from when it was due.
type webClient struct {
	from    host.Host
	address string
	rate    float64
	size    int
	number  int // of connections
	start   time.Time
	conns   []*webConn
	all     sync.WaitGroup

	answers atomic.Int64

	grace time.Duration      // without an answer, after which those that are under way at the end are given up
	until time.Time          // no request that is due later is asked: set before ended is closed
	ended chan struct{}      // nil: not started
	over  context.Context    // ended when what is under way is given up
	quit  context.CancelFunc // ends over
}

// webConn is one connection's place: it is made anew when it breaks.
type webConn struct {
	client *webClient
	index  int
	mu     sync.Mutex
	nc     net.Conn // nil: none
	over   bool     // Stop was called: no more is dialled
	in     *bufio.Reader

	// To be read when it has ended.
	asked              []request
	resets, dials      int
	wrong, unanswered  int
	lastError          error
	expected, received []byte
}

// request is one that was due.
type request struct {
	due     time.Time
	latency time.Duration
	failed  bool
}

func newWebClient(from host.Host, address string, w wire.Workload) *webClient {
	return &webClient{grace: webGrace, from: from, address: address, rate: w.Number("rate"), size: int(w.Number("size")),
		number: int(w.Number("connections"))}
}

// Start connects and begins to ask.
func (c *webClient) Start(ctx context.Context) error {
	for i := range c.number {
		conn := &webConn{client: c, index: i, expected: make([]byte, 0, c.size), received: make([]byte, c.size)}
		if _, err := conn.dial(ctx); err != nil {
			c.hangUp()
			return fmt.Errorf("connect to the guest's web server: %w", err)
		}
		c.conns = append(c.conns, conn)
	}
	c.over, c.quit = context.WithCancel(context.WithoutCancel(ctx))
	c.ended, c.start = make(chan struct{}), time.Now()
	for _, conn := range c.conns {
		c.all.Go(conn.run)
	}
	return nil
}

func (c *webConn) dial(ctx context.Context) (net.Conn, error) {
	nc, err := dial(ctx, c.client.from, c.client.address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		nc.Close()
		return nil, net.ErrClosed
	}
	c.nc, c.in = nc, bufio.NewReader(nc)
	c.dials++
	return nc, nil
}

func (c *webConn) hangUp(over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = c.over || over
	if c.nc != nil {
		c.nc.Close()
		c.nc = nil
	}
}

// run asks at each of this connection's times until the client is stopped, and then what was due by then.
func (c *webConn) run() {
	w := c.client
	for n := uint64(c.index); ; n += uint64(w.number) {
		due := w.due(n)
		select {
		case <-time.After(time.Until(due)): // at once if it is late
		case <-w.ended:
		}
		select {
		case <-w.ended:
			if due.After(w.until) {
				return
			}
		default:
		}
		err := c.ask(n)
		if err == nil {
			w.answers.Add(1)
		}
		r := request{due, time.Since(due), err != nil}
		var broken *brokenError
		switch {
		case err != nil && w.over.Err() != nil: // hung up by us: it waited in vain, and so did those behind it
			for ; !w.due(n).After(w.until); n += uint64(w.number) {
				c.unanswered++
			}
			return
		case errors.As(err, &broken):
			if broken.reset() {
				c.resets++
			}
			c.hangUp(false)
		case err != nil:
			c.wrong++
			c.hangUp(false)
		}
		if err != nil {
			c.lastError = err
		}
		c.asked = append(c.asked, r)
	}
}

// due is when the n-th request is.
func (c *webClient) due(n uint64) time.Time {
	return c.start.Add(time.Duration(float64(n) / c.rate * float64(time.Second)))
}

// brokenError is a connection that broke, or did not come about.
type brokenError struct {
	err    error
	dialed bool
}

func (e *brokenError) Error() string { return e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// reset tells whether a connection that stood was ended by the other side or by the network, and not by a time-out of
// ours.
func (e *brokenError) reset() bool {
	return e.dialed && (errors.Is(e.err, syscall.ECONNRESET) || errors.Is(e.err, syscall.EPIPE) ||
		errors.Is(e.err, io.EOF) || errors.Is(e.err, io.ErrUnexpectedEOF) || errors.Is(e.err, syscall.ETIMEDOUT))
}

// ask sends one request and reads its response.
func (c *webConn) ask(n uint64) error {
	c.mu.Lock()
	nc := c.nc
	c.mu.Unlock()
	if nc == nil {
		var err error
		if nc, err = c.dial(c.client.over); err != nil {
			select {
			case <-time.After(redialPause): // a port that refuses does so at once
			case <-c.client.over.Done():
			}
			return &brokenError{err, false}
		}
	}
	_ = nc.SetDeadline(time.Now().Add(requestLimit))
	if _, err := fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", wire.WebPath(n), c.client.address); err != nil {
		return &brokenError{err, true}
	}
	response, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return &brokenError{err, true}
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK || response.ContentLength != int64(c.client.size) {
		return fmt.Errorf("request %d: status %s and %d bytes, not 200 and %d", n, response.Status, response.ContentLength,
			c.client.size)
	}
	if _, err := io.ReadFull(response.Body, c.received); err != nil {
		return &brokenError{err, true}
	}
	if c.expected = wire.Pattern(c.expected[:0], n, 0); !bytes.Equal(c.received, c.expected) {
		return fmt.Errorf("request %d: the body is not its own", n)
	}
	return nil
}

func (c *webClient) hangUp() {
	for _, conn := range c.conns {
		conn.hangUp(true)
	}
}

// Stop asks no more than what was due by now, waits for the answers for a while, and hangs up.
func (c *webClient) Stop() {
	if c.ended == nil {
		return
	}
	c.until = time.Now()
	close(c.ended)
	done := make(chan struct{})
	go func() {
		c.all.Wait()
		close(done)
	}()
	for answers := int64(-1); answers != c.answers.Load(); { // a guest that is only slow answers all that was due
		answers = c.answers.Load()
		select {
		case <-done:
		case <-time.After(c.grace):
		}
	}
	c.quit()
	c.hangUp()
	<-done
}

// Note writes down what became of the requests, phase by phase.
func (c *webClient) Note(rec *record.Migration, began, ended time.Time) error {
	web := &record.Web{Asked: c.rate, Connections: c.number, Body: int64(c.size), Phases: []record.WebPhase{}}
	rec.Web = web
	for _, conn := range c.conns {
		web.Resets += conn.resets
		web.Reconnects += conn.dials
		web.Wrong += conn.wrong
		web.Unanswered += conn.unanswered
		if conn.lastError != nil {
			rec.Warn("web: connection %d: %v", conn.index+1, conn.lastError)
		}
	}
	web.Reconnects -= c.number
	for _, p := range observe.Phases(rec, began, ended) {
		if !p.To.After(p.From) {
			continue
		}
		x := record.WebPhase{Phase: p.Name}
		h := hdrhistogram.New(int64(time.Microsecond), int64(mostLatency), 3)
		var longest time.Duration
		for _, conn := range c.conns {
			for _, r := range conn.asked {
				if !p.Has(r.due) {
					continue
				}
				if x.Requests++; r.failed {
					x.Errors++
					continue
				}
				longest = max(longest, r.latency)
				_ = h.RecordValue(int64(min(r.latency, mostLatency)))
			}
		}
		x.Answered = float64(x.Requests-x.Errors) / p.To.Sub(p.From).Seconds()
		if h.TotalCount() > 0 {
			at := func(q float64) time.Duration { return min(time.Duration(h.ValueAtPercentile(q)), longest) }
			x.P50, x.P99, x.P999, x.Max = at(50), at(99), at(99.9), longest
			if b, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase); err == nil {
				x.Histogram = string(b)
			}
		}
		web.Phases = append(web.Phases, x)
	}
	if web.Wrong > 0 {
		return observe.WorkloadError{Name: "web", Text: fmt.Sprintf("%d responses were not what was asked for", web.Wrong)}
	}
	return nil
}
