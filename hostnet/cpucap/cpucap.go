// Package cpucap limits the processor time that a guest's vCPUs take, by control groups of the kernel (v1 or v2). A
// Spec is data, Apply makes it real on a host and Cap.Close undoes it.
//
// It knows threads of a process and no QEMU, and reaches the groups through a host's files only. It imports
// hostnet/host; hostnet and the lab import it.
package cpucap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/mark"
	"qmigrate/internal/procfs"
)

// CPUCapPeriod is the default period of a cap. The kernel's own is 100 ms; a vCPU that has spent its quota may stand
// still with QEMU's big lock held, and its monitor with it, until the period ends: docs/decisions/0015.
const DefaultPeriod = 20 * time.Millisecond

// The kernel's limits of a quota and a period. Source: kernel/sched/core.c, min_bandwidth, max_cfs_quota_period.
const (
	minQuota  = time.Millisecond
	maxPeriod = time.Second
)

// CPUCapSpec is a limit, as data, on the processor time that some threads of one process take, all of them together:
// those of a guest's vCPUs. The process's other threads are free. It is the kernel's CFS bandwidth control, by a
// control group named qmig-OWNER-HOST.
type Spec struct {
	Owner   string        // mark, as of Spec
	Host    string        // the host's name in it, as of HostSpec
	PID     int           // the process
	Threads []int         // the limited ones
	Percent int           // of one processor: 150 is one and a half; 100 for each thread, and more, is no limit
	Period  time.Duration // the limit holds in each; default CPUCapPeriod
	// of the group where processors are short: that of so many threads at nice 0, 1 to 100; default as many as are limited
	Weight int
}

// CPUCap is a limit that holds.
type Cap struct {
	host host.Host
	spec Spec
	tree cgroups

	base    string // the group that the group is made in
	group   string // the group of the limited threads; the quota is its
	outer   string // v2: the group of the process, around group; "" where the threads alone moved
	home    string // the group that the process was in
	enabled string // v2: where the controller was switched on for this; "" if it was on

	mu     sync.Mutex
	closed bool
}

// CapUsage is what the kernel counted since the limit was made.
type Usage struct {
	Periods   int64         // in which a limited thread wanted to run
	Throttled int64         // those of them in which the quota was spent, and the threads stood still
	Stood     time.Duration // how long they did so, summed over the host's processors
	Used      time.Duration // processor time of the limited threads since they began, by /proc/PID/task/TID/schedstat
}

// Validate says what is wrong with the spec, touching nothing.
func (s Spec) Validate() error {
	s = s.withDefaults()
	switch {
	case !mark.IsOwner(s.Owner) || !mark.IsHost(s.Host):
		return fmt.Errorf("CPU cap of %s on %s: not an owner's mark and a host's name", s.Owner, s.Host)
	case s.Period < minQuota || s.Period > maxPeriod || s.Period%time.Microsecond != 0:
		return fmt.Errorf("period %v of a CPU cap: the kernel takes whole microseconds, %v to %v", s.Period, minQuota,
			maxPeriod)
	case s.quota() < minQuota:
		return fmt.Errorf("CPU cap of %d%%: the kernel's least quota is %v, which is %d%% in a period of %v", s.Percent,
			minQuota, (100*minQuota+s.Period-1)/s.Period, s.Period)
	case s.Weight < 0 || s.Weight > 100:
		return fmt.Errorf("weight %d of a CPU cap: 1 to 100", s.Weight)
	case s.Percent > maxPercent:
		return fmt.Errorf("CPU cap of %d%%: at most %d%%", s.Percent, maxPercent)
	}
	return nil
}

// maxPercent is 1024 processors.
const maxPercent = 102400

func (s Spec) withDefaults() Spec {
	if s.Period == 0 {
		s.Period = DefaultPeriod
	}
	if s.Weight == 0 {
		s.Weight = min(max(len(s.Threads), 1), 100)
	}
	return s
}

func (s Spec) quota() time.Duration { return s.Period * time.Duration(s.Percent) / 100 }

// Apply makes the group on h, gives it its quota and puts the threads into it. If it fails, it removes again what it
// had made. The error is an *UnsupportedError where this machine or user lacks something.
func (s Spec) Apply(ctx context.Context, h host.Host) (_ *Cap, err error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	s = s.withDefaults()
	c := &Cap{host: h, spec: s}
	defer func() {
		if err != nil {
			err = errors.Join(noCgroup(err), c.Close())
		}
	}()
	var trees []cgroups
	if trees, err = cpuTrees(h.ReadFile, s.PID); err != nil {
		return nil, err
	}
	reason := errors.New("no cgroup hierarchy with the cpu controller is mounted")
	for _, t := range trees {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c.tree = t
		if reason = c.make(); reason == nil {
			break
		}
		if undoErr := c.remove(); undoErr != nil {
			return nil, errors.Join(reason, undoErr)
		}
	}
	if reason != nil {
		return nil, reason
	}
	if err := c.Set(s.Percent); err != nil {
		return nil, err
	}
	if err := c.weigh(); err != nil {
		return nil, err
	}
	return c, c.enter()
}

// noCgroup is why there can be no cap; an error that is none of the machine's lacks stays as it is.
func noCgroup(err error) error {
	if errors.As(err, new(*host.UnsupportedError)) || errors.Is(err, context.Canceled) ||
		errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &host.UnsupportedError{Feature: "CPU cap", Err: err, Reason: err.Error(),
		Mend: "as root mount the cpu controller, or have it delegated (`systemd-run --user --scope -p Delegate=yes " +
			"qmigrate ...`)"}
}

