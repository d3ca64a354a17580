package engine_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	tracenotes "qmigrate/engine/tracing"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// watchedPair is a pair of which each has one spare monitor.
func watchedPair(t *testing.T, qemu string, change func(src, dst *guest.Spec)) (src, dst *guest.VM) {
	t.Helper()
	return pair(t, qemu, func(a, b *guest.Spec) {
		withSpare(a, b)
		if change != nil {
			change(a, b)
		}
	})
}

// withSpare gives each QEMU one monitor more.
func withSpare(a, b *guest.Spec) {
	for _, s := range []*guest.Spec{a, b} {
		s.Extra = []string{"-qmp", "unix:" + filepath.Join(s.Dir, "spare.qmp") + ",server=on,wait=off"}
	}
}

// spare is the endpoint that has the spare monitor alone.
func spare(t *testing.T, vm *guest.VM) *endpoint.Endpoint {
	t.Helper()
	ep, err := connect.Parse("unix:"+vm.Spec().Socket("spare.qmp"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return ep
}

// watching is an engine.Watch under way.
type watching struct {
	t     *testing.T
	ready chan struct{}
	some  chan struct{} // closed at its fifth sample
	end   chan struct{}
	stop  context.CancelFunc
	rec   *record.Migration
	err   error
}

// watch begins to watch; dst may be nil.
func watch(t *testing.T, src, dst *guest.VM, p plan.Plan) *watching {
	t.Helper()
	if dst == nil {
		return watchEnds(t, spare(t, src), nil, p)
	}
	return watchEnds(t, spare(t, src), spare(t, dst), p)
}

func watchEnds(t *testing.T, a, b *endpoint.Endpoint, p plan.Plan) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(within.Context(t))
	w := &watching{t: t, ready: make(chan struct{}), some: make(chan struct{}), end: make(chan struct{}), stop: cancel}
	var once sync.Once
	ready := func() { once.Do(func() { close(w.ready) }) }
	n := 0
	sampled := func(record.Sample) {
		if ready(); n == 4 {
			close(w.some)
		}
		n++
	}
	go func() {
		defer close(w.end)
		w.rec, w.err = engine.Watch(ctx, a, b, p, plan.Options{Watching: ready, Sampled: sampled})
	}()
	t.Cleanup(func() { cancel(); <-w.end })
	return w
}

func (w *watching) await() *watching {
	w.t.Helper()
	select {
	case <-w.end:
		w.t.Fatalf("watching has ended: %v", w.err)
	default:
		within.Receive(w.t, "the watching's beginning", w.ready)
	}
	return w
}

func (w *watching) ended() (*record.Migration, error) {
	w.t.Helper()
	within.Receive(w.t, "the watching's end", w.end)
	wantRecord(w.t, w.rec)
	return w.rec, w.err
}

// TestWatchOurs: what qmigrate says of its own migration, and what it says when it looks on, is the same.
func TestWatchOurs(t *testing.T) {
	for _, c := range []struct {
		qemu string
		mode record.Mode
	}{{"7.2", record.PreCopyMode}, {"7.2", record.PostCopyMode}, {"10.0", record.StopAndCopyMode}, {"11.1", record.PreCopyMode},
		{"10.0", record.PostCopyMode}} {
		t.Run(c.qemu+"_"+string(c.mode), func(t *testing.T) {
			t.Parallel()
			src, dst := watchedPair(t, guesttest.QEMU(t, c.qemu), nil)
			w := watch(t, src, dst, plan.Plan{}).await()
			p := plan.Plan{Mode: c.mode, MaxBandwidth: 512 << 10}
			if c.mode == record.PostCopyMode { // something is left to follow the guest
				p.Parameters = map[string]string{"max-postcopy-bandwidth": "262144"}
			}
			ours, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), p, plan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := w.ended()
			if err != nil {
				t.Fatal(err)
			}
			same(t, ours, theirs)
		})
	}
}

