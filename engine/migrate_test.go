package engine_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
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
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

func TestMain(m *testing.M) { guesttest.Main(m) }

// slow makes the migration of a guest that sits in its firmware last for seconds: its 64 MiB are nearly all zeros, 9
// bytes a page.
const slow = 32 << 10 // bytes/s

// pair starts two QEMUs on this machine, the first running its firmware, the second waiting. change may alter either's
// Spec.
func pair(t *testing.T, qemu string, change func(src, dst *guest.Spec)) (src, dst *guest.VM) {
	t.Helper()
	return pairOn(t, [2]host.Host{host.Local(), host.Local()}, qemu, change)
}

// pairOn is pair with each QEMU on a host of its own.
func pairOn(t *testing.T, hosts [2]host.Host, qemu string, change func(src, dst *guest.Spec)) (src, dst *guest.VM) {
	t.Helper()
	dir := guesttest.Dir(t)
	a := guest.Spec{Name: "a", QEMU: qemu, Memory: 64 << 20, Dir: filepath.Join(dir, "a")}
	b := a
	b.Name, b.Dir, b.Incoming, b.Paused = "b", filepath.Join(dir, "b"), true, true
	if change != nil {
		change(&a, &b)
	}
	var vms [2]*guest.VM
	var errs [2]error
	var all sync.WaitGroup
	for i, s := range []guest.Spec{a, b} {
		all.Go(func() { vms[i], errs[i] = guest.Start(within.Context(t), hosts[i], s) })
	}
	all.Wait()
	for _, vm := range vms {
		if vm != nil {
			t.Cleanup(func() {
				if err := vm.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return vms[0], vms[1]
}

// state asks a QEMU's query-status over a new connection: "dead" if its process has gone, "silent" if it lives and does
// not answer.
func state(t *testing.T, vm *guest.VM) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	status, err := ask(ctx, vm)
	if err == nil {
		return status
	}
	select {
	case <-vm.Process().Done():
		return "dead"
	case <-time.After(time.Second): // it may be at it
	}
	log, _ := vm.Host().ReadFile(vm.Spec().Socket("log"))
	t.Logf("%s does not answer: %v; QEMU said %q; its threads:\n%s", vm.Spec().Name, err, log, threads(vm.Process().PID()))
	return "silent"
}

func ask(ctx context.Context, vm *guest.VM) (string, error) {
	nc, err := vm.Dial(ctx, guest.Control)
	if err != nil {
		return "", err
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		return "", err
	}
	defer c.Close()
	s, err := c.QueryStatus(ctx)
	for range 20 { // a source is in finish-migrate for a moment after it has said completed
		if err != nil || s.Status != "finish-migrate" {
			break
		}
		time.Sleep(5 * time.Millisecond)
		s, err = c.QueryStatus(ctx)
	}
	return s.Status, err
}

// threads says what each thread of a process does: its name, its state, and the system call and kernel function that it
// waits in.
func threads(pid int) string {
	var b strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		fmt.Fprint(&b, filepath.Base(task))
		for _, name := range []string{"stat", "wchan", "syscall"} {
			text, _ := os.ReadFile(filepath.Join(task, name))
			fmt.Fprintf(&b, " %.60s", strings.TrimSpace(string(text)))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// wantRecord checks what every record must hold, whatever happened.
func wantRecord(t *testing.T, r *record.Migration) {
	t.Helper()
	var sum time.Duration
	for i, s := range r.Stages {
		if s.Duration < 0 || i > 0 && s.Start != r.Stages[i-1].Start+r.Stages[i-1].Duration {
			t.Errorf("stage %s does not begin where %s ends: %+v", s.Name, r.Stages[max(i-1, 0)].Name, r.Stages)
		}
		sum += s.Duration
	}
	if sum != r.Total.Wall {
		t.Errorf("stages sum to %v, wall time is %v", sum, r.Total.Wall)
	}
	for i, p := range r.Passes {
		if p.Pass != i+1 || i > 0 && p.Start != r.Passes[i-1].Start+r.Passes[i-1].Duration {
			t.Errorf("pass %d does not follow: %+v", p.Pass, r.Passes)
		}
	}
	// QEMU leaves the state `running` before it sends STOP, and enters it after RESUME.
	if d := r.Downtime; d.Wire != nil && d.WireError != nil && d.Status != nil &&
		*d.Wire > *d.Status+*d.StatusError+*d.WireError {
		t.Errorf("wire %v is longer than the bracket %v +/- %v allows", *d.Wire, *d.Status, *d.StatusError)
	}
}

func TestMigrate(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode} {
			t.Run(string(mode), func(t *testing.T) {
				src, dst := pair(t, qemu, nil)
				r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst),
					plan.Plan{Mode: mode, MaxBandwidth: 512 << 10}, plan.Options{})
				if err != nil {
					t.Fatal(err)
				}
				wantRecord(t, r)
				if r.Outcome != record.Completed || r.GuestOn != record.Destination {
					t.Errorf("outcome %s, guest on %s", r.Outcome, r.GuestOn)
				}
				if got := state(t, src); got != "postmigrate" {
					t.Errorf("source is %s", got)
				}
				if got := state(t, dst); got != "running" {
					t.Errorf("destination is %s", got)
				}
				var names []record.StageName
				for _, s := range r.Stages {
					names = append(names, s.Name)
				}
				if want := []record.StageName{"initialization", "reservation", "pre-copy", "stop-and-copy", "commitment",
					"activation"}; !slices.Equal(names, want) {
					t.Errorf("stages %v", names)
				}
				d := r.Downtime
				if d.QEMU == nil || d.Wire == nil || d.Status == nil || d.WireError == nil {
					t.Fatalf("downtimes are missing: %+v", d)
				}
				if *d.Wire != r.Stage(record.StopAndCopy).Duration+r.Stage(record.Commitment).Duration+r.Stage(record.Activation).Duration {
					t.Errorf("wire downtime %v is not STOP to RESUME: %+v", *d.Wire, r.Stages)
				}
				if mode == record.StopAndCopyMode {
					if p := r.Stage(record.PreCopy); p.Duration != 0 {
						t.Errorf("pre-copy lasted %v with the guest stopped", p.Duration)
					}
					if len(r.Passes) != 1 || !r.Passes[0].Stopped {
						t.Errorf("passes %+v, want one with the guest stopped", r.Passes)
					}
				} else if n := len(r.Passes); n < 2 || !r.Passes[n-1].Stopped {
					t.Errorf("passes %+v, want the last, and only that, with the guest stopped", r.Passes)
				}
				var bytes int64
				for _, p := range r.Passes {
					if p.Transferred != nil {
						bytes += *p.Transferred
					}
				}
				if math.Abs(float64(bytes-*r.Total.Transferred)) > 0.02*float64(*r.Total.Transferred) {
					t.Errorf("the passes sent %d bytes, the whole is %d", bytes, *r.Total.Transferred)
				}
				if got := r.Parameters["max-bandwidth"]; got != int64(512<<10) {
					t.Errorf("max-bandwidth was read back as %v", got)
				}
				if !r.Capabilities["events"] {
					t.Errorf("events was read back as off")
				}
				if len(r.Samples) == 0 || r.Sampling == nil || r.Sampling.QEMUCPU == nil {
					t.Errorf("no sampling: %d samples, %+v", len(r.Samples), r.Sampling)
				}
			})
		}
	})
}

