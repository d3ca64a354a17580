package cpucap

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/internal/leak"
)

// helper is the environment variable that makes the test program one of these in a second process.
const helper = "QMIGRATE_CPUCAP_TEST_HELPER"

func TestMain(m *testing.M) {
	if run := map[string]func() error{"spin": spin, "unified": unified}[os.Getenv(helper)]; run != nil {
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	before := leak.Files()
	code := m.Run()
	if err := leak.Find(before); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "leaked:", err)
		code = 1
	}
	os.Exit(code)
}

var ownerCount atomic.Int64

// owner is a mark of this test's own.
func owner() string { return fmt.Sprintf("test-%d-%d", os.Getpid(), ownerCount.Add(1)) }

// self is this test program as a helper.
func self(name string) *exec.Cmd {
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(within.Limit, cancel) // nothing that it is told to do takes as long
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), helper+"="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

func killHard(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait()
}
