package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
)

// guestPort is an agent's port whose host's end can be closed and opened anew behind its descriptor, as QEMU does it.
type guestPort struct {
	t    *testing.T
	a    *agent
	host *os.File
	r    *bufio.Reader
}

func servePort(t *testing.T, with ...func(*agent)) *guestPort {
	t.Helper()
	g := &guestPort{t: t, a: testAgent(t, newMonotonic())}
	fd := g.pair()
	g.a.port = &port{fd: fd}
	g.a.beats.port.Store(g.a.port)
	for _, f := range with {
		f(g.a)
	}
	served, noted := make(chan struct{}), make(chan struct{})
	go func() { defer close(served); g.a.serve() }()
	go func() { defer close(noted); g.a.sendNotes() }()
	t.Cleanup(func() {
		g.a.port.closed.Store(true)
		g.host.Close()
		within.Receive(t, "the port's end", served)
		if j, err := g.a.currentJob(); err == nil {
			j.cancel()
		}
		within.Wait(t, "the agent's workers", &g.a.workers)
		close(g.a.notes)
		within.Receive(t, "the end of notes", noted)
		g.a.port.close()
	})
	return g
}

// pair makes a new host's end and returns the guest's.
func (g *guestPort) pair() int {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	g.host = os.NewFile(uintptr(fds[0]), "host")
	_ = g.host.SetDeadline(time.Now().Add(within.Limit))
	g.r = bufio.NewReader(g.host)
	return fds[1]
}

// reopen gives the port another host.
func (g *guestPort) reopen() {
	g.host.Close()
	fd := g.pair()
	if err := unix.Dup3(fd, g.a.port.fd, unix.O_CLOEXEC); err != nil {
		g.t.Fatal(err)
	}
	unix.Close(fd)
}

func (g *guestPort) say(format string, args ...any) {
	g.t.Helper()
	if _, err := fmt.Fprintf(g.host, format, args...); err != nil {
		g.t.Fatal(err)
	}
}

// hear is the next line that is neither empty nor a beat.
func (g *guestPort) hear() wire.Message {
	g.t.Helper()
	if err := g.host.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		g.t.Fatal(err)
	}
	for {
		line, err := g.r.ReadBytes('\n')
		if err != nil {
			g.t.Fatalf("%q, %v", line, err)
		}
		if _, beat := wire.ParseBeat(line); beat || len(line) == 1 {
			continue
		}
		m, err := wire.DecodeMessage(line)
		if err != nil {
			g.t.Fatalf("%q: %v", line, err)
		}
		return m
	}
}

func (g *guestPort) reply(id uint64) wire.Reply {
	g.t.Helper()
	m := g.hear()
	if m.Reply == nil || m.Reply.ID != id {
		g.t.Fatalf("got %+v %+v, want the reply to %d", m.Reply, m.Note, id)
	}
	return *m.Reply
}

func TestServe(t *testing.T) {
	g := servePort(t)
	g.say(`{"id":1,"do":"hello"}` + "\n")
	var h wire.Hello
	if err := json.Unmarshal(g.reply(1).Result, &h); err != nil || h.Protocol != wire.Protocol || h.VCPUs < 1 || h.MemoryBytes == 0 || h.Kernel == "" || len(h.BootID) != 36 || h.Clock <= 0 || !strings.HasPrefix(strings.Join(h.Workloads, " "), "idle clock dirty ") {
		t.Errorf("%+v, %v", h, err)
	}
	g.say("\n{\"id\":1,\"do\":\"hello\"}\r\n\n\n") // the same id again is answered again
	g.reply(1)
	g.say(`{"id":2,`) // a line in pieces
	time.Sleep(5 * time.Millisecond)
	g.say(`"do":"verify"}` + "\n")
	if r := g.reply(2); r.Error != errNoMemory.Error() {
		t.Errorf("%+v", r)
	}
	for _, garbage := range []string{"garbage", "{", "[1]", `{"id":3}`, `{"id":-1,"do":"hello"}`, `{"id":"x","do":"hello"}`, "\x00\xff", strings.Repeat("x", 3*wire.MaxRequest), `{"id":1,"do":"` + strings.Repeat("y", wire.MaxRequest)} {
		g.say("%s\n", garbage)
		if r := g.reply(0); !strings.HasPrefix(r.Error, "decode request: ") {
			t.Errorf("%.20q: %+v", garbage, r)
		}
	}
	g.say(`{"id":4,"do":"dance"}` + "\n")
	if r := g.reply(4); !strings.HasPrefix(r.Error, `cannot do "dance": I can hello, fill,`) {
		t.Errorf("%+v", r)
	}
	g.say(`{"id":5,"do":"beat","args":{"interval_ns":1}}` + "\n")
	if r := g.reply(5); !strings.Contains(r.Error, "out of range") {
		t.Errorf("%+v", r)
	}
	g.say(`{"id":6,"do":"hello"}` + "\n")
	if err := json.Unmarshal(g.reply(6).Result, &h); err != nil || h.Lines != 9 {
		t.Errorf("%d garbage lines, %v", h.Lines, err)
	}
}

