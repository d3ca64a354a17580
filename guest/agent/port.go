package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
)

// port is the guest's end of the virtio-serial port. The descriptor stays open for ever; the host's end comes and goes
// behind it. Linux (drivers/char/virtio_console.c, 6.1): while no host is there a read returns 0, a write would block
// and poll says POLLHUP; a write that does not block is taken whole up to 32 KiB, as one buffer, or not at all; a write
// that does block spins with interrupts off until QEMU has taken it, which is why the descriptor never blocks.
type port struct {
	fd      int
	closed  atomic.Bool // in the guest, never
	mu      sync.Mutex  // one line at a time, beats excepted
	parted  atomic.Bool // a line that takes several writes is under way: no beat may come between
	dropped atomic.Uint64
	garbage atomic.Uint64
}

// whole is how much one write takes whole or not at all.
const whole = 32 << 10

// hostless is how often a port without a host is looked at again.
const hostless = 10 * time.Millisecond

// findPort waits until the port is there: its name comes some time after its device.
func findPort(c clock, name, sys, dev string) (string, error) {
	for i := 0; ; i++ {
		names, err := filepath.Glob(filepath.Join(sys, "*", "name"))
		if err != nil {
			return "", fmt.Errorf("find port: %w", err)
		}
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == name {
				return filepath.Join(dev, filepath.Base(filepath.Dir(n))), nil
			}
		}
		if i == 5000 {
			fmt.Fprintf(os.Stderr, "qmigrate agent: still no virtio-serial port %s: is virtio_console loaded, does QEMU have "+
				"the port?\n", name)
		}
		c.sleep(time.Millisecond)
	}
}

// close lets go of the descriptor; what runs on the port ends within hostless of the host's end being closed.
func (p *port) close() {
	p.closed.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = unix.Close(p.fd)
}

func openPort(name string) (*port, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open port %s: %w", name, err)
	}
	return &port{fd: fd}, nil
}

// wait until the port can be read or written, or for a while; it reports whether a host is there.
func (p *port) wait(events int16) bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: events}}
	_, err := unix.Poll(fds, 10_000)
	if err == nil && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 && fds[0].Revents&unix.POLLIN == 0 {
		time.Sleep(hostless)
		return false
	}
	return true
}

// send writes a line as soon as a host reads. A reply is given up when the host that asked is gone; a note is kept for
// the next host.
func (p *port) send(line []byte, keep bool) (sent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.parted.Store(len(line) > whole)
	defer p.parted.Store(false)
	for rest := line; len(rest) > 0; {
		n, err := unix.Write(p.fd, rest)
		switch {
		case n > 0:
			rest = rest[n:]
		case err == unix.EINTR:
		case !p.wait(unix.POLLOUT):
			if !keep || p.closed.Load() {
				return false
			}
			rest = line // the next host gets the whole of it, which begins with a newline
		}
	}
	return true
}

// try writes a line of less than 32 KiB if it can be written at once. It does not allocate and waits for no lock: the
// one that holds it may be waiting for the host, or for the CPU behind a busy workload.
func (p *port) try(line []byte) bool {
	if !p.parted.Load() {
		if n, _ := unix.Write(p.fd, line); n == len(line) {
			return true
		}
	}
	p.dropped.Add(1)
	return false
}

var errLong = fmt.Errorf("decode request: the line is longer than %d bytes", wire.MaxRequest)

// lines calls take with each line that is not empty, until the port is closed. A half line is forgotten when its host
// goes away. One that is too long comes as an error.
func (p *port) lines(take func(line []byte, err error)) {
	buf := make([]byte, wire.MaxRequest)
	have, skip := 0, false
	for !p.closed.Load() {
		n, err := unix.Read(p.fd, buf[have:])
		switch {
		case n == 0 && err == nil:
			have, skip = 0, false
			time.Sleep(hostless)
			continue
		case n <= 0:
			p.wait(unix.POLLIN)
			continue
		}
		have += n
		rest := buf[:have]
		for {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				break
			}
			if line := bytes.TrimSpace(rest[:i]); len(line) > 0 && !skip {
				take(line, nil)
			}
			rest, skip = rest[i+1:], false
		}
		if have = copy(buf, rest); have == len(buf) {
			if !skip {
				take(nil, errLong)
			}
			have, skip = 0, true
		}
	}
}
