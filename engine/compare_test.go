package engine_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/plan"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// machineArgs are those of a machine with a bit of everything; a story changes one word of them on the destination.
const machineArgs = `-smp 2,sockets=2,cores=1
-netdev user,id=net -device virtio-net-pci,id=nic,netdev=net,mac=52:54:00:00:00:01,addr=0x5
-drive if=none,id=disk,file=DISK,format=raw -device virtio-blk-pci,id=vda,drive=disk,addr=0x6
-device pcie-root-port,id=rp,addr=0x7,chassis=1 -device virtio-rng-pci,bus=rp
-device usb-ehci,id=usb,addr=0x8 -device usb-tablet,bus=usb.0
-device virtio-scsi-pci,id=scsi,addr=0x9 -drive if=none,id=cd,file=CD,format=raw,media=cdrom -device scsi-cd,drive=cd,bus=scsi.0,lun=1
-device VGA,addr=0xa`

// pairVM starts one side of a pair.
func pairVM(t *testing.T, version, name, machine, cpu, args string) *guest.VM {
	t.Helper()
	dir := guesttest.Dir(t)
	words := strings.Fields(args)
	for i, word := range words {
		words[i] = strings.ReplaceAll(word, "DIR/", dir+"/")
	}
	for _, disk := range []struct {
		name string
		size int64
	}{{"disk", 8 << 20}, {"larger", 9 << 20}, {"cd", 4 << 20}} {
		if err := os.WriteFile(filepath.Join(dir, disk.name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, disk.name), disk.size); err != nil {
			t.Fatal(err)
		}
	}
	vm, err := guest.Start(within.Context(t), host.Local(), guest.Spec{
		// the odd size is for 7.2, see guest.SafeMemory
		Name: name, QEMU: guesttest.QEMU(t, version), Machine: machine, CPU: cpu, Memory: 32<<20 + 8<<10,
		Dir: filepath.Join(dir, name), Incoming: name == "b", Paused: true, Extra: words,
	})
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

func inspectVM(t *testing.T, vm *guest.VM) *facts.Facts {
	t.Helper()
	f, err := facts.Inspect(within.Context(t), connect.Endpoint(vm), plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// raw migrates with plain QMP and without any check, and returns what QEMU came to say: the state on the source and
// what the destination wrote to its log.
func raw(t *testing.T, src, dst *guest.VM) (status, said string) {
	t.Helper()
	ctx := within.Context(t)
	monitor := func(vm *guest.VM) *qmp.Conn {
		c, err := qmp.Dial(ctx, "unix", vm.Spec().Socket(guest.Control), qmp.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	a, b := monitor(src), monitor(dst)
	uri := "unix:" + filepath.Join(dst.Spec().Dir, "m")
	if err := b.MigrateIncoming(ctx, uri); err != nil {
		t.Fatal(err)
	}
	if err := a.Migrate(ctx, uri); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		info, err := a.QueryMigrate(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if status = info.Status; status == "completed" || status == "failed" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the raw migration is %s after a minute", status)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		info, err := b.QueryMigrate(ctx) // a destination that refuses ends
		if err != nil {
			status = "failed"
			break
		}
		if info.Status == "completed" || info.Status == "failed" {
			status = info.Status
			break
		}
	}
	log, err := os.ReadFile(dst.Spec().Socket("log"))
	if err != nil {
		t.Fatal(err)
	}
	return status, string(log)
}

// Pairs that differ in one thing. What Compare says is held against what QEMU itself comes to say when it is let: where
// it refuses, so must we, and where it migrates (later is "") we have to know why we refuse all the same.
func TestComparePairs(t *testing.T) {
	for _, c := range []struct {
		name, from, to string // the words of machineArgs that change
		cpu            string
		want           string // Compare's problem
		doubt          string // or Doubts'
		mend           string
		later          string // QEMU's own words on the destination, later; "" if it says none and the guest is another one
	}{
		{name: "same"},
		{name: "device missing", from: "-device virtio-rng-pci,bus=rp", to: "",
			want: "device virtio-rng-pci at PCI address 07.0/00.0 is missing on the destination", mend: "start the destination with -device virtio-rng-pci, with the source's options and address",
			later: "Unknown savevm section or instance '0000:00:07.0:00.0/virtio-rng'"},
		{name: "bridge missing", from: "-device pcie-root-port,id=rp,addr=0x7,chassis=1 -device virtio-rng-pci,bus=rp",
			to: "", want: "device pcie-root-port rp at PCI address 07.0 is missing on the destination",
			later: "Unknown savevm section or instance '0000:00:07.0"},
		{name: "device extra", from: "-device VGA,addr=0xa", to: "-device VGA,addr=0xa -device virtio-balloon-pci,id=balloon,addr=0xb", want: "device virtio-balloon-pci balloon at PCI address 0b.0 is on the destination only"},
		{name: "other address", from: "mac=52:54:00:00:00:01,addr=0x5", to: "mac=52:54:00:00:00:01,addr=0x4",
			want: "device virtio-net-pci nic at PCI address 05.0 on the source is at PCI address 04.0 on the destination", mend: "source's address",
			later: "0000:00:05.0/"},
		{name: "other device", from: "-device virtio-net-pci,id=nic", to: "-device e1000,id=nic",
			want: "device virtio-net-pci nic at PCI address 05.0 on the source is e1000 on the destination", mend: "-device virtio-net-pci",
			later: "0000:00:05.0/"},
		{name: "USB port", from: "-device usb-tablet,bus=usb.0", to: "-device usb-tablet,bus=usb.0,port=2",
			want:  "device usb-tablet at USB port 1 on the source is at USB port 2 on the destination",
			later: "Unknown savevm section or instance '0000:00:08.0/1/usb-ptr'"},
		{name: "SCSI unit", from: "bus=scsi.0,lun=1", to: "bus=scsi.0,lun=2",
			want:  "device scsi-cd at SCSI address 0:0:1 on the source is at SCSI address 0:0:2 on the destination",
			later: "scsi-disk"},
		{name: "MAC", from: "52:54:00:00:00:01", to: "52:54:00:00:00:02", want: "MAC address of virtio-net-device at PCI address 05.0 differs: source 52:54:00:00:00:01, destination 52:54:00:00:00:02", mend: "mac=52:54:00:00:00:01"},
		{name: "vectors", from: "-device virtio-net-pci,id=nic", to: "-device virtio-net-pci,id=nic,vectors=6",
			want: "property vectors of device virtio-net-pci nic", mend: "vectors=4",
			later: "0000:00:05.0/"},
		{name: "virtio feature", from: "-device virtio-net-pci,id=nic", to: "-device virtio-net-pci,id=nic,event_idx=off", doubt: "property event_idx of device virtio-net-device at PCI address 05.0 differs"},
		{name: "PCI id", from: "-device virtio-blk-pci,id=vda", to: "-device virtio-blk-pci,id=vda,disable-legacy=on",
			want:  "device virtio-blk-pci vda at PCI address 06.0 has PCI id 1af4:1001",
			later: "get_pci_config_device: Bad config data"},
		{name: "option ROM", from: "-device VGA,addr=0xa", to: "-device VGA,addr=0xa,romfile=",
			want: "vga.rom of the device at 0a.0 is missing on the destination", mend: "romfile=",
			later: `Unknown ramblock "0000:00:0a.0/vga.rom"`},
		{name: "video memory", from: "-device VGA,addr=0xa", to: "-device VGA,addr=0xa,vgamem_mb=32",
			want:  "memory block 0000:00:0a.0/vga.vram differs: source 16384 KiB, destination 32768 KiB",
			later: "Size mismatch: 0000:00:0a.0/vga.vram"},
		{name: "memory backend", from: "-smp 2",
			to: "-object memory-backend-ram,id=mem0,size=32776k -machine memory-backend=mem0 -smp 2", want: "memory block pc.ram is missing on the destination (it has mem0)", mend: "without -machine memory-backend=",
			later: `Unknown ramblock "pc.ram"`},
		{name: "memory slots", from: "-smp 2", to: "-m 32776k,slots=2,maxmem=1G -smp 2", want: "room for memory that is plugged in differs: source none, destination slots=2,maxmem=1024M", mend: "start the destination with -m 32776k", later: "ICH9LPC"},
		{name: "machine switch", from: "-smp 2", to: "-machine hpet=off -smp 2", want: "device hpet is missing on the destination", mend: "-machine hpet=on", later: "hpet"},
		{name: "UUID", from: "-smp 2", to: "-uuid 00000000-0000-0000-0000-000000000001 -smp 2", doubt: "UUIDs differ: source none, destination 00000000-0000-0000-0000-000000000001"},
		{name: "topology", from: "-smp 2,sockets=2,cores=1", to: "-smp 2,sockets=1,cores=2", want: "CPU topology differs: source cores=1,sockets=2, destination cores=2,sockets=1", mend: "-smp 2,sockets=2,cores=1"},
		{name: "CPU feature", cpu: "qemu64", want: "the destination's CPU lacks what the guest sees on the source: rdrand", mend: "model qemu64"},
		{name: "CPU feature more", cpu: "qemu64,+rdrand,+avx2", doubt: "the destination's CPU has what the guest does not see on the source: avx2"},
		{name: "CPU model", cpu: "Nehalem", want: "CPU models differ: source qemu64, destination Nehalem, family 15 and 6, "},
		{name: "disk size", from: "if=none,id=disk,file=DIR/disk", to: "if=none,id=disk,file=DIR/larger", want: "sizes of disk disk at PCI address 06.0 differ: source 8192 KiB"},
		{name: "disk read-only", from: "id=disk,file=DIR/disk,format=raw", to: "id=disk,file=DIR/disk,format=raw,readonly=on", want: "disk disk at PCI address 06.0 is writable on the source and read-only on the destination"},
		{name: "disk serial", from: "-device virtio-blk-pci,id=vda", to: "-device virtio-blk-pci,id=vda,serial=x", want: `property serial of device virtio-blk-device at PCI address 06.0 differs: source "", destination "x"`},
		{name: "no medium", from: "-drive if=none,id=cd,file=DIR/cd,format=raw,media=cdrom -device scsi-cd,drive=cd,", to: "-device scsi-cd,", doubt: "disk cd at SCSI address 0:0:1 has no medium on the destination"},
		{name: "network backend", from: "netdev=net,mac", to: "mac", doubt: "network card virtio-net-device at PCI address 05.0 has the backend net on the source and none on the destination"},
		{name: "serial port", from: "-smp 2", to: "-chardev null,id=s2 -device isa-serial,chardev=s2 -smp 2", want: "device isa-serial is on the destination only"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := strings.NewReplacer("DISK", "DIR/disk", "CD", "DIR/cd").Replace(machineArgs)
			other := args
			if c.from != "" || c.to != "" {
				if strings.Count(args, c.from) != 1 {
					t.Fatalf("%q is not there once", c.from)
				}
				other = strings.Replace(args, c.from, c.to, 1)
			}
			cpu := c.cpu
			if cpu == "" {
				cpu = "qemu64,+rdrand"
			}
			src, dst := pairVM(t, "10.0", "a", "pc-q35-7.2", "qemu64,+rdrand", args),
				pairVM(t, "10.0", "b", "pc-q35-7.2", cpu, other)
			f, g := inspectVM(t, src), inspectVM(t, dst)
			refusals, doubts := compare(f, g)
			check := func(what string, got []fit.Mismatch, want string) {
				t.Helper()
				if want == "" && len(got) > 0 || want != "" &&
					!slices.ContainsFunc(got, func(m fit.Mismatch) bool { return strings.HasPrefix(m.Problem, want) }) {
					t.Errorf("%s: %v\nwant %q", what, got, want)
				}
			}
			check("refusals", refusals, c.want)
			if len(refusals) > 1 && c.cpu == "" {
				t.Errorf("one difference, and said more than once: %v", refusals)
			}
			if c.want == "" {
				check("doubts", doubts, c.doubt)
			}
			if len(refusals) > 0 && !strings.Contains(refusals[0].Mend, c.mend) {
				t.Errorf("mend %q, want %q", refusals[0].Mend, c.mend)
			}
			status, said := raw(t, src, dst)
			t.Logf("we: %v\ndoubts: %v\nQEMU: %s %s", refusals, doubts, status, said)
			if wanted := map[bool]string{true: "completed", false: "failed"}[c.later == ""]; status != wanted || !strings.Contains(said, c.later) {
				t.Errorf("QEMU itself: %s, %s; want %s with %q", status, said, wanted, c.later)
			}
		})
	}
}

// notPaths leaves out that the two QEMUs of a test have their own copies of a disk, and that their guest never ran.
func notPaths(all []fit.Mismatch) []fit.Mismatch {
	return slices.DeleteFunc(all, func(m fit.Mismatch) bool {
		return strings.Contains(m.Problem, "unless they are one and the same") || strings.Contains(m.Problem, "(prelaunch)")
	})
}

// The pairs that must pass, to and fro: no refusal, no doubt, and QEMU agrees.
func TestComparePasses(t *testing.T) {
	for _, machine := range []string{"pc-q35-7.2", "pc-i440fx-7.2"} {
		pairs := [][2]string{{"7.2", "10.0"}, {"10.0", "7.2"}, {"7.2", "7.2"}, {"10.0", "11.1"}, {"11.1", "10.0"}}
		for _, pair := range pairs {
			t.Run(machine+" "+pair[0]+" to "+pair[1], func(t *testing.T) {
				args := strings.NewReplacer("DISK", "DIR/disk", "CD", "DIR/cd").Replace(machineArgs)
				if machine == "pc-i440fx-7.2" {
					args = strings.Replace(args, "-device pcie-root-port,id=rp,addr=0x7,chassis=1 -device virtio-rng-pci,bus=rp",
						"-device pci-bridge,id=rp,addr=0x7,chassis_nr=1 -device virtio-rng-pci,bus=rp,addr=1", 1)
				}
				src, dst := pairVM(t, pair[0], "a", machine, "", args), pairVM(t, pair[1], "b", machine, "", args)
				f, g := inspectVM(t, src), inspectVM(t, dst)
				if refusals, doubts := compare(f, g); len(refusals)+len(doubts) > 0 {
					t.Errorf("refused: %v\ndoubts: %v", refusals, doubts)
				}
				if len(f.Devices) < 20 || len(f.RAM) < 5 || len(f.Disks) != 2 || f.CPU.Features == nil || f.Disks[0].Device == "" ||
					f.Netdevs["net"] != "user" || f.CPU.Type != "qemu64-x86_64-cpu" {
					t.Errorf("read too little: %+v", f)
				}
				if status, said := raw(t, src, dst); status != "completed" {
					t.Errorf("QEMU: %s: %s", status, said)
				}
			})
		}
	}
}

// Each bit of CPUID has the name by which QEMU's -cpu knows it.
func TestFeatureNames(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		features := []string{"pclmulqdq", "ssse3", "movbe", "popcnt", "avx", "rdrand", "smep", "bmi2", "avx2", "adx", "umip",
			"xsaveopt", "arat", "lahf-lm", "svm", "syscall", "rdtscp", "npt"}
		var src, dst *guest.VM
		src, dst = pair(t, qemu, func(src, dst *guest.Spec) {
			src.CPU, dst.CPU = "base,+xsave,+"+strings.Join(features, ",+"), "base,+xsave"
		})
		lost, _ := fit.Compare(inspectVM(t, src), inspectVM(t, dst), plan.Plan{})
		if len(lost) != 1 {
			t.Fatalf("%v", lost)
		}
		_, text, _ := strings.Cut(lost[0].Problem, "on the source: ")
		if want := 12; strings.Count(text, ",") != want-1 || !strings.HasSuffix(text, "and 6 more") {
			t.Errorf("%d features differ, said %q", len(features), text)
		}
		named, _, _ := strings.Cut(text, " and ")
		for name := range strings.SplitSeq(named, ", ") {
			if !slices.Contains(features, name) {
				t.Errorf("%s is not one that was switched on", name)
			}
		}
	})
}

// With x-ignore-shared what is shared is not sent: it has to be the same on both sides.
func TestIgnoreShared(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		dir := guesttest.Dir(t)
		backend := func(args string) []string {
			return []string{"-object", "memory-backend-" + args + ",id=mem0,size=64M", "-machine", "memory-backend=mem0"}
		}
		one, other := backend("file,share=on,mem-path="+dir+"/one"), backend("file,share=on,mem-path="+dir+"/other")
		for _, c := range []struct {
			name     string
			src, dst []string
			want     string
		}{
			{"same file", one, one, ""},
			{"other file", one, other, "x-ignore-shared would lose memory mem0: the source maps " + dir + "/one, the destination " + dir + "/other"},
			{"not shared", one, backend("ram"), "x-ignore-shared would lose memory mem0: it is shared on the source and not on the destination"},
			{"no file", backend("memfd,share=on"), backend("memfd,share=on"), "x-ignore-shared would lose memory mem0: it is shared, but no file that another QEMU could map"},
			{"none", nil, nil, ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				src, dst := pair(t, qemu, func(src, dst *guest.Spec) { src.Extra, dst.Extra = c.src, c.dst })
				r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst),
					plan.Plan{Capabilities: map[string]bool{"x-ignore-shared": true}}, plan.Options{})
				if c.want != "" {
					if err == nil || !strings.HasPrefix(err.Error(), c.want) || state(t, src) != "running" ||
						state(t, dst) != "inmigrate" {
						t.Errorf("%v; want %s and nothing changed; source %s, destination %s", err, c.want, state(t, src), state(t, dst))
					}
					return
				}
				if err != nil || state(t, dst) != "running" {
					t.Fatal(err)
				}
				if warned := slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.Contains(w, "no effect") }); warned != (c.src == nil) {
					t.Errorf("warnings %v", r.Warnings)
				}
			})
		}
	})
}

