package engine_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/qmp"
)

// chaos is how many random cases are run for each QEMU: QMIGRATE_CHAOS, or a few.
func chaos(t *testing.T, few int) int {
	text := os.Getenv("QMIGRATE_CHAOS")
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("QMIGRATE_CHAOS=%s: %v", text, err)
	}
	return n
}

// seed is QMIGRATE_SEED or the clock; it is printed, so that a run can be had again as far as time allows.
func seed(t *testing.T) *rand.Rand {
	n := uint64(time.Now().UnixNano())
	if text := os.Getenv("QMIGRATE_SEED"); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("QMIGRATE_SEED=%d", n)
	return rand.New(rand.NewPCG(n, n))
}

// edge is an instant of a migration: a line on a monitor's wire as it is sent or received, or the end of a stage.
type edge struct{ side, what, text string }

var never edge

func sent(side record.Holder, command string) edge {
	return edge{string(side), "sent", `"execute":"` + command + `"`}
}
func got(side record.Holder, text string) edge { return edge{string(side), "received", text} }

// event is the line of an event. The name alone also stands in query-qmp-schema's reply, which comes first.
func event(side record.Holder, name string) edge { return got(side, `"event": "`+name+`"`) }
func done(s record.StageName) edge               { return edge{"", "stage", string(s)} }

func (e edge) String() string {
	return strings.NewReplacer(`"execute":`, "", `"event": `, "", `"status": `, "", `"`, "", " ",
		"").Replace(strings.TrimSpace(e.side+"-"+e.what+"-") + e.text)
}

// trigger is an slog.Handler that does something, once, in the middle of the engine's work: when an edge is logged.
type trigger struct {
	*triggered
	side string
}

type triggered struct {
	at   edge
	fire func()
	once sync.Once
	mu   sync.Mutex
	seen []string
}

func newTrigger(at edge, fire func()) trigger {
	return trigger{triggered: &triggered{at: at, fire: fire}}
}

func (h trigger) Enabled(context.Context, slog.Level) bool { return true }
func (h trigger) WithGroup(string) slog.Handler            { return h }
func (h trigger) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "side" {
			h.side = a.Value.String()
		}
	}
	return h
}

func (h trigger) Handle(_ context.Context, r slog.Record) error {
	text := ""
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "line" || a.Key == "name" {
			text = a.Value.String()
		}
		if r.Message == "decided" {
			text += a.String() + " "
		}
		return true
	})
	if r.Message == "stage" {
		h.side = ""
	}
	if !strings.Contains(text, "query-") && len(text) < 300 {
		h.mu.Lock()
		h.seen = append(h.seen, fmt.Sprintf("%s %s %s %s", r.Time.Format("05.000000"), h.side, r.Message, text))
		h.mu.Unlock()
	}
	if h.at != never && r.Message == h.at.what && h.side == h.at.side && strings.Contains(text, h.at.text) {
		h.once.Do(h.fire)
	}
	return nil
}

// saw tells whether a line has been logged.
func (h trigger) saw(side record.Holder, text string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.seen, func(s string) bool {
		return strings.Contains(s, " "+string(side)+" ") &&
			strings.Contains(s, text)
	})
}

// decided tells whether a decision of the undo was logged with this text.
func (h trigger) decided(text string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.seen, func(s string) bool { return strings.Contains(s, " decided ") && strings.Contains(s, text) })
}

// times is how often a line has been logged: once for each monitor that has it.
func (h trigger) times(side record.Holder, text string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.seen {
		if strings.Contains(s, " "+string(side)+" received ") && strings.Contains(s, text) {
			n++
		}
	}
	return n
}

// trial is one migration under attack.
type trial struct {
	src, dst   *guest.VM
	from, to   *endpoint.Endpoint
	plan       plan.Plan
	killed     record.Holder // whose process was killed by fire
	cancel     context.CancelFunc
	conns      map[record.Holder][]net.Conn
	mu         sync.Mutex
	trigger    trigger
	rec        *record.Migration
	err        error
	a, b       string // what source and destination are afterwards
	background sync.WaitGroup
}

