package engine_test

import (
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine"
	"qmigrate/engine/plan"
	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest/within"
)

// refusedError is what dialling a socket gives on which nobody listens.
var refusedError = os.NewSyscallError("connect", syscall.ECONNREFUSED)

// socketPair is a monitor's connection.
func socketPair() (ours, theirs net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var both [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "monitor")
		if both[i], err = net.FileConn(f); err != nil {
			return nil, nil, err
		}
		f.Close()
	}
	return both[0], both[1], nil
}

// TestRecoverElsewhere: a source that was migrated away is not continued for a destination that never heard of it, for
// the guest may run on the one that it went to.
func TestRecoverElsewhere(t *testing.T) {
	for _, migration := range []string{"none", "setup"} {
		t.Run(migration, func(t *testing.T) {
			t.Parallel()
			src, other := newFake(t, "source", "postmigrate", "completed"), newFake(t, "other", "inmigrate", migration)
			holder, said, err := engine.Recover(within.Context(t), src.endpoint(), other.endpoint(), plan.Plan{}, plan.Options{})
			if err == nil || !strings.Contains(err.Error(), "give that one as the destination") || holder != record.Unknown {
				t.Errorf("holder %s, says %q %v", holder, said, err)
			}
			if a, b := src.runState(), other.runState(); a != "postmigrate" || b != "inmigrate" {
				t.Errorf("source %s, other %s: want both left alone", a, b)
			}
		})
	}
}

// TestRecoverOthers: a guest that stands paused where somebody migrated it is not ended for a source that has never
// sent one.
func TestRecoverOthers(t *testing.T) {
	t.Parallel()
	src, other := newFake(t, "source", "running", "none"), newFake(t, "other", "paused", "completed")
	holder, said, err := engine.Recover(within.Context(t), src.endpoint(), other.endpoint(), plan.Plan{}, plan.Options{})
	if err == nil || !strings.Contains(err.Error(), "not the two ends of one migration") || holder != record.Unknown {
		t.Errorf("holder %s, says %q %v", holder, said, err)
	}
	if a, b := src.runState(), other.runState(); a != "running" || b != "paused" {
		t.Errorf("source %s, other %s: want both left alone", a, b)
	}
}

// listening makes the fake a destination that takes an incoming migration.
func listening(t *testing.T) *fakeQEMU {
	q := newFake(t, "destination", "inmigrate", "none")
	q.on["migrate-incoming"] = func() { q.migrating("setup") }
	return q
}

// copying makes the fake a source that copies until it is cancelled.
func copying(t *testing.T) *fakeQEMU {
	q := newFake(t, "source", "running", "none")
	q.on["migrate"] = func() { q.migrating("active") }
	q.on["migrate_cancel"] = func() {
		if q.migration == "active" {
			q.migrating("cancelled")
		}
	}
	return q
}

// migrate migrates between two fakes and returns how it ended.
func migrate(t *testing.T, src, dst *fakeQEMU, p plan.Plan) (*record.Migration, error) {
	p.Listen = "unix:/nowhere"
	return engine.Migrate(within.Context(t), src.endpoint(), dst.endpoint(), p, plan.Options{})
}

// TestSilentDestination: a destination that hangs in pre-copy, or while the guest stands still, is found without a
// time-out and without Ctrl-C, and the source runs the guest.
func TestSilentDestination(t *testing.T) {
	for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			src, dst := copying(t), listening(t)
			src.on["migrate"] = func() {
				src.migrating("active")
				dst.do(func() { dst.deaf = true })
			}
			r, err := migrate(t, src, dst, plan.Plan{Mode: mode, StallLimit: time.Second, RecoverLimit: time.Second})
			if err == nil || !strings.Contains(err.Error(), "destination QEMU has not answered for 1s") {
				t.Errorf("error is %v", err)
			}
			if src.runState() != "running" || dst.runState() != "dead" || r.GuestOn != record.Source ||
				r.Outcome != record.Failed {
				t.Errorf("source %s, destination %s, guest on %s, outcome %s", src.runState(), dst.runState(), r.GuestOn, r.Outcome)
			}
		})
	}
}

