package engine_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/lab"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
)

func stageNames(r *record.Migration) (names []record.StageName) {
	for _, s := range r.Stages {
		names = append(names, s.Name)
	}
	return names
}

// TestPostCopy moves a guest in each mode that goes over to post-copy.
func TestPostCopy(t *testing.T) {
	six := []record.StageName{"initialization", "reservation", "pre-copy", "stop-and-copy", "commitment", "activation"}
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, c := range []struct {
			plan   engine.Plan
			passes int // before the switch, at least
			split  bool
		}{
			{engine.Plan{Mode: record.PostCopyMode, Capabilities: map[string]bool{"postcopy-blocktime": true}}, 1, true},
			{engine.Plan{Mode: record.PostCopyMode, Capabilities: map[string]bool{"postcopy-preempt": true}}, 1, true},
			{engine.Plan{Mode: record.PostCopyMode, Capabilities: map[string]bool{"pause-before-switchover": true}}, 1, true},
			{engine.Plan{Mode: record.HybridMode, SwitchAfter: engine.SwitchAfter{Time: 300 * time.Millisecond}, MaxBandwidth: slow}, 1, true},
			{engine.Plan{Mode: record.HybridMode, SwitchAfter: engine.SwitchAfter{Passes: 50}}, 1, false}, // converges before
		} {
			t.Run(fmt.Sprint(c.plan.Mode, c.plan.SwitchAfter, c.plan.Capabilities), func(t *testing.T) {
				src, dst := pair(t, qemu, nil)
				r, err := engine.Migrate(t.Context(), lab.Endpoint(src), lab.Endpoint(dst), c.plan, engine.Options{})
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

// TestPostCopyKills kills either QEMU, or cuts qmigrate's monitors, at each edge of a post-copy. While the destination has not run,
// the source runs the guest; afterwards a dead side is the guest's end, and that is said; never do two run.
func TestPostCopyKills(t *testing.T) {
	const s, d = record.Source, record.Destination
	start, active := sent(s, "migrate-start-postcopy"), got(s, `"status": "postcopy-active"`)
	turns(t, func(t *testing.T, qemu string, mine func(int) bool) {
		n := 0
		for _, at := range []edge{start, got(s, `"STOP"`), active, got(d, `"status": "postcopy-active"`), sent(d, "cont"), got(d, `"RESUME"`), done(record.Activation)} {
			for _, who := range []record.Holder{s, d} {
				n++
				if !mine(n) {
					continue
				}
				t.Run(fmt.Sprint(at, "_", who), func(t *testing.T) {
					t.Parallel()
					x := newTrial(t, qemu, true, func(a, b *guest.Spec) { a.Memory, b.Memory = 128<<20, 128<<20 })
					x.plan = engine.Plan{Mode: record.PostCopyMode, MaxBandwidth: slow, Parameters: map[string]string{"max-postcopy-bandwidth": fmt.Sprint(slow)}}
					x.run(t, at, 0, func() { x.kill(t, who) })
					x.look(t)
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
