package main

import (
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeClock stands still but for its sleeps.
type fakeClock struct{ t time.Duration }

func (c *fakeClock) now() time.Duration      { return c.t }
func (c *fakeClock) sleep(d time.Duration)   { c.t += d }
func (c *fakeClock) advance(d time.Duration) { c.t += d }

// testAgent is an agent on this machine: it never sets anything up, and its own panic fails the test.
func testAgent(t *testing.T, c clock) *agent {
	t.Helper()
	a := newAgent(c)
	a.listen = func(network, _ string) (net.Listener, error) { return net.Listen(network, "127.0.0.1:0") }
	a.off = func() { t.Error("powered off") }
	a.broken = func(what, text string) { t.Errorf("%s: %s", what, text) }
	b, err := newBeats(c, wire.Boot{}.Beat, 0)
	if err != nil {
		t.Fatal(err)
	}
	a.beats = b
	t.Cleanup(func() {
		if j, err := a.currentJob(); err == nil {
			j.cancel()
		}
		within.Wait(t, "the agent's workers", &a.workers)
		a.mem.close()
	})
	return a
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// A panic of the agent's own goes to its end with its text; a guest never just falls silent.
func TestOwnPanicIsTold(t *testing.T) {
	a := newAgent(&fakeClock{})
	told := make(chan string, 1)
	a.broken = func(what, text string) { told <- what + ": " + text }
	a.spawn("heartbeat", func() { panic("no heart") })
	if got, _ := within.Receive(t, "the panic to be told", told); !strings.HasPrefix(got, "heartbeat: panic: no heart\n") || !strings.Contains(got, "main_test.go") {
		t.Errorf("told %q", got)
	}
}

func TestEcho(t *testing.T) {
	a := testAgent(t, newMonotonic())
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	done := make(chan struct{})
	go func() { defer close(done); a.echoOn(l) }()
	for range 2 {
		c := must[net.Conn](t)(net.Dial("tcp", l.Addr().String()))
		_ = c.SetDeadline(time.Now().Add(within.Limit))
		for _, s := range []string{"a", strings.Repeat("b", 1000)} {
			must[int](t)(c.Write([]byte(s)))
			buf := make([]byte, len(s))
			for n := 0; n < len(buf); {
				n += must[int](t)(c.Read(buf[n:]))
			}
			if string(buf) != s {
				t.Errorf("sent %q, got %q", s, buf)
			}
		}
		c.Close()
	}
	l.Close()
	within.Receive(t, "the echo's end", done)
	if len(a.problems) != 1 {
		t.Errorf("a listener that ended is a problem told in hello: %q", a.problems)
	}
}

func TestGaps(t *testing.T) {
	for d := uint64(0); d < 1<<20; d = d*17/16 + 1 {
		s := step(d)
		if hi := uint64(top(s)); hi < d || hi > d+d/16 || s > 0 && uint64(top(s-1)) >= d {
			t.Fatalf("%d is in place %d, which ends at %d", d, s, hi)
		}
	}
	_ = top(step(1<<63 - 1))
	var g gaps
	at := time.Duration(0)
	for i := range 1000 {
		d := time.Millisecond
		if i == 700 {
			d = 250 * time.Millisecond
		}
		g.add(at, at+d)
		at += d
	}
	if g.longest != 250*time.Millisecond || g.at != 700*time.Millisecond || g.n != 1000 {
		t.Errorf("longest %v at %v of %d", g.longest, g.at, g.n)
	}
	if p := g.quantile(0.5); p < time.Millisecond || p > time.Millisecond*17/16 {
		t.Errorf("p50 %v", p)
	}
	if p := g.quantile(1); p != 250*time.Millisecond {
		t.Errorf("p100 %v", p)
	}
}

// The looks are taken at each beat, and counted from the reset to the stop.
func TestLooks(t *testing.T) {
	a := testAgent(t, newMonotonic())
	if _, err := a.do(wire.Request{Do: wire.DoClockReport}); err == nil {
		t.Error("a report without a reset")
	}
	c := &mortal{clock: a.clock, dead: make(chan struct{})}
	a.beats.clock = c
	end := make(chan struct{})
	go func() { // as in TestBeatInterval
		defer close(end)
		defer func() { _ = recover() }()
		a.beats.run()
	}()
	must[any](t)(a.do(wire.Request{Do: wire.DoBeat, Args: json.RawMessage(`{"interval_ns":100000}`)}))
	for range 2 { // the second counts afresh
		must[any](t)(a.do(wire.Request{Do: wire.DoClockReset}))
		late := time.Now().Add(within.Limit)
		for must[any](t)(a.do(wire.Request{Do: wire.DoClockReport})).(wire.ClockReport).Turns < 10 {
			if time.Now().After(late) {
				t.Fatalf("no 10 looks within %s", within.Limit)
			}
			a.clock.sleep(time.Millisecond)
		}
	}
	r := must[any](t)(a.do(wire.Request{Do: wire.DoClockStop})).(wire.ClockReport)
	if r.Turns < 10 || r.Longest < 100*time.Microsecond || r.Resolution > r.Longest || r.Elapsed < r.Longest || r.Interval != 100*time.Microsecond {
		t.Errorf("%+v", r)
	}
	for seq, late := a.beats.report().Seq, time.Now().Add(within.Limit); a.beats.report().Seq < seq+10; a.clock.sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("no 10 beats within %s", within.Limit)
		}
	}
	if again := must[any](t)(a.do(wire.Request{Do: wire.DoClockReport})).(wire.ClockReport); again != r {
		t.Errorf("after the stop %+v became %+v", r, again)
	}
	close(c.dead)
	within.Receive(t, "the end of beats", end)
}

func TestBuildID(t *testing.T) {
	if id := buildID("/proc/self/exe"); id == "unknown" || len(id) < 10 {
		t.Errorf("build id %q", id)
	}
	if id := buildID("main_test.go"); id != "unknown" {
		t.Errorf("build id of a text: %q", id)
	}
}
