package connect

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
)

// A module that is not this one builds with the library, and migrates a guest with it.
func TestLibrary(t *testing.T) {
	qemu := guesttest.QEMU(t, "10.0")
	dir := guesttest.Dir(t)
	program := filepath.Join(dir, "library")
	build := exec.CommandContext(within.Context(t), "go", "build", "-o", program, ".")
	build.Dir = "../../testdata/library"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build testdata/library: %v: %s", err, out)
	}
	start := func(name string, incoming bool) *guest.VM {
		vm, err := guest.Start(within.Context(t), host.Local(), guest.Spec{Name: name, QEMU: qemu, Memory: 16 << 20,
			Dir: filepath.Join(dir, name), Incoming: incoming, Paused: incoming})
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
	src, dst := start("a", false), start("b", true)
	run := exec.CommandContext(within.Context(t), program, "unix:"+dir+"/a", "unix:"+dir+"/b")
	out, err := run.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "completed: the guest is on the destination; ") {
		t.Errorf("%v: %s", err, out)
	}
	if a, b := runState(t, src), runState(t, dst); a != "postmigrate" || b != "running" {
		t.Errorf("the source is %s, the destination %s", a, b)
	}
}
