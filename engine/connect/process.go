package connect

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
)

// Process is a QEMU process on a host as the engine needs it.
type Process struct {
	host host.Host
	proc host.Process
}

// NewProcess is for a QEMU that the lab did not start.
func NewProcess(h host.Host, p host.Process) Process { return Process{h, p} }

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
	s, err := procfs.Process(p.proc.PID()).Schedule(p.host.ReadFile)
	if err != nil {
		return 0, fmt.Errorf("read main thread's time: %w", err)
	}
	return s.Ran, nil
}

// MemoryLock is the soft limit of /proc/PID/limits; a process with CAP_IPC_LOCK has none.
func (p Process) MemoryLock() (limit int64, limited bool, err error) {
	status, err := p.host.ReadFile(fmt.Sprintf("/proc/%d/status", p.proc.PID()))
	if err != nil {
		return 0, false, fmt.Errorf("read the process's capabilities: %w", err)
	}
	effective, err := strconv.ParseUint(procfs.Value(status, "CapEff"), 16, 64)
	if err != nil {
		return 0, false, fmt.Errorf("read the process's capabilities: %w", err)
	}
	if effective&(1<<unix.CAP_IPC_LOCK) != 0 {
		return 0, false, nil
	}
	limits, err := p.host.ReadFile(fmt.Sprintf("/proc/%d/limits", p.proc.PID()))
	if err != nil {
		return 0, false, fmt.Errorf("read the process's limits: %w", err)
	}
	soft, err := procfs.SoftLimit(limits, "Max locked memory")
	if err != nil || soft == nil {
		return 0, false, err
	}
	return *soft, true, nil
}

// Threads are the numbers of its threads.
func (p Process) Threads() ([]int, error) {
	s, err := p.scheduled()
	if err != nil {
		return nil, err
	}
	return s.Threads()
}

// Yield makes the given threads give way to all others of the process.
func (p Process) Yield(threads []int) (undo func() error, err error) {
	s, err := p.scheduled()
	if err != nil {
		return nil, err
	}
	return s.Yield(threads)
}

func (p Process) scheduled() (host.Scheduled, error) {
	if s, ok := p.proc.(host.Scheduled); ok {
		return s, nil
	}
	return nil, &host.UnsupportedError{Feature: "yielding threads",
		Reason: "the threads of processes of host " + p.host.Name() + " cannot be traced from here"}
}
