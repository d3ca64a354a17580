package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
)

// nsBuilder makes the devices of one host, from within its network namespace.
type nsBuilder struct {
	*netlink.Handle
	join     Join
	shaper   string
	ipv6Left bool // IPv6 could not be switched off for the whole namespace
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

// whole asks for a list again when the kernel says that it changed while it was being told.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// addresses leaves the device with this IPv4 address and no other; with none if it is invalid.
func (ns *nsBuilder) addresses(l netlink.Link, want netip.Prefix) error {
	have, err := whole(func() ([]netlink.Addr, error) { return ns.AddrList(l, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	right := false
	for _, a := range have {
		if want.IsValid() && a.IPNet.String() == want.String() {
			right = true
		} else if err := ns.AddrDel(l, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	if right || !want.IsValid() {
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
	if a.MTU != ns.join.MTU {
		if err := ns.LinkSetMTU(l, ns.join.MTU); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", a.Name, ns.join.MTU, err)
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

// unsupportedLink: the kernel answers EOPNOTSUPP to a kind of device that it does not have.
func unsupportedLink(kind, config string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return &host.UnsupportedError{Feature: kind, Err: err, Reason: "this kernel makes no device of the kind " + kind,
			Mend: "as root run `modprobe " + kind + "`, or use a kernel with " + config}
	}
	return err
}
