package cpucap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/mark"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// spinner is a process of two threads that are always busy, and their numbers.
func spinner(t *testing.T) (p host.Process, threads []int) {
	t.Helper()
	cmd := self("spin")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { killHard(cmd) })
	threads = make([]int, 2)
	if _, err := fmt.Fscan(out, &threads[0], &threads[1]); err != nil {
		t.Fatal(err)
	}
	start, err := host.StartTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = host.FindProcess(cmd.Process.Pid, start); err != nil {
		t.Fatal(err)
	}
	return p, threads
}

func spin() error {
	ids := make(chan int)
	for range 2 {
		go func() {
			runtime.LockOSThread()
			ids <- unix.Gettid()
			for n := 0; ; n++ {
				_ = n
			}
		}()
	}
	fmt.Println(<-ids, <-ids)
	select {}
}

// applyCap applies the spec; the test is skipped where this machine or user cannot.
func applyCap(t *testing.T, s Spec) *Cap {
	t.Helper()
	c, err := s.Apply(t.Context(), host.Local())
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("this machine or user has no control group for processor time that may be written: %v; TestUnified has them in a guest", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// groupOf is the group with the cpu controller that a thread is in.
func groupOf(pid, thread int) (string, error) {
	trees, err := cpuTrees(func(name string) ([]byte, error) {
		return os.ReadFile(strings.Replace(name, fmt.Sprintf("/proc/%d/cgroup", pid), fmt.Sprintf("/proc/%d/task/%d/cgroup", pid, thread), 1))
	}, pid)
	if err != nil || len(trees) == 0 {
		return "", fmt.Errorf("%v, %v", trees, err)
	}
	return trees[0].home, nil
}

// capsThread is what must hold of a cap on the first of two busy threads, on any kind of groups. moved: the whole process was given another group.
func capsThread(s Spec, h host.Host, threads []int) (c *Cap, moved bool, err error) {
	home, err := groupOf(s.PID, threads[0])
	if err != nil {
		return nil, false, err
	}
	s.Threads, s.Weight = threads[:1], 3
	if c, err = s.Apply(context.Background(), h); err != nil {
		return nil, false, err
	}
	if q, p, err := c.Quota(); err != nil || p != DefaultPeriod || q != p*time.Duration(s.Percent)/100 {
		return c, moved, fmt.Errorf("the kernel has a quota of %v in %v, %v", q, p, err)
	}
	in, err := groupOf(s.PID, threads[0])
	if err != nil || in != c.group || !strings.Contains(in, c.spec.name()) {
		return c, moved, fmt.Errorf("the thread is in %s, %v, its cap is %s", in, err, c.group)
	}
	free, err := groupOf(s.PID, threads[1])
	if err != nil || free == c.group {
		return c, moved, fmt.Errorf("the other thread is in %s too, %v", free, err)
	}
	moved = free != home
	for file, want := range map[string]string{"cpu.shares": "3072", "cpu.weight": "300"} {
		if b, err := os.ReadFile(filepath.Join(c.group, file)); err == nil && strings.TrimSpace(string(b)) != want {
			return c, moved, fmt.Errorf("%s is %q, want %s", file, b, want)
		}
	}
	before, err := c.Usage()
	if err != nil {
		return c, moved, err
	}
	var u Usage
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if u, err = c.Usage(); err != nil {
			return c, moved, err
		}
		if u.Throttled > before.Throttled+2 && u.Used > before.Used && u.Stood > before.Stood {
			break
		}
		if time.Now().After(deadline) {
			return c, moved, fmt.Errorf("a busy thread was never held back: %+v, before %+v", u, before)
		}
	}
	if u.Periods < u.Throttled {
		return c, moved, fmt.Errorf("more periods held back than there were: %+v", u)
	}
	if err := c.Set(2 * s.Percent); err != nil {
		return c, moved, err
	}
	if q, p, err := c.Quota(); err != nil || q != p*time.Duration(2*s.Percent)/100 {
		return c, moved, fmt.Errorf("after Set the kernel has a quota of %v in %v, %v", q, p, err)
	}
	if err := c.Set(100); err != nil { // all that one thread can use
		return c, moved, err
	}
	if q, p, err := c.Quota(); err != nil || q != 0 || p != DefaultPeriod {
		return c, moved, fmt.Errorf("a cap that limits nothing is a quota of %v in %v, %v", q, p, err)
	}
	if err := c.Set(s.Percent); err != nil {
		return c, moved, err
	}
	group := c.group
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		return c, moved, err
	}
	for _, id := range threads {
		if back, err := groupOf(s.PID, id); err != nil || back != home {
			return c, moved, fmt.Errorf("after Close thread %d is in %s, %v, it came from %s", id, back, err, home)
		}
	}
	if _, err := os.Stat(group); !errors.Is(err, fs.ErrNotExist) {
		return c, moved, fmt.Errorf("the group is left: %w", err)
	}
	return c, moved, nil
}

