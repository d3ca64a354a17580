package behind

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine/endpoint"
	"qmigrate/hostnet/host"
)

// openedLimit is how long the host may take over it: a server of files that is gone does not answer, and a guest is to
// be moved away from it all the same.
const openedLimit = 2 * time.Second

// Files asks for the files that a process has open, by the names that it gives them.
type Files struct {
	PID   int
	Names []string
}

// Opened tells what files that the process has open are to this host. QEMU's names of them are seen from the process's
// root and working folder; what cannot be told is left out.
func Opened() host.Task[Files, map[string]endpoint.OpenFile] {
	return one("behind.opened", func(_ context.Context, in Files) (map[string]endpoint.OpenFile, error) {
		found := make(chan map[string]endpoint.OpenFile, 1)
		go func() { found <- openFiles(in.PID, in.Names) }()
		select {
		case all := <-found:
			return all, nil
		case <-time.After(openedLimit):
			return nil, nil
		}
	})
}

func openFiles(pid int, names []string) map[string]endpoint.OpenFile {
	proc := fmt.Sprintf("/proc/%d", pid)
	links, err := filepath.Glob(proc + "/fd/*")
	if err != nil || len(links) == 0 {
		return nil
	}
	type descriptor struct {
		link, path string
		id         string
	}
	var all []descriptor
	for _, link := range links {
		path, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(path, "/") {
			continue
		}
		if info, err := os.Stat(link); err == nil {
			if id := fileID(info); id != "" {
				all = append(all, descriptor{link, path, id})
			}
		}
	}
	cwd, _ := os.Readlink(proc + "/cwd")
	found := map[string]endpoint.OpenFile{}
	for _, name := range names {
		whole := name
		if !filepath.IsAbs(name) {
			whole = filepath.Join(cwd, name)
		}
		id := ""
		if info, err := os.Stat(proc + "/root" + whole); err == nil {
			id = fileID(info)
		}
		var is *descriptor
		removed := false
		for i, d := range all { // the file that has the name, if QEMU has that open
			if d.id == id {
				is = &all[i]
			}
		}
		for i, d := range all { // else the one that had it, or had it before QEMU changed its root or folder
			path, gone := strings.CutSuffix(d.path, " (deleted)")
			if is == nil && (path == whole || strings.HasSuffix(path, "/"+strings.TrimLeft(name, "./"))) {
				is, removed = &all[i], gone
			}
		}
		switch {
		case is == nil && id != "" && len(all) > 0 && !strings.HasPrefix(name, "/dev/fdset/"):
			// Another file has its name now.
			found[name] = endpoint.OpenFile{Path: whole, ID: fmt.Sprintf("not open in %d", pid), Removed: true}
			continue
		case is == nil:
			continue
		}
		path, _ := strings.CutSuffix(is.path, " (deleted)")
		found[name] = endpoint.OpenFile{Path: path, ID: is.id, Block: strings.HasPrefix(is.id, blockDevice), Removed: removed,
			Content: content(is.link), Uncertain: fileSystem(is.link)}
	}
	return found
}

const blockDevice = "block " // begins the ID of one

// fileID tells a regular file or a block device from all others of this host; "" for anything else.
func fileID(info os.FileInfo) string {
	s, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return ""
	case info.Mode().IsRegular():
		return fmt.Sprintf("file %d:%d %d", unix.Major(uint64(s.Dev)), unix.Minor(uint64(s.Dev)), s.Ino)
	case info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0:
		return fmt.Sprintf(blockDevice+"%d:%d", unix.Major(uint64(s.Rdev)), unix.Minor(uint64(s.Rdev)))
	}
	return ""
}

// fileSystem is the kind of file system under a file if one file may have two numbers there.
func fileSystem(name string) string {
	var s unix.Statfs_t
	if unix.Statfs(name, &s) != nil {
		return "unknown"
	}
	switch uint32(s.Type) {
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.FUSE_SUPER_MAGIC:
		return "FUSE"
	case unix.NFS_SUPER_MAGIC:
		return "NFS"
	case unix.SMB2_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC:
		return "SMB"
	case unix.V9FS_MAGIC:
		return "9p"
	case unix.CEPH_SUPER_MAGIC:
		return "CephFS"
	case unix.AFS_FS_MAGIC, unix.AFS_SUPER_MAGIC, unix.CODA_SUPER_MAGIC:
		return "AFS"
	case unix.OCFS2_SUPER_MAGIC:
		return "OCFS2"
	}
	return ""
}

// content is the format that a file's first bytes name. Source: docs/interop and block/*.c of QEMU's source.
func content(name string) string {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, 68)
	if n, err := f.ReadAt(head, 0); n < len(head) && err != nil {
		head = head[:n]
	}
	if bytes.HasPrefix(head, []byte("QFI\xfb\x00\x00\x00\x01")) {
		return "qcow"
	}
	for magic, format := range map[string]string{
		"QFI\xfb": "qcow2", "QED\x00": "qed", "KDMV": "vmdk", "COWD": "vmdk", "vhdxfile": "vhdx", "conectix": "vpc",
		"LUKS\xba\xbe": "luks",
	} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return format
		}
	}
	if len(head) == 68 && bytes.Equal(head[64:], []byte{0x7f, 0x10, 0xda, 0xbe}) {
		return "vdi"
	}
	return ""
}
