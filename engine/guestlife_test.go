package engine_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/snapshot"
	"qmigrate/guest/guesttest/within"
)

// The guest has a life of its own: what it does, or what somebody else does with it, while it moves. Fakes do it at the
// moment that each case is about; engine/life_test.go has the figures, TestGuestLife the truth of real QEMUs.

// soon is how long the fakes copy before something happens to the guest.
const soon = 200 * time.Millisecond

// switches is a pair whose source stops the guest when then is called, and sends the rest. Once is what happens before.
func switches(t *testing.T, once func(src, dst *fakeQEMU, then func())) (src, dst *fakeQEMU) {
	return switchesAs(t, "paused", once)
}

// switchesAs is switches with the state in which the guest arrives.
func switchesAs(t *testing.T, state string, once func(src, dst *fakeQEMU, then func())) (src, dst *fakeQEMU) {
	src, dst = copying(t), listening(t)
	then := func() { // with src's lock held
		src.later(soon, func() {
			if src.status == "running" || src.status == "suspended" { // 9.0 and newer
				src.status = "finish-migrate"
				src.event(`"STOP"`)
			}
			src.migrating("completed")
			src.status = "postmigrate"
		})
		dst.later(soon+10*time.Millisecond, func() { dst.status = state; dst.migrating("completed") })
	}
	src.on["migrate"] = func() {
		src.migrating("active")
		dst.do(func() { dst.migrating("active") })
		src.later(soon, func() { once(src, dst, then) })
	}
	return src, dst
}

// endsWith is a QEMU that ends with its guest: for what reason, and whether QEMU calls it the guest's doing.
func endsWith(q *fakeQEMU, reason string, guest bool) {
	q.event(fmt.Sprintf(`"SHUTDOWN","data":{"guest":%v,"reason":%q}`, guest, reason))
	q.status = "shutdown"
	if q.migration == "active" {
		q.migrating("cancelling")
	}
	time.AfterFunc(10*time.Millisecond, q.end)
}

// rests is a guest that stands still while its QEMU lives on; the lock is held.
func rests(q *fakeQEMU, state string, events ...string) {
	for _, e := range events {
		q.event(e)
	}
	q.status = state
}

// ended fails the test unless the guest ended by itself.
func (x result) ended(t *testing.T) {
	t.Helper()
	if x.outcome != guestEnded || x.guest != record.None || x.err == nil {
		t.Errorf("outcome %s, guest on %s: %v", x.outcome, x.guest, x.err)
	}
	x.says(t, "nothing was lost", "!is lost", "!somebody else")
}

// none fails the test if there is a downtime.
func (x result) none(t *testing.T) {
	t.Helper()
	if x.rec.Downtime != (record.Downtime{}) {
		t.Errorf("a guest that stood still had a downtime: %+v", x.rec.Downtime)
	}
}

// shorter fails the test unless both downtimes are there, and none could be that of a stop that lasted longer than all
// from one instant to another.
func (x result) shorter(t *testing.T, from, to time.Time) {
	t.Helper()
	d := x.rec.Downtime
	if d.Wire == nil || d.Status == nil || *d.Wire > to.Sub(from) || *d.Status-*d.StatusError > to.Sub(from) {
		t.Errorf("wire %v, status %v +/- %v: at most %v", d.Wire, d.Status, d.StatusError, to.Sub(from))
	}
}

