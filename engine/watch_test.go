package engine_test

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

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

// watchedPair is a pair of which each has one spare monitor.
func watchedPair(t *testing.T, qemu string, change func(src, dst *guest.Spec)) (src, dst *guest.VM) {
	t.Helper()
	return pair(t, qemu, func(a, b *guest.Spec) {
		for _, s := range []*guest.Spec{a, b} {
			s.Extra = []string{"-qmp", "unix:" + filepath.Join(s.Dir, "spare.qmp") + ",server=on,wait=off"}
		}
		if change != nil {
			change(a, b)
		}
	})
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
	end   chan struct{}
	stop  context.CancelFunc
	rec   *record.Migration
	err   error
}

// watch begins to watch; dst may be nil.
func watch(t *testing.T, src, dst *guest.VM, p plan.Plan) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(within.Context(t))
	w := &watching{t: t, ready: make(chan struct{}), end: make(chan struct{}), stop: cancel}
	a, b := spare(t, src), (*endpoint.Endpoint)(nil)
	if dst != nil {
		b = spare(t, dst)
	}
	var once sync.Once
	go func() {
		defer close(w.end)
		ready := func() { once.Do(func() { close(w.ready) }) }
		w.rec, w.err = engine.Watch(ctx, a, b, p, plan.Options{Watching: ready, Sampled: func(record.Sample) { ready() }})
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

func TestWatchOurs(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode, record.PostCopyMode, record.HybridMode} {
			t.Run(string(mode), func(t *testing.T) {
				src, dst := watchedPair(t, qemu, nil)
				w := watch(t, src, dst, plan.Plan{}).await()
				ours, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst),
					plan.Plan{Mode: mode, MaxBandwidth: 512 << 10}, plan.Options{})
				if err != nil {
					t.Fatal(err)
				}
				theirs, err := w.ended()
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range []*record.Migration{ours, theirs} {
					t.Logf("%s %s %s %s", r.Mode, r.Outcome, r.GuestOn, r.Name)
					for _, s := range r.Stages {
						t.Logf("  %s %v %v", s.Name, s.Start, s.Duration)
					}
					for _, p := range r.Passes {
						t.Logf("  pass %d %v %v sent %v dirty %v stopped %v postcopy %v samples %d", p.Pass, p.Start, p.Duration, val(p.Transferred), val(p.DirtyPages), p.Stopped, p.PostCopy, p.Samples)
					}
					t.Logf("  wire %v qemu %v status %v total %v sent %v", dur(r.Downtime.Wire), dur(r.Downtime.QEMU), dur(r.Downtime.Status), dur(r.Total.QEMUTotal), val(r.Total.Transferred))
					t.Logf("  %q", r.Warnings)
				}
			})
		}
	})
}

func val(p *int64) int64 {
	if p == nil {
		return -1
	}
	return *p
}
func dur(p *time.Duration) time.Duration {
	if p == nil {
		return -1
	}
	return *p
}

var _ = qmp.Options{}
