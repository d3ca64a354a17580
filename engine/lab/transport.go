package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/setting"
	"qmigrate/internal/near"
)

// The ways that the stream may take between the lab's hosts.
const (
	TCP  = "tcp"  // QEMU listens and connects itself
	Unix = "unix" // the same, on a socket in the lab's folder: it passes by the link
	FD   = "fd"   // a TCP connection over the link that we make and hand to both
	Exec = "exec" // each QEMU runs a `cat`, and we carry what the one reads over the link to the other
)

// Transports are their names.
func Transports() []string { return []string{TCP, Unix, FD, Exec} }

// CheckTransport refuses a way that there is not, one that cannot carry the plan, and one that the hosts do not have.
func (s Spec) CheckTransport(p plan.Plan) error {
	name := s.Transport
	switch {
	case name != "" && !slices.Contains(Transports(), name):
		return setting.Errorf("transport", name, "%s", near.Hint(name, Transports()))
	case name == Exec && (p.Mode == record.PostCopyMode || p.Mode == record.HybridMode ||
		p.Capabilities["return-path"] || p.Capabilities["postcopy-ram"]):
		return setting.Errorf("transport", name, "the lab's is a pipe, one way only, "+
			"and post-copy and return-path need the way back: take tcp, unix or fd")
	case name == Exec && p.TLS != nil:
		return setting.Errorf("transport", name, "the lab's is a pipe, one way only, "+
			"and a TLS handshake needs the way back: take tcp, unix or fd")
	case name == FD && !s.OnNamespaces():
		return setting.Errorf("transport", name, "the connection is handed to each QEMU as a descriptor, "+
			"and none can be handed to a host that is elsewhere: take tcp")
	case name == Exec && !s.OnNamespaces():
		return setting.Errorf("transport", name, "its pipes are this machine's, and hosts %s are elsewhere: take tcp", s.Hosts)
	case name != "" && name != TCP && p.Tunnel != "":
		return setting.Errorf("transport", name, "a tunnel is a transport too: leave one of the two out")
	}
	return nil
}

// route gives the plan its addresses on the lab's way, unless it has some, and sets up what that needs; undo removes
// it.
func (l *Lab) route(ctx context.Context, p *plan.Plan, o *plan.Options) (undo func(), err error) {
	if err := l.spec.CheckTransport(*p); err != nil {
		return nil, err
	}
	if p.Listen != "" {
		return func() {}, nil
	}
	switch l.spec.Transport {
	case Unix:
		_, there := l.site.Shared(l.dir)
		if there == "" {
			return nil, setting.Errorf("transport", Unix, "the hosts have no folder in common for the socket: take tcp")
		}
		p.Listen = "unix:" + path.Join(there, "migration.sock")
		if l.spec.LinkRate > 0 {
			l.warnings = append(l.warnings, "transport unix: the stream passes by the link, whose rate does not bound it")
		}
	case FD:
		p.Listen = "fd:migration"
		o.Stream = l.connected
	case Exec:
		r, err := l.startRelay(ctx)
		if err != nil {
			return nil, err
		}
		p.Listen, p.Connect = "exec:exec cat <'"+r.in+"'", "exec:exec cat >'"+r.out+"'"
		return r.close, nil
	default:
		p.Listen = l.Listen()
	}
	return func() {}, nil
}

// dial makes a TCP connection over the link: its end on the source's host and its end on the destination's.
func (l *Lab) dial(ctx context.Context) (a, b *net.TCPConn, err error) {
	to := l.hostOf(l.destination)
	listener, err := l.destination.Host().Listen(ctx, "tcp", net.JoinHostPort(l.site.Address(to).String(), "0"))
	if err != nil {
		return nil, nil, fmt.Errorf("listen for the stream on host %s: %w", to, err)
	}
	defer listener.Close()
	from, err := l.source.Host().Dial(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return nil, nil, fmt.Errorf("connect the hosts: %w", err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		from.Close()
		return nil, nil, fmt.Errorf("connect the hosts: %w", err)
	}
	return from.(*net.TCPConn), accepted.(*net.TCPConn), nil
}

// connected is an engine.Stream over the link.
func (l *Lab) connected(ctx context.Context) (src, dst *os.File, err error) {
	a, b, err := l.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer a.Close()
	defer b.Close()
	if src, err = a.File(); err != nil {
		return nil, nil, err
	}
	if dst, err = b.File(); err != nil {
		src.Close()
		return nil, nil, err
	}
	return src, dst, nil
}

// relay carries what the source's command writes into one FIFO over the link and into another, from which the
// destination's reads.
type relay struct {
	out, in string
	a, b    *net.TCPConn
	all     sync.WaitGroup

	mu     sync.Mutex
	files  []*os.File
	closed bool
}

func (l *Lab) startRelay(ctx context.Context) (*relay, error) {
	r := &relay{out: filepath.Join(l.dir, "out.fifo"), in: filepath.Join(l.dir, "in.fifo")}
	for _, name := range []string{r.out, r.in} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("make FIFO: %w", err)
		}
		if err := unix.Mkfifo(name, 0o600); err != nil {
			return nil, fmt.Errorf("make FIFO %s: %w", name, err)
		}
	}
	var err error
	if r.a, r.b, err = l.dial(ctx); err != nil {
		return nil, err
	}
	r.all.Go(func() { // an error ends the stream, which both QEMUs notice: it is theirs to tell
		if f := r.open(r.out, os.O_RDONLY); f != nil {
			_, _ = io.Copy(r.a, f)
			f.Close() // the source's command must not wait for a reader that is gone
		}
		_ = r.a.CloseWrite()
	})
	r.all.Go(func() {
		if f := r.open(r.in, os.O_WRONLY); f != nil {
			_, _ = io.Copy(f, r.b)
			f.Close()
		}
		r.b.Close()
	})
	return r, nil
}

// open waits until a command has opened the FIFO too; nil if the relay ends before.
func (r *relay) open(name string, flag int) *os.File {
	f, err := os.OpenFile(name, flag, 0)
	if err != nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		f.Close()
		return nil
	}
	r.files = append(r.files, f)
	return f
}

// close ends the relay, also where a command never came. A command that waits for us is released and finds an empty
// stream.
func (r *relay) close() {
	r.mu.Lock()
	r.closed = true
	for _, f := range r.files {
		f.Close()
	}
	r.mu.Unlock()
	r.a.Close()
	r.b.Close()
	for _, name := range []string{r.out, r.in} { // held until all have ended: one of us may only just be about to open it
		if f, err := os.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
			defer f.Close()
		}
	}
	r.all.Wait()
}
