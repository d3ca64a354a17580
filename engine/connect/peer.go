package connect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/connect/behind"
	"qmigrate/engine/endpoint"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
)

// peer is the process that listens on a unix socket of a host, known from the first connection on. It outlives the
// channel to that host: over a new one it is found again by its number and its start time.
type peer struct {
	name  string                                   // the host, as users write it
	reach func(context.Context) (host.Host, error) // finds the host, over a new channel if the last one has closed
	found func(place string)                       // is told where it runs, if it is a QEMU and that is known
	// monitors is the path of the first monitor, which the host has to be asked for where a folder may be named
	monitors func(context.Context, host.Host) (string, error)
	// owner is the process behind a connection of the control monitor, by its number; 0 if it is not known
	owner func(ctx context.Context, h host.Host, conn net.Conn) int
	// threadOf is the process that has a thread, where that may count otherwise than its host; nil: it counts as that does
	threadOf func(ctx context.Context, h host.Host, id int) int

	mu   sync.Mutex
	on   host.Host // where proc was found
	proc host.Process
	look behind.Look
	ours bool          // it runs on our own kernel
	done chan struct{} // closed when the process of a far host has ended; nil: proc knows
}

var errNoProcess = errors.New("the process behind the monitor is not known")

// lookLimit is how long a look at the process may take where nobody has said how long.
const lookLimit = 5 * time.Second

// host is the endpoint's host. Over a new channel the process is looked for once more.
func (p *peer) host(ctx context.Context) (host.Host, error) {
	h, err := p.reach(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	known, before := p.proc, p.on
	p.mu.Unlock()
	if known == nil || before == h {
		return h, nil
	}
	if err := p.sameKernel(h); err != nil {
		return nil, err
	}
	again, err := h.FindProcess(ctx, known.PID(), known.StartTime())
	switch {
	case errors.Is(err, os.ErrProcessDone):
		p.ended()
		return h, nil
	case err != nil:
		return nil, err
	}
	p.mu.Lock()
	p.on, p.proc = h, again
	p.mu.Unlock()
	p.watch(h, again)
	return h, nil
}

// sameKernel refuses a host of the same name that is another machine, or the same one after a new start, which cannot
// be told apart: that our process is not there says nothing then. A name may stand for several machines.
func (p *peer) sameKernel(h host.Host) error {
	p.mu.Lock()
	before, pid := p.look.Boot, p.proc.PID()
	p.mu.Unlock()
	now, err := behind.BootOf(h.ReadFile)
	if err != nil {
		return fmt.Errorf("reach host %s again: %w", p.name, err)
	}
	if before != "" && before != now {
		return fmt.Errorf("reach host %s again: another machine answers by that name, or it was started anew: it is not known "+
			"whether process %d still runs: look there", p.name, pid)
	}
	return nil
}

// watch notes the end of a process of a far host. The end of the channel is none.
func (p *peer) watch(h host.Host, proc host.Process) {
	far, ok := h.(*host.Far)
	if !ok {
		return
	}
	go func() {
		select {
		case <-proc.Done():
			p.ended()
		case <-far.Closed():
		}
	}()
}

func (p *peer) ended() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
	default:
		close(p.done)
	}
}

// process is the process and its host as they are known; nil if none is.
func (p *peer) process() (host.Host, host.Process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.on, p.proc
}

// isQEMU tells whether it is, or was, a QEMU.
func (p *peer) isQEMU() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.look.QEMU
}

// live is process over a channel that stands, as far as is known.
func (p *peer) live() (host.Host, host.Process, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
	defer cancel()
	if _, proc := p.process(); proc == nil {
		return nil, nil, errNoProcess
	}
	if _, err := p.host(ctx); err != nil {
		return nil, nil, err
	}
	h, proc := p.process()
	return h, proc, nil
}

// ask asks the process's host about it.
func ask[In, Out any](p *peer, task host.Task[In, Out], in func(pid int) In) (out Out, err error) {
	h, proc, err := p.live()
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
	defer cancel()
	return task.Ask(ctx, h, in(proc.PID()))
}

