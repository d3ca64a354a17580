package hostnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"qmigrate/guest/guesttest/within"
)

// helper is the environment variable that makes the test program one of the helpers of helpers_test.go.
const helper = "QMIGRATE_HOSTNET_TEST_HELPER"

// noNetwork says why the tests that need the kernel's networks cannot run: neither root nor user namespaces.
const noNetwork = "QMIGRATE_HOSTNET_TEST_NO_NETWORK"

func TestMain(m *testing.M) {
	Main()
	if name := os.Getenv(helper); name != "" {
		if err := helpers()[name](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	status, done, err := Reexec() // without root all tests run in a user namespace
	switch {
	case err != nil:
		os.Setenv(noNetwork, err.Error())
	case done:
		os.Exit(status)
	}
	// Under -race every program sleeps for a second when it exits; the helpers are many.
	os.Setenv("GORACE", strings.TrimSpace("atexit_sleep_ms=0 "+os.Getenv("GORACE")))
	before := openFiles()
	code := m.Run()
	if err := leaks(before); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "leaked:", err)
		code = 1
	}
	os.Exit(code)
}

// leaks says what the tests left: goroutines, descriptors, namespaces, our children.
func leaks(before map[string]string) error {
	var errs []error
	errs = append(errs, goleak.Find())
	runtime.GC() // os.Files of processes that were found and let go
	time.Sleep(10 * time.Millisecond)
	for fd, what := range openFiles() {
		if before[fd] == "" {
			errs = append(errs, fmt.Errorf("descriptor %s: %s", fd, what))
		}
	}
	names, err := namesWith(fmt.Sprintf("%stest-%d", prefix, os.Getpid()))
	errs = append(errs, err)
	for _, name := range names {
		errs = append(errs, fmt.Errorf("namespace %s", name))
	}
	if data, err := os.ReadFile("/proc/thread-self/children"); err == nil && len(data) > 0 {
		errs = append(errs, fmt.Errorf("children of the main thread: %s", data))
	}
	return errors.Join(errs...)
}

func openFiles() map[string]string {
	files := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		what, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		// The poller's and the one that lists this folder are nobody's leak.
		if err == nil && !strings.Contains(what, "anon_inode:[event") && !strings.HasPrefix(what, fmt.Sprintf("/proc/%d/fd", os.Getpid())) {
			files[e.Name()] = what
		}
	}
	return files
}

func needNetwork(t *testing.T) {
	t.Helper()
	if why := os.Getenv(noNetwork); why != "" {
		t.Skip("neither root nor a user namespace: ", why)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	needNetwork(t)
	if Inside() {
		t.Skip("needs the real root, to become another user")
	}
}

var ownerCount atomic.Int64

// owner is a mark of this test's own.
func owner() string { return fmt.Sprintf("test-%d-%d", os.Getpid(), ownerCount.Add(1)) }

// apply makes a network for the test.
func apply(t *testing.T, s Spec) *Network {
	t.Helper()
	needNetwork(t)
	if s.Owner == "" {
		s.Owner = owner()
	}
	n, err := s.Apply(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// self is this test program as a helper.
func self(name string, env ...string) *exec.Cmd {
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(within.Limit, cancel) // nothing that it is told to do takes as long
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.WaitDelay = time.Second
	cmd.Env = append(append(os.Environ(), helper+"="+name), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// TestLeakCheck: the check at the end of this program must see what leaks.
func TestLeakCheck(t *testing.T) {
	needNetwork(t)
	before := openFiles()
	if err := leaks(before); err != nil {
		t.Fatal("leaks before anything leaked: ", err)
	}

	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if err := leaks(before); err == nil || !strings.Contains(err.Error(), os.DevNull) {
		t.Errorf("a descriptor leaked, and the check says: %v", err)
	}
	file.Close()

	block := make(chan struct{})
	go func() { <-block }()
	if err := leaks(before); err == nil || !strings.Contains(err.Error(), "TestLeakCheck") {
		t.Errorf("a goroutine leaked, and the check says: %v", err)
	}
	close(block)

	name := prefix + owner() + "-a"
	if _, err := createNamespace(name); err != nil {
		t.Fatal(err)
	}
	if err := leaks(before); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("a namespace leaked, and the check says: %v", err)
	}
	if _, err := deleteNamespace(context.Background(), name); err != nil {
		t.Fatal(err)
	}
	if err := leaks(before); err != nil {
		t.Error("leaks after all was mended: ", err)
	}
}

// wait waits for something that another process or the kernel does, and gives up late.
func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for ", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func killHard(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait()
}
