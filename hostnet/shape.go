package hostnet

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
)

// A bucket of tokens, refilled at the rate, and a queue behind it:
//
//	burst [bytes] = max(rate [bytes/s] * burstTime [s], 2 * frame)      the most that leaves back to back
//	limit [bytes] = clamp(rate [bytes/s] * queueTime [s], minQueue, maxQueue)   the most that waits
//
// burstTime is 2 ms. Less, and a late timer interrupt (1 ms on a busy virtual machine) leaves the bucket full and the
// rate short: at 10 Gbit/s it holds 2.5 MB. More, and a short transfer runs ahead of the rate. Below about 260 Mbit/s 2
// ms are less than the 64 KiB super-packet that TSO hands down as one; TBF then cuts it into frames itself
// (tbf_segment, Linux 3.14 and later) instead of dropping it, so the bucket need hold only whole frames, and a slow
// link is as smooth as it should be: at 1 Mbit/s a bucket of 64 KiB would let half a second's worth pass at once.
//
// queueTime is 50 ms, about what a switch port holds: long enough for TCP to fill the link, short enough that pings
// through a busy link tell of it and not only of the queue. Below 10 Mbit/s that is less than minQueue, 64 KiB, which
// is one super-packet cut up: less, and each would lose its tail. Above 2.6 Gbit/s it is maxQueue, 16 MiB.
const (
	burstTime = 2 * time.Millisecond
	queueTime = 50 * time.Millisecond
	minQueue  = 64 << 10
	maxQueue  = 16 << 20
	minRate   = 1000 // bytes/s: a frame in 1.5 s. The kernel keeps the bucket's time in 32 bits of nanoseconds, 4.3 s
)

func burst(rate int64, mtu int) uint32 {
	const header = 14 + 4 // Ethernet, and a VLAN tag
	return uint32(max(rate/int64(time.Second/burstTime), int64(2*(mtu+header))))
}

func queue(rate int64) uint32 {
	return uint32(min(max(rate/int64(time.Second/queueTime), minQueue), maxQueue))
}

const shaperHandle = 1 << 16 // 1: as tc writes it

// shape gives the uplink its rate, by TBF or else by HTB.
func (ns *nsBuilder) shape() error {
	l, err := ns.LinkByName(ns.join.Uplink)
	if err != nil {
		return fmt.Errorf("find %s: %w", ns.join.Uplink, err)
	}
	have, err := ns.rootQdisc(l)
	if err != nil {
		return err
	}
	if ns.join.Rate == 0 {
		if have != nil && (have.Type() == "tbf" || have.Type() == "htb") {
			if err := ns.QdiscDel(have); err != nil {
				return fmt.Errorf("remove %s from %s: %w", have.Type(), ns.join.Uplink, err)
			}
		}
		return nil
	}
	tbfErr := ns.tbf(l, have)
	if tbfErr == nil {
		ns.shaper = "tbf"
		return nil
	}
	htbErr := ns.htb(l, have)
	if htbErr == nil {
		ns.shaper = "htb"
		return nil
	}
	return &host.UnsupportedError{Feature: "TBF and HTB", Err: errors.Join(tbfErr, htbErr),
		Reason: "this kernel shapes no link",
		Mend:   "as root run `modprobe sch_tbf` or `modprobe sch_htb`, or use a kernel with CONFIG_NET_SCH_TBF, or give no rate"}
}

// rootQdisc is the qdisc at the root of a device that somebody set; nil if it has only what devices are born with.
func (ns *nsBuilder) rootQdisc(l netlink.Link) (netlink.Qdisc, error) {
	qdiscs, err := whole(func() ([]netlink.Qdisc, error) { return ns.QdiscList(l) })
	if err != nil {
		return nil, fmt.Errorf("list qdiscs of %s: %w", l.Attrs().Name, err)
	}
	for _, q := range qdiscs {
		if q.Attrs().Parent == netlink.HANDLE_ROOT && q.Attrs().Handle != 0 {
			return q, nil
		}
	}
	return nil, nil
}

func (ns *nsBuilder) tbf(l netlink.Link, have netlink.Qdisc) error {
	rate := uint64(ns.join.Rate)
	want := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: shaperHandle, Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Limit:      queue(ns.join.Rate),
		Buffer:     netlink.Xmittime(rate, burst(ns.join.Rate, ns.join.MTU)), // the kernel takes the burst as time
	}
	if old, ok := have.(*netlink.Tbf); ok && old.Rate == want.Rate && old.Limit == want.Limit &&
		old.Buffer == want.Buffer {
		return nil
	}
	if err := ns.replace(want, have); err != nil {
		return fmt.Errorf("set tbf on %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// htb is one class that everything falls into. HTB lets the bucket go below zero, so super-packets pass whole whatever
// the burst; the queue is the class's default, as many frames as the device's txqueuelen.
func (ns *nsBuilder) htb(l netlink.Link, have netlink.Qdisc) error {
	size := burst(ns.join.Rate, ns.join.MTU)
	class := netlink.NewHtbClass(
		netlink.ClassAttrs{LinkIndex: l.Attrs().Index, Parent: shaperHandle, Handle: netlink.MakeHandle(1, 1)},
		// bit/s here
		netlink.HtbClassAttrs{Rate: 8 * uint64(ns.join.Rate), Buffer: size, Cbuffer: size, Quantum: uint32(ns.join.MTU + 14)})
	if _, ok := have.(*netlink.Htb); ok {
		classes, err := whole(func() ([]netlink.Class, error) { return ns.ClassList(l, shaperHandle) })
		if err != nil {
			return fmt.Errorf("list classes of %s: %w", l.Attrs().Name, err)
		}
		for _, c := range classes {
			if old, ok := c.(*netlink.HtbClass); ok && old.Handle == class.Handle && old.Rate == class.Rate &&
				old.Buffer == class.Buffer {
				return nil
			}
		}
	} else {
		root := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: shaperHandle,
			Parent: netlink.HANDLE_ROOT})
		root.Defcls = 1
		if err := ns.replace(root, have); err != nil {
			return fmt.Errorf("set htb on %s: %w", l.Attrs().Name, err)
		}
	}
	if err := ns.ClassReplace(class); err != nil {
		return fmt.Errorf("set htb class on %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// replace puts want at the root. The kernel changes a qdisc in place only into one of the same kind: another one with
// our handle goes first.
func (ns *nsBuilder) replace(want, have netlink.Qdisc) error {
	if have != nil && have.Type() != want.Type() {
		if err := ns.QdiscDel(have); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return ns.QdiscReplace(want)
}
