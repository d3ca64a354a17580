// Package lab is the test bed: two hosts, a guest on the first, observers on a third, and one migration between them,
// observed and undone. It is what `qmigrate demo` runs and what every trial of an experiment runs: Up makes it, Migrate
// (or COLO, Save, Restore) fills a record, Close removes all of it; Leave lets it stand for another process.
//
// It is no migration: that is package engine, which the lab calls as anybody does. What is seen from outside is package
// observe's, what the guest works with outside of itself package load's. Only experiment and the command line may
// import it.
package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/lab/load"
	"qmigrate/engine/lab/observe"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/image"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/libvirtd"
	"qmigrate/hostnet/lxc"
)

const (
	sourceHost, destinationHost = "a", "b"
	beatPort                    = 7777
	defaultMachine              = "pc-q35-7.2"     // every QEMU that the lab takes has it
	readyLimit                  = 60 * time.Second // for a guest to boot under TCG on a busy machine
	leaveLimit                  = 10 * time.Second
	settleTime                  = 500 * time.Millisecond
	warmUp                      = time.Second // of observed workload before `migrate`: the "before" of every rate and gap
)

// Lab is a lab that is up: Close undoes all of it.
type Lab struct {
	spec        Spec
	dir         string
	site        Site
	hosts       map[string]*labHost
	source      *guest.VM
	destination *guest.VM
	agent       *guest.Agent // the guest's, over the side that runs it
	hello       wire.Hello
	accelerator guest.Accelerator
	disks       *load.Disks // nil: none
	warnings    []string
	rows        observe.Tallies
	tools       *load.Tools // of the workload
	limits      limits
}

// Up makes the lab: network, both QEMUs, the guest booted on host a with its memory filled and its workload running,
// the destination waiting on host b. An error leaves nothing behind.
func Up(ctx context.Context, s Spec) (_ *Lab, err error) {
	if s.Owner == "" {
		s.Owner = "lab"
	}
	if s.Workload.Name == "" {
		s.Workload.Name = "idle"
	}
	if err := s.Workload.Validate(); err != nil {
		return nil, err
	}
	if err := s.CheckHardware(); err != nil {
		return nil, err
	}
	if kind, manager, _ := strings.Cut(s.Hosts, ":"); kind == Containers {
		if _, err := lxc.Check(ctx, host.LXC(manager)); err != nil {
			return nil, err
		}
	}
	if s.Hosts == Libvirt {
		if err := libvirtd.Check(ctx); err != nil {
			return nil, err
		}
	}
	s.Image = s.ForHardware()
	l := &Lab{spec: s}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	var source, destination guest.Binary // of this machine, if the hosts are made here
	if ownHosts(s.Hosts) {
		if source, destination, err = l.binaries(ctx); err != nil {
			return nil, err
		}
	}
	if m := s.Guest.Machine; m != "" && m != defaultMachine && source.Path != "" {
		if err := guest.CheckMachine(ctx, m, source.Path, destination.Path); err != nil {
			return nil, err
		}
	}
	image, err := image.Build(ctx, l.spec.Image)
	if err != nil {
		return nil, err
	}
	if l.dir, err = claim(s.Owner, s.Hosts); err != nil {
		return nil, err
	}
	l.say("hosts: a and b, %s, and an observer, on one link", l.spec.hostsText())
	if l.site, err = l.makeSite(ctx, source, destination); err != nil {
		return nil, err
	}
	if err := l.take(ctx); err != nil {
		return nil, err
	}
	if err := l.save(); err != nil {
		return nil, err
	}
	var supplied sync.WaitGroup
	var supplyErr [2]error
	for i, binary := range []guest.Binary{source, destination} {
		supplied.Go(func() { supplyErr[i] = l.supply(ctx, []string{sourceHost, destinationHost}[i], binary, image) })
	}
	supplied.Wait()
	if err := errors.Join(supplyErr[:]...); err != nil {
		return nil, err
	}
	source, destination = l.hosts[sourceHost].qemu, l.hosts[destinationHost].qemu
	g := l.spec.Guest
	g.Image = image
	if s.COLO {
		if err := l.tryCOLO(ctx, l.hosts[sourceHost].qemu.Path, l.hosts[destinationHost].qemu.Path); err != nil {
			return nil, err
		}
		g.Machine = cmp.Or(g.Machine, COLOMachine)
	}
	boot := wire.Boot{
		IP:      netip.PrefixFrom(l.site.GuestAddress(0), l.site.Prefix().Bits()),
		Gateway: l.site.Gateway(),
		Beat:    netip.AddrPortFrom(l.site.Gateway(), beatPort),
	}
	for _, word := range boot.Words() {
		g.Image.Append += " " + word
	}
	if l.accelerator, err = l.probe(ctx, g); err != nil {
		return nil, err
	}
	g.Accelerator = l.accelerator.Name
	beat, ping := BeatInterval, PingInterval
	if g.Accelerator == "tcg" {
		beat, ping = BeatIntervalTCG, PingIntervalTCG
	}
	l.spec.BeatInterval, l.spec.PingInterval = cmp.Or(s.BeatInterval, beat), cmp.Or(s.PingInterval, ping)
	if g.Memory == 0 {
		g.Memory = DefaultMemory(s.Image.Guest)
	}
	if !s.AllowUnsafe {
		g.Memory = guest.SafeMemory(source.Version, g.Accelerator, g.Memory)
	}
	l.say("guest: QEMU %s on a, %s on b, %s", source.Version, destination.Version, g.Accelerator)
	l.say("accelerator: %s", l.accelerator.Reason)
	l.spec.Guest = g
	here, there := l.site.Shared(l.dir)
	l.disks = load.NewDisks(load.DiskSpec{Storage: s.Storage, Owner: s.Owner, Dir: l.dir, SharedHere: here,
		SharedThere: there, Source: l.hosts[sourceHost].place(), Destination: l.hosts[destinationHost].place(),
		QEMUs: []string{s.SourceQEMU, s.DestinationQEMU}, Observer: l.site.Observer(), Address: l.site.Gateway(),
		Save: l.save})
	if err := l.disks.Make(ctx); err != nil {
		return nil, err
	}
	if err := l.start(ctx); err != nil {
		return nil, err
	}
	return l, l.prepare(ctx)
}

