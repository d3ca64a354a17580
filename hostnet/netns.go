package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// namespaces is where named network namespaces are, by the convention of ip-netns(8): an empty file each, with the
// namespace mounted on it.
const namespaces = "/run/netns"

func namespacePath(name string) string { return filepath.Join(namespaces, name) }

// inNamespace runs f on a thread that is in the named network namespace. The thread goes back to its own namespace and
// to the pool afterwards; if it cannot, it ends with its goroutine and nothing else ever runs on it.
func inNamespace(name string, f func() error) error {
	return onThread(func() error {
		ns, err := openNamespace(name)
		if err != nil {
			return err
		}
		defer unix.Close(ns)
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

// onThread runs f, which may change its thread's network namespace, on a thread locked to it, and takes the thread
// back afterwards. New threads are not born from a locked one (the Go runtime sees to it), so none inherits what f did.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		err := errors.New("the thread in the namespace exited")
		defer func() { result <- err }()
		runtime.LockOSThread()
		home, openErr := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if openErr != nil {
			err = &fs.PathError{Op: "open", Path: "/proc/thread-self/ns/net", Err: openErr}
			runtime.UnlockOSThread()
			return
		}
		defer unix.Close(home)
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the goroutine ends locked, and the runtime ends the thread
		}
	}()
	return <-result
}

// openNamespace opens the named namespace; a file that no namespace is mounted on does not exist, as far as we go.
func openNamespace(name string) (int, error) {
	path := namespacePath(name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.NSFS_MAGIC {
		unix.Close(fd)
		return -1, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return fd, nil
}

// createNamespace makes a named network namespace; made is false if it is there already.
func createNamespace(name string) (made bool, err error) {
	if fd, err := openNamespace(name); err == nil {
		return false, unix.Close(fd)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.MkdirAll(namespaces, 0o755); err != nil {
		return false, err
	}
	path := namespacePath(name)
	// A former run may have died between making the file and mounting on it: then the file is there and is ours.
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return false, err
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		return os.NewSyscallError("mount", unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""))
	})
	if err != nil {
		return false, errors.Join(err, os.Remove(path))
	}
	return true, nil
}

// deleteNamespace ends the processes in a named namespace and removes the name; the kernel then removes the namespace
// with all that is in it. It says what it removed. No such namespace is no error.
func deleteNamespace(ctx context.Context, name string) (removed []string, err error) {
	path := namespacePath(name)
	if fd, err := openNamespace(name); err == nil {
		unix.Close(fd)
		removed, err = killAll(ctx, path)
		if err != nil {
			// The name stays: it is the only way back to a process that would not die.
			return removed, fmt.Errorf("remove namespace %s: %w", name, err)
		}
		// Detached, for someone may be looking at it. Unlinking the file takes copies in other mount namespaces along.
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return removed, fmt.Errorf("remove namespace %s: %w", name, os.NewSyscallError("umount", err))
		}
	}
	switch err := os.Remove(path); {
	case err == nil:
		removed = append(removed, "namespace "+name)
	case !errors.Is(err, fs.ErrNotExist):
		return removed, fmt.Errorf("remove namespace %s: %w", name, err)
	}
	return removed, nil
}

// killAll kills every process, except us, whose main thread is in the namespace at path, and waits until they are dead.
func killAll(ctx context.Context, path string) (killed []string, err error) {
	want, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	for {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return killed, err
		}
		found := 0
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			inside := func() bool {
				have, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
				return err == nil && os.SameFile(have, want)
			}
			if !inside() {
				continue
			}
			st, err := readStat(pid)
			if err != nil {
				continue
			}
			p, err := findProcess(pid, st.Start)
			if err != nil || !inside() { // gone, or another process by now
				continue
			}
			found++
			if err := p.Kill(ctx); err != nil {
				return killed, err
			}
			killed = append(killed, fmt.Sprintf("process %d (%s) in %s", pid, st.Name, filepath.Base(path)))
		}
		if found == 0 { // nobody is left who could fork
			return killed, nil
		}
	}
}

// namesWith lists the named namespaces, debris included, that begin with prefix.
func namesWith(prefix string) ([]string, error) {
	entries, err := os.ReadDir(namespaces)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
