package hosts

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
)

// Names of a pair's hosts in a lab.
const (
	source      = "a"
	destination = "b"
)

// defaultGuest is the guest's address unless the file says another: the lab's own network has it, too.
const defaultGuest = "10.77.0.101/24"

const undoLimit = 10 * time.Second

// Spec is a lab's network on a pair of a hosts file.
type Spec struct {
	File  *File
	Pair  string // SOURCE:DESTINATION; "": the first
	Owner string // of the lab: its mark is in the names of what is made
	Pool  *host.Pool
}

// Network is the network of a pair: the administrator's, with what had to be made for the guest.
type Network struct {
	*hostnet.Network
	names     map[string]string // in the file, by the names in the lab
	addresses map[string]netip.Addr
	taps      map[string]string
	qemus     map[string]string
	guest     netip.Prefix
	gateway   netip.Addr

	mu   sync.Mutex
	made []made
}

// made is what was made on a host.
type made struct {
	at      host.Host
	devices []string
}

// end is one host of the pair on its way into the network.
type end struct {
	role  string // in the lab: a, b; "" of the observer
	entry *Host  // nil: this machine, which observes
	at    host.Host
	look  hostnet.Looked
	link  netip.Addr
}

func (e *end) name() string {
	if e.entry == nil {
		return "this machine"
	}
	return e.entry.Name
}

// Apply finds the hosts of the pair and makes what is missing: a TAP where the administrator made none, the overlay
// where the file wants one. Nothing of the administrator's is changed. An error leaves nothing behind.
func (s Spec) Apply(ctx context.Context) (_ *Network, err error) {
	pair, err := s.File.Pair(s.Pair)
	if err != nil {
		return nil, err
	}
	n := &Network{names: map[string]string{source: pair.Source, destination: pair.Destination},
		addresses: map[string]netip.Addr{}, taps: map[string]string{}, qemus: map[string]string{}}
	s.File.In(s.Pool)
	ends, err := s.find(ctx, pair)
	if err != nil {
		return nil, err
	}
	n.guest = pair.guest()
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	for _, e := range ends {
		if e.role != "" {
			n.addresses[e.role], n.qemus[e.role] = e.link, e.entry.QEMU
			if e.look.TAP != "" {
				n.taps[e.role] = e.look.TAP
			}
		}
	}
	if err := n.make(ctx, s.Owner, ends); err != nil {
		return nil, err
	}
	observer := ends[2]
	device, gateway, ok := observer.onNetwork(n.guest)
	if !ok {
		return nil, noObserver(observer, n.guest, ends[0].entry.Bridge)
	}
	n.gateway = gateway
	n.Network, err = (hostnet.Spec{Owner: s.Owner}).Around(observer.at, device, nil)
	if err != nil {
		return nil, err
	}
	for _, e := range ends[:2] {
		n.Place(e.role, e.at)
	}
	return n, nil
}

// guest is the guest's address.
func (p Pair) guest() netip.Prefix {
	text := p.GuestAddress
	if text == "" {
		text = defaultGuest
	}
	guest, _ := netip.ParsePrefix(text) // it has been checked
	return guest
}

// onNetwork is the device and the address by which a host is on the guest's network.
func (e *end) onNetwork(guest netip.Prefix) (device string, address netip.Addr, ok bool) {
	for _, a := range e.look.Addresses {
		if guest.Masked().Contains(a.Prefix.Addr()) {
			return a.Device, a.Prefix.Addr(), true
		}
	}
	return "", netip.Addr{}, false
}

func noObserver(observer *end, guest netip.Prefix, bridge string) error {
	if bridge == "" {
		bridge = "BRIDGE"
	}
	return fmt.Errorf("%s is to watch the guest and has no address in %s, where the guest is: as root there run "+
		"`ip addr add %s/%d dev %s`; or name another observer, or another guest_address", observer.name(), guest.Masked(),
		guest.Masked().Addr().Next(), guest.Bits(), bridge)
}

// find finds the source, the destination and the observer, and looks at them.
func (s Spec) find(ctx context.Context, pair Pair) ([]*end, error) {
	ends := []*end{{role: source, entry: s.File.Host(pair.Source)},
		{role: destination, entry: s.File.Host(pair.Destination)}, {entry: s.File.Host(pair.Observer)}}
	errs := make([]error, len(ends))
	var all sync.WaitGroup
	for i, e := range ends {
		all.Go(func() {
			if errs[i] = e.find(ctx, s.Pool); errs[i] == nil && e.role != "" {
				errs[i] = e.usable()
			}
		})
	}
	all.Wait()
	return ends, errors.Join(errs...)
}

