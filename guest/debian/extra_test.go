package debian

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/guest/guesttest/within"
)

func TestModuleDir(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib/x86_64-linux-gnu/qemu")
	for _, d := range []string{dir, filepath.Join(root, "usr/bin"), filepath.Join(root, "usr/lib/ganesha")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{filepath.Join(root, Program), filepath.Join(root, "usr/bin", Program)} {
		if got := ModuleDir(program); got != dir {
			t.Errorf("modules of %s in %s, want %s", program, got, dir)
		}
	}
	if got := ModuleDir(filepath.Join(t.TempDir(), Program)); got != "" {
		t.Errorf("modules where there are none: %s", got)
	}
	if got, want := Libraries(root), filepath.Join(root, "usr/lib/x86_64-linux-gnu")+
		":"+filepath.Join(root, "usr/lib/ganesha"); got != want {
		t.Errorf("libraries %s, want %s", got, want)
	}
}

// A QEMU without the driver, and one that cannot be asked, are no QEMU with it: what each says is in the error.
func TestHasDriver(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		ok     bool
	}{
		"there":    {"echo 'iSCSI: Failed to connect to LUN : Connection refused' >&2; exit 1", true},
		"unknown":  {"echo \"Unknown driver 'iscsi'\" >&2; exit 1", false},
		"unloaded": {"echo 'Unable to load module iscsi' >&2; exit 1", false},
		"covered":  {"echo 'failed to open module: block-iscsi.so: file too short' >&2; exit 1", false},
		"no error": {"exit 0", false},
	} {
		program := filepath.Join(t.TempDir(), Program)
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"+c.script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := HasDriver(within.Context(t), program, "iscsi"); (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "no block driver iscsi") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
