package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/guest"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
)

// parseEndpoint reads how people name a QEMU:
//
//	unix:PATH[,PATH[,PATH]]   its control monitor and, if it has them, one for events and one for the sampler
//	unix:FOLDER               a folder with control.qmp, and events.qmp and sampler.qmp if there are such
//	tcp:HOST:PORT[,HOST:PORT[,HOST:PORT]]
//	tcp+tls:HOST:PORT[,...]?dir=FOLDER[&hostname=NAME]   the same where QEMU's chardev has tls-creds; FOLDER has our certificate
//
// Nothing is opened yet.
func parseEndpoint(text string) (*endpoint.Endpoint, error) {
	kind, addresses, err := endpointAddresses(text)
	if err != nil {
		return nil, err
	}
	wrap := func(d endpoint.Dialer, _ string) endpoint.Dialer { return d }
	if kind == "tcp+tls" {
		if wrap, err = tlsOptions(text); err != nil {
			return nil, err
		}
		kind = "tcp"
	}
	e := &endpoint.Endpoint{Name: text, Host: "local"}
	for i, into := range []*endpoint.Dialer{&e.Control, &e.Events, &e.Sampler} {
		if i < len(addresses) {
			*into = wrap(dialer(kind, addresses[i]), addresses[i])
		}
	}
	if kind == "unix" {
		p := &peer{}
		e.Control, e.Process, e.ReadFile, e.Opened, e.Files = p.dial(e.Control), p, p.readFile, p.opened, true
		for _, other := range []*endpoint.Dialer{&e.Events, &e.Sampler} {
			if *other != nil {
				*other = p.sameAs(*other)
			}
		}
	}
	return e, nil
}

// endpointAddresses are the monitors that an endpoint names, at most three.
func endpointAddresses(text string) (kind string, addresses []string, err error) {
	kind, rest, _ := strings.Cut(text, ":")
	if kind != "unix" && kind != "tcp" && kind != "tcp+tls" || rest == "" {
		return "", nil, usagef("endpoint %q: write it as unix:/run/a.qmp (or a folder with control.qmp), tcp:HOST:PORT or tcp+tls:HOST:PORT?dir=FOLDER", text)
	}
	if kind == "tcp+tls" {
		rest, _, _ = strings.Cut(rest, "?")
	}
	addresses = strings.Split(rest, ",")
	if len(addresses) > 3 {
		return "", nil, usagef("endpoint %q: at most three monitors: control, events, sampler", text)
	}
	for _, address := range addresses {
		if _, _, err := net.SplitHostPort(address); kind != "unix" && err != nil {
			return "", nil, usagef("endpoint %q: %w: write it as %s:HOST:PORT", text, err, kind)
		}
	}
	if info, err := os.Stat(rest); kind == "unix" && err == nil && info.IsDir() {
		addresses = nil
		for _, role := range []string{guest.Control, guest.Events, guest.Sampler} {
			path := filepath.Join(rest, role+".qmp")
			if _, err := os.Stat(path); err == nil || role == guest.Control {
				addresses = append(addresses, path)
			}
		}
	}
	return kind, addresses, nil
}

// tlsOptions reads what follows the ? of a tcp+tls endpoint; what it returns encrypts the connection to an address.
func tlsOptions(text string) (func(endpoint.Dialer, string) endpoint.Dialer, error) {
	_, query, _ := strings.Cut(text, "?")
	options, err := url.ParseQuery(query)
	if err != nil {
		return nil, usagef("endpoint %q: %w", text, err)
	}
	for name := range options {
		if name != "dir" && name != "hostname" {
			return nil, usagef("endpoint %q: unknown option %s: have dir, hostname", text, name)
		}
	}
	if options.Get("dir") == "" {
		return nil, usagef("endpoint %q: the folder of our certificate is missing: write it as tcp+tls:HOST:PORT?dir=FOLDER, with ca-cert.pem, client-cert.pem and client-key.pem in it", text)
	}
	return func(d endpoint.Dialer, address string) endpoint.Dialer {
		host, _, _ := net.SplitHostPort(address)
		return tlsDialer(d, options.Get("dir"), first(options.Get("hostname"), host))
	}, nil
}

// shared is a monitor that both endpoints name; empty if there is none. One monitor serves one client, so we would wait for ourselves.
func shared(a, b string) string {
	kindA, as, errA := endpointAddresses(a)
	kindB, bs, errB := endpointAddresses(b)
	if errA != nil || errB != nil || strings.TrimSuffix(kindA, "+tls") != strings.TrimSuffix(kindB, "+tls") {
		return ""
	}
	for _, x := range as {
		for _, y := range bs {
			one, errX := os.Stat(x)
			other, errY := os.Stat(y)
			if x == y || kindA == "unix" && errX == nil && errY == nil && os.SameFile(one, other) {
				return y
			}
		}
	}
	return ""
}

func dialer(network, address string) endpoint.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		switch {
		case errors.Is(err, syscall.ENOENT):
			return nil, fmt.Errorf("%w: start QEMU with -qmp %s:%s,server=on,wait=off", err, network, address)
		case errors.Is(err, syscall.EINVAL) && network == "unix":
			return nil, fmt.Errorf("%w: a socket's path may have 107 bytes, this one has %d: use a shorter folder", err, len(address))
		case errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("%w: no QEMU listens there, or the one that did is gone", err)
		case errors.Is(err, syscall.EAGAIN):
			return nil, fmt.Errorf("%w: another client holds this monitor and others wait for it", err)
		}
		return conn, err
	}
}

// peer is the process that listens on a unix socket of this machine, known from the first connection on.
type peer struct {
	proc host.Process
	qemu bool // it is, or was, a QEMU
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
			return nil, fmt.Errorf("%s belongs to the QEMU of process %d, and the first monitor to that of process %d: give the monitors of one QEMU",
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
	return p.proc != nil && connect.NewProcess(host.Local(), p.proc).HasThread(id)
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
	return connect.NewProcess(host.Local(), p.proc).MainThreadCPU()
}

// MemoryLock is what QEMU may lock.
func (p *peer) MemoryLock() (limit int64, limited bool, err error) {
	if p.proc == nil {
		return 0, false, errNoProcess
	}
	return connect.NewProcess(host.Local(), p.proc).MemoryLock()
}
