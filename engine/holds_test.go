package engine_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest/within"
)

// Who holds the guest: interleavings in which it was, or could have been, lost. Each is a case of one of three tests,
// by fakes that keep QEMU's rules. docs/decisions/0002-who-holds-the-guest.md has the rules that they hold us to.

// guestEnded is the outcome of a migration whose guest has powered off.
const guestEnded record.Outcome = "guest-ended"

// caseOf is one interleaving.
type caseOf struct {
	name string
	run  func(t *testing.T)
}

// atOnce runs all cases at the same time: they mostly wait. t.Parallel would run as many as there are processors.
func atOnce(t *testing.T, cases []caseOf) {
	t.Parallel()
	var all sync.WaitGroup
	for _, c := range cases {
		all.Go(func() { t.Run(strings.ReplaceAll(c.name, " ", "_"), c.run) })
	}
	within.Wait(t, "all cases", &all)
}

// small gives a plan the limits that these tests wait for.
func small(p plan.Plan) plan.Plan {
	p.Listen = cmp.Or(p.Listen, "unix:/nowhere")
	p.StallLimit, p.RecoverLimit = cmp.Or(p.StallLimit, time.Second), cmp.Or(p.RecoverLimit, time.Second)
	p.SampleInterval = cmp.Or(p.SampleInterval, 50*time.Millisecond)
	return p
}

// ends waits until f has ended. If that takes longer than the limit the test has failed, and both QEMUs die, so that
// f can end.
func ends(t *testing.T, limit time.Duration, src, dst *fakeQEMU, f func() error) {
	t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = f()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		a, b := src.runState(), dst.runState()
		src.end()
		dst.end()
		within.Receive(t, "an end with both QEMUs dead", done)
		t.Fatalf("not ended after %s: source %s, destination %s; when both were killed it said: %v", limit, a, b, err)
	}
}

// result is how a migration between two fakes ended, or a recovery.
type result struct {
	src, dst *fakeQEMU
	guest    record.Holder
	outcome  record.Outcome
	err      error
	text     string // all that it said
	took     time.Duration
	rec      *record.Migration // of a migration
}

// moves migrates, within the limit.
func moves(ctx context.Context, t *testing.T, limit time.Duration, src, dst *fakeQEMU, p plan.Plan) result {
	t.Helper()
	x := result{src: src, dst: dst}
	begun := time.Now()
	ends(t, limit, src, dst, func() error {
		r, err := engine.Migrate(ctx, src.endpoint(), dst.endpoint(), small(p), plan.Options{})
		warnings := slices.DeleteFunc(r.Warnings, func(w string) bool { // those that any pair of fakes gets
			usual := func(text string) bool { return strings.Contains(w, text) }
			return usual("not compared") || usual("did not keep it") || usual("loses dirty pages")
		})
		x.guest, x.outcome, x.err, x.text, x.rec = r.GuestOn, r.Outcome, err, fmt.Sprint(err, " ", warnings), r
		return err
	})
	x.took = time.Since(begun)
	return x
}

// recovers is `migrate --recover`, within the limit.
func recovers(t *testing.T, limit time.Duration, src, dst *fakeQEMU, p plan.Plan) result {
	t.Helper()
	x := result{src: src, dst: dst}
	begun := time.Now()
	ends(t, limit, src, dst, func() error {
		holder, said, err := engine.Recover(within.Context(t), src.endpoint(), dst.endpoint(), small(p), plan.Options{})
		x.guest, x.err, x.text = holder, err, fmt.Sprint(said, " ", err)
		return err
	})
	x.took = time.Since(begun)
	return x
}

// want fails the test unless source, destination and guest are as they should be; | stands between what may be.
func (x result) want(t *testing.T, source, destination, guest string) {
	t.Helper()
	a, b := x.src.runState(), x.dst.runState()
	is := func(what, allowed string) bool { return slices.Contains(strings.Split(allowed, "|"), what) }
	if a == "running" && b == "running" && !(is("running", source) && is("running", destination)) {
		t.Errorf("TWO GUESTS RUN")
	}
	if !is(a, source) || !is(b, destination) || !is(string(x.guest), guest) {
		t.Errorf("source %s, destination %s, guest on %s; want %s, %s, %s", a, b, x.guest, source, destination, guest)
	}
	var stage *record.StageError
	if errors.As(x.err, &stage) && (stage.Guest == record.Unknown || stage.Guest == record.None) && stage.Mend == "" &&
		!stage.Ended {
		t.Errorf("guest on %s, and no word about what to do", stage.Guest)
	}
	if t.Failed() {
		t.Logf("%s: %v", x.outcome, x.text)
	}
}

