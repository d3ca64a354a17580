// Package within bounds what a test waits for: a test that would wait for ever fails, and says for what.
package within

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Limit is how long anything may take: far longer than it does on a busy machine.
const Limit = 2 * time.Minute

// Context is t.Context with the limit.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), Limit, fmt.Errorf("%s: not done within %s", t.Name(), Limit))
	t.Cleanup(cancel)
	return ctx
}

// Receive returns what comes out of c; ok tells whether it was sent, and c not closed. Only the test's own goroutine
// may call it.
func Receive[T any](t testing.TB, what string, c <-chan T) (v T, ok bool) {
	t.Helper()
	return receive(t, what, c, Limit)
}

func receive[T any](t testing.TB, what string, c <-chan T, limit time.Duration) (v T, ok bool) {
	t.Helper()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case v, ok = <-c:
	case <-late.C:
		t.Fatalf("waited %s for %s", limit, what)
	}
	return v, ok
}

// Wait returns when all have done; like Receive.
func Wait(t testing.TB, what string, all *sync.WaitGroup) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	Receive(t, what, done)
}

// Command is a program that is told to quit at the limit, upon which one of Go says what it waits for, and killed a
// moment later.
func Command(t testing.TB, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(Context(t), name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Until waits for something that arrives soon, and gives up late.
func Until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Limit); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for ", what)
		}
	}
}

// Echo serves one connection with f.
func Echo(t testing.TB, f func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		f(c)
	}()
	t.Cleanup(func() { l.Close(); Receive(t, "the echo's end", done) })
	return netip.MustParseAddrPort(l.Addr().String())
}
