package run

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/setting"
	"qmigrate/qmp"
)

// socketPair is a Stream within this machine.
func socketPair(context.Context) (src, dst *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "source"), os.NewFile(uintptr(fds[1]), "destination"), nil
}

// Listen makes the destination wait at the plan's address; of a descriptor it gets its end now, and the source's is
// kept for connect.
func (r *Run) Listen(ctx context.Context) error {
	if plan.HandsOver(r.Plan.Listen) {
		stream := r.Opts.Stream
		if stream == nil {
			stream = socketPair
		}
		src, dst, err := stream(ctx)
		if err != nil {
			return err
		}
		defer dst.Close() // QEMU has its own, and a peer that dies must be seen to
		r.Stream = src
		if err := r.Dst.Getfd(ctx, r.Plan.Listen, dst); err != nil {
			return err
		}
	}
	return r.incoming(ctx, r.Dst, r.Plan.Listen)
}

// incoming is migrate-incoming in the plan's form.
func (r *Run) incoming(ctx context.Context, s *Side, uri string) error {
	if r.Plan.Channels == plan.FormChannels {
		a, err := qmp.ParseAddress(uri)
		if err != nil {
			return err
		}
		return s.Control.MigrateIncomingChannels(ctx, a)
	}
	return s.Control.MigrateIncoming(ctx, uri)
}

// outgoing is migrate in the plan's form.
func (r *Run) outgoing(ctx context.Context, uri string) error {
	if r.Plan.Channels == plan.FormChannels {
		a, err := qmp.ParseAddress(uri)
		if err != nil {
			return err
		}
		return r.Src.Control.MigrateChannels(ctx, a)
	}
	return r.Src.Control.Migrate(ctx, uri)
}

// connect hands the source its descriptor, if there is one, and sends `migrate`. A descriptor that `migrate` did not
// take is closed.
func (r *Run) connect(ctx context.Context) error {
	if r.Stream == nil {
		return r.outgoing(ctx, r.Plan.Connect)
	}
	defer r.Stream.Close()
	if err := r.Src.Getfd(ctx, r.Plan.Connect, r.Stream); err != nil {
		return err
	}
	err := r.outgoing(ctx, r.Plan.Connect)
	if err != nil {
		_ = r.Src.Control.Execute(ctx, "closefd", map[string]string{"fdname": strings.TrimPrefix(r.Plan.Connect, "fd:")}, nil)
	}
	return err
}

// Getfd gives a QEMU a descriptor under the name in the address.
func (s *Side) Getfd(ctx context.Context, uri string, f *os.File) error {
	name := map[string]string{"fdname": strings.TrimPrefix(uri, "fd:")}
	if err := s.Control.ExecuteFiles(ctx, "getfd", name, nil, f); err != nil {
		return fmt.Errorf("hand %s a descriptor over %s: %w", s.Role, s.Endpoint.Name, err)
	}
	return nil
}

// CheckListen refuses, before anything is changed, an address of which the source would not know what to connect to:
// one without a host. On one network that is the destination's loopback address.
func (r *Run) CheckListen() error {
	kind, rest, _ := strings.Cut(r.Plan.Listen, ":")
	if kind != "tcp" {
		return nil
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return setting.Errorf("listen", r.Plan.Listen, "%w", err)
	}
	if l, ok := r.Dst.Endpoint.Process.(endpoint.Listener); ok && r.Dst.Facts.Found() {
		if err := l.TryListen(host, port); err != nil {
			return setting.Errorf("listen", r.Plan.Listen,
				"the destination cannot listen there: %w: give another address or port", err)
		}
	}
	if r.Plan.Connect != "" || r.oneNetwork() || host != "" {
		return nil
	}
	return setting.Errorf("listen", r.Plan.Listen, "it has no host, so the source does not know where to connect to: "+
		"write tcp:HOST:%s, or give connect tcp:HOST:%s too", port, port)
}

// oneNetwork tells whether both QEMUs are known to be on one network, so that a loopback address means the same to
// both.
func (r *Run) oneNetwork() bool {
	if !r.Src.Facts.Beside(r.Dst.Facts) {
		return false
	}
	a, okA := r.Src.Endpoint.Process.(endpoint.Networker)
	b, okB := r.Dst.Endpoint.Process.(endpoint.Networker)
	if !okA || !okB {
		return false
	}
	x, errA := a.Network()
	y, errB := b.Network()
	return errA == nil && errB == nil && x == y
}

// ConnectURI is where the source finds the destination that listens on the given URI: with port 0 QEMU says which it
// took, and of all addresses of one network it is the loopback one.
func ConnectURI(ctx context.Context, control *qmp.Conn, listen string) (string, error) {
	rest, ok := strings.CutPrefix(listen, "tcp:")
	if !ok {
		return listen, nil
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return "", setting.Errorf("listen", listen, "%w", err)
	}
	if host == "" {
		host = "127.0.0.1" // QEMU listens on all addresses; see checkListen
	}
	if port != "0" {
		return "tcp:" + net.JoinHostPort(host, port), nil
	}
	info, err := control.QueryMigrate(ctx)
	if err != nil {
		return "", fmt.Errorf("ask destination for its port: %w", err)
	}
	for _, a := range info.SocketAddress {
		if a.Port != "" {
			return "tcp:" + net.JoinHostPort(host, a.Port), nil
		}
	}
	return "", fmt.Errorf("destination does not say on which port it listens: give one with listen, as in tcp:%s",
		net.JoinHostPort(host, "4444"))
}