// newTrial starts the two QEMUs. Without known the engine is not told their processes.
func newTrial(t *testing.T, qemu string, known bool, change func(a, b *guest.Spec)) *trial {
	src, dst := pair(t, qemu, change)
	return trialOf(src, dst, known)
}

// trialOf is newTrial with QEMUs that are there already.
func trialOf(src, dst *guest.VM, known bool) *trial {
	x := &trial{src: src, dst: dst, conns: map[record.Holder][]net.Conn{}}
	x.from, x.to = connect.Endpoint(x.src), connect.Endpoint(x.dst)
	for holder, e := range map[record.Holder]*endpoint.Endpoint{record.Source: x.from, record.Destination: x.to} {
		if !known {
			e.Process = nil
		}
		e.Sampler = nil // that monitor is for somebody else
		for _, d := range []*endpoint.Dialer{&e.Control, &e.Events} {
			dial := *d
			*d = func(ctx context.Context) (net.Conn, error) {
				nc, err := dial(ctx)
				if err == nil {
					x.mu.Lock()
					x.conns[holder] = append(x.conns[holder], nc)
					x.mu.Unlock()
				}
				return nc, err
			}
		}
	}
	return x
}

func (x *trial) vm(h record.Holder) *guest.VM {
	if h == record.Source {
		return x.src
	}
	return x.dst
}

// kill is kill -9; it returns when the process is dead.
func (x *trial) kill(t *testing.T, h record.Holder) {
	x.killed = h
	if err := x.vm(h).Kill(within.Context(t)); err != nil {
		t.Error(err)
	}
}

// cut closes the engine's monitors of a QEMU that lives on.
func (x *trial) cut(h record.Holder) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, nc := range x.conns[h] {
		nc.Close()
	}
}

// somebody is another client of a QEMU. It returns QEMU's answer.
func (x *trial) somebody(t *testing.T, h record.Holder, command string) error {
	t.Helper()
	return x.somebodySets(t, h, command, nil)
}

// somebodySets is somebody with the command's arguments.
func (x *trial) somebodySets(t *testing.T, h record.Holder, command string, args any) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	nc, err := x.vm(h).Dial(ctx, guest.Sampler)
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.Execute(ctx, command, args, nil)
}

// run migrates; fire happens at the edge, or after a time if there is no edge.
func (x *trial) run(t *testing.T, at edge, after time.Duration, fire func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(within.Context(t))
	defer cancel()
	x.cancel = cancel
	x.trigger = newTrigger(at, fire)
	if at == never && fire != nil {
		timer := make(chan struct{})
		x.background.Go(func() {
			select {
			case <-time.After(after):
				fire()
			case <-timer:
			}
		})
		defer x.background.Wait()
		defer close(timer)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.rec, x.err = engine.Migrate(ctx, x.from, x.to, x.plan, plan.Options{Logger: slog.New(x.trigger)})
	}()
	within.Receive(t, "the migration's end", done)
	if x.rec == nil { // what was done at the edge has failed, and has said so
		t.FailNow()
	}
}

// look asks both QEMUs what they are.
func (x *trial) look(t *testing.T) {
	within.Wait(t, "what was done to it meanwhile", &x.background)
	x.a, x.b = state(t, x.src), state(t, x.dst)
}

// check is what must hold whatever happened: no two guests, and a record that is true.
func (x *trial) check(t *testing.T) {
	t.Helper()
	x.look(t)
	x.truth(t)
	if t.Failed() {
		x.trigger.mu.Lock()
		t.Logf("error: %v\n%s", x.err, strings.Join(x.trigger.seen, "\n"))
		x.trigger.mu.Unlock()
	}
}

