package guest_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
)

// kvmHost is this machine with or without a /dev/kvm.
type kvmHost struct {
	host.Host
	kvm bool
}

func (h kvmHost) Stat(name string) (fs.FileInfo, error) {
	if name != "/dev/kvm" {
		return h.Host.Stat(name)
	}
	if h.kvm {
		return h.Host.Stat("/dev/null")
	}
	return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
}

// findings puts only what this test finds out into the cache.
func findings(t *testing.T) (dir string) {
	dir = guesttest.Dir(t)
	t.Setenv("QMIGRATE_CACHE", dir)
	return filepath.Join(dir, "accelerator")
}

func TestProbeAsked(t *testing.T) {
	for want, name := range map[string]string{"tcg": "tcg", "auto": "tcg", "": "tcg"} {
		a, err := guest.ProbeAccelerator(within.Context(t), kvmHost{host.Local(), false}, guest.Spec{}, want)
		if err != nil || a.Name != name || a.Reason == "" || a.Cached {
			t.Errorf("%s: %+v %v", want, a, err)
		}
	}
	var e *guest.AcceleratorError
	if _, err := guest.ProbeAccelerator(within.Context(t), kvmHost{host.Local(), false}, guest.Spec{}, "kvm"); !errors.As(err, &e) || !strings.Contains(err.Error(), "no /dev/kvm") {
		t.Error(err)
	}
	if _, err := guest.ProbeAccelerator(within.Context(t), host.Local(), guest.Spec{}, "hvf"); err == nil || !strings.Contains(err.Error(), "auto, kvm or tcg") {
		t.Error(err)
	}
}

// fakeQEMU is a program that says its version and otherwise runs QEMU with another accelerator and image, so that KVM seems to work, to be refused or to hang.
func fakeQEMU(t *testing.T, script string) string {
	t.Helper()
	bin := filepath.Join(guesttest.Dir(t), "qemu-system-x86_64")
	if err := os.WriteFile(bin, []byte("#!/bin/sh\n[ \"$1\" = --version ] && echo 'QEMU emulator version 10.0.99' && exit\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return bin
}

func TestProbeWorks(t *testing.T) {
	image, real := guesttest.Image(t), guesttest.QEMU(t, "10.0")
	kept := findings(t)
	h := kvmHost{host.Local(), true}
	// The same arguments with tcg for kvm.
	s := guest.Spec{Image: image, QEMU: fakeQEMU(t, `for a; do shift; [ "$a" = kvm ] && a=tcg; set -- "$@" "$a"; done; exec `+real+` "$@"`), Dir: filepath.Join(guesttest.Dir(t), "vm")}
	for i, cached := range []bool{false, true} {
		a, err := guest.ProbeAccelerator(limited(t), h, s, "auto")
		for late := time.Now().Add(within.Limit); err == nil && !cached && a.Name != "kvm" && time.Now().Before(late); {
			t.Log(a.Reason) // a busy machine may need longer than the probe gives
			if err = os.RemoveAll(kept); err == nil {
				a, err = guest.ProbeAccelerator(limited(t), h, s, "auto")
			}
		}
		if err != nil || a.Name != "kvm" || a.Cached != cached {
			t.Errorf("%+v %v", a, err)
		}
		if i == 0 {
			t.Log(a.Reason)
		}
	}
	gone(t, s.Dir+"-probe")
	files, err := os.ReadDir(kept)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	file := filepath.Join(kept, files[0].Name())
	// Broken or old findings do not count: the next probe, which here fails at once, says so.
	s.QEMU = fakeQEMU(t, "echo qemu-system-x86_64: Could not access KVM kernel module; exit 1")
	for name, spoil := range map[string]func() error{
		"broken": func() error { return os.WriteFile(file, []byte(`{"name":`), 0o644) },
		"old": func() error {
			old := time.Now().Add(-8 * 24 * time.Hour)
			return errors.Join(os.WriteFile(file, []byte(`{"name":"kvm"}`), 0o644), os.Chtimes(file, old, old))
		},
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		a, err := guest.ProbeAccelerator(limited(t), h, s, "auto")
		if err != nil || a.Name != "tcg" || a.Cached || !strings.Contains(a.Reason, "Could not access KVM") {
			t.Errorf("%s: %+v %v", name, a, err)
		}
	}
}

func TestProbeHangs(t *testing.T) {
	real := guesttest.QEMU(t, "10.0")
	findings(t)
	h := kvmHost{host.Local(), true}
	// A machine that never runs: as a guest that hangs in its firmware looks from outside.
	s := guest.Spec{QEMU: fakeQEMU(t, `for a; do shift; [ "$a" = kvm ] && a=tcg; set -- "$@" "$a"; done; exec `+real+` "$@" -S`), Dir: filepath.Join(guesttest.Dir(t), "vm")}
	ctx, cancel := context.WithTimeout(within.Context(t), time.Second)
	defer cancel()
	if a, err := guest.ProbeAccelerator(ctx, h, s, "auto"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%+v %v", a, err)
	}
	for _, cached := range []bool{false, true} {
		a, err := guest.ProbeAccelerator(limited(t), h, s, "auto")
		if err != nil || a.Name != "tcg" || a.Cached != cached || !strings.Contains(a.Reason, "not ready within 10s") {
			t.Errorf("%+v %v", a, err)
		}
	}
	var e *guest.AcceleratorError
	if _, err := guest.ProbeAccelerator(limited(t), h, s, "kvm"); !errors.As(err, &e) {
		t.Error(err)
	}
	gone(t, s.Dir+"-probe")
}

// On this machine as it is: whatever is found, a second look finds the same.
func TestProbeHere(t *testing.T) {
	s := guest.Spec{QEMU: guesttest.QEMU(t, "10.0"), Image: guesttest.Image(t), Dir: filepath.Join(guesttest.Dir(t), "vm")}
	first, err := guest.ProbeAccelerator(limited(t), host.Local(), s, "auto")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", first)
	again, err := guest.ProbeAccelerator(limited(t), host.Local(), s, "auto")
	if err != nil || again.Name != first.Name {
		t.Errorf("%+v %v, before %+v", again, err, first)
	}
}
