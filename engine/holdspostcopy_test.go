package engine_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest/within"
)

// splitting is a pair that goes over to post-copy when it is asked to: the source stops the guest and gives it away,
// the destination has loaded it and does not run it. Its memory comes when the destination runs, unless it is lost
// before.
func splitting(t *testing.T, version string) (src, dst *fakeQEMU) {
	src, dst = copying(t), listening(t)
	src.version, dst.version = version, version
	src.moving = true
	src.on["migrate"] = func() {
		src.migrating("active")
		dst.do(func() { dst.migrating("active") })
	}
	src.on["migrate-start-postcopy"] = func() {
		src.later(20*time.Millisecond, func() { src.switchOver("postcopy-active") })
		dst.later(40*time.Millisecond, func() { dst.status = "paused"; dst.migrating("postcopy-active") })
	}
	completesAfterCont(src, dst)
	return src, dst
}

// completesAfterCont lets the rest of the memory come when the destination runs.
func completesAfterCont(src, dst *fakeQEMU) {
	resume := dst.on["cont"]
	dst.on["cont"] = func() {
		if resume(); dst.status == "running" {
			arrives(src, dst, 200*time.Millisecond)
		}
	}
}

// arrives has all of the memory come after a time, if the link is there then.
func arrives(src, dst *fakeQEMU, after time.Duration) {
	src.later(after, func() {
		if src.migration == "postcopy-active" {
			src.status = "postmigrate"
			src.migrating("completed")
		}
	})
	dst.later(after, func() {
		if dst.migration == "postcopy-active" {
			dst.migrating("completed")
		}
	})
}

// losesLink has both sides pause a while after the destination runs.
func losesLink(src, dst *fakeQEMU) {
	resume := newFakeCont(dst)
	dst.on["cont"] = func() {
		resume()
		for _, q := range []*fakeQEMU{src, dst} {
			q.later(100*time.Millisecond, func() { q.migrating("postcopy-paused") })
		}
	}
}

// newFakeCont is what `cont` does to a paused one.
func newFakeCont(q *fakeQEMU) func() {
	return func() {
		q.event(`"RESUME"`)
		q.status = "running"
	}
}

// TestHoldsPostCopy is what may happen from the switch to post-copy on.
func TestHoldsPostCopy(t *testing.T) {
	atOnce(t, slices.Concat(
		packageUnderWay(), neverBack(), lostMonitor(), releasedRAM(), lostInHandshake(), lostAtTheEnd(),
	))
}

var postCopy = plan.Plan{Mode: record.PostCopyMode}

// packageUnderWay: QEMU 10.2 and newer say postcopy-device until the destination has said that it has loaded the
// devices' state. Until then the source fails back and runs the guest by itself, so that the destination may not be
// told to run.
func packageUnderWay() []caseOf {
	// device brings both to where the destination has loaded all, and the source has not acted upon its word.
	device := func(t *testing.T, loaded bool) (src, dst *fakeQEMU) {
		src, dst = splitting(t, "11.1")
		src.on["migrate-start-postcopy"] = func() {
			src.later(20*time.Millisecond, func() { src.switchOver("postcopy-device") })
			dst.later(30*time.Millisecond, func() { dst.migrating("postcopy-device") })
			if loaded {
				dst.later(40*time.Millisecond, func() { dst.status = "paused"; dst.migrating("postcopy-active") })
			}
		}
		return src, dst
	}
	return []caseOf{
		{"1a link breaks in postcopy-device", func(t *testing.T) {
			src, dst := device(t, true)
			start := src.on["migrate-start-postcopy"]
			src.on["migrate-start-postcopy"] = func() {
				start()
				src.later(600*time.Millisecond, func() { src.migrating("failing"); src.failBack() })
				dst.later(600*time.Millisecond, func() { dst.migrating("postcopy-paused") })
			}
			x := moves(within.Context(t), t, 20*time.Second, src, dst, postCopy)
			x.want(t, "running", "dead", "source")
			untold(t, dst, "cont")
		}},
		{"1b destination dies in postcopy-device", func(t *testing.T) {
			src, dst := device(t, false)
			start := src.on["migrate-start-postcopy"]
			src.on["migrate-start-postcopy"] = func() {
				start()
				time.AfterFunc(300*time.Millisecond, dst.end)
				src.later(800*time.Millisecond, func() { src.migrating("failing"); src.failBack() })
			}
			x := moves(within.Context(t), t, 20*time.Second, src, dst, postCopy)
			x.want(t, "running", "dead", "source")
			x.says(t, "!lost")
		}},
		{"1c the word comes late", func(t *testing.T) {
			src, dst := device(t, true)
			var early atomic.Bool
			start := src.on["migrate-start-postcopy"]
			src.on["migrate-start-postcopy"] = func() {
				start()
				time.AfterFunc(500*time.Millisecond, func() {
					early.Store(dst.got("cont"))
					src.do(func() { src.migrating("postcopy-active") })
				})
			}
			resume := newFakeCont(dst)
			dst.on["cont"] = func() { resume(); arrives(src, dst, time.Second) }
			p := postCopy
			p.StallLimit = 10 * time.Second // not so late
			x := moves(within.Context(t), t, 20*time.Second, src, dst, p)
			x.want(t, "postmigrate", "running", "destination")
			if early.Load() || x.err != nil {
				t.Errorf("the destination was told to run while the source could fail back: %v; %v", early.Load(), x.err)
			}
		}},
	}
}

