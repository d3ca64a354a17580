package endpoint

import (
	"context"
	"net"
	"time"
)

// Scheduler is a Process whose threads can be made to give way to each other, which COLO needs under TCG: docs/colo.md
// says why.
type Scheduler interface {
	// Threads are the numbers of its threads.
	Threads() ([]int, error)
	// Yield makes the given threads wait, whenever they come back from a futex call, until all others sleep or have had
	// their share. It goes on if we die, and ends with the threads, or by undo.
	Yield(threads []int) (undo func() error, err error)
}

// Process is what the engine needs of a QEMU's process, for fencing and for the cost of sampling.
type Process interface {
	// Kill ends it, if need be by force, and returns nil only when it is known dead.
	Kill(ctx context.Context) error
	// Done is closed when it has ended; nil if it is not known which process it is.
	Done() <-chan struct{}
	// HasThread tells whether the thread with this number is one of its own. Who listens on a socket may be a forwarder:
	// only the process that has the vCPU threads is the QEMU, and only its death is the guest's end.
	HasThread(id int) bool
	// MainThreadCPU is the processor time of the thread that answers the monitor.
	MainThreadCPU() (time.Duration, error)
}

// MemoryLocker is a Process that can say how much memory it may lock: zero-copy needs that. limited is false where
// there is no limit.
type MemoryLocker interface {
	MemoryLock() (bytes int64, limited bool, err error)
}

// Explainer is a Process that can say, as far as its host knows, why it does not greet or not answer: it is stopped, it
// waits for somebody else, another client holds the monitor; "" if nothing is known. The connection is the one on which
// nothing came; nil: none in particular.
type Explainer interface {
	WhyMute(net.Conn) string
}

// Networker is a Process that can name its network, the same name for two that have one; an error where that is not
// known.
type Networker interface {
	Network() (string, error)
}

// Listener is a Process that can try whether its QEMU could listen on a TCP address (host and port), and lets that go
// again; nil where it cannot be tried. A QEMU from 8 on that has refused an address says `setup` from then on, as if it
// listened.
type Listener interface {
	TryListen(host, port string) error
}

// Identified is a Process that can say which one it is, the same for each way to write its endpoint: a text that no
// other process has had since its machine was started. "" if it is not known.
type Identified interface {
	Identity() string
}

// TraceLog is a file that grows by lines: the trace lines of a QEMU, and whatever else is said there.
type TraceLog interface {
	// Name is the file's, on its host.
	Name() string
	// Read gives the lines that begin after so many bytes and have one of the words in them; without words none. An error
	// wraps fs.ErrNotExist if there is no such file.
	Read(ctx context.Context, from int64, words ...string) (LogLines, error)
}

// LogLines are lines of a TraceLog.
type LogLines struct {
	Size int64  // of the whole file, in bytes; less than before: it was replaced
	Text []byte // the lines, with their ends
	More bool   // there are more of them than are given at once (16 MiB)
}
