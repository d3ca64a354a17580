package lab

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/record"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet"
)

func TestCheckHardware(t *testing.T) {
	shared, err := storage.Parse("shared")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []Spec{
		{}, {CPUCap: 25}, {CPUCap: 200, Guest: guest.Spec{NIC: guest.NIC{Model: "e1000"}}},
		{Guest: guest.Spec{DiskBus: "ahci"}, Storage: shared}, {Guest: guest.Spec{DiskBus: "virtio-blk"}},
	} {
		if err := s.CheckHardware(); err != nil {
			t.Error(err)
		}
	}
	for want, s := range map[string]Spec{
		`network card "x": have virtio-net, e1000`:              {Guest: guest.Spec{NIC: guest.NIC{Model: "x"}}},
		`disk bus "ide": have virtio-blk, virtio-scsi, ahci`:    {Guest: guest.Spec{DiskBus: "ide"}, Storage: shared},
		"disk bus ahci: the guest has no disks":                 {Guest: guest.Spec{DiskBus: "ahci"}},
		"CPU cap of 5%: the kernel's least quota is 1ms, which": {CPUCap: 5},
		"CPU cap of -1%": {CPUCap: -1},
	} {
		err := s.CheckHardware()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		if l, upErr := Up(t.Context(), s); upErr == nil || upErr.Error() != err.Error() {
			t.Errorf("Up says %v, CheckHardware %v", upErr, err)
			if l != nil {
				l.Close()
			}
		}
	}
	needRoot(t)
	_, err = Up(t.Context(), Spec{Owner: fmt.Sprintf("test-%d", os.Getpid()), SourceQEMU: guesttest.QEMU(t, "10.0"), DestinationQEMU: guesttest.QEMU(t, "7.2"), Guest: guest.Spec{Machine: "pc-q35-10.0"}})
	if err == nil || !strings.Contains(err.Error(), `machine "pc-q35-10.0": the QEMUs have `) || strings.Contains(err.Error(), "10.0,") || !strings.Contains(err.Error(), "7.2") {
		t.Errorf("a machine that the destination does not have: %v", err)
	}
}

// everyHardware is whether every migration below is tried, or a few.
func everyHardware() bool { return os.Getenv("QMIGRATE_HARDWARE") == "1" }

// TestHardware migrates guests with each network card and each disk bus between both QEMUs, both ways: nothing of their memory and no acknowledged write is
// lost, and their connection holds. QMIGRATE_HARDWARE=1 tries every combination; without it two have all the rest.
func TestHardware(t *testing.T) {
	needRoot(t)
	if _, err := debian.Find(debian.Generic); err != nil {
		guesttest.Unable(t, err, ": `make deps` gets it")
	}
	shared, err := storage.Parse("shared")
	if err != nil {
		t.Fatal(err)
	}
	type hardware struct {
		nic, bus, machine, from, to string
		vcpus                       int
	}
	trials := []hardware{
		{"e1000", guest.AHCI, "pc-i440fx-7.2", "7.2", "10.0", 2},
		{"vmxnet3", guest.VirtioSCSI, "pc-q35-7.1", "10.0", "7.2", 1},
	}
	if everyHardware() {
		trials = nil
		for _, machine := range []string{"pc-q35-7.2", "pc-i440fx-7.2"} {
			for _, nic := range guest.NICs() {
				for _, bus := range guest.DiskBuses() {
					trials = append(trials, hardware{nic, bus, machine, "7.2", "10.0", 1}, hardware{nic, bus, machine, "10.0", "7.2", 2})
				}
			}
		}
	}
	for _, x := range trials {
		t.Run(fmt.Sprintf("%s %s %s %s to %s", x.nic, x.bus, x.machine, x.from, x.to), func(t *testing.T) {
			l, err := Up(t.Context(), Spec{Owner: fmt.Sprintf("test-%d", os.Getpid()), SourceQEMU: guesttest.QEMU(t, x.from), DestinationQEMU: guesttest.QEMU(t, x.to), Accelerator: "tcg",
				Storage: shared, Guest: guest.Spec{Machine: x.machine, VCPUs: x.vcpus, NIC: guest.NIC{Model: x.nic}, DiskBus: x.bus}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}()
			rec, err := l.Migrate(t.Context(), engine.Plan{Mode: record.PreCopyMode}, engine.Options{})
			if err != nil {
				t.Fatal(err)
			}
			wantDisks(t, rec)
			if q := rec.QEMU; rec.GuestOn != record.Destination || q.NIC != x.nic || q.DiskBus != x.bus || q.Machine != x.machine || q.VCPUs != x.vcpus || q.Accelerator != "tcg" || q.MemoryBytes == 0 {
				t.Errorf("the guest is on %s, its hardware %+v", rec.GuestOn, q)
			}
			if n := rec.Network; n == nil || n.TCPSurvived == nil || !*n.TCPSurvived {
				t.Errorf("network %+v; warnings %q", n, rec.Warnings)
			}
		})
	}
}

// withCap is a lab whose guest works as fast as it can under a cap.
func withCap(t *testing.T, percent, vcpus int, workload wire.Workload) *Lab {
	t.Helper()
	needRoot(t)
	l, err := Up(t.Context(), Spec{Owner: fmt.Sprintf("test-%d", os.Getpid()), SourceQEMU: guesttest.QEMU(t, "10.0"), DestinationQEMU: guesttest.QEMU(t, "10.0"), Accelerator: "tcg",
		CPUCap: percent, Workload: workload, Guest: guest.Spec{VCPUs: vcpus, Memory: 128 << 20}})
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err) // a machine without control groups that may be written
	}
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

