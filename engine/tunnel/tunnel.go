// Package tunnel carries a migration's connections through one authenticated and encrypted connection between the
// hosts, TLS or SSH.
//
// The source's QEMU connects to the near half as it would to the destination; each of its connections, and with multifd
// there are several, becomes a stream of the one connection, and the far half connects on to where the destination's
// QEMU listens. Ends and errors are passed on, so that each QEMU sees what it would see of the other.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Carrier is one authenticated connection to the destination's host.
type Carrier interface {
	// Open opens one more stream to where the destination listens.
	Open(ctx context.Context) (Stream, error)
	// Done is closed when the connection has ended.
	Done() <-chan struct{}
	Close() error
}

// Stream is a connection whose two directions end one by one.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// chunk is how much is copied at once; a TLS record holds 16 KiB.
const chunk = 256 << 10

// group is everything that a half has under way.
type group struct {
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup
	mu     sync.Mutex
	open   map[io.Closer]struct{}
	closed bool

	streams atomic.Int64 // that are carried now
}

func newGroup() *group {
	g := &group{open: map[io.Closer]struct{}{}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// hold has c closed with the group; false if that is closed already, and c with it.
func (g *group) hold(c io.Closer) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		c.Close()
		return false
	}
	g.open[c] = struct{}{}
	return true
}

func (g *group) release(c io.Closer) {
	c.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.open, c)
}

// close ends everything and waits for it. It is harmless twice.
func (g *group) close() {
	g.cancel()
	g.mu.Lock()
	g.closed = true
	for c := range g.open {
		c.Close()
	}
	g.mu.Unlock()
	g.wait.Wait()
}

// Near is the source's half.
type Near struct {
	*group
	listener net.Listener
	connect  func(context.Context) (Carrier, error)
	bytes    atomic.Int64
	mu       sync.Mutex
	carrier  Carrier
	err      error // the first that a stream met
}

// Start makes the connection, and then carries what comes to l, until Close. A connection that was lost is made anew
// when somebody comes, as a post-copy that goes on does. Close closes l too; so does an error.
func Start(ctx context.Context, l net.Listener, connect func(context.Context) (Carrier, error)) (*Near, error) {
	n := &Near{group: newGroup(), listener: l, connect: connect}
	n.hold(l)
	if _, err := n.current(ctx); err != nil {
		n.close()
		return nil, err
	}
	n.wait.Go(n.accept)
	return n, nil
}

// current is the connection, a new one if there is none that lives.
func (n *Near) current(ctx context.Context) (Carrier, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.carrier != nil {
		select {
		case <-n.carrier.Done():
			n.release(n.carrier)
			n.carrier = nil
		default:
			return n.carrier, nil
		}
	}
	c, err := n.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect tunnel: %w", err)
	}
	if !n.hold(c) {
		return nil, net.ErrClosed
	}
	n.carrier = c
	return c, nil
}

func (n *Near) accept() {
	for {
		nc, err := n.listener.Accept()
		if err != nil {
			return
		}
		n.wait.Go(func() { n.carry(nc.(Stream)) })
	}
}

func (n *Near) carry(from Stream) {
	if !n.hold(from) {
		return
	}
	defer n.release(from)
	n.streams.Add(1)
	defer n.streams.Add(-1)
	c, err := n.current(n.ctx)
	var to Stream
	if err == nil {
		to, err = c.Open(n.ctx)
	}
	if err != nil {
		n.fail(err)
		return
	}
	if !n.hold(to) {
		return
	}
	defer n.release(to)
	if err = pump(from, to, &n.bytes); err == nil {
		select {
		case <-c.Done(): // then its streams end as if their other side had ended them, some a moment before
			err = errBroken
		case <-time.After(brokenGrace):
		case <-n.ctx.Done():
		}
	}
	n.fail(err)
}

var errBroken = errors.New("the tunnel's connection has ended")

// brokenGrace is how long after its streams a connection that broke may be known to have ended.
const brokenGrace = 100 * time.Millisecond

func (n *Near) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err == nil && n.ctx.Err() == nil {
		n.err = err
	}
}

// Bytes is what has been carried so far, both ways: the migration's own bytes, without what the tunnel adds.
func (n *Near) Bytes() int64 { return n.bytes.Load() }

// Err is what the first stream met that did not simply end.
func (n *Near) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// Close ends the tunnel, whatever is in it. It is harmless twice.
func (n *Near) Close() error {
	n.close()
	return nil
}

// Far is the destination's half.
type Far struct {
	*group
	listener net.Listener
}

// serve has each connection of l handled, until Close.
func serve(l net.Listener, handle func(g *group, nc net.Conn)) *Far {
	f := &Far{group: newGroup(), listener: l}
	f.hold(l)
	f.wait.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			f.wait.Go(func() {
				if f.hold(nc) {
					defer f.release(nc)
					handle(f.group, nc)
				}
			})
		}
	})
	return f
}

// Addr is where it listens.
func (f *Far) Addr() net.Addr { return f.listener.Addr() }

// Close ends the far half, whatever is in it. It is harmless twice.
func (f *Far) Close() error {
	f.close()
	return nil
}

// forward carries one stream on to where dial leads.
func (g *group) forward(from Stream, dial func(context.Context) (net.Conn, error)) {
	if !g.hold(from) {
		return
	}
	defer g.release(from)
	g.streams.Add(1)
	defer g.streams.Add(-1)
	nc, err := dial(g.ctx)
	if err != nil {
		return // the other side sees the end
	}
	if !g.hold(nc) {
		return
	}
	defer g.release(nc)
	_ = pump(from, nc.(Stream), new(atomic.Int64)) // the near half tells
}

// pump copies both ways until both have ended. An end is passed on as an end of that direction, an error ends both.
func pump(a, b Stream, bytes *atomic.Int64) error {
	var both sync.WaitGroup
	var errs [2]error
	for i, way := range [][2]Stream{{a, b}, {b, a}} {
		both.Go(func() {
			// Without their other methods, by which they would copy in pieces of their own.
			_, err := io.CopyBuffer(counter{way[1], bytes}, struct{ io.Reader }{way[0]}, make([]byte, chunk))
			if err == nil {
				_ = way[1].CloseWrite() // fails only where the other side has gone, which the other direction tells
				return
			}
			errs[i] = err
			a.Close()
			b.Close()
		})
	}
	both.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	return nil
}

type counter struct {
	io.Writer
	bytes *atomic.Int64
}

func (c counter) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.bytes.Add(int64(n))
	return n, err
}
