package lxc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/internal/netns"
)

// A container's files are made in a mount namespace that only liblxc is in, and go with it: this machine's own mounts
// stay as they are. Its root is a tmpfs, because /run may forbid programs and devices.
const (
	stage       = "/mnt" // every machine has it, and every user may go through it
	initProgram = "/qmigrate/init"
)

// systemFolders are this machine's that every container has, read-only. Those that are symbolic links are links there.
var systemFolders = [...]string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/boot"}

// ownFolders are folders that a container has of its own, with their modes.
var ownFolders = [...]struct {
	name string
	mode uint32 // as Unix has it
}{{"proc", 0o555}, {"sys", 0o555}, {"dev", 0o755}, {"run", 0o755}, {"root", 0o700}, {"mnt", 0o755}, {"var", 0o755},
	{"var/cache", 0o755}, {"var/log", 0o755}, {"var/lib", 0o755}, {"tmp", 0o1777}, {"var/tmp", 0o1777}, {"qmigrate", 0o755}}

// devices are those that a host of guests needs beside what liblxc gives, as far as this machine has them.
var devices = [...]string{"net/tun", "kvm", "userfaultfd", "vhost-net"}

// deviceNumbers are the devices that this machine has.
func deviceNumbers() map[string]uint64 {
	found := map[string]uint64{}
	for _, d := range devices {
		var st unix.Stat_t
		if unix.Stat("/dev/"+d, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR {
			found[d] = st.Rdev
		}
	}
	return found
}

// bind is a folder or file of this machine that the container is to have, read-only and under the same name.
type bind struct {
	name string
	fd   int
}

// startIn makes the container's files and starts the command, which sees them.
func (c *container) startIn(cmd *exec.Cmd) error {
	return netns.OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		unix.Umask(0o022) // this thread's
		if err := c.makeFiles(); err != nil {
			return err
		}
		return cmd.Start()
	})
}

func (c *container) makeFiles() error {
	binds, links, err := c.binds()
	defer func() {
		for _, b := range binds {
			unix.Close(b.fd)
		}
	}()
	if err != nil {
		return err
	}
	if c.ids != (idRange{}) {
		if err := expose(c.spec.lxcPath()); err != nil {
			return err
		}
	}
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID, "mode=0755"); err != nil {
		return &fs.PathError{Op: "mount", Path: stage, Err: err}
	}
	root := filepath.Join(stage, "root")
	if err := c.mkdir(root, 0o755); err != nil {
		return err
	}
	for _, f := range ownFolders {
		if err := c.mkdir(filepath.Join(root, f.name), f.mode); err != nil {
			return err
		}
	}
	links["/var/run"] = "/run"
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	for _, b := range binds {
		if err := c.bind(root, b); err != nil {
			return fmt.Errorf("give it %s: %w", b.name, err)
		}
	}
	// Devices that all may open: a container whose root is nobody here has a network of its own, of which it is root.
	for name, number := range deviceNumbers() {
		path := filepath.Join(stage, "dev", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := unix.Mknod(path, unix.S_IFCHR, int(number)); err != nil {
			return &fs.PathError{Op: "mknod", Path: path, Err: err}
		}
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
	}
	return os.WriteFile(root+initProgram, c.program, 0o755)
}

// expose lets every user go through to a folder, in this mount namespace: liblxc asks for that where the container's
// root is nobody here. What is beside the folder in those that only root may enter is hidden.
func expose(folder string) error {
	fd, err := unix.Open(folder, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: folder, Err: err}
	}
	defer unix.Close(fd)
	at := ""
	for part := range strings.SplitSeq(strings.Trim(folder, "/"), "/") {
		at += "/" + part
		info, err := os.Stat(at)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 != 0 {
			continue
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return &fs.PathError{Op: "mount", Path: at, Err: err}
		}
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), folder, "", unix.MS_BIND, ""); err != nil {
			return &fs.PathError{Op: "mount", Path: folder, Err: err}
		}
		return nil
	}
	return nil
}

// binds opens everything of this machine that the container is to have, before its root hides something of it.
func (c *container) binds() (all []bind, links map[string]string, err error) {
	add := func(name string) error {
		fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: name, Err: err}
		}
		all = append(all, bind{name, fd})
		return nil
	}
	links = map[string]string{}
	for _, name := range systemFolders {
		if target, err := os.Readlink(name); err == nil {
			links[name] = target
			continue
		}
		if err := add(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return all, nil, err
		}
	}
	for _, name := range c.spec.ReadOnly {
		if err := add(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return all, nil, err
		}
	}
	return all, links, nil
}

func (c *container) mkdir(name string, mode uint32) error {
	if err := os.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.Chmod(name, mode); err != nil { // with the sticky bit, whatever the umask
		return &fs.PathError{Op: "chmod", Path: name, Err: err}
	}
	return os.Lchown(name, c.ids.uid, c.ids.gid)
}

// bind mounts one of this machine's in the container's root.
func (c *container) bind(root string, b bind) error {
	var st unix.Stat_t
	if err := unix.Fstat(b.fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	at := root
	for part := range strings.SplitSeq(strings.Trim(b.name, "/"), "/") {
		at = filepath.Join(at, part)
		if _, err := os.Lstat(at); err == nil {
			continue
		}
		if at == filepath.Join(root, b.name) && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := os.WriteFile(at, nil, 0o644); err != nil {
				return err
			}
			continue
		}
		if err := c.mkdir(at, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", b.fd), at, "", unix.MS_BIND, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(unix.AT_FDCWD, at, 0, attr))
}
