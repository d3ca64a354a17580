package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/internal/procfs"
)

// Once an attached process is dead we wait this long for the rest of what it wrote: a child of its own may hold the
// other end of the pipe open for ever.
const streamGrace = 2 * time.Second

func (m machine) Start(ctx context.Context, c Command) (Process, error) {
	if len(c.Args) == 0 {
		return nil, errors.New("start process: no program given")
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Args[0], err)
	}
	if c.Umask != 0 && m.like == nil { // exec keeps the process
		set := fmt.Sprintf(`umask %04o; exec "$@"`, c.Umask)
		c.Args = append([]string{"/bin/sh", "-c", set, "sh"}, c.Args...)
	}
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	if m.like == nil {
		cmd.Dir = c.Dir
	}
	if cmd.Env = c.Env; !c.Only {
		cmd.Env = append(os.Environ(), c.Env...)
	}
	cmd.WaitDelay = streamGrace
	if c.attached() {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if c.Log != "" {
			open := os.OpenFile
			if m.like != nil {
				open = m.like.open
			}
			log, err := open(c.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
			if err != nil {
				return nil, fmt.Errorf("start %s: %w", c.Args[0], err)
			}
			defer log.Close()
			cmd.Stdout, cmd.Stderr = log, log
		}
	}
	// The fork is made by the calling thread, and the child is where that thread is.
	start := func() error { return m.do(cmd.Start) }
	if m.like != nil {
		start = func() error { return m.like.start(cmd, m.namespace, c.Dir, c.Umask) }
	}
	if err := start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Args[0], err)
	}
	p := &child{cmd: cmd, done: make(chan struct{})}
	if st, err := readStat(cmd.Process.Pid); err == nil { // it is not reaped yet, so it is there
		p.start = st.Start
	}
	go p.wait()
	return p, nil
}

func (m machine) FindProcess(_ context.Context, pid int, startTime uint64) (Process, error) {
	return findProcess(pid, startTime)
}

// FindProcess is Local().FindProcess.
func FindProcess(pid int, startTime uint64) (Process, error) { return findProcess(pid, startTime) }

// child is a process that we started.
type child struct {
	cmd   *exec.Cmd
	start uint64
	done  chan struct{}
	err   error // set before done is closed
}

func (p *child) wait() {
	p.err = p.cmd.Wait()
	close(p.done)
}

func (p *child) PID() int                   { return p.cmd.Process.Pid }
func (p *child) StartTime() uint64          { return p.start }
func (p *child) Done() <-chan struct{}      { return p.done }
func (p *child) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

func (p *child) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

func (p *child) Kill(ctx context.Context) error { return kill(ctx, p) }

func (p *child) Usage() (Usage, error) {
	select {
	case <-p.done:
	default:
		u, err := usage(p.PID(), p.start)
		if err == nil {
			return u, nil
		}
		if !errors.Is(err, os.ErrProcessDone) {
			return Usage{}, err
		}
		<-p.done
	}
	s := p.cmd.ProcessState
	if s == nil {
		return Usage{}, fmt.Errorf("read usage of process %d: %w", p.PID(), p.err)
	}
	u := Usage{CPU: s.UserTime() + s.SystemTime()}
	if r, ok := s.SysUsage().(*syscall.Rusage); ok {
		u.PeakRSS = r.Maxrss * 1024 // KiB, getrusage(2)
	}
	return u, nil
}

// found is a process that somebody else started: a former run of ours.
type found struct {
	pid   int
	start uint64
	pidfd *os.File // nil where the kernel has none (before 5.3)
	once  sync.Once
	done  chan struct{}
}

func findProcess(pid int, start uint64) (Process, error) {
	if pid <= 0 || start == 0 {
		return nil, fmt.Errorf("find process %d: no process number or no start time given", pid)
	}
	p := &found{pid: pid, start: start, done: make(chan struct{})}
	// The descriptor first, the look at the start time second: if that is right now, the descriptor is of this process
	// or of one that is dead, never of a later one.
	switch fd, err := unix.PidfdOpen(pid, 0); {
	case err == nil:
		if err := unix.SetNonblock(fd, true); err != nil { // so that the runtime's poller takes it
			unix.Close(fd)
			return nil, fmt.Errorf("find process %d: %w", pid, err)
		}
		p.pidfd = os.NewFile(uintptr(fd), "pidfd")
	case errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("find process %d: %w", pid, os.ErrProcessDone)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM): // EPERM: a container's system call filter
	default:
		return nil, fmt.Errorf("find process %d: %w", pid, os.NewSyscallError("pidfd_open", err))
	}
	alive, err := p.alive()
	if err == nil && !alive {
		err = os.ErrProcessDone
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("find process %d started at tick %d: %w", pid, start, err)
	}
	return p, nil
}

