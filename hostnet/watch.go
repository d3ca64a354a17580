package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/internal/netns"
)

// Kinds and actions of a Change.
const (
	FDB       = "fdb"       // a bridge learnt, moved or forgot on which port a MAC address is
	Neighbour = "neighbour" // a host learnt, confirmed or forgot which MAC address an IP address has (ARP)

	Add    = "add"    // made or changed: a move is an Add with the new port
	Delete = "delete" // removed
)

// Change is one change of a forwarding database or of a neighbour table.
type Change struct {
	At     time.Time // when we received it; the kernel gives no time of its own
	Host   string    // as in the Spec; "link" for the observer's namespace
	Bridge string    // the bridge of an FDB change; "" for a neighbour
	Port   string    // the bridge's port; for a neighbour the device that it is behind
	MAC    net.HardwareAddr
	IP     netip.Addr // of a neighbour
	Kind   string     // FDB or Neighbour
	Action string     // Add or Delete
	Local  bool       // FDB: the address is the port's own and not learnt from a frame
}

const watchBuffer = 1024

// Watch is a subscription to the changes on all bridges of a network. Close ends it.
type Watch struct {
	C <-chan Change // closed at the end of the watch

	changes chan Change
	dropped atomic.Uint64
	sockets []*nl.NetlinkSocket
	ended   chan struct{} // closed after changes
	once    sync.Once
	stop    func() bool
}

// Watch subscribes to FDB and neighbour changes of the link's bridge and of the hosts' bridges. What happens after it
// returned is seen. It lasts until Close, or until ctx ends.
func (n *Network) Watch(ctx context.Context) (*Watch, error) {
	w := &Watch{changes: make(chan Change, watchBuffer), ended: make(chan struct{})}
	w.C = w.changes
	names := []string{linkHost}
	for _, h := range n.spec.Hosts {
		names = append(names, h.Name)
	}
	var watchers []*watcher
	for _, host := range names {
		namespace := n.spec.namespace(host)
		err := netns.In(namespace, func() error {
			s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_NEIGH)
			if err != nil {
				return fmt.Errorf("subscribe: %w", err)
			}
			w.sockets = append(w.sockets, s)
			_ = s.SetReceiveBufferSize(1<<20, false) // as much of it as the system allows
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return fmt.Errorf("open netlink: %w", err)
			}
			watchers = append(watchers, &watcher{w: w, host: host, socket: s, handle: h, links: map[int]string{}})
			return watchers[len(watchers)-1].list()
		})
		if err != nil {
			for _, s := range w.sockets {
				s.Close()
			}
			for _, one := range watchers {
				one.handle.Close()
			}
			return nil, fmt.Errorf("watch host %s: %w", host, err)
		}
	}
	var running sync.WaitGroup
	for _, one := range watchers {
		running.Go(one.run)
	}
	go func() {
		running.Wait()
		close(w.changes)
		close(w.ended)
	}()
	w.stop = context.AfterFunc(ctx, func() { w.close() })
	return w, nil
}

// Dropped counts the changes that were lost because C was not read, and the times that the kernel ran over.
func (w *Watch) Dropped() uint64 { return w.dropped.Load() }

// Close ends the watch; C is closed when it returns. Harmless twice.
func (w *Watch) Close() error {
	w.stop()
	w.close()
	<-w.ended
	return nil
}

func (w *Watch) close() {
	w.once.Do(func() {
		for _, s := range w.sockets {
			s.Close()
		}
	})
}

// watcher is the subscription in one namespace.
type watcher struct {
	w      *Watch
	host   string
	socket *nl.NetlinkSocket
	handle *netlink.Handle
	links  map[int]string // device names by index; those that are gone stay, for their last changes
}

func (one *watcher) list() error {
	links, err := one.handle.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		one.links[l.Attrs().Index] = l.Attrs().Name
	}
	return nil
}

func (one *watcher) name(index int) string {
	if index == 0 {
		return ""
	}
	if _, ok := one.links[index]; !ok {
		_ = one.list() // a device made since; if it is gone again, its number has to do
	}
	if name, ok := one.links[index]; ok {
		return name
	}
	return fmt.Sprintf("#%d", index)
}

func (one *watcher) run() {
	defer one.handle.Close()
	for {
		messages, from, err := one.socket.Receive()
		at := time.Now()
		if errors.Is(err, unix.ENOBUFS) { // the kernel had more than the socket holds; it goes on
			one.w.dropped.Add(1)
			continue
		}
		if err != nil {
			return // closed
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		for _, m := range messages {
			c := Change{At: at, Host: one.host}
			switch m.Header.Type {
			case unix.RTM_NEWNEIGH:
				c.Action = Add
			case unix.RTM_DELNEIGH:
				c.Action = Delete
			default:
				continue
			}
			neigh, err := netlink.NeighDeserialize(m.Data)
			if err != nil {
				continue // a form that a newer kernel has and we do not know
			}
			c.MAC, c.Port = neigh.HardwareAddr, one.name(neigh.LinkIndex)
			if neigh.Family == unix.AF_BRIDGE {
				c.Kind, c.Bridge = FDB, one.name(neigh.MasterIndex)
				c.Local = neigh.State&netlink.NUD_PERMANENT != 0
			} else {
				c.Kind = Neighbour
				ip, _ := netip.AddrFromSlice(neigh.IP)
				c.IP = ip.Unmap()
				if neigh.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0 {
					c.MAC = nil // asked for, and no answer yet
				}
			}
			select {
			case one.w.changes <- c:
			default:
				one.w.dropped.Add(1)
			}
		}
	}
}
