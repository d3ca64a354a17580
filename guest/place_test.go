package guest_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/sshtest"
)

// TestFindQEMUOn: a host's own QEMU is found, and ours is sent to a host that has none, once.
func TestFindQEMUOn(t *testing.T) {
	if debian.Unpacked(guesttest.QEMU(t, "10.0")) == "" {
		t.Skip("QEMU 10.0 is installed here, and nothing is sent")
	}
	s := sshtest.Start(t, sshtest.HostSpec{Name: "b"})
	b := s.Host("b")
	bin := filepath.Join(b.Root, "home/lab/bin")
	if err := errors.Join(os.MkdirAll(bin, 0o755), os.Chmod(bin, 0o755)); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	for _, tool := range []string{"sh", "uname", "id", "mkdir", "head", "wc", "chmod", "mv"} {
		if err := os.Symlink("/usr/bin/"+tool, filepath.Join(bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
	b.Setenv("PATH=/home/lab/bin") // without a QEMU
	p := &host.Pool{Program: helperbin.Helper, SSH: host.SSH{Program: s.SSH}}
	defer p.Close()
	h, err := p.Find(within.Context(t), b.URL)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		q, err := guest.FindQEMUOn(within.Context(t), h, "10.0", "")
		if err != nil || guest.Series(q.Version) != "10.0" || !strings.HasPrefix(q.Path, "/home/lab/.cache/qmigrate/files/") {
			t.Errorf("%+v, %v", q, err)
		}
	}
	if trees, _ := os.ReadDir(filepath.Join(b.Root, "home/lab/.cache/qmigrate/trees")); len(trees) != 1 {
		t.Errorf("%v", trees)
	}
	// its own, which is found first
	own := filepath.Join(bin, "qemu-system-x86_64")
	if err := errors.Join(os.WriteFile(own, []byte("#!/bin/sh\necho QEMU emulator version 9.2.0\n"), 0o755), os.Chmod(own, 0o755)); err != nil {
		t.Fatal(err)
	}
	if q, err := guest.FindQEMUOn(within.Context(t), h, "9.2", ""); err != nil || q.Path != "/home/lab/bin/qemu-system-x86_64" || q.Version != "9.2.0" {
		t.Errorf("%+v, %v", q, err)
	}
	for _, c := range []struct{ want, path, text string }{
		{"8.1", "", "host ssh://b: find QEMU 8.1: none in its $PATH: 9.2.0, this machine"},
		{"", "/usr/bin/no-such-qemu", "find QEMU on host ssh://b: start /usr/bin/no-such-qemu"},
		{"10.0", "/home/lab/bin/qemu-system-x86_64", "find QEMU on host ssh://b: /home/lab/bin/qemu-system-x86_64 is QEMU 9.2.0, and 10.0 is wanted"},
		{"", "/usr/bin/true", "find QEMU on host ssh://b: ask /usr/bin/true for its version: not a QEMU"},
	} {
		if _, err := guest.FindQEMUOn(within.Context(t), h, c.want, c.path); err == nil || !strings.HasPrefix(err.Error(), c.text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v\nwant %s", err, c.text)
		}
	}
}