// TestGuestEnds: the guest ends, and its QEMU with it.
func TestGuestEnds(t *testing.T) {
	inPreCopy := func(reason string, guest bool) result {
		src, dst := switches(t, func(src, _ *fakeQEMU, _ func()) { endsWith(src, reason, guest) })
		return moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{})
	}
	inPostCopy := func(t *testing.T, reason string, guest bool) result {
		src, dst := splitting(t, "10.0")
		resume := dst.on["cont"]
		dst.on["cont"] = func() {
			dst.on["cont"] = resume // and nothing completes any more
			dst.event(`"RESUME"`)
			dst.status = "running"
			dst.later(soon, func() { endsWith(dst, reason, guest) })
			src.later(soon+20*time.Millisecond, func() { src.migrating("postcopy-paused") })
		}
		return moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{Mode: record.PostCopyMode})
	}
	justBefore := func(t *testing.T, ends bool) result {
		src, dst := switches(t, func(src, _ *fakeQEMU, then func()) {
			src.event(`"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}`)
			then()
			if ends {
				src.later(2*soon, func() { time.AfterFunc(0, src.end) })
			}
		})
		return moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{})
	}
	all := []caseOf{
		{"before stop-and-copy", func(t *testing.T) {
			src, dst := copying(t), listening(t)
			src.on["stop"] = func() { endsWith(src, "host-qmp-system-reset", false) }
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{Mode: record.StopAndCopyMode})
			x.want(t, "dead", "dead", "none")
			x.ended(t)
			x.says(t, "was reset", "-no-reboot")
		}},
		{"just before the switch-over", func(t *testing.T) {
			x := justBefore(t, true)
			x.want(t, "dead", "dead", "none")
			x.ended(t)
			untold(t, x.dst, "cont")
		}},
		{"just before the switch-over, and its QEMU stays", func(t *testing.T) {
			x := justBefore(t, false)
			x.want(t, "postmigrate", "paused", "destination")
			x.says(t, "has shut down, and its QEMU stays", "`system_reset` and then `cont` on the destination")
			x.none(t)
			untold(t, x.dst, "cont")
		}},
		{"the waiting destination is reset", func(t *testing.T) {
			src, dst := switches(t, func(_, dst *fakeQEMU, _ func()) {
				dst.do(func() { endsWith(dst, "host-qmp-system-reset", false) })
			})
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{})
			x.want(t, "running", "dead", "source")
			x.says(t, "the machine that waits for the guest was reset on the destination", "!nothing was lost")
			if x.outcome != record.Failed {
				t.Errorf("outcome %s", x.outcome)
			}
		}},
		{"the source of a post-copy is reset", func(t *testing.T) {
			src, dst := splitting(t, "10.0")
			dst.on["cont"] = newFakeCont(dst)
			src.on["migrate-start-postcopy"] = func(begin func()) func() {
				return func() {
					begin()
					src.later(2*soon, func() { endsWith(src, "host-qmp-system-reset", false) })
					dst.later(2*soon+20*time.Millisecond, func() { dst.migrating("postcopy-paused") })
				}
			}(src.on["migrate-start-postcopy"])
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{Mode: record.PostCopyMode})
			x.says(t, "the machine that the guest had left was reset on the source", "!nothing was lost")
			if x.outcome == guestEnded {
				t.Errorf("outcome %s: half of its memory is lost: %s", x.outcome, x.text)
			}
		}},
		{"by somebody's quit", func(t *testing.T) {
			x := inPreCopy("host-qmp-quit", false)
			x.want(t, "dead", "dead|inmigrate", "none")
			x.says(t, "somebody ended the source QEMU", "host-qmp-quit", "into pre-copy", "!cancelled", "!nothing was lost")
			if x.outcome != record.Failed {
				t.Errorf("outcome %s", x.outcome)
			}
		}},
		{"by a signal in post-copy", func(t *testing.T) {
			x := inPostCopy(t, "host-signal", false)
			x.says(t, "somebody ended the destination QEMU", "!nothing was lost")
			if x.outcome == guestEnded {
				t.Errorf("outcome %s: half of its memory is lost", x.outcome)
			}
		}},
	}
	for reason, said := range map[string]string{
		"guest-shutdown": "the guest shut down", "guest-reset": "the guest was reset", "guest-panic": "the guest panicked",
		"host-qmp-system-reset": "the guest was reset",
	} {
		guest := reason != "host-qmp-system-reset"
		all = append(all, caseOf{reason + " in pre-copy", func(t *testing.T) {
			x := inPreCopy(reason, guest)
			x.want(t, "dead", "dead", "none")
			x.ended(t)
			x.says(t, said+" on the source", "into pre-copy", reason)
		}}, caseOf{reason + " in post-copy", func(t *testing.T) {
			x := inPostCopy(t, reason, guest)
			x.ended(t)
			// A busy machine may see first that the link was lost: then it is a recovery.
			x.says(t, said+" on the destination", "ms into ", "end the source QEMU too")
		}})
	}
	atOnce(t, all)
}

