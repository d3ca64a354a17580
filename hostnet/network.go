package hostnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Names of the kernel's objects. All of them are in namespaces of ours: none is ever in the one that we run in.
const (
	prefix     = "qmig-"    // namespaces: qmig-OWNER-HOST
	linkHost   = "link"     // the observer's
	bridgeName = "qmigbr0"  // in every namespace
	uplinkName = "qmigup0"  // a host's end of the veth to the link
	portPrefix = "qmigup-"  // the link's end of it: qmigup-HOST
	defaultTAP = "qmigtap0" // a host's only TAP, unless the spec says otherwise
	tunDevice  = "/dev/net/tun"
	undoLimit  = 10 * time.Second
	portLimit  = 3 * time.Second // until a port of a bridge forwards; it takes a millisecond
	firstHost  = 11
	firstGuest = 101
	maxMTU     = 65535 - 14 // of a TAP: the kernel counts its Ethernet header in
)

// TAPSpec is a TAP that a QEMU opens by its name. It is persistent, a port of the host's bridge, up, and made with
// IFF_NO_PI and IFF_VNET_HDR as QEMU opens it.
type TAPSpec struct {
	Name   string // at most 15 bytes
	Queues int    // above 1: multi-queue, which QEMU's queues= must then be as well; default 1
}

// HostSpec is one host.
type HostSpec struct {
	Name string    // letters, digits and _; at most 8 bytes; not "link"
	TAPs []TAPSpec // default: one, qmigtap0
}

// Spec is a network of hosts around one link, as data.
type Spec struct {
	Owner  string       // mark in all names: letters, digits, _ and -
	Hosts  []HostSpec   // default a and b
	Subnet netip.Prefix // IPv4, /25 or wider: observer .1, hosts from .11, guests from .101; default 10.77.0.0/24
	Rate   int64        // bytes/s, Ethernet headers included, that each host may send to the link, by TBF, else HTB; 0 is unshaped
	MTU    int          // bytes, of every device; default 1500
}

// isOwner: letters, digits, _ and, but in front, -.
func isOwner(s string) bool { return s != "" && s[0] != '-' && len(s) <= 64 && onlyWord(s, "-") }

// isHost: letters, digits and _, as many as leave room for portPrefix in a device's name of 15 bytes.
func isHost(s string) bool { return s != "" && len(s) <= 15-len(portPrefix) && onlyWord(s, "") }

func onlyWord(s, also string) bool {
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"+also) == ""
}

func (s Spec) withDefaults() Spec {
	if len(s.Hosts) == 0 {
		s.Hosts = []HostSpec{{Name: "a"}, {Name: "b"}}
	}
	s.Hosts = slices.Clone(s.Hosts)
	for i, h := range s.Hosts {
		if len(h.TAPs) == 0 {
			s.Hosts[i].TAPs = []TAPSpec{{Name: defaultTAP}}
		}
	}
	if !s.Subnet.IsValid() {
		s.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, 0}), 24)
	}
	s.Subnet = s.Subnet.Masked()
	if s.MTU == 0 {
		s.MTU = 1500
	}
	return s
}

