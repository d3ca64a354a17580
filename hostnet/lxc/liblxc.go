package lxc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/mark"
	"qmigrate/internal/procfs"
)

// Control groups of a liblxc container, as its configuration names them: by them its processes are found, whoever
// started them, and whether or not liblxc still knows of it.
const (
	payloadGroup = "lxc.payload."
	monitorGroup = "lxc.monitor."
)

func checkLibLXC() error {
	for _, program := range []string{"lxc-start", "lxc-info", "lxc-attach"} {
		if _, err := exec.LookPath(program); err != nil {
			return &host.UnsupportedError{Feature: "containers by liblxc", Reason: program + " is not installed",
				Mend: "as root run `apt install lxc`"}
		}
	}
	if os.Geteuid() != 0 {
		return &host.UnsupportedError{Feature: "containers by liblxc", Reason: "not root", Mend: "run as root"}
	}
	return nil
}

// applyLibLXC makes the containers by liblxc, on a link of hostnet's.
func (s Spec) applyLibLXC(ctx context.Context, n *Network) (err error) {
	found, err := liblxcNames()
	if err != nil {
		return err
	}
	for _, name := range found {
		if o, ok := mark.Owner(name); ok && o == s.Owner {
			return fmt.Errorf("container %s is there already", name)
		}
	}
	n.remove = func(ctx context.Context) error {
		_, err := removeLibLXC(ctx, s.Owner)
		return errors.Join(err, os.RemoveAll(s.lxcPath()))
	}
	if n.Network, err = s.Link(ctx); err != nil {
		return err
	}
	program, err := s.Pool.Program()
	if err != nil {
		return err
	}
	var ids idRange
	if s.Unprivileged {
		ids = rootsRange()
	}
	return n.start(ctx, func(name string) (host.Process, error) {
		return (&container{spec: s, name: name, program: program, ids: ids}).start(ctx)
	})
}

// lxcPath is where liblxc finds the containers' configurations.
func (s Spec) lxcPath() string { return filepath.Join(s.Dir, "lxc") }

// container is one of liblxc's being made.
type container struct {
	spec    Spec
	name    string
	program []byte  // the helper, which is the container's first process too
	ids     idRange // zero: privileged
}

// start starts it and gives its first process.
func (c *container) start(ctx context.Context) (host.Process, error) {
	folder := filepath.Join(c.spec.lxcPath(), c.name)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(folder, "config"), []byte(c.config()), 0o644); err != nil {
		return nil, err
	}
	for _, name := range []string{c.spec.lxcPath(), folder} { // the container's root may be nobody here
		if err := os.Chmod(name, 0o755); err != nil {
			return nil, err
		}
	}
	log := filepath.Join(folder, "log")
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "lxc-start", "-P", c.spec.lxcPath(), "-n", c.name, "-d", "-o", log, "-l", "WARN")
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &said, &said, time.Second
	if err := c.startIn(cmd); err != nil {
		return nil, fmt.Errorf("make the files of container %s: %w", c.name, err)
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		b, _ := os.ReadFile(log)
		return nil, fmt.Errorf("start container %s: %w: %s", c.name, err, firstError(string(b), said.String()))
	}
	out, err := exec.CommandContext(ctx, "lxc-info", "-P", c.spec.lxcPath(), "-n", c.name, "-p", "-H").Output()
	if err != nil {
		return nil, fmt.Errorf("look at container %s: %w", c.name, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return nil, fmt.Errorf("look at container %s: its first process is %q: it has ended", c.name, out)
	}
	started, err := host.StartTime(pid)
	if err != nil {
		return nil, fmt.Errorf("look at container %s: %w", c.name, err)
	}
	return host.FindProcess(pid, started)
}

// firstError is the first line that liblxc's log has as an error, without its time and place.
func firstError(log, said string) string {
	for line := range strings.Lines(log) {
		if _, what, ok := strings.Cut(line, " ERROR "); ok {
			if i := strings.LastIndex(what, " - "); i >= 0 && strings.Contains(what[:i], " - ") {
				head := what[:i]
				return strings.TrimSpace(what[strings.LastIndex(head, " - ")+3:])
			}
			return strings.TrimSpace(what)
		}
	}
	lines := strings.Split(strings.TrimSpace(said), "\n")
	return lines[0]
}

// config is liblxc's configuration of the container. The files are made before: see startIn.
func (c *container) config() string {
	var b strings.Builder
	set := func(key, value string) { fmt.Fprintf(&b, "lxc.%s = %s\n", key, value) }
	set("uts.name", c.name)
	set("rootfs.path", "dir:"+stage+"/root")
	set("init.cmd", initProgram+" init")
	set("net.0.type", "empty") // its device comes from the link
	set("mount.auto", "proc:rw sys:rw cgroup:rw:force")
	set("mount.entry", "none dev/shm tmpfs rw,nosuid,nodev,create=dir,mode=1777 0 0")
	set("pty.max", "64")
	for d := range deviceNumbers() {
		set("mount.entry", fmt.Sprintf("%s/dev/%s dev/%s none bind,create=file 0 0", stage, d, d))
	}
	set("cap.drop", "")
	set("apparmor.profile", "unconfined")
	set("cgroup.dir.container", payloadGroup+c.name)
	set("cgroup.dir.monitor", monitorGroup+c.name)
	if c.ids != (idRange{}) {
		set("idmap", fmt.Sprintf("u 0 %d %d", c.ids.uid, c.ids.n))
		set("idmap", fmt.Sprintf("g 0 %d %d", c.ids.gid, c.ids.n))
	}
	return b.String()
}

