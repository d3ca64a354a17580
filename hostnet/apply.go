package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/netns"
)

// Apply makes the network as the spec has it. What is there already and right stays untouched; what is there and wrong
// is put right. If it fails, it removes again what it had made. The error is an *UnsupportedError where this machine
// or user lacks something.
func (s Spec) Apply(ctx context.Context) (*Network, error) {
	return s.apply(ctx, func(b *builder) error { return b.build(ctx) })
}

// Link makes the observer and the link's bridge alone. The spec's hosts are made by others, who then call Connect and
// Join for each.
func (s Spec) Link(ctx context.Context) (*Network, error) {
	return s.apply(ctx, func(b *builder) error { return b.link(ctx) })
}

func (s Spec) apply(ctx context.Context, build func(*builder) error) (*Network, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	b := &builder{newNetwork(s.withDefaults()), nil}
	if err := build(b); err != nil {
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("apply network %s: %w", s.Owner, err), b.undo(undoCtx))
	}
	return b.network, nil
}

// builder is one Apply.
type builder struct {
	network *Network
	undos   []func(context.Context) error
}

func (b *builder) undo(ctx context.Context) error {
	var errs []error
	for _, f := range slices.Backward(b.undos) {
		errs = append(errs, f(ctx))
	}
	return errors.Join(errs...)
}

func (b *builder) build(ctx context.Context) error {
	if err := b.link(ctx); err != nil {
		return err
	}
	n := b.network
	for _, h := range n.spec.Hosts {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := n.spec.namespace(h.Name)
		if err := b.namespace(name); err != nil {
			return fmt.Errorf("make host %s: %w", h.Name, err)
		}
		at := host.InNamespace(name)
		made, err := n.connect(h.Name, at, uplinkName, func() (int, error) { return netns.Open(name) })
		if made {
			b.undos = append(b.undos, func(ctx context.Context) error {
				_, err := LeaveTask().Ask(ctx, n.observer, Leave{[]string{n.ports[h.Name]}})
				return err
			})
		}
		if err != nil {
			return fmt.Errorf("connect host %s: %w", h.Name, err)
		}
		joined, err := n.join(ctx, h.Name, at, bridgeName, uplinkName)
		if err != nil {
			return fmt.Errorf("make host %s: %w", h.Name, err)
		}
		b.undoJoin(at, joined)
	}
	return nil
}

// link makes the observer.
func (b *builder) link(ctx context.Context) error {
	n := b.network
	if err := ctx.Err(); err != nil {
		return err
	}
	name := n.spec.namespace(linkHost)
	if err := b.namespace(name); err != nil {
		return fmt.Errorf("make host %s: %w", linkHost, err)
	}
	made, err := JoinTask().Ask(ctx, n.observer, Join{Name: name, Bridge: n.bridge,
		Address: netip.PrefixFrom(n.Gateway(), n.spec.Subnet.Bits()), MTU: n.spec.MTU})
	if err != nil {
		return fmt.Errorf("make host %s: %w", linkHost, err)
	}
	b.undoJoin(n.observer, made)
	return nil
}

func (b *builder) undoJoin(at host.Host, made Joined) {
	b.undos = append(b.undos, func(ctx context.Context) error {
		_, err := LeaveTask().Ask(ctx, at, Leave{made.Devices})
		return err
	})
}

func (b *builder) namespace(name string) error {
	made, err := netns.Create(name)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return noNamespaces(err)
	}
	if made {
		b.undos = append(b.undos, func(ctx context.Context) error {
			_, err := deleteNamespace(ctx, name)
			return err
		})
	}
	return err
}

// Connect makes the veth between the link and the network namespace of a process of this machine, a container's first:
// uplink is its name there.
func (n *Network) Connect(ctx context.Context, name string, process host.Process, uplink string) error {
	if n.index(name) < 0 {
		return fmt.Errorf("connect host %q: no such host", name)
	}
	_, err := n.connect(name, nil, uplink, func() (int, error) {
		path := fmt.Sprintf("/proc/%d/ns/net", process.PID())
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("open %s: %w", path, err)
		}
		if _, err := host.FindProcess(process.PID(), process.StartTime()); err != nil { // it had the number all the time
			unix.Close(fd)
			return -1, err
		}
		return fd, nil
	})
	if err != nil {
		return fmt.Errorf("connect host %s: %w", name, err)
	}
	return nil
}