// find finds the host and looks at it.
func (e *end) find(ctx context.Context, pool *host.Pool) (err error) {
	if e.at = host.Local(); e.entry != nil {
		if e.at, err = pool.Find(ctx, e.entry.At); err != nil {
			return fmt.Errorf("host %s: %w", e.entry.Name, err)
		}
	}
	look := hostnet.Look{}
	if e.entry != nil && e.role != "" {
		look = e.entry.look()
	}
	if e.look, err = hostnet.LookTask().Ask(ctx, e.at, look); err != nil {
		return fmt.Errorf("look at %s: %w", e.name(), err)
	}
	if e.entry != nil {
		e.link, err = e.entry.linkAddress(e.at, e.look)
	}
	return err
}

// look is what there has to be on the host for a guest.
func (h *Host) look() hostnet.Look {
	return hostnet.Look{Bridge: h.Bridge, TAPs: h.TAPs, NeedTAP: true, Overlay: h.Overlay}
}

// usable says why a guest cannot be on the host's network.
func (e *end) usable() error {
	for _, c := range []hostnet.Capability{e.look.Bridge, e.look.TUN} {
		if c.OK {
			continue
		}
		if c.Mend != "" {
			return fmt.Errorf("host %s: %s: %s", e.name(), c.Reason, c.Mend)
		}
		return fmt.Errorf("host %s: %s", e.name(), c.Reason)
	}
	return nil
}

// linkAddress is where the other host reaches this one: as the file says, else the address by which we reached it, else
// its only one.
func (h *Host) linkAddress(at host.Host, l hostnet.Looked) (netip.Addr, error) {
	if h.LinkAddress != "" {
		return netip.ParseAddr(h.LinkAddress)
	}
	if _, far := at.(*host.Far); far && l.Reached.IsValid() && !l.Reached.IsLoopback() {
		return l.Reached.Unmap(), nil
	}
	var have []netip.Addr
	for _, a := range l.Addresses {
		if a := a.Prefix.Addr(); !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			have = append(have, a)
		}
	}
	if len(have) != 1 {
		return netip.Addr{}, fmt.Errorf("host %s has the addresses %v: write the one that the migration stream goes to as "+
			"link_address", h.Name, have)
	}
	return have[0], nil
}

// names of what is made for a lab on a host: qmig, a mark of the lab, and what it is, in 15 bytes.
func deviceName(owner, what string) string {
	return fmt.Sprintf("qmig%x", sha256.Sum256([]byte(owner)))[:4+6] + what
}

// make makes what the hosts lack: TAPs, or the overlay with its TAPs.
func (n *Network) make(ctx context.Context, owner string, ends []*end) error {
	tap := deviceName(owner, "tap")
	if !ends[0].entry.Overlay {
		for _, e := range ends[:2] {
			if n.taps[e.role] != "" {
				continue
			}
			j := hostnet.Join{Name: e.name(), Bridge: e.entry.Bridge, Foreign: true,
				TAPs: []hostnet.TAPSpec{{Name: tap + e.role}}}
			if err := n.join(ctx, e, j); err != nil {
				return err
			}
			n.taps[e.role] = tap + e.role
		}
		return nil
	}
	if ends[2].entry == nil { // this machine, which the others reach where it reaches them
		var err error
		if ends[2].link, err = addressTowards(ends[0].link); err != nil {
			return fmt.Errorf("this machine is to watch the guest, and is on the overlay: %w", err)
		}
	}
	// The observer may be one of the two.
	peers := slices.Clone(ends)
	if ends[2].entry == ends[0].entry || ends[2].entry == ends[1].entry {
		peers = peers[:2]
	}
	first := n.guest.Masked().Addr()
	for i, e := range peers {
		address := first.Next() // the observer's
		if e.role != "" && e.entry != ends[2].entry {
			for range 11 + i - 1 { // as in the lab's own network
				address = address.Next()
			}
		}
		if !e.look.Root {
			return fmt.Errorf("host %s: only root can make an overlay, and %s is not root there: log in as root, or name a bridge "+
				"and a tap instead", e.name(), e.look.User)
		}
		o := &hostnet.Overlay{ID: hostnet.OverlayID(owner), Local: e.link}
		for _, other := range peers {
			if other != e {
				o.Peers = append(o.Peers, other.link)
			}
		}
		j := hostnet.Join{Name: owner + e.name(), Bridge: deviceName(owner, "br"), Uplink: deviceName(owner, "vx"),
			Overlay: o, Address: netip.PrefixFrom(address, n.guest.Bits()), MTU: 1500}
		if e.role != "" {
			j.TAPs = []hostnet.TAPSpec{{Name: tap + e.role}}
			n.taps[e.role] = tap + e.role
		}
		if err := n.join(ctx, e, j); err != nil {
			return err
		}
		if e.role == "" || e.entry == ends[2].entry {
			ends[2].look.Addresses = append([]hostnet.Address{{Device: j.Bridge, Prefix: j.Address}}, ends[2].look.Addresses...)
		}
	}
	return nil
}

