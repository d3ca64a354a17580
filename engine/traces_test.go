package engine_test

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/anatomy"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/qmp"
)

// tracing are the versions that have the trace events of the downtime.
var tracing = []string{"10.0", "11.1"}

// told runs f with a connection to a QEMU's control monitor.
func told(t *testing.T, vm *guest.VM, f func(context.Context, *qmp.Conn)) {
	t.Helper()
	ctx := within.Context(t)
	nc, err := vm.Dial(ctx, guest.Control)
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f(ctx, c)
}

// switched are the trace events that qmigrate uses and that are on.
func switched(t *testing.T, vm *guest.VM) (on []string) {
	t.Helper()
	told(t, vm, func(ctx context.Context, c *qmp.Conn) {
		for _, name := range append(anatomy.Events(), anatomy.Request, anatomy.Pending) {
			all, err := c.TraceEvents(ctx, name)
			if err != nil && !qmp.IsRefusal(err) {
				t.Fatal(err)
			}
			for _, e := range all {
				if e.State == qmp.TraceEnabled {
					on = append(on, e.Name)
				}
			}
		}
	})
	return on
}

// notes are the notes in a folder.
func notes(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// However a migration ends, the trace events of both QEMUs are as they were, and what was on before stays on.
func TestTracesRestored(t *testing.T) {
	for _, version := range tracing {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			for name, c := range map[string]struct {
				plan    plan.Plan
				cancels bool
				want    record.Outcome
			}{
				"completed": {plan.Plan{}, false, record.Completed},
				"post-copy": {plan.Plan{Mode: record.PostCopyMode}, false, record.Completed},
				"failed":    {plan.Plan{Listen: "tcp:192.0.2.1:4444"}, false, record.Failed}, // after the events were switched on
				"cancelled": {plan.Plan{MaxBandwidth: slow}, true, record.Cancelled},
			} {
				if name == "post-copy" && version == "11.1" {
					continue // it fails now and then where the guest is in its firmware, whatever is traced
				}
				t.Run(name, func(t *testing.T) {
					src, dst := pair(t, guesttest.QEMU(t, version), nil)
					told(t, src, func(ctx context.Context, c *qmp.Conn) {
						if err := c.SetTraceEvent(ctx, anatomy.Load, true); err != nil {
							t.Fatal(err)
						}
					})
					ctx, cancel := context.WithCancel(within.Context(t))
					defer cancel()
					dir := t.TempDir()
					o := plan.Options{Traces: dir}
					if c.cancels {
						o.Sampled = func(record.Sample) { cancel() }
					}
					rec, err := engine.Migrate(ctx, connect.Endpoint(src), connect.Endpoint(dst), c.plan, o)
					if rec.Outcome != c.want {
						t.Fatalf("%s: %v", rec.Outcome, err)
					}
					if on := switched(t, src); !slices.Equal(on, []string{anatomy.Load}) {
						t.Errorf("source: on are %q", on)
					}
					if rec.Outcome == record.Completed {
						if on := switched(t, dst); on != nil {
							t.Errorf("destination: on are %q", on)
						}
						for _, side := range []record.Place{record.OnSource, record.OnDestination} {
							if !slices.ContainsFunc(rec.Anatomy, func(p record.AnatomyPart) bool { return p.Side == side && p.Source == "trace" }) {
								t.Errorf("no part of the %s is told by a trace: %+v", side, rec.Anatomy)
							}
						}
					}
					if told := rec.Pending != nil; told != (version == "11.1" && rec.Outcome == record.Completed) {
						t.Errorf("pending: %+v", rec.Pending)
					}
					for i, p := range rec.Pending {
						if i > 0 && p.T < rec.Pending[i-1].T || p.T > rec.Total.Wall || p.PreCopy+p.PostCopy > 1<<30 {
							t.Errorf("pending %+v", p)
						}
					}
					if left := notes(t, dir); left != nil {
						t.Errorf("left: %q", left)
					}
					for _, w := range rec.Warnings {
						if strings.Contains(w, "trace") || strings.Contains(w, "anatomy") {
							t.Error(w)
						}
					}
				})
			}
		})
	}
}

// A trial of an experiment that does not ask for it makes no QEMU write a line; events tell what they can.
func TestTracesEventsAlone(t *testing.T) {
	for anatomy, traced := range map[string]bool{"": false, plan.AnatomyOn: true} {
		t.Run("anatomy "+anatomy, func(t *testing.T) {
			t.Parallel()
			src, dst := pair(t, guesttest.QEMU(t, "10.0"), nil)
			rec, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), plan.Plan{Anatomy: anatomy},
				plan.Options{EventsAlone: true})
			if err != nil {
				t.Fatal(err)
			}
			var sum time.Duration
			told := false
			for _, p := range rec.Anatomy {
				told = told || p.Source == "trace"
				if p.Critical {
					sum += p.Duration
				}
			}
			if told != traced || sum != *rec.Downtime.Wire {
				t.Errorf("told by traces %t, want %t; the parts sum to %s of %s", told, traced, sum, *rec.Downtime.Wire)
			}
		})
	}
}
