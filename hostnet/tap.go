package hostnet

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
)

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
		if l, err = ns.LinkByName(t.Name); err != nil {
			return err
		}
		if ns.join.Foreign {
			// A bridge without an address of its own takes the lowest of its ports'. This one is the highest, as libvirt's are.
			address := hardwareAddr(ns.join.Name + t.Name)
			address[0] = 0xfe
			if err := ns.LinkSetHardwareAddr(l, address); err != nil {
				return fmt.Errorf("set its address to %s: %w", address, err)
			}
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
	e := &host.UnsupportedError{Feature: "TUN", Err: err}
	switch {
	case errors.Is(err, unix.ENOENT):
		e.Reason = tunDevice + " is missing"
		e.Mend = "as root run `modprobe tun`; in a container give it the device (docker run --device " + tunDevice +
			"; lxc.mount.entry = " + tunDevice + " dev/net/tun none bind,create=file)"
	case errors.Is(err, unix.EACCES):
		e.Reason = "this user may not open " + tunDevice
		e.Mend = "run as root, or as root run `chmod 0666 " + tunDevice + "` (the mode that udev gives it)"
	case errors.Is(err, unix.EPERM):
		e.Reason = tunDevice + " is forbidden here"
		e.Mend = "allow the device in the container's device cgroup (docker run --device " + tunDevice +
			"; lxc.cgroup2.devices.allow = c 10:200 rwm), and give it CAP_NET_ADMIN"
	default:
		e.Reason = tunDevice + " does not work"
		e.Mend = "as root run `modprobe tun`"
	}
	return e
}
