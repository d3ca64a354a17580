package engine

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
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

// listen makes the destination wait at the plan's address; of a descriptor it gets its end now, and the source's is kept for connect.
func (m *migration) listen(ctx context.Context) error {
	if plan.HandsOver(m.plan.Listen) {
		stream := m.opts.Stream
		if stream == nil {
			stream = socketPair
		}
		src, dst, err := stream(ctx)
		if err != nil {
			return err
		}
		defer dst.Close() // QEMU has its own, and a peer that dies must be seen to
		m.stream = src
		if err := m.dst.getfd(ctx, m.plan.Listen, dst); err != nil {
			return err
		}
	}
	return m.incoming(ctx, m.dst, m.plan.Listen)
}

// incoming is migrate-incoming in the plan's form.
func (m *migration) incoming(ctx context.Context, s *side, uri string) error {
	if m.plan.Channels == plan.FormChannels {
		a, err := qmp.ParseAddress(uri)
		if err != nil {
			return err
		}
		return s.control.MigrateIncomingChannels(ctx, a)
	}
	return s.control.MigrateIncoming(ctx, uri)
}

// outgoing is migrate in the plan's form.
func (m *migration) outgoing(ctx context.Context, uri string) error {
	if m.plan.Channels == plan.FormChannels {
		a, err := qmp.ParseAddress(uri)
		if err != nil {
			return err
		}
		return m.src.control.MigrateChannels(ctx, a)
	}
	return m.src.control.Migrate(ctx, uri)
}

// connect hands the source its descriptor, if there is one, and sends `migrate`. A descriptor that `migrate` did not take is closed.
func (m *migration) connect(ctx context.Context) error {
	if m.stream == nil {
		return m.outgoing(ctx, m.plan.Connect)
	}
	defer m.stream.Close()
	if err := m.src.getfd(ctx, m.plan.Connect, m.stream); err != nil {
		return err
	}
	err := m.outgoing(ctx, m.plan.Connect)
	if err != nil {
		_ = m.src.control.Execute(ctx, "closefd", map[string]string{"fdname": strings.TrimPrefix(m.plan.Connect, "fd:")}, nil)
	}
	return err
}

// getfd gives a QEMU a descriptor under the name in the address.
func (s *side) getfd(ctx context.Context, uri string, f *os.File) error {
	name := map[string]string{"fdname": strings.TrimPrefix(uri, "fd:")}
	if err := s.control.ExecuteFiles(ctx, "getfd", name, nil, f); err != nil {
		return fmt.Errorf("hand %s a descriptor over %s: %w", s.role, s.ep.Name, err)
	}
	return nil
}

// checkListen refuses, before anything is changed, an address of which the source would not know what to connect to:
// one without a host. On one network that is the destination's loopback address.
func (m *migration) checkListen() error {
	kind, rest, _ := strings.Cut(m.plan.Listen, ":")
	if kind != "tcp" {
		return nil
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return fmt.Errorf("read --listen %s: %w", m.plan.Listen, err)
	}
	if l, ok := m.dst.ep.Process.(endpoint.Listener); ok && m.dst.facts.Here {
		if err := l.TryListen(host, port); err != nil {
			return fmt.Errorf("--listen %s: the destination cannot listen there: %w: give another address or port",
				m.plan.Listen, err)
		}
	}
	if m.plan.Connect != "" || m.oneNetwork() || host != "" {
		return nil
	}
	return fmt.Errorf("--listen %s: it has no host, so the source does not know where to connect to: write tcp:HOST:%s, or give --connect tcp:HOST:%s too",
		m.plan.Listen, port, port)
}

// oneNetwork tells whether both QEMUs are known to be on one network, so that a loopback address means the same to
// both.
func (m *migration) oneNetwork() bool {
	if !m.src.facts.Here || !m.dst.facts.Here {
		return false
	}
	a, okA := m.src.ep.Process.(endpoint.Networker)
	b, okB := m.dst.ep.Process.(endpoint.Networker)
	if !okA || !okB {
		return false
	}
	x, errA := a.Network()
	y, errB := b.Network()
	return errA == nil && errB == nil && x == y
}

// connectURI is where the source finds the destination that listens on the given URI: with port 0 QEMU says which it
// took, and of all addresses of one network it is the loopback one.
func connectURI(ctx context.Context, control *qmp.Conn, listen string) (string, error) {
	rest, ok := strings.CutPrefix(listen, "tcp:")
	if !ok {
		return listen, nil
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return "", fmt.Errorf("read --listen %s: %w", listen, err)
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
	return "", fmt.Errorf("destination does not say on which port it listens: give one with --listen tcp:%s", net.JoinHostPort(host, "4444"))
}
