// Package netns makes, lists and enters named network namespaces, as ip-netns(8) does. What is in a namespace is no
// matter of this package. Only hostnet and hostnet/host import it.
package netns

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// namespaces is where named network namespaces are, by the convention of ip-netns(8): an empty file each, with the
// namespace mounted on it.
const Folder = "/run/netns"

// Path is the file of a named namespace.
func Path(name string) string { return filepath.Join(Folder, name) }

// inNamespace runs f on a thread that is in the named network namespace. The thread goes back to its own namespace and
// to the pool afterwards; if it cannot, it ends with its goroutine and nothing else ever runs on it.
func In(name string, f func() error) error {
	return OnThread(func() error {
		ns, err := Open(name)
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

// OnThread runs f, which may change its thread's network namespace, on a thread locked to it, and takes the thread
// back afterwards. New threads are not born from a locked one (the Go runtime sees to it), so none inherits what f did.
func OnThread(f func() error) error {
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

// OnOwnThread runs f on a thread that nothing else ever runs on: it ends with f, and with it all that f made of it. It
// is never the main thread, which cannot end, and whose namespaces and root are what /proc/self shows.
func OnOwnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			result <- OnOwnThread(f) // elsewhere, because this one is taken
			runtime.UnlockOSThread()
			return
		}
		err := errors.New("the thread exited")
		defer func() { result <- err }()
		err = f()
	}()
	return <-result
}

// openNamespace opens the named namespace; a file that no namespace is mounted on does not exist, as far as we go.
func Open(name string) (int, error) {
	path := Path(name)
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
func Create(name string) (made bool, err error) {
	if fd, err := Open(name); err == nil {
		return false, unix.Close(fd)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.MkdirAll(Folder, 0o755); err != nil {
		return false, err
	}
	path := Path(name)
	// A former run may have died between making the file and mounting on it: then the file is there and is ours.
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return false, err
	}
	f.Close()
	err = OnThread(func() error {
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

// namesWith lists the named namespaces, debris included, that begin with prefix.
func Names(prefix string) ([]string, error) {
	entries, err := os.ReadDir(Folder)
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
