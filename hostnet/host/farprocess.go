package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

// Start starts a process on the host.
func (f *Far) Start(ctx context.Context, c Command) (Process, error) {
	if len(c.Args) == 0 {
		return nil, errors.New("start process: no program given")
	}
	// Who stops waiting for the host's word would leave a process that nobody knows of.
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Args[0], err)
	}
	s, a, err := f.begin(context.WithoutCancel(ctx), request{Op: "start", Command: &wireCommand{Args: c.Args,
		Env: c.Env, Only: c.Only, Dir: c.Dir, Umask: c.Umask, Log: c.Log,
		Stdin: c.Stdin != nil, Stdout: c.Stdout != nil, Stderr: c.Stderr != nil}})
	if err != nil {
		return nil, err
	}
	p := &farProcess{far: f, pid: a.PID, start: a.Start, done: make(chan struct{}), stream: s}
	if c.Stdin != nil {
		go p.feed(c.Stdin)
	}
	go p.watch(func(a answer) {
		if c.Stdout != nil && len(a.Stdout) > 0 {
			_, _ = c.Stdout.Write(a.Stdout)
		}
		if c.Stderr != nil && len(a.Stderr) > 0 {
			_, _ = c.Stderr.Write(a.Stderr)
		}
	})
	return p, nil
}

// ExitError is how a process of a far host ended that did not end well.
type ExitError struct{ Status string } // "exit status 1", "signal: killed"

func (e *ExitError) Error() string { return e.Status }

// ExitCode is its exit status; -1: a signal ended it.
func (e *ExitError) ExitCode() int {
	var code int
	if _, err := fmt.Sscanf(e.Status, "exit status %d", &code); err != nil {
		return -1
	}
	return code
}

// farProcess is a process of a far host. When the channel closes it is not known any more whether it runs, so done
// stays open.
type farProcess struct {
	far    *Far
	pid    int
	start  uint64
	stream *stream
	write  sync.Mutex
	done   chan struct{}
	err    error  // set before done is closed
	used   *Usage // of a child, when it has ended
}

// watch takes what the process says until it has ended or the channel has closed.
func (p *farProcess) watch(says func(answer)) {
	defer p.stream.close()
	for {
		var a answer
		if readLine(p.stream.r, &a) != nil {
			return
		}
		if says != nil {
			says(a)
		}
		if a.Ended {
			if a.Status != "" {
				p.err = &ExitError{a.Status}
			}
			p.used = a.Usage
			close(p.done)
			return
		}
	}
}

func (p *farProcess) feed(r io.Reader) {
	b := make([]byte, 32<<10)
	for {
		n, err := r.Read(b)
		p.write.Lock()
		if n > 0 {
			if writeLine(p.stream.c, answer{Stdin: b[:n]}) != nil {
				p.write.Unlock()
				return
			}
		}
		if err != nil {
			_ = writeLine(p.stream.c, answer{Ended: true})
			p.write.Unlock()
			return
		}
		p.write.Unlock()
	}
}

func (p *farProcess) PID() int              { return p.pid }
func (p *farProcess) StartTime() uint64     { return p.start }
func (p *farProcess) Done() <-chan struct{} { return p.done }

func (p *farProcess) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

func (p *farProcess) Signal(sig os.Signal) error {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal process %d: %v is not a signal of this system", p.pid, sig)
	}
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
	defer cancel()
	_, err := p.far.ask(ctx, request{Op: "signal", PID: p.pid, Start: p.start, Signal: int(n)})
	return err
}

// Kill ends the process. nil means that its host has seen it dead.
func (p *farProcess) Kill(ctx context.Context) error {
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d of host %s: %w", p.pid, p.far.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-p.far.Closed():
		return p.far.lost(nil)
	case <-ctx.Done():
		return fmt.Errorf("kill process %d of host %s: not dead yet: %w", p.pid, p.far.name, ctx.Err())
	}
}

func (p *farProcess) Usage() (Usage, error) {
	select {
	case <-p.done:
		if p.used != nil {
			return *p.used, nil
		}
		return Usage{}, fmt.Errorf("read usage of process %d: %w", p.pid, os.ErrProcessDone)
	default:
	}
	a, err := p.far.ask(context.Background(), request{Op: "usage", PID: p.pid, Start: p.start})
	if err != nil || a.Usage == nil {
		return Usage{}, err
	}
	return *a.Usage, nil
}

func (p *farProcess) Threads() ([]int, error) {
	a, err := p.far.ask(context.Background(), request{Op: "threads", PID: p.pid})
	return a.Threads, err
}

func (p *farProcess) Yield(some []int) (undo func() error, err error) {
	s, _, err := p.far.begin(context.Background(), request{Op: "yield", PID: p.pid, Threads: some})
	if err != nil {
		return nil, err
	}
	return func() error {
		defer s.close()
		if err := writeLine(s.c, answer{Ended: true}); err != nil {
			return p.far.lost(err)
		}
		_, err := s.read(context.Background())
		return err
	}, nil
}

// farConn is a connection that a helper relays.
type farConn struct {
	*stream
	remote farAddr
	peer   int
	closed atomic.Bool
}

func (c *farConn) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	return n, c.because(err)
}

func (c *farConn) Write(b []byte) (int, error) {
	n, err := c.c.Write(b)
	return n, c.because(err)
}

// because tells the end of the connection from that of the channel. A channel that takes nothing for so long carries
// nothing any more.
func (c *farConn) because(err error) error {
	switch {
	case err == nil:
	case c.closed.Load():
		return net.ErrClosed
	case errors.Is(err, yamux.ErrConnectionWriteTimeout):
		go c.far.session.Close()
		return c.far.lost(err)
	case isTimeout(err):
		return os.ErrDeadlineExceeded
	case c.far.session.IsClosed():
		return c.far.lost(err)
	}
	return err
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// Close lets go of the far end.
func (c *farConn) Close() error {
	c.closed.Store(true)
	err := c.c.Close()
	_ = c.c.SetReadDeadline(time.Unix(1, 0)) // for whoever reads
	return err
}

func (c *farConn) LocalAddr() net.Addr                { return farAddr{c.remote.network, "a helper on " + c.far.name} }
func (c *farConn) RemoteAddr() net.Addr               { return c.remote }
func (c *farConn) SetDeadline(t time.Time) error      { return c.c.SetDeadline(t) }
func (c *farConn) SetReadDeadline(t time.Time) error  { return c.c.SetReadDeadline(t) }
func (c *farConn) SetWriteDeadline(t time.Time) error { return c.c.SetWriteDeadline(t) }

// farAddr is an address as a far host has it.
type farAddr struct{ network, address string }

func (a farAddr) Network() string { return a.network }
func (a farAddr) String() string  { return a.address }

// farListener is a socket that a helper listens on.
type farListener struct {
	far    *Far
	id     uint64
	stream *stream
	addr   farAddr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *farListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-l.far.Closed():
		return nil, l.far.lost(nil)
	}
}

func (l *farListener) forget() {
	l.far.mu.Lock()
	delete(l.far.lists, l.id)
	l.far.mu.Unlock()
}

func (l *farListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.forget()
		l.stream.close()
	})
	return nil
}

func (l *farListener) Addr() net.Addr { return l.addr }
