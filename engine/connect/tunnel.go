package connect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/tunnel"
	"qmigrate/hostnet/host"
)

// TunnelSpec is a tunnel as data: both halves are in this process, each on its own host, and the connection between
// them is the hosts'.
type TunnelSpec struct {
	Kind        plan.TunnelKind
	Source      host.Host // where the near half listens, and connects from
	Destination host.Host // where the far half listens, and connects to the destination's QEMU
	Address     string    // the destination's address, which the far half listens on; a port of its choice
	In          string    // unix socket that the source's QEMU connects to; made
	Out         string    // unix socket that the destination's QEMU will listen on
	Folder      string    // of the sockets, on this machine, which closing the tunnel removes; "": none

	// Far makes the connection to a far half that is somebody else's, an sshd; nil: it is ours.
	Far func(ctx context.Context) (tunnel.Carrier, error)
}

// Tunnel is a tunnel that stands.
type Tunnel struct {
	kind plan.TunnelKind
	near *tunnel.Near
	far  *tunnel.Far // nil: somebody else's
	cpu  time.Duration
	dir  string
}

// OpenTunnel makes the tunnel; the two ends have proved themselves to each other when it returns.
func OpenTunnel(ctx context.Context, s TunnelSpec) (_ *Tunnel, err error) {
	t := &Tunnel{kind: s.Kind, cpu: processorTime(), dir: s.Folder}
	defer func() {
		if err != nil {
			t.Close()
			err = fmt.Errorf("open %s tunnel: %w", s.Kind, err)
		}
	}()
	if s.Far == nil {
		if s.Far, err = t.serve(ctx, s); err != nil {
			return nil, err
		}
	}
	in, err := s.Source.Listen(ctx, "unix", s.In)
	if err != nil {
		return nil, err
	}
	t.near, err = tunnel.Start(ctx, in, s.Far)
	return t, err
}

// serve starts a far half of ours, and returns how the near half comes to it.
func (t *Tunnel) serve(ctx context.Context, s TunnelSpec) (func(context.Context) (tunnel.Carrier, error), error) {
	l, err := s.Destination.Listen(ctx, "tcp", net.JoinHostPort(s.Address, "0"))
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context) (net.Conn, error) { return s.Destination.Dial(ctx, "unix", s.Out) }
	var over func(context.Context, net.Conn) (tunnel.Carrier, error)
	if s.Kind == plan.TLSTunnel {
		server, client, err := tunnel.TLSPair()
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		t.far = tunnel.ServeTLS(l, server, dial)
		over = func(ctx context.Context, nc net.Conn) (tunnel.Carrier, error) { return tunnel.TLS(ctx, nc, client) }
	} else {
		server, client, err := tunnel.SSHPair()
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		t.far = tunnel.ServeSSH(l, server, "unix", s.Out, dial)
		over = func(ctx context.Context, nc net.Conn) (tunnel.Carrier, error) {
			return tunnel.SSH(ctx, nc, s.Destination.Name(), client, "unix", s.Out)
		}
	}
	address := t.far.Addr().String()
	return func(ctx context.Context) (tunnel.Carrier, error) {
		nc, err := s.Source.Dial(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		return over(ctx, nc)
	}, nil
}

// Close ends the tunnel, nil for none, and says what it carried. What went wrong in it is a warning's text, empty if
// nothing did. It is harmless twice.
func (t *Tunnel) Close() (carried record.Tunnel, trouble string) {
	if t == nil {
		return carried, ""
	}
	carried = record.Tunnel{Kind: string(t.kind)}
	if t.near != nil {
		t.near.Close()
		carried.Bytes = t.near.Bytes()
		if err := t.near.Err(); err != nil {
			trouble = fmt.Sprintf("the %s tunnel broke: %v", t.kind, err)
		}
	}
	if t.far != nil {
		t.far.Close()
	}
	carried.CPU = processorTime() - t.cpu
	if t.dir != "" {
		if err := os.RemoveAll(t.dir); err != nil && trouble == "" {
			trouble = fmt.Sprintf("the tunnel's folder could not be removed: %v", err)
		}
	}
	return carried, trouble
}

// Note closes the tunnel, nil for none, and writes into the record what it was.
func (t *Tunnel) Note(rec *record.Migration) {
	if t == nil {
		return
	}
	carried, trouble := t.Close()
	rec.Tunnel = &carried
	if trouble != "" {
		rec.Warn("%s", trouble)
	}
}

// processorTime is what this process has used so far, in user and system mode. Source: getrusage(2).
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