// TestWatchAsks: whoever watches sends questions alone, also where a qmigrate that has died has left a note of trace events
// that the next command is to switch off: whoever drives may have switched them on.
func TestWatchAsks(t *testing.T) {
	src, dst := watchedPair(t, guesttest.QEMU(t, "10.0"), nil)
	s := newScript(t, src, dst, events(true))
	a := spare(t, src)
	dir := t.TempDir()
	nc, err := a.Control(within.Context(t)) // by which its process is found
	s.must(err)
	nc.Close()
	who := sha256.Sum256([]byte(tracenotes.Who(a)))
	note, err := json.Marshal(map[string]any{"qemu": tracenotes.Who(a), "off": []string{"vmstate_downtime_checkpoint"},
		"qmigrate": map[string]int{"pid": 1, "start": 1}})
	s.must(err)
	s.must(os.WriteFile(filepath.Join(dir, hex.EncodeToString(who[:12])+".json"), note, 0o600))
	var wire wireLog
	a.Control = wire.dialer(a.Control)
	w := &watching{t: t, ready: make(chan struct{}), end: make(chan struct{})}
	go func() {
		defer close(w.end)
		w.rec, w.err = engine.Watch(within.Context(t), a, spare(t, dst), plan.Plan{},
			plan.Options{Traces: dir, Watching: func() { close(w.ready) }})
	}()
	w.await()
	s.listen()
	s.migrate()
	s.sent()
	s.quicken()
	s.finish()
	if _, err := w.ended(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(wire.String()) {
		var c struct {
			Execute   string
			Arguments struct {
				Line string `json:"command-line"`
			}
		}
		s.must(json.Unmarshal([]byte(line), &c))
		n++
		if !strings.HasPrefix(strings.TrimPrefix(c.Execute, "x-"), "query-") && !strings.HasPrefix(c.Arguments.Line, "info ") &&
			!slices.Contains([]string{"qmp_capabilities", "qom-get", "qom-list"}, c.Execute) {
			t.Errorf("it sends %s", line)
		}
	}
	if n < 20 {
		t.Errorf("only %d commands were seen", n)
	}
}

// wireLog keeps what is written to a monitor.
type wireLog struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (s *wireLog) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.String()
}

func (s *wireLog) dialer(dial endpoint.Dialer) endpoint.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		nc, err := dial(ctx)
		return &said{nc, s}, err
	}
}

type said struct {
	net.Conn
	to *wireLog
}

func (c *said) Write(b []byte) (int, error) {
	c.to.mu.Lock()
	c.to.all.Write(b)
	c.to.mu.Unlock()
	return c.Conn.Write(b)
}

// TestWatchClocks: the source's host has a wrong clock, and the wire downtime is right within its error all the same.
func TestWatchClocks(t *testing.T) {
	d := drifting()
	src, dst := pairOn(t, [2]host.Host{wrongClock(t, d), host.Local()}, guesttest.QEMU(t, "10.0"), withSpare)
	var heardOf [2]stamps
	a, b := connect.Endpoint(src), connect.Endpoint(dst)
	a.Events, b.Events = heardOf[0].dialer(a.Events), heardOf[1].dialer(b.Events)
	far := *a // its host, clock and process; the spare monitor alone
	far.Events, far.Sampler = nil, nil
	far.Control = func(ctx context.Context) (net.Conn, error) {
		return src.Host().Dial(ctx, "unix", filepath.Join(src.Spec().Dir, "spare.qmp"))
	}
	w := watchEnds(t, &far, spare(t, dst), plan.Plan{}).await()
	if _, err := engine.Migrate(within.Context(t), a, b, plan.Plan{MaxBandwidth: 512 << 10}, plan.Options{}); err != nil {
		t.Fatal(err)
	}
	r, err := w.ended()
	if err != nil {
		t.Fatal(err)
	}
	truth := heardOf[1].of(t, "RESUME").Sub(instant(d, heardOf[0].of(t, "STOP")))
	if wire, e := r.Downtime.Wire, r.Downtime.WireError; r.Clocks == nil || r.Clocks.Source == nil || (*wire-truth).Abs() > *e {
		t.Errorf("wire %v +/- %v, in truth %v; clocks %+v", *wire, *e, truth, r.Clocks)
	}
}