// TestSilentSwitchOver: a source that does not answer in its switch-over, however long that takes, is not given up.
func TestSilentSwitchOver(t *testing.T) {
	t.Parallel()
	src, dst := copying(t), listening(t)
	limit, silent := 2*time.Second, false
	src.on["migrate"] = func() {
		src.migrating("active")
		src.status = "finish-migrate"
		src.event(`"STOP"`)
		src.on["query-status"] = func() { src.deaf = true } // when it has said why the guest stands still
		time.AfterFunc(3*limit, func() {
			src.do(func() {
				silent, src.deaf, src.status = src.deaf, false, "postmigrate"
				src.migrating("completed")
				src.on["query-status"] = func() { // it is no longer taken for silent
					delete(src.on, "query-status")
					dst.do(func() { dst.status = "paused"; dst.migrating("completed") })
				}
			})
		})
	}
	r, err := migrate(t, src, dst, plan.Plan{StallLimit: limit, RecoverLimit: limit})
	if err != nil || !silent || r.GuestOn != record.Destination || dst.runState() != "running" {
		t.Errorf("guest on %s, destination %s: %v", r.GuestOn, dst.runState(), err)
	}
}

// TestBothSilent: when nothing answers any more while the guest runs, the way to them is broken rather than both: the
// migration goes on when it is back.
func TestBothSilent(t *testing.T) {
	t.Parallel()
	src, dst := copying(t), listening(t)
	limit := 2 * time.Second
	src.on["migrate"] = func() {
		src.migrating("active")
		time.AfterFunc(limit/4, func() {
			src.do(func() { src.deaf = true })
			dst.do(func() { dst.deaf = true })
		})
		time.AfterFunc(3*limit, func() {
			src.do(func() {
				src.deaf, src.status = false, "postmigrate"
				src.event(`"STOP"`)
				src.migrating("completed")
			})
			dst.do(func() { dst.deaf, dst.status = false, "paused"; dst.migrating("completed") })
		})
	}
	r, err := migrate(t, src, dst, plan.Plan{StallLimit: limit, RecoverLimit: limit})
	if err != nil || r.GuestOn != record.Destination || dst.runState() != "running" {
		t.Errorf("guest on %s, destination %s: %v", r.GuestOn, dst.runState(), err)
	}
	if !slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.Contains(w, "neither QEMU answered") }) {
		t.Errorf("the record does not say that nobody answered: %q", r.Warnings)
	}
}

// TestLostOnTheWay: the link is lost with the last bytes: the source has sent them, the destination waits for them, and
// no event will come.
func TestLostOnTheWay(t *testing.T) {
	t.Parallel()
	src, dst := copying(t), listening(t)
	src.on["migrate"] = func() {
		dst.do(func() { dst.migrating("active") })
		src.migrating("active")
		src.status = "postmigrate"
		src.event(`"STOP"`)
		src.migrating("completed")
	}
	r, err := migrate(t, src, dst, plan.Plan{StallLimit: 3 * time.Second, RecoverLimit: 3 * time.Second})
	if err == nil || !strings.Contains(err.Error(), "its link is lost") {
		t.Errorf("error is %v", err)
	}
	if src.runState() != "running" || dst.runState() != "dead" || r.GuestOn != record.Source {
		t.Errorf("source %s, destination %s, guest on %s", src.runState(), dst.runState(), r.GuestOn)
	}
}

// TestReservationHangs: a destination that hangs while it is set up is found, and the guest has not noticed.
func TestReservationHangs(t *testing.T) {
	t.Parallel()
	src, dst := copying(t), listening(t)
	dst.on["stop"] = func() { dst.deaf = true }
	r, err := migrate(t, src, dst, plan.Plan{StallLimit: time.Second, RecoverLimit: time.Second})
	if err == nil || !strings.Contains(err.Error(), "no answer within 1s") || r.GuestOn != record.Source ||
		src.runState() != "running" {
		t.Errorf("guest on %s, source %s: %v", r.GuestOn, src.runState(), err)
	}
}

// TestSilentSourceAtTheEnd: a source that does not answer any more may be dead with its host. A destination that has
// all of the guest is not ended then, and what to do is said.
func TestSilentSourceAtTheEnd(t *testing.T) {
	t.Parallel()
	src, dst := copying(t), listening(t)
	src.on["migrate"] = func() {
		src.migrating("active")
		src.status = "finish-migrate"
		src.event(`"STOP"`)
		time.AfterFunc(10*time.Millisecond, func() {
			src.do(func() { src.deaf = true })
			dst.do(func() { dst.status = "paused"; dst.migrating("completed") })
		})
	}
	r, err := migrate(t, src, dst, plan.Plan{StallLimit: 3 * time.Second, RecoverLimit: 3 * time.Second})
	if err == nil || !strings.Contains(err.Error(), "if the source QEMU is surely dead, `cont` on destination") {
		t.Errorf("error is %v", err)
	}
	if dst.runState() != "paused" || r.GuestOn != record.Unknown {
		t.Errorf("destination %s, guest on %s", dst.runState(), r.GuestOn)
	}
}