func TestMigratePausedGuest(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		src, dst := pair(t, qemu, func(a, _ *guest.Spec) { a.Paused = true })
		r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), plan.Plan{}, plan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		wantRecord(t, r)
		if got := state(t, dst); got != "paused" && got != "prelaunch" {
			t.Errorf("a paused guest is %s on the destination", got)
		}
		if r.Downtime.Wire != nil || len(r.Warnings) == 0 {
			t.Errorf("no downtime can be measured, and that is to be said: %+v %q", r.Downtime, r.Warnings)
		}
	})
}

func TestMigrateOptions(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, p := range []plan.Plan{
			{Capabilities: map[string]bool{"return-path": true}},
			{Capabilities: map[string]bool{"pause-before-switchover": true}},
			{Capabilities: map[string]bool{"multifd": true}, Parameters: map[string]string{"multifd-compression": "zstd", "multifd-channels": "3"}},
			{SampleInterval: -1},
			{MaxBandwidth: -1},
		} {
			t.Run(fmt.Sprint(p.Capabilities, p.SampleInterval, p.MaxBandwidth), func(t *testing.T) {
				src, dst := pair(t, qemu, nil)
				r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), p, plan.Options{})
				if err != nil {
					t.Fatal(err)
				}
				wantRecord(t, r)
				for name, on := range p.Capabilities {
					if r.Capabilities[name] != on {
						t.Errorf("%s was read back as %v", name, r.Capabilities[name])
					}
				}
				if got := state(t, dst); got != "running" {
					t.Errorf("destination is %s", got)
				}
				if p.SampleInterval < 0 && (len(r.Samples) > 0 || r.Downtime.Status != nil) {
					t.Errorf("polled although told not to: %d samples", len(r.Samples))
				}
			})
		}
	})
}