func (x *trial) truth(t *testing.T) {
	t.Helper()
	if x.a == "running" && x.b == "running" {
		t.Fatalf("TWO GUESTS RUN: %v", x.err)
	}
	wantRecord(t, x.rec)
	if x.err == nil {
		if x.rec.Outcome != record.Completed || x.rec.GuestOn != record.Destination {
			t.Errorf("no error, but outcome %s, guest on %s", x.rec.Outcome, x.rec.GuestOn)
		}
		if x.b != "running" && x.killed != record.Destination && len(x.rec.Warnings) == 0 {
			t.Errorf("completed, and the destination is %s", x.b)
		}
		return
	}
	var stage *record.StageError
	if !errors.As(x.err, &stage) {
		t.Fatalf("error is %v", x.err)
	}
	if stage.Guest != x.rec.GuestOn {
		t.Errorf("the error says %s, the record %s", stage.Guest, x.rec.GuestOn)
	}
	switch stage.Guest {
	case record.Source:
		if x.a != "running" && !strings.Contains(stage.Mend, "cont") {
			t.Errorf("guest said to be on the source, which is %s: %v", x.a, x.err)
		}
	case record.Destination:
		if x.b != "running" && stage.Mend == "" && len(x.rec.Warnings) == 0 {
			t.Errorf("guest said to be on the destination, which is %s: %v", x.b, x.err)
		}
	case record.None:
		if x.a == "running" || x.b == "running" {
			t.Errorf("guest said to run nowhere; source %s, destination %s: %v", x.a, x.b, x.err)
		}
		if stage.Mend == "" {
			t.Errorf("nobody runs it, and no word about it: %v", x.err)
		}
	case record.Unknown:
		if stage.Mend == "" && stage.Stage != record.Initialization {
			t.Errorf("not known where it is, and no word about it: %v", x.err)
		}
	}
	lost := strings.Contains(x.err.Error(), "lost:") ||
		strings.Contains(x.err.Error(), "it ran on the destination, which died")
	// From 10.0 on a source whose link is lost at the very end of post-copy ends its migration, with what was on its
	// way.
	byQEMU := x.rec.PostCopy != nil && strings.Contains(x.err.Error(), "the source has ended its migration")
	if lost && (x.killed == "" && !byQEMU || stage.Guest != record.None) {
		t.Errorf("a guest is said to be lost, killed was %q: %v", x.killed, x.err)
	}
	if x.killed == record.Source && x.b == "dead" && !lost && x.from.Process != nil {
		t.Errorf("both are dead, and it is not said that the guest is lost: %v", x.err)
	}
}

// afterKill is what must hold of a trial in which one QEMU was killed and the engine knows their processes.
func (x *trial) afterKill(t *testing.T) {
	t.Helper()
	ran := x.trigger.saw(record.Destination, event(record.Destination, "RESUME").text)
	arrived := x.trigger.saw(record.Destination, `"status": "completed"`) // query-dump has a field of that name
	switch {
	case x.err == nil:
	case x.killed == record.Destination && !ran && x.a != "running":
		t.Errorf("the destination died before it ran, and the source is %s: %v", x.a, x.err)
	case x.killed == record.Destination && x.trigger.times(record.Destination,
		event(record.Destination, "RESUME").text) > 1 && x.rec.GuestOn == record.Source:
		t.Errorf("both monitors of the destination told that it ran, and the source was continued: %v", x.err)
	case x.killed == record.Destination && !ran && x.rec.GuestOn != record.Source:
		t.Errorf("the destination died before it ran, and the guest is said to be on %s: %v", x.rec.GuestOn, x.err)
	case x.killed == record.Source && arrived && x.b != "running":
		t.Errorf("the source died when the destination had all, and the destination is %s: %v", x.b, x.err)
	}
	if t.Failed() {
		x.trigger.mu.Lock()
		t.Logf("error: %v\n%s", x.err, strings.Join(x.trigger.seen, "\n"))
		x.trigger.mu.Unlock()
	}
}