func TestCap(t *testing.T) {
	p, threads := spinner(t)
	s := Spec{Owner: owner(), Host: "a", PID: p.PID(), Percent: 30}
	applyCap(t, s).Close() // it can be had, or the test is skipped
	c, _, err := capsThread(s, host.Local(), threads)
	if c != nil {
		defer c.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Log("control groups ", c.Kind())
}

// TestCapOfTheDead: a process that is killed under its cap leaves a group that Close removes.
func TestCapOfTheDead(t *testing.T) {
	p, threads := spinner(t)
	c := applyCap(t, Spec{Owner: owner(), Host: "a", PID: p.PID(), Threads: threads, Percent: 20})
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Usage(); err == nil {
		t.Error("a cap that is gone has a use")
	}
	if left, err := capGroups(mark.Prefix + c.spec.Owner); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestCapSwept: Remove takes the groups of a run that was killed, those of others stay.
func TestCapSwept(t *testing.T) {
	p, threads := spinner(t)
	whose := owner()
	c := applyCap(t, Spec{Owner: whose, Host: "a", PID: p.PID(), Threads: threads, Percent: 20})
	other := applyCap(t, Spec{Owner: whose + "-x", Host: "b", PID: os.Getpid(), Percent: 20})
	if err := p.Kill(t.Context()); err != nil { // as Remove does with what runs on the hosts
		t.Fatal(err)
	}
	removed, err := Remove(t.Context(), whose)
	if err != nil || !slices.ContainsFunc(removed, func(r string) bool { return strings.HasPrefix(r, "CPU cap ") && strings.HasSuffix(r, c.spec.name()) }) {
		t.Errorf("removed %q, %v", removed, err)
	}
	if left, err := capGroups(mark.Prefix + whose + "-"); err != nil || len(left) != 1 || filepath.Base(left[0]) != other.spec.name() {
		t.Errorf("left: %v, %v", left, err)
	}
}

// readOnly is a host on which files cannot be written.
type readOnly struct{ host.Host }

func (readOnly) WriteFile(name string, _ []byte, _ fs.FileMode) error {
	return &fs.PathError{Op: "open", Path: name, Err: syscall.EROFS}
}

// TestCapRefused: what cannot be done is told in one line, and leaves nothing.
func TestCapRefused(t *testing.T) {
	whose := owner()
	s := Spec{Owner: whose, Host: "a", PID: os.Getpid(), Percent: 50}
	_, err := s.Apply(t.Context(), readOnly{host.Local()})
	missing := new(host.UnsupportedError)
	if !errors.As(err, &missing) || missing.Feature != "CPU cap" || missing.Mend == "" || strings.Contains(err.Error(), "\n") {
		t.Errorf("where nothing can be written: %v", err)
	}
	if left, err := capGroups(mark.Prefix + whose); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	for text, change := range map[string]func(*Spec){
		"least quota":              func(s *Spec) { s.Percent = 4 },
		"CPU cap of -5%":           func(s *Spec) { s.Percent = -5 },
		"at most":                  func(s *Spec) { s.Percent = 1 << 20 },
		"weight 101":               func(s *Spec) { s.Weight = 101 },
		"not an owner's":           func(s *Spec) { s.Owner = "../x" },
		"period 2s of a CPU cap":   func(s *Spec) { s.Period = 2 * time.Second },
		"period 1.5µs of a CPU":    func(s *Spec) { s.Period = 1500 * time.Nanosecond },
		"no such file or director": func(s *Spec) { s.PID = 1 << 30 },
	} {
		s := s
		change(&s)
		c, err := s.Apply(t.Context(), host.Local())
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%+v: %v, want %q", s, err, text)
		}
		if c != nil {
			c.Close()
		}
	}
}

func TestCPUTrees(t *testing.T) {
	const (
		first    = "24 23 0:20 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro\n25 24 0:21 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
		second   = "26 23 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
		part     = "27 23 0:22 /lxc/one /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
		blank    = "28 23 0:22 / /mnt/c\\040g rw - cgroup2 none rw\n"
		nothing  = "29 23 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
		ownFirst = "5:memory:/m\n3:cpu,cpuacct:/user.slice\n0::/user.slice/s.scope\n"
		own      = "0::/user.slice/s.scope\n"
	)
	for name, c := range map[string]struct {
		mounts, groups string
		want           []cgroups
	}{
		"v1":                   {first, ownFirst, []cgroups{{"v1", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/user.slice"}}},
		"v2":                   {second, own, []cgroups{{"v2", "/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/s.scope"}}},
		"both":                 {second + first, "0::/\n3:cpu,cpuacct:/\n", []cgroups{{"v1", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"}, {"v2", "/sys/fs/cgroup", "/sys/fs/cgroup"}}},
		"container":            {part, "0::/lxc/one/init.scope\n", []cgroups{{"v2", "/sys/fs/cgroup", "/sys/fs/cgroup/init.scope"}}},
		"other container":      {part, "0::/lxc/oneself\n", nil},
		"out of the namespace": {second, "0::/../other\n", nil},
		"blank":                {blank, own, []cgroups{{"v2", "/mnt/c g", "/mnt/c g/user.slice/s.scope"}}},
		"no controller":        {nothing, ownFirst, nil},
		"not mounted":          {"", own, nil},
		"noise":                {"x\n - \n", "x\n", nil},
	} {
		got, err := cpuTrees(func(file string) ([]byte, error) {
			if file == "/proc/self/mountinfo" {
				return []byte(c.mounts), nil
			}
			return []byte(c.groups), nil
		}, 7)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

// write writes a file of the kernel's. os.WriteFile would try to make a file that is not there, and be told that it may not.
func write(name, value string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// unified is what the guest of TestUnified does as its process 1: it mounts cgroup v2 and tries caps in each place that a process may be in.
func unified() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"cgroup2", "/sys/fs/cgroup"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[0], err)
		}
	}
	threads := make(chan int, 2)
	for range 2 {
		go func() {
			runtime.LockOSThread()
			threads <- unix.Gettid()
			for n := 0; ; n++ {
				_ = n
			}
		}()
	}
	ids := []int{<-threads, <-threads}
	const root = "/sys/fs/cgroup"
	put := func(group string) error {
		dir := filepath.Join(root, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		return write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(os.Getpid()))
	}
	for _, place := range []struct {
		name, group, controllers string
		on                       host.Host
		outer                    bool // the process gets a group of its own
	}{
		{"in the root, the controller off", "", "", host.Local(), true},
		{"below a slice with the controller", "slice/scope", "+cpu", host.Local(), true},
		{"in a scope of the user's, nothing above it to be written", "slice/scope", "", below{host.Local(), root + "/slice/scope"}, false},
	} {
		if err := put(place.group); err != nil {
			return fmt.Errorf("%s: %w", place.name, err)
		}
		if place.controllers != "" {
			_ = write(filepath.Join(root, "cgroup.subtree_control"), place.controllers)
			if err := write(filepath.Join(root, filepath.Dir(place.group), "cgroup.subtree_control"), place.controllers); err != nil {
				return fmt.Errorf("%s: %w", place.name, err)
			}
		}
		c, moved, err := capsThread(Spec{Owner: "test", Host: "a", PID: os.Getpid(), Percent: 30}, place.on, ids)
		if err != nil {
			return fmt.Errorf("%s: %w", place.name, err)
		}
		if c.Kind() != "v2" {
			return fmt.Errorf("%s: kind %s", place.name, c.Kind())
		}
		if moved != place.outer {
			return fmt.Errorf("%s: the whole process went into a group of its own: %v", place.name, moved)
		}
		fmt.Printf("cap holds: %s\n", place.name)
	}
	// The leftovers of a run that was killed.
	if err := put(""); err != nil {
		return err
	}
	cmd := self("spin")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	spinning := make([]int, 2)
	if _, err := fmt.Fscan(out, &spinning[0], &spinning[1]); err != nil {
		return err
	}
	if _, err := (Spec{Owner: "gone", Host: "b", PID: cmd.Process.Pid, Threads: spinning, Percent: 20}).Apply(context.Background(), host.Local()); err != nil {
		return err
	}
	killHard(cmd)
	ctx, cancel := context.WithTimeout(context.Background(), removeLimit)
	defer cancel()
	removed, err := Remove(ctx, "gone")
	if err != nil || len(removed) != 1 {
		return fmt.Errorf("swept %q, %v", removed, err)
	}
	fmt.Printf("swept: %s\n", removed[0])
	return nil
}

// below is a host on which only files below a folder may be written.
type below struct {
	host.Host
	dir string
}

func (b below) WriteFile(name string, data []byte, perm fs.FileMode) error {
	if !strings.HasPrefix(name, b.dir+"/") {
		return &fs.PathError{Op: "open", Path: name, Err: syscall.EACCES}
	}
	return b.Host.WriteFile(name, data, perm)
}

func (b below) MkdirAll(name string, perm fs.FileMode) error {
	if !strings.HasPrefix(name, b.dir+"/") {
		return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.EACCES}
	}
	return b.Host.MkdirAll(name, perm)
}