// dial connects and remembers who listens. Once that is a QEMU, it may not be another one.
func (p *peer) dial(connect func(context.Context, host.Host) (net.Conn, error)) endpoint.Dialer {
	same := p.sameAs(connect)
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := same(ctx)
		if err != nil {
			return nil, err
		}
		if _, known := p.process(); known != nil {
			return conn, nil
		}
		h, err := p.reach(ctx)
		if err != nil {
			conn.Close()
			return nil, err
		}
		// SO_PEERCRED of the client is the process that called listen(2). That is QEMU if QEMU made the socket. It is
		// another process if QEMU was handed the socket, or if a forwarder (ssh -L, socat) stands in for a QEMU elsewhere:
		// HasThread tells.
		pid := p.owner(ctx, h, conn)
		if pid == 0 {
			return conn, nil
		}
		look, ours, err := lookAt(ctx, h, pid)
		if err != nil {
			return conn, nil
		}
		proc, err := h.FindProcess(ctx, look.PID, look.Start)
		if err != nil {
			return conn, nil
		}
		p.mu.Lock()
		p.on, p.proc, p.look, p.ours = h, proc, look, ours
		if _, far := h.(*host.Far); far {
			p.done = make(chan struct{})
		}
		p.mu.Unlock()
		p.watch(h, proc)
		if place := placeOn(p.name, look.Place); look.QEMU && place != "" && p.found != nil {
			p.found(place)
		}
		return conn, nil
	}
}

// placeOn is where a process runs that its host places; "" if that is not known.
func placeOn(name, place string) string {
	switch {
	case name == local:
		return place
	case place == "" || place == local:
		return name
	}
	return name + " " + place
}

// sameAs connects and refuses a QEMU that is another one than that behind the first monitor. Forwarders are not
// compared.
func (p *peer) sameAs(connect func(context.Context, host.Host) (net.Conn, error)) endpoint.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		h, err := p.host(ctx)
		if err != nil {
			return nil, err
		}
		conn, err := connect(ctx, h)
		if err != nil {
			return nil, err
		}
		_, first := p.process()
		if first == nil {
			return conn, nil
		}
		pid := host.Listener(conn)
		if pid == 0 || pid == first.PID() || !p.isQEMU() {
			return conn, nil
		}
		if other, err := behind.Looks().Ask(ctx, h, pid); err == nil && other.QEMU {
			conn.Close()
			return nil, fmt.Errorf("%s belongs to the QEMU of process %d, and the first monitor to that of process %d: give "+
				"the monitors of one QEMU", conn.RemoteAddr(), pid, first.PID())
		}
		return conn, nil
	}
}

// Kill ends the process; nil means that it is known dead.
func (p *peer) Kill(ctx context.Context) error {
	if _, proc := p.process(); proc == nil {
		return errNoProcess
	}
	if _, err := p.host(ctx); err != nil {
		return err
	}
	select {
	case <-p.Done():
		return nil
	default:
	}
	_, proc := p.process()
	return proc.Kill(ctx)
}

// Done is closed when the process has ended; nil if it is not known.
func (p *peer) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc == nil || p.done != nil {
		return p.done
	}
	return p.proc.Done()
}

// readFile reads a file as the process sees it, which may live under another root.
func (p *peer) readFile(name string) ([]byte, error) {
	h, proc, err := p.live()
	if err != nil {
		return nil, err
	}
	return h.ReadFile(filepath.Join(fmt.Sprintf("/proc/%d/root", proc.PID()), name))
}

// HasThread tells a QEMU from a forwarder that listens for it, and from a manager that made its socket.
func (p *peer) HasThread(id int) bool {
	h, proc, err := p.live()
	if err == nil && p.threadOf != nil {
		ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
		defer cancel()
		return p.threadOf(ctx, h, id) == proc.PID()
	}
	return err == nil && NewProcess(h, proc).HasThread(id)
}

// machine tells the machine that the process runs on from all others.
func (p *peer) machine() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return machineOn(p.name, p.look.Boot, p.ours)
}

