package hostnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/netns"
	"qmigrate/internal/procfs"
)

// marker is the environment variable that tells a copy of this program, started by itself in new namespaces, what it
// is.
const (
	marker      = "QMIGRATE_HOSTNET"
	markReexec  = "reexec" // made by Reexec, namespaces still bare
	markInside  = "inside" // the same, set up
	markCheck   = "check"  // made by Check: answer what works here
	markNothing = "exit"   // made by Check, to see whether it can be made
	checkFlag   = "-qmigrate.hostnet.check"
)

// Main must be the first call of main (and of TestMain): in a copy of the program that Check or a host started it does
// its work and exits; otherwise it does nothing.
func Main() {
	host.Main()
	switch os.Getenv(marker) {
	case markCheck:
		os.Exit(answerCheck(os.Stdout))
	case markNothing:
		os.Exit(0)
	}
}

// Inside says whether this program runs in namespaces that Reexec made: root there, the user elsewhere. What needs the
// real root (userfaultfd, other users' namespaces, physical devices) does not work.
func Inside() bool {
	m := os.Getenv(marker)
	return (m == markReexec || m == markInside) && os.Geteuid() == 0 && inUserNamespace()
}

// inUserNamespace: the first user namespace maps all of the numbers to themselves.
func inUserNamespace() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false // a kernel without user namespaces
	}
	ids, err := procfs.ParseIDs(data)
	return err != nil || !slices.Equal(ids, []procfs.IDs{{Count: math.MaxUint32}})
}

// privileged says whether network namespaces can be made and named as we are.
func privileged() bool {
	if os.Geteuid() != 0 {
		return false
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN
	return data[0].Effective&need == need
}

// Reexec makes this program root where it is not, without becoming root: it starts the program anew, with the same
// arguments and standard streams, in a user, a mount and a network namespace of its own, in which the user is uid 0.
// The first process only waits: it passes signals on, and done is true with the exit status to leave with. In the
// second one, and for the real root, done is false and the caller goes on with its work.
//
// In there /run is private: what was in it is still in it, except the named network namespaces, and what is made in it
// is gone with the last process. The network has a loopback and nothing else: whatever has to come from outside must be
// fetched before. If the first process is killed, the second one gets a SIGTERM, so that it undoes its work.
//
// Where user namespaces are not to be had the error is an *UnsupportedError.
func Reexec() (exitStatus int, done bool, err error) {
	if Inside() {
		return 0, false, setUpInside()
	}
	if privileged() {
		return 0, false, nil
	}
	// The kernel sends the parent-death signal when the thread that forked ends: it is to be this one, and to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := inNewNamespaces(os.Args[1:], markReexec)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A process group of its own: a terminal's Ctrl-C would otherwise come twice, from the terminal and from us.
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM

	var passed []os.Signal
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGWINCH, unix.SIGTSTP, unix.SIGCONT} {
		if !signal.Ignored(s) { // nohup's wish is the new process's too
			passed = append(passed, s)
		}
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passed...)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, false, noUserNamespaces(err)
	}
	finished := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case s := <-signals:
				_ = cmd.Process.Signal(s) // it may have ended just now
				if s == unix.SIGTSTP {
					_ = unix.Kill(os.Getpid(), unix.SIGSTOP) // as a terminal's Ctrl-Z would have done
				}
			case <-finished:
				return
			}
		}
	}()
	err = cmd.Wait()
	close(finished)
	<-stopped
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() {
			return 128 + int(w.Signal()), true, nil
		}
		return exit.ExitCode(), true, nil
	}
	if err != nil {
		return 0, true, fmt.Errorf("wait for the process in new namespaces: %w", err)
	}
	return 0, true, nil
}

// inNewNamespaces is this program, to be started in new user, mount and network namespaces.
func inNewNamespaces(args []string, mark string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), marker+"="+mark)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	return cmd
}