// neverBack: a link that is not there for good. Each attempt ends with the source paused again, which is no recovery:
// the same limit goes on, and there is a pause between two attempts.
func neverBack() []caseOf {
	return []caseOf{{"6 falls back to paused", func(t *testing.T) {
		src, dst := splitting(t, "10.0")
		losesLink(src, dst)
		src.on["resume"] = func() {
			src.migrating("postcopy-recover-setup")
			src.later(5*time.Millisecond, func() { src.migrating("postcopy-recover") })
			dst.later(10*time.Millisecond, func() { dst.migrating("postcopy-recover") })
			src.later(30*time.Millisecond, func() { src.migrating("postcopy-paused") })
			dst.later(30*time.Millisecond, func() { dst.migrating("postcopy-paused") })
		}
		defer func() { t.Logf("%d attempts", src.count("resume")) }()
		p := postCopy
		p.RecoverLimit = 3 * time.Second
		x := moves(within.Context(t), t, 12*time.Second, src, dst, p)
		x.want(t, "finish-migrate", "running", "destination")
		x.says(t, "--recover")
		if n := src.count("resume"); n < 2 || n > 15 {
			t.Errorf("%d attempts in %s", n, x.took)
		}
		if x.took > 8*time.Second {
			t.Errorf("took %s with a limit of %s", x.took, p.RecoverLimit)
		}
	}}}
}

