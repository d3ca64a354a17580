package guest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/image"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// fakeGuest is the agent's end of the line, played by the test.
type fakeGuest struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

func dialFake(t *testing.T) (*guest.Agent, *fakeGuest) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(guesttest.Dir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.(*net.UnixListener).SetDeadline(time.Now().Add(within.Limit))
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = peer.SetDeadline(time.Now().Add(within.Limit))
	a := guest.NewAgent(nc)
	t.Cleanup(func() { a.Close(); peer.Close() })
	return a, &fakeGuest{t, peer, bufio.NewReader(peer)}
}

func (g *fakeGuest) say(format string, args ...any) {
	g.t.Helper()
	if _, err := fmt.Fprintf(g.nc, format, args...); err != nil {
		g.t.Error(err)
	}
}

func (g *fakeGuest) request() wire.Request {
	g.t.Helper()
	for {
		line, err := g.r.ReadBytes('\n')
		if err != nil {
			g.t.Error(err)
			return wire.Request{}
		}
		if len(line) == 1 {
			continue
		}
		r, err := wire.DecodeRequest(line)
		if err != nil {
			g.t.Error(err)
		}
		return r
	}
}

func TestAgentCall(t *testing.T) {
	a, g := dialFake(t)
	go func() {
		g.say("lf of a line\"}\n")                                                       // of the former host side
		g.say("\n{\"id\":1,\"result\":{\"pages\":1}}\n\n{\"id\":2,\"error\":\"old\"}\n") // and answers to it
		first, second := g.request(), g.request()
		if first.Do == wire.DoVerify {
			first, second = second, first
		}
		if string(first.Args) != `{"bytes":8192}` || second.Args != nil || first.ID == second.ID {
			t.Errorf("asked %+v and %+v", first, second)
		}
		g.say("\n{\"id\":%d,\"error\":\"no memory is filled\"}\n", second.ID) // overtaking
		g.say("\n{\"id\":%d,", first.ID)
		g.say("\"result\":{\"pages\":2,\"more\":\"%s\"}}\n", strings.Repeat("x", 200_000))
	}()
	refused := make(chan error, 1)
	go func() { refused <- a.Call(within.Context(t), wire.DoVerify, nil, nil) }()
	var f wire.Filled
	if err := a.Call(within.Context(t), wire.DoFill, wire.Fill{Bytes: 8192}, &f); err != nil || f.Pages != 2 {
		t.Errorf("%+v, %v", f, err)
	}
	var refusal *guest.AgentError
	if err, _ := within.Receive(t, "the refusal", refused); !errors.As(err, &refusal) || refusal.Do != wire.DoVerify || refusal.Text != "no memory is filled" || err.Error() != "guest agent: verify: no memory is filled" {
		t.Errorf("%v", err)
	}
	if a.Garbage() != 1 {
		t.Errorf("%d garbage lines, want 1", a.Garbage())
	}
	ctx, cancel := context.WithCancel(within.Context(t))
	go func() { g.request(); cancel() }()
	if err := a.Call(ctx, wire.DoHello, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := a.Call(within.Context(t), wire.DoFill, func() {}, nil); err == nil {
		t.Error("arguments that do not encode")
	}
}

func TestAgentReady(t *testing.T) {
	for what, play := range map[string]func(g *fakeGuest, id uint64){
		"reply": func(g *fakeGuest, id uint64) { g.say("\n{\"id\":%d,\"result\":{\"kernel\":\"6\"}}\n", id) },
		"note":  func(g *fakeGuest, _ uint64) { g.say("\n{\"event\":\"ready\",\"data\":{\"kernel\":\"6\"}}\n") },
	} {
		a, g := dialFake(t)
		go func() { play(g, g.request().ID) }()
		if h, err := a.Ready(within.Context(t)); err != nil || h.Kernel != "6" {
			t.Errorf("%s: %+v, %v", what, h, err)
		}
	}
}

func TestAgentBeatsAndNotes(t *testing.T) {
	a, g := dialFake(t)
	s, short := a.Notes(10), a.Notes(1)
	const sent = 3000 // more than wait for a reader
	var lines []byte
	for i := range sent {
		lines = wire.AppendBeat(lines, wire.Beat{Seq: uint64(i + 1), Clock: time.Duration(i)})
	}
	g.say("%s", lines)
	g.say("\n{\"event\":\"done\"}\n\n{\"event\":\"new\",\"data\":{\"a\":1}}\n")
	if n, _ := within.Receive(t, "a note", s.C); n.Event != wire.EventDone {
		t.Errorf("%+v", n)
	}
	if n, _ := within.Receive(t, "a note", s.C); n.Event != "new" || string(n.Data) != `{"a":1}` {
		t.Errorf("%+v", n)
	}
	if short.Dropped() != 1 || s.Dropped() != 0 {
		t.Errorf("dropped %d and %d notes", short.Dropped(), s.Dropped())
	}
	short.Close()
	short.Close()
	last, n := guest.Beat{}, uint64(0)
	for len(a.Beats()) > 0 {
		b, _ := within.Receive(t, "a beat", a.Beats())
		if b.Seq != last.Seq+1 || b.Arrived.Before(last.Arrived) {
			t.Fatalf("%+v after %+v", b, last)
		}
		last, n = b, n+1
	}
	if n+a.BeatsDropped() != sent || n == 0 || a.BeatsDropped() == 0 {
		t.Errorf("%d beats read and %d dropped of %d", n, a.BeatsDropped(), sent)
	}
	a.Close()
	if _, ok := within.Receive(t, "the notes' end", s.C); ok {
		t.Error("a note after the end")
	}
	if _, ok := within.Receive(t, "the beats' end", a.Beats()); ok {
		t.Error("a beat after the end")
	}
	if _, ok := within.Receive(t, "the end of a late subscription", a.Notes(1).C); ok {
		t.Error("a subscription after the end is open")
	}
}

func TestAgentGone(t *testing.T) {
	for what, end := range map[string]func(*guest.Agent, *fakeGuest){
		"peer":  func(_ *guest.Agent, g *fakeGuest) { g.nc.Close() },
		"close": func(a *guest.Agent, _ *fakeGuest) { a.Close(); a.Close() },
	} {
		a, g := dialFake(t)
		go func() { g.request(); end(a, g) }()
		for range 2 { // waiting for an answer; asking afterwards
			if err := a.Call(within.Context(t), wire.DoHello, nil, nil); !errors.Is(err, guest.ErrAgentGone) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, err := a.Ready(within.Context(t)); !errors.Is(err, guest.ErrAgentGone) {
			t.Errorf("%s: ready: %v", what, err)
		}
		within.Receive(t, "the agent's end", a.Done())
		if !errors.Is(a.Err(), guest.ErrAgentGone) {
			t.Errorf("%s: %v", what, a.Err())
		}
	}
}

// A line without end from a broken guest takes no more than its share of memory, and the next is good.
func TestAgentEndlessLine(t *testing.T) {
	a, g := dialFake(t)
	go func() {
		for range 5 {
			g.say("%s", strings.Repeat("z", wire.MaxLine/3))
		}
		g.say("\n")
		g.say("\n{\"id\":%d,\"result\":{}}\n", g.request().ID)
	}()
	if err := a.Call(within.Context(t), wire.DoHello, nil, nil); err != nil || a.Garbage() != 1 {
		t.Errorf("%v, %d garbage lines", err, a.Garbage())
	}
}

// The agent as PID 1 of a real guest: facts, beats, memory, dirtier, the check that can fail, a host side that goes and one that comes, and the end.
func TestAgentInGuest(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "agent")
	build := within.Command(t, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "./agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pid1, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if len(pid1) > 5<<20 {
		t.Errorf("the agent is %d bytes, want less than 5 MiB: it is unpacked into every guest's memory", len(pid1))
	}
	guesttest.EachQEMU(t, func(t *testing.T, bin string) {
		boots := guesttest.Image(t) // skips or fails where there is none
		if boots, err = image.Build(within.Context(t), image.Spec{Agent: pid1}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(within.Context(t), 2*time.Minute)
		defer cancel()
		boots.Append += " " + strings.Join(wire.Boot{BeatInterval: 20 * time.Millisecond}.Words(), " ")
		vm, err := guest.Start(ctx, host.Local(),
			guest.Spec{Name: "agent", QEMU: bin, Image: boots, VCPUs: 2, Dir: filepath.Join(guesttest.Dir(t), "vm")})
		if err != nil {
			t.Fatal(err)
		}
		defer vm.Close()
		connect := func() *guest.Agent {
			t.Helper()
			nc, err := vm.Dial(ctx, guest.AgentIO)
			if err != nil {
				t.Fatal(err)
			}
			return guest.NewAgent(nc)
		}
		a := connect()
		defer func() { a.Close() }()
		call := func(do string, args, result any) {
			t.Helper()
			if err := a.Call(ctx, do, args, result); err != nil {
				console, _ := vm.Console()
				t.Fatalf("%v; console:\n%s", err, console)
			}
		}
		h, err := a.Ready(ctx)
		if err != nil {
			console, _ := vm.Console()
			t.Fatalf("%v; console:\n%s", err, console)
		}
		if h.VCPUs != 2 || h.MemoryBytes < 180<<20 || h.BootID == "" || h.Agent == "unknown" || len(h.Problems) != 0 || h.Ready <= h.Started || h.Uptime < h.Ready {
			t.Errorf("%+v", h)
		}
		var f wire.Filled
		if call(wire.DoFill, nil, &f); f.Pages <= 10_000 {
			t.Errorf("filled by default: %+v", f)
		}
		w, err := wire.ParseWorkload("dirty:rate=5000/s,working-set=8MiB,pattern=hot-cold")
		if err != nil {
			t.Fatal(err)
		}
		call(wire.DoWorkloadStart, w, nil)
		beats := func(n int) (last guest.Beat) {
			t.Helper()
			for range n {
				select {
				case b, ok := <-a.Beats():
					if !ok || b.Seq <= last.Seq || b.Clock <= last.Clock {
						t.Fatalf("%+v after %+v", b, last)
					}
					last = b
				case <-ctx.Done():
					t.Fatal("no beat")
				}
			}
			return last
		}
		before := beats(20)

		// Another host side, which begins after half a line of the former.
		a.Close()
		nc, err := vm.Dial(ctx, guest.AgentIO)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write([]byte(`{"id":1,"do":"powero`)); err != nil {
			t.Fatal(err)
		}
		nc.Close()
		a = connect()
		var again wire.Hello
		if call(wire.DoHello, nil, &again); again.BootID != h.BootID || again.Running != w.String() || again.Clock <= h.Clock {
			t.Errorf("%+v after %+v", again, h)
		}
		if after := beats(20); after.Seq <= before.Seq {
			t.Errorf("beat %d after %d", after.Seq, before.Seq)
		}
		notes := a.Notes(10)
		var s wire.Status
		call(wire.DoWorkloadStop, nil, &s)
		var d wire.Dirtied
		if err := json.Unmarshal(s.Result, &d); err != nil || s.State != wire.Done || d.Writes == 0 || d.Writes != s.Events {
			t.Errorf("%+v, %+v, %v", s, d, err)
		}
		if n, _ := within.Receive(t, "the workload's note", notes.C); n.Event != wire.EventDone {
			t.Errorf("note %+v", n)
		}
		var v wire.Verified
		if call(wire.DoVerify, nil, &v); !v.OK() || v.Checked != f.Pages || v.Claimed != d.Writes {
			t.Errorf("%+v", v)
		}
		call(wire.DoCorrupt, wire.Corrupt{Page: f.Pages - 1}, nil)
		if call(wire.DoVerify, nil, &v); v.OK() || v.Wrong != 1 || v.First[0].Page != f.Pages-1 {
			t.Errorf("a corrupted page was not found: %+v", v)
		}
		call(wire.DoPoweroff, nil, nil)
		select {
		case <-vm.Process().Done():
		case <-ctx.Done():
			t.Error("the guest did not power off")
		}
		t.Logf("ready at %v of its clock, %v of it the agent's; fill %v, verify %v", h.Ready, h.Ready-h.Started, f.Duration, v.Duration)
	})
}
