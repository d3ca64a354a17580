package lab

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"time"

	"qmigrate/hostnet"
)

// Process is a QEMU process on a host as the engine needs it.
type Process struct {
	host hostnet.Host
	proc hostnet.Process
}

// NewProcess is for a QEMU that the lab did not start.
func NewProcess(h hostnet.Host, p hostnet.Process) Process { return Process{h, p} }

// Kill ends the process; nil means that it is known dead.
func (p Process) Kill(ctx context.Context) error { return p.proc.Kill(ctx) }

// Done is closed when the process has ended.
func (p Process) Done() <-chan struct{} { return p.proc.Done() }

// HasThread looks for the thread in /proc/PID/task.
func (p Process) HasThread(id int) bool {
	_, err := p.host.Stat(fmt.Sprintf("/proc/%d/task/%d", p.proc.PID(), id))
	return err == nil
}

// MainThreadCPU is the first field of /proc/PID/schedstat: the time, in ns, that QEMU's main thread has run.
func (p Process) MainThreadCPU() (time.Duration, error) {
	b, err := p.host.ReadFile(fmt.Sprintf("/proc/%d/schedstat", p.proc.PID()))
	if err != nil {
		return 0, fmt.Errorf("read main thread's time: %w", err)
	}
	first, _, _ := bytes.Cut(b, []byte(" "))
	ns, err := strconv.ParseInt(string(first), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read main thread's time: %w", err)
	}
	return time.Duration(ns), nil
}