// lostMonitor: the destination has loaded the guest, and the source has given it away for good. A destination that
// only lost our monitor, or refuses `cont` once, is not ended: nobody could run the guest then. It is continued where
// it can be asked, else it is left.
func lostMonitor() []caseOf {
	whole := func(t *testing.T, x result) {
		t.Helper()
		untold(t, x.src, "migrate_cancel", "cont")
		untold(t, x.dst, "quit")
	}
	loaded := func(src, dst *fakeQEMU, f func()) {
		src.on["migrate-start-postcopy"] = func() {
			src.later(20*time.Millisecond, func() { src.switchOver("postcopy-active") })
			dst.later(40*time.Millisecond, func() { dst.status = "paused"; dst.migrating("postcopy-active"); f() })
		}
	}
	var all []caseOf
	for _, version := range []string{"7.2", "10.0", "11.1"} {
		all = append(all, caseOf{"7 monitor lost, reachable " + version, func(t *testing.T) {
			src, dst := splitting(t, version)
			loaded(src, dst, dst.cut)
			x := moves(within.Context(t), t, 30*time.Second, src, dst, postCopy)
			x.want(t, "finish-migrate|postmigrate", "running", "destination")
			whole(t, x)
		}}, caseOf{"7 monitor lost, not reachable " + version, func(t *testing.T) {
			src, dst := splitting(t, version)
			loaded(src, dst, func() { dst.away = true; dst.cut() })
			x := moves(within.Context(t), t, 30*time.Second, src, dst, postCopy)
			x.want(t, "finish-migrate", "paused", "unknown|none|destination")
			if strings.Contains(x.text, "was told to run it") { // before the monitor's end was seen
				x.says(t, "ask destination for query-status")
			} else {
				x.says(t, "`cont` on destination")
			}
			whole(t, x)
		}}, caseOf{"7 cont is refused at first " + version, func(t *testing.T) {
			src, dst := splitting(t, version)
			tries := 0
			dst.refuse["cont"] = func() string {
				if tries++; tries < 3 {
					return `Failed to get "write" lock`
				}
				return ""
			}
			x := moves(within.Context(t), t, 30*time.Second, src, dst, postCopy)
			x.want(t, "finish-migrate|postmigrate", "running", "destination")
			whole(t, x)
		}})
	}
	return append(all, caseOf{"7 monitor lost as cont is sent", func(t *testing.T) {
		src, dst := splitting(t, "10.0")
		lost := false
		dst.refuse["cont"] = func() string { // it never came to it
			if lost {
				return ""
			}
			lost = true
			dst.cut()
			return "nobody reads this"
		}
		x := moves(within.Context(t), t, 30*time.Second, src, dst, postCopy)
		x.want(t, "finish-migrate|postmigrate", "running", "destination")
		whole(t, x)
	}})
}

// releasedRAM: the destination has all of the guest and does not start it. With release-ram the source has given its
// memory away, and could only run a ruin.
func releasedRAM() (all []caseOf) {
	refused := func(t *testing.T, complete bool) (src, dst *fakeQEMU) {
		src, dst = splitting(t, "10.0")
		if complete {
			src.on["migrate-start-postcopy"] = func() {
				src.later(20*time.Millisecond, func() { src.switchOver("postcopy-active") })
				dst.later(40*time.Millisecond, func() {
					dst.status = "paused"
					dst.migrating("postcopy-active")
					dst.migrating("completed")
				})
				src.later(60*time.Millisecond, func() { src.status = "postmigrate"; src.migrating("completed") })
			}
		}
		dst.refuse["cont"] = func() string { return `Failed to get "write" lock` }
		return src, dst
	}
	for _, complete := range []bool{true, false} {
		all = append(all, caseOf{fmt.Sprintf("12 release-ram, cont refused, memory there=%v", complete), func(t *testing.T) {
			src, dst := refused(t, complete)
			p := postCopy
			p.Capabilities = map[string]bool{"release-ram": true}
			x := moves(within.Context(t), t, 30*time.Second, src, dst, p)
			x.want(t, "postmigrate|finish-migrate", "paused", "destination")
			x.says(t, "`cont` on destination", "!mend the link")
			untold(t, src, "cont", "migrate_cancel")
			untold(t, dst, "quit")
		}})
	}
	return all
}

