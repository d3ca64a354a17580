// Agent is process 1 of a lab guest: it sets the guest up, says that it is ready, beats, echoes, works and verifies, as
// the host asks it over a virtio-serial port (package wire has the words).
package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
)

// agent is all there is in the guest. Its parts have locks of their own.
type agent struct {
	clock    clock
	started  time.Duration
	port     *port
	beats    *beats
	mem      memory
	disks    disks
	children children
	notes    chan []byte // lines that wait for a host
	lost     atomic.Uint64
	workers  sync.WaitGroup
	off      func()                  // powers the guest off
	broken   func(what, text string) // the agent's own end

	listen   func(network, address string) (net.Listener, error)
	findDisk func(serial string) (device string, bytes int64, err error) // nil: the guest's own disks

	work sync.Mutex // held while memory is filled or a workload is made ready: one at a time

	mu       sync.Mutex
	boot     wire.Boot
	ready    time.Duration
	problems []string
	job      *job
}

func newAgent(c clock) *agent {
	a := &agent{clock: c, started: c.now(), notes: make(chan []byte, 64)}
	a.off, a.broken, a.listen = powerOff, a.die, net.Listen
	return a
}

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "qmigrate agent: this is process 1 of a lab guest: it mounts, sets addresses and powers "+
			"off, and does so nowhere else")
		os.Exit(2)
	}
	a := newAgent(newMonotonic())
	defer a.rescue("main")
	a.run()
}

// run sets the guest up and serves for ever.
func (a *agent) run() {
	a.problem(mount())
	// One thread more than the guest has CPUs for each that must run beside a busy workload: the kernel, not Go's
	// scheduler with its 10 ms, decides who is next.
	runtime.GOMAXPROCS(runtime.NumCPU() + 4)
	boot, err := wire.ParseBoot(word("/proc/cmdline"))
	a.problem(err)
	a.boot = boot
	a.problem(loadModules("/modules.list"))
	if boot.Root != "" {
		a.problem(a.enterRoot(boot.Root))
	}
	a.problem(configure(a.clock, boot.IP, boot.Gateway))

	a.beats, err = newBeats(a.clock, boot.Beat, boot.BeatInterval)
	a.problem(err)
	a.spawn("heartbeat", a.beats.run)
	a.spawn("echo", a.echo)
	a.spawn("reaper", func() {
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGCHLD)
		for a.children.reap(); ; a.children.reap() {
			<-c
		}
	})
	for a.port == nil {
		name, err := findPort(a.clock, wire.Port, "/sys/class/virtio-ports", "/dev")
		if err == nil {
			a.port, err = openPort(name)
		}
		if err != nil {
			a.problem(err)
			a.clock.sleep(time.Second)
		}
	}
	a.beats.port.Store(a.port)
	a.spawn("notes", a.sendNotes)
	a.mu.Lock()
	a.ready = a.clock.now()
	a.mu.Unlock()
	a.note(wire.EventReady, a.hello())
	fmt.Fprintf(os.Stderr, "qmigrate agent: ready at %v, %v of it mine\n", a.ready, a.ready-a.started)
	a.serve()
	panic("the port is closed")
}

// echo sends back what it is sent.
func (a *agent) echo() {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(int(a.boot.Echo)))
	if err != nil {
		a.problem(fmt.Errorf("echo: %w", err))
		return
	}
	a.echoOn(l)
}

func (a *agent) echoOn(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			a.problem(fmt.Errorf("echo: %w", err))
			return
		}
		a.spawn("echo connection", func() {
			defer c.Close()
			if t, ok := c.(*net.TCPConn); ok {
				_ = t.SetNoDelay(true) // a connection that is gone shows in the read
			}
			buf := make([]byte, 64<<10)
			for {
				n, err := c.Read(buf)
				if _, werr := c.Write(buf[:n]); err != nil || werr != nil {
					return
				}
			}
		})
	}
}

// problem keeps what went wrong for hello and says it on the console.
func (a *agent) problem(err error) {
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "qmigrate agent: %v\n", err)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.problems) < 100 {
		a.problems = append(a.problems, err.Error())
	}
}

// spawn runs f beside everything else; its panic is the agent's end.
func (a *agent) spawn(what string, f func()) {
	a.workers.Go(func() {
		defer a.rescue(what)
		f()
	})
}

func (a *agent) rescue(what string) {
	if p := recover(); p != nil {
		a.broken(what, fmt.Sprintf("panic: %v\n%s", p, debug.Stack()))
	}
}

// die tells the console and, if it reads, the host, and powers off; a guest that cannot says so for ever.
func (a *agent) die(what, text string) {
	fmt.Fprintf(os.Stderr, "qmigrate agent: %s: %s\n", what, text)
	if line, err := wire.Line(wire.Note{Event: wire.EventPanic,
		Data: quote(wire.Panic{Text: what + ": " + text})}); err == nil && a.port != nil {
		_, _ = unix.Write(a.port.fd, line) // without the lock, which the broken one may hold
		time.Sleep(100 * time.Millisecond) // QEMU takes it from the ring
	}
	a.off()
	for {
		fmt.Fprintf(os.Stderr, "qmigrate agent: %s is broken and the guest could not power off\n", what)
		time.Sleep(time.Second)
	}
}