// same compares what was driven with what was watched.
func same(t *testing.T, ours, theirs *record.Migration) {
	t.Helper()
	if ours.Mode != theirs.Mode || ours.Outcome != theirs.Outcome || ours.GuestOn != theirs.GuestOn {
		t.Errorf("%s %s on %s, watched %s %s on %s", ours.Mode, ours.Outcome, ours.GuestOn, theirs.Mode, theirs.Outcome, theirs.GuestOn)
	}
	if theirs.Watched == nil || !theirs.Watched.Destination || theirs.Watched.Midway || ours.Watched != nil {
		t.Errorf("watched %+v, driven %+v", theirs.Watched, ours.Watched)
	}
	near := func(what string, a, b *time.Duration, e time.Duration) {
		if a == nil || b == nil || (*a-*b).Abs() > e {
			t.Errorf("%s %v, watched %v: further apart than %v", what, show(a), show(b), e)
		}
	}
	a, b := &ours.Downtime, &theirs.Downtime
	near("wire", a.Wire, b.Wire, *a.WireError+*b.WireError)
	near("qemu", a.QEMU, b.QEMU, 0)
	if ours.Mode != record.StopAndCopyMode { // the guest had stopped before there was a sign of a migration
		near("status", a.Status, b.Status, *a.StatusError+*b.StatusError)
	}
	near("total", ours.Total.QEMUTotal, theirs.Total.QEMUTotal, 0)
	if *ours.Total.Transferred != *theirs.Total.Transferred || *ours.Total.Normal != *theirs.Total.Normal {
		t.Errorf("totals %+v, watched %+v", ours.Total, theirs.Total)
	}
	if len(ours.Passes) != len(theirs.Passes) {
		t.Fatalf("passes %+v, watched %+v", ours.Passes, theirs.Passes)
	}
	for i, p := range ours.Passes {
		q := theirs.Passes[i]
		if p.Stopped != q.Stopped || p.PostCopy != q.PostCopy {
			t.Errorf("pass %+v, watched %+v", p, q)
		}
		if i > 0 { // the first begins when `migrate` is about to be sent; later edges are events
			near("pass", &p.Duration, &q.Duration, *a.WireError+*b.WireError)
		}
	}
	for _, name := range []record.StageName{record.PreCopy, record.StopAndCopy} {
		if theirs.Stage(name) == nil {
			t.Errorf("no stage %s: %+v", name, theirs.Stages)
		}
	}
	if got := theirs.End(record.PostCopy).Sub(theirs.End(record.StopAndCopy)); ours.Mode == record.PostCopyMode &&
		(got-ours.Stage(record.PostCopy).Duration).Abs() > *a.WireError+*b.WireError {
		t.Errorf("post-copy took %v, watched %v", ours.Stage(record.PostCopy).Duration, got)
	}
	for name, on := range ours.Capabilities {
		if theirs.Capabilities[name] != on {
			t.Errorf("capability %s was %t, and is watched as %t", name, on, theirs.Capabilities[name])
		}
	}
}

func show(d *time.Duration) string {
	if d == nil {
		return "absent"
	}
	return d.String()
}

// script is a driver as somebody writes one: some commands over both control monitors.
type script struct {
	t        *testing.T
	src, dst *qmp.Conn
	from, to *guest.VM
	events   map[*qmp.Conn]<-chan qmp.Event
	uri      string
}

