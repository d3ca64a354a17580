package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"qmigrate/hostnet"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/leak"
	"qmigrate/hostnet/internal/mark"
	"qmigrate/hostnet/internal/netns"
)

// applyVariable has this program make containers by a manager, for the owner and in the folder that follow, and wait to be
// killed.
const applyVariable = "QMIGRATE_LXC_TEST_APPLY"

func applyAndWait(words string) {
	f := strings.Fields(words)
	s := Spec{Manager: host.LXC(f[0]), Spec: hostnet.Spec{Owner: f[1]}, Dir: f[2], Pool: &host.Pool{Program: helperbin.Helper}}
	if _, err := s.Apply(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("made")
	select {}
}

func TestMain(m *testing.M) {
	hostnet.Main()
	if by := os.Getenv(applyVariable); by != "" {
		applyAndWait(by)
	}
	// Under -race every program sleeps for a second when it exits; the helpers are many.
	os.Setenv("GORACE", strings.TrimSpace("atexit_sleep_ms=0 "+os.Getenv("GORACE")))
	before := leak.Files()
	code := m.Run()
	if err := leftovers(before); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "leaked:", err)
		code = 1
	}
	os.Exit(code)
}

var ownerCount atomic.Int64

func owner() string { return fmt.Sprintf("lxct%d-%d", os.Getpid(), ownerCount.Add(1)) }

// leftovers says what the tests left: goroutines, descriptors, children, namespaces, containers, control groups, mounts.
func leftovers(before map[string]string) error {
	errs := []error{leak.Find(before)}
	ours := fmt.Sprintf("lxct%d-", os.Getpid())
	names, err := netns.Names(mark.Prefix + ours)
	errs = append(errs, err)
	containers, err := liblxcNames()
	errs = append(errs, err)
	for _, name := range append(names, containers...) {
		if strings.HasPrefix(name, mark.Prefix+ours) {
			errs = append(errs, errors.New(name))
		}
	}
	_ = filepath.WalkDir("/run/lxc", func(path string, _ fs.DirEntry, _ error) error {
		if strings.Contains(path, mark.Prefix+ours) {
			errs = append(errs, errors.New(path))
		}
		return nil
	})
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	errs = append(errs, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, ours) {
			errs = append(errs, fmt.Errorf("mount %s", line))
		}
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		if b, _ := os.ReadFile(name); strings.Contains(string(b), mark.Prefix+ours) {
			errs = append(errs, fmt.Errorf("process %s", strings.ReplaceAll(string(b), "\x00", " ")))
		}
	}
	return errors.Join(errs...)
}