// says fails the test unless every text is in what was said; one that begins with ! must not be in it.
func (x result) says(t *testing.T, all ...string) {
	t.Helper()
	for _, text := range all {
		text, not := strings.CutPrefix(text, "!")
		if strings.Contains(strings.ToLower(x.text), strings.ToLower(text)) == not {
			t.Errorf("says %q, and %q is there: %v", x.text, text, not)
		}
	}
}

// untold fails the test if the QEMU was sent any of the commands.
func untold(t *testing.T, q *fakeQEMU, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if n := q.count(c); n > 0 {
			t.Errorf("%s was sent %s, %d times", q.name, c, n)
		}
	}
}

// modes are those in which everything is sent before the destination runs.
func modes(f func(mode record.Mode) caseOf) []caseOf {
	return []caseOf{f(record.PreCopyMode), f(record.StopAndCopyMode)}
}

// TestHoldsPreCopy is what may happen before the destination runs.
func TestHoldsPreCopy(t *testing.T) {
	atOnce(t, slices.Concat(
		lostBeforeShut(), arrivedOnce(), cancellingLong(), somebodyElses(), elsewhere(), staleAnswer(),
		silentCopy(), lostCancel(), poweredOff(),
	))
}

// lostBeforeShut: with return-path the source waits for the destination's last word, and the link is lost before that
// comes. Both are paused, no event will come. The destination has everything and may hold the image's lock, so it is
// ended before the source is cancelled, but not unless the source has answered.
func lostBeforeShut() (all []caseOf) {
	planned := plan.Plan{Capabilities: map[string]bool{"return-path": true}}
	pair := func(t *testing.T, version string) (src, dst *fakeQEMU) {
		src, dst = copying(t), listening(t)
		src.version, dst.version = version, version
		src.on["migrate"] = func() {
			src.migrating("active")
			src.later(100*time.Millisecond, func() {
				src.switchOver(map[string]string{"7.2": "active", "10.0": "device"}[version])
				dst.later(20*time.Millisecond, func() { dst.status = "paused"; dst.migrating("completed") })
			})
		}
		return src, dst
	}
	for _, version := range []string{"7.2", "10.0"} {
		all = append(all, caseOf{"3 no last word " + version, func(t *testing.T) {
			src, dst := pair(t, version)
			fenced := false
			src.on["migrate_cancel"] = func() {
				fenced = dst.runState() == "dead"
				src.migrating("cancelled")
				if src.status = "paused"; fenced { // QEMU continues it by itself where it can activate its disks
					src.failBack()
					src.migration = "cancelled"
				}
			}
			src.refuse["cont"] = func() string {
				if dst.runState() != "dead" {
					return `Failed to get "write" lock`
				}
				return ""
			}
			x := moves(within.Context(t), t, 15*time.Second, src, dst, planned)
			x.want(t, "running", "dead", "source")
			if src.got("migrate_cancel") && fenced == (version == "10.0") {
				t.Errorf("the destination, which had all, was ended first: %v; only one before 10.0 may hold the locks that the source needs", fenced)
			}
			untold(t, dst, "cont")
		}}, caseOf{"3 no last word, source silent " + version, func(t *testing.T) {
			src, dst := pair(t, version)
			migrate := src.on["migrate"]
			src.on["migrate"] = func() {
				migrate()
				src.later(200*time.Millisecond, func() { src.deaf = true })
			}
			x := moves(within.Context(t), t, 25*time.Second, src, dst, planned)
			x.want(t, "finish-migrate", "paused", "unknown|none")
			untold(t, dst, "quit", "cont")
		}})
	}
	return all
}

// arrivedOnce: a source that once received its guest says `completed` of that. It is no word about the migration that
// we ask for.
func arrivedOnce() []caseOf {
	return modes(func(mode record.Mode) caseOf {
		return caseOf{"4c refused after an arrival " + string(mode), func(t *testing.T) {
			src, dst := copying(t), listening(t)
			src.migration, src.outgoing = "completed", false
			src.refuse["migrate"] = func() string { return "disallowed by somebody's rule" }
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{Mode: mode})
			x.want(t, "running", "dead", "source")
			x.says(t, "somebody's rule")
			if x.outcome != record.Failed {
				t.Errorf("outcome %s", x.outcome)
			}
		}}
	})
}