// recovered is what the next command makes of it: it never makes two guests of one, and repeats itself.
func (x *trial) recovered(t *testing.T) {
	t.Helper()
	holder, said, err := engine.Recover(within.Context(t), x.from, x.to, plan.Plan{}, plan.Options{})
	before := [2]string{x.a, x.b}
	x.look(t)
	switch {
	case x.a == "running" && x.b == "running":
		t.Fatalf("TWO GUESTS RUN after recovery from %v: %s %v", before, said, err)
	case err != nil:
	case holder == record.Source && x.a != "running", holder == record.Destination && x.b != "running":
		t.Errorf("recovery from %v says %q; source %s, destination %s", before, said, x.a, x.b)
	}
}

// say is one row of the table of what happened.
func (x *trial) say(t *testing.T, where string) {
	how := "completed"
	if x.err != nil {
		how = fmt.Sprintf("%s, guest on %s", x.rec.Outcome, x.rec.GuestOn)
		var stage *record.StageError
		if errors.As(x.err, &stage) && stage.Mend != "" {
			how += ": " + stage.Mend
		}
	}
	last := x.rec.Stages[len(x.rec.Stages)-1].Name
	t.Logf("| %s | %s | %s | source %s, destination %s | %s |", cmpOr(string(x.killed), "-"), where, last, x.a, x.b, how)
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// plans are the ways to migrate that differ in the order of events.
func plans() []plan.Plan {
	var all []plan.Plan
	for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode} {
		for _, caps := range []map[string]bool{nil, {"return-path": true}, {"pause-before-switchover": true},
			{"return-path": true, "pause-before-switchover": true}} {
			all = append(all, plan.Plan{Mode: mode, Capabilities: caps, MaxBandwidth: 512 << 10})
		}
	}
	return all
}

// edges are the instants at which power fails: each command and each event on which a decision hangs, in all six
// stages.
func edges() []edge {
	const s, d = record.Source, record.Destination
	return []edge{
		sent(s, "query-cpus-fast"), done(record.Initialization), // initialization
		// reservation
		sent(d, "stop"), sent(d, "migrate-incoming"), sent(s, "migrate-set-capabilities"), done(record.Reservation),
		sent(s, "migrate"), got(s, `"status": "active"`), got(d, `"status": "active"`), // pre-copy
		// stop-and-copy
		event(s, "STOP"), done(record.PreCopy), got(s, `"status": "completed"`), got(d, `"status": "completed"`),
		done(record.StopAndCopy), done(record.Commitment), // commitment
		sent(d, "cont"), event(d, "RESUME"), done(record.Activation), // activation
	}
}

// thorough tells whether every case is to run on every QEMU. By default each runs on one of them.
func thorough() bool { return os.Getenv("QMIGRATE_CHAOS") != "" }

// turns runs f as a subtest with each QEMU, in parallel; mine(n) tells whether the case of that number is this QEMU's
// turn.
func turns(t *testing.T, f func(t *testing.T, qemu string, mine func(n int) bool)) {
	turn := 0
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		this := turn
		turn++
		f(t, qemu, func(n int) bool { return thorough() || n%len(guesttest.Versions()) == this })
	})
}

// TestKillAtEdges kills -9 either QEMU at each edge.
func TestKillAtEdges(t *testing.T) {
	turns(t, func(t *testing.T, qemu string, mine func(int) bool) {
		for e, at := range edges() {
			for w, who := range []record.Holder{record.Source, record.Destination} {
				for i, p := range plans() {
					known := (e+w+i)%4 != 3
					if !mine(e+w) || !thorough() && i != (e+3*w)%len(plans()) {
						continue
					}
					t.Run(fmt.Sprint(at, "/", who, "/", p.Mode, p.Capabilities, known), func(t *testing.T) {
						t.Parallel()
						x := newTrial(t, qemu, known, nil)
						x.plan = p
						x.run(t, at, 0, func() { x.kill(t, who) })
						x.check(t)
						if x.killed == "" {
							t.Fatalf("the edge never came: %v", x.err)
						}
						if known {
							x.afterKill(t)
						}
						x.say(t, at.String())
						x.recovered(t)
					})
				}
			}
		}
	})
}

