package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/hostnet/cpucap"
	"qmigrate/qmp"
)

// limits are those on the guest's vCPUs, by host.
type limits struct {
	mu  sync.Mutex
	all map[string]*cpucap.Cap
}

// limit puts the spec's limit on a VM's vCPUs, in place of one that a former VM of the host had.
func (l *Lab) limit(ctx context.Context, vm *guest.VM) error {
	if l.spec.CPUCap == 0 {
		return nil
	}
	host := l.hostOf(vm)
	if err := l.lift(host); err != nil {
		return err
	}
	threads, err := vcpus(ctx, vm)
	if err != nil {
		return fmt.Errorf("cap the vCPUs on host %s: %w", host, err)
	}
	c, err := cpucap.Spec{Owner: l.spec.Owner, Host: host, PID: vm.Process().PID(), Threads: threads,
		Percent: l.spec.CPUCap, Period: l.spec.CPUCapPeriod}.Apply(ctx, vm.Host())
	if err != nil {
		return fmt.Errorf("cap the vCPUs on host %s: %w", host, err)
	}
	l.limits.mu.Lock()
	defer l.limits.mu.Unlock()
	if l.limits.all == nil {
		l.limits.all = map[string]*cpucap.Cap{}
	}
	l.limits.all[host] = c
	return nil
}

// lift takes the limit off what runs on a host.
func (l *Lab) lift(host string) error {
	l.limits.mu.Lock()
	c := l.limits.all[host]
	delete(l.limits.all, host)
	l.limits.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.Close()
}

// cap is the limit on what runs on a host; nil if it has none.
func (l *Lab) cap(host string) *cpucap.Cap {
	l.limits.mu.Lock()
	defer l.limits.mu.Unlock()
	return l.limits.all[host]
}

// noteHardware puts into the record what of the guest's hardware the engine does not see.
func (l *Lab) noteHardware(rec *record.Migration) {
	rec.QEMU.NIC = guest.NICName(l.spec.Guest.NIC.Model)
	if l.spec.Storage.Disks > 0 {
		rec.QEMU.DiskBus = cmp.Or(l.spec.Guest.DiskBus, guest.VirtioBlk)
	}
	if l.source == nil {
		return
	}
	if c := l.cap(l.hostOf(l.source)); c != nil {
		rec.CPUCap = &record.CPUCap{Percent: c.Spec().Percent, Period: c.Spec().Period, Cgroup: c.Kind()}
	}
}

// vcpus are the threads that run the guest's CPUs: one may run several.
func vcpus(ctx context.Context, vm *guest.VM) (threads []int, err error) {
	nc, err := vm.Dial(ctx, guest.Control)
	if err != nil {
		return nil, err
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	cpus, err := c.CPUs(ctx)
	known := map[int]bool{}
	for _, cpu := range cpus {
		if !known[cpu.Thread] {
			known[cpu.Thread] = true
			threads = append(threads, cpu.Thread)
		}
	}
	return threads, err
}

// capCounts is what the limits of both sides had counted before a migration.
type capCounts struct {
	source, destination *cpucap.Cap
	before              [2]cpucap.Usage
}

func (l *Lab) countCaps() (c capCounts, err error) {
	c = capCounts{source: l.cap(l.hostOf(l.source)), destination: l.cap(l.hostOf(l.destination))}
	for i, side := range []*cpucap.Cap{c.source, c.destination} {
		if side != nil {
			var sideErr error
			c.before[i], sideErr = side.Usage()
			err = errors.Join(err, sideErr)
		}
	}
	return c, err
}

// note puts into the record what the limits did since.
func (c capCounts) note(rec *record.Migration) {
	if rec.CPUCap == nil || c.source == nil || c.destination == nil {
		return
	}
	use := func(side *cpucap.Cap, before cpucap.Usage) *record.CapUse {
		u, err := side.Usage()
		if err != nil {
			rec.Warn("the use of a CPU cap is not known: %v", err)
			return nil
		}
		return &record.CapUse{Periods: u.Periods - before.Periods, Throttled: u.Throttled - before.Throttled,
			Stood: u.Stood - before.Stood, Used: u.Used - before.Used}
	}
	rec.CPUCap.Source, rec.CPUCap.Destination = use(c.source, c.before[0]), use(c.destination, c.before[1])
}
