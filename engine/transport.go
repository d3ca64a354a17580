package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/qmp"
)

// The forms of an address in `migrate` and `migrate-incoming`. Both say the same; the second is QEMU 8.2's, and newer things will come in it alone.
const (
	FormURI      = "uri"
	FormChannels = "channels"
)

// Stream makes the connected pair of descriptors that a plan with fd:NAME hands to the source and to the destination.
type Stream func(ctx context.Context) (src, dst *os.File, err error)

// MemoryLocker is a Process that can say how much memory it may lock: zero-copy needs that. limited is false where there is no limit.
type MemoryLocker interface {
	MemoryLock() (bytes int64, limited bool, err error)
}

// Explainer is a Process that can say, as far as its host knows, why it does not greet or not answer: it is stopped, it
// waits for somebody else, another client holds the monitor; "" if nothing is known. The connection is the one on which
// nothing came; nil: none in particular.
type Explainer interface {
	WhyMute(net.Conn) string
}

// socketPair is a Stream within this machine.
func socketPair(context.Context) (src, dst *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "source"), os.NewFile(uintptr(fds[1]), "destination"), nil
}

// checkAddresses refuses addresses that cannot be two ends of one stream.
func (p Plan) checkAddresses() error {
	for flag, uri := range map[string]string{"--listen": p.Listen, "--connect": p.Connect} {
		if uri == "" {
			continue
		}
		a, err := qmp.ParseAddress(uri)
		if err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
		if a.Kind == "file" {
			return fmt.Errorf("%s %s: a file is no migration: use `qmigrate save` and `qmigrate restore`", flag, uri)
		}
	}
	kind, _, _ := strings.Cut(p.Listen, ":")
	switch {
	case p.Channels == FormChannels && strings.Contains(p.Listen+p.Connect, ",") && kind == "tcp":
		return errors.New("--channels channels: an address with options after a comma is for --channels uri")
	case ours(p.Listen) && p.Connect != "" && p.Connect != p.Listen:
		return fmt.Errorf("--listen %s and --connect %s: both sides get a descriptor of that name: leave --connect out", p.Listen, p.Connect)
	case (kind == "exec" || kind == "fd" && !ours(p.Listen)) && p.Connect == "":
		return fmt.Errorf("--listen %s needs --connect too: the source has to reach what the destination reads", p.Listen)
	}
	return nil
}

// ours tells whether the address is a descriptor that we hand over: one with a name. A number is one that QEMU was started with.
func ours(uri string) bool {
	name, ok := strings.CutPrefix(uri, "fd:")
	return ok && name != "" && (name[0] < '0' || name[0] > '9')
}

// listen makes the destination wait at the plan's address; of a descriptor it gets its end now, and the source's is kept for connect.
func (m *migration) listen(ctx context.Context) error {
	if ours(m.plan.Listen) {
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
	if m.plan.Channels == FormChannels {
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
	if m.plan.Channels == FormChannels {
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

// Networker is a Process that can name its network, the same name for two that have one; an error where that is not
// known.
type Networker interface {
	Network() (string, error)
}

// Listener is a Process that can try whether its QEMU could listen on a TCP address (host and port), and lets that go
// again; nil where it cannot be tried. A QEMU from 8 on that has refused an address says `setup` from then on, as if it
// listened.
type Listener interface {
	TryListen(host, port string) error
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
	if l, ok := m.dst.ep.Process.(Listener); ok && m.dst.facts.here {
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
	if !m.src.facts.here || !m.dst.facts.here {
		return false
	}
	a, okA := m.src.ep.Process.(Networker)
	b, okB := m.dst.ep.Process.(Networker)
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
