package lab

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/plan"
	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
)

// up makes a lab of one QEMU for a test, with a workload.
func up(t *testing.T, qemu, workload string) *Lab {
	t.Helper()
	needRoot(t)
	w, err := wire.ParseWorkload(workload)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Up(within.Context(t), Spec{Owner: fmt.Sprintf("test-%d", os.Getpid()), SourceQEMU: qemu, DestinationQEMU: qemu, Accelerator: "tcg", Workload: w})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	})
	return l
}

// TestLinkDown takes the destination's host off the link in post-copy, twice: QEMU itself says nothing of it for a long while, so it is our watch
// that notices. The guest goes on each time, with its memory right.
func TestLinkDown(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		l := up(t, qemu, "dirty:rate=1000/s,working-set=8MiB")
		cuts := 0
		var back []*time.Timer
		o := plan.Options{Sampled: func(x record.Sample) {
			if x.Status == "postcopy-active" && cuts < 2 && x.Remaining != nil && *x.Remaining < int64(100-40*cuts)<<20 {
				cuts++
				if err := l.site.SetLink(destinationHost, false); err != nil {
					t.Error(err)
				}
				back = append(back, time.AfterFunc(2*time.Second, func() {
					if err := l.site.SetLink(destinationHost, true); err != nil {
						t.Error(err)
					}
				}))
			}
		}}
		rec, err := l.Migrate(within.Context(t), plan.Plan{
			Mode: record.PostCopyMode, StallLimit: time.Second, Parameters: map[string]string{"max-postcopy-bandwidth": fmt.Sprint(24 << 20)},
		}, o)
		for _, timer := range back {
			timer.Stop()
		}
		if err != nil {
			t.Fatal(err)
		}
		recoveries := 0
		for _, s := range rec.Stages {
			if s.Name == record.Recovery && s.Duration > 0 {
				recoveries++
			}
		}
		if rec.Outcome != record.Completed || recoveries != 2 || cuts != 2 {
			t.Errorf("outcome %s, %d cuts, %d recoveries: %+v", rec.Outcome, cuts, recoveries, rec.Stages)
		}
		if c := rec.MemoryCheck; c == nil || c.PagesChecked <= 10000 || c.PagesWrong != 0 {
			t.Errorf("memory check %+v; warnings %q", c, rec.Warnings)
		}
		t.Logf("stages %+v, %+v", rec.Stages, *rec.PostCopy)
	})
}

// TestPolicyReplays: what a policy decided live is what it decides over the recorded series.
func TestPolicyReplays(t *testing.T) {
	qemu := guesttest.QEMU(t, "10.0")
	for _, text := range []string{"switchover", "doubling", "stall"} {
		t.Run(text, func(t *testing.T) {
			l := up(t, qemu, "dirty:rate=0/s,working-set=24MiB")
			spec, err := policy.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			rec, err := l.Migrate(within.Context(t), plan.Plan{Policy: spec, MaxBandwidth: 24 << 20, Timeout: 40 * time.Second},
				plan.Options{})
			if rec == nil {
				t.Fatal(err)
			}
			again, replayErr := engine.Replay(rec, spec, rec.Plan["policy_limits"].(policy.Limits))
			if replayErr != nil || !slices.Equal(again, rec.Decisions) {
				t.Errorf("live %+v\nagain %+v: %v", rec.Decisions, again, replayErr)
			}
			if c := rec.MemoryCheck; c == nil || c.PagesWrong != 0 {
				t.Errorf("memory check %+v; warnings %q", c, rec.Warnings)
			}
			t.Logf("%s after %v, wire %v: %v", rec.Outcome, rec.Total.Wall, rec.Downtime.Wire, err)
			for _, d := range rec.Decisions {
				t.Logf("%v %s", d.At, d.Text)
			}
		})
	}
}
