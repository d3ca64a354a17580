package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
)

// What the commands say of QEMUs on other hosts: each refusal is one line.
func TestFarCommands(t *testing.T) {
	qemu, h, dir := guesttest.QEMU(t, "10.0"), hosttest.New(t, nil), guesttest.Dir(t)
	for _, name := range []string{"a", "b"} {
		vm, err := guest.Start(within.Context(t), host.Local(), guest.Spec{Name: name, QEMU: qemu, Memory: 16 << 20,
			Dir: filepath.Join(dir, name), Incoming: name == "b", Paused: name == "b"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	a, b, out := "ssh://a"+dir+"/a", "ssh://b"+dir+"/b", filepath.Join(dir, "out")
	h.Refuse("off")
	for _, c := range []struct {
		name   string
		args   []string
		status int
		want   string // of standard error, or else of standard output
	}{
		{"save", []string{"save", "--source", a, "--file", dir + "/x"}, 1, "run qmigrate on its host"},
		{"no host", []string{"migrate", "--source", a, "--destination", "ssh://off/run/b", "--out", out}, 1,
			`reach host ssh://off: ssh says "ssh: connect to host off port 22: Connection refused"`},
		{"no socket", []string{"caps", "ssh://a" + dir + "/none", "--no-trial"}, 1, "no such file or directory: start QEMU with -qmp"},
		{"same", []string{"migrate", "--source", a + "/control.qmp", "--destination", a + "/control.qmp"}, 2, "the same QEMU"},
		{"words", []string{"migrate", "--source", "ssh://a", "--destination", b}, 2, "write it as ssh://[USER@]HOST[:PORT]/PATH"},
		{"socket taken", []string{"migrate", "--source", a, "--destination", b, "--listen", "unix:" + dir + "/a/control.qmp", "--out", out},
			2, "somebody listens there already on ssh://b"},
		{"caps", []string{"caps", a, b, "--no-trial"}, 0, "a guest can move from the first to the second"},
		{"nothing to recover", []string{"migrate", "--source", a, "--destination", b, "--recover"}, 0, "there is nothing to recover"},
		{"migrate", []string{"migrate", "--source", a, "--destination", b, "--out", out}, 0, "The guest moved in"},
		{"nothing to recover any more", []string{"migrate", "--source", a, "--destination", b, "--recover"}, 0,
			"the guest runs on the destination already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := append([]string{"qmigrate", c.args[0], "--ssh", h.Program}, c.args[1:]...)
			status := run(within.Context(t), args, nil, &stdout, &stderr)
			said := stderr.String() + stdout.String()
			if status != c.status || !strings.Contains(said, c.want) || status != 0 && strings.Count(said, "\n") != 1 {
				t.Errorf("status %d, want %d and %q:\n%s", status, c.status, c.want, said)
			}
		})
	}
}
