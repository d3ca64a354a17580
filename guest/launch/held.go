package launch

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/internal/procfs"
)

// Held is what the kernel says that a process holds and another cannot have as well, or would write to.
type Held struct {
	Sockets []Socket // bound or listening
	Files   []File   // regular files and pipes that are open for writing, or locked

	dir  string                      // what relative paths start from
	file func(string) (fileID, bool) // the file that a path names for the process
}

// Socket is a bound socket.
type Socket struct {
	Network   string // tcp, udp, unix; the kernel's tables of IPv6 count as tcp and udp. It has none of vsock
	Address   string // 127.0.0.1:5900, [::]:5900, /run/a.qmp, @abstract
	Listening bool
	inode     uint64
	id        fileID // of a path
}

// File is an open file.
type File struct {
	Path   string // as the kernel has it
	Locked bool
	id     fileID
}

type fileID struct{ dev, ino uint64 }

// Nothing is what nobody holds: of a destination on another host. There is tells which files are there already.
func Nothing(there func(name string) bool) *Held {
	return &Held{dir: "/", file: func(name string) (fileID, bool) { return fileID{}, there(name) }}
}

// ReadHeld asks the kernel what a process holds. Ports are those of the process's own network namespace.
func ReadHeld(pid int) (*Held, error) {
	base := fmt.Sprintf("/proc/%d", pid)
	dir, err := os.Readlink(base + "/cwd")
	if err != nil {
		return nil, fmt.Errorf("ask what process %d holds: %w", pid, err)
	}
	if root, err := os.Readlink(base + "/root"); err == nil {
		dir = (&Process{Root: root}).inside(dir)
	}
	h := &Held{dir: dir, file: func(p string) (fileID, bool) { return fileAs(pid, p) }}
	locked := map[fileID]bool{}
	if b, err := os.ReadFile("/proc/locks"); err == nil {
		locked = parseLocks(b)
	}
	inodes := map[uint64]bool{}
	all, err := os.ReadDir(base + "/fd")
	if err != nil {
		return nil, fmt.Errorf("ask what process %d holds: %w", pid, err)
	}
	for _, e := range all {
		name, err := os.Readlink(base + "/fd/" + e.Name())
		if err != nil {
			continue // closed since
		}
		if n, ok := strings.CutPrefix(name, "socket:["); ok {
			if inode, err := strconv.ParseUint(strings.TrimSuffix(n, "]"), 10, 64); err == nil {
				inodes[inode] = true
			}
			continue
		}
		var st unix.Stat_t
		if unix.Stat(base+"/fd/"+e.Name(), &st) != nil || st.Nlink == 0 || !strings.HasPrefix(name, "/") {
			continue // a file that has no name, as a memfd, is found by nobody else
		}
		if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFIFO {
			continue
		}
		id := fileID{st.Dev, st.Ino}
		info, err := os.ReadFile(base + "/fdinfo/" + e.Name())
		if err == nil && (writes(info) || locked[id]) {
			h.Files = append(h.Files, File{name, locked[id], id})
		}
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "unix"} {
		b, err := os.ReadFile(base + "/net/" + table)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("ask what process %d holds: %w", pid, err)
		}
		sockets, err := parseSockets(table, b)
		if err != nil {
			return nil, fmt.Errorf("read %s/net/%s: %w", base, table, err)
		}
		for _, s := range sockets {
			if !inodes[s.inode] {
				continue
			}
			if s.Network == "unix" && !strings.HasPrefix(s.Address, "@") {
				s.id, _ = h.file(h.abs(s.Address))
			}
			h.Sockets = append(h.Sockets, s)
		}
	}
	return h, nil
}