// Validate says what is wrong with the spec, touching nothing.
func (s Spec) Validate() error {
	s = s.withDefaults()
	switch {
	case !isOwner(s.Owner):
		return fmt.Errorf("network owner %q: use up to 64 letters, digits, _ and -, and no - in front", s.Owner)
	case !s.Subnet.Addr().Is4() || s.Subnet.Bits() > 25:
		return fmt.Errorf("subnet %s: need an IPv4 subnet of at least /25, for hosts begin at .%d and guests at .%d", s.Subnet, firstHost, firstGuest)
	case len(s.Hosts) > firstGuest-firstHost:
		return fmt.Errorf("network of %d hosts: at most %d", len(s.Hosts), firstGuest-firstHost)
	case s.Rate < 0:
		return fmt.Errorf("rate of %d bytes/s: must not be negative", s.Rate)
	case s.Rate > 0 && s.Rate < minRate:
		return fmt.Errorf("rate of %d bytes/s: at least %d", s.Rate, minRate)
	case s.MTU < 576 || s.MTU > maxMTU:
		return fmt.Errorf("MTU %d: use 576 to %d bytes", s.MTU, maxMTU)
	}
	names := map[string]bool{linkHost: true}
	for _, h := range s.Hosts {
		if !isHost(h.Name) || names[h.Name] {
			return fmt.Errorf("host name %q: use up to 8 letters, digits and _, each name once, and not %q", h.Name, linkHost)
		}
		names[h.Name] = true
		taps := map[string]bool{bridgeName: true, uplinkName: true, "lo": true}
		for _, t := range h.TAPs {
			if t.Name == "" || len(t.Name) > 15 || strings.ContainsAny(t.Name, "/%: \t\n") || taps[t.Name] || t.Name[0] == '.' {
				return fmt.Errorf("TAP name %q of host %s: use up to 15 bytes without / %% : and blanks, each name once", t.Name, h.Name)
			}
			if t.Queues < 0 || t.Queues > 256 {
				return fmt.Errorf("TAP %s of host %s: %d queues: use 1 to 256", t.Name, h.Name, t.Queues)
			}
			taps[t.Name] = true
		}
	}
	return nil
}

func (s Spec) namespace(host string) string { return prefix + s.Owner + "-" + host }

func (s Spec) address(n int) netip.Addr {
	a := s.Subnet.Addr()
	for range n {
		a = a.Next()
	}
	if !s.Subnet.Contains(a) {
		return netip.Addr{}
	}
	return a
}

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
	made, err := createNamespace(name)
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
	return inNamespace(name, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		return f(&nsBuilder{builder: b, Handle: h, name: name})
	})
}

// nsBuilder works within one namespace.
type nsBuilder struct {
	*builder
	*netlink.Handle
	name     string // the namespace
	ipv6Left bool   // IPv6 could not be switched off for the whole namespace
}

// host makes what a namespace has of its own: a quiet stack, the loopback, the bridge and the TAPs.
func (ns *nsBuilder) host(h HostSpec, address netip.Addr) error {
	ns.quiet()
	lo, err := ns.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := ns.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	br, err := ns.bridge(address)
	if err != nil {
		return fmt.Errorf("make bridge %s: %w", bridgeName, err)
	}
	for _, t := range h.TAPs {
		if err := ns.tap(t, br); err != nil {
			return fmt.Errorf("make TAP %s: %w", t.Name, err)
		}
	}
	return nil
}

// quiet switches IPv6 off, before there is a device: router solicitations, duplicate address detection and multicast
// listener reports would be on the wire that is measured. Where /proc/sys is read-only (containers), each device is
// at least kept from making itself an address.
func (ns *nsBuilder) quiet() {
	for _, which := range []string{"default", "all"} {
		err := setKernelFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", "1")
		if err != nil && !errors.Is(err, os.ErrNotExist) { // does not exist: a kernel without IPv6
			ns.ipv6Left = true
		}
	}
}

// setKernelFile writes a setting of the kernel's. os.WriteFile would try to make a file that is not there, and be told
// that it may not.
func setKernelFile(name, value string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (ns *nsBuilder) quietLink(l netlink.Link) {
	if ns.ipv6Left {
		_ = ns.LinkSetIP6AddrGenMode(l, nl.IN6_ADDR_GEN_MODE_NONE) // best effort: without it there is noise, no fault
	}
}

// link finds a device by name, and removes it when it is not what the spec wants. It returns nil if there is none.
func (ns *nsBuilder) link(name string, right func(netlink.Link) bool) (netlink.Link, error) {
	l, err := ns.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	if right(l) {
		return l, nil
	}
	if err := ns.LinkDel(l); err != nil {
		return nil, fmt.Errorf("remove the %s named %s that is in its place: %w", l.Type(), name, err)
	}
	return nil, nil
}

// undoLink has a device of this namespace removed if Apply fails.
func (ns *nsBuilder) undoLink(device string) {
	b, name := ns.builder, ns.name
	b.undos = append(b.undos, func(context.Context) error {
		err := inNamespace(name, func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			l, err := h.LinkByName(device)
			if err != nil {
				return err
			}
			return h.LinkDel(l)
		})
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("remove %s in %s: %w", device, name, err)
		}
		return nil
	})
}

