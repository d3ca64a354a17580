package host

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Scheduled is a Process whose threads can be made to give way to each other. A child and a process that was found are.
type Scheduled interface {
	// Threads are the numbers of its threads, as its host counts.
	Threads() ([]int, error)
	// Yield makes the given threads give way: whenever one comes back from a futex call, which is how a thread takes a
	// lock, wakes others or waits for them, it goes on only when all other threads of the process sleep, or have run for a
	// while. A small process traces them for that. It stays if we die, and ends with the threads; undo ends it before.
	// Tracing needs root, or a kernel that lets a user trace all of his processes (kernel.yama.ptrace_scope 0).
	Yield(threads []int) (undo func() error, err error)
}

func (p *child) Threads() ([]int, error)                       { return threads(p.PID()) }
func (p *child) Yield(to []int) (undo func() error, _ error)   { return yield(p.PID(), to) }
func (p *found) Threads() ([]int, error)                       { return threads(p.pid) }
func (p *found) Yield(some []int) (undo func() error, _ error) { return yield(p.pid, some) }

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

// A copy of this program that yield started is told by an environment variable, which lists a process and the threads
// to trace.
const (
	yieldList = "QMIGRATE_YIELD"
	yieldFlag = "-qmigrate.host.yield" // seen in a list of processes, otherwise unused
)

// Main must be the first call of main (and of TestMain): in a copy of the program that Yield started it does its work
// and exits; otherwise it does nothing.
func Main() {
	if list := os.Getenv(yieldList); list != "" {
		os.Exit(answerYield(os.Stdout, list))
	}
}

// yieldLimit is how long the tracing process may take to begin.
const yieldLimit = 10 * time.Second

// yield starts a copy of this program that traces the threads, in a session of its own so that no Ctrl-C ends it early.
func yield(pid int, some []int) (undo func() error, err error) {
	if _, err := threads(pid); err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", yieldFlag)
	cmd.Env = append(os.Environ(), yieldList+"="+strings.Trim(fmt.Sprint(append([]int{pid}, some...)), "[]"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the process that traces process %d: %w", pid, err)
	}
	late := time.AfterFunc(yieldLimit, func() { _ = cmd.Process.Kill() })
	said, err := bufio.NewReader(out).ReadString('\n')
	late.Stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how it ends tells nothing: usually we kill it
	}()
	undo = func() error {
		_ = cmd.Process.Kill() // the kernel lets the threads go
		<-ended
		return nil
	}
	if said = strings.TrimSpace(said); said != tracing {
		return nil, errors.Join(fmt.Errorf("trace the threads of process %d: %s", pid, cmp.Or(said, fmt.Sprint(err))), undo())
	}
	return undo, nil
}