// lookAt looks at a process of a host. ours tells whether its kernel is ours: its clock then shows an instant between
// our question and the answer.
func lookAt(ctx context.Context, h host.Host, pid int) (look behind.Look, ours bool, err error) {
	asked := behind.Clock()
	look, err = behind.Looks().Ask(ctx, h, pid)
	return look, asked <= look.Clock && look.Clock <= behind.Clock(), err
}

// machineOn tells the machine of a host from all others. Of one that ssh has reached only the same address is the same
// machine: what it shows may be a copy's.
func machineOn(name, boot string, ours bool) string {
	switch {
	case strings.HasPrefix(name, "ssh:"):
		return name
	case ours:
		return endpoint.ThisMachine
	case boot == "":
		return name
	}
	return boot
}

// opened tells what files that the process has open are to its host.
func (p *peer) opened(names []string) map[string]endpoint.OpenFile {
	all, _ := ask(p, behind.Opened(), func(pid int) behind.Files { return behind.Files{PID: pid, Names: names} })
	return all
}

// WhyMute says, as far as its host knows, why it does not greet, or not answer.
func (p *peer) WhyMute(nc net.Conn) string {
	m := behind.Monitor{}
	if nc != nil && nc.RemoteAddr() != nil {
		m.Path = nc.RemoteAddr().String()
	}
	why, _ := ask(p, behind.Mute(), func(pid int) behind.Monitor {
		m.PID = pid
		return m
	})
	return why
}

// ErrElsewhere is that of an endpoint whose monitor is no unix socket of this machine.
var ErrElsewhere = errors.New("it is not on this machine, as far as is known")

// Behind is the process behind an endpoint's monitor, once that has been connected to.
func Behind(e *endpoint.Endpoint) (*launch.Process, error) {
	p, ok := e.Process.(*peer)
	if !ok || p.name != local {
		return nil, ErrElsewhere
	}
	_, proc := p.process()
	if proc == nil {
		return nil, errNoProcess
	}
	return launch.ReadProcess(proc.PID())
}

// Handle is what that process can be signalled by; nil if it is not known.
func Handle(e *endpoint.Endpoint) host.Process {
	p, ok := e.Process.(*peer)
	if !ok {
		return nil
	}
	_, proc := p.process()
	return proc
}

// MachineOf says what the endpoint's host is, once its monitor has been connected to and a QEMU listens there: its
// kernel's release and its processor. They are "" where that is not known.
func MachineOf(ctx context.Context, e *endpoint.Endpoint) (kernel, cpu string) {
	p, ok := e.Process.(*peer)
	if !ok || !p.isQEMU() {
		return "", ""
	}
	h, err := p.host(ctx)
	if err != nil {
		return "", ""
	}
	return Machine(ctx, h)
}

// Machine says what a host is: its kernel's release and its processor; "" where that is not known.
func Machine(ctx context.Context, h host.Host) (kernel, cpu string) {
	m, _ := behind.Machines().Ask(ctx, h, struct{}{})
	return m.Kernel, m.CPU
}

// TryListen listens for a moment in place of a QEMU that is on its host's own network.
func (p *peer) TryListen(address, port string) error {
	h, proc, err := p.live()
	if err != nil { // it cannot be tried
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
	defer cancel()
	_, err = behind.TryListen().Ask(ctx, h, behind.Port{PID: proc.PID(), Host: address, Port: port})
	return err
}

// Network is the process's network namespace.
func (p *peer) Network() (string, error) {
	return ask(p, behind.Networks(), func(pid int) int { return pid })
}

// MainThreadCPU is the processor time of QEMU's main thread.
func (p *peer) MainThreadCPU() (time.Duration, error) {
	h, proc, err := p.live()
	if err != nil {
		return 0, err
	}
	return NewProcess(h, proc).MainThreadCPU()
}

// MemoryLock is what QEMU may lock.
func (p *peer) MemoryLock() (limit int64, limited bool, err error) {
	h, proc, err := p.live()
	if err != nil {
		return 0, false, err
	}
	return NewProcess(h, proc).MemoryLock()
}
