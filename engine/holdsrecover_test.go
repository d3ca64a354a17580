package engine_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
)

// TestHoldsRecover is what `migrate --recover` makes of states in which somebody, or nobody, left the two QEMUs.
func TestHoldsRecover(t *testing.T) {
	atOnce(t, slices.Concat(
		failedBack(), runsTwice(), arrivals(), continuedElsewhere(), freshDestination(), postcopyDevice(), recoverHandshake(),
		mirrorsLeft(), pausedBefore(),
	))
}

// both makes a source and a destination in given states.
func both(t *testing.T, a, migrationA, b, migrationB string) (src, dst *fakeQEMU) {
	return newFake(t, "source", a, migrationA), newFake(t, "destination", b, migrationB)
}

// failedBack: the source runs the guest again, for it failed back by itself, or somebody cancelled and continued it.
// A destination that was in post-copy is never to run then.
func failedBack() (all []caseOf) {
	for _, source := range []string{"failed", "cancelled"} {
		for _, destination := range []string{"postcopy-active", "postcopy-paused"} {
			all = append(all, caseOf{"2 source runs, " + source + ", destination " + destination, func(t *testing.T) {
				src, dst := both(t, "running", source, "paused", destination)
				x := recovers(t, 20*time.Second, src, dst, plan.Plan{Connect: "unix:/nowhere"})
				x.want(t, "running", "dead", "source")
				untold(t, dst, "cont", "migrate-recover")
				untold(t, src, "resume")
			}})
		}
	}
	return all
}

// runsTwice is the worst: it is said, and neither is touched, for nobody knows which of them is the right one.
func runsTwice() []caseOf {
	return []caseOf{{"runs twice", func(t *testing.T) {
		src, dst := both(t, "running", "completed", "running", "completed")
		src.name, dst.name = "unix:/run/one", "unix:/run/other"
		x := recovers(t, 10*time.Second, src, dst, plan.Plan{})
		x.want(t, "running", "running", "unknown")
		x.says(t, "twice", "unix:/run/one", "unix:/run/other")
		untold(t, src, "stop", "quit")
		untold(t, dst, "stop", "quit")
	}}}
}

// arrivals: `completed` without a section ram is how the source's own guest once came to it. Nothing has left it.
func arrivals() []caseOf {
	return []caseOf{
		{"4a a stranger's destination", func(t *testing.T) {
			src, dst := both(t, "running", "completed", "paused", "completed")
			src.outgoing = false
			x := recovers(t, 20*time.Second, src, dst, plan.Plan{})
			x.want(t, "running", "paused", "unknown|source")
			x.says(t, "not the two ends of one migration")
			untold(t, dst, "quit", "cont")
		}},
		{"4a a stranger's destination, source paused", func(t *testing.T) {
			src, dst := both(t, "paused", "completed", "paused", "completed")
			src.outgoing = false
			x := recovers(t, 20*time.Second, src, dst, plan.Plan{})
			x.want(t, "paused", "paused", "unknown|source")
			x.says(t, "not the two ends of one migration", "!somebody has run")
			untold(t, dst, "quit", "cont")
		}},
		{"4b paused by somebody", func(t *testing.T) {
			src, dst := both(t, "paused", "completed", "inmigrate", "none")
			src.outgoing = false
			x := recovers(t, 20*time.Second, src, dst, plan.Plan{})
			x.want(t, "running|paused", "inmigrate", "source")
			x.says(t, "!another destination", "!elsewhere")
			untold(t, dst, "quit", "cont")
		}},
	}
}

// continuedElsewhere: the destination runs the guest. Its source may be ended if it has not run since it was migrated
// away.
func continuedElsewhere() (all []caseOf) {
	for _, state := range []string{"postmigrate", "paused"} {
		all = append(all, caseOf{"destination runs, source " + state, func(t *testing.T) {
			src, dst := both(t, state, "completed", "running", "completed")
			x := recovers(t, 10*time.Second, src, dst, plan.Plan{})
			if state == "postmigrate" {
				x.want(t, state, "running", "destination")
				x.says(t, "can be ended")
				return
			}
			x.want(t, state, "running", "unknown")
			x.says(t, "!can be ended", "source", "destination")
			if x.err == nil {
				t.Error("no error")
			}
		}})
	}
	return all
}

