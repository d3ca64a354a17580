// Package lxc makes a lab's hosts as containers, from files of this machine only: no image is downloaded. A container
// sees this machine's programs read-only and has a file system, processes and a network of its own.
//
// Three managers are known. liblxc's containers (LibLXC) are processes of ours: each joins the observer's link, a
// network namespace that package hostnet makes. LXD's and Incus's belong to their daemon, whose bridge is the link.
// Everything is named qmig-OWNER-HOST, and Remove finds by that what a killed run left.
//
// It imports hostnet, which has the network; labs and the commands may import it.
package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/mark"
)

// Names in a container.
const (
	bridgeName = "br0"
	uplinkName = "eth0"
	tapName    = "tap0"

	sharedName = "shared" // a folder in Spec.Dir
	undoLimit  = 30 * time.Second
)

// Spec is a network of containers as data.
type Spec struct {
	hostnet.Spec // a TAP is called tap0 unless it says otherwise

	// Manager makes the containers; "": the first of liblxc, LXD and Incus that works here.
	Manager host.LXC
	// Dir is a folder of this machine for what the containers need while they are there. Its folder "shared" is in all
	// containers, under the same name. It must be there.
	Dir string
	// ReadOnly are folders of this machine that the containers have too, under the same names and read-only: where QEMU
	// is, kernels and images. Those of the system (/usr, /etc, /boot ...) need not be named. One that is not there is
	// passed over.
	ReadOnly []string
	// Unprivileged has liblxc's containers run as a range of this machine's users that own nothing. LXD's and Incus's
	// always do.
	Unprivileged bool
	// Pool finds the containers as hosts.
	Pool *host.Pool
}

// Network is a network of containers.
type Network struct {
	*hostnet.Network
	spec   Spec
	shared string // "": none

	mu     sync.Mutex
	closed bool
	remove func(context.Context) error
}

// Check finds a manager that can make containers here, of this user: the one that is given, or else the first. It
// changes nothing. The error is an *host.UnsupportedError, which says of each why not.
func Check(ctx context.Context, manager host.LXC) (host.LXC, error) {
	if manager != "" {
		return manager, check(ctx, manager)
	}
	usable, err := Managers(ctx)
	if len(usable) == 0 {
		return "", &host.UnsupportedError{Feature: "containers", Reason: strings.ReplaceAll(err.Error(), "\n", "; ")}
	}
	return usable[0], nil
}

// Managers are those that can make containers here, of this user, and why the others cannot.
func Managers(ctx context.Context) (usable []host.LXC, errs error) {
	for _, m := range []host.LXC{host.LibLXC, host.LXD, host.Incus} {
		if err := check(ctx, m); err != nil {
			errs = errors.Join(errs, err)
		} else {
			usable = append(usable, m)
		}
	}
	return usable, errs
}

// check says why a manager cannot make containers here.
func check(ctx context.Context, m host.LXC) error {
	switch m {
	case host.LibLXC:
		return checkLibLXC()
	case host.LXD, host.Incus:
		return client(m).check(ctx)
	}
	return fmt.Errorf("containers by %q: have %s, %s, %s", m, host.LibLXC, host.LXD, host.Incus)
}

// Validate says what is wrong with the spec, touching nothing.
func (s Spec) Validate() error {
	switch s.Manager {
	case "", host.LibLXC, host.LXD, host.Incus:
	default:
		return fmt.Errorf("containers by %q: have %s, %s, %s", s.Manager, host.LibLXC, host.LXD, host.Incus)
	}
	switch {
	case !filepath.IsAbs(s.Dir):
		return fmt.Errorf("folder %q of containers: use an absolute name", s.Dir)
	case s.Pool == nil:
		return errors.New("containers without a pool to find them in")
	}
	for _, f := range s.ReadOnly {
		if !filepath.IsAbs(f) || f == "/" {
			return fmt.Errorf("folder %q for containers: use an absolute name, and not /", f)
		}
	}
	return s.Spec.Validate()
}

func (s Spec) withDefaults() Spec {
	if len(s.Hosts) == 0 {
		s.Hosts = []hostnet.HostSpec{{Name: "a"}, {Name: "b"}}
	}
	s.Hosts = slices.Clone(s.Hosts)
	for i, h := range s.Hosts {
		if len(h.TAPs) == 0 {
			s.Hosts[i].TAPs = []hostnet.TAPSpec{{Name: tapName}}
		}
	}
	s.Dir = filepath.Clean(s.Dir)
	s.ReadOnly = outermost(s.ReadOnly)
	return s
}

// outermost are the folders that lie in no other one, and in none that every container has anyway.
func outermost(folders []string) (all []string) {
	in := func(name string, folders []string) bool {
		return slices.ContainsFunc(folders, func(f string) bool { return name == f || strings.HasPrefix(name, f+"/") })
	}
	for _, f := range folders {
		if f = filepath.Clean(f); in(f, all) || in(f, systemFolders[:]) {
			continue
		}
		all = slices.DeleteFunc(all, func(old string) bool { return in(old, []string{f}) })
		all = append(all, f)
	}
	return all
}