// TestKillAtRandom kills -9 either QEMU at any moment of a migration that lasts two to three seconds.
func TestKillAtRandom(t *testing.T) {
	random := seed(t)
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for i := range chaos(t, 4) {
			p := plans()[random.IntN(len(plans()))]
			p.MaxBandwidth = 60 << 10
			who := []record.Holder{record.Source, record.Destination}[random.IntN(2)]
			after, known := time.Duration(random.Int64N(int64(2500*time.Millisecond))), random.IntN(4) > 0
			t.Run(fmt.Sprint(i, who, after, p.Mode, p.Capabilities, known), func(t *testing.T) {
				t.Parallel()
				x := newTrial(t, qemu, known, nil)
				x.plan = p
				x.run(t, never, after, func() { x.kill(t, who) })
				x.check(t)
				if known {
					x.afterKill(t)
				}
				x.say(t, after.Round(time.Millisecond).String())
				x.recovered(t)
			})
		}
	})
}

// TestHang stops the destination with SIGSTOP, which is no death, and cancels a moment later: the guest runs on the
// source. Where its process is not known it cannot be ended, and the guest may stay paused; that is said.
func TestHang(t *testing.T) {
	turns(t, func(t *testing.T, qemu string, mine func(int) bool) {
		const s, d = record.Source, record.Destination
		at := []edge{event(s, "STOP"), got(s, `"status": "completed"`)}
		if thorough() {
			// the last takes the 30 s that activation may take
			at = append(at, sent(s, "migrate"), got(s, `"status": "active"`), sent(d, "cont"))
		}
		for i, at := range at {
			for k, known := range []bool{true, false} {
				if !mine(i + k) {
					continue
				}
				t.Run(fmt.Sprint(at, known), func(t *testing.T) {
					t.Parallel()
					x := newTrial(t, qemu, known, nil)
					x.plan = plans()[0]
					if thorough() { // with return-path, a source that has completed means that the destination is told to run
						x.plan = plans()[i%2]
					}
					// everything is sent with the guest stopped, to a socket that is soon full: the source's main loop hangs
					if at == event(s, "STOP") {
						x.plan = plan.Plan{DowntimeLimit: 2000 * time.Second, MaxBandwidth: -1,
							Listen: "unix:" + filepath.Join(guesttest.Dir(t), "m")}
					}
					x.run(t, at, 0, func() {
						if err := x.dst.Process().Signal(syscall.SIGSTOP); err != nil {
							t.Error(err)
						}
						time.AfterFunc(300*time.Millisecond, x.cancel)
					})
					if known {
						x.check(t)
						if x.a != "running" || x.b != "dead" {
							t.Errorf("source %s, destination %s: %v", x.a, x.b, x.err)
						}
						x.say(t, at.String())
						return
					}
					x.a, x.b = state(t, x.src), "stopped"
					if err := x.dst.Process().Signal(syscall.SIGCONT); err != nil {
						t.Error(err)
					}
					x.check(t)
					x.say(t, at.String())
					x.recovered(t)
					// it took our quit when it went on: then the mend is what the error named
					if x.a == "postmigrate" && x.b == "dead" {
						if !strings.Contains(x.err.Error(), "`cont` on "+x.from.Name) {
							t.Errorf("names no mend: %v", x.err)
						}
						if err := x.somebody(t, s, "cont"); err != nil {
							t.Error(err)
						}
						x.look(t)
					}
					if x.a != "running" && x.b != "running" {
						t.Errorf("nobody runs it after recovery: source %s, destination %s", x.a, x.b)
					}
				})
			}
		}
	})
}