// newScript prepares both sides: a slow migration, with the source's events or without.
func newScript(t *testing.T, src, dst *guest.VM, capabilities map[string]bool) *script {
	t.Helper()
	s := &script{t: t, from: src, to: dst, uri: "unix:" + dst.Spec().Socket("migration.sock")}
	open := func(vm *guest.VM) *qmp.Conn {
		nc, err := vm.Dial(within.Context(t), guest.Control)
		if err != nil {
			t.Fatal(err)
		}
		c, err := qmp.NewConn(within.Context(t), nc, qmp.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	s.src, s.dst = open(src), open(dst)
	s.events = map[*qmp.Conn]<-chan qmp.Event{s.src: s.src.Subscribe(4096).C, s.dst: s.dst.Subscribe(4096).C}
	for _, c := range []*qmp.Conn{s.src, s.dst} {
		s.must(c.SetMigrateCapabilities(within.Context(t), capabilities))
		s.must(c.SetMigrateParameters(within.Context(t), map[string]any{"max-bandwidth": slow}))
	}
	return s
}

func (s *script) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// listen and migrate begin.
func (s *script) listen() { s.t.Helper(); s.must(s.dst.MigrateIncoming(within.Context(s.t), s.uri)) }

func (s *script) migrate() { s.t.Helper(); s.must(s.src.Migrate(within.Context(s.t), s.uri)) }

// quicken lets the rest be sent at once.
func (s *script) quicken() {
	s.t.Helper()
	s.must(s.src.SetMigrateParameters(within.Context(s.t), map[string]any{"max-bandwidth": 1 << 30}))
}

// until waits until a side's query-migrate says so.
func (s *script) until(c *qmp.Conn, status string) {
	s.t.Helper()
	within.Until(s.t, "status "+status, func() bool {
		info, err := c.QueryMigrate(within.Context(s.t))
		return err == nil && info.Status == status
	})
}

// hears waits for the event of a status. A destination in post-copy may not answer, and sends events all the same.
func (s *script) hears(c *qmp.Conn, status string) {
	s.t.Helper()
	for {
		ev, ok := within.Receive(s.t, "event "+status, s.events[c])
		if !ok {
			s.t.Fatalf("the monitor was closed before %s", status)
		}
		if ev.Name == "MIGRATION" && strings.Contains(string(ev.Data), `"`+status+`"`) {
			return
		}
	}
}

// finish waits for both ends and runs the guest.
func (s *script) finish() {
	s.t.Helper()
	s.until(s.src, "completed")
	s.until(s.dst, "completed")
	s.must(s.dst.Cont(within.Context(s.t)))
}

// sent waits until something was sent.
func (s *script) sent() {
	s.t.Helper()
	within.Until(s.t, "the first bytes", func() bool {
		info, err := s.src.QueryMigrate(within.Context(s.t))
		return err == nil && info.Status == "active" && info.Transferred > 0
	})
}

// settings is all that can be set of a migration on both sides, and which trace events are on.
func (s *script) settings() (all string) {
	s.t.Helper()
	for _, c := range []*qmp.Conn{s.src, s.dst} {
		for _, q := range []struct {
			command string
			args    any
		}{{"query-migrate-capabilities", nil}, {"query-migrate-parameters", nil}, {"trace-event-get-state", map[string]string{"name": "*"}}} {
			var reply json.RawMessage
			s.must(c.Execute(within.Context(s.t), q.command, q.args, &reply))
			all += string(reply) + "\n"
		}
	}
	return all
}

func events(on bool) map[string]bool { return map[string]bool{"events": on} }

// TestWatchScript watches a script's migration to its end.
func TestWatchScript(t *testing.T) {
	for _, c := range []struct {
		name, qemu    string
		events        bool
		alone, midway bool
		stages        []record.StageName
	}{
		{"before", "10.0", true, false, false, []record.StageName{record.PreCopy, record.StopAndCopy, record.Activation}},
		{"before, no events", "7.2", false, false, false, []record.StageName{record.PreCopy, record.StopAndCopy}},
		{"before, source alone", "11.1", true, true, false, []record.StageName{record.PreCopy, record.StopAndCopy}},
		{"in the middle", "11.1", true, false, true, []record.StageName{record.PreCopy, record.StopAndCopy, record.Activation}},
		{"in the middle, source alone, no events", "10.0", false, true, true, []record.StageName{record.PreCopy, record.StopAndCopy}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			src, dst := watchedPair(t, guesttest.QEMU(t, c.qemu), nil)
			s := newScript(t, src, dst, events(c.events))
			watched := dst
			if c.alone {
				watched = nil
			}
			before := s.settings()
			var w *watching
			if !c.midway {
				w = watch(t, src, watched, plan.Plan{}).await()
			}
			s.listen()
			s.migrate()
			if s.sent(); c.midway {
				w = watch(t, src, watched, plan.Plan{}).await()
			}
			within.Receive(t, "samples", w.some)
			if now := s.settings(); now != before {
				t.Errorf("settings were\n%s and are\n%s", before, now)
			}
			s.quicken()
			s.finish()
			r, err := w.ended()
			if err != nil {
				t.Fatal(err)
			}
			if r.Outcome != record.Completed || r.GuestOn != record.Destination || r.Mode != record.PreCopyMode {
				t.Errorf("%s, guest on %s, mode %s", r.Outcome, r.GuestOn, r.Mode)
			}
			if got := stageNames(r); !slices.Equal(got, c.stages) && !(!c.alone && !c.events && len(got) == 3) {
				t.Errorf("stages %v", got)
			}
			d, said := r.Downtime, strings.Join(r.Warnings, "\n")
			if (d.Wire == nil) != c.alone || d.QEMU == nil || (d.Status == nil) != (c.alone || c.midway) {
				t.Errorf("downtimes %+v", d)
			}
			if *r.Watched != (record.Watched{Destination: !c.alone, Midway: c.midway, Status: r.Watched.Status}) {
				t.Errorf("watched %+v", *r.Watched)
			}
			for text, want := range map[string]bool{"was under way (active)": c.midway, "destination was not watched": c.alone,
				"the source's capability events is off": !c.events} {
				if strings.Contains(said, text) != want {
					t.Errorf("said %t, want %t: %q in\n%s", !want, want, text, said)
				}
			}
			info, err := s.src.QueryMigrate(within.Context(t))
			if s.must(err); info.Transferred != *r.Total.Transferred || info.TotalTime != *r.Total.QEMUTotal {
				t.Errorf("totals %+v, and QEMU says %+v", r.Total, info)
			}
			n := len(r.Passes)
			if n < 2 || !r.Passes[n-1].Stopped || r.Passes[0].Stopped || c.midway && r.Passes[0].DirtyPages != nil {
				t.Errorf("passes %+v", r.Passes)
			}
			if c.midway && *r.Passes[0].Transferred >= info.Transferred {
				t.Errorf("the pass that was joined in its middle has all %d bytes", info.Transferred)
			}
		})
	}
}

// TestWatchEnds: a watched migration ends otherwise.
func TestWatchEnds(t *testing.T) {
	kill := func(s *script, vm *guest.VM) { s.t.Helper(); s.must(vm.Kill(within.Context(s.t))) }
	for _, c := range []struct {
		name, qemu string
		alone      bool
		do         func(s *script, w *watching)
		outcome    record.Outcome
		guest      record.Holder
		says       string
	}{
		{"cancelled, and begun again", "10.0", false, func(s *script, _ *watching) {
			s.must(s.src.MigrateCancel(within.Context(s.t)))
			s.hears(s.src, "cancelled")
			s.uri = "unix:" + s.to.Spec().Socket("nobody.sock")
			_ = s.src.Migrate(within.Context(s.t), s.uri)
		}, record.Cancelled, record.Source, "the migration was cancelled"},
		{"destination killed", "11.1", false, func(s *script, _ *watching) { kill(s, s.to) }, record.Failed, record.Source,
			"the migration failed: "},
		{"destination killed, source alone", "7.2", true, func(s *script, _ *watching) { kill(s, s.to) }, record.Failed, record.Source,
			"the migration failed: "},
		{"source killed", "7.2", false, func(s *script, _ *watching) { kill(s, s.from) }, record.Failed, record.None,
			"source QEMU went away"},
		{"source killed, source alone", "10.0", true, func(s *script, _ *watching) { kill(s, s.from) }, record.Failed, record.None,
			"source QEMU went away"},
		{"source quits when it has completed", "11.1", false, func(s *script, _ *watching) {
			s.quicken()
			s.hears(s.src, "completed")
			s.must(s.src.Quit(within.Context(s.t)))
			s.until(s.dst, "completed")
			s.must(s.dst.Cont(within.Context(s.t)))
		}, record.Completed, record.Destination, ""},
		{"destination killed before it ran", "7.2", false, func(s *script, _ *watching) {
			s.quicken()
			s.until(s.src, "completed")
			s.until(s.dst, "completed")
			kill(s, s.to)
		}, record.Failed, record.None, "the source has all of it (postmigrate): `cont` on unix:"},
		{"continued on the source", "10.0", false, func(s *script, _ *watching) {
			s.quicken()
			s.until(s.src, "completed")
			s.until(s.dst, "completed")
			kill(s, s.to)
			s.must(s.src.Cont(within.Context(s.t)))
		}, record.Recovered, record.Source, "somebody has continued the source"},
		{"the guest ends by itself", "10.0", false, func(s *script, _ *watching) {
			s.must(s.src.Execute(within.Context(s.t), "system_reset", nil, nil))
		}, record.GuestEnded, record.None, "the guest was reset on the source"},
		{"watching is ended", "7.2", false, func(_ *script, w *watching) { w.stop() }, record.Unfinished, record.Source,
			`context canceled; the migration was not ended: the source says "active"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			src, dst := watchedPair(t, guesttest.QEMU(t, c.qemu), func(a, _ *guest.Spec) { a.Extra = append(a.Extra, "-no-reboot") })
			s := newScript(t, src, dst, events(true))
			s.listen()
			watched := dst
			if c.alone {
				watched = nil
			}
			w := watch(t, src, watched, plan.Plan{}).await()
			s.migrate()
			s.sent()
			within.Receive(t, "samples", w.some)
			c.do(s, w)
			r, err := w.ended()
			if r.Outcome != c.outcome || r.GuestOn != c.guest {
				t.Errorf("%s, guest on %s, want %s on %s: %v", r.Outcome, r.GuestOn, c.outcome, c.guest, err)
			}
			if c.says == "" {
				s.must(err)
				if r.Downtime.Wire == nil {
					t.Errorf("downtimes %+v", r.Downtime)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || r.Error == nil {
				t.Errorf("it says %v, want %q", err, c.says)
			}
			if len(r.Passes) == 0 || len(r.Samples) == 0 {
				t.Errorf("passes %+v, %d samples", r.Passes, len(r.Samples))
			}
			t.Logf("%v; stages %v; %q", err, stageNames(r), r.Warnings)
		})
	}
}

// TestWatchPostCopy: post-copy that is paused and goes on, or whose destination dies then; begun before it or in it.
func TestWatchPostCopy(t *testing.T) {
	oob := func(s *script, c *qmp.Conn, command string, args any) {
		s.t.Helper()
		s.must(c.ExecuteOOB(within.Context(s.t), command, args, nil))
	}
	for _, c := range []struct {
		name, qemu            string
		alone, midway, killed bool
		stages                []record.StageName
	}{
		{"paused", "10.0", false, false, false, []record.StageName{record.PreCopy, record.StopAndCopy, record.PostCopy, record.Recovery,
			record.PostCopy}},
		{"paused, and the destination dies", "7.2", false, false, true, []record.StageName{record.PreCopy, record.StopAndCopy,
			record.PostCopy, record.Recovery}},
		{"begun in it, source alone", "11.1", true, true, false, []record.StageName{record.PostCopy, record.Recovery, record.PostCopy}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			src, dst := watchedPair(t, guesttest.QEMU(t, c.qemu), func(a, b *guest.Spec) { a.Memory, b.Memory = 128<<20, 128<<20 })
			s := newScript(t, src, dst, map[string]bool{"events": true, "postcopy-ram": true})
			s.must(s.src.SetMigrateParameters(within.Context(t), map[string]any{"max-postcopy-bandwidth": slow}))
			s.listen()
			watched := dst
			if c.alone {
				watched = nil
			}
			var w *watching
			if !c.midway {
				w = watch(t, src, watched, plan.Plan{}).await()
			}
			s.migrate()
			s.sent()
			s.must(s.src.Execute(within.Context(t), "migrate-start-postcopy", nil, nil))
			s.hears(s.dst, "postcopy-active")
			s.must(s.dst.Cont(within.Context(t)))
			if s.until(s.src, "postcopy-active"); c.midway {
				w = watch(t, src, watched, plan.Plan{}).await()
			}
			oob(s, s.src, "migrate-pause", nil)
			s.until(s.src, "postcopy-paused")
			if c.killed {
				s.must(dst.Kill(within.Context(t)))
			} else {
				s.hears(s.dst, "postcopy-paused")
				uri := "unix:" + dst.Spec().Socket("again.sock")
				oob(s, s.dst, "migrate-recover", map[string]string{"uri": uri})
				s.must(s.src.SetMigrateParameters(within.Context(t), map[string]any{"max-postcopy-bandwidth": 0}))
				s.must(s.src.Execute(within.Context(t), "migrate", map[string]any{"uri": uri, "resume": true}, nil))
			}
			r, err := w.ended()
			if got := stageNames(r); !slices.Equal(got, c.stages) {
				t.Errorf("stages %v", got)
			}
			if r.Mode != record.PostCopyMode || r.PostCopy == nil || r.PostCopy.Pauses != 1 {
				t.Errorf("mode %s, %+v", r.Mode, r.PostCopy)
			}
			if last := r.Passes[len(r.Passes)-1]; !last.PostCopy {
				t.Errorf("passes %+v", r.Passes)
			}
			if c.killed {
				if r.Outcome != record.Failed || r.GuestOn != record.None || !strings.Contains(err.Error(), "destination QEMU went away") {
					t.Errorf("%s, guest on %s: %v", r.Outcome, r.GuestOn, err)
				}
				return
			}
			if r.Outcome != record.Completed || r.GuestOn != record.Destination || (r.Downtime.Wire == nil) != c.alone {
				t.Errorf("%s, guest on %s, downtimes %+v: %v", r.Outcome, r.GuestOn, r.Downtime, err)
			}
		})
	}
}

// TestWatchRefuses: what cannot be watched is said in one line.
func TestWatchRefuses(t *testing.T) {
	src, dst := watchedPair(t, guesttest.QEMU(t, "10.0"), nil)
	a, b := connect.Endpoint(src), connect.Endpoint(dst)
	for _, c := range []struct {
		name     string
		src, dst *endpoint.Endpoint
		says     string
	}{
		{"one QEMU twice", spare(t, src), a, "are the same QEMU"},
		{"the wrong way round", spare(t, dst), a, "waits for a guest itself (inmigrate)"},
		{"nothing comes", a, b, "no migration began within 50ms"},
	} {
		r, err := engine.Watch(within.Context(t), c.src, c.dst, plan.Plan{Timeout: 50 * time.Millisecond}, plan.Options{})
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", c.name, err)
		}
		if r.Outcome != record.Failed || r.Error == nil || r.Error.Stage != record.Initialization || len(r.Stages) > 0 {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
}
