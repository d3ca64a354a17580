package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/internal/netns"
)

// Like is what a process has in common with another one of this machine, whose user it is. Root starts it so: it has
// never more than the other has.
type Like struct {
	UID, GID        int
	Groups          []int  // supplementary
	Capabilities    uint64 // it can have no others; one bit each, as in /proc/PID/status
	NoNewPrivileges bool

	// Among is the process that it shares the root, the mounts and the process numbers with; nil: with us.
	Among   Process
	Network bool // it shares the network namespace of Among as well
}

// As is a host on which processes are started like another one, and the files that Log, MkdirAll,
// RemoveAll, ReadFile and WriteFile name are that user's. Names are ours, but those of a Command are names in the root
// of l.Among. Only root can do it.
func As(h Host, l Like) (Host, error) {
	switch h := h.(type) {
	case machine:
		h.like = &l
		return h, nil
	case *Far:
		return h.as(l), nil
	}
	return nil, fmt.Errorf("start processes as user %d on host %s: no host of a kind that can", l.UID, h.Name())
}

// start starts cmd, whose streams and environment are set, in dir.
func (l *Like) start(cmd *exec.Cmd, namespace, dir string, umask int) error {
	if cmd.Stdin == nil { // Start would look for it in the other root
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer null.Close()
		cmd.Stdin = null
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	owner := &syscall.Credential{Uid: uint32(l.UID), Gid: uint32(l.GID)}
	for _, g := range l.Groups {
		owner.Groups = append(owner.Groups, uint32(g))
	}
	cmd.SysProcAttr.Credential = owner
	return netns.OnOwnThread(func() error {
		// Root, working folder and umask become the thread's own.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if namespace != "" {
			ns, err := netns.Open(namespace)
			if err != nil {
				return err
			}
			defer unix.Close(ns)
			if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
				return os.NewSyscallError("setns", err)
			}
		}
		if err := l.enter(); err != nil {
			return err
		}
		if dir != "" { // by root: the other one may be in a folder that its user could not go to
			if err := unix.Chdir(dir); err != nil {
				return &fs.PathError{Op: "chdir", Path: dir, Err: err}
			}
		}
		unix.Umask(umask)
		if err := l.confine(); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// enter takes the thread to the namespaces and the root of l.Among.
func (l *Like) enter() error {
	if l.Among == nil {
		return nil
	}
	base := "/proc/" + strconv.Itoa(l.Among.PID())
	root, err := unix.Open(base+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: base + "/root", Err: err}
	}
	defer unix.Close(root)
	kinds := []struct {
		name string
		flag int
	}{{"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS}}
	if l.Network {
		kinds = append(kinds, struct {
			name string
			flag int
		}{"net", unix.CLONE_NEWNET})
	}
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	for _, k := range kinds {
		fd, err := unix.Open(base+"/ns/"+k.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: base + "/ns/" + k.name, Err: err}
		}
		open = append(open, fd)
	}
	// All of them are of that process if it is still there now.
	if st, err := readStat(l.Among.PID()); err != nil || st.Start != l.Among.StartTime() || st.State == 'Z' {
		return fmt.Errorf("process %d: %w", l.Among.PID(), os.ErrProcessDone)
	}
	for i, k := range kinds {
		if err := unix.Setns(open[i], k.flag); err != nil {
			return fmt.Errorf("enter the %s namespace of process %d: %w", k.name, l.Among.PID(), err)
		}
	}
	if err := unix.Fchdir(root); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	return os.NewSyscallError("chroot", unix.Chroot("."))
}

// confine takes from the thread the capabilities that the other process has not got.
func (l *Like) confine() error {
	const most = 63
	for c := range most {
		if l.Capabilities&(1<<c) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
				return os.NewSyscallError("prctl", err) // EINVAL: this kernel has no such capability
			}
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0 // takes the ambient ones along
	if err := unix.Capset(&head, &data[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	if l.NoNewPrivileges {
		return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	}
	return nil
}

// file runs f with the rights of the user, and a name for the file that cannot become another's: root opens its folder.
func (l *Like) file(name string, f func(name string) error) error {
	folder, err := unix.Open(filepath.Dir(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Dir(name), Err: err}
	}
	defer unix.Close(folder)
	return netns.OnOwnThread(func() error {
		if err := unix.Setgroups(l.Groups); err != nil { // this thread's; syscall.Setgroups would change all of them
			return os.NewSyscallError("setgroups", err)
		}
		if err := errors.Join(unix.Setfsgid(l.GID), unix.Setfsuid(l.UID)); err != nil {
			return fmt.Errorf("use files as user %d: %w", l.UID, err)
		}
		return f(fmt.Sprintf("/proc/self/fd/%d/%s", folder, filepath.Base(name)))
	})
}

// mkdir makes a folder that is the user's. Where that user may not make one, root does, if nobody else can have his
// hand in it.
func (l *Like) mkdir(name string, perm fs.FileMode) error {
	err := l.file(name, func(name string) error { return os.Mkdir(name, perm) })
	if !errors.Is(err, fs.ErrPermission) {
		return withName(err, name)
	}
	if err := rootsOwn(filepath.Dir(name)); err != nil {
		return fmt.Errorf("make %s for user %d: %w: give another folder, or make this one writable for that user", name,
			l.UID, err)
	}
	if err := os.Mkdir(name, perm); err != nil {
		return err
	}
	return os.Lchown(name, l.UID, l.GID)
}

// rootsOwn is nil if a folder, and each one on the way to it, can be changed by nobody but root.
func rootsOwn(folder string) error {
	folder, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return err
	}
	for ; ; folder = filepath.Dir(folder) {
		info, err := os.Lstat(folder)
		if err != nil {
			return err
		}
		const writable, sticky = 0o022, fs.ModeSticky
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Uid != 0 || info.Mode()&writable != 0 && info.Mode()&sticky == 0 {
			return fmt.Errorf("%s is not root's alone", folder)
		}
		if folder == "/" {
			return nil
		}
	}
}

// remove removes a folder that is the user's, also from where only root can make one.
func (l *Like) remove(name string) error {
	err := l.file(name, func(name string) error {
		all, err := os.ReadDir(name)
		if err != nil {
			return err
		}
		for _, e := range all {
			err = errors.Join(err, os.RemoveAll(filepath.Join(name, e.Name())))
		}
		return errors.Join(err, os.Remove(name))
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, fs.ErrPermission) && rootsOwn(filepath.Dir(name)) == nil {
		err = os.Remove(name)
	}
	return withName(err, name)
}

// open opens a file; a symbolic link is none.
func (l *Like) open(name string, flag int, perm fs.FileMode) (f *os.File, err error) {
	err = l.file(name, func(name string) error {
		f, err = os.OpenFile(name, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, perm)
		return err
	})
	return f, withName(err, name)
}

// withName puts the name that people know into an error.
func withName(err error, name string) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return &fs.PathError{Op: path.Op, Path: name, Err: path.Err}
	}
	return err
}