// A DIMM that was plugged in on the source: a destination started with the words of the mend takes the guest.
func TestMendOfDIMM(t *testing.T) {
	t.Parallel()
	const room = "-m 32776k,slots=2,maxmem=1G"
	for _, versions := range [][2]string{{"7.2", "10.0"}, {"11.1", "11.1"}} {
		src := pairVM(t, versions[0], "a", "pc-q35-7.2", "", room)
		ctx := within.Context(t)
		c, err := qmp.Dial(ctx, "unix", src.Spec().Socket(guest.Control), qmp.Options{})
		if err != nil {
			t.Fatal(err)
		}
		backend := map[string]any{"qom-type": "memory-backend-ram", "id": "m1", "size": 16 << 20}
		err = errors.Join(c.Execute(ctx, "object-add", backend, nil),
			c.Execute(ctx, "device_add", map[string]any{"driver": "pc-dimm", "memdev": "m1", "id": "d1", "slot": 1}, nil))
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
		refusals, _ := fit.Compare(inspectVM(t, src), inspectVM(t, pairVM(t, versions[1], "b", "pc-q35-7.2", "", room)),
			plan.Plan{})
		const start = "start the destination with "
		if len(refusals) != 1 || !strings.HasPrefix(refusals[0].Mend, start+"-object") {
			t.Fatalf("%v; want the DIMM alone", refusals)
		}
		options := room + " " + strings.TrimPrefix(refusals[0].Mend, start)
		dst := pairVM(t, versions[1], "b", "pc-q35-7.2", "", options)
		r, err := engine.Migrate(ctx, connect.Endpoint(src), connect.Endpoint(dst), plan.Plan{}, plan.Options{})
		if err != nil || r.QEMU.MemoryBytes != 32776<<10+16<<20 {
			t.Errorf("%v: %d bytes with %s: %v", versions, r.QEMU.MemoryBytes, options, err)
		}
	}
}

// compare is fit.Compare without the doubts about paths.
func compare(f, g *facts.Facts) (refusals, doubts []fit.Mismatch) {
	refusals, doubts = fit.Compare(f, g, plan.Plan{})
	return refusals, notPaths(doubts)
}