func (ns *nsBuilder) bridge(address netip.Addr) (netlink.Link, error) {
	mac := hardwareAddr(ns.name)
	br, err := ns.link(bridgeName, func(l netlink.Link) bool { return l.Type() == "bridge" })
	if err != nil {
		return nil, err
	}
	if br == nil {
		// The address is given, for a bridge without one takes the lowest of its ports' and changes it when a TAP comes
		// or goes: the neighbours would send to nobody until they ask again. Without snooping there are no queries, and
		// RARP and multicast go to every port.
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU = bridgeName, mac, ns.spec.MTU
		snooping := false
		if err := ns.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return nil, unsupportedLink("bridge", "CONFIG_BRIDGE", err)
		}
		ns.undoLink(bridgeName)
		if br, err = ns.LinkByName(bridgeName); err != nil {
			return nil, err
		}
	}
	if !bytes.Equal(br.Attrs().HardwareAddr, mac) {
		if err := ns.LinkSetHardwareAddr(br, mac); err != nil {
			return nil, fmt.Errorf("set its address to %s: %w", mac, err)
		}
	}
	if err := setBridgeTimers(br.Attrs().Index); err != nil {
		return nil, fmt.Errorf("switch STP off: %w", err)
	}
	if err := ns.addresses(br, netip.PrefixFrom(address, ns.spec.Subnet.Bits())); err != nil {
		return nil, err
	}
	return br, ns.up(br, nil)
}

