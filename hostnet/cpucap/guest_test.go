package cpucap_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/hostnet/host"
)

// TestUnified: caps by cgroup v2, whatever this machine has: this test program is process 1 of a guest whose kernel has the controller there.
func TestUnified(t *testing.T) {
	qemu, image := guesttest.QEMU(t, "10.0"), guesttest.Image(t)
	dir := guesttest.Dir(t)
	program := filepath.Join(dir, "test")
	build := exec.Command("go", "test", "-c", "-ldflags", "-s -w", "-o", program, ".") // a static one
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	init, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var initrd bytes.Buffer
	w := cpio.Newc.Writer(&initrd)
	err = cpio.WriteRecords(w, []cpio.Record{
		cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1), cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.Directory("proc", 0o755), cpio.Directory("sys", 0o755), cpio.Directory("tmp", 0o755), cpio.StaticFile("init", string(init), 0o755)})
	if err == nil {
		err = cpio.WriteTrailer(w)
	}
	if err == nil {
		image.Initrd = filepath.Join(dir, "initrd")
		err = os.WriteFile(image.Initrd, initrd.Bytes(), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	image.Append = "QMIGRATE_CPUCAP_TEST_HELPER=unified" // the kernel hands what it does not know to process 1
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	vm, err := guest.Start(ctx, host.Local(), guest.Spec{Name: "cpucap", QEMU: qemu, Dir: filepath.Join(dir, "vm"), Image: image, VCPUs: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	select { // when process 1 ends, the kernel panics, and QEMU ends
	case <-vm.Process().Done():
	case <-ctx.Done():
	}
	text, err := vm.Console()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cap holds: in the root", "cap holds: below a slice", "cap holds: in a scope", "swept: CPU cap /sys/fs/cgroup/qmig-gone-b"} {
		if !strings.Contains(text, want) {
			t.Errorf("the guest did not say %q, but:\n%s", want, text)
			break
		}
	}
}
