package launch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"qmigrate/guest/debian"
	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
)

// Process is what /proc says of a process of a host: what a second one like it must be started with. It is data, and
// can be asked of another host: see Look.
type Process struct {
	PID int
	// Program is the file that runs, in its root; a dynamic linker that runs it is looked through. "" if it may not be
	// looked at.
	Program string
	Changed bool     // that file is not there any more: removed, or replaced by another, as an upgrade does
	Args    []string // the command line, with Program and before it the linker in place of how it was called
	Env     []string // all of its environment but what a service manager gave to it alone
	Dir     string   // its working folder; with -daemonize, which leaves it, the one that it was started in
	Root    string   // its root as we see it, or as its own mounts have it; "/" if it is not moved
	UID     int      // the user that it acts as
	Cgroup  string   // content of /proc/PID/cgroup
	Limits  Limits
	Network uint64 // its network namespace; equal numbers are one

	owner                              owner
	label                              string // what its security module has for it, if not what we have
	otherRoot, otherMounts, otherUsers bool
}

// Limits are what a process may have; nil is no limit.
type Limits struct {
	Files  *int64 // open at a time
	Locked *int64 // bytes of locked memory
	Space  *int64 // bytes of address space
}

// ReadProcess looks at a process. One that may not be looked at has no Program, which is no error.
func ReadProcess(pid int) (*Process, error) {
	p := &Process{PID: pid}
	base := fmt.Sprintf("/proc/%d", pid)
	exe, err := os.Readlink(base + "/exe")
	if err != nil {
		return p, nil
	}
	exe, p.Changed = strings.CutSuffix(exe, " (deleted)")
	read := func(name string) (b []byte) {
		if err == nil {
			b, err = os.ReadFile(base + "/" + name)
		}
		return b
	}
	cmdline, environ, status, limits := read("cmdline"), read("environ"), read("status"), read("limits")
	p.Cgroup = string(read("cgroup"))
	if err == nil {
		p.Dir, err = os.Readlink(base + "/cwd")
	}
	if err == nil {
		p.Root, err = os.Readlink(base + "/root")
	}
	if err == nil {
		p.owner, err = parseOwner(status)
		p.UID = p.owner.uid
	}
	if err == nil {
		p.Limits, err = parseLimits(limits)
	}
	if err == nil {
		err = p.namespaces()
	}
	if err != nil {
		return nil, fmt.Errorf("look at process %d: %w", pid, err)
	}
	if strings.HasSuffix(p.Dir, " (deleted)") {
		p.Dir = "/" // relative names are those of nothing any more
	}
	exe, p.Dir = p.inside(exe), p.inside(p.Dir)
	args := procfs.Args(cmdline)
	p.Env, p.Dir = environment(procfs.Args(environ), args, p.Dir)
	by, rest := debian.SplitLoader(args)
	switch {
	case len(args) == 0:
		p.Program = exe
	case len(by) > 0 && debian.IsLoader(exe):
		p.Program = rest[0]
		if !filepath.IsAbs(p.Program) {
			p.Program = filepath.Join(p.Dir, p.Program)
		}
		by[0] = exe
		p.Args = append(append(by, p.Program), rest[1:]...)
		p.Changed = p.Changed || removed(read("maps"), p.Program)
	default:
		p.Program = exe
		p.Args = append([]string{exe}, args[1:]...)
	}
	return p, nil
}

// Command is what starts the program: its path, and before it the dynamic linker that runs it, if one does.
func (p *Process) Command() []string {
	by, _ := debian.SplitLoader(p.Args)
	return append(by, p.Program)
}

// IsQEMU tells a QEMU by its name: qemu-system-x86_64, qemu-kvm, .qemu-system-x86_64-wrapped.
func (p *Process) IsQEMU() bool { return strings.Contains(filepath.Base(p.Program), "qemu") }

// Parts are the variables of its environment that tell a program where its parts are.
func (p *Process) Parts() []string {
	return slices.DeleteFunc(slices.Clone(p.Env), func(v string) bool { return !isPart(v) })
}

// EnvFor is the environment for another program: all but where the parts of this one are.
func (p *Process) EnvFor() []string { return slices.DeleteFunc(slices.Clone(p.Env), isPart) }

func isPart(v string) bool { return strings.HasPrefix(v, "LD_") || strings.HasPrefix(v, "QEMU_") }

