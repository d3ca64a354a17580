package engine_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
)

func stageNames(r *record.Migration) (names []record.StageName) {
	for _, s := range r.Stages {
		names = append(names, s.Name)
	}
	return names
}

// TestPostCopy moves a guest in each mode that goes over to post-copy. Slow, because a source of 11.1.3 may fail
// where its pre-copy is about to end when post-copy begins (docs/compatibility.md).
func TestPostCopy(t *testing.T) {
	six := []record.StageName{"initialization", "reservation", "pre-copy", "stop-and-copy", "commitment", "activation"}
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, c := range []struct {
			plan   plan.Plan
			passes int // before the switch, at least
			split  bool
		}{
			{plan.Plan{Mode: record.PostCopyMode, MaxBandwidth: slow, Capabilities: map[string]bool{"postcopy-blocktime": true}}, 1, true},
			{plan.Plan{Mode: record.PostCopyMode, MaxBandwidth: slow, Capabilities: map[string]bool{"postcopy-preempt": true}}, 1, true},
			{plan.Plan{Mode: record.PostCopyMode, MaxBandwidth: slow, Capabilities: map[string]bool{"pause-before-switchover": true}}, 1, true},
			{plan.Plan{Mode: record.HybridMode, SwitchAfter: plan.SwitchAfter{Time: 300 * time.Millisecond}, MaxBandwidth: slow}, 1, true},
			{plan.Plan{Mode: record.HybridMode, SwitchAfter: plan.SwitchAfter{Passes: 50}}, 1, false}, // converges before
		} {
			t.Run(fmt.Sprint(c.plan.Mode, c.plan.SwitchAfter, c.plan.Capabilities), func(t *testing.T) {
				src, dst := pair(t, qemu, nil)
				r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), c.plan, plan.Options{})
				if err != nil {
					t.Fatal(err)
				}
				wantRecord(t, r)
				if r.Outcome != record.Completed || r.GuestOn != record.Destination {
					t.Errorf("outcome %s, guest on %s", r.Outcome, r.GuestOn)
				}
				if a, b := state(t, src), state(t, dst); a != "postmigrate" || b != "running" {
					t.Errorf("source is %s, destination %s", a, b)
				}
				want := six
				if c.split {
					want = append(slices.Clone(six), "post-copy")
				}
				if got := stageNames(r); !slices.Equal(got, want) {
					t.Errorf("stages %v", got)
				}
				last := r.Passes[len(r.Passes)-1]
				if last.PostCopy != c.split || last.Remaining == nil || *last.Remaining != 0 {
					t.Errorf("passes %+v", r.Passes)
				}
				if r.Downtime.Wire == nil || *r.Downtime.Wire <= 0 {
					t.Errorf("downtime %+v", r.Downtime)
				}
				if !r.Capabilities["postcopy-ram"] || r.PostCopy == nil {
					t.Errorf("postcopy-ram was read back as off, figures %+v", r.PostCopy)
				}
				t.Logf("%+v; downtimes qemu %v wire %v; %q", *r.PostCopy, r.Downtime.QEMU, *r.Downtime.Wire, r.Warnings)
			})
		}
	})
}

