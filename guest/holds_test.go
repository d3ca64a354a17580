package guest_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
)

// TestHolds: a QEMU that only waits holds no guest, however it is called. One that runs, that has begun to load, or that
// does not answer, may hold one.
func TestHolds(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		dir := guesttest.Dir(t)
		start := func(name string, incoming bool) *guest.VM {
			return startVM(t, guest.Spec{Name: name, QEMU: qemu, Memory: 64 << 20, Dir: filepath.Join(dir, name), Incoming: incoming, Paused: incoming})
		}
		src, dst := start("a", false), start("b", true)
		holds := func(vm *guest.VM) bool {
			return guest.Holds(limited(t), host.Local(), vm.Process(), vm.Spec().Dir)
		}
		if !holds(src) {
			t.Error("a guest that runs is held by nobody")
		}
		if holds(dst) {
			t.Error("a QEMU that waits holds a guest")
		}
		at := "unix:" + filepath.Join(dir, "m")
		b := monitor(t, dst)
		if err := b.MigrateIncoming(limited(t), at); err != nil {
			t.Fatal(err)
		}
		b.Close() // it serves one
		if holds(dst) {
			t.Error("a QEMU that listens, and to which nothing came, holds a guest")
		}
		a := monitor(t, src)
		if err := a.SetMigrateParameters(limited(t), map[string]any{"max-bandwidth": 8 << 10}); err != nil {
			t.Fatal(err)
		}
		if err := a.Migrate(limited(t), at); err != nil {
			t.Fatal(err)
		}
		within.Until(t, "the migration to begin", func() bool { return holds(dst) })
		if !holds(dst) {
			t.Error("a QEMU to which a guest comes holds none")
		}
		sleep, err := host.Local().Start(limited(t), host.Command{Args: []string{"sleep", "1000"}})
		if err != nil {
			t.Fatal(err)
		}
		if guest.Holds(limited(t), host.Local(), sleep, dir) {
			t.Error("sleep holds a guest")
		}
		if err := sleep.Kill(limited(t)); err != nil {
			t.Error(err)
		}
		other := filepath.Join(dir, "vmm")
		program, err := exec.LookPath(qemu)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(program, other); err != nil {
			t.Fatal(err)
		}
		vmm := startVM(t, guest.Spec{Name: "c", QEMU: other, Memory: 64 << 20, Dir: filepath.Join(dir, "c")})
		if !holds(vmm) {
			t.Error("a guest whose QEMU has another name is held by nobody")
		}
		if err := dst.Kill(limited(t)); err != nil || holds(dst) {
			t.Errorf("a dead one holds a guest: %v", err)
		}
	})
}

// A QEMU that hangs may hold a guest.
func TestHoldsMute(t *testing.T) {
	vm := startVM(t, guest.Spec{Name: "a", QEMU: guesttest.QEMU(t, "10.0"), Memory: 16 << 20, Dir: filepath.Join(guesttest.Dir(t), "a"),
		Incoming: true, Paused: true})
	if err := vm.Process().Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if !guest.Holds(limited(t), host.Local(), vm.Process(), vm.Spec().Dir) {
		t.Errorf("after %v it holds none", time.Since(begun))
	}
}

// When the channel to a host closes, a QEMU there that only waits goes with it, and its folder. One with a guest stays.
func TestHoldsFar(t *testing.T) {
	hosts := hosttest.New(t, nil)
	at, err := hosts.Pool.Find(limited(t), "ssh://a")
	if err != nil {
		t.Fatal(err)
	}
	dir := guesttest.Dir(t)
	start := func(name string, incoming bool) *guest.VM {
		vm, err := guest.Start(limited(t), at, guest.Spec{Name: name, QEMU: guesttest.QEMU(t, "10.0"), Memory: 16 << 20,
			Dir: filepath.Join(dir, name), Incoming: incoming, Paused: incoming})
		if err != nil {
			t.Fatal(err)
		}
		return vm
	}
	runs, waits := start("a", false), start("b", true)
	stays, err := host.FindProcess(runs.Process().PID(), runs.Process().StartTime())
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Kill(limited(t))
	goes, err := host.FindProcess(waits.Process().PID(), waits.Process().StartTime())
	if err != nil {
		t.Fatal(err)
	}
	hosts.Channel("a").KillSSH()
	within.Receive(t, "the end of the QEMU that waits", goes.Done())
	within.Until(t, "its folder to be removed", func() bool {
		_, err := os.Stat(filepath.Join(dir, "b"))
		return errors.Is(err, fs.ErrNotExist)
	})
	select {
	case <-stays.Done():
		t.Error("a guest was ended because a channel closed")
	default:
	}
	if again, err := hosts.Pool.Find(limited(t), "ssh://a"); err != nil || !guest.Holds(limited(t), again, stays, filepath.Join(dir, "a")) {
		t.Errorf("after the next connection: %v", err)
	}
}

// A channel that breaks while a QEMU is waited for ends the wait.
func TestStartFarLost(t *testing.T) {
	hosts := hosttest.New(t, nil)
	at, err := hosts.Pool.Find(limited(t), "ssh://a")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(guesttest.Dir(t), "a")
	ended := make(chan error, 1)
	go func() { // it never has a monitor
		_, err := guest.StartIncoming(limited(t), at, host.Command{Args: []string{"sleep", "1000"}}, dir)
		ended <- err
	}()
	within.Until(t, "the start", func() bool {
		_, err := os.Stat(filepath.Join(dir, "qemu.log"))
		return err == nil
	})
	hosts.Channel("a").KillSSH()
	if err, _ := within.Receive(t, "the end of the wait", ended); !errors.As(err, new(*host.ChannelError)) {
		t.Errorf("%v, want a *ChannelError", err)
	}
}
