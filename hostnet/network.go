// Package hostnet is the network of hosts: bridges, TAPs, a link between the hosts and its rate, the frames on it, all
// by netlink.
//
// Each host is a network namespace with a bridge, a TAP for each guest and a veth to the lab's link; a third namespace
// on the link is the observer. A Spec is data, Apply makes it real and Network.Close undoes all of it. Every object
// lies in a namespace whose name carries the mark of its owner, so that what a killed run left behind is found again.
//
// What runs on a host is no matter of this package: Network.Host gives a host.Host, by which all of it is reached. It
// imports hostnet/host and hostnet/cpucap; labs, experiments and the commands may import it, engine and guest do not.
package hostnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
)

// Names of the kernel's objects. All of them are in namespaces of ours: none is ever in the one that we run in.
const (
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

// Network is a network of hosts that is there. Spec.Apply makes all of it; by Spec.Link others make its hosts, and by
// Spec.Around its link too.
type Network struct {
	spec     Spec
	observer host.Host
	bridge   string            // the observer's
	ports    map[string]string // of that bridge, by host
	owned    bool              // the observer is a namespace of ours

	mu     sync.Mutex
	hosts  map[string]host.Host
	shaper string
	closed bool
}

func newNetwork(s Spec) *Network {
	n := &Network{spec: s, observer: host.InNamespace(s.namespace(linkHost)), bridge: bridgeName, owned: true,
		ports: map[string]string{}, hosts: map[string]host.Host{}}
	for _, h := range s.Hosts {
		n.hosts[h.Name] = host.InNamespace(s.namespace(h.Name))
		n.ports[h.Name] = portPrefix + h.Name
	}
	return n
}

// Around is a network whose link is somebody else's: a bridge on a host, which is the observer too. ports are the
// bridge's to each host. Its hosts come by Join. Close changes nothing.
func (s Spec) Around(observer host.Host, bridge string, ports map[string]string) (*Network, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	n := newNetwork(s.withDefaults())
	n.observer, n.bridge, n.owned, n.ports = observer, bridge, false, maps.Clone(ports)
	return n, nil
}

// Place has the network take a host as the one of that name. It is on the network as it is.
func (n *Network) Place(name string, at host.Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[name] = at
}

// Spec is what was applied, the defaults filled in.
func (n *Network) Spec() Spec { return n.spec }

// Host is the host of that name; nil if the spec has none.
func (n *Network) Host(name string) host.Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h, ok := n.hosts[name]
	if !ok {
		return nil
	}
	return h
}

// Observer is the third place on the link, from which guests and hosts are watched.
func (n *Network) Observer() host.Host { return n.observer }

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

// TAP is the device that the first guest on a host has; "" if the spec has no such host.
func (n *Network) TAP(host string) string {
	if i := n.index(host); i >= 0 {
		return n.spec.Hosts[i].TAPs[0].Name
	}
	return ""
}

// Port is the port of the link's bridge behind which a host is; "" if the spec has no such host, or it is not known.
func (n *Network) Port(host string) string { return n.ports[host] }

// Shared is a folder that all hosts have: any folder of this machine is one.
func (n *Network) Shared(folder string) (here, there string) { return folder, folder }

// Leave has the network stand when this program ends, as it does anyway.
func (n *Network) Leave(context.Context) error { return nil }

// Shaper is what holds the hosts to the rate: "tbf", "htb", or "" if the spec has no rate.
func (n *Network) Shaper() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.shaper
}

// SetLink takes a host off the link, or puts it back: its port there goes down or up. Neither end is told more than
// that its carrier has gone.
func (n *Network) SetLink(host string, up bool) error {
	port := n.ports[host]
	if port == "" {
		return fmt.Errorf("set link of host %q: no such host, or its port on the link is not known", host)
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
	defer cancel()
	if _, err := portTask().Ask(ctx, n.observer, portState{port, up}); err != nil {
		return fmt.Errorf("set link of host %s: %w", host, err)
	}
	return nil
}

// portState is a device that is to be up, or down.
type portState struct {
	Device string
	Up     bool
}

func portTask() host.Task[portState, struct{}] {
	return host.Task[portState, struct{}]{Name: "hostnet.port",
		Work: func(_ context.Context, at host.Host, p portState, give func(struct{}) error) error {
			err := host.In(at, func() error {
				h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
				if err != nil {
					return err
				}
				defer h.Close()
				port, err := h.LinkByName(p.Device)
				if err != nil {
					return err
				}
				if p.Up {
					return h.LinkSetUp(port)
				}
				return h.LinkSetDown(port)
			})
			if err != nil {
				return err
			}
			return give(struct{}{})
		}}
}

func (n *Network) index(host string) int {
	return slices.IndexFunc(n.spec.Hosts, func(h HostSpec) bool { return h.Name == host })
}

// Close ends every process on the hosts (a shell that somebody entered one with, too) and removes the hosts and the
// link, in reverse order. Harmless twice. After an error it may be called again.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	if !n.owned {
		n.closed = true
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
