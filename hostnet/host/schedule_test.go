package host

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest/within"
)

// TestYield: in another process one thread wakes a second one and looks at once whether that has done its work. Without
// yielding it has not, most of the time; with it, always.
func TestYield(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	orders, order, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer order.Close()
	defer orders.Close()
	answers, said, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer answers.Close()
	defer said.Close()
	p, err := Local().Start(within.Context(t), Command{
		Args: []string{self, "-test.run=^TestYieldHelper$"}, Env: []string{"QMIGRATE_TEST_YIELD=1"}, Stdin: orders, Stdout: said,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill(within.Context(t))
	if err := answers.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(answers)
	answer := func() int {
		t.Helper()
		line, err := lines.ReadString('\n')
		n, noNumber := strconv.Atoi(strings.TrimSpace(line))
		if err != nil || noNumber != nil {
			t.Fatalf("the other process says %q: %v", line, err)
		}
		return n
	}
	misses := func() int {
		t.Helper()
		if _, err := order.WriteString("\n"); err != nil {
			t.Fatal(err)
		}
		return answer()
	}
	found, err := FindProcess(p.PID(), p.StartTime())
	if err != nil {
		t.Fatal(err)
	}
	waker := answer()
	for _, s := range []Scheduled{p.(Scheduled), found.(Scheduled)} {
		late := misses()
		for range 50 { // on a busy machine the one that wakes may lose its processor each time
			if late > 0 {
				break
			}
			late = misses()
		}
		if late == 0 {
			t.Error("without yielding the work was always done in time")
		}
		undo, err := s.Yield([]int{waker})
		if err != nil {
			t.Fatal(err)
		}
		if n := misses(); n != 0 {
			t.Errorf("the work was %d times not done in time", n)
		}
		if err := errors.Join(undo(), undo()); err != nil {
			t.Fatal(err)
		}
	}
	undo, err := found.(Scheduled).Yield([]int{1 << 30})
	if err == nil {
		err = undo()
	}
	if err != nil {
		t.Errorf("a thread that has ended: %v", err)
	}
	if err := p.Kill(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.(Scheduled).Threads(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("threads of a dead process: %v", err)
	}
	if _, err := p.(Scheduled).Yield(nil); err == nil {
		t.Error("a dead process's threads yield")
	}
}

// TestYieldHelper is the process of TestYield, not a test. It says which thread wakes, and after each line that it
// gets, how often of 300 times the work was not done in time.
func TestYieldHelper(t *testing.T) {
	if os.Getenv("QMIGRATE_TEST_YIELD") == "" {
		t.Skip("the other process of TestYield")
	}
	var bell uint32
	var done atomic.Uint32
	futex := func(op int, n uint32) {
		// FUTEX_PRIVATE_FLAG
		_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&bell)), uintptr(op|128), uintptr(n), 0, 0, 0)
	}
	go func() {
		runtime.LockOSThread()
		for heard := uint32(0); ; {
			futex(0, heard) // FUTEX_WAIT
			if now := atomic.LoadUint32(&bell); now != heard {
				heard = now
				done.Store(now)
			}
		}
	}()
	runtime.LockOSThread()
	fmt.Println(unix.Gettid())
	for in := bufio.NewReader(os.Stdin); ; {
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		late := 0
		for range 300 {
			n := atomic.AddUint32(&bell, 1)
			futex(1, 1) // FUTEX_WAKE
			if done.Load() != n {
				late++
			}
			for done.Load() != n {
				runtime.Gosched()
			}
		}
		fmt.Println(late)
	}
}
