package guest_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
)

// sayVersion is a program that says that it is a QEMU.
func sayVersion(t *testing.T, dir, version string) string {
	t.Helper()
	bin := filepath.Join(dir, "qemu-system-x86_64")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, []byte("#!/bin/sh\necho 'QEMU emulator version "+version+" (Debian 1:"+version+"+ds-2)'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return bin
}

func TestFindQEMU(t *testing.T) {
	base := guesttest.Dir(t)
	t.Setenv("QMIGRATE_CACHE", base+"/cache")
	t.Setenv("PATH", base+"/path")
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "QMIGRATE_QEMU_") {
			t.Setenv(name, "")
		}
	}
	want := func(series, path, version string) {
		t.Helper()
		b, err := guest.FindQEMU(within.Context(t), series)
		if err != nil || b != (guest.Binary{Path: path, Version: version}) {
			t.Errorf("%q: %+v %v; want %s %s", series, b, err, path, version)
		}
	}
	var none *guest.NoQEMUError
	if b, err := guest.FindQEMU(within.Context(t), "7.2"); !errors.As(err, &none) || b != (guest.Binary{}) || !strings.Contains(err.Error(), "make deps") {
		t.Errorf("%+v %v", b, err)
	}
	cached := sayVersion(t, base+"/cache/qemu-7.2", "7.2.22")
	want("7.2", cached, "7.2.22")
	want("", cached, "7.2.22")
	installed := sayVersion(t, base+"/path", "7.2.10")
	want("", cached, "7.2.22")       // the newest
	want("7.2", installed, "7.2.10") // the system's own before ours
	ten := sayVersion(t, base+"/cache/qemu-10.0", "10.0.2")
	want("", ten, "10.0.2")
	want("10.0", ten, "10.0.2")
	eleven := sayVersion(t, base+"/cache/qemu-11.1", "11.1.3")
	want("11.1", eleven, "11.1.3")
	want("", ten, "10.0.2") // the demo's, whatever the tests need
	named := sayVersion(t, base+"/named", "10.0.0")
	t.Setenv("QMIGRATE_QEMU_10_0", named)
	want("10.0", named, "10.0.0") // what is named is not outbid
	want("", ten, "10.0.2")
	want(installed, installed, "7.2.10")
	t.Setenv("QMIGRATE_QEMU_7_2", named)
	if _, err := guest.FindQEMU(within.Context(t), "7.2"); err == nil || !strings.Contains(err.Error(), "QMIGRATE_QEMU_7_2") || !strings.Contains(err.Error(), "10.0.0") {
		t.Error(err)
	}
	for bad, say := range map[string]string{"9.2": "none in", "newest": "a version such as 10.0", "/no/such": "/no/such", "/bin/true": "not a QEMU", "/bin/false": "exit status 1"} {
		if b, err := guest.FindQEMU(within.Context(t), bad); err == nil || b != (guest.Binary{}) || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %+v %v; want an error with %q", bad, b, err, say)
		}
	}
}

func TestVersions(t *testing.T) {
	if guest.Series("10.0.2") != "10.0" || guest.Series("9") != "9" {
		t.Error(guest.Series("10.0.2"), guest.Series("9"))
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"7.2.22", "10.0.2", -1}, {"10.0.2", "10.0.10", -1}, {"10.0", "10.0", 0}, {"9.0.0", "8.2.9", 1}} {
		if got := guest.CompareVersions(c.a, c.b); got != c.want {
			t.Errorf("%s, %s: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