// freshDestination: a source in post-copy has its other half somewhere, and not in a QEMU to which nothing has come.
func freshDestination() (all []caseOf) {
	for _, source := range []string{"postcopy-active", "postcopy-paused"} {
		for _, destination := range []string{"none", "setup"} {
			all = append(all, caseOf{"source " + source + ", fresh destination " + destination, func(t *testing.T) {
				src, dst := both(t, "finish-migrate", source, "inmigrate", destination)
				x := recovers(t, 20*time.Second, src, dst, plan.Plan{Connect: "unix:/nowhere"})
				x.want(t, "finish-migrate", "inmigrate", "unknown|destination")
				x.says(t, "as the destination")
				untold(t, src, "migrate_cancel", "migrate-pause", "resume", "cont", "yank")
				untold(t, dst, "cont", "quit", "migrate-recover")
				if x.err == nil {
					t.Error("no error")
				}
			}})
		}
	}
	return all
}

// postcopyDevice: a source in postcopy-device still decides for itself (QEMU 10.2 and newer). It is waited for.
func postcopyDevice() []caseOf {
	return []caseOf{{"postcopy-device, which fails", func(t *testing.T) {
		src, dst := both(t, "finish-migrate", "postcopy-device", "paused", "postcopy-active")
		src.version, dst.version = "11.1", "11.1"
		src.later(600*time.Millisecond, src.failBack)
		x := recovers(t, 20*time.Second, src, dst, plan.Plan{})
		x.want(t, "running", "dead", "source")
		untold(t, dst, "cont")
	}}, {"postcopy-device, which goes on", func(t *testing.T) {
		src, dst := both(t, "finish-migrate", "postcopy-device", "paused", "postcopy-active")
		src.version, dst.version = "11.1", "11.1"
		early := make(chan bool, 1)
		time.AfterFunc(600*time.Millisecond, func() {
			early <- dst.got("cont")
			src.do(func() { src.migrating("postcopy-active") })
		})
		src.moving = true
		completesAfterCont(src, dst)
		x := recovers(t, 20*time.Second, src, dst, plan.Plan{})
		x.want(t, "postmigrate", "running", "destination")
		if was, _ := within.Receive(t, "the source's decision", early); was {
			t.Error("the destination was told to run while the source could fail back")
		}
	}}}
}

// recoverHandshake: a recovery that was begun and whose link was lost again.
func recoverHandshake() (all []caseOf) {
	for _, c := range []struct{ version, source, destination string }{
		{"10.0", "postcopy-recover", "postcopy-recover"},
		{"11.1", "postcopy-recover", "postcopy-paused"},
		{"10.0", "postcopy-paused", "postcopy-recover"},
		{"10.0", "postcopy-recover-setup", "postcopy-paused"},
		{"10.0", "postcopy-active", "postcopy-paused"},
	} {
		all = append(all, caseOf{"11 " + c.version + " " + c.source + ", " + c.destination, func(t *testing.T) {
			src, dst := both(t, "finish-migrate", c.source, "running", c.destination)
			src.version, dst.version = c.version, c.version
			src.moving = true
			if c.source == "postcopy-recover-setup" { // it connects, and cannot be paused: it gives up by itself
				src.later(700*time.Millisecond, func() { src.migrating("postcopy-paused") })
			}
			src.on["resume"] = func() {
				src.migrating("postcopy-recover")
				dst.later(0, func() { dst.migrating("postcopy-recover") })
				for _, q := range []*fakeQEMU{src, dst} {
					q.later(50*time.Millisecond, func() { q.migrating("postcopy-active") })
				}
				arrives(src, dst, 300*time.Millisecond)
			}
			x := recovers(t, 30*time.Second, src, dst, plan.Plan{Connect: "unix:/nowhere"})
			x.want(t, "postmigrate", "running", "destination")
			if x.err != nil {
				t.Error(x.err)
			}
			untold(t, src, "migrate_cancel", "cont")
		}})
	}
	return all
}

