package observe

import (
	"os"
	"testing"
	"time"

	"qmigrate/engine/lab/observe/on"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
)

// TestFarTask: a task that is ended on a far host has handed over all that it saw.
func TestFarTask(t *testing.T) {
	hosts := hosttest.New(t, map[string]hosttest.Machine{"a": {Env: []string{"QMIGRATE_CACHE=" + t.TempDir()}}})
	at, err := hosts.Pool.Find(within.Context(t), "ssh://a")
	if err != nil {
		t.Fatal(err)
	}
	start, err := host.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		looks := 0
		x, err := begin(within.Context(t), "processor time", on.CPU(), at, on.CPUSpec{Every: time.Millisecond,
			Processes: []on.ProcessID{{PID: os.Getpid(), Start: start}}}, func(o on.CPULooks) { looks += len(o.Looks) })
		if err != nil {
			t.Fatal(err)
		}
		within.Until(t, "a look", func() bool {
			x.mu.Lock()
			defer x.mu.Unlock()
			return looks > 0
		})
		before := looks
		x.end()
		if x.err != nil || looks == before { // the last look comes last
			t.Fatalf("%d looks, %v", looks, x.err)
		}
	}
}
