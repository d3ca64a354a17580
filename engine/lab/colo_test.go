package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"qmigrate/engine/colo"
	"qmigrate/engine/connect"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
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
	l, err := Up(within.Context(t), s)
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
	trial.Run, trial.Checkpoints = time.Second, 12 // 12 take about a second on an idle machine
	rec, err := l.COLO(within.Context(t), colo.Plan{CheckpointDelay: 100 * time.Millisecond}, trial, plan.Options{})
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

// TestCOLO keeps a guest in step and kills either side; what is left goes on with its memory and its TCP session, and gets a new
// secondary, which then takes over as well.
func TestCOLO(t *testing.T) {
	t.Run("secondary killed", func(t *testing.T) {
		l, err := coloLab(t, "7.2", "7.2", nil)
		if err != nil {
			t.Fatal(err)
		}
		rec := inStep(t, l, COLOTrial{Kill: record.Destination, Reprotect: true})
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
		rec := inStep(t, l, COLOTrial{Kill: record.Source, Reprotect: true})
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
		rec := inStep(t, l, COLOTrial{Kill: record.Source, Reprotect: true})
		if f := rec.COLO; f.Reprotected == nil || *f.Reprotected || !strings.Contains(strings.Join(rec.Warnings, "\n"), "as the primary") {
			t.Errorf("protected again %v, warnings %q", f.Reprotected, rec.Warnings)
		}
		if again, err := l.Migrate(within.Context(t), plan.Plan{}, plan.Options{}); err == nil || again != nil || !strings.Contains(err.Error(), "no second QEMU") {
			t.Errorf("a migration of what is left: %v", err)
		}
	})
}

// TestCOLORefused: what cannot be kept in step is refused, and the guest runs on as if nothing had been.
func TestCOLORefused(t *testing.T) {
	t.Run("10.0 before the guest is there", func(t *testing.T) {
		_, err := coloLab(t, "10.0", "10.0", nil)
		var unsupported *plan.UnsupportedError
		if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), "qemu 7.2") {
			t.Fatalf("error %v", err)
		}
	})
	t.Run("plans", func(t *testing.T) {
		l, err := coloLab(t, "7.2", "7.2", nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			plan colo.Plan
			want string
		}{
			"no filters":        {colo.Plan{}, "both would be heard"},
			"another mode's":    {colo.Plan{Mirror: "10.77.0.11", Plan: plan.Plan{Capabilities: map[string]bool{"postcopy-ram": true}}}, "capability postcopy-ram in mode colo"},
			"delay":             {colo.Plan{Mirror: "10.77.0.11", CheckpointDelay: time.Microsecond}, "whole milliseconds"},
			"delay's parameter": {colo.Plan{Mirror: "10.77.0.11", Plan: plan.Plan{Parameters: map[string]string{"x-checkpoint-delay": "5"}}}, "checkpoint-delay"},
		} {
			rec, err := colo.Protect(within.Context(t), connect.Endpoint(l.source), connect.Endpoint(l.destination), c.plan,
				plan.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || rec.Error == nil || rec.Error.Stage != record.Initialization || rec.GuestOn != record.Source && rec.GuestOn != record.Unknown {
				t.Errorf("%s: %v; guest on %s", name, err, rec.GuestOn)
			}
		}
		// An address that is not the primary's is found out when the filters are made: everything is taken back.
		rec, err := colo.Protect(within.Context(t), connect.Endpoint(l.source), connect.Endpoint(l.destination),
			colo.Plan{Mirror: "10.99.0.1"}, plan.Options{})
		var stage *record.StageError
		if !errors.As(err, &stage) || stage.Stage != record.Reservation || stage.Guest != record.Source || stage.Issued {
			t.Errorf("wrong address: %v", err)
		}
		if len(rec.Warnings) > 2 {
			t.Errorf("warnings %q", rec.Warnings)
		}
		// And after all of these the pair can be made, and its secondary let go.
		inStep(t, l, COLOTrial{})
	})
	t.Run("10.0 with a guest", func(t *testing.T) { // by a caller that has not tried it first
		l, err := coloLab(t, "10.0", "10.0", func(s *Spec) { s.COLO, s.Guest.Machine = false, COLOMachine })
		if err != nil {
			t.Fatal(err)
		}
		rec, err := l.COLO(within.Context(t), colo.Plan{}, COLOTrial{Run: time.Second}, plan.Options{})
		var stage *record.StageError
		if !errors.As(err, &stage) || stage.Guest != record.Source || !strings.Contains(err.Error(), "migration_completion") {
			t.Fatalf("error %v", err)
		}
		if c := rec.MemoryCheck; c == nil || c.PagesWrong != 0 || c.PagesChecked <= 10000 || !*rec.Network.TCPSurvived {
			t.Errorf("memory %+v, network %+v, warnings %q", c, rec.Network, rec.Warnings)
		}
	})
	for name, c := range map[string]struct {
		change func(*guest.Spec)
		want   string
	}{
		"q35":         {func(s *guest.Spec) { s.Machine = "pc-q35-7.2" }, "ich9_lpc_post_load"},
		"aligned RAM": {func(s *guest.Spec) { s.Memory = 64 << 20 }, "loses dirty pages"},
		"a disk": {func(s *guest.Spec) {
			s.Extra = []string{"-drive", "if=virtio,format=raw,file.driver=null-co,file.size=1048576"}
		}, "with the disk virtio0 "},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := barePair(t, c.change)
			rec, err := colo.Protect(within.Context(t), connect.Endpoint(a), connect.Endpoint(b), colo.Plan{}, plan.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || rec.Error == nil || rec.Error.Stage != record.Initialization {
				t.Errorf("error %v", err)
			}
			if s := coloState(t, a); s != "running" {
				t.Errorf("the guest is %s", s)
			}
		})
	}
	t.Run("an unknown process", func(t *testing.T) { // whose threads cannot be told to yield
		a, b := barePair(t, nil)
		ep := connect.Endpoint(a)
		ep.Process = nil
		if _, err := colo.Protect(within.Context(t), ep, connect.Endpoint(b), colo.Plan{}, plan.Options{}); err == nil || !strings.Contains(err.Error(), "dead-locks") {
			t.Errorf("error %v", err)
		}
	})
}