// setUpInside furnishes the new namespaces, once.
func setUpInside() error {
	if os.Getenv(marker) == markInside {
		return nil
	}
	if err := privateRun(); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			return noUserNamespaces(err)
		}
		return fmt.Errorf("make a private /run: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return os.Setenv(marker, markInside)
}

// privateRun mounts a tmpfs on /run, for /run/netns is not the user's to write in, and binds into it all that /run had
// (/run/user, the resolver's files, sockets of services), except netns.
func privateRun() error {
	const run = "/run"
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	old, err := unix.Open(run, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: run, Err: err}
	}
	defer unix.Close(old)
	entries, err := os.ReadDir(run)
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return &fs.PathError{Op: "mount tmpfs", Path: run, Err: err}
	}
	for _, e := range entries {
		from, to := fmt.Sprintf("/proc/self/fd/%d/%s", old, e.Name()), filepath.Join(run, e.Name())
		// What cannot be had is left out: nothing of it is needed here, and the user misses it where he uses it.
		switch {
		case to == netns.Folder:
		case e.Type()&fs.ModeSymlink != 0:
			if target, err := os.Readlink(from); err == nil {
				_ = os.Symlink(target, to)
			}
		case e.IsDir():
			if os.Mkdir(to, 0o755) == nil && unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "") != nil {
				_ = os.Remove(to)
			}
		default:
			if os.WriteFile(to, nil, 0o600) == nil && unix.Mount(from, to, "", unix.MS_BIND, "") != nil {
				_ = os.Remove(to)
			}
		}
	}
	return os.MkdirAll(netns.Folder, 0o755)
}

// noUserNamespaces explains why a process in a new user namespace could not be made. See user_namespaces(7), clone(2).
func noUserNamespaces(err error) error {
	e := &host.UnsupportedError{Feature: "user namespaces", Err: err}
	const orRoot = ", or run as root"
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		e.Reason = "not root, and no more user namespaces may be made"
		e.Mend = "as root run `sysctl user.max_user_namespaces=10000`" + orRoot
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Reason = "not root, and user namespaces are forbidden to other users"
		e.Mend = "as root run `sysctl kernel.unprivileged_userns_clone=1` (Debian) or `sysctl " +
			"kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu)" + orRoot +
			"; a container needs them allowed by its system call filter"
		for name, bad := range map[string]string{"kernel/unprivileged_userns_clone": "0",
			"kernel/apparmor_restrict_unprivileged_userns": "1"} {
			if value, readErr := os.ReadFile("/proc/sys/" + name); readErr == nil && string(bytes.TrimSpace(value)) == bad {
				key := filepath.Base(name)
				e.Reason = "not root, and user namespaces are forbidden to other users: kernel." + key + " is " + bad
				e.Mend = "as root run `sysctl kernel." + key + "=" + map[string]string{"0": "1", "1": "0"}[bad] + "`" + orRoot
			}
		}
	case errors.Is(err, unix.EINVAL):
		e.Reason = "not root, and this kernel has no user namespaces"
		e.Mend = "use a kernel with CONFIG_USER_NS" + orRoot
	default:
		e.Reason = "not root, and no process could be made in new namespaces"
		e.Mend = "run as root"
	}
	return e
}

// noNamespaces explains why Apply made no namespace.
func noNamespaces(err error) error {
	e := &host.UnsupportedError{Feature: "network namespaces", Err: err, Reason: "this user may not make them",
		Mend: "run as root"}
	if os.Geteuid() == 0 {
		e.Reason = "root here lacks CAP_SYS_ADMIN or CAP_NET_ADMIN"
		e.Mend = "give the container these capabilities (docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt " +
			"apparmor=unconfined)"
	}
	return e
}

// startsInUserNamespace tries whether a process in new namespaces can be made.
func startsInUserNamespace(ctx context.Context) error {
	cmd := inNewNamespaces([]string{checkFlag}, markNothing)
	if err := cmd.Start(); err != nil {
		return noUserNamespaces(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	_ = cmd.Wait() // that it began is the answer
	return nil
}