// lostInHandshake: the link comes back and is lost again, without notice, before both have agreed on what is still to
// come. Both stay in postcopy-recover, until they are told to pause.
func lostInHandshake() []caseOf {
	return []caseOf{{"11 lost again in the handshake", func(t *testing.T) {
		src, dst := splitting(t, "10.0")
		losesLink(src, dst)
		attempts := 0
		src.on["resume"] = func() {
			attempts++
			src.migrating("postcopy-recover-setup")
			src.later(5*time.Millisecond, func() { src.migrating("postcopy-recover") })
			dst.later(10*time.Millisecond, func() { dst.migrating("postcopy-recover") })
			if attempts > 1 {
				src.later(30*time.Millisecond, func() { src.migrating("postcopy-active") })
				dst.later(30*time.Millisecond, func() { dst.migrating("postcopy-active") })
				arrives(src, dst, 100*time.Millisecond)
			}
		}
		p := postCopy
		p.RecoverLimit = 25 * time.Second // an attempt is waited for, 10 s
		x := moves(within.Context(t), t, 40*time.Second, src, dst, p)
		x.want(t, "postmigrate", "running", "destination")
		if x.err != nil {
			t.Error(x.err)
		}
		if !src.got("migrate-pause") || !dst.got("migrate-pause") {
			t.Error("they were not told to pause")
		}
	}}, {"17 the port is taken for a moment", func(t *testing.T) {
		src, dst := splitting(t, "7.2")
		losesLink(src, dst)
		tries := 0
		dst.refuse["migrate-recover"] = func() string { // QEMU says setup, and then that it cannot (7.2.22: seen)
			if tries++; tries > 2 {
				return ""
			}
			dst.event(`"MIGRATION","data":{"status":"setup"}`)
			return "Failed to find an available port: Address already in use"
		}
		src.on["resume"] = func() {
			src.migrating("postcopy-recover")
			dst.later(10*time.Millisecond, func() { dst.migrating("postcopy-recover") })
			src.later(30*time.Millisecond, func() { src.migrating("postcopy-active") })
			dst.later(30*time.Millisecond, func() { dst.migrating("postcopy-active") })
			arrives(src, dst, 100*time.Millisecond)
		}
		p := postCopy
		p.RecoverLimit = 20 * time.Second
		x := moves(within.Context(t), t, 30*time.Second, src, dst, p)
		x.want(t, "postmigrate", "running", "destination")
		if x.err != nil || tries != 3 {
			t.Errorf("%d tries: %v", tries, x.err)
		}
	}}, {"11 one side lost again in the handshake", func(t *testing.T) {
		src, dst := splitting(t, "10.0")
		losesLink(src, dst)
		attempts := 0
		src.on["resume"] = func() { // the destination notices, the source waits for its word
			attempts++
			src.migrating("postcopy-recover-setup")
			src.later(5*time.Millisecond, func() { src.migrating("postcopy-recover") })
			if attempts > 1 {
				dst.later(10*time.Millisecond, func() { dst.migrating("postcopy-recover") })
				src.later(30*time.Millisecond, func() { src.migrating("postcopy-active") })
				dst.later(30*time.Millisecond, func() { dst.migrating("postcopy-active") })
				arrives(src, dst, 100*time.Millisecond)
			}
		}
		p := postCopy
		p.RecoverLimit = 25 * time.Second
		x := moves(within.Context(t), t, 40*time.Second, src, dst, p)
		x.want(t, "postmigrate", "running", "destination")
		if x.err != nil || !src.got("migrate-pause") {
			t.Errorf("the source was told to pause: %v; %v", src.got("migrate-pause"), x.err)
		}
	}}}
}

// lostAtTheEnd: the source has sent all of a post-copy and waits for the destination's last word when the link is
// lost. QEMU 10.0 and 10.2 take that for a failure, and the source runs the guest again, though the destination does
// (migration_completion; seen on 10.0.2). So does it when it is told to pause then. A source that runs beside a
// destination that was told to run is stopped at once; better it is not made to.
func lostAtTheEnd() (all []caseOf) {
	for _, how := range []string{"with notice", "without notice"} {
		all = append(all, caseOf{"16 link lost at the end of post-copy, " + how, func(t *testing.T) {
			src, dst := splitting(t, "10.0")
			src.on["migrate-pause"] = func() { src.later(10*time.Millisecond, src.failBack) }
			resume := newFakeCont(dst)
			dst.on["cont"] = func() {
				resume()
				src.later(100*time.Millisecond, func() { src.remaining, src.moving = 0, false })
				if how == "with notice" {
					src.later(200*time.Millisecond, src.failBack)
					dst.later(200*time.Millisecond, func() { dst.migrating("postcopy-paused") })
				}
			}
			x := moves(within.Context(t), t, 30*time.Second, src, dst, postCopy)
			x.want(t, "finish-migrate|paused", "running", "destination|none|unknown")
			untold(t, dst, "quit")
			if x.err == nil {
				t.Error("no error")
			}
		}})
	}
	return all
}
