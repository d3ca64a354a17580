package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
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
	At     time.Time // when it was received, by its host's clock; the kernel gives no time of its own
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
	ended   chan struct{} // closed after changes
	stop    context.CancelFunc
}

// Watch subscribes to FDB and neighbour changes of the link's bridge and of the hosts' bridges. What happens after it
// returned is seen. It lasts until Close, or until ctx ends.
func (n *Network) Watch(ctx context.Context) (*Watch, error) {
	ctx, stop := context.WithCancel(ctx)
	w := &Watch{changes: make(chan Change, watchBuffer), ended: make(chan struct{}), stop: stop}
	w.C = w.changes
	places := []string{linkHost}
	for _, h := range n.spec.Hosts {
		places = append(places, h.Name)
	}
	var running sync.WaitGroup
	ready := make(chan error, 2*len(places)) // from each, that it is there, and that it has ended
	for _, name := range places {
		at := n.Host(name)
		if name == linkHost {
			at = n.observer
		}
		running.Go(func() {
			err := changesTask().Run(ctx, at, name, func(c changes) error {
				if c.Ready {
					ready <- nil
				}
				w.dropped.Add(c.Lost)
				for _, one := range c.Changes {
					select {
					case w.changes <- one:
					default:
						w.dropped.Add(1)
					}
				}
				return nil
			})
			if err != nil && ctx.Err() == nil {
				w.dropped.Add(1) // nobody knows how many
				ready <- fmt.Errorf("watch host %s: %w", name, err)
			}
		})
	}
	go func() {
		running.Wait()
		close(w.changes)
		close(w.ended)
	}()
	for range places {
		select {
		case err := <-ready:
			if err != nil {
				return nil, errors.Join(err, w.Close())
			}
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), w.Close())
		}
	}
	return w, nil
}

// Dropped counts the changes that were lost because C was not read, and the times that the kernel ran over or a host
// went out of reach.
func (w *Watch) Dropped() uint64 { return w.dropped.Load() }

// Close ends the watch; C is closed when it returns. Harmless twice.
func (w *Watch) Close() error {
	w.stop()
	<-w.ended
	return nil
}

// changes are some of those on one host.
type changes struct {
	Ready   bool // the watch has begun
	Changes []Change
	Lost    uint64 // times that the kernel had more than could be taken
}

// changesTask watches the bridges of one host; it is given the host's name.
func changesTask() host.Task[string, changes] {
	return host.Task[string, changes]{Name: "hostnet.changes",
		Work: func(ctx context.Context, at host.Host, name string, give func(changes) error) error {
			one := &watcher{at: at, host: name, links: map[int]string{}}
			err := host.In(at, func() (err error) {
				if one.socket, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_NEIGH); err != nil {
					return fmt.Errorf("subscribe: %w", err)
				}
				_ = one.socket.SetReceiveBufferSize(1<<20, false) // as much of it as the system allows
				if one.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
					return fmt.Errorf("open netlink: %w", err)
				}
				return one.list()
			})
			if one.handle != nil {
				defer one.handle.Close()
			}
			if one.socket != nil {
				stop := context.AfterFunc(ctx, one.socket.Close)
				defer func() {
					if stop() {
						one.socket.Close()
					}
				}()
			}
			if err != nil {
				return err
			}
			if err := give(changes{Ready: true}); err != nil {
				return err
			}
			return one.run(give)
		}}
}

// watcher is the subscription on one host.
type watcher struct {
	at     host.Host
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

func (one *watcher) run(give func(changes) error) error {
	for {
		messages, from, err := one.socket.Receive()
		at := one.at.Now()
		if errors.Is(err, unix.ENOBUFS) { // the kernel had more than the socket holds; it goes on
			if err := give(changes{Lost: 1}); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return nil // closed
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		var batch changes
		for _, m := range messages {
			if c, ok := one.change(m, at); ok {
				batch.Changes = append(batch.Changes, c)
			}
		}
		if len(batch.Changes) > 0 {
			if err := give(batch); err != nil {
				return err
			}
		}
	}
}

// change is what a message says; ok is false where it is of another kind.
func (one *watcher) change(m syscall.NetlinkMessage, at time.Time) (c Change, ok bool) {
	c = Change{At: at, Host: one.host}
	switch m.Header.Type {
	case unix.RTM_NEWNEIGH:
		c.Action = Add
	case unix.RTM_DELNEIGH:
		c.Action = Delete
	default:
		return c, false
	}
	neigh, err := netlink.NeighDeserialize(m.Data)
	if err != nil {
		return c, false // a form that a newer kernel has and we do not know
	}
	c.MAC, c.Port = neigh.HardwareAddr, one.name(neigh.LinkIndex)
	if neigh.Family == unix.AF_BRIDGE {
		c.Kind, c.Bridge = FDB, one.name(neigh.MasterIndex)
		c.Local = neigh.State&netlink.NUD_PERMANENT != 0
		return c, true
	}
	c.Kind = Neighbour
	ip, _ := netip.AddrFromSlice(neigh.IP)
	c.IP = ip.Unmap()
	if neigh.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0 {
		c.MAC = nil // asked for, and no answer yet
	}
	return c, true
}
