package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
	"qmigrate/internal/atomicfile"
)

// rootLimit is how long the root's disk may take to appear behind its driver.
const rootLimit = 20 * time.Second

// enterRoot makes the disk of that serial, a squashfs that is only read, this process's root, below a tmpfs that takes
// all writes: they are guest memory, and migrate with it. What was mounted in the initramfs moves along.
func (a *agent) enterRoot(serial string) error {
	device, err := "", error(nil)
	for start := a.clock.now(); ; a.clock.sleep(time.Millisecond) {
		if device, _, err = a.openDisk(serial); err == nil {
			break
		}
		if a.clock.now()-start > rootLimit {
			return fmt.Errorf("enter root: %w", err)
		}
	}
	const base = "/root"
	lower, upper, root := base+"/lower", base+"/upper", base+"/new"
	type step struct {
		source, target, kind string
		flags                uintptr
		options              string
	}
	for _, s := range []step{
		{device, lower, "squashfs", unix.MS_RDONLY, ""},
		{"tmpfs", upper, "tmpfs", 0, "mode=0755"},
		{"overlay", root, "overlay", 0, "lowerdir=" + lower + ",upperdir=" + upper + "/data,workdir=" + upper + "/work"},
		{"/dev", root + "/dev", "", unix.MS_MOVE, ""},
		{"/proc", root + "/proc", "", unix.MS_MOVE, ""},
		{"/sys", root + "/sys", "", unix.MS_MOVE, ""},
		{"devpts", root + "/dev/pts", "devpts", 0, "mode=0620,ptmxmode=0666"},
		{"tmpfs", root + "/dev/shm", "tmpfs", 0, ""},
	} {
		if s.kind == "overlay" {
			if err := errors.Join(os.Mkdir(upper+"/data", 0o755), os.Mkdir(upper+"/work", 0o755)); err != nil {
				return fmt.Errorf("enter root: %w", err)
			}
		}
		if err := os.MkdirAll(s.target, 0o755); err != nil {
			return fmt.Errorf("enter root: %w", err)
		}
		if err := unix.Mount(s.source, s.target, s.kind, s.flags, s.options); err != nil {
			return fmt.Errorf("enter root: mount %s on %s: %w", s.source, s.target, err)
		}
	}
	// chroot is the process's, for Go's threads share it.
	for _, f := range []func() error{
		func() error { return unix.Chdir(root) },
		func() error { return unix.Mount(".", "/", "", unix.MS_MOVE, "") },
		func() error { return unix.Chroot(".") },
		func() error { return unix.Chdir("/") },
	} {
		if err := f(); err != nil {
			return fmt.Errorf("enter root: %w", err)
		}
	}
	return nil
}

// putFile writes a file; nobody sees half of it.
func putFile(f wire.PutFile) (struct{}, error) {
	if !filepath.IsAbs(f.Path) {
		return struct{}{}, fmt.Errorf("put file %q: the path must begin with /", f.Path)
	}
	if err := atomicfile.Write(f.Path, f.Data, os.FileMode(f.Mode).Perm()); err != nil {
		return struct{}{}, fmt.Errorf("put file: %w", err)
	}
	return struct{}{}, nil
}