// mirrorsLeft: what a mirror of ours left on the source is removed, also where there is nothing else to do, and
// `migrate` says who does it.
func mirrorsLeft() []caseOf {
	leave := func(q *fakeQEMU) {
		q.nodes, q.jobs = []string{"disk0", "qmigrate-mirror0", "qmigrate-mirror1"}, []string{"qmigrate-mirror0", "theirs"}
	}
	all := []caseOf{{"10 mirrors left, nothing else", func(t *testing.T) {
		src, dst := both(t, "running", "none", "inmigrate", "none")
		leave(src)
		x := recovers(t, 20*time.Second, src, dst, plan.Plan{})
		x.want(t, "running", "inmigrate", "source")
		x.says(t, "mirror")
		src.do(func() {
			if !slices.Equal(src.nodes, []string{"disk0"}) || !slices.Equal(src.jobs, []string{"theirs"}) {
				t.Errorf("the source has nodes %q and jobs %q", src.nodes, src.jobs)
			}
		})
	}}}
	for _, p := range []plan.Plan{{}, {Mirror: plan.Mirror{Nodes: []string{"disk0"}, Listen: "unix:/nbd"}}} {
		name := fmt.Sprintf("10 migrate with mirrors left, mirrors itself=%v", len(p.Mirror.Nodes) > 0)
		all = append(all, caseOf{name, func(t *testing.T) {
			src, dst := copying(t), listening(t)
			leave(src)
			src.on["migrate"] = func() {
				src.switchOver("completed")
				src.status = "postmigrate"
				dst.do(func() { dst.status = "paused"; dst.migrating("completed") })
			}
			x := moves(within.Context(t), t, 20*time.Second, src, dst, p)
			x.says(t, "migrate --recover", "qmigrate-mirror0")
		}})
	}
	return all
}

// pausedBefore: a guest that was paused on purpose before the migration looks like one that the migration stopped. It
// is continued, and told how to stop it again.
func pausedBefore() []caseOf {
	return []caseOf{{"paused on purpose, perhaps", func(t *testing.T) {
		src, dst := both(t, "paused", "cancelled", "inmigrate", "none")
		x := recovers(t, 20*time.Second, src, dst, plan.Plan{})
		x.want(t, "running", "inmigrate|dead", "source")
		x.says(t, "on purpose", "`stop`")
	}}}
}

// TestArrivedOnce: the same as the cases of 4, on real QEMUs: a guest that has arrived once, a stranger's destination
// that holds somebody's guest, and one that only waits.
func TestArrivedOnce(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		t.Parallel()
		src, dst := pair(t, qemu, nil)
		_, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), plan.Plan{}, plan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Run("a stranger's", func(t *testing.T) {
			x := newTrial(t, qemu, true, nil)
			x.finished(t)
			holder, said, err := engine.Recover(within.Context(t), connect.Endpoint(dst), x.to, plan.Plan{}, plan.Options{})
			if a, b := state(t, dst), state(t, x.dst); a != "running" || b != "paused" || err == nil {
				t.Errorf("source %s, the stranger's guest is %s: holder %s, %q %v", a, b, holder, said, err)
			}
		})
		t.Run("a fresh one", func(t *testing.T) {
			x := newTrial(t, qemu, true, nil)
			x.from, x.src = connect.Endpoint(dst), dst
			if err := x.somebody(t, record.Source, "stop"); err != nil {
				t.Fatal(err)
			}
			holder, said, err := engine.Recover(within.Context(t), x.from, x.to, plan.Plan{}, plan.Options{})
			b := state(t, x.dst)
			if holder != record.Source || err != nil || b != "inmigrate" || strings.Contains(said, "another destination") {
				t.Errorf("destination %s: holder %s, %q %v", b, holder, said, err)
			}
		})
		t.Run("and leaves again", func(t *testing.T) { // the migration's own words count from its own `migrate` on
			x := newTrial(t, qemu, true, nil)
			x.from, x.src = connect.Endpoint(dst), dst
			_ = x.somebody(t, record.Source, "cont")
			x.plan = plan.Plan{Mode: record.StopAndCopyMode, Connect: "unix:" + filepath.Join(guesttest.Dir(t), "nobody")}
			x.run(t, never, 0, nil)
			if x.look(t); x.a != "running" || x.rec.GuestOn != record.Source {
				t.Errorf("source %s, guest on %s: %v", x.a, x.rec.GuestOn, x.err)
			}
		})
	})
}