// TestCut closes the monitors of a QEMU that lives on.
func TestCut(t *testing.T) {
	turns(t, func(t *testing.T, qemu string, mine func(int) bool) {
		const s, d = record.Source, record.Destination
		for i, at := range []edge{sent(d, "migrate-incoming"), got(s, `"status": "active"`), event(s, "STOP"),
			got(d, `"status": "completed"`), sent(d, "cont"), event(d, "RESUME")} {
			for w, who := range []record.Holder{s, d} {
				known := i%2 == 0
				if !mine(i/2 + w) {
					continue
				}
				t.Run(fmt.Sprint(at, who, known), func(t *testing.T) {
					t.Parallel()
					x := newTrial(t, qemu, known, nil)
					x.plan = plans()[i%4]
					x.run(t, at, 0, func() { x.cut(who) })
					x.check(t)
					x.say(t, at.String())
					if x.a != "running" && x.b != "running" {
						t.Errorf("both live, and nobody runs it: source %s, destination %s: %v", x.a, x.b, x.err)
					}
				})
			}
		}
	})
}

// TestSomebodyElse has another client give commands to either QEMU meanwhile.
func TestSomebodyElse(t *testing.T) {
	turns(t, func(t *testing.T, qemu string, mine func(int) bool) {
		const s, d = record.Source, record.Destination
		active, completed := got(s, `"status": "active"`), got(d, `"status": "completed"`)
		for n, c := range []struct {
			name     string
			at       edge
			who      record.Holder
			commands []string
			plan     int
			a, b     string // "": as truth allows
			want     string // in the error or the warnings
		}{
			{name: "cancels", at: active, who: s, commands: []string{"migrate_cancel"}, a: "running", b: "dead"},
			{name: "cancels before switch-over", at: event(s, "STOP"), who: s, commands: []string{"migrate_cancel"}, plan: 3},
			{name: "quits the destination", at: active, who: d, commands: []string{"quit"}, a: "running", b: "dead", want: "destination"},
			{name: "quits the full destination", at: completed, who: d, commands: []string{"quit"}, a: "running", b: "dead", want: "destination"},
			{name: "quits the source", at: active, who: s, commands: []string{"quit"}},
			{name: "stops the guest", at: active, who: s, commands: []string{"stop"}, a: "postmigrate", b: "paused", want: "somebody stopped the guest"},
			{name: "stops and continues it", at: active, who: s, commands: []string{"stop", "cont"}, a: "postmigrate", b: "running"},
			{name: "stops it in stop-and-copy", at: active, who: s, commands: []string{"stop"}, plan: 4, a: "postmigrate", b: "running"},
			{name: "continues it in stop-and-copy", at: active, who: s, commands: []string{"cont"}, plan: 4, a: "postmigrate", b: "running"},
			{name: "continues before switch-over", at: event(s, "STOP"), who: s, commands: []string{"cont"}, plan: 2},
			{name: "continues the source that has sent all", at: completed, who: s, commands: []string{"cont"}, want: "somebody"},
			{name: "continues the source when cont is sent", at: sent(d, "cont"), who: s, commands: []string{"cont"}, b: "running", want: "somebody continued the source"},
			{name: "continues the destination early", at: active, who: d, commands: []string{"cont"}, a: "postmigrate", b: "running"},
			{name: "continues the full destination", at: completed, who: d, commands: []string{"cont"}, a: "postmigrate", b: "running"},
		} {
			if !mine(n) {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				x := newTrial(t, qemu, true, nil)
				x.plan = plans()[c.plan]
				x.run(t, c.at, 0, func() {
					if slices.Contains(c.commands, "quit") {
						x.killed = c.who
					}
					x.background.Go(func() { // in turn: the next is given when QEMU has answered the one before
						for i, command := range c.commands {
							if i > 0 {
								time.Sleep(50 * time.Millisecond)
							}
							_ = x.somebody(t, c.who, command) // QEMU may refuse, and may answer late
						}
					})
					if c.at != active {
						x.background.Wait()
					}
				})
				x.check(t)
				x.say(t, c.name)
				if c.a != "" && x.a != c.a || c.b != "" && x.b != c.b {
					t.Errorf("source %s, destination %s, want %s, %s: %v %q", x.a, x.b, c.a, c.b, x.err, x.rec.Warnings)
				}
				if said := fmt.Sprint(x.err, x.rec.Warnings); !strings.Contains(said, c.want) {
					t.Errorf("says %q, want %q", said, c.want)
				}
			})
		}
	})
}