// TestOneMonitor migrates over a single monitor a side, as most QEMUs have.
func TestOneMonitor(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		src, dst := pair(t, qemu, nil)
		a, b := connect.Endpoint(src), connect.Endpoint(dst)
		for _, e := range []*endpoint.Endpoint{a, b} {
			e.Events, e.Sampler, e.Process, e.Clock = nil, nil, nil, nil
		}
		r, err := engine.Migrate(within.Context(t), a, b, plan.Plan{MaxBandwidth: 512 << 10}, plan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		wantRecord(t, r)
		if len(r.Samples) == 0 || r.Downtime.Status == nil {
			t.Errorf("%d samples, status %v", len(r.Samples), r.Downtime.Status)
		}
		// Nothing proves that these two run on this machine.
		if r.Downtime.Wire == nil || r.Downtime.WireError != nil ||
			!strings.Contains(fmt.Sprint(r.Warnings), "no error figure") {
			t.Errorf("wire %v, error %v, warnings %q", r.Downtime.Wire, r.Downtime.WireError, r.Warnings)
		}
	})
}

// TestRefused: what this pair would refuse is found before the source is touched, and both are as they were.
func TestRefused(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		taken, err := host.Local().Listen(within.Context(t), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		for _, test := range []struct {
			name   string
			change func(a, b *guest.Spec)
			plan   plan.Plan
			same   bool
			want   string
			dst    string // its state afterwards
		}{
			{name: "other machine", change: func(_, b *guest.Spec) { b.Machine = "pc-i440fx-7.2" }, want: "machine types differ", dst: "inmigrate"},
			{name: "less memory", change: func(_, b *guest.Spec) { b.Memory = 32 << 20 }, want: "start the destination with -m 65536k", dst: "inmigrate"},
			{name: "other vCPUs", change: func(_, b *guest.Spec) { b.VCPUs = 2 }, want: "-smp 1", dst: "inmigrate"},
			{name: "not incoming", change: func(_, b *guest.Spec) { b.Incoming = false }, want: "-incoming defer", dst: "prelaunch"},
			{name: "same QEMU", same: true, want: "are the same QEMU", dst: "inmigrate"},
			{name: "unknown capability", plan: plan.Plan{Capabilities: map[string]bool{"auto-convergence": true}}, want: "did you mean auto-converge?", dst: "inmigrate"},
			{name: "unknown parameter", plan: plan.Plan{Parameters: map[string]string{"multifd-chanels": "2"}}, want: "did you mean multifd-channels?", dst: "inmigrate"},
			{name: "wrong member", plan: plan.Plan{Parameters: map[string]string{"multifd-compression": "lzma"}}, want: `"lzma" is not one of none`, dst: "inmigrate"},
			{name: "port taken", plan: plan.Plan{Listen: "tcp:" + taken.Addr().String()}, want: "listen on tcp:127.0.0.1", dst: "inmigrate"},
			{name: "blocker", change: func(a, _ *guest.Spec) { a.Extra = []string{"-device", "amd-iommu"} }, want: "source cannot migrate", dst: "inmigrate"},
		} {
			t.Run(test.name, func(t *testing.T) {
				src, dst := pair(t, qemu, test.change)
				to := connect.Endpoint(dst)
				if test.same {
					to = connect.Endpoint(src)
					to.Control, to.Events, to.Sampler = to.Events, nil, nil
					from := connect.Endpoint(src)
					from.Events, from.Sampler = nil, nil
					_, err := engine.Migrate(within.Context(t), from, to, test.plan, plan.Options{})
					wantRefusal(t, err, test.want)
					return
				}
				r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), to, test.plan, plan.Options{})
				wantRefusal(t, err, test.want)
				if r.GuestOn != record.Source && r.Error.Stage != record.Initialization {
					t.Errorf("guest on %s", r.GuestOn)
				}
				if got := state(t, src); got != "running" {
					t.Errorf("source is %s", got)
				}
				if got := state(t, dst); got != test.dst {
					t.Errorf("destination is %s, want %s", got, test.dst)
				}
			})
		}
	})
}