// cancellingLong: a source that connects into a route where everything is dropped stays in `cancelling` until the
// kernel gives up, which is 127 s (QEMU 7.2). It has sent nothing, and runs the guest, or would if we had not stopped
// it.
func cancellingLong() (all []caseOf) {
	for _, how := range []string{"asked", "time-out", "asked in stop-and-copy"} {
		all = append(all, caseOf{"5 cancelling for long " + how, func(t *testing.T) {
			src, dst := copying(t), listening(t)
			src.version, dst.version = "7.2", "7.2"
			src.on["migrate_cancel"] = func() { src.migrating("cancelling") }
			ctx, cancel := context.WithCancel(within.Context(t)) // as by Ctrl-C
			defer cancel()
			var planned plan.Plan
			switch how {
			case "time-out":
				planned.Timeout = 300 * time.Millisecond
			case "asked in stop-and-copy":
				planned.Mode = record.StopAndCopyMode
			}
			src.on["migrate"] = func() {
				src.migrating("setup")
				if planned.Timeout == 0 {
					time.AfterFunc(300*time.Millisecond, cancel)
				}
			}
			x := moves(ctx, t, 25*time.Second, src, dst, planned)
			x.want(t, "running", "dead", "source")
			if x.outcome != record.Cancelled {
				t.Errorf("outcome %s", x.outcome)
			}
		}})
	}
	return all
}

// somebodyElses: our `migrate` is refused because of somebody else's. That one is not ours to cancel, nor is the
// guest ours to continue.
func somebodyElses() (all []caseOf) {
	const running = "There's a migration process in progress"
	const gone = "Can't migrate the vm that was paused due to previous migration"
	for _, came := range []bool{false, true} {
		all = append(all, caseOf{fmt.Sprintf("8 somebody else's runs, to our destination=%v", came), func(t *testing.T) {
			src, dst := copying(t), listening(t)
			src.refuse["migrate"] = func() string {
				src.migrating("active")
				src.moving = true
				if came {
					dst.do(func() { dst.migrating("active") })
				}
				return running
			}
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{})
			want := "dead"
			if came {
				want = "inmigrate"
			}
			x.want(t, "running", want, "source")
			x.says(t, running)
			untold(t, src, "migrate_cancel", "yank", "cont", "stop")
			if x.outcome != record.Failed || src.migration != "active" {
				t.Errorf("outcome %s, their migration is %s", x.outcome, src.migration)
			}
		}})
	}
	return append(all, modes(func(mode record.Mode) caseOf {
		return caseOf{"8 somebody else's has completed " + string(mode), func(t *testing.T) {
			src, dst := copying(t), listening(t)
			src.refuse["migrate"] = func() string {
				src.switchOver("completed")
				src.status, src.outgoing = "postmigrate", true
				return gone
			}
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{Mode: mode})
			x.want(t, "postmigrate", "inmigrate|dead", "unknown")
			x.says(t, gone)
			untold(t, src, "migrate_cancel", "cont")
			if x.outcome != record.Failed {
				t.Errorf("outcome %s", x.outcome)
			}
		}}
	})...)
}

// elsewhere: the source has sent all of it and nothing has come to our destination. If the user named where the
// source connects to, the guest may run there. It cannot if the destination itself said where it listens, or if a
// tunnel carries the stream.
func elsewhere() (all []caseOf) {
	for _, c := range []struct {
		name string
		plan plan.Plan
		sure bool
	}{
		{"named", plan.Plan{Connect: "unix:/elsewhere"}, false},
		{"derived", plan.Plan{}, true},
		{"tunnel", plan.Plan{Connect: "unix:/near", Tunnel: plan.TLSTunnel}, true},
	} {
		all = append(all, caseOf{"9 sent elsewhere " + c.name, func(t *testing.T) {
			src, dst := copying(t), listening(t)
			src.on["migrate"] = func() {
				src.migrating("active")
				src.later(100*time.Millisecond, func() {
					src.switchOver("completed")
					src.status = "postmigrate"
				})
			}
			c.plan.RecoverLimit = 2 * time.Second
			x := moves(within.Context(t), t, 25*time.Second, src, dst, c.plan)
			if c.sure {
				x.want(t, "running", "dead", "source")
				return
			}
			x.want(t, "postmigrate", "inmigrate", "unknown")
			x.says(t, "unix:/elsewhere", "`cont` on source", "destination")
			untold(t, src, "cont")
			untold(t, dst, "quit")
		}})
	}
	return all
}

// staleAnswer: somebody stops the guest and continues it at once. We ask after the STOP, and the answer, which was
// true when it was made, comes when the guest runs again.
func staleAnswer() []caseOf {
	return []caseOf{{"13 stale answer", func(t *testing.T) {
		src, dst := copying(t), listening(t)
		src.on["migrate"] = func() {
			src.migrating("active")
			src.later(300*time.Millisecond, func() {
				src.slow["query-status"] = 300 * time.Millisecond
				src.on["stop"]()
				src.later(30*time.Millisecond, func() { src.on["cont"](); delete(src.slow, "query-status") })
			})
			src.later(1200*time.Millisecond, func() {
				src.slow["query-status"] = 3 * time.Second // as in a switch-over
				src.switchOver("completed")
				src.status = "postmigrate"
				dst.later(10*time.Millisecond, func() { dst.status = "paused"; dst.migrating("completed") })
			})
		}
		p := plan.Plan{StallLimit: 2 * time.Second, RecoverLimit: 2 * time.Second}
		x := moves(within.Context(t), t, 15*time.Second, src, dst, p)
		x.want(t, "postmigrate", "running", "destination")
		x.says(t, "!left paused")
		if x.err != nil {
			t.Error(x.err)
		}
	}}}
}

