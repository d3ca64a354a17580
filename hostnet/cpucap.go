package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"qmigrate/internal/procfs"
)

// CPUCapPeriod is the default period of a cap. The kernel's own is 100 ms; a vCPU that has spent its quota may stand still with QEMU's big lock held, and
// its monitor with it, until the period ends: docs/decisions/0015.
const CPUCapPeriod = 20 * time.Millisecond

// The kernel's limits of a quota and a period. Source: kernel/sched/core.c, min_bandwidth, max_cfs_quota_period.
const (
	minQuota  = time.Millisecond
	maxPeriod = time.Second
)

// CPUCapSpec is a limit, as data, on the processor time that some threads of one process take, all of them together: those of a guest's vCPUs. The
// process's other threads are free. It is the kernel's CFS bandwidth control, by a control group named qmig-OWNER-HOST.
type CPUCapSpec struct {
	Owner   string        // mark, as of Spec
	Host    string        // the host's name in it, as of HostSpec
	PID     int           // the process
	Threads []int         // the limited ones
	Percent int           // of one processor: 150 is one and a half; 100 for each thread, and more, is no limit
	Period  time.Duration // the limit holds in each; default CPUCapPeriod
	Weight  int           // of the group where processors are short: that of so many threads at nice 0, 1 to 100; default as many as are limited
}