// oldest is the first QEMU series that this program is tried with.
const oldest = "7.2"

// binaries finds both QEMUs.
func (l *Lab) binaries(ctx context.Context) (source, destination guest.Binary, err error) {
	if source, err = guest.FindQEMU(ctx, l.spec.SourceQEMU); err != nil {
		return
	}
	destination = source
	if l.spec.DestinationQEMU != l.spec.SourceQEMU {
		if destination, err = guest.FindQEMU(ctx, l.spec.DestinationQEMU); err != nil {
			return
		}
	}
	for _, b := range []guest.Binary{source, destination} {
		if err := tooOld(b); err != nil {
			return source, destination, err
		}
	}
	return
}

func tooOld(b guest.Binary) error {
	if guest.CompareVersions(guest.Series(b.Version), oldest) < 0 {
		return fmt.Errorf("QEMU %s is too old: %s: the lab needs %s or newer; try `make deps`, or give a path as qemu",
			b.Version, b.Path, oldest)
	}
	return nil
}

// start starts the source and, beside it, the destination, and waits for the guest.
func (l *Lab) start(ctx context.Context) error {
	begin := time.Now()
	var both sync.WaitGroup
	var srcErr, dstErr error
	both.Go(func() {
		s := l.guestOn(l.hosts[sourceHost], l.spec.Guest)
		if l.disks != nil {
			s.Disks = l.disks.Source
		}
		l.source, srcErr = guest.Start(ctx, l.hosts[sourceHost].Host, s)
	})
	both.Go(func() { l.destination, dstErr = l.startDestination(ctx, destinationHost) })
	both.Wait()
	if err := errors.Join(srcErr, dstErr); err != nil {
		return err
	}
	if err := l.save(); err != nil {
		return err
	}
	var err error
	if l.agent, err = dialAgent(ctx, l.source); err != nil {
		return err
	}
	l.disks.Follow(l.agent)
	ready, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	if l.hello, err = l.agent.Ready(ready); err != nil {
		console, _ := l.source.Console()
		log, _ := l.source.Host().ReadFile(l.source.Spec().Socket("log"))
		return fmt.Errorf("wait for the guest to be ready: %w; its console ends: %q; QEMU said: %q", err, lastLine(console),
			lastLine(guest.Unstamped(string(log))))
	}
	if len(l.hello.Problems) > 0 && l.spec.Guest.Image.Root != "" {
		return fmt.Errorf("set the guest up: %s", strings.Join(l.hello.Problems, "; "))
	}
	l.say("guest ready after %s: Linux %s at %s", time.Since(begin).Round(10*time.Millisecond), l.hello.Kernel,
		l.site.GuestAddress(0))
	return nil
}

