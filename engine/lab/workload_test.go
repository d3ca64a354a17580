package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

func workloadLab(t *testing.T, workload string, vcpus int) *Lab {
	t.Helper()
	needRoot(t)
	w, err := wire.ParseWorkload(workload)
	if err != nil {
		t.Fatal(err)
	}
	qemu := guesttest.QEMU(t, "10.0")
	l, err := Up(t.Context(), Spec{Owner: fmt.Sprintf("test-%d", os.Getpid()), SourceQEMU: qemu, DestinationQEMU: qemu, Accelerator: "tcg", Workload: w,
		Guest: guest.Spec{Memory: 128 << 20, VCPUs: vcpus}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func status(t *testing.T, l *Lab) (s wire.Status) {
	t.Helper()
	if err := l.agent.Call(t.Context(), wire.DoWorkloadStatus, wire.Bins{Max: -1}, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestWorkloadFailsTheRun: a workload that finds its own result wrong while it is moved fails the run, though the migration is completed and the memory right.
func TestWorkloadFailsTheRun(t *testing.T) {
	l := workloadLab(t, "dhrystone", 1)
	spoil := sync.OnceFunc(func() { // while the guest is on the source; the sampler waits
		if err := l.agent.Call(t.Context(), wire.DoWorkloadSpoil, nil, nil); err != nil {
			t.Error(err)
		}
		var s wire.Status
		for deadline := time.Now().Add(30 * time.Second); s.State != wire.Failed; time.Sleep(time.Millisecond) {
			if err := l.agent.Call(t.Context(), wire.DoWorkloadStatus, wire.Bins{Max: -1}, &s); err != nil || time.Now().After(deadline) {
				t.Errorf("the spoilt workload is %s, %v", s.State, err)
				return
			}
		}
	})
	rec, err := l.Migrate(t.Context(), plan.Plan{MaxBandwidth: 16 << 20},
		plan.Options{Sampled: func(record.Sample) { spoil() }})
	if err == nil || !strings.Contains(err.Error(), "the guest's workload dhrystone failed: the result is wrong after") || !strings.Contains(err.Error(), "Arr_2_Glob[8][7]") {
		t.Errorf("the run's error: %v", err)
	}
	if rec == nil || rec.Outcome != record.Completed || rec.GuestOn != record.Destination || rec.MemoryCheck == nil || rec.MemoryCheck.PagesWrong != 0 {
		t.Fatalf("%+v", rec)
	}
	if rec.Guest == nil || rec.Guest.Score != nil || !strings.Contains(strings.Join(rec.Warnings, "\n"), "the guest's workload dhrystone failed") {
		t.Errorf("guest %+v, warnings %q", rec.Guest, rec.Warnings)
	}
}

// TestScore: a workload that was right across the migration leaves its result in its own unit in the record.
func TestScore(t *testing.T) {
	l := workloadLab(t, "livermore:span=short", 1)
	rec, err := l.Migrate(t.Context(), plan.Plan{}, plan.Options{})
	if err != nil || rec.Guest == nil || rec.Guest.Score == nil || rec.Guest.Score.Unit != "MFLOPS" || rec.Guest.Score.Value <= 0 {
		t.Fatalf("%v, guest %+v, warnings %q", err, rec.Guest, rec.Warnings)
	}
	if g := rec.Guest; g.EventsBefore == nil || g.EventsDuring == nil || *g.EventsDuring <= 0 {
		t.Errorf("guest %+v", g)
	}
}

// TestSetRate: the rate of a running workload changes, and with it what the guest claims to do.
func TestSetRate(t *testing.T) {
	l := workloadLab(t, "dirty:rate=0.001/s,vcpus=2,period=20ms,duty=50%,drift=1MiB/s", 2)
	if s := status(t, l); s.Events != 0 {
		t.Errorf("%d writes at one in 1000 s", s.Events)
	}
	if err := l.SetRate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); status(t, l).Events < 10_000; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no writes at full speed: ", status(t, l).Events)
		}
	}
	if err := l.SetRate(t.Context(), -1); err == nil || !strings.Contains(err.Error(), "rate -1/s is out of range") {
		t.Errorf("-1: %v", err)
	}
	if err := SetRate(t.Context(), new(host.Pool), l.spec.Owner, 5); err == nil || !strings.Contains(err.Error(), "in use by a running qmigrate") {
		t.Errorf("from another program: %v", err)
	}
	if err := SetRate(t.Context(), new(host.Pool), "no-such-lab", 5); err == nil || !strings.Contains(err.Error(), "no lab no-such-lab") {
		t.Errorf("without a lab: %v", err)
	}
	if err := l.SetRate(t.Context(), 3000); err != nil { // the page writes go on, and the check is right
		t.Fatal(err)
	}
	rec, err := l.Migrate(t.Context(), plan.Plan{}, plan.Options{})
	if err != nil || rec.MemoryCheck == nil || rec.MemoryCheck.PagesWrong != 0 {
		t.Fatalf("%v, %+v", err, rec)
	}
	var d wire.Dirtied
	if err := json.Unmarshal(status(t, l).Result, &d); err != nil || d.Rate != 3000 || d.VCPUs != 2 || d.Start == 0 {
		t.Errorf("%+v, %v", d, err)
	}
}
