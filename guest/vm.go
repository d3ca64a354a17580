package guest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"qmigrate/guest/debian"
	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
	"qmigrate/qmp"
)

// MaxSocketPath is the longest path that a unix socket address holds on Linux (sun_path less its NUL).
const MaxSocketPath = 107

// quitLimit is how long Close waits for QEMU to take `quit` and to go before it is killed.
const quitLimit = 2 * time.Second

// VM is one QEMU process, ours from Start or Open to Close.
type VM struct {
	spec Spec
	host host.Host
	proc host.Process
}

// StartError is a QEMU that ended, or did not answer its monitor, before the guest was there.
type StartError struct {
	QEMU string // the binary
	Log  string // the tail of what it said
	Err  error
}

func (e *StartError) Error() string {
	if e.Log == "" {
		return fmt.Sprintf("start %s: %v", e.QEMU, e.Err)
	}
	return fmt.Sprintf("start %s: %v: %s", e.QEMU, e.Err, e.Log)
}

func (e *StartError) Unwrap() error { return e.Err }

// Start makes s.Dir (0700) on h, starts QEMU there and returns when its main loop answers on the control monitor, which
// is free again then. ctx ends the wait, not the VM. On error nothing is left; a *StartError carries what QEMU said.
func Start(ctx context.Context, h host.Host, s Spec) (*VM, error) {
	s = s.withDefaults()
	if s.QEMU == "" || s.Dir == "" {
		return nil, errors.New("start guest: Spec.QEMU and Spec.Dir are needed")
	}
	if _, err := h.Stat(s.Dir); err == nil {
		return nil, fmt.Errorf("start guest: folder %s exists: a guest needs one of its own", s.Dir)
	}
	return start(ctx, h, s, host.Command{Args: append([]string{s.QEMU}, s.Args()...)})
}

// start runs c with the new folder s.Dir and waits for the control monitor.
func start(ctx context.Context, h host.Host, s Spec, c host.Command) (_ *VM, err error) {
	if p := s.Socket(Control); len(p) > MaxSocketPath-2 { // sampler.qmp is as long; events.qmp shorter
		return nil, fmt.Errorf("start guest: socket path %s is longer than the kernel's %d bytes: use a shorter folder", p,
			MaxSocketPath)
	}
	if err := h.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder %s: %w", s.Dir, err)
	}
	vm := &VM{spec: s, host: h}
	defer func() {
		if err != nil {
			err = errors.Join(err, vm.Close())
		}
	}()
	if dir := debian.OwnModules(s.QEMU); dir != "" { // the wrapper says so too, but not everybody starts it by the wrapper
		c.Env = append(slices.Clone(c.Env), "QEMU_MODULE_DIR="+dir)
	}
	c.Umask = 0o177 // QEMU makes its sockets with what it finds
	c.Log = s.Socket("log")
	vm.proc, err = h.Start(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.QEMU, err)
	}
	if err := vm.wait(ctx); err != nil {
		return nil, &StartError{QEMU: s.QEMU, Log: tail(h, s.Socket("log")), Err: err}
	}
	return vm, nil
}

// wait returns when QEMU's main loop has answered one command on the control monitor. The greeting alone proves
// nothing: it comes from the monitor's own thread, before the machine exists.
func (vm *VM) wait(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-vm.proc.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 10*time.Millisecond) {
		err := vm.answers(ctx)
		if err == nil {
			return nil
		}
		if errors.As(err, new(*host.ChannelError)) { // whether it comes up is not known here any more
			return err
		}
		ended := func() error {
			return fmt.Errorf("QEMU ended: %w", cmp.Or(vm.proc.Err(), errors.New("exit status 0")))
		}
		select {
		case <-vm.proc.Done():
			return ended()
		case <-ctx.Done():
			select {
			case <-vm.proc.Done(): // its end is what ended ctx
				return ended()
			default:
			}
			return fmt.Errorf("control monitor %s: %w", vm.spec.Socket(Control), errors.Join(ctx.Err(), err))
		case <-time.After(pause):
		}
	}
}

