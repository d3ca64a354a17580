package engine_test

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"qmigrate/engine"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest/within"
)

// refusedError is what dialling a socket gives on which nobody listens.
var refusedError = os.NewSyscallError("connect", syscall.ECONNREFUSED)

// socketPair is a monitor's connection.
func socketPair() (ours, theirs net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var both [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "monitor")
		if both[i], err = net.FileConn(f); err != nil {
			return nil, nil, err
		}
		f.Close()
	}
	return both[0], both[1], nil
}

// TestRecoverElsewhere: a source that was migrated away is not continued for a destination that never heard of it, for the guest
// may run on the one that it went to.
func TestRecoverElsewhere(t *testing.T) {
	for _, migration := range []string{"none", "setup"} {
		t.Run(migration, func(t *testing.T) {
			t.Parallel()
			src, other := newFake(t, "source", "postmigrate", "completed"), newFake(t, "other", "inmigrate", migration)
			holder, said, err := engine.Recover(within.Context(t), src.endpoint(), other.endpoint(), engine.Plan{}, engine.Options{})
			if err == nil || !strings.Contains(err.Error(), "give that one as --destination") || holder != record.Unknown {
				t.Errorf("holder %s, says %q %v", holder, said, err)
			}
			if a, b := src.runState(), other.runState(); a != "postmigrate" || b != "inmigrate" {
				t.Errorf("source %s, other %s: want both left alone", a, b)
			}
		})
	}
}