// Startable says why a second process like this one cannot be started by us, here.
func (p *Process) Startable() error {
	switch us := os.Geteuid(); {
	case p.UID != us:
		return fmt.Errorf("process %d runs as user %d, and we are user %d: its program and files are that user's; "+
			"run qmigrate as that user", p.PID, p.UID, us)
	case p.otherRoot:
		return fmt.Errorf("process %d runs in a container or a chroot: its program and files are not those of this root; "+
			"run qmigrate there, or start the destination yourself", p.PID)
	}
	if p.Changed {
		info, err := os.Stat(p.Program)
		if err != nil {
			return fmt.Errorf("%s, the program of process %d, has been removed: name another QEMU", p.Program, p.PID)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("%s, the program of process %d, has been replaced by user %d: name another QEMU",
				p.Program, p.PID, st.Uid)
		}
	}
	if name, other := p.otherFile(); other {
		return fmt.Errorf("process %d has mounts of its own: %s is another file for it than here; "+
			"start the destination yourself", p.PID, name)
	}
	return nil
}

// ReadFile reads a file of the process's host as the process sees it: in its root, from its working folder.
func (p *Process) ReadFile(at host.Host, name string) ([]byte, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(p.Dir, name)
	}
	return at.ReadFile(filepath.Join(fmt.Sprintf("/proc/%d/root", p.PID), name))
}

// Manager names the service manager that owns the process and may start it again when it ends; "" if none is seen.
func (p *Process) Manager() string { return manager(p.Cgroup) }

// manager reads /proc/PID/cgroup. Units of a user's session, and scopes, which nobody starts again, do not count.
func manager(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		parts := strings.Split(strings.TrimSpace(line), "/")
		for i, part := range slices.Backward(parts) {
			name, scope := strings.CutSuffix(part, ".scope")
			switch {
			case scope && i > 0 && parts[i-1] == "qemu.slice":
				return "Proxmox VE (VM " + name + ")"
			case scope && strings.HasPrefix(name, "machine-qemu"):
				return "libvirt (" + part + ")"
			case strings.HasSuffix(part, ".service") && !strings.HasPrefix(part, "user@"):
				return "systemd (" + part + ")"
			case scope:
				return ""
			}
		}
	}
	return ""
}

// statID is the file, or the namespace, that a name leads to.
func statID(name string) (id fileID, err error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return id, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return fileID{st.Dev, st.Ino}, nil
}

// namespaces compares the process's with ours.
func (p *Process) namespaces() error {
	var errs []error
	of := func(who, what string) fileID {
		f, err := statID("/proc/" + who + "/" + what)
		errs = append(errs, err)
		return f
	}
	it := strconv.Itoa(p.PID)
	p.otherRoot = of(it, "root") != of("self", "root")
	p.otherMounts = of(it, "ns/mnt") != of("self", "ns/mnt")
	p.otherUsers = of(it, "ns/user") != of("self", "ns/user")
	if theirs := label(it); theirs != label("self") && !strings.HasPrefix(theirs, "unconfined") {
		p.label = theirs
	}
	p.Network = of(it, "ns/net").ino
	return errors.Join(errs...)
}

// environment is what a second process is to have of a first one's, and the folder to start it in.
func environment(env, args []string, cwd string) (keep []string, dir string) {
	dir = cwd
	daemon := slices.ContainsFunc(args, func(a string) bool { return a == "-daemonize" || a == "--daemonize" })
	for _, v := range env {
		name, value, ok := strings.Cut(v, "=")
		switch name {
		case "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC",
			"INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MAINPID":
			continue
		case "PWD":
			if daemon && filepath.IsAbs(value) {
				dir = value
			}
		}
		if ok {
			keep = append(keep, v)
		}
	}
	return keep, dir
}

// parseLimits reads /proc/PID/limits.
func parseLimits(b []byte) (l Limits, err error) {
	for name, to := range map[string]**int64{"Max open files": &l.Files, "Max locked memory": &l.Locked,
		"Max address space": &l.Space} {
		if *to, err = procfs.SoftLimit(b, name); err != nil {
			return Limits{}, err
		}
	}
	return l, nil
}

// removed reports whether a file that /proc/PID/maps names has been removed since.
func removed(maps []byte, name string) bool {
	return bytes.Contains(maps, []byte(" "+name+" (deleted)\n"))
}
