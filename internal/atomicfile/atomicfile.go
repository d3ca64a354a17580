// Package atomicfile replaces whole files. After a crash or a power cut, a name has all of its former content or all of
// the new one.
package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Write makes name a file with that content and mode, whatever the umask. If it fails, the former file stays. Only the
// folder's sync can fail after the change: then the new file is there, but may not survive a power cut.
func Write(name string, content []byte, mode fs.FileMode) error {
	return WriteFunc(name, mode, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// WriteFunc is Write with the content that write writes. If write fails, the former file stays.
func WriteFunc(name string, mode fs.FileMode, write func(io.Writer) error) error {
	return calls{(*os.File).Sync, os.Rename}.replace(name, mode, write)
}

// SyncFolder puts the names in a folder on the disk: a new file's data may survive a power cut without its name.
func SyncFolder(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	return calls{sync: (*os.File).Sync}.syncFolder(folder)
}

// SyncAll puts everything on the disk that the folder's file system has, as before a folder of many files gets its
// name.
func SyncAll(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(folder.Fd())))
}

// calls are the system calls that a test lets fail.
type calls struct {
	sync   func(*os.File) error
	rename func(from, to string) error
}

func (c calls) replace(name string, mode fs.FileMode, write func(io.Writer) error) (err error) {
	failed := func(err error) error { // names the file, not the temporary one
		at, link := new(fs.PathError), new(os.LinkError)
		if errors.As(err, &at) {
			err = at.Err
		} else if errors.As(err, &link) {
			err = link.Err
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	folder, err := os.Open(filepath.Dir(name))
	if err != nil {
		return failed(err)
	}
	defer folder.Close()
	file, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return failed(err)
	}
	defer func() {
		if file != nil {
			file.Close()
			os.Remove(file.Name())
		}
	}()
	if err := write(file); err != nil {
		if at := new(fs.PathError); errors.As(err, &at) && at.Path == file.Name() {
			return failed(err)
		}
		return err
	}
	if err := file.Chmod(mode); err != nil {
		return failed(err)
	}
	if err := c.sync(file); err != nil {
		return failed(err)
	}
	if err := file.Close(); err != nil {
		return failed(err)
	}
	if err := c.rename(file.Name(), name); err != nil {
		return failed(err)
	}
	file = nil
	if err := c.syncFolder(folder); err != nil {
		return fmt.Errorf("%s: it may not survive a power cut: %w", name, err)
	}
	return nil
}

// syncFolder: some file systems (FUSE, SMB) cannot sync a folder and say so.
func (c calls) syncFolder(folder *os.File) error {
	err := c.sync(folder)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}
