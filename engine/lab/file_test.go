package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"qmigrate/engine/connect"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/snapshot"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// stateOf is a QEMU's query-status.
func stateOf(t *testing.T, vm *guest.VM) string {
	t.Helper()
	s, err := runState(within.Context(t), new(host.Pool), &vmState{Host: vm.Host().Name(), PID: vm.Process().PID(), Spec: vm.Spec()})
	if errors.Is(err, os.ErrProcessDone) {
		return "dead"
	}
	if err != nil {
		t.Error(err)
	}
	return s
}

// wantNoFile: after a failure there is neither the file nor a part of it.
func wantNoFile(t *testing.T, path string) {
	t.Helper()
	for _, name := range []string{path, path + ".part"} {
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func wantStages(t *testing.T, r *record.Migration) {
	t.Helper()
	sum := r.Total.Wall
	for i, s := range r.Stages {
		if s.Duration < 0 || i > 0 && s.Start != r.Stages[i-1].Start+r.Stages[i-1].Duration {
			t.Errorf("stage %s does not follow: %+v", s.Name, r.Stages)
		}
		sum -= s.Duration
	}
	if sum != 0 {
		t.Errorf("stages miss the wall time by %v: %+v", sum, r.Stages)
	}
}

// busy rewrites most of the checked memory of a test's guest over and over.
func busy() wire.Workload {
	return wire.Workload{Name: "dirty", Params: map[string]string{"rate": "20000/s", "working-set": "32MiB"}}
}

// TestSave saves a busy guest, restores it on the other host, and has its memory checked there; a background save also where it was.
func TestSave(t *testing.T) {
	for _, test := range []struct {
		source, destination string
		file                snapshot.File
	}{
		{"7.2", "7.2", snapshot.File{}},
		{"7.2", "7.2", snapshot.File{Background: true}},
		{"7.2", "10.0", snapshot.File{Continue: true}},
		{"11.1", "10.0", snapshot.File{}},
		{"11.1", "11.1", snapshot.File{Format: snapshot.MappedRAMFormat, Channels: 2}},
		{"11.1", "11.1", snapshot.File{Background: true}},
		{"10.0", "10.0", snapshot.File{Format: snapshot.MappedRAMFormat, Continue: true}},
		{"10.0", "10.0", snapshot.File{Format: snapshot.MappedRAMFormat, Channels: 3, DirectIO: true}},
		{"10.0", "10.0", snapshot.File{Background: true}},
		{"10.0", "7.2", snapshot.File{Background: true}},
	} {
		name := fmt.Sprintf("%s_%s_%s", test.source, test.destination, test.file.Format)
		for text, on := range map[string]bool{"_background": test.file.Background, "_direct": test.file.DirectIO, "_continue": test.file.Continue} {
			if on {
				name += text
			}
		}
		t.Run(name, func(t *testing.T) {
			l := newLab(t, Spec{SourceQEMU: guesttest.QEMU(t, test.source), DestinationQEMU: guesttest.QEMU(t, test.destination), Workload: busy()})
			f := test.file
			f.Path = filepath.Join(directDir(t), "guest")
			rec, err := l.Save(within.Context(t), plan.Plan{MaxBandwidth: -1, AllowUnsafe: true}, f, plan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			wantStages(t, rec)
			want := "postmigrate"
			if f.Background || f.Continue {
				want = "running"
				if c := rec.MemoryCheck; c == nil || c.PagesChecked < 10000 || c.PagesWrong != 0 {
					t.Errorf("memory check on the source %+v; warnings %q", c, rec.Warnings)
				}
			}
			if got := stateOf(t, l.source); got != want || rec.Saved.RunState != want || rec.GuestOn != record.Source || rec.Outcome != record.Completed {
				t.Errorf("source is %s, %+v, guest on %s, %s; want %s", got, rec.Saved, rec.GuestOn, rec.Outcome, want)
			}
			info, err := os.Stat(f.Path)
			if err != nil || rec.Saved.Size == nil || *rec.Saved.Size != info.Size() || *rec.Saved.Allocated < sent(rec)/2 {
				t.Errorf("file %v, %v; record %+v", info, err, rec.Saved)
			}
			if _, err := os.Lstat(f.Path + ".part"); err == nil {
				t.Error("the part is still there")
			}
			if x := rec.Snapshot; f.Background != (x != nil) {
				t.Errorf("snapshot %+v", x)
			} else if x != nil {
				if x.Stopped == nil || x.Stall == nil || x.StallGuest == nil || x.Duration > rec.Stage(record.Snapshot).Duration || *x.Stopped > x.Duration {
					t.Errorf("snapshot %+v; warnings %q", x, rec.Warnings)
				} else {
					t.Logf("snapshot in %v, guest stopped %v, longest gap between beats %v, longest the guest saw %v", x.Duration, *x.Stopped, *x.Stall, *x.StallGuest)
				}
			}
			for _, name := range []string{"background-snapshot", "mapped-ram", "multifd"} {
				if capabilitiesOf(t, l.source)[name] {
					t.Errorf("%s was left on", name)
				}
			}
			t.Logf("%d MiB in %v, file %d MiB", sent(rec)>>20, rec.Total.Wall, *rec.Saved.Allocated>>20)

			if err := l.source.Kill(within.Context(t)); err != nil { // the restored guest has the same address
				t.Fatal(err)
			}
			back, err := l.Restore(within.Context(t), plan.Plan{},
				snapshot.File{Path: f.Path, Channels: f.Channels, DirectIO: f.DirectIO}, plan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			wantStages(t, back)
			wantMoved(t, back)
			if got := stateOf(t, l.destination); got != "running" || back.Saved.RunState != "running" || back.Saved.Format != rec.Saved.Format || back.QEMU.Machine == "" {
				t.Errorf("destination is %s, %+v, %+v", got, back.Saved, back.QEMU)
			}
			if !strings.Contains(strings.Join(back.Warnings, "\n"), "a second one") {
				t.Errorf("warnings %q", back.Warnings)
			}
		})
	}
}

// directDir is a folder whose file system has O_DIRECT.
func directDir(t *testing.T) string {
	dir := t.TempDir()
	f, err := os.OpenFile(filepath.Join(dir, "x"), os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o600)
	if err != nil {
		guesttest.Unable(t, "the folder for temporary files has no O_DIRECT: ", err)
	}
	f.Close()
	return dir
}

func capabilitiesOf(t *testing.T, vm *guest.VM) map[string]bool {
	t.Helper()
	f, err := facts.Inspect(within.Context(t), connect.Endpoint(vm), plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return f.Capabilities
}

// TestSaveFails: a disk that is full in the middle leaves no file, and a guest that runs on with its memory right.
func TestSaveFails(t *testing.T) {
	for _, test := range []struct {
		qemu string
		file snapshot.File
	}{
		{"7.2", snapshot.File{}},
		{"11.1", snapshot.File{}},
		{"10.0", snapshot.File{Background: true}},
		{"11.1", snapshot.File{Background: true}},
		{"10.0", snapshot.File{Format: snapshot.MappedRAMFormat}},
		{"11.1", snapshot.File{Format: snapshot.MappedRAMFormat, Channels: 2}},
	} {
		t.Run(fmt.Sprintf("%s_%s_%t_%d", test.qemu, test.file.Format, test.file.Background, test.file.Channels), func(t *testing.T) {
			l := newLab(t, Spec{SourceQEMU: guesttest.QEMU(t, test.qemu), DestinationQEMU: guesttest.QEMU(t, test.qemu), Workload: busy()})
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
				guesttest.Unable(t, "mount a small disk: ", err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			f := test.file
			f.Path = filepath.Join(dir, "guest")
			rec, err := l.Save(within.Context(t), plan.Plan{MaxBandwidth: -1}, f, plan.Options{})
			var stage *record.StageError
			if !errors.As(err, &stage) || stage.Guest != record.Source || !stage.Issued || rec.Outcome != record.Failed {
				t.Fatalf("error %v, outcome %s", err, rec.Outcome)
			}
			t.Log(err)
			wantStages(t, rec)
			wantNoFile(t, f.Path)
			if got := stateOf(t, l.source); got != "running" {
				t.Errorf("source is %s", got)
			}
			if c := rec.MemoryCheck; c == nil || c.PagesChecked < 10000 || c.PagesWrong != 0 {
				t.Errorf("memory check on the source %+v; warnings %q", c, rec.Warnings)
			}
		})
	}
}

// TestSaveCancelled cancels in the middle: as soon as QEMU says that it has written something.
func TestSaveCancelled(t *testing.T) {
	for _, test := range []struct {
		qemu string
		file snapshot.File
	}{
		{"7.2", snapshot.File{}},
		{"11.1", snapshot.File{}},
		{"10.0", snapshot.File{Background: true}},
		{"11.1", snapshot.File{Background: true}},
		{"10.0", snapshot.File{Format: snapshot.MappedRAMFormat, Channels: 2}},
		{"11.1", snapshot.File{Format: snapshot.MappedRAMFormat, Channels: 2}},
	} {
		t.Run(fmt.Sprintf("%s_%s_%t", test.qemu, test.file.Format, test.file.Background), func(t *testing.T) {
			l := newLab(t, Spec{SourceQEMU: guesttest.QEMU(t, test.qemu), DestinationQEMU: guesttest.QEMU(t, test.qemu), Workload: busy()})
			ctx, cancel := context.WithCancel(within.Context(t))
			defer cancel()
			f := test.file
			f.Path = filepath.Join(t.TempDir(), "guest")
			rec, err := l.Save(ctx, plan.Plan{MaxBandwidth: 4 << 20}, f, plan.Options{Sampled: func(s record.Sample) {
				if s.Transferred != nil && *s.Transferred > 0 {
					cancel()
				}
			}})
			if err == nil && f.Background { // nothing slows it down: it may have been done before QEMU heard of it
				t.Skip("it was written before it could be cancelled")
			}
			if !errors.Is(err, context.Canceled) || rec.Outcome != record.Cancelled || rec.GuestOn != record.Source {
				t.Fatalf("error %v, outcome %s, guest on %s", err, rec.Outcome, rec.GuestOn)
			}
			wantStages(t, rec)
			wantNoFile(t, f.Path)
			if got := stateOf(t, l.source); got != "running" {
				t.Errorf("source is %s", got)
			}
			if c := rec.MemoryCheck; c == nil || c.PagesWrong != 0 {
				t.Errorf("memory check on the source %+v; warnings %q", c, rec.Warnings)
			}
		})
	}
}

// start starts a QEMU without a lab, which sits in its firmware or waits.
func start(t *testing.T, qemu string, change func(*guest.Spec)) *guest.VM {
	t.Helper()
	s := guest.Spec{Name: "x", QEMU: qemu, Memory: 64 << 20, Dir: filepath.Join(guesttest.Dir(t), "x")}
	if change != nil {
		change(&s)
	}
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

func waiting(s *guest.Spec) { s.Incoming, s.Paused = true, true }

// TestFileRefused: what cannot be is refused before anything is touched, with what to do.
func TestFileRefused(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		old := strings.Contains(t.Name(), "7.2")
		vm := start(t, qemu, nil)
		dir := t.TempDir()
		saved := filepath.Join(dir, "saved")
		save := func(f snapshot.File, p plan.Plan) error {
			r, err := snapshot.Save(within.Context(t), connect.Endpoint(vm), p, f, plan.Options{})
			if err != nil && r.Error.Stage != record.Initialization {
				t.Errorf("%+v was refused in %s", f, r.Error.Stage)
			}
			return err
		}
		wants := map[*snapshot.File]string{
			{Path: "guest"}:                "absolute path",
			{Path: dir + "/none/guest"}:    "none/guest.part: no such file or directory",
			{Path: saved, Format: "qcow2"}: `format "qcow2"`,
			{Path: saved, DirectIO: true}:  "are for mapped-ram",
			{Path: saved, Background: true, Channels: 2, Format: snapshot.MappedRAMFormat}: "one thread",
		}
		if !old {
			wants[&snapshot.File{Path: saved, Format: snapshot.MappedRAMFormat, Background: true}] = "cannot be loaded"
		} else {
			wants[&snapshot.File{Path: saved, Background: true}] = "stops the guest and its QEMU 7.2"
			wants[&snapshot.File{Path: saved, Format: snapshot.MappedRAMFormat}] = "QEMU 9.0 and newer have it"
		}
		for f, want := range wants {
			var stage *record.StageError
			r, err := snapshot.Save(within.Context(t), connect.Endpoint(vm), plan.Plan{}, *f, plan.Options{})
			if !errors.As(err, &stage) || !strings.Contains(err.Error(), want) || stage.Issued {
				t.Errorf("%+v: %v, want %q", f, err, want)
			}
			wantNoFile(t, f.Path)
			if r == nil || r.Saved == nil {
				t.Errorf("%+v left no record", f)
			}
		}
		if err := save(snapshot.File{Path: saved}, plan.Plan{Tunnel: plan.TLSTunnel}); err == nil || !strings.Contains(err.Error(), "a file has no other end") {
			t.Errorf("a tunnel into a file: %v", err)
		}
		if err := save(snapshot.File{Path: saved}, plan.Plan{Capabilities: map[string]bool{"multifd": true}}); err == nil || !strings.Contains(err.Error(), "multifd needs several connections") {
			t.Errorf("multifd into one stream: %v", err)
		}
		if got := stateOf(t, vm); got != "running" {
			t.Errorf("source is %s", got)
		}

		if err := save(snapshot.File{Path: saved}, plan.Plan{MaxBandwidth: -1}); err != nil {
			t.Fatal(err)
		}
		if err := save(snapshot.File{Path: saved}, plan.Plan{}); err == nil || !strings.Contains(err.Error(), "never written over") {
			t.Errorf("over a saved guest: %v", err)
		}
		if err := save(snapshot.File{Path: saved + "2"}, plan.Plan{}); err == nil || !strings.Contains(err.Error(), "postmigrate") {
			t.Errorf("a guest that was saved already: %v", err)
		}
		text, half := filepath.Join(dir, "text"), filepath.Join(dir, "half")
		whole, err := os.ReadFile(saved)
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{text: []byte("hello, world\n"), half: whole[:len(whole)/2]} {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, test := range []struct {
			path   string
			change func(*guest.Spec)
			file   snapshot.File
			want   string
			after  string // the destination's state
		}{
			{path: dir + "/none", want: "no such file", after: "inmigrate"},
			{path: dir, want: "no regular file", after: "inmigrate"},
			{path: text, want: "not a guest that QEMU saved", after: "inmigrate"},
			{path: half, want: "as it was", after: "dead"},
			{path: saved, change: func(s *guest.Spec) { s.Memory = 128 << 20 }, want: "-m 65536k", after: "inmigrate"},
			{path: saved, change: func(s *guest.Spec) { s.Machine = "pc-i440fx-7.2" }, want: "-machine pc-q35-7.2", after: "inmigrate"},
			{path: saved, change: func(s *guest.Spec) { s.Incoming = false }, want: "-incoming defer", after: "prelaunch"},
			{path: saved, file: snapshot.File{Format: snapshot.MappedRAMFormat}, want: "has format stream", after: "inmigrate"},
			{path: saved, file: snapshot.File{Channels: 2}, want: "are for mapped-ram", after: "inmigrate"},
			{path: saved, file: snapshot.File{Paused: true}, after: "paused"},
		} {
			dst := start(t, qemu, func(s *guest.Spec) {
				waiting(s)
				if test.change != nil {
					test.change(s)
				}
			})
			test.file.Path = test.path
			r, err := snapshot.Restore(within.Context(t), connect.Endpoint(dst), plan.Plan{}, test.file, plan.Options{})
			if (err == nil) != (test.want == "") || err != nil && (!strings.Contains(err.Error(), test.want) || r.GuestOn != record.File && r.GuestOn != record.Unknown) {
				t.Errorf("%s: %v, want %q; guest on %s", filepath.Base(test.path), err, test.want, r.GuestOn)
			}
			if err != nil {
				t.Log(err)
			}
			if got := stateOf(t, dst); got != test.after {
				t.Errorf("%s: destination is %s, want %s", filepath.Base(test.path), got, test.after)
			}
		}
	})
}

// sent is what went into the file, by QEMU's count; 0 if it did not say.
func sent(r *record.Migration) int64 {
	if r.Total.Transferred == nil {
		return 0
	}
	return *r.Total.Transferred
}