// Join brings a host that somebody else made on the network: bridge, uplink and TAPs, by a task on it. From then on the
// network has it as the host of that name.
func (n *Network) Join(ctx context.Context, name string, at host.Host, bridge, uplink string) error {
	if n.index(name) < 0 {
		return fmt.Errorf("join host %q: no such host", name)
	}
	if _, err := n.join(ctx, name, at, bridge, uplink); err != nil {
		return fmt.Errorf("join host %s: %w", name, err)
	}
	return nil
}

func (n *Network) join(ctx context.Context, name string, at host.Host, bridge, uplink string) (Joined, error) {
	h := n.spec.Hosts[n.index(name)]
	made, err := JoinTask().Ask(ctx, at, Join{Name: n.spec.namespace(name), Bridge: bridge, Uplink: uplink,
		Address: netip.PrefixFrom(n.Address(name), n.spec.Subnet.Bits()), TAPs: h.TAPs, Rate: n.spec.Rate, MTU: n.spec.MTU})
	if err != nil {
		return made, err
	}
	if port := n.ports[name]; port != "" {
		err = host.In(n.observer, func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			return (&nsBuilder{Handle: h}).forwarding(ctx, port)
		})
	}
	if err != nil {
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		_, undoErr := LeaveTask().Ask(undoCtx, at, Leave{made.Devices})
		return made, errors.Join(err, undoErr)
	}
	n.mu.Lock()
	n.hosts[name], n.shaper = at, made.Shaper
	n.mu.Unlock()
	return made, nil
}

// connect makes the veth between a host and the link, each end born in its own namespace. at is the host if it may have
// one already, that could be right.
func (n *Network) connect(name string, at host.Host, uplink string, open func() (int, error)) (made bool, err error) {
	port := n.ports[name]
	var hostEnd netlink.Link
	on := func(at host.Host, f func(*nsBuilder) error) error {
		return host.In(at, func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return fmt.Errorf("open netlink: %w", err)
			}
			defer h.Close()
			return f(&nsBuilder{Handle: h, join: Join{MTU: n.spec.MTU}})
		})
	}
	if at != nil {
		err := on(at, func(ns *nsBuilder) (err error) {
			ns.quiet()
			hostEnd, err = ns.link(uplink, func(l netlink.Link) bool { return l.Type() == "veth" })
			return err
		})
		if err != nil {
			return false, err
		}
	}
	return made, on(n.observer, func(ns *nsBuilder) error {
		ns.quiet()
		br, err := ns.LinkByName(n.bridge)
		if err != nil {
			return fmt.Errorf("find %s: %w", n.bridge, err)
		}
		l, err := ns.link(port, func(l netlink.Link) bool {
			return l.Type() == "veth" && hostEnd != nil &&
				l.Attrs().ParentIndex == hostEnd.Attrs().Index && hostEnd.Attrs().ParentIndex == l.Attrs().Index
		})
		if err != nil {
			return err
		}
		if l != nil {
			return ns.up(l, br)
		}
		fd, err := open()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if hostEnd != nil { // its other end is not where it should be
			if err := on(at, func(ns *nsBuilder) error { return ns.LinkDel(hostEnd) }); err != nil {
				return fmt.Errorf("remove a half of a veth: %w", err)
			}
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = port, n.spec.MTU
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace, veth.PeerMTU = uplink, netlink.NsFd(fd), uint32(n.spec.MTU)
		if err := ns.LinkAdd(veth); err != nil {
			return fmt.Errorf("make veth %s: %w", port, unsupportedLink("veth", "CONFIG_VETH", err))
		}
		made = true
		if l, err = ns.LinkByName(port); err != nil {
			return err
		}
		return ns.up(l, br)
	})
}
