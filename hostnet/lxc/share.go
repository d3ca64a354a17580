package lxc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/netns"
	"qmigrate/internal/procfs"
)

// share gives a running container a folder of this machine, under the same name, in which both may write: root there is
// root here in it. The error wraps errors.ErrUnsupported where the file system cannot map users for an unprivileged
// container: ext4 and xfs can from Linux 5.12 on, tmpfs from 6.3 on.
func share(first host.Process, folder string) error {
	err := netns.OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // the thread's root becomes the container's
			return os.NewSyscallError("unshare", err)
		}
		proc := fmt.Sprintf("/proc/%d", first.PID())
		users, err := os.Open(proc + "/ns/user")
		if err != nil {
			return err
		}
		defer users.Close()
		mounts, err := os.Open(proc + "/ns/mnt")
		if err != nil {
			return err
		}
		defer mounts.Close()
		ids, err := os.ReadFile(proc + "/uid_map")
		if err != nil {
			return err
		}
		ours, err := os.Stat("/proc/self/ns/user")
		if err != nil {
			return err
		}
		theirs, err := users.Stat()
		if err != nil {
			return err
		}
		if _, err := host.FindProcess(first.PID(), first.StartTime()); err != nil { // it had the number all the time
			return err
		}
		tree, err := unix.OpenTree(unix.AT_FDCWD, folder, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return os.NewSyscallError("open_tree", err)
		}
		defer unix.Close(tree)
		root := 0 // of the container, here
		if !os.SameFile(ours, theirs) {
			attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
			switch err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err {
			case nil:
			case unix.EINVAL, unix.EOPNOTSUPP, unix.ENOSYS, unix.EPERM:
				return fmt.Errorf("mount_setattr: %w (%w)", errors.ErrUnsupported, err)
			default:
				return os.NewSyscallError("mount_setattr", err)
			}
			if all, _ := procfs.ParseIDs(ids); len(all) > 0 {
				root = int(all[0].Outside)
			}
		}
		if err := unix.Setns(int(mounts.Fd()), unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("setns", err)
		}
		at := ""
		for part := range strings.SplitSeq(strings.Trim(folder, "/"), "/") {
			at += "/" + part
			if err := os.Mkdir(at, 0o755); errors.Is(err, fs.ErrExist) {
				continue
			} else if err != nil {
				return err
			}
			if err := os.Lchown(at, root, root); err != nil {
				return err
			}
		}
		return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
	})
	if err != nil {
		return fmt.Errorf("give it the folder %s: %w", folder, err)
	}
	return nil
}

// shareAll gives all containers the folder that they share, or none where one cannot have it.
func (n *Network) shareAll(first []host.Process) error {
	n.shared = filepath.Join(n.spec.Dir, sharedName)
	if err := os.MkdirAll(n.shared, 0o755); err != nil {
		return err
	}
	for i, h := range n.spec.Hosts {
		err := share(first[i], n.shared)
		if errors.Is(err, errors.ErrUnsupported) {
			err := os.Remove(n.shared)
			n.shared = ""
			return err
		}
		if err != nil {
			return fmt.Errorf("container %s: %w", n.spec.container(h.Name), err)
		}
	}
	return nil
}