// whole asks for a list again when the kernel says that it changed while it was being told.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// addresses leaves the device with this IPv4 address and no other.
func (ns *nsBuilder) addresses(l netlink.Link, want netip.Prefix) error {
	have, err := whole(func() ([]netlink.Addr, error) { return ns.AddrList(l, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	right := false
	for _, a := range have {
		if a.IPNet.String() == want.String() {
			right = true
		} else if err := ns.AddrDel(l, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	if right {
		return nil
	}
	network := &net.IPNet{IP: want.Addr().AsSlice(), Mask: net.CIDRMask(want.Bits(), 32)}
	if err := ns.AddrAdd(l, &netlink.Addr{IPNet: network}); err != nil {
		return fmt.Errorf("add address %s: %w", want, err)
	}
	return nil
}

// up gives a device its MTU and its bridge and sets it up, as far as it is not so already.
func (ns *nsBuilder) up(l netlink.Link, bridge netlink.Link) error {
	a := l.Attrs()
	ns.quietLink(l)
	if a.MTU != ns.spec.MTU {
		if err := ns.LinkSetMTU(l, ns.spec.MTU); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", a.Name, ns.spec.MTU, err)
		}
	}
	if bridge != nil && a.MasterIndex != bridge.Attrs().Index {
		if err := ns.LinkSetMaster(l, bridge); err != nil {
			return fmt.Errorf("make %s a port of %s: %w", a.Name, bridge.Attrs().Name, err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := ns.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", a.Name, err)
		}
	}
	return nil
}

func (ns *nsBuilder) tap(t TAPSpec, bridge netlink.Link) error {
	multi := t.Queues > 1
	l, err := ns.link(t.Name, func(l netlink.Link) bool {
		tap, ok := l.(*netlink.Tuntap)
		return ok && tap.Mode == netlink.TUNTAP_MODE_TAP && multi == (tap.Flags&netlink.TUNTAP_MULTI_QUEUE != 0)
	})
	if err != nil {
		return err
	}
	if l == nil {
		if err := makeTAP(t.Name, multi); err != nil {
			return err
		}
		ns.undoLink(t.Name)
		if l, err = ns.LinkByName(t.Name); err != nil {
			return err
		}
	}
	return ns.up(l, bridge)
}

// makeTAP makes a persistent TAP in the thread's namespace; nothing is left open. No owner is set, so that whoever is
// root in the namespace may open it.
func makeTAP(name string, multiQueue bool) error {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return noTUN(err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multiQueue {
		flags |= unix.IFF_MULTI_QUEUE
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBADFD) || errors.Is(err, unix.ENOTTY) {
			return noTUN(err)
		}
		return os.NewSyscallError("ioctl TUNSETIFF", err)
	}
	return os.NewSyscallError("ioctl TUNSETPERSIST", unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}

func noTUN(err error) error {
	e := &UnsupportedError{Feature: "TUN", Err: err}
	switch {
	case errors.Is(err, unix.ENOENT):
		e.Reason = tunDevice + " is missing"
		e.Mend = "as root run `modprobe tun`; in a container give it the device (docker run --device " + tunDevice + "; lxc.mount.entry = " + tunDevice + " dev/net/tun none bind,create=file)"
	case errors.Is(err, unix.EACCES):
		e.Reason = "this user may not open " + tunDevice
		e.Mend = "run as root, or as root run `chmod 0666 " + tunDevice + "` (the mode that udev gives it)"
	case errors.Is(err, unix.EPERM):
		e.Reason = tunDevice + " is forbidden here"
		e.Mend = "allow the device in the container's device cgroup (docker run --device " + tunDevice + "; lxc.cgroup2.devices.allow = c 10:200 rwm), and give it CAP_NET_ADMIN"
	default:
		e.Reason = tunDevice + " does not work"
		e.Mend = "as root run `modprobe tun`"
	}
	return e
}

// unsupportedLink: the kernel answers EOPNOTSUPP to a kind of device that it does not have.
func unsupportedLink(kind, config string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return &UnsupportedError{Feature: kind, Err: err, Reason: "this kernel makes no device of the kind " + kind,
			Mend: "as root run `modprobe " + kind + "`, or use a kernel with " + config}
	}
	return err
}

// setBridgeTimers switches STP off (the default, but some systems change it for all bridges by udev) and the forward
// delay to 0, so that a port forwards as soon as it has a carrier. netlink.Bridge has neither.
func setBridgeTimers(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
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
		fd, err := openNamespace(b.spec.namespace(host))
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

// hardwareAddr is a locally administered address that is always the same for the same name.
func hardwareAddr(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}

// Network is a network that Apply made.
type Network struct {
	spec   Spec
	shaper string

	mu     sync.Mutex
	closed bool
}

// Spec is what was applied, the defaults filled in.
func (n *Network) Spec() Spec { return n.spec }

// Host is the host of that name; nil if the spec has none.
func (n *Network) Host(name string) Host {
	if i := n.index(name); i < 0 {
		return nil
	}
	return machine{namespace: n.spec.namespace(name)}
}

// Observer is the third place on the link, from which guests and hosts are watched.
func (n *Network) Observer() Host { return machine{namespace: n.spec.namespace(linkHost)} }

// Address is a host's address; the zero Addr if the spec has no such host.
func (n *Network) Address(host string) netip.Addr {
	i := n.index(host)
	if i < 0 {
		return netip.Addr{}
	}
	return n.spec.address(firstHost + i)
}

// Gateway is the observer's address, which guests may have as their gateway: it answers, but routes nowhere.
func (n *Network) Gateway() netip.Addr { return n.spec.address(1) }

// Prefix is the subnet of observer, hosts and guests.
func (n *Network) Prefix() netip.Prefix { return n.spec.Subnet }

// GuestAddress is the address for guest i, counted from 0; the zero Addr if the subnet has no more.
func (n *Network) GuestAddress(i int) netip.Addr { return n.spec.address(firstGuest + i) }

// Shaper is what holds the hosts to the rate: "tbf", "htb", or "" if the spec has no rate.
func (n *Network) Shaper() string { return n.shaper }

// SetLink takes a host off the link, or puts it back: its port there goes down or up. Neither end is told more than that its carrier has gone.
func (n *Network) SetLink(host string, up bool) error {
	if n.index(host) < 0 {
		return fmt.Errorf("set link of host %q: no such host", host)
	}
	err := inNamespace(n.spec.namespace(linkHost), func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		port, err := h.LinkByName(portPrefix + host)
		if err != nil {
			return err
		}
		if up {
			return h.LinkSetUp(port)
		}
		return h.LinkSetDown(port)
	})
	if err != nil {
		return fmt.Errorf("set link of host %s: %w", host, err)
	}
	return nil
}

func (n *Network) index(host string) int {
	return slices.IndexFunc(n.spec.Hosts, func(h HostSpec) bool { return h.Name == host })
}

// Close ends every process on the hosts (a shell that somebody entered one with, too) and removes the hosts and the link, in reverse order. Harmless twice. After an
// error it may be called again.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
	defer cancel()
	var errs []error
	for _, h := range slices.Backward(n.spec.Hosts) {
		_, err := deleteNamespace(ctx, n.spec.namespace(h.Name))
		errs = append(errs, err)
	}
	_, err := deleteNamespace(ctx, n.spec.namespace(linkHost))
	err = errors.Join(append(errs, err)...)
	n.closed = err == nil
	return err
}

// Remove removes everything with that owner's mark and nothing else, processes included, whoever made it and however
// far he came. It says what it removed, also beside an error.
func Remove(ctx context.Context, owner string) (removed []string, err error) {
	if !isOwner(owner) {
		return nil, fmt.Errorf("remove network of %q: not an owner's mark", owner)
	}
	names, err := namesWith(prefix + owner + "-")
	if err != nil {
		return nil, fmt.Errorf("remove network of %s: %w", owner, err)
	}
	link := prefix + owner + "-" + linkHost
	slices.SortFunc(names, func(a, b string) int { // hosts before the link, as Close does
		switch {
		case a == link && b != link:
			return 1
		case b == link && a != link:
			return -1
		}
		return strings.Compare(b, a)
	})
	var errs []error
	for _, name := range names {
		if o, ok := ownerOf(name); !ok || o != owner {
			continue
		}
		r, err := deleteNamespace(ctx, name)
		removed = append(removed, r...)
		errs = append(errs, err)
	}
	limited, cancel := context.WithTimeout(ctx, undoLimit)
	defer cancel()
	r, err := removeCaps(limited, owner) // their processes are dead now
	removed, errs = append(removed, r...), append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("remove network of %s: %w", owner, err)
	}
	return removed, nil
}

// Owners lists the marks that are found on this machine, sorted.
func Owners(context.Context) ([]string, error) {
	names, err := namesWith(prefix)
	if err != nil {
		return nil, fmt.Errorf("list network owners: %w", err)
	}
	var owners []string
	for _, name := range names {
		if owner, ok := ownerOf(name); ok {
			owners = append(owners, owner)
		}
	}
	slices.Sort(owners)
	return slices.Compact(owners), nil
}

// ownerOf reads the mark of a namespace's name. An owner may have a - and a host may not, so the last one parts them.
func ownerOf(namespace string) (owner string, ok bool) {
	rest, ok := strings.CutPrefix(filepath.Base(namespace), prefix)
	i := strings.LastIndexByte(rest, '-')
	if !ok || i < 0 {
		return "", false
	}
	owner, host := rest[:i], rest[i+1:]
	return owner, isOwner(owner) && isHost(host)
}
