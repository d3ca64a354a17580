package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/wire"
)

// coloLab is a lab for two QEMUs to run in step.
func coloLab(t *testing.T, primary, secondary string, change func(*Spec)) (*Lab, error) {
	t.Helper()
	needRoot(t)
	workload, err := wire.ParseWorkload("dirty:rate=2000/s,working-set=16MiB")
	if err != nil {
		t.Fatal(err)
	}
	s := Spec{
		Owner: fmt.Sprintf("test-%d", os.Getpid()), COLO: true, Accelerator: "tcg", Workload: workload,
		SourceQEMU: guesttest.QEMU(t, primary), DestinationQEMU: guesttest.QEMU(t, secondary),
	}
	if change != nil {
		change(&s)
	}
	l, err := Up(t.Context(), s)
	if err == nil {
		t.Cleanup(func() {
			if err := l.Close(); err != nil {
				t.Errorf("remove the lab: %v", err)
			}
		})
	}
	return l, err
}

// inStep is one trial, and what must hold after each.
func inStep(t *testing.T, l *Lab, trial COLOTrial) *record.Migration {
	t.Helper()
	rec, err := l.COLO(t.Context(), engine.COLOPlan{CheckpointDelay: 100 * time.Millisecond}, trial, engine.Options{})
	if b, _ := json.Marshal(rec); rec != nil {
		t.Logf("%s", b)
	}
	if err != nil {
		t.Fatal(err)
	}
	f := rec.COLO
	if rec.Mode != record.COLOMode || f == nil || f.Checkpoints < 10 || f.CheckpointP50 == nil || *f.CheckpointP50 <= 0 || *f.CheckpointP99 < *f.CheckpointP50 || f.Protected == nil {
		t.Fatalf("mode %s, figures %+v", rec.Mode, f)
	}
	if c := rec.MemoryCheck; c == nil || c.PagesChecked <= 10000 || c.PagesWrong != 0 {
		t.Errorf("memory check %+v; warnings %q", c, rec.Warnings)
	}
	if n := rec.Network; n == nil || n.TCPSurvived == nil || !*n.TCPSurvived {
		t.Errorf("the TCP session is lost: %+v", n)
	}
	var wall time.Duration
	for _, s := range rec.Stages {
		wall += s.Duration
	}
	if wall != rec.Total.Wall {
		t.Errorf("stages last %v, the whole %v", wall, rec.Total.Wall)
	}
	for _, w := range rec.Warnings {
		if strings.Contains(w, "rebooted") || strings.Contains(w, "left on") || strings.Contains(w, "remove") {
			t.Errorf("warning: %s", w)
		}
	}
	if trial.Kill == "" {
		if rec.Outcome != record.Completed || rec.GuestOn != record.Source || f.Lost != "" || f.Failover != nil {
			t.Errorf("outcome %s, guest on %s, figures %+v", rec.Outcome, rec.GuestOn, f)
		}
		return rec
	}
	other := map[record.Holder]record.Holder{record.Source: record.Destination, record.Destination: record.Source}[trial.Kill]
	if rec.Outcome != record.Recovered || rec.GuestOn != other || f.Lost != trial.Kill || f.Failover == nil || f.Noticed == nil || f.LostAt == nil {
		t.Errorf("outcome %s, guest on %s, figures %+v", rec.Outcome, rec.GuestOn, f)
	}
	if d := rec.Downtime; d.TCP == nil || d.Ping == nil {
		t.Errorf("no silence was measured around the failover: %+v", d)
	}
	return rec
}

// TestCOLO keeps a guest in step and lets go, or kills, either side; what is left goes on with its memory and its TCP session, and gets a new
// secondary, which then takes over as well.
func TestCOLO(t *testing.T) {
	t.Run("let go", func(t *testing.T) {
		l, err := coloLab(t, "7.2", "7.2", nil)
		if err != nil {
			t.Fatal(err)
		}
		inStep(t, l, COLOTrial{Run: 3 * time.Second})
	})
	t.Run("secondary killed", func(t *testing.T) {
		l, err := coloLab(t, "7.2", "7.2", nil)
		if err != nil {
			t.Fatal(err)
		}
		rec := inStep(t, l, COLOTrial{Run: 3 * time.Second, Kill: record.Destination, Reprotect: true})
		if f := rec.COLO; f.Reprotected == nil || !*f.Reprotected {
			t.Errorf("not protected again: %q", rec.Warnings)
		}
	})
	t.Run("primary killed", func(t *testing.T) {
		l, err := coloLab(t, "7.2", "7.2", nil)
		if err != nil {
			t.Fatal(err)
		}
		first := l.source
		rec := inStep(t, l, COLOTrial{Run: 3 * time.Second, Kill: record.Source, Reprotect: true})
		if f := rec.COLO; f.Reprotected == nil || !*f.Reprotected {
			t.Fatalf("not protected again: %q", rec.Warnings)
		}
		select {
		case <-first.Process().Done():
		default:
			t.Error("the former primary lives")
		}
	})
	t.Run("to 10.0", func(t *testing.T) { // which can be the secondary, and take over, but not be followed
		l, err := coloLab(t, "7.2", "10.0", nil)
		if err != nil {
			t.Fatal(err)
		}
		rec := inStep(t, l, COLOTrial{Run: 3 * time.Second, Kill: record.Source, Reprotect: true})
		if f := rec.COLO; f.Reprotected == nil || *f.Reprotected || !strings.Contains(strings.Join(rec.Warnings, "\n"), "as the primary") {
			t.Errorf("protected again %v, warnings %q", f.Reprotected, rec.Warnings)
		}
	})
}

