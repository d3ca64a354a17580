package hosttest

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"qmigrate/hostnet/host"
)

//go:embed testdata/clock.c
var clockSource []byte

// WrongClock is the environment of a Machine that has a wrong clock: its helper shows it, and by a library that is
// preloaded so do the programs that the helper starts, QEMU among them. The library is compiled by gcc. Without one the
// test is skipped; root's test under QMIGRATE_REQUIRE_QEMU=1 fails.
func WrongClock(t testing.TB, d host.Drift) []string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	switch {
	case err != nil && os.Geteuid() == 0 && os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1":
		t.Fatal("no gcc for the library that makes QEMU's clock wrong: apt-get install gcc")
	case err != nil:
		t.Skip("no gcc for the library that makes QEMU's clock wrong: apt-get install gcc")
	}
	dir := t.TempDir()
	source, library := filepath.Join(dir, "clock.c"), filepath.Join(dir, "clock.so")
	if err := os.WriteFile(source, clockSource, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(gcc, "-shared", "-fPIC", "-O2", "-nostdlib", "-ffreestanding", "-fno-builtin", "-o", library,
		source).CombinedOutput(); err != nil {
		t.Fatalf("compile the library that makes QEMU's clock wrong: %v: %s", err, out)
	}
	formula := fmt.Sprintf("%d,%s,%d", d.Offset, strconv.FormatFloat(d.PPM, 'g', -1, 64), d.From.UnixNano())
	if !d.Step.IsZero() {
		formula += fmt.Sprintf(",%d,%d", d.Step.UnixNano(), d.StepBy)
	}
	return []string{"QMIGRATE_HELPER_CLOCK=" + formula, "LD_PRELOAD=" + library}
}