func (s Spec) container(host string) string { return mark.Prefix + s.Owner + "-" + host }

// Apply makes the containers and their network. If it fails, it removes again what it had made. Containers that the
// owner has already are an error: Remove removes them.
func (s Spec) Apply(ctx context.Context) (*Network, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	s = s.withDefaults()
	var err error
	if s.Manager, err = Check(ctx, s.Manager); err != nil {
		return nil, fmt.Errorf("containers of %s: %w", s.Owner, err)
	}
	n := &Network{spec: s}
	make := s.applyLibLXC
	if s.Manager != host.LibLXC {
		make = s.applyClient
	}
	if err := make(ctx, n); err != nil {
		return nil, errors.Join(fmt.Errorf("containers of %s by %s: %w", s.Owner, s.Manager, err), n.Close())
	}
	return n, nil
}

// Manager is who made the containers.
func (n *Network) Manager() host.LXC { return n.spec.Manager }

// Shared is a folder that this machine and all containers have under the same name: Dir's folder "shared". "" where the
// containers could not be given one in which they may write.
func (n *Network) Shared(string) (here, there string) { return n.shared, n.shared }

// Leave has the containers stand when this program ends, with what was made in them.
func (n *Network) Leave(ctx context.Context) error {
	var errs []error
	for _, h := range n.spec.Hosts {
		if far, ok := n.Host(h.Name).(*host.Far); ok {
			errs = append(errs, far.Leave(ctx))
		}
	}
	return errors.Join(errs...)
}

// Close ends every process in the containers and removes them, and the link. Harmless twice. After an error it may be
// called again.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
	defer cancel()
	var errs []error
	if n.remove != nil {
		errs = append(errs, n.remove(ctx))
	}
	if n.Network != nil {
		errs = append(errs, n.Network.Close())
	}
	if n.shared != "" {
		errs = append(errs, os.RemoveAll(n.shared))
	}
	err := errors.Join(errs...)
	n.closed = err == nil
	return err
}

// start starts the containers, all at once, and brings them on the network.
func (n *Network) start(ctx context.Context, start func(name string) (first host.Process, err error)) error {
	first := make([]host.Process, len(n.spec.Hosts))
	err := n.each(func(i int, name, container string) (err error) {
		if first[i], err = start(container); err != nil {
			return err
		}
		return n.Connect(ctx, name, first[i], uplinkName)
	})
	if err != nil {
		return err
	}
	if err := n.shareAll(first); err != nil {
		return err
	}
	return n.each(func(_ int, name, container string) error {
		at, err := n.spec.Pool.Find(ctx, n.spec.address(container))
		if err != nil {
			return err
		}
		return n.Join(ctx, name, at, bridgeName, uplinkName)
	})
}

// each does something for all containers at once.
func (n *Network) each(f func(i int, name, container string) error) error {
	errs := make([]error, len(n.spec.Hosts))
	var all sync.WaitGroup
	for i, h := range n.spec.Hosts {
		all.Go(func() { errs[i] = f(i, h.Name, n.spec.container(h.Name)) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// address is a container as a host is named.
func (s Spec) address(container string) string {
	return "lxc:" + string(s.Manager) + "/" + container
}

// Remove removes everything with that owner's mark and nothing else, processes included: containers, then what
// hostnet.Remove knows. It says what it removed, also beside an error. managers are those that are asked; none: all, as
// far as their daemons can be reached.
func Remove(ctx context.Context, owner string, managers ...host.LXC) (removed []string, err error) {
	if !mark.IsOwner(owner) {
		return nil, fmt.Errorf("remove containers of %q: not an owner's mark", owner)
	}
	any := len(managers) == 0
	if any {
		managers = []host.LXC{host.LibLXC, host.LXD, host.Incus}
	}
	var errs []error
	for _, m := range managers {
		var r []string
		var err error
		if m == host.LibLXC {
			r, err = removeLibLXC(ctx, owner)
		} else if _, missing := exec.LookPath(client(m).program); missing == nil {
			if _, unreached := client(m).names(ctx, owner); any && unreached != nil {
				continue
			}
			r, err = client(m).remove(ctx, owner)
		}
		removed, errs = append(removed, r...), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("remove containers of %s: %w", owner, err)
	}
	r, err := hostnet.Remove(ctx, owner)
	return append(removed, r...), err
}

// Owners lists the marks of liblxc's containers that are found on this machine, sorted.
func Owners(context.Context) ([]string, error) {
	names, err := liblxcNames()
	if err != nil {
		return nil, fmt.Errorf("list owners of containers: %w", err)
	}
	var owners []string
	for _, name := range names {
		if owner, ok := mark.Owner(name); ok {
			owners = append(owners, owner)
		}
	}
	slices.Sort(owners)
	return slices.Compact(owners), nil
}