// silentCopy: in stop-and-copy we have stopped the guest ourselves, long before the switch-over. A source that does
// not answer then hangs.
func silentCopy() (all []caseOf) {
	for _, back := range []bool{false, true} {
		all = append(all, caseOf{fmt.Sprintf("14 silent in stop-and-copy, answers again=%v", back), func(t *testing.T) {
			src, dst := copying(t), listening(t)
			src.on["migrate"] = func() {
				src.migrating("active")
				dst.do(func() { dst.migrating("active") })
				src.later(100*time.Millisecond, func() { src.deaf = true })
				if back { // a while after it has been given up
					src.later(3*time.Second, func() { src.deaf = false })
				}
			}
			x := moves(within.Context(t), t, 40*time.Second, src, dst, plan.Plan{Mode: record.StopAndCopyMode})
			if back {
				x.want(t, "running", "dead", "source")
			} else {
				x.want(t, "paused", "dead|inmigrate", "unknown|none")
			}
			x.says(t, "source QEMU has not answered for 1s")
			untold(t, dst, "cont")
		}})
	}
	return all
}

// lostCancel: the way to the source is lost before migrate_cancel comes through. The guest waits in pre-switchover, where
// QEMU takes no `cont`: when the source is reached again it is told again.
func lostCancel() []caseOf {
	return []caseOf{{"14b migrate_cancel lost on the way", func(t *testing.T) {
		src, dst := copying(t), listening(t)
		ctx, cancel := context.WithCancel(within.Context(t)) // as by Ctrl-C
		defer cancel()
		src.on["migrate"] = func() {
			src.migrating("active")
			src.later(soon, func() { src.switchOver("pre-switchover"); cancel() })
		}
		lost := false
		src.on["migrate_cancel"] = func() {
			if !lost {
				lost = true
				src.cut()
				return
			}
			src.failBack()
			src.migrating("cancelled")
		}
		p := plan.Plan{Capabilities: map[string]bool{"pause-before-switchover": true}}
		x := moves(ctx, t, 20*time.Second, src, dst, p)
		x.want(t, "running", "dead", "source")
		if n := src.count("migrate_cancel"); n != 2 || x.outcome != record.Cancelled {
			t.Errorf("migrate_cancel was sent %d times, outcome %s", n, x.outcome)
		}
	}}}
}

// poweredOff: the guest shuts itself down while it is copied. Nothing is lost by that.
func poweredOff() []caseOf {
	return modes(func(mode record.Mode) caseOf {
		return caseOf{"15 guest powers off " + string(mode), func(t *testing.T) {
			src, dst := copying(t), listening(t)
			if mode == record.StopAndCopyMode { // it does so just before it would have been stopped
				src.on["stop"] = func() { off(src) }
			} else {
				src.on["migrate"] = func() {
					src.migrating("active")
					dst.do(func() { dst.migrating("active") })
					src.later(300*time.Millisecond, func() { off(src) })
				}
			}
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{Mode: mode})
			x.want(t, "dead", "dead", "none")
			x.says(t, "shut down", "!is lost")
			if x.outcome != guestEnded || x.err == nil {
				t.Errorf("outcome %s: %v", x.outcome, x.err)
			}
		}}
	})
}

// TestEndToldLate: the destination's failure is heard before the source's last words, which say why.
func TestEndToldLate(t *testing.T) {
	t.Parallel()
	src, dst := copying(t), listening(t)
	src.on["migrate"] = func() {
		src.migrating("active")
		dst.do(func() { dst.migrating("active") })
		src.later(soon, func() {
			dst.do(func() { dst.migrating("failed") })
			src.later(300*time.Millisecond, func() { off(src) })
		})
	}
	x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{})
	x.want(t, "dead", "dead", "none")
	x.says(t, "shut down", "!is lost")
	if x.outcome != guestEnded || x.err == nil {
		t.Errorf("outcome %s: %v", x.outcome, x.err)
	}
}

// off is a guest that powers off, upon which its QEMU exits; the lock is held.
func off(q *fakeQEMU) {
	q.event(`"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}`)
	q.status = "shutdown"
	q.event(`"STOP"`)
	if q.migration == "active" { // QEMU cancels it on its way out (seen on 7.2.22)
		q.migrating("cancelling")
	}
	time.AfterFunc(10*time.Millisecond, q.end)
}
