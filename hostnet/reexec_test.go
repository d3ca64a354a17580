package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/internal/mark"
	"qmigrate/hostnet/internal/netns"
	"qmigrate/internal/procfs"
)

// asUser is the helper `then` as another user than root.
func asUser(then string, env ...string) *exec.Cmd {
	cmd := self("user", append(env, "THEN="+then)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func status(t *testing.T, err error) int {
	t.Helper()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0
}

func TestReexecAsRootIsNothing(t *testing.T) {
	needNetwork(t)
	if code, done, err := Reexec(); code != 0 || done || err != nil {
		t.Errorf("%d, %v, %v", code, done, err)
	}
}

func TestRootless(t *testing.T) {
	needRoot(t)
	cmd := asUser("rootless", "TUN=666")
	if _, err := os.Stat("/run/lock"); err == nil {
		cmd.Env = append(cmd.Env, "RUN_LOCK=1")
	}
	cmd.Stdin = strings.NewReader("standard input")
	out, err := cmd.Output()
	if code := status(t, err); code != 42 || string(out) != "got standard input by tbf, owner rootless\n" {
		t.Errorf("status %d, output %q", code, out)
	}
	if names, _ := netns.Names(mark.Prefix + "rootless"); len(names) > 0 {
		t.Errorf("seen outside: %v", names)
	}
}

func TestRootlessPassesSignalsOn(t *testing.T) {
	needRoot(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1} {
		cmd := asUser("signals", "TUN=666")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(cmd.Start(), out.(*os.File).SetReadDeadline(time.Now().Add(within.Limit))); err != nil {
			t.Fatal(err)
		}
		var inner, outer int
		if _, err := fmt.Fscan(out, &inner, &outer); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(outer, sig); err != nil {
			t.Error(err)
		}
		if code := status(t, cmd.Wait()); code != 40+int(sig) {
			t.Errorf("status %d after %s, want %d", code, sig, 40+int(sig))
		}
	}
}

// TestRootlessOuterKilled: the inner process is told when the outer one is killed, so that it can undo its work.
func TestRootlessOuterKilled(t *testing.T) {
	needRoot(t)
	cmd := asUser("signals", "TUN=666")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cmd.Start(), out.(*os.File).SetReadDeadline(time.Now().Add(within.Limit))); err != nil {
		t.Fatal(err)
	}
	var inner, outer int
	if _, err := fmt.Fscan(out, &inner, &outer); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(outer, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out) // the last writer is the inner process
	_ = cmd.Wait()
	wait(t, "the inner process's end", func() bool {
		st, err := procfs.Process(inner).Stat(os.ReadFile)
		return err != nil || st.State == 'Z'
	})
}

func TestWhatCannotWorkSaysSo(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name          string
		env           []string
		ownUserSpace  bool
		feature, mend string
	}{
		{"no user namespaces", []string{"TUN=666", "USER_NAMESPACES=0"}, true, "user namespaces", "sysctl user.max_user_namespaces"},
		{"no TUN", []string{"TUN=none"}, false, "TUN", "modprobe tun"},
		{"TUN of root only", []string{"TUN=600"}, false, "TUN", "chmod 0666"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := asUser("typed", append(c.env, "OWNER="+owner())...)
			if c.ownUserSpace { // in which the limit can be set without setting the machine's
				cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
				ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
				cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
				cmd.SysProcAttr.GidMappingsEnableSetgroups = true
				cmd.Env = append(cmd.Env, "TUN=skip")
			}
			var errs bytes.Buffer
			cmd.Stderr = &errs
			out, err := cmd.Output()
			feature, rest, _ := strings.Cut(string(out), "\n")
			if err != nil || feature != c.feature || !strings.Contains(rest, c.mend) {
				t.Errorf("%v: %q, %s", err, out, errs.String())
			}
			t.Log(rest)
		})
	}
}
