package hostnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
)

// Join is what a host needs to be on a network, as data: a bridge over the device that leads to the link and over the
// TAPs of its guests. What is there already and right stays untouched.
type Join struct {
	Name    string // of the host; the bridge's hardware address is made of it
	Bridge  string
	Uplink  string       // the device to the link, which becomes a port of the bridge; "": none
	Address netip.Prefix // of the bridge
	TAPs    []TAPSpec
	Rate    int64 // bytes/s of the uplink; 0: unshaped
	MTU     int   // bytes, of every device
	// Uplink is made as this VXLAN; nil: it is there. All else of the host's network stays as it is.
	Overlay *Overlay
	// The bridge is somebody else's: it stays as it is, and gets the TAPs as ports. Uplink, Address and Rate have no
	// meaning then.
	Foreign bool
}

// Joined is what a Join made.
type Joined struct {
	Devices []string // that were not there before
	Shaper  string   // "tbf", "htb"; "" without a rate
}

// Leave is what a host removes again.
type Leave struct{ Devices []string }

// kindDevices is what Helper.Undo has LeaveNetwork under.
const kindDevices = "devices"

// JoinTask makes what Join says, on the host. An error leaves nothing behind. On a far host it is removed when the
// channel closes, unless a guest needs it.
func JoinTask() host.Task[Join, Joined] {
	return host.Task[Join, Joined]{Name: "hostnet.join",
		Work: func(ctx context.Context, at host.Host, j Join, give func(Joined) error) error {
			made, err := j.make(ctx, at)
			if err != nil {
				return err
			}
			return give(made)
		}}
}

// LeaveTask removes devices. One that is not there any more is no error.
func LeaveTask() host.Task[Leave, struct{}] {
	return host.Task[Leave, struct{}]{Name: "hostnet.leave",
		Work: func(_ context.Context, at host.Host, l Leave, give func(struct{}) error) error {
			if err := l.do(at); err != nil {
				return err
			}
			return give(struct{}{})
		}}
}

// Undos are the ways to undo what this package's tasks noted: for host.Helper.
func Undos() map[string]func(context.Context, host.Host, json.RawMessage) error {
	return map[string]func(context.Context, host.Host, json.RawMessage) error{
		kindDevices: func(_ context.Context, at host.Host, what json.RawMessage) error {
			var l Leave
			if err := json.Unmarshal(what, &l); err != nil {
				return err
			}
			return l.do(at)
		},
	}
}

// Tasks are this package's, for host.Helper.
func Tasks() []host.Served {
	return []host.Served{JoinTask(), LeaveTask(), portTask(), changesTask(), framesTask(), LookTask(), CheckTask(),
		receiveTask(), sendTask()}
}

func (l Leave) do(at host.Host) error {
	return host.In(at, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		var errs []error
		for _, device := range l.Devices {
			link, err := h.LinkByName(device)
			if errors.As(err, new(netlink.LinkNotFoundError)) {
				continue
			}
			if err == nil {
				err = h.LinkDel(link)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("remove %s on %s: %w", device, at.Name(), err))
			}
		}
		return errors.Join(errs...)
	})
}

func (j Join) make(ctx context.Context, at host.Host) (made Joined, err error) {
	var gone func()
	err = host.In(at, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		for _, device := range j.devices() {
			_, err := h.LinkByName(device)
			if errors.As(err, new(netlink.LinkNotFoundError)) {
				made.Devices = append(made.Devices, device)
			} else if err != nil {
				return fmt.Errorf("find %s: %w", device, err)
			}
		}
		if len(made.Devices) > 0 {
			if gone, err = host.Note(ctx, kindDevices, fmt.Sprint(made.Devices), Leave{made.Devices}, true); err != nil {
				return err
			}
		}
		ns := &nsBuilder{Handle: h, join: j}
		if err := ns.host(ctx); err != nil {
			return err
		}
		made.Shaper = ns.shaper
		return nil
	})
	if err != nil && len(made.Devices) > 0 {
		undoErr := (Leave{made.Devices}).do(at)
		if undoErr == nil && gone != nil {
			gone()
		}
		err = errors.Join(err, undoErr)
	}
	return made, err
}

// devices are those that it makes, the bridge last: its ports go first when all are removed.
func (j Join) devices() (names []string) {
	for _, t := range j.TAPs {
		names = append(names, t.Name)
	}
	if j.Overlay != nil {
		names = append(names, j.Uplink)
	}
	if !j.Foreign {
		names = append(names, j.Bridge)
	}
	return names
}

// host makes what a host has of its own: a quiet stack, the loopback, the bridge, its ports and the TAPs.
func (ns *nsBuilder) host(ctx context.Context) error {
	if ns.join.Foreign {
		br, err := ns.LinkByName(ns.join.Bridge)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", ns.join.Bridge, err)
		}
		if br.Type() != "bridge" {
			return fmt.Errorf("%s is no bridge, it is a %s: name the bridge that guests join", ns.join.Bridge, br.Type())
		}
		ns.join.MTU = br.Attrs().MTU
		return ns.taps(br)
	}
	if ns.join.Overlay != nil {
		ns.ipv6Left = true
		if err := ns.overlay(); err != nil {
			return fmt.Errorf("make overlay %s: %w", ns.join.Uplink, err)
		}
	} else {
		ns.quiet()
	}
	lo, err := ns.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := ns.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	br, err := ns.bridge()
	if err != nil {
		return fmt.Errorf("make bridge %s: %w", ns.join.Bridge, err)
	}
	if err := ns.taps(br); err != nil {
		return err
	}
	if ns.join.Uplink == "" {
		return nil
	}
	up, err := ns.LinkByName(ns.join.Uplink)
	if err != nil {
		return fmt.Errorf("find %s: %w", ns.join.Uplink, err)
	}
	if err := ns.addresses(up, netip.Prefix{}); err != nil { // a bridge's port has none
		return fmt.Errorf("take the addresses of %s: %w", ns.join.Uplink, err)
	}
	if err := ns.up(up, br); err != nil {
		return err
	}
	if err := ns.shape(); err != nil {
		return fmt.Errorf("shape %s: %w", ns.join.Uplink, err)
	}
	if ns.join.Overlay != nil { // it has no carrier to wait for
		return nil
	}
	return ns.forwarding(ctx, ns.join.Uplink)
}

func (ns *nsBuilder) taps(br netlink.Link) error {
	for _, t := range ns.join.TAPs {
		if err := ns.tap(t, br); err != nil {
			return fmt.Errorf("make TAP %s: %w", t.Name, err)
		}
	}
	return nil
}

// forwarding waits until a device has its carrier: the kernel tells a bridge about that from a work queue, and what is
// sent before is lost.
func (ns *nsBuilder) forwarding(ctx context.Context, device string) error {
	ctx, cancel := context.WithTimeout(ctx, portLimit)
	defer cancel()
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
}
