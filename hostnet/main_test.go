package hostnet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/internal/leak"
	"qmigrate/hostnet/internal/mark"
	"qmigrate/hostnet/internal/netns"
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
	if len(Check(context.Background()).Missing()) > 0 {
		_ = flag.Set("test.skip", "^ExampleSpec_Apply$") // an example cannot skip itself
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

// leftovers says what the tests left: goroutines, descriptors, namespaces, our children.
func leftovers(before map[string]string) error {
	errs := []error{leak.Find(before)}
	names, err := netns.Names(fmt.Sprintf("%stest-%d", mark.Prefix, os.Getpid()))
	errs = append(errs, err)
	for _, name := range names {
		errs = append(errs, fmt.Errorf("namespace %s", name))
	}
	return errors.Join(errs...)
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
	before := leak.Files()
	if err := leftovers(before); err != nil {
		t.Fatal("leaks before anything leaked: ", err)
	}

	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if err := leftovers(before); err == nil || !strings.Contains(err.Error(), os.DevNull) {
		t.Errorf("a descriptor leaked, and the check says: %v", err)
	}
	file.Close()

	block := make(chan struct{})
	go func() { <-block }()
	if err := leftovers(before); err == nil || !strings.Contains(err.Error(), "TestLeakCheck") {
		t.Errorf("a goroutine leaked, and the check says: %v", err)
	}
	close(block)

	name := mark.Prefix + owner() + "-a"
	if _, err := netns.Create(name); err != nil {
		t.Fatal(err)
	}
	if err := leftovers(before); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("a namespace leaked, and the check says: %v", err)
	}
	if _, err := deleteNamespace(context.Background(), name); err != nil {
		t.Fatal(err)
	}
	if err := leftovers(before); err != nil {
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