func wantRefusal(t *testing.T, err error, text string) {
	t.Helper()
	var stage *record.StageError
	if !errors.As(err, &stage) || !strings.Contains(err.Error(), text) {
		t.Fatalf("error is %v, want a StageError with %q", err, text)
	}
	if stage.Issued {
		t.Errorf("`migrate` was sent before it was refused")
	}
}

// TestCancel cancels at moments all over a slow migration: the guest runs on the source each time, and the destination
// is dead.
func TestCancel(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, after := range []time.Duration{0, 5 * time.Millisecond, 40 * time.Millisecond, 300 * time.Millisecond} {
			for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode} {
				t.Run(fmt.Sprint(mode, after), func(t *testing.T) {
					src, dst := pair(t, qemu, nil)
					ctx, cancel := context.WithCancel(within.Context(t))
					timer := time.AfterFunc(after, cancel)
					defer timer.Stop()
					r, err := engine.Migrate(ctx, connect.Endpoint(src), connect.Endpoint(dst),
						plan.Plan{Mode: mode, MaxBandwidth: slow}, plan.Options{})
					var stage *record.StageError
					if !errors.As(err, &stage) || !errors.Is(err, context.Canceled) {
						t.Fatalf("error is %v", err)
					}
					wantRecord(t, r)
					if stage.Issued && (r.Outcome != record.Cancelled || r.GuestOn != record.Source) {
						t.Errorf("outcome %s, guest on %s: %v", r.Outcome, r.GuestOn, err)
					}
					if got := state(t, src); got != "running" {
						t.Errorf("source is %s after %v", got, err)
					}
					if got := state(t, dst); stage.Issued && got != "dead" {
						t.Errorf("destination is %s", got)
					}
				})
			}
		}
	})
}

func TestTimeout(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		src, dst := pair(t, qemu, nil)
		r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst),
			plan.Plan{MaxBandwidth: slow, Timeout: 200 * time.Millisecond}, plan.Options{})
		if err == nil || !strings.Contains(err.Error(), "not converged within the time-out of 200ms") ||
			r.Outcome != record.Cancelled {
			t.Errorf("error %v, outcome %s", err, r.Outcome)
		}
		if got := state(t, src); got != "running" {
			t.Errorf("source is %s", got)
		}
	})
}

// TestFence: a destination that cannot end by itself, for it is stopped, is dead when a cancelled migration returns,
// and only then may the source run.
func TestFence(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		src, dst := pair(t, qemu, nil)
		ctx, cancel := context.WithCancel(within.Context(t))
		defer cancel()
		stops := newTrigger(got(record.Source, `"status": "active"`), func() {
			_ = dst.Process().Signal(syscall.SIGSTOP)
			cancel()
		})
		options := plan.Options{Logger: slog.New(stops)}
		_, err := engine.Migrate(ctx, connect.Endpoint(src), connect.Endpoint(dst), plan.Plan{MaxBandwidth: slow}, options)
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("error is %v", err)
		}
		select {
		case <-dst.Process().Done():
		default:
			t.Error("the source goes on and the destination is not dead")
			_ = dst.Process().Signal(syscall.SIGCONT)
		}
		if got := state(t, src); got != "running" {
			t.Errorf("source is %s", got)
		}
	})
}
