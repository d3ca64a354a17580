package main

import (
	"errors"
	"os/exec"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// children are the processes that the agent started, and waits for itself. All others that end are orphans, which
// process 1 has to reap.
type children struct {
	mu  sync.Mutex // held while one is started: none of ours may be taken for an orphan before it is known
	own map[int]bool
}

// start starts a program in a process group of its own, so that stop ends all of it.
func (c *children) start(cmd *exec.Cmd) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if c.own == nil {
		c.own = map[int]bool{}
	}
	c.own[cmd.Process.Pid] = true
	return nil
}

// wait waits for a program that start has started.
func (c *children) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.own, cmd.Process.Pid)
	return err
}

// stop sends a signal to a program's whole group; one that has ended is as good.
func stop(cmd *exec.Cmd, signal unix.Signal) { _ = unix.Kill(-cmd.Process.Pid, signal) }

// ownPause is how long an ended child of ours is given until whoever waits for it has it.
const ownPause = 5 * time.Millisecond

// reap takes the exit status of every process that was left to process 1, so that none stays a zombie.
func (c *children) reap() {
	for {
		c.mu.Lock()
		pid := ended()
		own := c.own[pid]
		if pid > 0 && !own {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // it has ended: this does not fail
		}
		c.mu.Unlock()
		switch {
		case pid <= 0:
			return
		case own:
			time.Sleep(ownPause)
		}
	}
}

// ended is the process number of a child that has ended and was not waited for; 0: none. It stays what it is. Source:
// siginfo_t of asm-generic/siginfo.h: si_pid follows three ints and, on 64-bit machines, their padding.
func ended() int {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil { // no children at all
			return 0
		}
		return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16)))
	}
}
