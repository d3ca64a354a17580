package lab

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/lab/observe"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/image"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/cpucap"
	"qmigrate/hostnet/host"
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
		"disk-bus \"ahci\": the guest has no disks":             {Guest: guest.Spec{DiskBus: "ahci"}},
		"CPU cap of 4%: the kernel's least quota is 1ms, which": {CPUCap: 4},
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
		{"e1000", guest.AHCI, "pc-i440fx-7.2", "7.2", "11.1", 2},
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
				Storage: shared, Fill: enough, Guest: guest.Spec{Machine: x.machine, VCPUs: x.vcpus, NIC: guest.NIC{Model: x.nic}, DiskBus: x.bus}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}()
			rec, err := l.Migrate(t.Context(), plan.Plan{Mode: record.PreCopyMode}, plan.Options{})
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
		t.Skipf("this machine has no control group for processor time that may be written, so there is no cap to look at: %v", err)
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
		if err != nil || 100*quota != 40*period || period != cpucap.DefaultPeriod {
			t.Errorf("the kernel has a quota of %v in %v, %v", quota, period, err)
		}
		threads, err := vcpus(t.Context(), vm)
		if s := c.Spec(); err != nil || len(threads) != 2 || !slices.Equal(s.Threads, threads) || s.PID != vm.Process().PID() || slices.Contains(threads, s.PID) {
			t.Errorf("the cap is %+v, the vCPUs are the threads %v, %v", s, threads, err)
		}
	}
	// On a busy machine the vCPUs may get less than their quota for a while. Then nothing holds them.
	held := func(vm *guest.VM) {
		t.Helper()
		for late := time.Now().Add(within.Limit); ; time.Sleep(10 * time.Millisecond) {
			u, err := l.cap(l.hostOf(vm)).Usage()
			if err == nil && u.Throttled > 0 && u.Used > 0 {
				return
			}
			if err != nil || time.Now().After(late) {
				t.Fatalf("the cap never held the vCPUs: %+v, %v", u, err)
			}
		}
	}
	held(l.source)
	rec, err := l.Migrate(t.Context(), plan.Plan{Mode: record.PreCopyMode, DowntimeLimit: time.Second}, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := rec.CPUCap
	if c == nil || c.Percent != 40 || c.Period != cpucap.DefaultPeriod || c.Source == nil || c.Destination == nil {
		t.Fatalf("cap %+v; warnings %q", c, rec.Warnings)
	}
	if c.Source.Throttled > c.Source.Periods || (c.Source.Throttled == 0) != (c.Source.Stood == 0) || c.Source.Used == 0 {
		t.Errorf("on the source %+v", c.Source)
	}
	// More than the quota in each period would be a cap that does not hold. A thread may overrun by a tick and pays for it later: hence some periods more.
	if most := time.Duration(c.Source.Periods+5) * c.Period * 40 / 100; c.Source.Used > most {
		t.Errorf("the vCPUs used %v on the source, at most %v were allowed: %+v", c.Source.Used, most, c.Source)
	}
	if m := rec.MemoryCheck; m == nil || m.PagesWrong != 0 || rec.GuestOn != record.Destination {
		t.Errorf("memory %+v, the guest is on %s", m, rec.GuestOn)
	}
	held(l.destination)
	if err := l.Leave(); err != nil {
		t.Fatal(err)
	}
	removed, err := Down(t.Context(), new(host.Pool), l.spec.Owner)
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

// capWindow is how long each cell of TestCPUCapRates is watched.
const capWindow = time.Second

// TestCPUCapRates is the campaign behind docs/hardware.md: the workloads' rates under caps of 25 to 200 % in steps of 25, on 1 and 2 vCPUs. QMIGRATE_CAPS=1
// runs it, for some minutes, on a machine that has nothing else to do: each cell is the best of several windows, for other work can only lower it. A rate is
// in percent of what the workload does in one second of a processor's time without a limit that it could feel. The test fails where it is more than 3
// points from the cap or, past what the workload can use, from all that it can use.
func TestCPUCapRates(t *testing.T) {
	if os.Getenv("QMIGRATE_CAPS") != "1" {
		t.Skip("rates say something of a cap on a quiet machine alone, and take 5 minutes: QMIGRATE_CAPS=1 runs it; TestCPUCap looks at the cap itself")
	}
	const rounds, points = 3, 3
	const period = 100 * time.Millisecond // with the default each of five times as many standstills costs the guest about 1 ms of its work
	percents := []int{25, 50, 75, 100, 125, 150, 175, 200}
	var table strings.Builder
	fmt.Fprintf(&table, "| vCPUs | workload | busy vCPUs | in a second of processor time |")
	for _, p := range percents {
		fmt.Fprintf(&table, " %d %% |", p)
	}
	table.WriteString("\n")
	for cpus := 1; cpus <= 2; cpus++ {
		l := withCap(t, 100, cpus, wire.Workload{Name: "idle"})
		if err := l.lift(l.hostOf(l.source)); err != nil {
			t.Fatal(err)
		}
		threads, err := vcpus(t.Context(), l.source)
		if err != nil {
			t.Fatal(err)
		}
		// A weight before which all else on this machine waits: the limit is to be seen, and not what others leave.
		c, err := cpucap.Spec{Owner: l.spec.Owner, Host: l.hostOf(l.source), PID: l.source.Process().PID(), Threads: threads,
			Percent: 100, Weight: 100, Period: period}.Apply(t.Context(), l.source.Host())
		if err != nil {
			t.Fatal(err)
		}
		// The observers' own price is the same at each cap, so that it takes a greater share of a small one: docs/timeline.md has it.
		if err := l.agent.Call(t.Context(), wire.DoBeat, wire.BeatSet{Interval: record.Of(time.Duration(0))}, nil); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"dhrystone", "livermore:span=short", "linpack", fmt.Sprintf("dirty:rate=0/s,working-set=1MiB,vcpus=%d", cpus)} {
			w, err := wire.ParseWorkload(text)
			if err != nil {
				t.Fatal(err)
			}
			busy := 1
			if w.Name == "dirty" {
				busy = cpus
			}
			var stopped wire.Status
			if err := l.agent.Call(t.Context(), wire.DoWorkloadStop, wire.Bins{Max: -1}, &stopped); err != nil {
				t.Fatal(err)
			}
			if err := l.agent.Call(t.Context(), wire.DoWorkloadStart, w, nil); err != nil {
				t.Fatal(err)
			}
			rate, used, full := map[int]float64{}, map[int]float64{}, 0.0
			for range rounds {
				for _, i := range rand.Perm(len(percents)) {
					p := percents[i]
					if err := c.Set(p); err != nil {
						t.Fatal(err)
					}
					time.Sleep(5 * period)
					r, u := l.watchRate(t, c)
					rate[p], used[p] = max(rate[p], r), max(used[p], u)
					if p == 200 {
						full = max(full, 100*r/u)
					}
				}
			}
			var rates, times strings.Builder
			fmt.Fprintf(&rates, "| %d | %s | %d | %.3g events/s |", cpus, w.Name, busy, full)
			fmt.Fprintf(&times, "| | processor time | | |")
			for _, p := range percents {
				got, want := 100*rate[p]/full, float64(min(p, 100*busy))
				fmt.Fprintf(&rates, " %.1f |", got)
				fmt.Fprintf(&times, " %.1f |", used[p])
				if math.Abs(got-want) > points {
					t.Errorf("%s on %d vCPUs, cap %d %%: %.1f %% of what it does in a second of processor time, want %.0f within %d points", w.Name, cpus, p, got, want, points)
				}
			}
			fmt.Fprintf(&table, "%s\n%s\n", &rates, &times)
		}
		if err := errors.Join(c.Close(), l.Close()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("rate, and processor time, in percent of one processor; period %v\n%s", period, &table)
}

// watchRate is the workload's events per second, and its vCPUs' processor time in percent of one processor, over a window.
func (l *Lab) watchRate(t *testing.T, c *cpucap.Cap) (rate, used float64) {
	t.Helper()
	look := func() (observe.Progress, time.Duration, time.Time) {
		p, err := observe.Look(t.Context(), l.agent)
		if err != nil {
			t.Fatal(err)
		}
		u, err := c.Usage()
		if err != nil {
			t.Fatal(err)
		}
		return p, u.Used, time.Now()
	}
	before, usedBefore, at := look()
	time.Sleep(capWindow)
	after, usedAfter, end := look()
	return float64(after.Events-before.Events) / after.Answered.Sub(before.Answered).Seconds(),
		100 * float64(usedAfter-usedBefore) / float64(end.Sub(at))
}

// TestHardwareRates is study L's tables as far as this host can: what KVM makes of the guest's processor, and each card of its throughput; and how long a
// guest with each takes to boot. QMIGRATE_HARDWARE=1 runs it. A figure is the best of some windows, for other work can only lower it.
func TestHardwareRates(t *testing.T) {
	if !everyHardware() {
		t.Skip("rates say something of hardware on a quiet machine alone, and take minutes: QMIGRATE_HARDWARE=1 runs it; TestHardware migrates each kind")
	}
	needRoot(t)
	up := func(accelerator, nic string, image image.Spec, workload string) (*Lab, error) {
		w, err := wire.ParseWorkload(workload)
		if err != nil {
			t.Fatal(err)
		}
		return Up(t.Context(), Spec{Owner: fmt.Sprintf("test-%d", os.Getpid()), SourceQEMU: guesttest.QEMU(t, "10.0"), DestinationQEMU: guesttest.QEMU(t, "10.0"),
			Accelerator: accelerator, Workload: w, Image: image, Guest: guest.Spec{NIC: guest.NIC{Model: nic}}})
	}
	var table strings.Builder
	for _, accelerator := range []string{"kvm", "tcg"} {
		l, err := up(accelerator, "", image.Spec{}, "dhrystone")
		if refused := new(guest.AcceleratorError); errors.As(err, &refused) {
			fmt.Fprintf(&table, "%s: not here: %v\n", accelerator, err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&table, "%s: %.4g %s\n", accelerator, l.bestRate(t, time.Second), "Dhrystones/s")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, nic := range guest.NICs() {
		boot := time.Duration(math.MaxInt64)
		for range 3 {
			l, err := up("tcg", nic, image.Spec{}, "idle")
			if err != nil {
				t.Fatal(err)
			}
			boot = min(boot, l.hello.Ready)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		fmt.Fprintf(&table, "%s: ready after %.2f s on the guest's clock;", nic, boot.Seconds())
		for _, direction := range []string{"send", "receive"} {
			l, err := up("tcg", nic, image.Spec{Guest: wire.DebianGuest}, "iperf3:direction="+direction)
			if err != nil {
				t.Fatal(err)
			}
			rate := l.bestRate(t, 3*time.Second)
			if rate == 0 {
				t.Errorf("%s: nothing was %s", nic, direction)
			}
			fmt.Fprintf(&table, " %s %.3g Gbit/s", direction, 8*rate/1e9)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		table.WriteString("\n")
	}
	t.Logf("\n%s", &table)
}

// bestRate is the workload's events per second in the best of four windows.
func (l *Lab) bestRate(t *testing.T, window time.Duration) (rate float64) {
	t.Helper()
	time.Sleep(window) // it has begun
	for range 4 {
		before, err := observe.Look(t.Context(), l.agent)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(window)
		after, err := observe.Look(t.Context(), l.agent)
		if err != nil {
			t.Fatal(err)
		}
		rate = max(rate, float64(after.Events-before.Events)/after.Answered.Sub(before.Answered).Seconds())
	}
	return rate
}
