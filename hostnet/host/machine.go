package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"qmigrate/hostnet/internal/netns"
)

// machine is this machine as seen from one of its network namespaces; "" is the one that we are in.
type machine struct {
	namespace string
	like      *Like  // nil: processes are started as we are
	clock     *Drift // nil: the kernel's
}

// do runs f on a thread that is in the namespace. Sockets that f makes belong to the namespace for good, and processes
// that it starts are born in it.
func (m machine) do(f func() error) error {
	if m.namespace == "" {
		return f()
	}
	return netns.In(m.namespace, f)
}

// In runs f on a thread that is in the network namespace of a host of this machine: what a task does with netlink and
// with sockets of its own it does there. f starts no goroutine that does.
func In(at Host, f func() error) error {
	m, ok := at.(machine)
	if !ok {
		return fmt.Errorf("work in the network of host %s: it is not this machine's", at.Name())
	}
	return m.do(f)
}

func (m machine) Name() string {
	if m.namespace == "" {
		return "local"
	}
	return "netns:" + m.namespace
}

func (m machine) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if address, err = m.resolve(ctx, network, address); err != nil {
		return nil, err
	}
	// Happy eyeballs would dial on other goroutines, hence in another namespace: off.
	d := net.Dialer{FallbackDelay: -1}
	d.SetMultipathTCP(false)
	err = m.do(func() (err error) {
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func (m machine) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	if address, err = m.resolve(ctx, network, address); err != nil {
		return nil, err
	}
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	err = m.do(func() (err error) {
		l, err = c.Listen(ctx, network, address)
		return err
	})
	return l, err
}

func (m machine) ListenPacket(ctx context.Context, network, address string) (p net.PacketConn, err error) {
	if address, err = m.resolve(ctx, network, address); err != nil {
		return nil, err
	}
	err = m.do(func() (err error) {
		p, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	return p, err
}

// resolve replaces a host's name in address by its first address. Go's resolver works on goroutines of its own, which
// are not in the namespace; so nothing may be left to look up there.
func (m machine) resolve(ctx context.Context, network, address string) (string, error) {
	if m.namespace == "" || strings.HasPrefix(network, "unix") {
		return address, nil
	}
	host, port, err := net.SplitHostPort(address)
	if strings.HasPrefix(network, "ip") {
		host, port, err = address, "", nil
	}
	if err != nil || host == "" {
		return address, nil // the dialer has the better error, or the address is the unspecified one
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return address, nil
	}
	family := "ip"
	if strings.HasSuffix(network, "4") {
		family = "ip4"
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, family, host)
	if err != nil {
		return "", err
	}
	first := found[0].Unmap().String()
	if port == "" {
		return first, nil
	}
	return net.JoinHostPort(first, port), nil
}

func (m machine) ReadFile(name string) ([]byte, error) {
	if m.like == nil {
		return os.ReadFile(name)
	}
	f, err := m.like.open(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func (m machine) WriteFile(name string, data []byte, perm fs.FileMode) error {
	if m.like == nil {
		return os.WriteFile(name, data, perm)
	}
	f, err := m.like.open(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func (m machine) MkdirAll(name string, perm fs.FileMode) error {
	if m.like == nil {
		return os.MkdirAll(name, perm)
	}
	return m.like.mkdir(name, perm)
}

func (m machine) RemoveAll(name string) error {
	if m.like == nil {
		return os.RemoveAll(name)
	}
	return m.like.remove(name)
}

func (m machine) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// Now is the host's clock.
func (m machine) Now() time.Time {
	if m.clock != nil {
		return m.clock.Now()
	}
	return time.Now()
}

// Put finds the file where it is.
func (m machine) Put(_ context.Context, name string) (string, error) { return name, nil }

func (m machine) Clock(context.Context) (Clock, error) { return Clock{}, nil }
