package host

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest/within"
)

func start(t *testing.T, h Host, c Command) Process {
	t.Helper()
	p, err := h.Start(within.Context(t), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within.Limit)
		defer cancel()
		if err := p.Kill(ctx); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestStartLogsAndDetaches(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p := start(t, Local(), Command{Args: []string{"sh", "-c", "echo out $GREETING; echo err >&2; exit 3"}, Env: []string{"GREETING=hello"}, Log: log})
	within.Receive(t, "the process's end", p.Done())
	exit := new(exec.ExitError)
	if !errors.As(p.Err(), &exit) || exit.ExitCode() != 3 {
		t.Errorf("ended with %v, want status 3", p.Err())
	}
	if data, err := Local().ReadFile(log); string(data) != "out hello\nerr\n" || err != nil {
		t.Errorf("logged %q, %v", data, err)
	}
	if st, err := Local().Stat(log); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("log: %v, %v", st, err)
	}

	detached := start(t, Local(), Command{Args: []string{"sleep", "1000"}})
	if sid, err := unix.Getsid(detached.PID()); sid != detached.PID() || err != nil {
		t.Errorf("session %d, %v, want its own, %d", sid, err, detached.PID())
	}
	attached := start(t, Local(), Command{Args: []string{"cat"}, Stdin: strings.NewReader(""), Stdout: new(bytes.Buffer)})
	if pgid, err := unix.Getpgid(attached.PID()); err == nil && pgid != unix.Getpgrp() {
		t.Errorf("process group %d, want ours, %d", pgid, unix.Getpgrp())
	}
	within.Receive(t, "the process's end", attached.Done())
}

func TestStartAttached(t *testing.T) {
	var out, errs bytes.Buffer
	p := start(t, Local(), Command{Args: []string{"sh", "-c", "cat; echo no >&2"}, Stdin: strings.NewReader("in"), Stdout: &out, Stderr: &errs})
	within.Receive(t, "the process's end", p.Done())
	if p.Err() != nil || out.String() != "in" || errs.String() != "no\n" {
		t.Errorf("%v: %q, %q", p.Err(), out.String(), errs.String())
	}
}

func TestStartRefuses(t *testing.T) {
	for what, c := range map[string]Command{
		"no arguments": {},
		"no program":   {Args: []string{"/no/such/program"}},
		"no log":       {Args: []string{"true"}, Log: "/no/such/folder/log"},
	} {
		if p, err := Local().Start(within.Context(t), c); err == nil || p != nil {
			t.Errorf("%s: %v, %v", what, p, err)
		}
	}
	ctx, cancel := context.WithCancel(within.Context(t))
	cancel()
	if _, err := Local().Start(ctx, Command{Args: []string{"true"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("start with a context that has ended: %v", err)
	}
}

func TestFind(t *testing.T) {
	if h, err := Find(within.Context(t), "local"); err != nil || h.Name() != "local" {
		t.Errorf("%v, %v", h, err)
	}
	for _, name := range []string{"", "netns:", "netns:../../proc/self/ns/net", "netns:qmig-no-such", "vm:x", "local:x"} {
		if h, err := Find(within.Context(t), name); err == nil {
			t.Errorf("%q is %s", name, h.Name())
		}
	}
	if _, err := Namespace("qmig-no-such"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Namespace: %v", err)
	}
}

func TestKill(t *testing.T) {
	p := start(t, Local(), Command{Args: []string{"sleep", "1000"}})
	if p.Err() != nil {
		t.Error("an error before the end: ", p.Err())
	}
	for range 2 {
		if err := p.Kill(within.Context(t)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := StartTime(p.PID()); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("the child is not reaped: %v", err)
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
	if p.Err() == nil {
		t.Error("killed, and no error")
	}
}

func TestFindProcess(t *testing.T) {
	p := start(t, Local(), Command{Args: []string{"sleep", "1000"}})
	if _, err := FindProcess(p.PID(), p.StartTime()+1); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a process that has the number now was taken for the one that had it: %v", err)
	}
	if at, err := StartTime(p.PID()); at != p.StartTime() || err != nil {
		t.Errorf("started at tick %d, %v, want %d", at, err, p.StartTime())
	}
	if _, err := FindProcess(p.PID(), 0); err == nil {
		t.Error("a process without its start time")
	}
	f, err := FindProcess(p.PID(), p.StartTime())
	if err != nil {
		t.Fatal(err)
	}
	if u, err := f.Usage(); err != nil || u.RSS <= 0 || u.PeakRSS < u.RSS {
		t.Errorf("usage %+v, %v", u, err)
	}
	// Stopped, so that only SIGKILL ends it.
	if err := f.Signal(syscall.SIGSTOP); err != nil {
		t.Error(err)
	}
	if err := f.Kill(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	if err := f.Kill(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	within.Receive(t, "the process's end", p.Done())
	if _, err := FindProcess(p.PID(), p.StartTime()); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("found when dead: %v", err)
	}
	if _, err := f.Usage(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("usage when dead: %v", err)
	}
}

// Without pidfd (before Linux 5.3, or behind a filter) a process is watched by its entry in /proc.
func TestFindProcessWithoutPidfd(t *testing.T) {
	p := start(t, Local(), Command{Args: []string{"sleep", "1000"}})
	f := &found{pid: p.PID(), start: p.StartTime(), done: make(chan struct{})}
	if err := f.Kill(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(within.Context(t))
	cancel()
	other := start(t, Local(), Command{Args: []string{"sleep", "1000"}})
	if err := other.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := other.Kill(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	p := start(t, Local(), Command{Args: []string{"sh", "-c", "while :; do :; done"}})
	var last Usage
	for deadline := time.Now().Add(within.Limit); last.CPU <= 30e6; time.Sleep(2 * time.Millisecond) {
		u, err := p.Usage()
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("no CPU time yet: %+v, %v", u, err)
		}
		if u.CPU < last.CPU || u.RSS < 0 || u.PeakRSS < u.RSS {
			t.Fatalf("usage %+v after %+v", u, last)
		}
		last = u
	}
	if err := p.Kill(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	// The end's figure is in microseconds.
	if u, err := p.Usage(); err != nil || u.CPU < last.CPU-1000 || u.RSS != 0 || u.PeakRSS == 0 {
		t.Errorf("usage after the end %+v, %v; before it %+v", u, err, last)
	}
}

func TestFiles(t *testing.T) {
	h, dir := Local(), t.TempDir()
	name := filepath.Join(dir, "x", "y", "file")
	if err := errors.Join(h.MkdirAll(filepath.Dir(name), 0o700), h.WriteFile(name, []byte("data"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if data, err := h.ReadFile(name); string(data) != "data" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	if st, err := h.Stat(name); err != nil || st.Size() != 4 {
		t.Errorf("%v, %v", st, err)
	}
	if err := h.RemoveAll(filepath.Join(dir, "x")); err != nil {
		t.Error(err)
	}
	if _, err := h.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if c, err := h.Clock(within.Context(t)); err != nil || c != (Clock{}) {
		t.Errorf("%v, %v", c, err)
	}
}
