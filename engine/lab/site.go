package lab

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"qmigrate/engine/setting"
	"qmigrate/guest"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/hosts"
	"qmigrate/hostnet/libvirtd"
	"qmigrate/hostnet/lxc"
)

// Site is where a lab stands: its two hosts, the observer, and the network between them. *hostnet.Network is one, of
// network namespaces. A host may be elsewhere, and need not have been made by the site: all that is known of it goes
// through its host.Host, and nothing but what is asked for here is taken for granted of its names and addresses.
type Site interface {
	// Host is the host of that name, "a" or "b".
	Host(name string) host.Host
	// Observer is the place from which guests and hosts are watched. It may be this machine.
	Observer() host.Host

	// Address is where the other host reaches that one: the migration stream goes there.
	Address(name string) netip.Addr
	// GuestAddress is the address for guest i, counted from 0, in Prefix.
	GuestAddress(i int) netip.Addr
	// Prefix is the subnet of the guests and of the observer.
	Prefix() netip.Prefix
	// Gateway is the observer's address in Prefix: heartbeats go there.
	Gateway() netip.Addr

	// TAP is the device on that host which the guest's QEMU opens. It is there, up, and a port of the host's bridge.
	TAP(name string) string
	// Port is the port of the link's bridge behind which that host is; "" where the site does not know the link.
	Port(name string) string
	// Shared is a folder that both hosts and this machine have, as this machine and as the hosts name it; "" if there is
	// none. It may be the lab's own folder, which is given, and goes with the site or with the lab.
	Shared(folder string) (here, there string)

	// SetLink takes a host off the link, or puts it back.
	SetLink(name string, up bool) error
	// Watch subscribes to what the bridges of the link and of both hosts learn. Change.Host is "link", or a host's name;
	// its instants are that host's own.
	Watch(ctx context.Context) (*hostnet.Watch, error)
	// WatchAnnouncements watches the link for the frames by which that MAC address tells where it is. The instants are
	// the observer's.
	WatchAnnouncements(mac string) (*hostnet.FrameWatch, error)
	// WatchFirstFrame watches a TAP of a host for the first frame that comes from that MAC address. The instant is that
	// host's.
	WatchFirstFrame(name, tap, mac string) (*hostnet.FrameWatch, error)

	// Leave has all of it stand when this program ends: Remove by the owner's mark, or another process's, removes it.
	Leave(ctx context.Context) error
	// Close removes what the site made, and ends what runs on the hosts that it made. Harmless twice.
	Close() error
}

// The kinds of hosts that a lab can have.
const (
	Namespaces = "netns"   // network namespaces of this machine
	Containers = "lxc"     // containers, made from files of this machine; lxc:MANAGER says by whom
	Libvirt    = "libvirt" // containers of liblxc in which a libvirtd runs
)

// OnNamespaces tells whether the hosts are network namespaces of this machine, which need root or a user namespace.
func (s Spec) OnNamespaces() bool { return s.Hosts == "" || s.Hosts == Namespaces }

// checkHosts refuses what are no hosts by its words alone.
func checkHosts(kind string) error {
	if hosts.IsFile(kind) {
		f, err := hosts.Read(kind)
		if err == nil {
			_, err = f.Pair("")
		}
		return err
	}
	if m, ok := strings.CutPrefix(kind, Containers+":"); ok {
		return setting.OneOf(host.LXC(m), host.LibLXC, host.LXD, host.Incus)
	}
	if kind != Namespaces && kind != Containers && kind != Libvirt {
		return setting.Wrong(kind, "have %s, %s, %s, or a hosts file, FILE.toml", Namespaces, Containers, Libvirt)
	}
	return nil
}

// makeSite makes the hosts that the lab's spec wants. They can run the binaries, the source's and the destination's.
func (l *Lab) makeSite(ctx context.Context, binaries ...guest.Binary) (Site, error) {
	s := l.spec
	network := hostnet.Spec{Owner: s.Owner, Rate: s.LinkRate}
	kind, manager, _ := strings.Cut(s.Hosts, ":")
	switch {
	case s.site != nil:
		return s.site(ctx, s)
	case hosts.IsFile(s.Hosts):
		f, err := hosts.Read(s.Hosts)
		if err != nil {
			return nil, err
		}
		n, err := hosts.Spec{File: f, Owner: s.Owner, Pool: s.Pool}.Apply(ctx)
		if err != nil {
			return nil, err
		}
		return n, nil
	case kind == "" || kind == Namespaces:
		n, err := network.Apply(ctx)
		if err != nil {
			return nil, err
		}
		return n, nil
	case kind == Containers, kind == Libvirt:
		c := lxc.Spec{Spec: network, Manager: host.LXC(manager), Dir: l.dir, Pool: s.Pool}
		if cache, err := guest.CacheDir(); err == nil {
			c.ReadOnly = append(c.ReadOnly, cache)
		}
		qemu := map[string]string{}
		for i, b := range binaries {
			qemu[[]string{sourceHost, destinationHost}[i]] = b.Path
			if dir := filepath.Dir(b.Path); filepath.IsAbs(dir) && dir != "/" {
				c.ReadOnly = append(c.ReadOnly, dir)
			}
		}
		if kind == Libvirt {
			n, err := libvirtd.Spec{Spec: c, QEMU: qemu}.Apply(ctx)
			if err != nil {
				return nil, err
			}
			return n, nil
		}
		n, err := c.Apply(ctx)
		if err != nil {
			return nil, err
		}
		l.spec.Hosts = Containers + ":" + string(n.Manager()) // who is asked to remove them
		return n, nil
	}
	return nil, fmt.Errorf("hosts %s: have %s, %s, %s", s.Hosts, Namespaces, Containers, Libvirt)
}

// ownHosts tells whether hosts of a kind are made with their site and removed with it, with all that runs on them.
func ownHosts(kind string) bool {
	if hosts.IsFile(kind) {
		return false
	}
	kind, _, _ = strings.Cut(kind, ":")
	return kind == "" || kind == Namespaces || kind == Containers || kind == Libvirt
}

// removeSite removes what the site of a lab has left, whoever made it and however far that came. removed names what
// went. A lab whose state is not known may have namespaces.
func removeSite(ctx context.Context, pool *host.Pool, s state) (removed []string, err error) {
	if hosts.IsFile(s.Hosts) {
		var places []string
		for _, p := range s.Places {
			places = append(places, p.Host)
		}
		return nil, hosts.Remove(ctx, pool, s.Owner, places...)
	}
	switch kind, manager, _ := strings.Cut(s.Hosts, ":"); kind {
	case "", Namespaces:
		return hostnet.Remove(ctx, s.Owner)
	case Libvirt: // a libvirtd and its domains go with the container
		return lxc.Remove(ctx, s.Owner, host.LibLXC)
	case Containers:
		if manager != "" {
			return lxc.Remove(ctx, s.Owner, host.LXC(manager))
		}
		return lxc.Remove(ctx, s.Owner)
	}
	return nil, fmt.Errorf("lab %s: its hosts are %s, which this qmigrate does not know", s.Owner, s.Hosts)
}
