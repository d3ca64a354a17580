package hostnet

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest/within"
)

// policyOf is a thread's scheduling policy.
func policyOf(t *testing.T, id int) uint32 {
	t.Helper()
	attr, err := unix.SchedGetAttr(id, 0)
	if err != nil {
		t.Fatal(err)
	}
	return attr.Policy
}

// processors is how many processors a thread may use.
func processors(t *testing.T, id int) int {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(id, &set); err != nil {
		t.Fatal(err)
	}
	return set.Count()
}

// TestYield binds a real process with several threads, both as a child and as a process of a former run, and lets it go again.
func TestYield(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A copy of this test, which being a Go program has several threads, waits for its standard input to end.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	p, err := Local().Start(within.Context(t), Command{Args: []string{self, "-test.run=^TestYieldHelper$"}, Env: []string{"QMIGRATE_TEST_YIELD=1"}, Stdin: r, Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill(within.Context(t))
	found, err := FindProcess(p.PID(), p.StartTime())
	if err != nil {
		t.Fatal(err)
	}
	before := processors(t, p.PID())
	yielding := map[int]bool{} // a thread stays so
	for _, s := range []Scheduled{p.(Scheduled), found.(Scheduled)} {
		var all []int
		wait(t, "a third thread", func() bool {
			if all, err = s.Threads(); err != nil {
				t.Fatal(err)
			}
			return len(all) >= 3
		})
		if !slices.Contains(all, p.PID()) {
			t.Fatalf("threads %v are without the first, %d", all, p.PID())
		}
		victim := all[len(all)-1]
		yielding[victim] = true
		undo, err := s.Yield([]int{victim})
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.Threads()
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range again {
			if n := processors(t, id); n != 1 {
				t.Errorf("thread %d may use %d processors", id, n)
			}
			if idle := policyOf(t, id) == unix.SCHED_IDLE; idle != yielding[id] {
				t.Errorf("thread %d: idle %v, wanted %v", id, idle, yielding)
			}
		}
		if err := undo(); err != nil {
			t.Fatal(err)
		}
		if n := processors(t, p.PID()); n != before {
			t.Errorf("%d processors given back, there were %d", n, before)
		}
	}
	if err := p.Kill(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.(Scheduled).Threads(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("threads of a dead process: %v", err)
	}
	if _, err := p.(Scheduled).Yield(nil); err == nil {
		t.Error("a dead process was bound")
	}
}

// TestYieldHelper is the process of TestYield, not a test.
func TestYieldHelper(t *testing.T) {
	if os.Getenv("QMIGRATE_TEST_YIELD") == "" {
		t.Skip("the other process of TestYield")
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
}
