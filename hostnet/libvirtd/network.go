package libvirtd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"sync"

	"qmigrate/hostnet/host"
	"qmigrate/hostnet/lxc"
)

// Spec is a network of containers in which a libvirtd runs. Its Manager is liblxc, whatever it says.
type Spec struct {
	lxc.Spec
	// QEMU is the emulator of a host's domains that name none, by the host's name; "": what libvirt finds installed.
	QEMU map[string]string
}

// Network is a network of hosts with a libvirtd. lxc.Remove removes it: a daemon goes with its container.
type Network struct {
	*lxc.Network
	daemons map[string]Daemon
}

// Apply makes the containers, their network and the daemons. If it fails, it removes again what it had made.
func (s Spec) Apply(ctx context.Context) (*Network, error) {
	if err := Check(ctx); err != nil {
		return nil, fmt.Errorf("hosts of %s: %w", s.Owner, err)
	}
	s.Manager, s.Unprivileged = host.LibLXC, false
	containers, err := s.Spec.Apply(ctx)
	if err != nil {
		return nil, err
	}
	n := &Network{Network: containers, daemons: map[string]Daemon{}}
	names := []string{"a", "b"}
	if len(s.Hosts) > 0 {
		names = names[:0]
		for _, h := range s.Hosts {
			names = append(names, h.Name)
		}
	}
	peers := map[string]netip.Addr{}
	for _, name := range names {
		peers[name] = n.Address(name)
	}
	here, there := n.Shared(s.Dir)
	started, errs := make([]Daemon, len(names)), make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			if errs[i] = os.MkdirAll(path.Join(here, name), 0o700); errs[i] != nil {
				return
			}
			started[i], errs[i] = start(ctx, n.Host(name), settings{Name: name, Address: peers[name], Peers: peers,
				Sockets: path.Join(there, name), UUID: newUUID(), QEMU: s.QEMU[name]})
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	for i, name := range names {
		n.daemons[name] = started[i]
	}
	return n, nil
}

// Daemon is the libvirtd of a host.
func (n *Network) Daemon(name string) Daemon { return n.daemons[name] }