// A host that goes in the middle of a line, and another that comes: a half request is forgotten, a half answer spoils itself only.
func TestHostComesAndGoes(t *testing.T) {
	g := servePort(t)
	for i := range 5 {
		g.say(`{"id":1,"do":"hello"}` + "\n" + `{"id":2,"do":"po`)
		g.reply(1)
		g.reopen()
		// The new host's first newline ends whatever the old one left, should the guest not have seen it go.
		g.say("\n" + `{"id":3,"do":"hello"}` + "\n")
		for m := g.hear(); m.Reply.ID != 3; m = g.hear() {
			if m.Reply.ID != 0 { // the half line, if its end was seen before the host's
				t.Errorf("round %d: %+v", i, m.Reply)
			}
		}
	}
	// Nobody is there: a workload runs, ends and waits with its note for the next host, and beats are dropped, not kept.
	g.host.Close()
	must[wire.Status](t)(g.a.startWorkload(wire.Workload{Name: "clock", Params: map[string]string{"duration": "20ms"}}))
	within.Receive(t, "the workload's end", must[*job](t)(g.a.currentJob()).done)
	for range 10 {
		g.a.beats.beat(1)
	}
	if g.a.port.dropped.Load() != 10 {
		t.Errorf("%d beats dropped, want 10", g.a.port.dropped.Load())
	}
	g.reopen()
	if m := g.hear(); m.Note == nil || m.Note.Event != wire.EventDone {
		t.Errorf("got %+v %+v", m.Reply, m.Note)
	}
}

// A port that nobody reads holds up neither the workload nor the heartbeat, and works again when it is read.
func TestUnreadPort(t *testing.T) {
	g := servePort(t)
	must[wire.Filled](t)(g.a.fill(wire.Fill{Bytes: 1 << 20}))
	must[wire.Status](t)(g.a.startWorkload(wire.Workload{Name: "dirty", Params: map[string]string{"rate": "0/s", "working-set": "1MiB"}}))
	seq := uint64(0)
	for g.a.port.dropped.Load() < 100 { // the socket's buffer is full
		g.a.beats.beat(1)
		seq++
	}
	for i := range 40 { // more than are answered at once
		g.say(`{"id":%d,"do":"workload.status","args":{"max":-1}}`+"\n", i+1)
	}
	events := func() uint64 {
		j := must[*job](t)(g.a.currentJob())
		return j.status(g.a.clock, wire.Bins{Max: -1}).Events
	}
	for before := events(); events() < before+1000; {
		g.a.clock.sleep(time.Millisecond)
	}
	if g.a.beats.report().Seq != seq {
		t.Errorf("%d beats, want %d", g.a.beats.report().Seq, seq)
	}
	seen := map[uint64]bool{}
	for range 40 {
		m := g.hear()
		if m.Reply == nil || m.Reply.Error != "" {
			t.Fatalf("%+v %+v", m.Reply, m.Note)
		}
		seen[m.Reply.ID] = true
	}
	if len(seen) != 40 {
		t.Errorf("%d of 40 requests answered", len(seen))
	}
	must[wire.Status](t)(g.a.stopWorkload(wire.Bins{}))
	if v := must[wire.Verified](t)(g.a.mem.verify()); !v.OK() {
		t.Errorf("%+v", v)
	}
}