// parseSockets reads a table of /proc/PID/net: listening sockets of TCP, all of UDP, those of unix that have a name.
func parseSockets(table string, b []byte) (all []Socket, err error) {
	if table == "unix" {
		sockets, err := procfs.ParseUnix(b)
		for _, s := range sockets {
			if s.Name != "" {
				all = append(all, Socket{Network: table, Address: s.Name, Listening: s.Listening, inode: s.Inode})
			}
		}
		return all, err
	}
	network := table[:len("tcp")] // of tcp6, udplite6, ...
	sockets, err := procfs.ParseInet(b)
	for _, s := range sockets {
		listening := network == "tcp" && s.State == procfs.TCPListen
		if listening || network == "udp" {
			all = append(all, Socket{Network: network, Address: s.Local.String(), Listening: listening, inode: s.Inode})
		}
	}
	return all, err
}

// parseLocks reads /proc/locks: the files that anybody has locked. An open file description's lock names no process.
func parseLocks(b []byte) map[fileID]bool {
	all := map[fileID]bool{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		for _, f := range strings.Fields(lines.Text()) { // 08:01:123
			p := strings.Split(f, ":")
			if len(p) != 3 {
				continue
			}
			major, err1 := strconv.ParseUint(p[0], 16, 32)
			minor, err2 := strconv.ParseUint(p[1], 16, 32)
			ino, err3 := strconv.ParseUint(p[2], 10, 64)
			if err1 == nil && err2 == nil && err3 == nil {
				all[fileID{unix.Mkdev(uint32(major), uint32(minor)), ino}] = true
			}
		}
	}
	return all
}

// writes reads the flags of /proc/PID/fdinfo/N.
func writes(info []byte) bool {
	flags, err := strconv.ParseUint(procfs.Value(info, "flags"), 8, 64)
	return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
}

func (h *Held) abs(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(h.dir, p)
}

// exists reports whether there is a file of that name.
func (h *Held) exists(p string) bool {
	if h == nil || h.file == nil {
		return false
	}
	_, ok := h.file(h.abs(p))
	return ok
}

// path says what the process has at a path.
func (h *Held) path(p string) (what string, ok bool) {
	if h == nil || p == "" {
		return "", false
	}
	p = h.abs(p)
	id, exists := fileID{}, false
	if h.file != nil {
		id, exists = h.file(p)
	}
	for _, s := range h.Sockets {
		if s.Network == "unix" && (h.abs(s.Address) == p && !strings.HasPrefix(s.Address, "@") || exists && s.id == id) {
			return "socket", true
		}
	}
	for _, f := range h.Files {
		if f.Path == p || exists && f.id == id {
			return "file, open for writing", true
		}
	}
	return "", false
}

// port reports whether the process has a port: listening for TCP, bound for UDP.
func (h *Held) port(network, port string) bool {
	return h != nil && slices.ContainsFunc(h.Sockets, func(s Socket) bool {
		_, p := rsplit(s.Address, ":")
		return s.Network == network && p == port
	})
}

// named looks in the value of a key for whatever the process holds; ports are host:port, and numbers of a key that
// speaks of one.
func (h *Held) named(key, value string, ports bool) (what string, ok bool) {
	if h == nil {
		return "", false
	}
	pieces := []string{value}
	for piece := range strings.SplitSeq(value, ",") {
		pieces = append(pieces, piece)
		for _, sep := range []string{"=", ":"} {
			if _, after, ok := strings.Cut(piece, sep); ok {
				pieces = append(pieces, after)
			}
		}
	}
	for _, piece := range pieces {
		if strings.Contains(piece, "/") || slices.ContainsFunc(h.Files, func(f File) bool { return f.Path == h.abs(piece) }) {
			if what, ok := h.path(piece); ok {
				return what, true
			}
		}
		if !ports || piece == "" {
			continue
		}
		for _, s := range h.Sockets {
			if name, ok := strings.CutPrefix(s.Address, "@"); ok && name == strings.TrimPrefix(piece, "@") {
				return "abstract socket", true
			}
		}
		hostPort := strings.Count(piece, ":") == 1 || strings.Contains(piece, "]:")
		if _, port := rsplit(piece, ":"); hostPort || strings.Contains(key, "port") {
			for _, network := range []string{"tcp", "udp"} {
				if h.port(network, port) {
					return strings.ToUpper(network) + " port", true
				}
			}
		}
	}
	return "", false
}