// startDestination starts a QEMU like the source's that waits for a migration and does not run by itself.
func (l *Lab) startDestination(ctx context.Context, name string) (*guest.VM, error) {
	h := l.hosts[name]
	s := l.guestOn(h, l.spec.Guest)
	s.Incoming, s.Paused = true, true
	if l.disks != nil {
		s.Disks = l.disks.Destination
	}
	vm, err := guest.Start(ctx, h.Host, s)
	if err != nil {
		return nil, err
	}
	if err := l.limit(ctx, vm); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

// prepare fills the guest's memory and starts its workload.
func (l *Lab) prepare(ctx context.Context) error {
	var filled wire.Filled
	if err := l.agent.Call(ctx, wire.DoFill, wire.Fill{Bytes: l.spec.Fill}, &filled); err != nil {
		return fmt.Errorf("fill guest memory: %w", err)
	}
	beats := wire.BeatSet{Interval: record.Of(max(l.spec.BeatInterval, 0))}
	if err := l.agent.Call(ctx, wire.DoBeat, beats, nil); err != nil {
		return fmt.Errorf("set the guest's heartbeats: %w", err)
	}
	if err := l.limit(ctx, l.source); err != nil { // not before: it would boot for minutes
		return err
	}
	if l.spec.CPUCap != 0 {
		l.say("CPU cap: %d %% of one processor for the vCPUs, on each host (cgroup %s)", l.spec.CPUCap,
			l.cap(l.hostOf(l.source)).Kind())
	}
	if err := l.startWorkload(ctx); err != nil {
		return err
	}
	l.say("workload: %s, and %d pages under check", l.spec.Workload.Name, filled.Pages)
	if err := l.disks.StartWriters(ctx, l.agent); err != nil {
		return err
	}
	if s := l.spec.Storage; s.Disks > 0 {
		l.say("storage: %s", s)
	}
	return nil
}

// startWorkload starts the guest's workload and its parts outside, in place of those of a former migration.
func (l *Lab) startWorkload(ctx context.Context) error {
	if err := l.tools.Close(); err != nil {
		return err
	}
	l.tools = load.NewTools(load.ToolSpec{Workload: l.spec.Workload, Root: l.spec.Guest.Image.Root,
		Observer: l.site.Observer(),
		Guest:    l.site.GuestAddress(0), Gateway: l.site.Gateway(), Rows: &l.rows, Save: l.save})
	return l.tools.Start(ctx, l.agent)
}

func (l *Lab) say(format string, args ...any) {
	if l.spec.Log != nil {
		fmt.Fprintf(l.spec.Log, format+"\n", args...)
	}
}

func dialAgent(ctx context.Context, vm *guest.VM) (*guest.Agent, error) {
	nc, err := vm.Dial(ctx, guest.AgentIO)
	if err != nil {
		return nil, fmt.Errorf("reach the guest's agent: %w", err)
	}
	return guest.NewAgent(nc), nil
}

// Listen is where the lab's destination is to listen: on its host's address, a port of its choice.
func (l *Lab) Listen() string {
	return fmt.Sprintf("tcp:%s:0", l.site.Address(l.hostOf(l.destination)))
}

// lastLine is the last line of a text that is not empty.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// Close ends both QEMUs and removes everything that Up made. It is harmless twice. If a host of the user's cannot be
// reached, the lab's folder stays: by it the next sweep, or Down, ends what may run there.
func (l *Lab) Close() error {
	var errs []error
	if l.agent != nil {
		l.agent.Close()
	}
	errs = append(errs, l.tools.Close())
	for _, vm := range []*guest.VM{l.destination, l.source} {
		if vm != nil {
			errs = append(errs, vm.Close())
		}
	}
	for _, host := range []string{destinationHost, sourceHost} {
		errs = append(errs, l.lift(host))
	}
	errs = append(errs, l.disks.Close(), l.forget())
	var left error // what may still be on a host that could not be reached
	if l.site != nil {
		err := l.site.Close()
		if errs, left = l.unreached(errs); left != nil {
			left = l.endAnew(left)
		}
		errs = append(errs, err, left)
	}
	if l.dir != "" && left == nil {
		errs = append(errs, release(l.dir))
	}
	l.agent, l.destination, l.source, l.disks, l.tools, l.site, l.hosts, l.dir = nil, nil, nil, nil, nil, nil, nil, ""
	return errors.Join(errs...)
}

// unreached takes out the errors of channels that have closed. What was on the site's own hosts went with them. What
// may be on others is left.
func (l *Lab) unreached(errs []error) (others []error, left error) {
	for _, err := range errs {
		switch closed := new(host.ChannelError); {
		case !errors.As(err, &closed):
			others = append(others, err)
		case !ownHosts(l.spec.Hosts):
			left = errors.Join(left, err)
		}
	}
	return others, left
}

// endAnew ends, over new channels, what could not be reached.
func (l *Lab) endAnew(cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), readyLimit)
	defer cancel()
	s, err := read(l.dir)
	if err == nil {
		_, err = s.end(ctx, l.spec.Pool)
	}
	if err == nil {
		_, err = removeSite(ctx, l.spec.Pool, s)
	}
	if err != nil {
		return fmt.Errorf("%w; %w; `qmigrate lab down %s` tries again", cause, err, l.spec.Owner)
	}
	return nil
}

// Leave lets the lab stand when this program ends: Load finds it again.
func (l *Lab) Leave() error {
	l.agent.Close()
	ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
	defer cancel()
	return errors.Join(l.tools.Close(), l.site.Leave(ctx), l.keep())
}