// idRange is the users and groups of this machine that an unprivileged container has: n from uid and from gid.
type idRange struct{ uid, gid, n int }

// rootsRange is what root may give to a container, by subuid(5) and subgid(5). liblxc's newuidmap asks there too.
func rootsRange() idRange {
	r := idRange{100_000, 100_000, 65_536}
	for file, first := range map[string]*int{"/etc/subuid": &r.uid, "/etc/subgid": &r.gid} {
		b, _ := os.ReadFile(file)
		for line := range strings.Lines(string(b)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) != 3 || f[0] != "root" {
				continue
			}
			from, err := strconv.Atoi(f[1])
			n, countErr := strconv.Atoi(f[2])
			if err == nil && countErr == nil && n >= r.n {
				*first = from
				break
			}
		}
	}
	return r
}

// removeLibLXC ends every process of an owner's containers, and removes what liblxc made for them.
func removeLibLXC(ctx context.Context, owner string) (removed []string, err error) {
	var names []string
	mine := func(name string) bool {
		if o, ok := mark.Owner(name); !ok || o != owner {
			return false
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		return true
	}
	for {
		found, err := processesOf(mine)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 { // nobody is left who could fork
			break
		}
		for _, p := range found {
			if err := p.Kill(ctx); err != nil {
				return nil, err
			}
		}
	}
	err = eachGroup(func(folder, name string) error {
		if !mine(name) {
			return nil
		}
		return removeGroup(ctx, folder)
	})
	err = errors.Join(err, removeLocks(func(name string) bool { o, ok := mark.Owner(name); return ok && o == owner }))
	slices.Sort(names)
	for _, name := range names {
		removed = append(removed, "container "+name)
	}
	return removed, err
}

// removeLocks removes liblxc's lock files of some containers: it leaves them, and the folders that they are in.
func removeLocks(mine func(name string) bool) error {
	const locks = "/run/lxc/lock"
	var errs []error
	_ = filepath.WalkDir(locks, func(path string, d fs.DirEntry, err error) error {
		name, dot := strings.CutPrefix(filepath.Base(path), ".")
		if err != nil || d.IsDir() || !dot || !mine(name) {
			return nil
		}
		errs = append(errs, os.Remove(path))
		for folder := filepath.Dir(path); folder != locks && os.Remove(folder) == nil; folder = filepath.Dir(folder) {
		}
		return nil
	})
	return errors.Join(errs...)
}

// liblxcNames are the containers with a mark of ours that have a control group here.
func liblxcNames() (names []string, err error) {
	err = eachGroup(func(_, name string) error {
		if strings.HasPrefix(name, mark.Prefix) {
			names = append(names, name)
		}
		return nil
	})
	slices.Sort(names)
	return slices.Compact(names), err
}

// containerOf is the name of the container that a control group is one of.
func containerOf(group string) (name string, ok bool) {
	if name, ok = strings.CutPrefix(group, payloadGroup); !ok {
		name, ok = strings.CutPrefix(group, monitorGroup)
	}
	return name, ok
}

// processesOf finds the processes of some containers, except us: those that are in one's control groups or below, and
// liblxc's that start one or watch over it.
func processesOf(mine func(name string) bool) (found []host.Process, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	inside := func(pid int) bool {
		groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		for part := range strings.FieldsFuncSeq(string(groups), func(r rune) bool { return r == '/' || r == '\n' }) {
			if name, ok := containerOf(part); ok && mine(name) {
				return true
			}
		}
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if i := slices.Index(words, "-n"); filepath.Base(words[0]) == "lxc-start" && i >= 0 && i+1 < len(words) {
			return mine(words[i+1])
		}
		if title, ok := strings.CutPrefix(words[0], "[lxc monitor] "); ok { // a folder and a name
			return mine(title[strings.LastIndexByte(title, ' ')+1:])
		}
		return false
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !inside(pid) {
			continue
		}
		st, err := procfs.Process(pid).Stat(os.ReadFile)
		if err != nil || st.State == 'Z' {
			continue
		}
		p, err := host.FindProcess(pid, st.Start)
		if err != nil || !inside(pid) { // gone, or another process by now
			continue
		}
		found = append(found, p)
	}
	return found, nil
}

// eachGroup goes through the control groups of containers in all of this machine's hierarchies.
func eachGroup(f func(folder, name string) error) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(mounts)) {
		head, tail, ok := strings.Cut(line, " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 5 || len(t) < 1 || t[0] != "cgroup" && t[0] != "cgroup2" {
			continue
		}
		err := filepath.WalkDir(h[4], func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return fs.SkipDir // it went while we looked, or is nothing of ours
			}
			if !d.IsDir() {
				return nil
			}
			if container, ok := containerOf(d.Name()); ok {
				errs = append(errs, f(name, container))
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeGroup removes a control group and those in it. Their processes are dead, and may still be on their way out.
func removeGroup(ctx context.Context, folder string) error {
	for {
		var below []string
		_ = filepath.WalkDir(folder, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				below = append(below, name)
			}
			return nil
		})
		var err error
		for _, name := range slices.Backward(below) {
			if e := unix.Rmdir(name); e != nil && e != unix.ENOENT {
				err = &fs.PathError{Op: "rmdir", Path: name, Err: e}
			}
		}
		if err == nil || ctx.Err() != nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	}
}