// TestPostCopyKills kills either QEMU, or cuts qmigrate's monitors, at each edge of a post-copy. While the destination
// has not run, the source runs the guest; afterwards a dead side is the guest's end, and that is said; never do two
// run.
func TestPostCopyKills(t *testing.T) {
	const s, d = record.Source, record.Destination
	start, active := sent(s, "migrate-start-postcopy"), got(s, `"status": "postcopy-active"`)
	turns(t, func(t *testing.T, qemu string, mine func(int) bool) {
		n := 0
		for _, at := range []edge{start, event(s, "STOP"), active, got(d, `"status": "postcopy-active"`), sent(d, "cont"),
			event(d, "RESUME"), done(record.Activation)} {
			for _, who := range []record.Holder{s, d} {
				n++
				if !mine(n) {
					continue
				}
				t.Run(fmt.Sprint(at, "_", who), func(t *testing.T) {
					t.Parallel()
					x := newTrial(t, qemu, true, func(a, b *guest.Spec) { a.Memory, b.Memory = 128<<20, 128<<20 })
					x.plan = plan.Plan{Mode: record.PostCopyMode, MaxBandwidth: slow,
						Parameters: map[string]string{"max-postcopy-bandwidth": fmt.Sprint(slow)}}
					x.run(t, at, 0, func() { x.kill(t, who) })
					x.look(t)
					if x.killed == "" {
						t.Fatalf("the edge never came: %v", x.err)
					}
					t.Logf("source %s, destination %s, guest on %s, %s: %v", x.a, x.b, x.rec.GuestOn, x.rec.Outcome, x.err)
					if x.a == "running" && x.b == "running" {
						t.Fatal("two run the guest")
					}
					if x.rec.Outcome == record.Completed && x.b != "running" || x.err == nil && x.rec.Outcome != record.Completed {
						t.Errorf("completed, and the destination is %s", x.b)
					}
					switch x.rec.GuestOn {
					case s:
						if x.a != "running" {
							t.Errorf("it is said to be on the source, which is %s", x.a)
						}
					case d:
						if x.b != "running" {
							t.Errorf("it is said to be on the destination, which is %s", x.b)
						}
					}
				})
			}
		}
	})
}

// proxy stands between source and destination, on a port of its own, and can cut what it carries.
type proxy struct {
	l  net.Listener
	to func() string

	mu    sync.Mutex
	conns []net.Conn
	sent  atomic.Int64
	hold  atomic.Bool // what comes is kept
}

func startProxy(t *testing.T, to func() string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, to: to}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", p.to())
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				all.Go(func() {
					defer pair[0].Close()
					defer pair[1].Close()
					b := make([]byte, 32<<10)
					for {
						n, err := pair[0].Read(b)
						if err != nil {
							return
						}
						for p.hold.Load() {
							time.Sleep(5 * time.Millisecond)
						}
						if _, err := pair[1].Write(b[:n]); err != nil {
							return
						}
						p.sent.Add(int64(n))
					}
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.cut()
		all.Wait()
	})
	return p
}

// cut ends every connection with a reset.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	p.conns = nil
	p.hold.Store(false)
}

// TestPostCopyRecovers cuts the link twice in post-copy: the guest goes on each time, and the time without a link is a
// stage of its own.
func TestPostCopyRecovers(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		src, dst := pair(t, qemu, func(a, b *guest.Spec) { a.Memory, b.Memory = 256<<20, 256<<20 })
		free, err := net.Listen("tcp", "127.0.0.2:0") // where no other connection of this machine takes the port
		if err != nil {
			t.Fatal(err)
		}
		address := free.Addr().String()
		free.Close()
		p := startProxy(t, func() string { return address })
		cuts := 0
		planned := plan.Plan{
			Mode: record.PostCopyMode, Listen: "tcp:" + address, Connect: "tcp:" + p.l.Addr().String(), MaxBandwidth: slow,
			Parameters: map[string]string{"max-postcopy-bandwidth": fmt.Sprint(192 << 10)},
			StallLimit: time.Second, RecoverLimit: 20 * time.Second,
		}
		from := connect.Endpoint(src)
		h := newTrigger(got(record.Source, `"status": "postcopy-active"`), func() {})
		o := plan.Options{Logger: slog.New(h), Sampled: func(x record.Sample) {
			if x.Status == "postcopy-active" && cuts < 2 && x.Remaining != nil && *x.Remaining < int64(200-60*cuts)<<20 {
				cuts++
				p.cut()
			}
		}}
		r, err := engine.Migrate(within.Context(t), from, connect.Endpoint(dst), planned, o)
		if err != nil {
			t.Fatalf("%v\n%s", err, strings.Join(h.seen, "\n"))
		}
		wantRecord(t, r)
		want := []record.StageName{"initialization", "reservation", "pre-copy", "stop-and-copy", "commitment", "activation",
			"post-copy", "recovery", "post-copy", "recovery", "post-copy"}
		if got := stageNames(r); !slices.Equal(got, want) || r.PostCopy.Pauses != 2 || r.Outcome != record.Completed {
			t.Errorf("stages %v, %d pauses, %s", got, r.PostCopy.Pauses, r.Outcome)
		}
		if a, b := state(t, src), state(t, dst); a != "postmigrate" || b != "running" {
			t.Errorf("source is %s, destination %s", a, b)
		}
	})
}

