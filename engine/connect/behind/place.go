package behind

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
)

// placeOf says where a process of this machine runs: local, netns:NAME, or in which container, as in lxc:NAME; "" if
// that is not known.
func placeOf(pid int) string {
	read := func(pid string) string {
		b, _ := os.ReadFile("/proc/" + pid + "/cgroup")
		return container(string(b))
	}
	if c := read(fmt.Sprint(pid)); c != "" && c != read("self") {
		return c
	}
	theirs, err := namespaceID(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return ""
	}
	if ours, err := namespaceID("/proc/self/ns/net"); err == nil && theirs == ours {
		return "local"
	}
	names, _ := filepath.Glob("/run/netns/*")
	for _, name := range names {
		if id, err := namespaceID(name); err == nil && id == theirs {
			return "netns:" + filepath.Base(name)
		}
	}
	return ""
}

// container is the container that a /proc/PID/cgroup names, with its kind; "" if it names none.
func container(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		parts := strings.Split(strings.TrimSpace(line), "/")
		for i, part := range parts {
			scope := strings.TrimSuffix(part, ".scope")
			switch {
			case strings.HasPrefix(part, "lxc.payload."):
				return "lxc:" + strings.TrimPrefix(part, "lxc.payload.")
			case (part == "lxc.payload" || part == "lxc" || part == "docker") && i+1 < len(parts):
				kind, _, _ := strings.Cut(part, ".")
				return kind + ":" + parts[i+1]
			case scope != part && strings.HasPrefix(part, "docker-"):
				return "docker:" + strings.TrimPrefix(scope, "docker-")
			case scope != part && strings.HasPrefix(part, "libpod-") && !strings.HasPrefix(part, "libpod-conmon-"):
				return "podman:" + strings.TrimPrefix(scope, "libpod-")
			}
		}
	}
	return ""
}

// namespace tells one namespace from all others.
type namespace struct{ device, inode uint64 }

func namespaceID(name string) (namespace, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return namespace{}, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return namespace{st.Dev, st.Ino}, nil
}

// Machine is what a host is: its kernel's release and its processor.
type Machine struct{ Kernel, CPU string }

// Machines says what a host is.
func Machines() host.Task[struct{}, Machine] {
	return one("behind.machine", func(context.Context, struct{}) (m Machine, _ error) {
		if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
			m.Kernel = strings.TrimSpace(string(b))
		}
		if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
			if model := procfs.Value(b, "model name"); model != "" {
				m.CPU = fmt.Sprintf("%d x %s", runtime.NumCPU(), model)
			}
		}
		return m, nil
	})
}

// BootOf tells the kernel of the host whose files these are from others, and from itself before it was started anew. In
// a container it is that of the container: liblxc and LXD give each one its own.
func BootOf(readFile func(name string) ([]byte, error)) (string, error) {
	b, err := readFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// Clock is CLOCK_MONOTONIC_RAW of the running kernel, in ns. Nobody sets it, and containers have it as it is. A clock
// that shows an instant between two readings of ours is ours: that of another machine would have to have been started
// within that time of us.
func Clock() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts) // every kernel has it
	return ts.Nano()
}