// TestCPUCap: a cap holds the vCPUs of both sides, before and after the migration, and nothing else of QEMU; a lab that was left takes its groups with it.
func TestCPUCap(t *testing.T) {
	l := withCap(t, 40, 2, wire.Workload{Name: "dirty", Params: map[string]string{"rate": "0/s", "working-set": "1MiB"}})
	for _, vm := range []*guest.VM{l.source, l.destination} {
		c := l.cap(l.hostOf(vm))
		quota, period, err := c.Quota()
		if err != nil || 100*quota != 40*period || period != hostnet.CPUCapPeriod {
			t.Errorf("the kernel has a quota of %v in %v, %v", quota, period, err)
		}
		threads, err := vcpus(t.Context(), vm)
		if s := c.Spec(); err != nil || len(threads) != 2 || !slices.Equal(s.Threads, threads) || s.PID != vm.Process().PID() || slices.Contains(threads, s.PID) {
			t.Errorf("the cap is %+v, the vCPUs are the threads %v, %v", s, threads, err)
		}
	}
	rec, err := l.Migrate(t.Context(), engine.Plan{Mode: record.PreCopyMode, DowntimeLimit: time.Second}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := rec.CPUCap
	if c == nil || c.Percent != 40 || c.Period != hostnet.CPUCapPeriod || c.Source == nil || c.Destination == nil {
		t.Fatalf("cap %+v; warnings %q", c, rec.Warnings)
	}
	if c.Source.Throttled == 0 || c.Source.Throttled > c.Source.Periods || c.Source.Stood == 0 || c.Source.Used == 0 {
		t.Errorf("on the source %+v", c.Source)
	}
	// More than the quota in each period would be a cap that does not hold. A thread may overrun by a tick and pays for it later: hence some periods more.
	if most := time.Duration(c.Source.Periods+5) * c.Period * 40 / 100; c.Source.Used > most {
		t.Errorf("the vCPUs used %v on the source, at most %v were allowed: %+v", c.Source.Used, most, c.Source)
	}
	if m := rec.MemoryCheck; m == nil || m.PagesWrong != 0 || rec.GuestOn != record.Destination {
		t.Errorf("memory %+v, the guest is on %s", m, rec.GuestOn)
	}
	after, err := l.cap(l.hostOf(l.destination)).Usage()
	if err != nil || after.Throttled == 0 || after.Used == 0 {
		t.Errorf("on the destination %+v, %v", after, err)
	}
	if err := l.Leave(); err != nil {
		t.Fatal(err)
	}
	removed, err := Down(t.Context(), l.spec.Owner)
	if err != nil {
		t.Fatal(err)
	}
	groups := 0
	for _, r := range removed {
		if strings.HasPrefix(r, "CPU cap ") {
			groups++
		}
	}
	if groups != 2 {
		t.Errorf("removed %q: want both groups", removed)
	}
}
