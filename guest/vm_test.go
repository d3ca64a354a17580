package guest_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/image"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// limited is a context for one step of a test: what hangs fails there.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(within.Context(t), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func startVM(t *testing.T, s guest.Spec) *guest.VM {
	t.Helper()
	vm, err := guest.Start(limited(t), host.Local(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

func monitor(t *testing.T, vm *guest.VM) *qmp.Conn {
	t.Helper()
	ctx := limited(t)
	nc, err := vm.Dial(ctx, guest.Control)
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// hello waits for the guest's agent.
func hello(t *testing.T, vm *guest.VM) wire.Hello {
	t.Helper()
	nc, err := vm.Dial(limited(t), guest.AgentIO)
	if err != nil {
		t.Fatal(err)
	}
	a := guest.NewAgent(nc)
	defer a.Close()
	h, err := a.Ready(limited(t))
	if err != nil {
		console, _ := vm.Console()
		t.Fatalf("%v; console: %s", err, console)
	}
	return h
}

func gone(t *testing.T, name string) {
	t.Helper()
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", name, err)
	}
}

func TestVM(t *testing.T) {
	image := guesttest.Image(t)
	guesttest.EachQEMU(t, func(t *testing.T, bin string) {
		dir := filepath.Join(guesttest.Dir(t), "vm")
		began := time.Now()
		vm := startVM(t, guest.Spec{Name: "test", QEMU: bin, Image: image, Dir: dir})
		started := time.Since(began)
		h := hello(t, vm)
		t.Logf("start %v, ready %v; in the guest: agent began at %v, was ready at %v", started, time.Since(began), h.Started, h.Ready)
		if len(h.Problems) > 0 {
			t.Errorf("the guest has problems: %q", h.Problems)
		}
		if i, err := os.Stat(dir); err != nil || i.Mode().Perm() != 0o700 {
			t.Errorf("folder: %v %v", i.Mode(), err)
		}
		for _, role := range []string{guest.Control, guest.Events, guest.Sampler, guest.AgentIO} {
			if i, err := os.Stat(vm.Spec().Socket(role)); err != nil || i.Mode().Perm() != 0o600 {
				t.Errorf("socket %s: %v %v", role, i, err)
			}
		}
		// Each of the three monitors has its own client.
		for _, role := range []string{guest.Control, guest.Events, guest.Sampler} {
			nc, err := vm.Dial(limited(t), role)
			if err != nil {
				t.Fatal(err)
			}
			c, err := qmp.NewConn(limited(t), nc, qmp.Options{})
			if err != nil {
				t.Fatalf("monitor %s: %v", role, err)
			}
			defer c.Close()
			if s, err := c.QueryStatus(limited(t)); err != nil || !s.Running {
				t.Errorf("monitor %s: %+v %v", role, s, err)
			}
		}
		again, err := guest.Open(limited(t), host.Local(), vm.Spec(), vm.Process().PID())
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Kill(limited(t)); err != nil {
			t.Fatal(err)
		}
		within.Receive(t, "the killed QEMU's end", vm.Process().Done())
		if err := again.Close(); err != nil { // a monitor's clients are still there: Close must not wait for them
			t.Error(err)
		}
		gone(t, dir)
		if _, err := guest.Open(limited(t), host.Local(), vm.Spec(), vm.Process().PID()); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("open a dead guest: %v", err)
		}
		for range 2 {
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestOpenStranger(t *testing.T) {
	_, err := guest.Open(limited(t), host.Local(), guest.Spec{Name: "x", Dir: "/nowhere"}, os.Getpid())
	if !errors.Is(err, os.ErrProcessDone) || !strings.Contains(err.Error(), "another program") {
		t.Error(err)
	}
}

func TestKeepLogs(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, bin string) {
		dir := filepath.Join(guesttest.Dir(t), "vm")
		vm := startVM(t, guest.Spec{QEMU: bin, Dir: dir, Paused: true, KeepLogs: true})
		if err := vm.Close(); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(dir + "/*")
		for i := range files {
			files[i] = filepath.Base(files[i])
		}
		if err != nil || strings.Join(files, " ") != "console.log qemu.log trace.log" {
			t.Errorf("left: %q %v", files, err)
		}
	})
}

// While another client sits on every monitor, Close kills.
func TestCloseBusy(t *testing.T) {
	vm := startVM(t, guest.Spec{QEMU: guesttest.QEMU(t, "10.0"), Dir: filepath.Join(guesttest.Dir(t), "vm"), Paused: true})
	c := monitor(t, vm)
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	within.Receive(t, "the monitor's end", c.Done())
	gone(t, vm.Spec().Dir)
}

func TestStartErrors(t *testing.T) {
	bin := guesttest.QEMU(t, "10.0")
	base := guesttest.Dir(t)
	vm := filepath.Join(base, "vm")
	for name, c := range map[string]struct {
		spec guest.Spec
		want string
	}{
		"machine":  {guest.Spec{QEMU: bin, Dir: vm, Machine: "pc-q35-99.9"}, "pc-q35-99.9"},
		"kernel":   {guest.Spec{QEMU: bin, Dir: vm, Image: guest.Image{Kernel: "/no/kernel"}}, "/no/kernel"},
		"binary":   {guest.Spec{QEMU: "/no/qemu", Dir: vm}, "/no/qemu"},
		"notQEMU":  {guest.Spec{QEMU: "/bin/true", Dir: vm}, "QEMU ended"},
		"noDir":    {guest.Spec{QEMU: bin}, "Dir"},
		"dirThere": {guest.Spec{QEMU: bin, Dir: base}, "exists"},
		"longPath": {guest.Spec{QEMU: bin, Dir: filepath.Join(base, strings.Repeat("x", 100))}, "shorter"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := guest.Start(limited(t), host.Local(), c.spec)
			if err == nil || got != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, %v; want an error with %q", got, err, c.want)
			}
			t.Log(err)
			gone(t, vm)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(within.Context(t))
		cancel()
		if _, err := guest.Start(ctx, host.Local(), guest.Spec{QEMU: bin, Dir: vm}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		gone(t, vm)
	})
	t.Run("silent", func(t *testing.T) { // a program that never opens the monitor
		ctx, cancel := context.WithTimeout(within.Context(t), 200*time.Millisecond)
		defer cancel()
		var e *guest.StartError
		script := filepath.Join(base, "silent")
		if err := os.WriteFile(script, []byte("#!/bin/sh\necho qemu-system: of no help\nexec sleep 60\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := guest.Start(ctx, host.Local(), guest.Spec{QEMU: script, Dir: vm}); !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &e) || e.Log != "of no help" {
			t.Error(err)
		}
		gone(t, vm)
	})
}

// A guest whose first program is none panics: QEMU ends, and the console tells why.
func TestPanic(t *testing.T) {
	guesttest.Image(t) // there is a kernel, or the test is skipped
	guesttest.EachQEMU(t, func(t *testing.T, bin string) {
		image, err := image.Build(within.Context(t), image.Spec{Agent: []byte("not a program")})
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(image.Initrd)
		vm := startVM(t, guest.Spec{QEMU: bin, Image: image, Dir: filepath.Join(guesttest.Dir(t), "vm")})
		select {
		case <-vm.Process().Done():
		case <-limited(t).Done():
			t.Error("QEMU did not end")
		}
		if console, err := vm.Console(); err != nil || !strings.Contains(console, "Kernel panic") {
			t.Errorf("%q %v", console, err)
		}
	})
}

// The same Spec migrates between all pairs of versions and goes on running: the kernel started by its PVH entry and the RAM that is no multiple of
// 256 KiB included.
func TestMigrateAcross(t *testing.T) {
	image := guesttest.Image(t)
	for _, from := range guesttest.Versions() {
		for _, to := range guesttest.Versions() {
			t.Run(from+" to "+to, func(t *testing.T) {
				base := guesttest.Dir(t)
				s := guest.Spec{Name: "m", QEMU: guesttest.QEMU(t, from), Image: image, Dir: filepath.Join(base, "a")}
				s.Memory = guest.SafeMemory(from, "tcg", 256<<20)
				src := startVM(t, s)
				s.QEMU, s.Dir, s.Incoming, s.Paused = guesttest.QEMU(t, to), filepath.Join(base, "b"), true, true
				dst := startVM(t, s)
				before := hello(t, src)
				migrate(t, src, dst, filepath.Join(base, "m.sock"))
				after := hello(t, dst)
				if after.BootID != before.BootID || after.Uptime < before.Uptime {
					t.Errorf("another guest: %+v, before %+v", after, before)
				}
			})
		}
	}
}

func migrate(t *testing.T, src, dst *guest.VM, socket string) {
	t.Helper()
	a, b := monitor(t, src), monitor(t, dst)
	ctx := limited(t)
	if err := b.SetMigrateCapabilities(ctx, map[string]bool{"events": true}); err != nil {
		t.Fatal(err)
	}
	events := b.Subscribe(100)
	defer events.Close()
	if err := b.MigrateIncoming(ctx, "unix:"+socket); err != nil {
		t.Fatal(err)
	}
	if err := a.SetMigrateParameters(ctx, map[string]any{"max-bandwidth": int64(0), "downtime-limit": int64(2000)}); err != nil {
		t.Fatal(err)
	}
	if err := a.Migrate(ctx, "unix:"+socket); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case e, ok := <-events.C:
			var m struct{ Status string }
			if !ok {
				t.Fatalf("the destination's monitor ended: %v", b.Err())
			}
			if e.Name != "MIGRATION" || json.Unmarshal(e.Data, &m) != nil {
				continue
			}
			if m.Status == "failed" {
				t.Fatal("the migration failed")
			}
			if m.Status == "completed" {
				if err := b.Cont(ctx); err != nil {
					t.Fatal(err)
				}
				return
			}
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
}

func TestDialUnknown(t *testing.T) {
	vm := startVM(t, guest.Spec{QEMU: guesttest.QEMU(t, "10.0"), Dir: filepath.Join(guesttest.Dir(t), "vm"), Paused: true})
	var op *net.OpError
	if _, err := vm.Dial(within.Context(t), "none"); !errors.As(err, &op) {
		t.Error(err)
	}
}

// What QEMU says bears the time, and an error of ours does not.
func TestUnstamped(t *testing.T) {
	const said = "2026-11-30T11:16:04.934429Z qemu-system-x86_64: -hda /a: Could not open\nqemu: bare\nAZ says nothing\n\n" +
		"2026-11-30T11:16:04.1Z last"
	if got, want := guest.Unstamped(said), "qemu-system-x86_64: -hda /a: Could not open\nqemu: bare\nAZ says nothing\n\nlast"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