// alive looks at the process. The error says that it could not be looked at: it is not known whether it is dead.
func (p *found) alive() (bool, error) {
	st, err := readStat(p.pid)
	if errors.Is(err, os.ErrProcessDone) {
		return false, nil
	}
	return err == nil && st.Start == p.start && st.State != 'Z' && st.State != 'X', err
}

func (p *found) close() {
	if p.pidfd != nil {
		p.pidfd.Close()
	}
}

func (p *found) PID() int                       { return p.pid }
func (p *found) StartTime() uint64              { return p.start }
func (p *found) Err() error                     { return nil }
func (p *found) Kill(ctx context.Context) error { return kill(ctx, p) }
func (p *found) Usage() (Usage, error)          { return usage(p.pid, p.start) }

// Done watches from the first call on, so that a process that was only looked at costs no goroutine.
func (p *found) Done() <-chan struct{} {
	p.once.Do(func() { go p.watch() })
	return p.done
}

func (p *found) watch() {
	defer close(p.done)
	defer p.close()
	if p.pidfd != nil {
		if conn, err := p.pidfd.SyscallConn(); err == nil {
			err = conn.Read(func(fd uintptr) bool { // a pidfd is readable when its process has ended
				n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
				return err == nil && n > 0
			})
			if err == nil {
				return
			}
		}
	}
	for alive, err := p.alive(); alive || err != nil; alive, err = p.alive() {
		time.Sleep(10 * time.Millisecond)
	}
}

func (p *found) Signal(sig os.Signal) error {
	s, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal process %d: %v is not a signal of this system", p.pid, sig)
	}
	alive, err := p.alive()
	switch {
	case err != nil:
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	case !alive:
		return os.ErrProcessDone
	}
	err = unix.ENOSYS
	if p.pidfd != nil {
		if conn, connErr := p.pidfd.SyscallConn(); connErr == nil {
			if ctlErr := conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), s, nil, 0) }); ctlErr != nil {
				return os.ErrProcessDone // watch has closed it
			}
		}
	}
	if errors.Is(err, unix.ENOSYS) {
		err = unix.Kill(p.pid, s)
	}
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

func kill(ctx context.Context, p Process) error {
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", p.PID(), err)
	}
	select {
	case <-p.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill process %d: not dead yet: %w", p.PID(), ctx.Err())
	}
}

// readStat reads the state of a process; os.ErrProcessDone is one that is not there.
func readStat(pid int) (procfs.Stat, error) {
	s, err := procfs.Process(pid).Stat(os.ReadFile)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		err = fmt.Errorf("read state of process %d: %w", pid, os.ErrProcessDone)
	}
	return s, err
}

// usage reads the process's own CPU clock, in nanoseconds. /proc/PID/schedstat has the main thread only, the sum over
// /proc/PID/task/*/schedstat lacks the threads that ended (QEMU's migration thread does), and /proc/PID/stat counts in
// ticks. The clock's number is made as clock_getcpuclockid(3) does: the complement of the pid, then 2 for all CPU time.
func usage(pid int, start uint64) (Usage, error) {
	gone := fmt.Errorf("read usage of process %d: %w", pid, os.ErrProcessDone)
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return Usage{}, gone
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Usage{}, gone
	}
	// Last, so that all of the above was this process's.
	if st, err := readStat(pid); err != nil || st.Start != start || st.State == 'Z' {
		return Usage{}, gone
	}
	return Usage{CPU: time.Duration(ts.Nano()), RSS: procfs.Bytes(data, "VmRSS"), PeakRSS: procfs.Bytes(data, "VmHWM")},
		nil
}

// StartTime is the start time, for FindProcess, of the process that has this number on this machine now.
func StartTime(pid int) (uint64, error) {
	s, err := readStat(pid)
	return s.Start, err
}
