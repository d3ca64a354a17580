package hostnet

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Scheduled is a Process that can be told how its threads share the processors. A child and a process that was found are; both
// need no privilege for it where the process is the caller's own.
type Scheduled interface {
	// Threads are the numbers of its threads, as its host counts.
	Threads() ([]int, error)
	// Yield puts all its threads on one processor, and the given ones into SCHED_IDLE: there they run only while no other thread
	// of the process wants to, and one that wakes up takes the processor from them at once. undo gives the processors
	// back; a thread cannot leave SCHED_IDLE without privilege, and those given stay in it.
	Yield(threads []int) (undo func() error, err error)
}

func (p *child) Threads() ([]int, error)                       { return threads(p.PID()) }
func (p *child) Yield(idle []int) (func() error, error)        { return yield(p.PID(), idle) }
func (p *found) Threads() ([]int, error)                       { return threads(p.pid) }
func (p *found) Yield(idle []int) (undo func() error, _ error) { return yield(p.pid, idle) }

func threads(pid int) ([]int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = os.ErrProcessDone
		}
		return nil, fmt.Errorf("list threads of process %d: %w", pid, err)
	}
	var all []int
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, id)
		}
	}
	return all, nil
}

func yield(pid int, idle []int) (undo func() error, err error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &allowed); err != nil {
		return nil, fmt.Errorf("read processors of process %d: %w", pid, os.NewSyscallError("sched_getaffinity", err))
	}
	undo = func() error { return onProcessors(pid, &allowed) }
	// One of those that it may use: another one for the next process, so that two QEMUs on one machine do not share theirs.
	var usable []int
	for cpu := range len(allowed) * 64 {
		if allowed.IsSet(cpu) {
			usable = append(usable, cpu)
		}
	}
	var one unix.CPUSet
	one.Set(usable[pid%len(usable)])
	if err := onProcessors(pid, &one); err != nil {
		return nil, errors.Join(err, undo())
	}
	for _, id := range idle {
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
		if err := unix.SchedSetAttr(id, &attr, 0); err != nil && !errors.Is(err, unix.ESRCH) { // a thread may have ended
			return nil, errors.Join(fmt.Errorf("make thread %d of process %d yield: %w", id, pid, os.NewSyscallError("sched_setattr", err)), undo())
		}
	}
	return undo, nil
}

// onProcessors binds every thread of the process; those that it makes meanwhile inherit from one that is bound, or are found in the next turn.
func onProcessors(pid int, set *unix.CPUSet) error {
	var bound []int
	for {
		all, err := threads(pid)
		if err != nil {
			return err
		}
		again := false
		for _, id := range all {
			if slices.Contains(bound, id) {
				continue
			}
			if err := unix.SchedSetaffinity(id, set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("bind thread %d of process %d: %w", id, pid, os.NewSyscallError("sched_setaffinity", err))
			}
			bound, again = append(bound, id), true
		}
		if !again {
			return nil
		}
	}
}
