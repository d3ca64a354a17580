package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"qmigrate/engine/anatomy"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
	"qmigrate/qmp"
)

// spare is a monitor that a migration leaves free.
const spare = "spare.qmp"

// tracePair starts two QEMUs, the first running its firmware, the second waiting, each with a spare monitor.
func tracePair(t *testing.T, version string) (src, dst *guest.VM) {
	t.Helper()
	dir := guesttest.Dir(t)
	var vms []*guest.VM
	for _, name := range []string{"a", "b"} {
		at := filepath.Join(dir, name)
		vm, err := guest.Start(within.Context(t), host.Local(), guest.Spec{Name: name, QEMU: guesttest.QEMU(t, version),
			Memory: 64 << 20, Dir: at, Incoming: name == "b", Paused: name == "b",
			Extra: []string{"-qmp", "unix:" + filepath.Join(at, spare) + ",server=on,wait=off"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		})
		vms = append(vms, vm)
	}
	return vms[0], vms[1]
}

// tracesOn are the trace events that qmigrate uses and that are on in a QEMU.
func tracesOn(t *testing.T, vm *guest.VM) (on []string) {
	t.Helper()
	ctx := within.Context(t)
	nc, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(vm.Spec().Dir, spare))
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, name := range append(anatomy.Events(), anatomy.Request) {
		all, err := c.TraceEvents(ctx, name)
		if err != nil && !qmp.IsRefusal(err) {
			t.Fatal(err)
		}
		for _, e := range all {
			if e.State == qmp.TraceEnabled {
				on = append(on, e.Name)
			}
		}
	}
	return on
}

// A qmigrate that is killed leaves trace events on. The next command that speaks to a QEMU switches them off there, but
// not as long as the migration is at it.
func TestTracesAfterKill(t *testing.T) {
	t.Parallel()
	src, dst := tracePair(t, "10.0")
	cache := t.TempDir()
	command := func(args ...string) (said string, err error) {
		cmd := qmigrate(t, args...)
		cmd.Env = append(os.Environ(), "QMIGRATE_CACHE="+cache)
		b, err := cmd.CombinedOutput()
		return string(b), err
	}
	a, b := "unix:"+src.Spec().Dir, "unix:"+dst.Spec().Dir
	moving := qmigrate(t, "migrate", "--source", a, "--destination", b, "--max-bandwidth", "32KiB/s", "--out", t.TempDir())
	moving.Env = append(os.Environ(), "QMIGRATE_CACHE="+cache)
	if err := moving.Start(); err != nil {
		t.Fatal(err)
	}
	defer moving.Process.Kill()
	within.Until(t, "the events are on", func() bool {
		return len(tracesOn(t, src)) == len(anatomy.Events()) && len(tracesOn(t, dst)) == len(anatomy.Events())
	})
	atIt := a + "/" + spare
	if said, err := command("caps", atIt, "--no-trial"); err != nil {
		t.Fatal(said)
	}
	if on := tracesOn(t, src); len(on) != len(anatomy.Events()) {
		t.Errorf("caps, beside the migration, left on: %q", on)
	}
	if err := moving.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = moving.Wait()
	if said, err := command("caps", a, "--no-trial"); err != nil {
		t.Fatal(said)
	}
	if on := tracesOn(t, src); on != nil {
		t.Errorf("caps left on: %q", on)
	}
	if on := tracesOn(t, dst); len(on) != len(anatomy.Events()) {
		t.Errorf("nobody has spoken to the destination, and on are %q", on)
	}
	if said, err := command("migrate", "--source", a, "--destination", b, "--recover"); err != nil {
		t.Log(said) // whatever became of the guest
	}
	select {
	case <-dst.Process().Done(): // it was ended
	default:
		if on := tracesOn(t, dst); on != nil {
			t.Errorf("--recover left on: %q", on)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "traces", "*")); len(left) > 1 { // a dead QEMU's may be left
		t.Errorf("left: %q", left)
	}
}

// TestTraceLog: the logs are read where the QEMUs are. One that is not its QEMU's, and one that cannot be read, are
// refused in one line, before anything is changed.
func TestTraceLog(t *testing.T) {
	h := hosttest.New(t, nil)
	src, dst := tracePair(t, "10.0")
	old, _ := tracePair(t, "7.2")
	dir := filepath.Dir(src.Spec().Dir)
	a, b, out := "ssh://a"+src.Spec().Dir, "ssh://b"+dst.Spec().Dir, filepath.Join(dir, "out")
	logA, logB := src.Spec().Socket(guest.TraceLog), dst.Spec().Socket(guest.TraceLog)
	unread := filepath.Join(dir, "copy")
	if err := os.WriteFile(unread, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		args   []string
		status int
		want   string
	}{
		{"relative", []string{"--trace-log", "a.log"}, 2, "give a path from the root"},
		{"two for one", []string{"--trace-log", "/a", "--trace-log", "source=/b"}, 2, "a side has one log, and it is /a already"},
		{"no anatomy", []string{"--anatomy", "off", "--trace-log", "/a"}, 2, "leave anatomy off out"},
		{"maybe", []string{"--anatomy", "maybe"}, 2, "on, off"},
		{"none", []string{"--trace-log", "source=/none/log"}, 1, "read trace log of source " + a + ": open /none/log: no such file"},
		{"a folder", []string{"--trace-log", "destination=" + dir}, 1, dir + " is no regular file"},
		{"the other's", []string{"--trace-log", "source=" + logB}, 1, logB + " is not that of source " + a},
		{"nobody's", []string{"--trace-log", "destination=" + unread}, 1, unread + " is not that of destination " + b},
		{"both", []string{"--trace-log", logA}, 1, logA + " is not that of destination " + b},
		{"old", []string{"--source", "unix:" + old.Spec().Dir, "--trace-log", "source=" + logA}, 1, "source QEMU 7.2.22"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := append([]string{"qmigrate", "migrate", "--ssh", h.Program, "--source", a, "--destination", b, "--out", out}, c.args...)
			status := run(within.Context(t), args, nil, &stdout, &stderr)
			if said := stderr.String() + stdout.String(); status != c.status || !strings.Contains(said, c.want) || strings.Count(said, "\n") != 1 {
				t.Errorf("status %d, want %d and %q:\n%s", status, c.status, c.want, said)
			}
			for _, vm := range []*guest.VM{src, dst} {
				if on := tracesOn(t, vm); on != nil {
					t.Errorf("%s: on are %q", vm.Spec().Name, on)
				}
			}
		})
	}
	var stdout, stderr bytes.Buffer
	args := []string{"qmigrate", "migrate", "--ssh", h.Program, "--source", a + "/control.qmp", "--destination", b + "/control.qmp",
		"--trace-log", "source=" + logA + ",destination=" + logB, "--out", out, "--json"}
	if status := run(within.Context(t), args, nil, &stdout, &stderr); status != 0 {
		t.Fatal(stderr.String())
	}
	for _, vm := range []*guest.VM{src, dst} {
		if on := tracesOn(t, vm); on != nil {
			t.Errorf("%s: on are %q", vm.Spec().Name, on)
		}
		lines, err := os.ReadFile(vm.Spec().Socket(guest.TraceLog))
		if err != nil || !slices.ContainsFunc(anatomy.Parse(lines), func(l anatomy.Line) bool { return l.Event == anatomy.Checkpoint }) {
			t.Errorf("%s wrote %q, %v", vm.Spec().Name, lines, err)
		}
	}
}