// barePair is two QEMUs of 7.2 on this machine, without a network card, of which the first runs its firmware.
func barePair(t *testing.T, change func(*guest.Spec)) (a, b *guest.VM) {
	t.Helper()
	s := guest.Spec{Name: "a", QEMU: guesttest.QEMU(t, "7.2"), Machine: COLOMachine, Memory: 64<<20 + 8<<10}
	if change != nil {
		change(&s)
	}
	dir := guesttest.Dir(t)
	start := func(name string, incoming bool) *guest.VM {
		s := s
		s.Name, s.Dir, s.Incoming, s.Paused = name, filepath.Join(dir, name), incoming, incoming
		vm, err := guest.Start(within.Context(t), host.Local(), s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		})
		return vm
	}
	return start("a", false), start("b", true)
}

// coloState asks query-status over a new connection; "dead" if the process has ended.
func coloState(t *testing.T, vm *guest.VM) string {
	t.Helper()
	select {
	case <-vm.Process().Done():
		return "dead"
	default:
	}
	f, err := facts.Inspect(within.Context(t), connect.Endpoint(vm), plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return f.RunState
}

// TestCOLOEnds: whatever ends a pair, one side at most runs the guest afterwards, and it does if one is left.
func TestCOLOEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end     func(t *testing.T, a, b *guest.VM, cut, cancel func())
		outcome record.Outcome
		guest   record.Holder
		a, b    string // run states afterwards
		err     string
	}{
		"primary hangs":     {func(t *testing.T, a, b *guest.VM, cut, cancel func()) { signal(t, a, syscall.SIGSTOP) }, record.Recovered, record.Destination, "dead", "running", ""},
		"link is cut":       {func(t *testing.T, a, b *guest.VM, cut, cancel func()) { cut() }, record.Recovered, record.Source, "running", "dead", ""},
		"somebody ends it":  {func(t *testing.T, a, b *guest.VM, cut, cancel func()) { cancel() }, record.Cancelled, record.Source, "running", "dead", "canceled"},
		"secondary crashes": {func(t *testing.T, a, b *guest.VM, cut, cancel func()) { signal(t, b, syscall.SIGABRT) }, record.Recovered, record.Source, "running", "dead", ""},
		"both die": {func(t *testing.T, a, b *guest.VM, cut, cancel func()) {
			signal(t, b, syscall.SIGKILL)
			signal(t, a, syscall.SIGKILL)
		}, record.Failed, record.None, "dead", "dead", "both QEMUs died"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := barePair(t, nil)
			ctx, cancel := context.WithCancel(within.Context(t))
			defer cancel()
			link, err := host.Local().Listen(ctx, "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			port := freePort(t)
			cut := passOn(t, link, port)
			defer cut()
			p := colo.Plan{CheckpointDelay: 50 * time.Millisecond, Run: time.Minute,
				Plan: plan.Plan{Listen: "tcp:" + port, Connect: "tcp:" + link.Addr().String()}}
			p.Checkpointed = func(n int) {
				if n == 10 {
					c.end(t, a, b, cut, cancel)
				}
			}
			rec, err := colo.Protect(ctx, connect.Endpoint(a), connect.Endpoint(b), p, plan.Options{})
			if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v", err)
			}
			if rec.Outcome != c.outcome || rec.GuestOn != c.guest {
				t.Errorf("outcome %s, guest on %s; %+v; warnings %q", rec.Outcome, rec.GuestOn, rec.Error, rec.Warnings)
			}
			if x, y := coloState(t, a), coloState(t, b); x != c.a || y != c.b {
				t.Errorf("the primary is %s, the secondary %s", x, y)
			}
			if c.a == "running" && traced(t, a) {
				t.Error("threads of the primary go on yielding")
			}
		})
	}
}

func signal(t *testing.T, vm *guest.VM, s syscall.Signal) {
	if err := vm.Process().Signal(s); err != nil {
		t.Error(err)
	}
}

// traced tells whether a thread of a QEMU's is traced, and by that yields.
func traced(t *testing.T, vm *guest.VM) bool {
	t.Helper()
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", vm.Process().PID()))
	if err != nil || len(names) == 0 {
		t.Fatalf("no thread of process %d: %v", vm.Process().PID(), err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil && !strings.Contains(string(b), "\nTracerPid:\t0\n") {
			return true
		}
	}
	return false
}

// freePort is an address at which nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// passOn hands one connection on to an address until it is cut.
func passOn(t *testing.T, l net.Listener, to string) (cut func()) {
	var mu sync.Mutex
	var conns []io.Closer
	var all sync.WaitGroup
	keep := func(c io.Closer) {
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, c)
	}
	keep(l)
	all.Go(func() {
		in, err := l.Accept()
		if err != nil {
			return
		}
		keep(in)
		out, err := net.Dial("tcp", to)
		if err != nil {
			in.Close()
			return
		}
		keep(out)
		all.Go(func() { io.Copy(out, in); out.Close() })
		all.Go(func() { io.Copy(in, out); in.Close() })
	})
	return func() {
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	}
}
