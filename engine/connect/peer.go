package connect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine/endpoint"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
)

// peer is the process that listens on a unix socket of this machine, known from the first connection on.
type peer struct {
	proc  host.Process
	qemu  bool               // it is, or was, a QEMU
	found func(place string) // is told where it runs, if it is a QEMU and that is known
}

var errNoProcess = errors.New("the process behind the monitor is not known")

// dial connects and remembers who listens. Once that is a QEMU, it may not be another one.
func (p *peer) dial(connect endpoint.Dialer) endpoint.Dialer {
	same := p.sameAs(connect)
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := same(ctx)
		if err != nil || p.proc != nil {
			return conn, err
		}
		pid := listener(conn)
		if start, err := host.StartTime(pid); err == nil {
			if proc, err := host.FindProcess(pid, start); err == nil {
				p.proc, p.qemu = proc, isQEMU(pid)
				if place := placeOf(pid); p.qemu && place != "" && p.found != nil {
					p.found(place)
				}
			}
		}
		return conn, nil
	}
}

// sameAs connects and refuses a QEMU that is another one than that behind the first monitor. Forwarders are not
// compared.
func (p *peer) sameAs(connect endpoint.Dialer) endpoint.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := connect(ctx)
		if err != nil || p.proc == nil {
			return conn, err
		}
		if pid := listener(conn); pid != p.proc.PID() && p.qemu && isQEMU(pid) {
			conn.Close()
			return nil, fmt.Errorf("%s belongs to the QEMU of process %d, and the first monitor to that of process %d: give "+
				"the monitors of one QEMU",
				conn.RemoteAddr(), pid, p.proc.PID())
		}
		return conn, nil
	}
}

// listener is the process that listens on a unix socket; 0 if it is not known. SO_PEERCRED of the client is the process
// that called listen(2). That is QEMU if QEMU made the socket. It is another process if QEMU was handed the socket, or
// if a forwarder (ssh -L, socat) stands in for a QEMU elsewhere: HasThread tells. A process of another PID namespace
// shows as 0, socket activation as 1.
func listener(conn net.Conn) (pid int) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil && cred.Pid > 1 {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// isQEMU tells whether a process is a QEMU.
func isQEMU(pid int) bool {
	p, err := launch.ReadProcess(pid)
	return err == nil && p.IsQEMU()
}

// Kill ends the process; nil means that it is known dead.
func (p *peer) Kill(ctx context.Context) error {
	if p.proc == nil {
		return errNoProcess
	}
	return p.proc.Kill(ctx)
}

// Done is closed when the process has ended; nil if it is not known.
func (p *peer) Done() <-chan struct{} {
	if p.proc == nil {
		return nil
	}
	return p.proc.Done()
}

// readFile reads a file as the process sees it, which may live under another root.
func (p *peer) readFile(name string) ([]byte, error) {
	if p.proc == nil {
		return nil, errNoProcess
	}
	return os.ReadFile(filepath.Join(fmt.Sprintf("/proc/%d/root", p.proc.PID()), name))
}

// HasThread tells a QEMU from a forwarder that listens for it, and from a manager that made its socket.
func (p *peer) HasThread(id int) bool {
	return p.proc != nil && NewProcess(host.Local(), p.proc).HasThread(id)
}

// ErrElsewhere is that of an endpoint whose monitor is no unix socket of this machine.
var ErrElsewhere = errors.New("it is not on this machine, as far as is known")

// Behind is the process behind an endpoint's monitor, once that has been connected to.
func Behind(e *endpoint.Endpoint) (*launch.Process, error) {
	p, ok := e.Process.(*peer)
	if !ok {
		return nil, ErrElsewhere
	}
	return p.process()
}

// Handle is what that process can be signalled by; nil if it is not known.
func Handle(e *endpoint.Endpoint) host.Process {
	if p, ok := e.Process.(*peer); ok {
		return p.proc
	}
	return nil
}

// process is what /proc says of it.
func (p *peer) process() (*launch.Process, error) {
	if p.proc == nil {
		return nil, errNoProcess
	}
	return launch.ReadProcess(p.proc.PID())
}

// TryListen listens for a moment in place of a QEMU that is on our own network.
func (p *peer) TryListen(host, port string) error {
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil
	}
	// options may follow the port
	if theirs, err := p.Network(); err != nil || theirs != ours || strings.Contains(port, ",") {
		return nil
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	return l.Close()
}

// Network is the process's network namespace.
func (p *peer) Network() (string, error) {
	if p.proc == nil {
		return "", errNoProcess
	}
	return os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.proc.PID()))
}

// MainThreadCPU is the processor time of QEMU's main thread.
func (p *peer) MainThreadCPU() (time.Duration, error) {
	if p.proc == nil {
		return 0, errNoProcess
	}
	return NewProcess(host.Local(), p.proc).MainThreadCPU()
}

// MemoryLock is what QEMU may lock.
func (p *peer) MemoryLock() (limit int64, limited bool, err error) {
	if p.proc == nil {
		return 0, false, errNoProcess
	}
	return NewProcess(host.Local(), p.proc).MemoryLock()
}