func (vm *VM) answers(ctx context.Context) error {
	c, err := vm.monitor(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.QueryStatus(ctx)
	return err
}

func (vm *VM) monitor(ctx context.Context) (*qmp.Conn, error) {
	nc, err := vm.Dial(ctx, Control)
	if err != nil {
		return nil, err
	}
	return qmp.NewConn(ctx, nc, qmp.Options{})
}

// Open takes over the VM that a former process started with s and whose QEMU has this pid. If that process is gone, or
// the number is another program's by now, the error wraps os.ErrProcessDone.
func Open(ctx context.Context, h host.Host, s Spec, pid int) (*VM, error) {
	s = s.withDefaults()
	// The start time first: a process that takes the number after this has another.
	stat, err := procfs.Process(pid).Stat(h.ReadFile)
	var cmdline []byte
	if err == nil {
		cmdline, err = h.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		err = os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("open guest %s: process %d: %w", s.Name, pid, err)
	}
	if !bytes.Contains(cmdline, []byte("\x00"+s.Socket("pid")+"\x00")) {
		return nil, fmt.Errorf("open guest %s: %w: %d is another program by now (%s)", s.Name, os.ErrProcessDone, pid,
			firstOf(procfs.Args(cmdline)))
	}
	p, err := h.FindProcess(ctx, pid, stat.Start)
	if err != nil {
		return nil, fmt.Errorf("open guest %s: %w", s.Name, err)
	}
	return &VM{spec: s, host: h, proc: p}, nil
}

func firstOf(a []string) string {
	if len(a) == 0 {
		return "a kernel thread"
	}
	return a[0]
}

// Spec is what the VM was started with, defaults filled in.
func (vm *VM) Spec() Spec { return vm.spec }

// Host is where the VM runs.
func (vm *VM) Host() host.Host { return vm.host }

// Process is the QEMU process.
func (vm *VM) Process() host.Process { return vm.proc }

// Dial connects to the socket of a role: Control, Events, Sampler or AgentIO. Each serves one client at a time; a
// second waits.
func (vm *VM) Dial(ctx context.Context, role string) (net.Conn, error) {
	return vm.host.Dial(ctx, "unix", vm.spec.Socket(role))
}

// Kill ends QEMU by SIGKILL; when it returns nil the process is known dead.
func (vm *VM) Kill(ctx context.Context) error { return vm.proc.Kill(ctx) }

// Console is what the guest's kernel printed so far.
func (vm *VM) Console() (string, error) {
	b, err := vm.host.ReadFile(vm.spec.Socket("console"))
	return string(b), err
}

// Close asks QEMU to quit, kills it if it does not, and removes s.Dir, or with Spec.KeepLogs all of it but console.log,
// qemu.log and trace.log. It may be called twice, and on a VM whose QEMU is dead.
func (vm *VM) Close() error {
	if vm.proc != nil {
		ctx, cancel := context.WithTimeout(context.Background(), quitLimit)
		vm.quit(ctx)
		cancel()
		ctx, cancel = context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := vm.proc.Kill(ctx); err != nil {
			return fmt.Errorf("kill guest %s: %w", vm.spec.Name, err)
		}
	}
	if !vm.spec.KeepLogs {
		return vm.host.RemoveAll(vm.spec.Dir)
	}
	var errs []error
	for _, role := range []string{Control, Events, Sampler, AgentIO, "pid"} {
		if err := vm.host.RemoveAll(vm.spec.Socket(role)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// quit is the polite end; whatever goes wrong, Kill follows.
func (vm *VM) quit(ctx context.Context) {
	select {
	case <-vm.proc.Done():
		return
	default:
	}
	if c, err := vm.monitor(ctx); err == nil {
		defer c.Close()
		if c.Quit(ctx) == nil {
			select {
			case <-vm.proc.Done():
			case <-ctx.Done():
			}
		}
	}
}

// tail is the last lines of a log file, without the words that every QEMU message begins with.
func tail(h host.Host, name string) string {
	b, err := h.ReadFile(name)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(Unstamped(string(b))), "\n")
	lines = lines[max(0, len(lines)-5):]
	for i, l := range lines {
		if prog, rest, ok := strings.Cut(l, ": "); ok && strings.HasPrefix(path.Base(prog), "qemu") {
			lines[i] = rest
		}
	}
	return strings.Join(lines, "; ")
}

// Unstamped is what a QEMU has said in its log, without the time that -msg timestamp=on puts before each message.
func Unstamped(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		if stamp, rest, ok := strings.Cut(line, " "); ok && strings.HasSuffix(stamp, "Z") {
			if _, err := time.Parse(time.RFC3339Nano, stamp); err == nil {
				line = rest
			}
		}
		b.WriteString(line)
	}
	return b.String()
}

// StartIncoming starts a QEMU on h with a command line made by launch.Destination with Options.Dir dir, and returns
// when it answers. The VM has the three monitors of every VM, but no agent. Only Close or Kill ends it. c's streams
// and log are not used: qemu.log in dir has what it says.
func StartIncoming(ctx context.Context, h host.Host, c host.Command, dir string) (*VM, error) {
	if len(c.Args) == 0 || dir == "" {
		return nil, errors.New("start destination: a command line and a folder are needed")
	}
	if _, err := h.Stat(dir); err == nil {
		return nil, fmt.Errorf("start destination: folder %s exists: it needs one of its own", dir)
	}
	_, program := debian.SplitLoader(c.Args)
	return start(ctx, h, Spec{Name: path.Base(dir), QEMU: program[0], Dir: dir, Incoming: true, Paused: true}, c)
}