// TestPostCopyCancelled: a wish to stop comes too late in post-copy, is not obeyed, and that is said.
func TestPostCopyCancelled(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		src, dst := pair(t, qemu, func(a, b *guest.Spec) { a.Memory, b.Memory = 128<<20, 128<<20 })
		ctx, cancel := context.WithCancel(within.Context(t))
		defer cancel()
		planned := plan.Plan{Mode: record.PostCopyMode, MaxBandwidth: slow,
			Parameters: map[string]string{"max-postcopy-bandwidth": fmt.Sprint(256 << 10)}}
		r, err := engine.Migrate(ctx, connect.Endpoint(src), connect.Endpoint(dst), planned,
			plan.Options{Sampled: func(x record.Sample) {
				if x.Status == "postcopy-active" {
					cancel()
				}
			}})
		if err != nil || r.Outcome != record.Completed || !strings.Contains(fmt.Sprint(r.Warnings), "cannot be cancelled") {
			t.Errorf("error %v, outcome %s, warnings %q", err, r.Outcome, r.Warnings)
		}
		if a, b := state(t, src), state(t, dst); a != "postmigrate" || b != "running" {
			t.Errorf("source is %s, destination %s", a, b)
		}
	})
}

// TestCancelInEachState cancels when the source has said each of the states that a migration goes through: before the
// destination is told to run, the guest goes on at the source; in post-copy the wish comes too late.
func TestCancelInEachState(t *testing.T) {
	const s, d = record.Source, record.Destination
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		pause := map[string]bool{"pause-before-switchover": true}
		for _, c := range []struct {
			name string
			at   edge
			plan plan.Plan
			a, b string
		}{
			{"none", done(record.Reservation), plan.Plan{}, "running", "dead"},
			{"setup", got(s, `"status": "setup"`), plan.Plan{MaxBandwidth: slow}, "running", "dead"},
			{"active", got(s, `"status": "active"`), plan.Plan{MaxBandwidth: slow}, "running", "dead"},
			{"pre-switchover", got(s, `"status": "pre-switchover"`), plan.Plan{Capabilities: pause}, "running", "dead"},
			{"device", got(s, `"status": "device"`), plan.Plan{Capabilities: pause}, "", ""},
			{"completed", got(s, `"status": "completed"`), plan.Plan{}, "", ""},
			{"post-copy active", got(s, `"status": "postcopy-active"`), plan.Plan{Mode: record.PostCopyMode, MaxBandwidth: slow}, "postmigrate", "running"},
		} {
			t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
				x := newTrial(t, qemu, true, nil)
				x.plan = c.plan
				x.run(t, c.at, 0, func() { x.cancel() })
				x.look(t)
				t.Logf("source %s, destination %s, %s: %v", x.a, x.b, x.rec.Outcome, x.err)
				if c.a != "" && (x.a != c.a || x.b != c.b) {
					t.Errorf("source %s, destination %s, want %s and %s: %v", x.a, x.b, c.a, c.b, x.err)
				}
				if one := x.a == "running"; one == (x.b == "running") {
					t.Errorf("source %s, destination %s: one of them has to run the guest: %v", x.a, x.b, x.err)
				}
				if x.err != nil && x.rec.GuestOn != s || x.err == nil && x.rec.GuestOn != d {
					t.Errorf("guest on %s after %v", x.rec.GuestOn, x.err)
				}
			})
		}
		// `migrate` is never sent, and what QEMU says of a migration is of the former one
		t.Run("none_after_a_former_one", func(t *testing.T) {
			x := newTrial(t, qemu, true, nil)
			x.plan = plan.Plan{MaxBandwidth: slow}
			x.run(t, got(s, `"status": "active"`), 0, func() { x.cancel() })
			next := newTrial(t, qemu, true, nil)
			x.to, x.dst = next.to, next.dst
			x.plan.Listen, x.plan.Connect = "fd:m", "fd:m"
			x.run(t, sent(s, "getfd"), 0, func() { x.cancel() })
			x.look(t)
			if x.a != "running" || x.b != "dead" || x.rec.GuestOn != s || x.rec.Outcome != record.Cancelled {
				t.Errorf("source %s, destination %s, %s, guest on %s: %v", x.a, x.b, x.rec.Outcome, x.rec.GuestOn, x.err)
			}
		})
		// somebody else's cancel is under way, and ours comes on top of it
		t.Run("cancelling_and_failed", func(t *testing.T) {
			x := newTrial(t, qemu, true, nil)
			x.plan = plan.Plan{MaxBandwidth: slow}
			x.run(t, got(s, `"status": "active"`), 0, func() {
				x.background.Go(func() {
					_ = x.somebody(t, s, "migrate_cancel")
					x.cancel()
				})
			})
			x.look(t)
			if x.a != "running" || x.b != "dead" {
				t.Errorf("source %s, destination %s: %v", x.a, x.b, x.err)
			}
		})
	})
}

