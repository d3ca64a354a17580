package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"qmigrate/internal/procfs"
)

// What the tracing process says when it has begun, and its limits.
const (
	tracing   = "tracing"
	fairShare = 5 * time.Millisecond // a thread that has run for so long is busy with something else
	holdLimit = time.Second          // the longest wait, on a machine that gives the other threads no time
	scanPause = 50 * time.Microsecond
)

// answerYield is the copy's side of Yield: it traces threads until they have ended. The first number is their process.
func answerYield(w io.Writer, list string) int {
	runtime.LockOSThread() // who attaches is the tracer, and nobody else
	var ids []int
	for _, field := range strings.Fields(list) {
		id, err := strconv.Atoi(field)
		if err != nil {
			fmt.Fprintln(w, err)
			return 1
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		fmt.Fprintln(w, "no process is given")
		return 1
	}
	t := tracer{pid: ids[0], traced: ids[1:], call: map[int]uint64{}}
	for _, id := range t.traced {
		if err := attach(id); err != nil && !errors.Is(err, unix.ESRCH) { // a thread may have ended
			if errors.Is(err, unix.EPERM) {
				err = fmt.Errorf("%w: root may, or whoever owns both processes if kernel.yama.ptrace_scope is 0", err)
			}
			fmt.Fprintf(w, "attach to thread %d: %v\n", id, err)
			return 1
		}
	}
	fmt.Fprintln(w, tracing)
	if err := t.run(); err != nil {
		return 1
	}
	return 0
}

// attach makes this thread the tracer of another process's thread, which runs on and stops at the edges of its system
// calls.
func attach(id int) error {
	if err := unix.PtraceSeize(id); err != nil {
		return err
	}
	if err := unix.PtraceInterrupt(id); err != nil {
		return err
	}
	var status unix.WaitStatus
	if _, err := wait4(id, &status); err != nil {
		return err
	}
	if err := unix.PtraceSetOptions(id, unix.PTRACE_O_TRACESYSGOOD); err != nil {
		return err
	}
	return unix.PtraceSyscall(id, 0)
}

func wait4(id int, status *unix.WaitStatus) (int, error) {
	for {
		got, err := unix.Wait4(id, status, unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return got, err
		}
	}
}

// tracer holds threads of a process at the ends of their futex calls.
type tracer struct {
	pid    int
	traced []int
	call   map[int]uint64 // the number of the system call that a thread is in
}

// run serves the threads' stops until none is left.
func (t *tracer) run() error {
	for {
		var status unix.WaitStatus
		id, err := wait4(-1, &status)
		switch {
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil:
			return err
		case !status.Stopped(): // it has ended
			continue
		}
		signal := 0
		switch s := status.StopSignal(); {
		case s == unix.SIGTRAP|0x80:
			t.edge(id)
		case int(status)>>16 == unix.PTRACE_EVENT_STOP:
			if s != unix.SIGTRAP { // the whole process was stopped, and stays so
				_, _, _ = unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_LISTEN, uintptr(id), 0, 0, 0, 0)
				continue
			}
		default:
			signal = int(s)
		}
		if err := unix.PtraceSyscall(id, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
}

// edge is one edge of a thread's system call. See ptrace(2), PTRACE_GET_SYSCALL_INFO.
func (t *tracer) edge(id int) {
	var info struct {
		op     uint8
		_      [3]uint8
		arch   uint32
		ip, sp uint64
		nr     uint64 // at an entry
		_      [8]uint64
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(id), unsafe.Sizeof(info),
		uintptr(unsafe.Pointer(&info)), 0, 0)
	switch {
	case errno != 0:
	case info.op == unix.PTRACE_SYSCALL_INFO_ENTRY:
		t.call[id] = info.nr
	case info.op == unix.PTRACE_SYSCALL_INFO_EXIT:
		if t.call[id] == unix.SYS_FUTEX {
			t.hold()
		}
		delete(t.call, id)
	}
}

// hold returns when every other thread of the process sleeps or has had its share. Two looks in a row must agree, for
// while one thread is looked at another may wake it.
func (t *tracer) hold() {
	begun := time.Now()
	first := map[int]procfs.Schedule{}
	var last map[int]procfs.Schedule
	for time.Since(begun) < holdLimit {
		now, quiet := t.scan(first)
		if quiet && last != nil && same(last, now) {
			return
		}
		if last = now; !quiet {
			last = nil
			time.Sleep(scanPause)
		}
	}
}

func same(a, b map[int]procfs.Schedule) bool {
	for id, x := range b {
		if a[id].Turns != x.Turns {
			return false
		}
	}
	return len(a) == len(b)
}

// scan looks at the other threads. First has what they had when the hold began, and is filled by the first look.
func (t *tracer) scan(first map[int]procfs.Schedule) (now map[int]procfs.Schedule, quiet bool) {
	all, err := threads(t.pid)
	if err != nil {
		return nil, true // the process has ended
	}
	now, quiet = map[int]procfs.Schedule{}, true
	for _, id := range all {
		if slices.Contains(t.traced, id) {
			continue
		}
		thread := procfs.Thread(t.pid, id)
		state, err := thread.Stat(os.ReadFile)
		if err != nil { // it has ended
			continue
		}
		x, err := thread.Schedule(os.ReadFile)
		if err != nil {
			continue
		}
		asleep := state.State != 'R' && state.State != 'D'
		if _, known := first[id]; !known {
			first[id] = x
		}
		now[id] = x
		quiet = quiet && (asleep || x.Ran-first[id].Ran >= fairShare)
	}
	return now, quiet
}