func TestPoweroffAnswersFirst(t *testing.T) {
	off := make(chan struct{})
	g := servePort(t, func(a *agent) { a.off = func() { close(off) } })
	g.say(`{"id":9,"do":"poweroff"}` + "\n")
	g.reply(9)
	within.Receive(t, "the power to be off", off)
}

func TestBeats(t *testing.T) {
	g := servePort(t)
	udp := must[int](t)(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(udp)
	if err := unix.SetsockoptTimeval(udp, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(within.Limit.Seconds())}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(udp, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	to := must[unix.Sockaddr](t)(unix.Getsockname(udp)).(*unix.SockaddrInet4)
	boot, err := wire.ParseBoot(fmt.Sprintf("qmigrate.beat=127.0.0.1:%d", to.Port))
	if err != nil {
		t.Fatal(err)
	}
	b := must[*beats](t)(newBeats(g.a.clock, boot.Beat, 0))
	defer unix.Close(b.udp)
	b.port.Store(g.a.port)
	for want := uint64(1); want < 4; want++ {
		b.beat(time.Duration(want) * time.Second)
		buf := make([]byte, 100)
		n := must[int](t)(unix.Read(udp, buf))
		if beat, ok := wire.ParseBeat(buf[:n]); !ok || beat != (wire.Beat{Seq: want, Clock: time.Duration(want) * time.Second}) {
			t.Errorf("by UDP %q", buf[:n])
		}
	}
	onPort := must[*beats](t)(newBeats(g.a.clock, netip.AddrPort{}, 0))
	onPort.port.Store(g.a.port)
	onPort.beat(4 * time.Second)
	line := must[string](t)(g.r.ReadString('\n')) // the newline that begins the first line of all
	line += must[string](t)(g.r.ReadString('\n'))
	if beat, ok := wire.ParseBeat([]byte(line)); !ok || beat != (wire.Beat{Seq: 1, Clock: 4 * time.Second}) {
		t.Errorf("on the port %q: want the beat that had no other way, and none before", line)
	}
	if n := testing.AllocsPerRun(100, func() { b.beat(1) }); n != 0 {
		t.Errorf("%v allocations a beat, want 0", n)
	}
}

// The real loop: off is off, on is on, and a shorter interval is taken at once.
func TestBeatInterval(t *testing.T) {
	g := servePort(t)
	b := g.a.beats
	c := &mortal{clock: g.a.clock, dead: make(chan struct{})}
	b.clock = c
	stop := make(chan struct{})
	go func() { // the loop has no end in the guest; here a panic of its clock is its end
		defer close(stop)
		defer func() { _ = recover() }()
		b.run()
	}()
	for _, interval := range []string{"3600000000000", "200000"} {
		g.say(`{"id":1,"do":"beat","args":{"interval_ns":%s}}`+"\n", interval)
		g.reply(1)
	}
	for late := time.Now().Add(within.Limit); b.seq.Load() < 10; {
		if time.Now().After(late) {
			t.Fatalf("%d beats within %s", b.seq.Load(), within.Limit)
		}
		g.a.clock.sleep(time.Millisecond)
	}
	close(c.dead)
	within.Receive(t, "the end of beats", stop)
}

type mortal struct {
	clock
	dead chan struct{}
}

func (m *mortal) now() time.Duration {
	select {
	case <-m.dead:
		panic("dead")
	default:
		return m.clock.now()
	}
}

func TestFindPort(t *testing.T) {
	sys := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(sys, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, name, "name"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("vport0p1", "org.qemu.guest_agent.0\n")
	c := &lateClock{f: func() { write("vport1p3", wire.Port+"\n") }}
	if name, err := findPort(c, wire.Port, sys, "/dev"); err != nil || name != "/dev/vport1p3" || c.n != 3 {
		t.Errorf("%s after %d sleeps, %v", name, c.n, err)
	}
	if _, err := openPort(filepath.Join(sys, "none")); err == nil {
		t.Error("a port that is not there opened")
	}
}

// lateClock does f in its third sleep.
type lateClock struct {
	fakeClock
	n int
	f func()
}

func (c *lateClock) sleep(time.Duration) {
	if c.n++; c.n == 3 {
		c.f()
	}
}