// TestSlowSwitch: a destination that stands still for longer than the stall limit while it is handed the guest is busy,
// not gone: its connection stays.
func TestSlowSwitch(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		x := newTrial(t, qemu, true, nil)
		x.plan = plan.Plan{Mode: record.PostCopyMode, MaxBandwidth: slow, StallLimit: time.Second}
		x.run(t, sent(record.Source, "migrate-start-postcopy"), 0, func() {
			if err := x.dst.Process().Signal(syscall.SIGSTOP); err != nil {
				t.Error(err)
			}
			x.background.Go(func() {
				time.Sleep(5 * x.plan.StallLimit / 2)
				_ = x.dst.Process().Signal(syscall.SIGCONT)
			})
		})
		x.look(t)
		if x.a != "postmigrate" || x.b != "running" || x.rec.Outcome != record.Completed ||
			x.rec.GuestOn != record.Destination {
			t.Errorf("source %s, destination %s, %s, guest on %s: %v", x.a, x.b, x.rec.Outcome, x.rec.GuestOn, x.err)
		}
	})
}

// TestRecoverFromPostCopy: the next command does not go back to a source whose guest has run on a destination that
// died.
func TestRecoverFromPostCopy(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		x := newTrial(t, qemu, true, func(a, b *guest.Spec) { a.Memory, b.Memory = 128<<20, 128<<20 })
		x.plan = plan.Plan{Mode: record.PostCopyMode, MaxBandwidth: slow,
			Parameters: map[string]string{"max-postcopy-bandwidth": fmt.Sprint(slow)}}
		x.run(t, done(record.Activation), 0, func() { x.kill(t, record.Destination) })
		x.look(t)
		holder, said, err := engine.Recover(within.Context(t), connect.Endpoint(x.src), connect.Endpoint(x.dst), plan.Plan{},
			plan.Options{})
		if after := state(t, x.src); after == "running" || err == nil || holder == record.Source ||
			!strings.Contains(err.Error(), "may have run the guest") {
			t.Errorf("source %s before and %s after: %s %q %v", x.a, after, holder, said, err)
		}
	})
}