// CPUCap is a limit that holds.
type CPUCap struct {
	host Host
	spec CPUCapSpec
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
type CapUsage struct {
	Periods   int64         // in which a limited thread wanted to run
	Throttled int64         // those of them in which the quota was spent, and the threads stood still
	Stood     time.Duration // how long they did so, summed over the host's processors
	Used      time.Duration // processor time of the limited threads since they began, by /proc/PID/task/TID/schedstat
}

// Validate says what is wrong with the spec, touching nothing.
func (s CPUCapSpec) Validate() error {
	s = s.withDefaults()
	switch {
	case !isOwner(s.Owner) || !isHost(s.Host):
		return fmt.Errorf("CPU cap of %s on %s: not an owner's mark and a host's name", s.Owner, s.Host)
	case s.Period < minQuota || s.Period > maxPeriod || s.Period%time.Microsecond != 0:
		return fmt.Errorf("period %v of a CPU cap: the kernel takes whole microseconds, %v to %v", s.Period, minQuota, maxPeriod)
	case s.quota() < minQuota:
		return fmt.Errorf("CPU cap of %d%%: the kernel's least quota is %v, which is %d%% in a period of %v", s.Percent, minQuota, (100*minQuota+s.Period-1)/s.Period, s.Period)
	case s.Weight < 0 || s.Weight > 100:
		return fmt.Errorf("weight %d of a CPU cap: 1 to 100", s.Weight)
	case s.Percent > maxPercent:
		return fmt.Errorf("CPU cap of %d%%: at most %d%%", s.Percent, maxPercent)
	}
	return nil
}

// maxPercent is 1024 processors.
const maxPercent = 102400

func (s CPUCapSpec) withDefaults() CPUCapSpec {
	if s.Period == 0 {
		s.Period = CPUCapPeriod
	}
	if s.Weight == 0 {
		s.Weight = min(max(len(s.Threads), 1), 100)
	}
	return s
}

func (s CPUCapSpec) quota() time.Duration { return s.Period * time.Duration(s.Percent) / 100 }

// Apply makes the group on h, gives it its quota and puts the threads into it. If it fails, it removes again what it had made. The error is an
// *UnsupportedError where this machine or user lacks something.
func (s CPUCapSpec) Apply(ctx context.Context, h Host) (_ *CPUCap, err error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	s = s.withDefaults()
	c := &CPUCap{host: h, spec: s}
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
	if errors.As(err, new(*UnsupportedError)) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &UnsupportedError{Feature: "CPU cap", Err: err, Reason: err.Error(),
		Mend: "as root mount the cpu controller, or have it delegated (`systemd-run --user --scope -p Delegate=yes qmigrate ...`)"}
}

// cgroups is one mounted hierarchy of control groups that may have the cpu controller, as one process sees it.
type cgroups struct {
	kind  string // v1 or v2
	mount string // folder of its root
	home  string // folder of the group that the process is in
}

// cpuTrees finds the hierarchies with the cpu controller, v1 first: where that one has the controller, v2 does not. Sources: cgroups(7), proc_pid_mountinfo(5).
func cpuTrees(read func(string) ([]byte, error), pid int) (all []cgroups, err error) {
	groups, err := read(fmt.Sprintf("/proc/%d/cgroup", pid)) // lines of number:controllers:path
	if err != nil {
		return nil, err
	}
	mounts, err := read("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var second []cgroups
	for line := range strings.Lines(string(groups)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		t := cgroups{kind: "v1"}
		if f[1] == "" {
			t.kind = "v2"
		} else if !hasWord(f[1], "cpu") {
			continue
		}
		if t.mount, t.home = cgroupFolder(string(mounts), t.kind, f[2]); t.mount == "" {
			continue
		}
		if t.kind == "v1" {
			all = append(all, t)
		} else {
			second = append(second, t)
		}
	}
	return append(all, second...), nil
}

// cgroupFolder finds where a hierarchy with the cpu controller is mounted, and there the folder of a group.
func cgroupFolder(mountinfo, kind, group string) (mount, folder string) {
	for line := range strings.Lines(mountinfo) {
		m, ok := parseMount(line)
		if !ok || m.kind != kind {
			continue
		}
		rel := group
		if m.root != "/" { // a part of the hierarchy is mounted, as in a container
			if rel, ok = strings.CutPrefix(group, m.root); !ok || rel != "" && rel[0] != '/' {
				continue
			}
		}
		if folder := path.Join(m.point, rel); folder == m.point || strings.HasPrefix(folder, m.point+"/") { // /.. is another namespace's
			return m.point, folder
		}
	}
	return "", ""
}

// cgroupMount is a mounted hierarchy that has, or may have, the cpu controller.
type cgroupMount struct{ kind, root, point string }

// parseMount reads a line of mountinfo: id parent device ROOT POINT options [optional...] - TYPE source SUPER-OPTIONS.
func parseMount(line string) (m cgroupMount, ok bool) {
	head, tail, ok := strings.Cut(line, " - ")
	h, t := strings.Fields(head), strings.Fields(tail)
	if !ok || len(h) < 6 || len(t) < 3 {
		return m, false
	}
	m.root, m.point = unescape(h[3]), unescape(h[4])
	switch {
	case t[0] == "cgroup2":
		m.kind = "v2"
	case t[0] == "cgroup" && hasWord(t[2], "cpu"):
		m.kind = "v1"
	}
	return m, m.kind != ""
}

// unescape undoes what mountinfo writes for blanks and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func (s CPUCapSpec) name() string { return prefix + s.Owner + "-" + s.Host }

func (c *CPUCap) write(file, value string) error { return c.host.WriteFile(file, []byte(value), 0o644) }

// typeOf is a v2 group's type; empty if the kernel has none to tell (before 4.14).
func (c *CPUCap) typeOf(group string) string {
	b, _ := c.host.ReadFile(path.Join(group, "cgroup.type"))
	return strings.TrimSpace(string(b))
}

// has looks for a word in one of the kernel's lists.
func (c *CPUCap) has(file, word string) bool {
	b, err := c.host.ReadFile(file)
	if err != nil {
		return false
	}
	for _, w := range strings.Fields(string(b)) {
		if w == word {
			return true
		}
	}
	return false
}

// make makes the group, without quota and threads.
func (c *CPUCap) make() error {
	c.home = c.tree.home
	if c.tree.kind == "v1" {
		c.base, c.group, c.outer = c.home, path.Join(c.home, c.spec.name()), ""
		return c.host.MkdirAll(c.group, 0o755)
	}
	return c.makeUnified()
}

// makeUnified makes the group of v2. There a thread may leave its process's group only for a threaded one below it. So the process gets a group, where
// the controller is on: in the nearest group above its own that has it for its children and lets us. Where none has, it is switched on, for the process's
// own group or one above it; a group with processes in it that is not the root then takes threads only, and the process stays.
// Source: Documentation/admin-guide/cgroup-v2.rst, "Threads".
func (c *CPUCap) makeUnified() error {
	reason := fmt.Errorf("the cgroup v2 hierarchy in %s has no cpu controller", c.tree.mount)
	for _, enable := range []bool{false, true} {
		for dir := c.home; ; dir = path.Dir(dir) {
			on := c.has(path.Join(dir, "cgroup.subtree_control"), "cpu")
			if !on && enable && c.has(path.Join(dir, "cgroup.controllers"), "cpu") {
				if err := c.write(path.Join(dir, "cgroup.subtree_control"), "+cpu"); err != nil {
					reason = err
				} else {
					on, c.enabled = true, dir
				}
			}
			if on {
				err := c.makeIn(dir)
				if err == nil {
					return nil
				}
				reason = err
				if err := c.remove(); err != nil {
					return errors.Join(reason, err)
				}
			}
			if dir == c.tree.mount || len(dir) <= len(c.tree.mount) {
				break
			}
		}
	}
	return reason
}

func (c *CPUCap) makeIn(dir string) error {
	own := path.Join(dir, c.spec.name())
	if err := c.host.MkdirAll(own, 0o755); err != nil {
		return err
	}
	c.base, c.group, c.outer = dir, own, ""
	switch kind := c.typeOf(own); kind {
	case "domain", "domain threaded":
		c.outer, c.group = own, path.Join(own, "vcpu")
		if err := c.write(path.Join(own, "cgroup.subtree_control"), "+cpu"); err != nil {
			return err
		}
		if err := c.host.MkdirAll(c.group, 0o755); err != nil {
			return err
		}
	case "domain invalid", "threaded": // dir takes threads only
	default:
		return fmt.Errorf("group %s is of the type %q: this kernel's cgroup v2 has no threads", own, kind)
	}
	if c.typeOf(c.group) != "threaded" {
		if err := c.write(path.Join(c.group, "cgroup.type"), "threaded"); err != nil {
			return err
		}
	}
	if c.outer == "" { // so that nobody can switch the controller off in dir while this one needs it
		return c.write(path.Join(own, "cgroup.subtree_control"), "+cpu")
	}
	return nil
}

// weigh gives the group its weight: a group has that of one process at nice 0, be its threads many, and be they nicer or not.
func (c *CPUCap) weigh() error {
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

// enter puts the threads into the group.
func (c *CPUCap) enter() error {
	if len(c.spec.Threads) == 0 {
		return nil
	}
	if c.outer != "" {
		if err := c.write(path.Join(c.outer, "cgroup.procs"), strconv.Itoa(c.spec.PID)); err != nil {
			return fmt.Errorf("put process %d into group %s: %w", c.spec.PID, c.outer, err)
		}
	}
	for _, id := range c.spec.Threads {
		if err := c.write(path.Join(c.group, c.threadsFile()), strconv.Itoa(id)); err != nil {
			return fmt.Errorf("put thread %d into group %s: %w", id, c.group, err)
		}
	}
	return nil
}

func (c *CPUCap) threadsFile() string {
	if c.tree.kind == "v1" {
		return "tasks"
	}
	return "cgroup.threads"
}

// Set changes the limit, and reads back what the kernel has made of it.
func (c *CPUCap) Set(percent int) error {
	s := c.spec
	s.Percent = percent
	if err := s.Validate(); err != nil {
		return err
	}
	quota, period := s.quota().Microseconds(), s.Period.Microseconds()
	// What its threads could not use up limits nothing; as a quota it would: one busy thread got 91 % of its 100 % (period 10 ms, Linux 6.18).
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
	} else if err = c.write(path.Join(c.group, "cpu.cfs_quota_us"), "-1"); err == nil { // or the two do not fit one after the other
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
func (c *CPUCap) Spec() CPUCapSpec { return c.spec }

// Kind is the kind of control groups that the limit is made by: v1 or v2.
func (c *CPUCap) Kind() string { return c.tree.kind }

// Quota reads back how long the threads may run in each period; 0: without limit.
func (c *CPUCap) Quota() (quota, period time.Duration, err error) {
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
func (c *CPUCap) Usage() (u CapUsage, err error) {
	b, err := c.host.ReadFile(path.Join(c.group, "cpu.stat"))
	if err != nil {
		return CapUsage{}, fmt.Errorf("read use of the CPU cap: %w", err)
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
			return CapUsage{}, fmt.Errorf("read use of the CPU cap: %w", err)
		}
		u.Used += s.Ran
	}
	return u, nil
}

// Close takes the limit off: what still runs goes back to where it was, and the group is removed. Harmless twice. After an error it may be called again.
func (c *CPUCap) Close() error {
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

// leave puts the threads back. Those that have ended cannot be; if others cannot either, the group stays, and remove says so.
func (c *CPUCap) leave() {
	if len(c.spec.Threads) == 0 {
		return
	}
	if _, err := c.host.Stat(fmt.Sprintf("/proc/%d", c.spec.PID)); err != nil {
		return
	}
	if c.outer != "" {
		_ = c.write(path.Join(c.home, "cgroup.procs"), strconv.Itoa(c.spec.PID)) // all of its threads with it
		return
	}
	for _, id := range c.spec.Threads {
		_ = c.write(path.Join(c.home, c.threadsFile()), strconv.Itoa(id))
	}
}

// remove removes the groups, which takes a moment after the last of their threads has ended.
func (c *CPUCap) remove() error {
	if c.group == "" {
		return nil
	}
	var err error
	gone := func(group string) error {
		if _, err := c.host.Stat(group); group == "" || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return c.host.RemoveAll(group) // a group without groups goes in one piece, its files with it
	}
	for deadline := time.Now().Add(undoLimit); ; time.Sleep(2 * time.Millisecond) {
		if err = gone(c.group); err == nil {
			err = gone(c.outer)
		}
		if err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		if b, readErr := c.host.ReadFile(path.Join(c.group, c.threadsFile())); readErr == nil && len(b) > 0 {
			err = fmt.Errorf("threads are in it still: %s", strings.Join(strings.Fields(string(b)), " "))
		}
		return fmt.Errorf("remove CPU cap %s: %w", c.group, err)
	}
	if c.enabled != "" {
		_ = c.write(path.Join(c.enabled, "cgroup.subtree_control"), "-cpu") // refused while another cap needs it
	}
	c.group, c.outer, c.enabled = "", "", ""
	return nil
}

// capGroups are the folders of all groups on this machine whose name begins so, in every mounted hierarchy with the cpu controller.
func capGroups(begin string) (all []string, err error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(mounts)) {
		m, ok := parseMount(line)
		if !ok || seen[m.point] {
			continue
		}
		seen[m.point] = true
		err := filepath.WalkDir(m.point, func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil && name == m.point:
				return err
			case err != nil: // it went while we looked, or is nothing of ours
				return fs.SkipDir
			case !d.IsDir():
				return nil
			case strings.HasPrefix(d.Name(), begin):
				all = append(all, name)
				return fs.SkipDir
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return all, err
		}
	}
	return all, nil
}

// removeCaps removes the groups of an owner, when the processes in them are dead.
func removeCaps(ctx context.Context, owner string) (removed []string, err error) {
	groups, err := capGroups(prefix + owner + "-")
	errs := []error{err}
	for _, g := range groups {
		if o, ok := ownerOf(g); !ok || o != owner {
			continue
		}
		for {
			_ = os.Remove(path.Join(g, "vcpu")) // v2; if it cannot go, nor can g
			if err = os.Remove(g); err == nil || errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
				break
			}
			time.Sleep(2 * time.Millisecond)
		}
		if err == nil {
			removed = append(removed, "CPU cap "+g)
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// cpuCgroup tries to make a group with a CPU quota below our own, and removes it. kind is "v1" or "v2".
func cpuCgroup() (kind string, err error) {
	c, err := CPUCapSpec{Owner: fmt.Sprintf("check-%d", os.Getpid()), Host: "self", PID: os.Getpid(), Percent: 50}.Apply(context.Background(), Local())
	if err != nil {
		return "", err
	}
	return c.Kind(), c.Close()
}