// TestGuestLivesOn: the guest does something, or somebody does something with it, and its QEMU lives on.
func TestGuestLivesOn(t *testing.T) {
	all := []caseOf{
		{"stopped and continued", func(t *testing.T) {
			var from, to time.Time
			src, dst := switches(t, func(src, _ *fakeQEMU, then func()) {
				src.event(`"MIGRATION_PASS","data":{"pass":2}`)
				src.on["stop"]()
				src.later(soon, func() {
					from = time.Now()
					src.on["cont"]()
					src.later(soon, func() { src.event(`"MIGRATION_PASS","data":{"pass":3}`) })
					src.later(2*soon, then)
				})
			})
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{DowntimeLimit: 50 * time.Millisecond})
			to = time.Now()
			x.want(t, "postmigrate", "running", "destination")
			x.says(t, "somebody stopped the guest on the source", "into pre-copy and continued it, once")
			x.shorter(t, from, to)
			if n := len(x.rec.Passes); n != 4 {
				t.Errorf("%d passes, want 4: %+v", n, x.rec.Passes)
			}
		}},
		{"stopped and continued before a hybrid goes over", func(t *testing.T) {
			src, dst := splitting(t, "10.0")
			begin := src.on["migrate"]
			src.on["migrate"] = func() {
				begin()
				src.later(soon, src.on["stop"])
				src.later(2*soon, func() {
					if src.status == "paused" {
						src.on["cont"]()
					}
				})
			}
			planned := plan.Plan{Mode: record.HybridMode, SwitchAfter: plan.SwitchAfter{Time: 3 * soon}}
			x := moves(within.Context(t), t, 20*time.Second, src, dst, planned)
			x.want(t, "postmigrate", "running", "destination")
			if src.count("migrate-start-postcopy") != 1 {
				t.Error("it never went over to post-copy")
			}
		}},
		{"stopped and continued on the destination", func(t *testing.T) {
			var from, to time.Time
			src, dst := splitting(t, "10.0")
			resume := dst.on["cont"]
			src.on["migrate-start-postcopy"] = func(begin func()) func() {
				return func() { from = time.Now(); begin() }
			}(src.on["migrate-start-postcopy"])
			dst.on["cont"] = func() {
				dst.on["cont"] = func() { dst.event(`"RESUME"`); dst.status = "running" }
				dst.event(`"RESUME"`)
				dst.status = "running"
				dst.later(soon, func() { to = time.Now(); dst.on["stop"]() })
				dst.later(3*soon, func() { resume(); arrives(src, dst, soon) })
			}
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{Mode: record.PostCopyMode})
			x.want(t, "postmigrate", "running", "destination")
			x.says(t, "somebody stopped the guest on the destination", "into post-copy and continued it, once")
			x.shorter(t, from, to)
		}},
		{"stopped on the destination", func(t *testing.T) {
			src, dst := splitting(t, "10.0")
			resume := dst.on["cont"]
			dst.on["cont"] = func() {
				resume()
				dst.on["stop"]()
			}
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{Mode: record.PostCopyMode})
			x.want(t, "postmigrate", "paused", "destination")
			x.says(t, "left paused on the destination, where `cont` runs it")
		}},
		{"stopped before stop-and-copy", func(t *testing.T) {
			src, dst := switches(t, func(_, _ *fakeQEMU, then func()) { then() })
			src.slow["migrate-set-parameters"] = soon
			src.on["migrate-set-parameters"] = func() { src.on["stop"](); src.on["migrate-set-parameters"] = nil }
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{Mode: record.StopAndCopyMode})
			x.want(t, "postmigrate", "paused", "destination")
			x.says(t, "somebody stopped the guest")
			x.none(t)
		}},
		{"reset", func(t *testing.T) {
			src, dst := switches(t, func(src, _ *fakeQEMU, then func()) {
				for range 3 {
					src.event(`"RESET","data":{"guest":true,"reason":"guest-reset"}`)
				}
				then()
			})
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{})
			x.want(t, "postmigrate", "running", "destination")
			x.says(t, "the guest was reset 3 times on the source, first", "guest-reset")
			if x.outcome != record.Completed || x.rec.Downtime.Wire == nil {
				t.Errorf("%s, %+v", x.outcome, x.rec.Downtime)
			}
		}},
	}
	for _, c := range []struct {
		name, state string
		events      []string
		says        []string
	}{
		{"shut down", "shutdown", []string{`"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}`, `"STOP"`},
			[]string{"the guest shut down on the source", "that QEMU stays", "`system_reset` and then `cont`"}},
		{"panicked", "guest-panicked", []string{`"GUEST_PANICKED","data":{"action":"pause"}`, `"STOP"`},
			[]string{"the guest panicked on the source", "(pause)", "`system_reset` and then `cont`"}},
		{"disk error", "io-error", []string{`"BLOCK_IO_ERROR","data":{"action":"stop","reason":"No space left on device"}`, `"STOP"`},
			[]string{"a disk error stopped the guest on the source", "No space left", "mend the disk"}},
		{"watchdog", "watchdog", []string{`"WATCHDOG","data":{"action":"pause"}`, `"STOP"`},
			[]string{"the guest's watchdog fired", "`cont`"}},
		{"paused", "paused", []string{`"STOP"`}, []string{"somebody stopped the guest"}},
		{"suspended", "suspended", []string{`"SUSPEND"`},
			[]string{"was suspended (ACPI S3) on the source", "`system_wakeup`"}},
	} {
		all = append(all, caseOf{c.name + " and moved", func(t *testing.T) {
			src, dst := switchesAs(t, c.state, func(src, dst *fakeQEMU, then func()) {
				rests(src, c.state, c.events...)
				then()
				dst.do(func() { dst.on["cont"] = func() { dst.event(`"RESUME"`) } }) // of a guest that sleeps
			})
			x := moves(within.Context(t), t, 20*time.Second, src, dst, plan.Plan{})
			x.want(t, "postmigrate", c.state, "destination")
			x.says(t, append(slices.Clone(c.says), "on the destination", "!and continued it")...)
			x.none(t)
			if c.state != "suspended" {
				untold(t, dst, "cont")
			}
		}}, caseOf{c.name + " and not moved", func(t *testing.T) {
			ctx, cancel := context.WithCancel(within.Context(t))
			src, dst := switches(t, func(src, _ *fakeQEMU, _ func()) {
				rests(src, c.state, c.events...)
				time.AfterFunc(3*soon, cancel) // when the engine has asked why it stands still
			})
			src.refuse["cont"] = func() string {
				if c.state == "shutdown" {
					return "Resetting the Virtual Machine is required"
				}
				return ""
			}
			x := moves(ctx, t, 20*time.Second, src, dst, plan.Plan{})
			x.want(t, c.state, "dead", "source")
			x.says(t, append(slices.Clone(c.says), "on the source", "!does not continue")...)
			untold(t, src, "cont")
		}})
	}
	atOnce(t, all)
}

// TestGuestEndsWhileSaved: the guest ends before it is in its file, and there is none.
func TestGuestEndsWhileSaved(t *testing.T) {
	for name, background := range map[string]bool{"stopped": false, "in the background": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src := copying(t)
			src.on["migrate"] = func() {
				src.migrating("active")
				src.later(soon, func() { endsWith(src, "host-qmp-system-reset", false) })
			}
			ep := src.endpoint()
			ep.Files = true
			file := snapshot.File{Path: filepath.Join(t.TempDir(), "guest"), Background: background}
			r, err := snapshot.Save(within.Context(t), ep, small(plan.Plan{}), file, plan.Options{})
			if r.Outcome != guestEnded || r.GuestOn != record.None {
				t.Errorf("%s, guest on %s: %v", r.Outcome, r.GuestOn, err)
			}
			said := fmt.Sprint(err)
			for _, text := range []string{"the guest was reset on the source", "nothing was lost", "there is no file"} {
				if !strings.Contains(said, text) {
					t.Errorf("%q is not in %s", text, said)
				}
			}
			if left, _ := filepath.Glob(file.Path + "*"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
