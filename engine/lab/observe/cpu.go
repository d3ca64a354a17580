package observe

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine/connect"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/internal/procfs"
)

// cpuInterval is how often the threads of both QEMUs are looked at. A stage that is shorter than leastSpan is not told
// apart: the kernel keeps a running thread's time to a tick of its own (1 to 10 ms), and we know it at our looks only.
const (
	cpuInterval = 50 * time.Millisecond
	leastSpan   = 2 * cpuInterval
)

// cpu reads what each QEMU and its threads have had of their host's processors. Every file is read on the host that
// runs it.
type cpu struct {
	source, destination *guest.VM // nil: there is none

	qemus []*qemuCPU
	end   chan struct{} // nil: not started
	all   sync.WaitGroup
	cost  time.Duration // of the sampler's own thread; read when it has ended
}

// qemuCPU is one QEMU: the readings of each of its threads, and of the whole process.
type qemuCPU struct {
	side    record.Holder
	vm      *guest.VM
	process connect.Process
	names   map[int]string // of threads, as the record has them; "": of no interest
	used    map[string][]reading
	ended   map[string]time.Duration // what the threads of a name had that are gone
	last    map[int]time.Duration
}

// reading is what a thread had used up to an instant.
type reading struct {
	at   time.Time
	used time.Duration
}

const wholeProcess = "process"

// Start begins with a first look.
func (c *cpu) Start(context.Context) error {
	c.end = make(chan struct{})
	for side, vm := range map[record.Holder]*guest.VM{record.Source: c.source, record.Destination: c.destination} {
		if vm != nil {
			c.qemus = append(c.qemus, &qemuCPU{side: side, vm: vm, process: connect.NewProcess(vm.Host(), vm.Process()),
				names: map[int]string{}, used: map[string][]reading{},
				ended: map[string]time.Duration{}, last: map[int]time.Duration{}})
		}
	}
	// the source first
	slices.SortFunc(c.qemus, func(a, b *qemuCPU) int { return -strings.Compare(string(a.side), string(b.side)) })
	c.all.Go(func() {
		runtime.LockOSThread() // for its clock
		defer runtime.UnlockOSThread()
		began := threadCPU()
		tick := time.NewTicker(cpuInterval)
		defer tick.Stop()
		for {
			for _, q := range c.qemus {
				q.look()
			}
			c.cost = threadCPU() - began
			select {
			case <-tick.C:
			case <-c.end:
				return
			}
		}
	})
	return nil
}

func threadCPU() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // it cannot fail
	return time.Duration(ts.Nano())
}

// Stop ends it with a last look.
func (c *cpu) Stop() {
	if c.end == nil {
		return
	}
	close(c.end)
	c.all.Wait()
	for _, q := range c.qemus {
		q.look()
	}
}

// look reads all threads once, which takes less than a millisecond, and stamps all of it with its begin. A process that
// has gone has no more to tell.
func (q *qemuCPU) look() {
	now := time.Now()
	if u, err := q.vm.Process().Usage(); err == nil && u.RSS > 0 {
		q.used[wholeProcess] = append(q.used[wholeProcess], reading{now, u.CPU})
	}
	ids, err := q.process.Threads()
	if err != nil {
		return
	}
	sums := map[string]time.Duration{}
	for name, used := range q.ended {
		sums[name] = used
	}
	for _, id := range ids {
		name, known := q.names[id]
		if !known {
			if name, known = q.name(id); !known {
				continue
			}
			q.names[id] = name
		}
		if name == "" {
			continue
		}
		if s, err := procfs.Thread(q.vm.Process().PID(), id).Schedule(q.vm.Host().ReadFile); err == nil {
			q.last[id] = s.Ran
		}
		sums[name] += q.last[id]
	}
	for id, used := range q.last {
		if !slices.Contains(ids, id) { // the migration's threads end with it: what they had until our last look stays
			q.ended[q.names[id]] += used
			sums[q.names[id]] += used
			delete(q.last, id)
			delete(q.names, id)
		}
	}
	for name, used := range sums {
		q.used[name] = append(q.used[name], reading{now, used})
	}
}

// name is a thread's name in the record, by the name that QEMU gave it (-name debug-threads=on): its vCPUs are "CPU
// 0/TCG" and the like, and "ALL CPUs/TCG" where one thread runs all; those of a migration "live_migration",
// "multifdsend_0", "return path", ... until 8.2 and "mig/src/main", ... from 9.0 on.
func (q *qemuCPU) name(id int) (name string, known bool) {
	if id == q.vm.Process().PID() {
		return "main", true
	}
	b, err := q.vm.Host().ReadFile(fmt.Sprintf("/proc/%d/task/%d/comm", q.vm.Process().PID(), id))
	if err != nil {
		return "", false
	}
	return threadName(strings.TrimSpace(string(b)))
}