func (s Spec) name() string { return mark.Prefix + s.Owner + "-" + s.Host }

// weigh gives the group its weight: a group has that of one process at nice 0, be its threads many, and be they nicer
// or not.
func (c *Cap) weigh() error {
	file, value := "cpu.shares", 1024*c.spec.Weight
	groups := []string{c.group}
	if c.tree.kind == "v2" {
		file, value = "cpu.weight", 100*c.spec.Weight
		if c.outer != "" {
			groups = append(groups, c.outer)
		}
	}
	for _, g := range groups {
		if err := c.write(path.Join(g, file), strconv.Itoa(value)); err != nil {
			return fmt.Errorf("set weight of %s: %w", g, err)
		}
	}
	return nil
}

// Set changes the limit, and reads back what the kernel has made of it.
func (c *Cap) Set(percent int) error {
	s := c.spec
	s.Percent = percent
	if err := s.Validate(); err != nil {
		return err
	}
	quota, period := s.quota().Microseconds(), s.Period.Microseconds()
	// What its threads could not use up limits nothing; as a quota it would: one busy thread got 91 % of its 100 % (period
	// 10 ms, Linux 6.18).
	free := len(s.Threads) > 0 && percent >= 100*len(s.Threads)
	var err error
	if free {
		quota = 0
		file, value := "cpu.cfs_quota_us", "-1"
		if c.tree.kind == "v2" {
			file, value = "cpu.max", fmt.Sprintf("max %d", period)
		} else {
			err = c.write(path.Join(c.group, "cpu.cfs_period_us"), strconv.FormatInt(period, 10))
		}
		err = errors.Join(err, c.write(path.Join(c.group, file), value))
	} else if c.tree.kind == "v2" {
		err = c.write(path.Join(c.group, "cpu.max"), fmt.Sprintf("%d %d", quota, period))
	} else if err = c.write(path.Join(c.group, "cpu.cfs_quota_us"), "-1"); err == nil {
		// or the two do not fit one after the other
		if err = c.write(path.Join(c.group, "cpu.cfs_period_us"), strconv.FormatInt(period, 10)); err == nil {
			err = c.write(path.Join(c.group, "cpu.cfs_quota_us"), strconv.FormatInt(quota, 10))
		}
	}
	if err != nil {
		return fmt.Errorf("set CPU quota of %s: %w", c.group, err)
	}
	q, p, err := c.Quota()
	if err == nil && (q.Microseconds() != quota || p.Microseconds() != period) {
		err = fmt.Errorf("set CPU quota of %s: asked for %d us in %d, the kernel has %v in %v", c.group, quota, period, q, p)
	}
	if err == nil {
		c.spec.Percent = percent
	}
	return err
}

// Spec is what was applied, the defaults filled in.
func (c *Cap) Spec() Spec { return c.spec }

// Kind is the kind of control groups that the limit is made by: v1 or v2.
func (c *Cap) Kind() string { return c.tree.kind }

// Quota reads back how long the threads may run in each period; 0: without limit.
func (c *Cap) Quota() (quota, period time.Duration, err error) {
	var text string
	read := func(file string) {
		b, readErr := c.host.ReadFile(path.Join(c.group, file))
		text, err = text+" "+string(b), errors.Join(err, readErr)
	}
	if c.tree.kind == "v2" {
		read("cpu.max")
	} else {
		read("cpu.cfs_quota_us")
		read("cpu.cfs_period_us")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read CPU quota back: %w", err)
	}
	f := strings.Fields(text)
	if len(f) == 2 {
		if f[0] == "max" || f[0] == "-1" {
			f[0] = "0"
		}
		q, errQ := strconv.ParseInt(f[0], 10, 64)
		p, errP := strconv.ParseInt(f[1], 10, 64)
		if errQ == nil && errP == nil {
			return time.Duration(q) * time.Microsecond, time.Duration(p) * time.Microsecond, nil
		}
	}
	return 0, 0, fmt.Errorf("read CPU quota back: %s has %q", c.group, text)
}

// Usage reads what the kernel counted.
func (c *Cap) Usage() (u Usage, err error) {
	b, err := c.host.ReadFile(path.Join(c.group, "cpu.stat"))
	if err != nil {
		return Usage{}, fmt.Errorf("read use of the CPU cap: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "nr_periods":
			u.Periods = n
		case "nr_throttled":
			u.Throttled = n
		case "throttled_time": // v1
			u.Stood = time.Duration(n)
		case "throttled_usec": // v2
			u.Stood = time.Duration(n) * time.Microsecond
		}
	}
	for _, id := range c.spec.Threads {
		s, err := procfs.Thread(c.spec.PID, id).Schedule(c.host.ReadFile)
		if err != nil {
			return Usage{}, fmt.Errorf("read use of the CPU cap: %w", err)
		}
		u.Used += s.Ran
	}
	return u, nil
}

// Close takes the limit off: what still runs goes back to where it was, and the group is removed. Harmless twice. After
// an error it may be called again.
func (c *Cap) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.group == "" {
		return nil
	}
	c.leave()
	err := c.remove()
	c.closed = err == nil
	return err
}

// cpuCgroup tries to make a group with a CPU quota below our own, and removes it. kind is "v1" or "v2".
func Probe() (kind string, err error) {
	c, err := Spec{Owner: fmt.Sprintf("check-%d", os.Getpid()), Host: "self", PID: os.Getpid(),
		Percent: 50}.Apply(context.Background(), host.Local())
	if err != nil {
		return "", err
	}
	return c.Kind(), c.Close()
}
