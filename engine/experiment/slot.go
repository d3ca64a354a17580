package experiment

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// SlotVariable names another lock file than the host's: for a host whose processors are shared out, with a slot for
// each share.
const SlotVariable = "QMIGRATE_SLOT"

// lock is a file that one process at a time holds: the kernel gives it back however that process ends.
type lock struct{ file *os.File }

// slotFile is the host's: where every user may write, and the same inside and outside of the namespaces that stand in
// for root.
func slotFile() string {
	if name := os.Getenv(SlotVariable); name != "" {
		return name
	}
	const dir = "/run/lock"
	if unix.Access(dir, unix.W_OK) == nil {
		return filepath.Join(dir, "qmigrate-slot")
	}
	return filepath.Join(os.TempDir(), "qmigrate-slot")
}

// takeSlot takes the host's slot: two experiments at once would measure each other.
func takeSlot(holder string) (*lock, error) {
	name := slotFile()
	l, by, err := take(name, holder)
	if by != "" {
		return nil, fmt.Errorf("this host runs an experiment already: %s: wait for it, for two at once would measure each other", by)
	}
	if err != nil {
		return nil, fmt.Errorf("take the host's slot: %w", err)
	}
	return l, nil
}

// take locks a file, or a folder, and writes into it who holds it; by says who does, if somebody else does.
func take(name, holder string) (l *lock, by string, err error) {
	// Without O_CREAT first: in a folder that all may write to, the kernel may refuse that for another user's file
	// (fs.protected_regular).
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		file, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666)
	}
	if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EISDIR) {
		file, err = os.Open(name) // enough to lock
	}
	if err != nil {
		return nil, "", err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer file.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, "", &os.PathError{Op: "lock", Path: name, Err: err}
		}
		text, _ := io.ReadAll(io.LimitReader(file, 1000))
		if by = strings.TrimSpace(string(text)); by == "" {
			by = "another process" // a folder, or one that has just begun
		}
		return nil, by, nil
	}
	if file.Truncate(0) == nil { // fails on one that was opened for reading: then nobody is named
		_, _ = file.WriteAt([]byte(holder+"\n"), 0)
	}
	return &lock{file}, "", nil
}

func (l *lock) release() {
	if l != nil {
		_ = l.file.Truncate(0)
		l.file.Close()
	}
}
