package within

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"
)

// victim is a test that notes why it failed.
type victim struct {
	testing.TB
	said string
}

func (v *victim) Fatalf(format string, args ...any) {
	v.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestReceive(t *testing.T) {
	v := &victim{TB: t}
	var ended sync.WaitGroup
	ended.Go(func() {
		receive(v, "Godot", make(chan int), time.Millisecond)
		t.Error("it came back from waiting in vain")
	})
	Wait(t, "the victim", &ended)
	if v.said != "waited 1ms for Godot" {
		t.Errorf("it says %q", v.said)
	}
	c := make(chan int, 1)
	c <- 7
	close(c)
	if n, ok := Receive(t, "a number", c); n != 7 || !ok {
		t.Error(n, ok)
	}
	if n, ok := Receive(t, "the end", c); n != 0 || ok {
		t.Error(n, ok)
	}
	if end, ok := Context(t).Deadline(); !ok || time.Until(end) > Limit {
		t.Error(end, ok)
	}
	if err := Command(t, "true").Run(); err != nil || Context(t).Err() != nil || context.Cause(Context(t)) != nil {
		t.Error(err)
	}
}
