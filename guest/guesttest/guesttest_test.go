package guesttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// The check must fail where something is left.
func TestLeftovers(t *testing.T) {
	dir := Dir(t)
	if left := leftovers(dir); left != nil {
		t.Errorf("nothing is left, it says %q", left)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", "read line", filepath.Join(dir, "qemu.pid"))
	in, err := cmd.StdinPipe() // it reads until this is closed
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	left := strings.Join(leftovers(dir), "\n")
	cmd.Process.Kill()
	cmd.Wait()
	if !strings.Contains(left, "process ") || !strings.Contains(left, filepath.Join(dir, "file")) {
		t.Errorf("a process and a file are left, it says %q", left)
	}
}