// TestCOLORefused: what cannot be kept in step is refused, and the guest runs on as if nothing had been.
func TestCOLORefused(t *testing.T) {
	t.Run("10.0 before the guest is there", func(t *testing.T) {
		_, err := coloLab(t, "10.0", "10.0", nil)
		var unsupported *engine.UnsupportedError
		if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), "--qemu 7.2") {
			t.Fatalf("error %v", err)
		}
	})
	t.Run("plans", func(t *testing.T) {
		l, err := coloLab(t, "7.2", "7.2", nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			plan engine.COLOPlan
			want string
		}{
			"no filters":        {engine.COLOPlan{}, "both would be heard"},
			"another mode's":    {engine.COLOPlan{Mirror: "10.77.0.11", Plan: engine.Plan{Capabilities: map[string]bool{"postcopy-ram": true}}}, "capability postcopy-ram in mode colo"},
			"delay":             {engine.COLOPlan{Mirror: "10.77.0.11", CheckpointDelay: time.Microsecond}, "whole milliseconds"},
			"delay's parameter": {engine.COLOPlan{Mirror: "10.77.0.11", Plan: engine.Plan{Parameters: map[string]string{"x-checkpoint-delay": "5"}}}, "--checkpoint-delay"},
		} {
			rec, err := engine.COLO(t.Context(), Endpoint(l.source), Endpoint(l.destination), c.plan, engine.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || rec.Error == nil || rec.Error.Stage != record.Initialization || rec.GuestOn != record.Source && rec.GuestOn != record.Unknown {
				t.Errorf("%s: %v; guest on %s", name, err, rec.GuestOn)
			}
		}
		// An address that is not the primary's is found out when the filters are made: everything is taken back.
		rec, err := engine.COLO(t.Context(), Endpoint(l.source), Endpoint(l.destination), engine.COLOPlan{Mirror: "10.99.0.1"}, engine.Options{})
		var stage *engine.StageError
		if !errors.As(err, &stage) || stage.Stage != record.Reservation || stage.Guest != record.Source || stage.Issued {
			t.Errorf("wrong address: %v", err)
		}
		if len(rec.Warnings) > 2 {
			t.Errorf("warnings %q", rec.Warnings)
		}
		// And after all of these the pair can be made.
		inStep(t, l, COLOTrial{Run: 2 * time.Second})
	})
	t.Run("10.0 with a guest", func(t *testing.T) { // by a caller that has not tried it first
		l, err := coloLab(t, "10.0", "10.0", func(s *Spec) { s.COLO, s.Guest.Machine = false, COLOMachine })
		if err != nil {
			t.Fatal(err)
		}
		rec, err := l.COLO(t.Context(), engine.COLOPlan{}, COLOTrial{Run: time.Second}, engine.Options{})
		var stage *engine.StageError
		if !errors.As(err, &stage) || stage.Guest != record.Source || !strings.Contains(err.Error(), "migration_completion") {
			t.Fatalf("error %v", err)
		}
		if c := rec.MemoryCheck; c == nil || c.PagesWrong != 0 || c.PagesChecked <= 10000 || !*rec.Network.TCPSurvived {
			t.Errorf("memory %+v, network %+v, warnings %q", c, rec.Network, rec.Warnings)
		}
	})
	for name, c := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"q35":         {func(s *Spec) { s.Guest.Machine = "pc-q35-7.2" }, "ich9_lpc_post_load"},
		"aligned RAM": {func(s *Spec) { s.AllowUnsafe = true }, "loses dirty pages"},
		"a disk": {func(s *Spec) {
			s.Guest.Extra = []string{"-drive", "if=virtio,format=raw,file.driver=null-co,file.size=1048576"}
		}, "both sides would write"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := coloLab(t, "7.2", "7.2", c.change)
			if err != nil {
				t.Fatal(err)
			}
			rec, err := engine.COLO(t.Context(), Endpoint(l.source), Endpoint(l.destination), engine.COLOPlan{Mirror: "10.77.0.11"}, engine.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || rec.Error == nil || rec.Error.Stage != record.Initialization {
				t.Errorf("error %v", err)
			}
			if s := sourceState(t, l.source); s != "running" {
				t.Errorf("the guest is %s", s)
			}
		})
	}
}

// sourceState asks query-status over a new connection.
func sourceState(t *testing.T, vm *guest.VM) string {
	t.Helper()
	f, err := engine.Inspect(t.Context(), Endpoint(vm), engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return f.RunState
}
