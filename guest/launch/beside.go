package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
)

// owner is what /proc/PID/status says of whose a process is and what it may do.
type owner struct {
	uid, gid     int // that it acts as
	several      bool
	groups       []int
	has, can     uint64 // capabilities that it has, and those that it can get
	noPrivileges bool
	filters      int // of system calls
}

// parseOwner reads /proc/PID/status. Users and groups are those of our user namespace.
func parseOwner(status []byte) (o owner, err error) {
	numbers := func(name string, base int) (all []uint64) {
		for _, f := range strings.Fields(procfs.Value(status, name)) {
			n, bad := strconv.ParseUint(f, base, 64)
			err = errors.Join(err, bad)
			all = append(all, n)
		}
		return all
	}
	uids, gids := numbers("Uid", 10), numbers("Gid", 10) // real, effective, saved, for files
	has, can := numbers("CapPrm", 16), numbers("CapBnd", 16)
	if err == nil && (len(uids) != 4 || len(gids) != 4 || len(has) != 1 || len(can) != 1) {
		err = errors.New("its status names no user or no capabilities")
	}
	if err != nil {
		return o, err
	}
	o.uid, o.gid, o.has, o.can = int(uids[1]), int(gids[1]), has[0], can[0]
	o.several = len(slices.Compact(uids)) > 1 || len(slices.Compact(gids)) > 1
	for _, g := range numbers("Groups", 10) {
		o.groups = append(o.groups, int(g))
	}
	o.noPrivileges = slices.Contains(numbers("NoNewPrivs", 10), 1)
	if f := numbers("Seccomp_filters", 10); len(f) > 0 {
		o.filters = int(f[0])
	} else if slices.Contains(numbers("Seccomp", 10), 2) { // kernels before 5.9 do not count them
		o.filters = 1
	}
	return o, err
}

// label is what a security module has for a process; "" if there is none.
func label(who string) string {
	b, err := os.ReadFile("/proc/" + who + "/attr/current")
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(b), "\x00\n")
}

// inside is a path of ours as the process has it in its root. One that is not in there stays.
func (p *Process) inside(name string) string {
	if p.Root == "/" || p.Root == "" {
		return name
	}
	if rest, ok := strings.CutPrefix(name, p.Root); ok && (rest == "" || rest[0] == '/') {
		return filepath.Join("/", rest)
	}
	return name
}

// Beside says how root starts a second process like this one: as its user and, where it has files of its own, among
// them. It is nil where a process of ours is like it already. Among is for the caller to fill in where among is true.
func (p *Process) Beside() (like *host.Like, among bool, err error) {
	_, differs := p.otherFile()
	among = p.otherRoot || differs
	us, ours := os.Geteuid(), owner{}
	if self, err := ReadProcess(os.Getpid()); err == nil {
		ours = self.owner
	}
	allowed := 0 // QEMU makes one filter, and starts without it
	if slices.Contains(p.Args, "-sandbox") && !among {
		allowed = 1
	}
	refuse := func(format string, args ...any) (*host.Like, bool, error) {
		return nil, false, fmt.Errorf("process %d "+format, append([]any{p.PID}, args...)...)
	}
	switch {
	case us != 0 && (p.UID != us || among):
		return nil, false, fmt.Errorf("%w; or run it as root", p.Startable())
	case us != 0 || p.UID == 0 && !among && !p.owner.several && !p.otherUsers:
		return nil, false, p.Startable()
	case p.owner.several:
		return refuse("has more than one user or group (real, effective, saved): which of them its files and program are " +
			"of is not known; start the destination yourself")
	case p.otherUsers:
		return refuse("is in another user namespace: what it may do there cannot be given to a second one from here; " +
			"run qmigrate in that container, or start the destination yourself")
	case p.owner.filters > ours.filters+allowed:
		return refuse("has a filter of system calls (seccomp) that a second one would not have; " +
			"run qmigrate in that container or service, or start the destination yourself")
	case p.label != "":
		return refuse("is confined by a security module (%s), and a second one would not be; start the destination yourself",
			p.label)
	}
	if p.Changed {
		st, there := statAs(p.PID, p.Program)
		if !there {
			return nil, false, fmt.Errorf("%s, the program of process %d, has been removed: name another QEMU", p.Program, p.PID)
		}
		if st.Uid != 0 && int(st.Uid) != p.UID {
			return nil, false, fmt.Errorf("%s, the program of process %d, has been replaced by user %d: name another QEMU",
				p.Program, p.PID, st.Uid)
		}
	} else if among {
		var exe unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", p.PID), &exe); err != nil {
			return refuse("does not show its program: %w", err)
		}
		if id, there := fileAs(p.PID, p.Args[0]); !there || id != (fileID{exe.Dev, exe.Ino}) {
			return refuse("has a program, %s, that is not in its root, so it went there later, as with -chroot; "+
				"start the destination yourself", p.Args[0])
		}
	}
	can := p.owner.can
	if p.UID == 0 { // what it can get, root has from the start
		can = p.owner.has
	}
	return &host.Like{UID: p.UID, GID: p.owner.gid, Groups: p.owner.groups, Capabilities: can,
		NoNewPrivileges: p.owner.noPrivileges}, among, nil
}

// Folder is the name that a folder, which need not be there yet, has for the process.
func (p *Process) Folder(name string) (string, error) {
	parent, base := filepath.Split(filepath.Clean(name))
	proc := fmt.Sprintf("/proc/%d/root", p.PID)
	var ours unix.Stat_t
	if err := unix.Stat(parent, &ours); err != nil {
		return "", &os.PathError{Op: "stat", Path: parent, Err: err}
	}
	for _, root := range []string{proc, p.Root, ""} {
		rest, ok := strings.CutPrefix(parent, root)
		if theirs, there := fileAs(p.PID, rest); ok && there && theirs == (fileID{ours.Dev, ours.Ino}) {
			return filepath.Join("/", rest, base), nil
		}
	}
	where := p.Root
	if where == "/" || p.otherMounts {
		where = proc
	}
	return "", fmt.Errorf("process %d has other files than ours, and cannot see %s: give a folder in one that it has, such as "+
		"unix:%s/tmp/%s", p.PID, name, where, base)
}

// otherFile finds a word of the command line that names another file for the process than for us.
func (p *Process) otherFile() (string, bool) {
	if !p.otherMounts {
		return "", false
	}
	for _, arg := range p.Args {
		for _, piece := range strings.FieldsFunc(arg, func(r rune) bool { return strings.ContainsRune(`,=:"`, r) }) {
			if !strings.HasPrefix(piece, "/") {
				continue
			}
			theirs, there := fileAs(p.PID, piece)
			ours, here := fileAs(os.Getpid(), piece)
			if there && (!here || theirs != ours) && !strings.HasPrefix(piece, "/proc/") {
				return piece, true
			}
		}
	}
	return "", false
}

// fileAs is the file that a path names for a process, in its root and its mount namespace.
func fileAs(pid int, name string) (fileID, bool) {
	st, ok := statAs(pid, name)
	return fileID{st.Dev, st.Ino}, ok
}

func statAs(pid int, name string) (st unix.Stat_t, ok bool) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return st, false
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return st, false
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st) == nil
}
