package behind

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
)

// TestLogs: the lines after an offset that have a word, whatever else is in the file.
func TestLogs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "log")
	long := "vm_a " + strings.Repeat("x", 200<<10) + "vm_a\n"
	const before = "vm_a before\n"
	text := before + "vm_a one\nother\n" + long + "two vm_b\nvm_a no end"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(q LogQuery) (string, int64, error) {
		l, err := Logs().Ask(t.Context(), host.Local(), q)
		return string(l.Text), l.Size, err
	}
	for _, pid := range []int{0, os.Getpid(), 1 << 30} { // as the host has it, as a process has it, as one that is gone had it
		got, size, err := read(LogQuery{PID: pid, Name: name, From: int64(len(before)), Words: []string{"vm_a", "vm_b"}})
		if err != nil || got != "vm_a one\ntwo vm_b\nvm_a no end" || size != int64(len(text)) {
			t.Errorf("%d: %q, %d, %v", pid, got, size, err)
		}
	}
	for _, q := range []LogQuery{{Name: name}, {Name: name, From: 1 << 40, Words: []string{"vm_a"}}} {
		if got, size, err := read(q); err != nil || got != "" || size != int64(len(text)) {
			t.Errorf("%+v: %q, %d, %v", q, got, size, err)
		}
	}
	if _, _, err := read(LogQuery{PID: os.Getpid(), Name: filepath.Join(dir, "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := read(LogQuery{Name: pipe}); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a pipe: %v", err)
	}
	many := strings.Repeat("vm_a "+strings.Repeat("x", 1000)+"\n", logLimit/1000)
	if err := os.WriteFile(name, []byte(many), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Logs().Ask(t.Context(), host.Local(), LogQuery{Name: name, Words: []string{"vm_a"}}); err != nil || !l.More ||
		len(l.Text) > logLimit || len(l.Text) < logLimit-2000 {
		t.Errorf("too many: %d, %v, %v", len(l.Text), l.More, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Logs().Ask(gone, host.Local(), LogQuery{Name: name, Words: []string{"vm_a"}}); err == nil {
		t.Error("it goes on though nobody waits")
	}
}