func threadName(comm string) (name string, known bool) {
	switch {
	case strings.HasPrefix(comm, "CPU "):
		number, _, _ := strings.Cut(strings.TrimPrefix(comm, "CPU "), "/")
		if _, err := strconv.Atoi(number); err == nil {
			return "vcpu" + number, true
		}
	case strings.HasPrefix(comm, "ALL CPUs"):
		return "vcpus", true
	}
	for _, prefix := range []string{"mig/", "live_migration", "multifd", "postcopy/", "return path", "fault-default",
		"bg_snapshot"} {
		if strings.HasPrefix(comm, prefix) {
			return "migration", true
		}
	}
	return "", !strings.HasPrefix(comm, "qemu-system") // a new thread has its maker's name for a moment
}

// usedAt is what had been used at an instant, on a straight line between two looks; false outside of them.
func usedAt(readings []reading, at time.Time) (time.Duration, bool) {
	i, _ := slices.BinarySearchFunc(readings, at, func(r reading, t time.Time) int { return r.at.Compare(t) })
	if i == len(readings) || i == 0 && readings[0].at.After(at) {
		return 0, false
	}
	b := readings[i]
	if b.at.Equal(at) {
		return b.used, true
	}
	a := readings[i-1]
	share := float64(at.Sub(a.at)) / float64(b.at.Sub(a.at))
	return a.used + time.Duration(share*float64(b.used-a.used)), true
}

// Note writes into the record what each thread used, by stage, and both QEMUs' use over time.
func (c *cpu) Note(rec *record.Migration, _, _ time.Time) error {
	if c.end == nil || rec.Origin.IsZero() {
		return nil
	}
	type stretch struct {
		name     record.StageName
		from, to time.Time
	}
	for _, q := range c.qemus {
		whole := q.used[wholeProcess]
		if len(whole) < 2 {
			continue
		}
		end := rec.Origin.Add(rec.Total.Wall)
		stretches := []stretch{{"", whole[0].at, rec.Origin}}
		for _, s := range rec.Stages {
			stretches = append(stretches, stretch{s.Name, rec.Origin.Add(s.Start), rec.Origin.Add(s.Start + s.Duration)})
		}
		stretches = append(stretches, stretch{record.After, end, whole[len(whole)-1].at})
		for _, s := range stretches {
			length := s.to.Sub(s.from)
			if length < leastSpan {
				continue
			}
			for _, name := range sortedThreads(q.used) {
				a, okA := usedAt(q.used[name], s.from)
				b, okB := usedAt(q.used[name], s.to)
				if !okB {
					continue
				}
				if !okA { // it began in this stretch, or is not told apart from one that did
					if name != "migration" || q.used[name][0].at.After(s.to) {
						continue
					}
					a = 0
				}
				rec.CPU = append(rec.CPU, record.CPUUse{Side: q.side, Thread: name, Stage: s.name, From: s.from.Sub(rec.Origin),
					Span: length,
					Used: b - a, Percent: 100 * float64(b-a) / float64(length)})
			}
		}
		var spans []Span
		for i := 1; i < len(whole); i++ {
			spans = append(spans, Span{whole[i-1].at, whole[i].at, 100 * (whole[i].used - whole[i-1].used).Seconds()})
		}
		from := rec.Origin.Add(-rec.Origin.Sub(whole[0].at) / timelineBin * timelineBin)
		rec.Timeline = append(rec.Timeline, record.Series{Name: "cpu_" + string(q.side), Unit: "percent",
			Source: "the process's clock of processor time on its host, all threads, of one processor",
			Start:  from.Sub(rec.Origin), Bin: timelineBin,
			Values: Bins(spans, from, timelineBin), EdgeError: record.Of(cpuInterval)})
	}
	if rec.Sampling != nil {
		rec.Sampling.Observer = record.Of(c.cost)
	}
	return nil
}

// sortedThreads are the names, the whole process first, then the vCPUs.
func sortedThreads(used map[string][]reading) (names []string) {
	for name := range used {
		names = append(names, name)
	}
	rank := func(name string) string {
		switch {
		case name == wholeProcess:
			return "0"
		case strings.HasPrefix(name, "vcpu"):
			return fmt.Sprintf("1%08s", strings.TrimPrefix(name, "vcpu"))
		}
		return "2" + name
	}
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(rank(a), rank(b)) })
	return names
}