func (n *Network) join(ctx context.Context, e *end, j hostnet.Join) error {
	joined, err := hostnet.JoinTask().Ask(ctx, e.at, j)
	if err != nil {
		return fmt.Errorf("host %s: %w", e.name(), err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.made = append(n.made, made{e.at, joined.Devices})
	return nil
}

// Name is what the file calls a host of the lab.
func (n *Network) Name(role string) string { return n.names[role] }

// Address is where the migration stream to a host goes.
func (n *Network) Address(role string) netip.Addr { return n.addresses[role] }

// GuestAddress is the address of guest i, counted from 0.
func (n *Network) GuestAddress(i int) netip.Addr {
	a := n.guest.Addr()
	for range i {
		a = a.Next()
	}
	return a
}

// Prefix is the subnet of the guest and of the observer.
func (n *Network) Prefix() netip.Prefix { return n.guest.Masked() }

// Gateway is the observer's address in it.
func (n *Network) Gateway() netip.Addr { return n.gateway }

// TAP is the device of the guest on a host.
func (n *Network) TAP(role string) string { return n.taps[role] }

// Port is not known: the network between the hosts is somebody else's.
func (n *Network) Port(string) string { return "" }

// Shared is none: hosts that are not this machine have files of their own.
func (n *Network) Shared(string) (here, there string) { return "", "" }

// SetLink cannot be done: the link is not ours.
func (n *Network) SetLink(role string, _ bool) error {
	return fmt.Errorf("set link of host %s: the network is its administrator's", n.names[role])
}

// WatchAnnouncements watches the observer's device on the guest's network. Without the right to see frames there is
// no watch, and no error.
func (n *Network) WatchAnnouncements(mac string) (*hostnet.FrameWatch, error) {
	return withoutRight(n.Network.WatchAnnouncements(mac))
}

// WatchFirstFrame watches a TAP of a host. Without the right to see frames there is no watch, and no error.
func (n *Network) WatchFirstFrame(name, tap, mac string) (*hostnet.FrameWatch, error) {
	return withoutRight(n.Network.WatchFirstFrame(name, tap, mac))
}

// Leave has everything that was made on the hosts stand when this program ends.
func (n *Network) Leave(ctx context.Context) error {
	var errs []error
	for _, at := range []host.Host{n.Host(source), n.Host(destination), n.Observer()} {
		if far, ok := at.(*host.Far); ok {
			errs = append(errs, far.Leave(ctx))
		}
	}
	return errors.Join(errs...)
}

// Close removes what was made. Harmless twice; after an error it may be called again. What is behind a channel that has
// closed is its helper's to remove.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
	defer cancel()
	var errs []error
	var left []made
	for _, m := range slices.Backward(n.made) {
		_, err := hostnet.LeaveTask().Ask(ctx, m.at, hostnet.Leave{Devices: m.devices})
		if err != nil && !errors.As(err, new(*host.ChannelError)) {
			left, errs = append(left, m), append(errs, err)
		}
	}
	slices.Reverse(left)
	n.made = left
	return errors.Join(errs...)
}

// QEMU is the path of a host's QEMU that the file gives; "": any will do.
func (n *Network) QEMU(role string) string { return n.qemus[role] }

// Remove removes what a lab made on hosts, whoever made it: for a lab whose network is not at hand any more.
func Remove(ctx context.Context, pool *host.Pool, owner string, places ...string) error {
	tap := deviceName(owner, "tap")
	devices := []string{tap + source, tap + destination, deviceName(owner, "vx"), deviceName(owner, "br")}
	var errs []error
	for _, place := range places {
		at, err := pool.Find(ctx, place)
		if err == nil {
			_, err = hostnet.LeaveTask().Ask(ctx, at, hostnet.Leave{Devices: devices})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("host %s: %w", place, err))
		}
	}
	return errors.Join(errs...)
}