// TestContRefused lets the destination's `cont` fail: somebody else has the disk. The guest goes on at the source, when
// that gets its disk back; until then it is paused, and that is said.
func TestContRefused(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, back := range []bool{true, false} {
			t.Run(fmt.Sprint("back=", back), func(t *testing.T) {
				t.Parallel()
				disk := filepath.Join(guesttest.Dir(t), "disk")
				if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
					t.Fatal(err)
				}
				file, err := os.OpenFile(disk, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				// A lock of this byte says "nobody else may write" (block/file-posix.c: RAW_LOCK_SHARED_BASE + BLK_PERM_WRITE's
				// bit).
				lock := func(kind int16) {
					l := unix.Flock_t{Type: kind, Whence: 0, Start: 201, Len: 1}
					if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &l); err != nil {
						t.Error(err)
					}
				}
				x := newTrial(t, qemu, true, func(a, b *guest.Spec) {
					extra := []string{"-drive", "if=none,id=d,format=raw,file=" + disk, "-device", "virtio-blk-pci,drive=d"}
					a.Extra, b.Extra = extra, extra
				})
				x.plan = plan.Plan{MaxBandwidth: 512 << 10, Capabilities: map[string]bool{"late-block-activate": true}}
				x.run(t, sent(record.Destination, "cont"), 0, func() {
					lock(unix.F_RDLCK)
					if back {
						before := x.trigger.times(record.Destination, "GenericError") // 7.2 knows no trace events of the downtime
						x.background.Go(func() {
							for late := time.Now().Add(within.Limit); x.trigger.times(record.Destination, "GenericError") ==
								before; time.Sleep(time.Millisecond) {
								if time.Now().After(late) {
									t.Error("the destination's `cont` was not refused")
									break
								}
							}
							lock(unix.F_UNLCK)
						})
					}
				})
				x.check(t)
				x.say(t, "cont refused")
				if back {
					if x.a != "running" || x.b != "dead" || x.rec.Outcome != record.Recovered {
						t.Errorf("source %s, destination %s, outcome %s: %v", x.a, x.b, x.rec.Outcome, x.err)
					}
					return
				}
				if x.a == "running" || x.rec.GuestOn != record.None || !strings.Contains(x.err.Error(), "`cont` on ") {
					t.Errorf("source %s, guest on %s: %v", x.a, x.rec.GuestOn, x.err)
				}
				lock(unix.F_UNLCK)
				if err := x.somebody(t, record.Source, "cont"); err != nil {
					t.Errorf("the mend that was named: %v", err)
				}
				if x.look(t); x.a != "running" {
					t.Errorf("source is %s after the mend that was named", x.a)
				}
			})
		}
	})
}

// TestRefusedByQEMU is a `migrate` that fails at once, and one whose destination is not there.
func TestRefusedByQEMU(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, connect := range []string{"nonsense:1", "tcp:127.0.0.1:1", "unix:/nowhere"} {
			for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode} {
				t.Run(fmt.Sprint(connect, mode), func(t *testing.T) {
					t.Parallel()
					x := newTrial(t, qemu, true, nil)
					x.plan = plan.Plan{Mode: mode, Connect: connect}
					begun := time.Now()
					x.run(t, never, 0, nil)
					x.check(t)
					want := "dead"
					if connect == "nonsense:1" { // refused before anything was changed
						want = "inmigrate"
					}
					if x.a != "running" || x.b != want || x.err == nil {
						t.Errorf("source %s, destination %s: %v", x.a, x.b, x.err)
					}
					if took := time.Since(begun); took > 5*time.Second {
						t.Errorf("took %v", took)
					}
				})
			}
		}
	})
}

