// Package guesttest gives tests real QEMUs, a real guest image and a check that nothing is left of them.
package guesttest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"qmigrate/guest"
	"qmigrate/guest/image"
	"qmigrate/internal/procfs"
)

// Main runs a package's tests and reports what they leave behind: goroutines, files in the folder for temporary ones,
// and processes that were started with a name in there, as every QEMU of ours is. Use it as TestMain's only statement.
func Main(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (status int) {
	dir, err := os.MkdirTemp("", "qmt") // short, for the paths of unix sockets are
	if err == nil {
		err = os.Setenv("TMPDIR", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if status = m.Run(); status != 0 {
		return status
	}
	left := leftovers(dir)
	if err := goleak.Find(); err != nil {
		left = append(left, err.Error())
	}
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "left behind:", l)
		status = 1
	}
	return status
}

// leftovers are the processes that name dir on their command line and the files in it.
func leftovers(dir string) (left []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(dir)) &&
			filepath.Dir(f) != fmt.Sprintf("/proc/%d", os.Getpid()) {
			left = append(left, "process "+filepath.Base(filepath.Dir(f))+": "+strings.Join(procfs.Args(b), " "))
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		left = append(left, err.Error())
	}
	for _, f := range files {
		left = append(left, filepath.Join(dir, f.Name()))
	}
	return left
}

// Dir is an empty folder whose path is short enough for sockets; t.TempDir has the test's name in it.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "d")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Versions are the QEMUs that every test of ours runs on.
func Versions() []string { return []string{"7.2", "10.0", "11.1"} }

// Starts marks a test that starts a QEMU: `go test -short`, of `make check`, leaves it out.
func Starts(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short, as in `make check`: the tests that start a QEMU are left to `make test`")
	}
}

// QEMU is the path of a QEMU of this series. Without one the test is skipped, or fails if QMIGRATE_REQUIRE_QEMU=1.
func QEMU(t testing.TB, version string) string {
	t.Helper()
	Starts(t)
	b, err := guest.FindQEMU(t.Context(), version)
	if err != nil {
		missing(t, err)
	}
	return b.Path
}

// EachQEMU runs f as a subtest with each of Versions.
func EachQEMU(t *testing.T, f func(t *testing.T, bin string)) {
	for _, v := range Versions() {
		t.Run("qemu-"+v, func(t *testing.T) { f(t, QEMU(t, v)) })
	}
}

// Image is the image of the lab's guests.
func Image(t testing.TB) guest.Image {
	t.Helper()
	Starts(t)
	img, err := image.Build(t.Context(), image.Spec{})
	if err != nil {
		missing(t, err)
	}
	return img
}

// Unable skips a test that this machine cannot run, and says why. Where QMIGRATE_REQUIRE_QEMU=1 promises root a whole
// machine, it is a failure: a skip may not hide a fault.
func Unable(t testing.TB, why ...any) {
	t.Helper()
	if os.Geteuid() == 0 && os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1" {
		t.Fatal(why...)
	}
	t.Skip(why...)
}

func missing(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
}
