package hostnet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/internal/netns"
)

// Apply makes the network as the spec has it. What is there already and right stays untouched; what is there and wrong
// is put right. If it fails, it removes again what it had made. The error is an *UnsupportedError where this machine
// or user lacks something.
func (s Spec) Apply(ctx context.Context) (*Network, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	s = s.withDefaults()
	b := builder{spec: s}
	if err := b.build(ctx); err != nil {
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("apply network %s: %w", s.Owner, err), b.undo(undoCtx))
	}
	return &Network{spec: s, shaper: b.shaper}, nil
}

// builder is one Apply.
type builder struct {
	spec   Spec
	shaper string
	undos  []func(context.Context) error
}

func (b *builder) undo(ctx context.Context) error {
	var errs []error
	for _, f := range slices.Backward(b.undos) {
		errs = append(errs, f(ctx))
	}
	return errors.Join(errs...)
}

func (b *builder) build(ctx context.Context) error {
	hosts := append([]HostSpec{{Name: linkHost}}, b.spec.Hosts...)
	for i, h := range hosts {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.namespace(h.Name); err != nil {
			return fmt.Errorf("make host %s: %w", h.Name, err)
		}
		address := b.spec.address(1)
		if i > 0 {
			address = b.spec.address(firstHost + i - 1)
		}
		if err := b.inside(h.Name, func(ns *nsBuilder) error { return ns.host(h, address) }); err != nil {
			return fmt.Errorf("make host %s: %w", h.Name, err)
		}
	}
	for _, h := range b.spec.Hosts {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.connect(h.Name); err != nil {
			return fmt.Errorf("connect host %s: %w", h.Name, err)
		}
		if err := b.inside(h.Name, func(ns *nsBuilder) error { return ns.shape() }); err != nil {
			return fmt.Errorf("shape host %s: %w", h.Name, err)
		}
	}
	for _, h := range b.spec.Hosts {
		if err := b.forwarding(ctx, h.Name); err != nil {
			return fmt.Errorf("connect host %s: %w", h.Name, err)
		}
	}
	return nil
}

func (b *builder) namespace(host string) error {
	name := b.spec.namespace(host)
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

// inside runs f with a netlink handle in a host's namespace, on a thread that is in it.
func (b *builder) inside(host string, f func(*nsBuilder) error) error {
	name := b.spec.namespace(host)
	return netns.In(name, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		return f(&nsBuilder{builder: b, Handle: h, name: name})
	})
}

// connect makes the veth between a host and the link, each end born in its own namespace.
func (b *builder) connect(host string) error {
	port := portPrefix + host
	var hostEnd netlink.Link
	err := b.inside(host, func(ns *nsBuilder) (err error) {
		hostEnd, err = ns.link(uplinkName, func(l netlink.Link) bool { return l.Type() == "veth" })
		return err
	})
	if err != nil {
		return err
	}
	err = b.inside(linkHost, func(ns *nsBuilder) error {
		ns.quiet()
		br, err := ns.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("find %s: %w", bridgeName, err)
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
		fd, err := netns.Open(b.spec.namespace(host))
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if hostEnd != nil { // its other end is not where it should be
			if err := b.inside(host, func(ns *nsBuilder) error { return ns.LinkDel(hostEnd) }); err != nil {
				return fmt.Errorf("remove a half of a veth: %w", err)
			}
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = port, ns.spec.MTU
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace, veth.PeerMTU = uplinkName, netlink.NsFd(fd), uint32(ns.spec.MTU)
		if err := ns.LinkAdd(veth); err != nil {
			return fmt.Errorf("make veth %s: %w", port, unsupportedLink("veth", "CONFIG_VETH", err))
		}
		ns.undoLink(port)
		if l, err = ns.LinkByName(port); err != nil {
			return err
		}
		return ns.up(l, br)
	})
	if err != nil {
		return err
	}
	return b.inside(host, func(ns *nsBuilder) error {
		ns.quiet()
		br, err := ns.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("find %s: %w", bridgeName, err)
		}
		l, err := ns.LinkByName(uplinkName)
		if err != nil {
			return fmt.Errorf("find %s: %w", uplinkName, err)
		}
		return ns.up(l, br)
	})
}

// forwarding waits until both ends of a host's veth have their carrier: the kernel tells a bridge about that from a
// work queue, and what is sent before is lost.
func (b *builder) forwarding(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeout(ctx, portLimit)
	defer cancel()
	for where, device := range map[string]string{host: uplinkName, linkHost: portPrefix + host} {
		err := b.inside(where, func(ns *nsBuilder) error {
			for {
				l, err := ns.LinkByName(device)
				if err != nil {
					return fmt.Errorf("find %s: %w", device, err)
				}
				if l.Attrs().OperState == netlink.OperUp {
					return nil
				}
				select {
				case <-ctx.Done():
					return fmt.Errorf("wait for the carrier of %s (state %s): %w", device, l.Attrs().OperState, ctx.Err())
				case <-time.After(time.Millisecond):
				}
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}