// TestRecover puts two QEMUs into states that nobody drives any more.
func TestRecover(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, c := range []struct {
			name   string
			make   func(t *testing.T, x *trial)
			holder record.Holder
			a, b   string
			text   string
		}{
			{name: "nothing happened", make: func(*testing.T, *trial) {}, holder: record.Source, a: "running", b: "inmigrate", text: "nothing to recover"},
			{name: "source was continued by hand", make: func(t *testing.T, x *trial) {
				x.finished(t)
				if err := x.somebody(t, record.Source, "cont"); err != nil {
					t.Fatal(err)
				}
			}, holder: record.Unknown, a: "running", b: "paused", text: "if it never ran there, end"},
			{name: "completed", make: func(t *testing.T, x *trial) { x.finished(t) }, holder: record.Destination, a: "postmigrate", b: "running"},
			{name: "completed, source dead", make: func(t *testing.T, x *trial) { x.finished(t); x.kill(t, record.Source) }, holder: record.Destination, a: "dead", b: "running"},
			{name: "completed, destination dead", make: func(t *testing.T, x *trial) { x.finished(t); x.kill(t, record.Destination) }, holder: record.None, a: "postmigrate", b: "dead", text: "is not known"},
			{name: "completed, no such source", make: func(t *testing.T, x *trial) {
				x.finished(t)
				x.from = &endpoint.Endpoint{Name: "typo", Control: func(ctx context.Context) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "unix", "/nowhere/control.qmp")
				}}
			}, holder: record.None, a: "postmigrate", b: "paused", text: "surely dead"},
			{name: "ends swapped", make: func(t *testing.T, x *trial) { x.from, x.to = x.to, x.from }, holder: record.Unknown, a: "running", b: "inmigrate", text: "swap"},
			{name: "both dead", make: func(t *testing.T, x *trial) { x.kill(t, record.Source); x.kill(t, record.Destination) }, holder: record.None, a: "dead", b: "dead", text: "neither"},
			{name: "source dead", make: func(t *testing.T, x *trial) { x.kill(t, record.Source) }, holder: record.None, a: "dead", b: "inmigrate", text: "it is lost"},
			{name: "destination dead", make: func(t *testing.T, x *trial) { x.kill(t, record.Destination) }, holder: record.Source, a: "running", b: "dead"},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				x := newTrial(t, qemu, true, nil)
				c.make(t, x)
				holder, said, err := engine.Recover(within.Context(t), x.from, x.to, plan.Plan{}, plan.Options{})
				x.look(t)
				if x.a != c.a || x.b != c.b || holder != c.holder {
					t.Errorf("holder %s, source %s, destination %s; %s %v", holder, x.a, x.b, said, err)
				}
				if !strings.Contains(said+fmt.Sprint(err), c.text) {
					t.Errorf("says %q %v, want %q", said, err, c.text)
				}
			})
		}
	})
}

// finished brings both to where a qmigrate that was killed before `cont` leaves them: all sent, paused on both sides.
func (x *trial) finished(t *testing.T) {
	t.Helper()
	x.plan = plan.Plan{MaxBandwidth: 512 << 10}
	stopped := make(chan struct{})
	defer close(stopped)
	ctx, cancel := context.WithCancel(within.Context(t))
	defer cancel()
	both := map[record.Holder]*qmp.Conn{}
	for _, h := range []record.Holder{record.Source, record.Destination} {
		nc, err := x.vm(h).Dial(ctx, guest.Control)
		if err != nil {
			t.Fatal(err)
		}
		if both[h], err = qmp.NewConn(ctx, nc, qmp.Options{}); err != nil {
			t.Fatal(err)
		}
		defer both[h].Close()
	}
	uri := "unix:" + filepath.Join(guesttest.Dir(t), "m")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(both[record.Destination].Stop(ctx))
	must(both[record.Destination].MigrateIncoming(ctx, uri))
	must(both[record.Source].Migrate(ctx, uri))
	for _, c := range both {
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			info, err := c.QueryMigrate(ctx)
			must(err)
			if info.Status == "completed" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("migration is %s", info.Status)
			}
		}
	}
}
