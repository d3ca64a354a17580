// Package host is a host: its processes, files, sockets and clock, and where it is. A host is this machine, a network
// namespace of it, a container or a machine behind ssh. Users write local, netns:NAME, lxc:NAME or
// ssh://[USER@]HOST[:PORT], and a Pool finds it. All that a caller has of a host goes through Host: the files,
// processes and sockets of a host need not be this machine's.
//
// A host that is not this machine has a helper: a small program that is copied there when it is missing, and that runs
// as long as its channel, the standard streams of the program that started it (ssh, lxc-attach), is open. Helper.Serve
// is its side of the channel, Far ours.
//
// Host has primitives only: what a host offers by itself, without knowing what a guest, a lab or a migration is. Work
// that must run on the host, beside what it looks at, is a Task of the package that it belongs to.
//
// The package makes no host and no network: package hostnet does. It imports nothing of this module but the readers of
// /proc and of the named namespaces; every package that starts or looks at a process may import it, except engine,
// which is given an endpoint.
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Host is a place where a QEMU runs. All its methods may be called at the same time.
type Host interface {
	// Name is the host as users write it: "local", "netns:qmig-demo-a". Find(ctx, Name()) finds it again.
	Name() string

	// Dial connects to an address as the host sees it: "unix" with a path, "tcp", "udp", "ip4:icmp". Names in the
	// address are looked up by this program, not by the host. The connection is usable from anywhere.
	Dial(ctx context.Context, network, address string) (net.Conn, error)
	// Listen listens on the host for "tcp" or "unix". Port 0 picks a free one: see the listener's Addr.
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	// ListenPacket listens on the host for datagrams: "udp", or "ip4:icmp" (raw; root of the namespace only).
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)

	// Start starts a process on the host. ctx covers the start only: the process outlives it, and us.
	Start(ctx context.Context, c Command) (Process, error)
	// FindProcess finds a process of a former run by its number and its StartTime, so that a number that has been
	// given to another process since is never taken for it. The error wraps os.ErrProcessDone if it is gone.
	FindProcess(ctx context.Context, pid int, startTime uint64) (Process, error)

	ReadFile(name string) ([]byte, error)
	WriteFile(name string, data []byte, perm fs.FileMode) error
	MkdirAll(name string, perm fs.FileMode) error
	RemoveAll(name string) error
	Stat(name string) (fs.FileInfo, error)

	// Put sees to it that the host has this file of ours, and says where. On this machine that is where it is.
	Put(ctx context.Context, name string) (there string, err error)

	// Clock compares the host's realtime clock with ours: the truest of some comparisons.
	Clock(ctx context.Context) (Clock, error)
	// Now is the instant by the clock that work on this host has. Of a Far host it is ours.
	Now() time.Time
}

// Clock is a host's realtime clock beside ours: Offset is theirs minus ours, right within Error either way. Both are 0
// on this machine.
type Clock struct {
	Offset, Error time.Duration
	At            time.Time // when, by our clock; zero where there is nothing to compare
}

// Command is a process to be. A command with none of the streams is detached: it is the leader of a session of its own,
// so that a terminal's Ctrl-C and hang-up do not reach it. One with any of them is attached: it stays in our
// process group, for it is in the foreground of whoever waits for it.
type Command struct {
	Args []string // Args[0] is the program, looked up in our PATH
	Env  []string // added to ours
	Only bool     // Env is the whole environment: ours is not added
	Dir  string   // folder that it starts in; "" is ours
	// Umask is taken from the modes of what it creates; 0 leaves it our own. On a host by As, 0 is 0.
	Umask int
	Log   string // file on the host that standard output and error are appended to (made with mode 0600); "" discards them

	Stdin          io.Reader // nil reads nothing
	Stdout, Stderr io.Writer // nil discards; Log is not used when any stream is given
}

func (c Command) attached() bool { return c.Stdin != nil || c.Stdout != nil || c.Stderr != nil }

// Process is a process on a host.
type Process interface {
	PID() int // as its host counts
	// StartTime tells it from a later process of the same number: clock ticks since the host's boot, field 22 of
	// /proc/PID/stat. For Host.FindProcess.
	StartTime() uint64
	// Done is closed when the process is known to have ended. A child of ours has been reaped by then.
	Done() <-chan struct{}
	// Err is why it ended, once Done is closed: nil for status 0, *exec.ExitError for another, and nil for a process of
	// a former run, whose status is its parent's to know.
	Err() error
	// Signal sends a signal. After the end it is os.ErrProcessDone.
	Signal(os.Signal) error
	// Kill sends SIGKILL and returns when the process is known dead, or ctx ends. Harmless twice.
	Kill(ctx context.Context) error
	// Usage is what the process has used so far; after the end of a child, all that it used.
	Usage() (Usage, error)
}

// Usage is what a process has used.
type Usage struct {
	CPU     time.Duration // user and system time of all its threads, also of those that ended; resolution 1 ns
	RSS     int64         // bytes resident now; 0 after the end
	PeakRSS int64         // most bytes ever resident
}

// Local is this machine, as this program sees it.
func Local() Host { return machine{} }

// Namespace is a named network namespace of this machine, as `ip netns` knows it. The error wraps fs.ErrNotExist if
// there is none of that name.
func Namespace(name string) (Host, error) {
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return nil, fmt.Errorf("find network namespace %q: not a name", name)
	}
	h := machine{namespace: name}
	if err := h.do(func() error { return nil }); err != nil {
		return nil, fmt.Errorf("find network namespace %s: %w", name, err)
	}
	return h, nil
}

// InNamespace is Namespace without a look at whether it is there.
func InNamespace(name string) Host { return machine{namespace: name} }

// UnsupportedError says that this machine or user lacks something that was asked for.
type UnsupportedError struct {
	Feature string // "TUN", "user namespaces", "TBF and HTB"
	Reason  string // what was found
	Mend    string // what to do about it: a command, or a sentence
	Err     error  // the kernel's own word, if it had one
}

func (e *UnsupportedError) Error() string {
	s := e.Feature + ": " + e.Reason
	if e.Err != nil && !strings.Contains(s, e.Err.Error()) {
		s += " (" + e.Err.Error() + ")"
	}
	if e.Mend != "" {
		s += "; " + e.Mend
	}
	return s
}

func (e *UnsupportedError) Unwrap() error { return e.Err }

// Is makes errors.Is(err, errors.ErrUnsupported) true.
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }
