package observe

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/lab/observe/on"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/hostnet/host"
)

// cpuInterval is how often the threads of both QEMUs are looked at. A stage that is shorter than leastSpan is not told
// apart: the kernel keeps a running thread's time to a tick of its own (1 to 10 ms), and we know it at our looks only.
const (
	cpuInterval = 50 * time.Millisecond
	leastSpan   = 2 * cpuInterval
)

// cpu is what each QEMU and its threads have had of their host's processors. They are read on the host that runs them,
// those of one machine together.
type cpu struct {
	source, destination *guest.VM // nil: there is none
	clocks              clocks

	qemus []*qemuCPU
	tasks []*task
}

// qemuCPU is one QEMU: the readings of each of its threads, and of the whole process.
type qemuCPU struct {
	side  record.Holder
	clock *clock.Follower // of its host
	used  map[string][]reading
	cost  *time.Duration // of reading, of its host's sampler
}

// reading is what a thread had used up to an instant of its host.
type reading struct {
	at   time.Time
	used time.Duration
}

const wholeProcess = on.WholeProcess

// Start begins with a first look.
func (c *cpu) Start(ctx context.Context) error {
	type machine struct {
		at    host.Host
		spec  on.CPUSpec
		qemus []*qemuCPU
	}
	var machines []*machine
	for _, side := range []struct {
		name record.Holder
		vm   *guest.VM
	}{{record.Source, c.source}, {record.Destination, c.destination}} {
		if side.vm == nil {
			continue
		}
		at := side.vm.Host()
		if _, far := at.(*host.Far); !far { // its namespaces are one machine
			at = host.Local()
		}
		i := slices.IndexFunc(machines, func(m *machine) bool { return m.at.Name() == at.Name() })
		if i < 0 {
			i = len(machines)
			machines = append(machines, &machine{at: at, spec: on.CPUSpec{Every: cpuInterval}})
		}
		m, p := machines[i], side.vm.Process()
		q := &qemuCPU{side: side.name, clock: c.clocks.of(at), used: map[string][]reading{}}
		if c.qemus = append(c.qemus, q); len(m.qemus) == 0 {
			q.cost = new(time.Duration)
		}
		m.qemus = append(m.qemus, q)
		m.spec.Processes = append(m.spec.Processes, on.ProcessID{PID: p.PID(), Start: p.StartTime()})
	}
	for _, m := range machines {
		t, err := begin(ctx, "processor time on host "+m.at.Name(), on.CPU(), m.at, m.spec, func(o on.CPULooks) {
			*m.qemus[0].cost = o.Cost
			for _, look := range o.Looks {
				q := m.qemus[look.Process]
				for name, used := range look.Used {
					q.used[name] = append(q.used[name], reading{look.At, used})
				}
			}
		})
		if err != nil {
			return err // Stop ends those that have begun
		}
		c.tasks = append(c.tasks, t)
	}
	return nil
}

// Stop ends it with a last look.
func (c *cpu) Stop() {
	for _, t := range c.tasks {
		t.end()
	}
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

// ours are the readings at our instants.
func (q *qemuCPU) ours() map[string][]reading {
	if q.clock == nil {
		return q.used
	}
	all := map[string][]reading{}
	for name, readings := range q.used {
		for _, r := range readings {
			all[name] = append(all[name], reading{q.clock.Ours(r.at), r.used})
		}
	}
	return all
}

// Note writes into the record what each thread used, by stage, and both QEMUs' use over time.
func (c *cpu) Note(rec *record.Migration, _, _ time.Time) error {
	for _, t := range c.tasks {
		t.doubt(rec)
	}
	if len(c.tasks) == 0 || rec.Origin.IsZero() {
		return nil
	}
	type stretch struct {
		name     record.StageName
		from, to time.Time
	}
	for _, q := range c.qemus {
		used := q.ours()
		whole := used[wholeProcess]
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
			for _, name := range sortedThreads(used) {
				a, okA := usedAt(used[name], s.from)
				b, okB := usedAt(used[name], s.to)
				if !okB {
					continue
				}
				if !okA { // it began in this stretch, or is not told apart from one that did
					if name != "migration" || used[name][0].at.After(s.to) {
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
		rec.Sampling.Observer = new(time.Duration)
		for _, q := range c.qemus {
			if q.cost != nil {
				*rec.Sampling.Observer += *q.cost
			}
		}
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