// TestHangsFromTheStart: a QEMU that hangs after it was set up does not keep Ctrl-C from ending the run.
func TestHangsFromTheStart(t *testing.T) {
	t.Parallel()
	src, dst := copying(t), listening(t)
	src.on["query-migrate-parameters"] = func() { // the last question of the reservation, the second time
		if slices.Contains(src.seen, "migrate-set-parameters") {
			dst.do(func() { dst.deaf = true })
		}
	}
	ctx, cancel := context.WithCancel(within.Context(t))
	defer cancel()
	src.on["migrate"] = func() { src.migrating("active"); cancel() }
	r, err := engine.Migrate(ctx, src.endpoint(), dst.endpoint(), plan.Plan{Listen: "unix:/nowhere"}, plan.Options{})
	if err == nil || r.GuestOn != record.Source || src.runState() != "running" {
		t.Errorf("guest on %s, source %s: %v", r.GuestOn, src.runState(), err)
	}
}

// TestPolicyOfPausedGuest: a guest that was paused is copied in one go, and its policy has nothing to decide.
func TestPolicyOfPausedGuest(t *testing.T) {
	t.Parallel()
	src, dst := copying(t), listening(t)
	src.status = "paused"
	src.on["migrate"] = func() {
		src.migrating("active")
		time.AfterFunc(200*time.Millisecond, func() {
			src.do(func() { src.status = "postmigrate"; src.migrating("completed") })
			dst.do(func() { dst.status = "paused"; dst.migrating("completed") })
		})
	}
	spec, err := policy.Parse("timeout:after=7s")
	if err != nil {
		t.Fatal(err)
	}
	r, err := migrate(t, src, dst, plan.Plan{Policy: spec})
	if err != nil || r.GuestOn != record.Destination || dst.runState() != "paused" || len(r.Decisions) > 0 {
		t.Errorf("guest on %s, destination %s, decisions %v: %v", r.GuestOn, dst.runState(), r.Decisions, err)
	}
}

// TestSamplesAfterPolicy: the series goes on after the policy's time, however long the rest takes.
func TestSamplesAfterPolicy(t *testing.T) {
	t.Parallel()
	const most = 6000 // more than may wait for a policy
	src, dst := copying(t), listening(t)
	src.on["migrate"] = func() {
		src.migrating("active")
		src.status = "finish-migrate"
		src.event(`"STOP"`)
	}
	asked := 0
	src.on["query-migrate"] = func() {
		if asked++; asked == most {
			src.status = "postmigrate"
			src.migrating("completed")
			dst.do(func() { dst.status = "paused"; dst.migrating("completed") })
		}
	}
	spec, err := policy.Parse("timeout:after=10m")
	if err != nil {
		t.Fatal(err)
	}
	r, err := migrate(t, src, dst, plan.Plan{Policy: spec, SampleInterval: 50 * time.Microsecond})
	if err != nil || r.GuestOn != record.Destination || len(r.Samples) < most-100 {
		t.Errorf("guest on %s, %d samples of %d: %v", r.GuestOn, len(r.Samples), most, err)
	}
}

// TestPolicyAfterSwitch: once post-copy was begun, a policy that gives up has nothing to say any more, for neither side
// could go back.
func TestPolicyAfterSwitch(t *testing.T) {
	t.Parallel()
	src, dst := copying(t), listening(t)
	src.on["migrate-start-postcopy"] = func() {
		time.AfterFunc(1500*time.Millisecond, func() {
			src.do(func() { src.status = "postmigrate"; src.event(`"STOP"`); src.migrating("postcopy-active") })
			dst.do(func() { dst.status = "paused"; dst.migrating("postcopy-active") })
		})
	}
	resume := dst.on["cont"]
	dst.on["cont"] = func() {
		resume()
		time.AfterFunc(100*time.Millisecond, func() {
			src.do(func() { src.migrating("completed") })
			dst.do(func() { dst.migrating("completed") })
		})
	}
	spec, err := policy.Parse("timeout:after=1s")
	if err != nil {
		t.Fatal(err)
	}
	r, err := migrate(t, src, dst, plan.Plan{Mode: record.HybridMode,
		SwitchAfter: plan.SwitchAfter{Time: 500 * time.Millisecond}, Policy: spec})
	if err != nil || r.GuestOn != record.Destination || dst.runState() != "running" || src.got("yank") {
		t.Errorf("guest on %s, destination %s, yanked %v: %v", r.GuestOn, dst.runState(), src.got("yank"), err)
	}
	if len(r.Decisions) != 1 { // what the recorded series gives, all the same
		t.Errorf("decisions %v", r.Decisions)
	}
}
