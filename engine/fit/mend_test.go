package fit

import (
	"regexp"
	"strings"
	"testing"

	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
)

// blank is where a value is missing.
var blank = regexp.MustCompile(`  | at (on|is|there|:|,|$)|source ,|destination ,|destination $|\(\)`)

// TestMends: what a refusal says to do is something that can be done, and leads to the source's machine.
func TestMends(t *testing.T) {
	t.Parallel()
	dimm := facts.MemoryDevice{Kind: "dimm", ID: "d1", Memdev: "m1", Bytes: 128 << 20, Slot: 1, Addr: 4 << 30}
	device := func(d facts.Device) func(f *facts.Facts) {
		return func(f *facts.Facts) { f.Devices = append(f.Devices, d) }
	}
	both := func(d facts.Device) func(src, dst *facts.Facts) {
		return func(src, dst *facts.Facts) { device(d)(src); device(d)(dst) }
	}
	base := facts.Device{Type: "q35-pcihost", Bus: "System", Path: "q35-pcihost"}
	for _, c := range []struct {
		name     string
		change   func(src, dst *facts.Facts)
		problem  string // in the first refusal or doubt
		mend     string // all of its mend, or its beginning if it ends in ...
		contains string // in the mend
		never    string // in any text
	}{
		{
			name: "hot-plugged DIMM", change: func(src, _ *facts.Facts) {
				src.MemoryBytes, src.MemoryDevices = src.BaseBytes+dimm.Bytes, []facts.MemoryDevice{dimm}
				src.RAM = append(src.RAM, facts.RAMBlock{Name: "m1", PageSize: "4 KiB", Bytes: dimm.Bytes, MaxBytes: dimm.Bytes})
			},
			problem: "memory m1 that was plugged in on the source, 131072 KiB at 0x100000000 (slot 1), is missing on " +
				"the destination",
			mend: "start the destination with -object memory-backend-ram,id=m1,size=131072k -device " +
				"pc-dimm,id=d1,memdev=m1,node=0,slot=1,addr=0x100000000",
			never: "-m ",
		},
		{
			name: "DIMM in another slot", change: func(src, dst *facts.Facts) {
				other := dimm
				other.Slot, other.ID = 0, "x"
				src.MemoryDevices, dst.MemoryDevices = []facts.MemoryDevice{dimm}, []facts.MemoryDevice{other}
			},
			problem:  "source 131072 KiB at 0x100000000 (slot 1), destination 131072 KiB at 0x100000000 (slot 0)",
			contains: "slot=1",
		},
		{
			name:    "DIMM on the destination",
			change:  func(_, dst *facts.Facts) { dst.MemoryDevices = []facts.MemoryDevice{dimm} },
			problem: "memory m1",
			mend:    "start the destination without it",
		},
		{
			name: "NVDIMM", change: func(src, _ *facts.Facts) {
				src.MemoryDevices = []facts.MemoryDevice{{Kind: "nvdimm", Memdev: "n", Bytes: 1 << 20}}
			}, contains: "-device nvdimm,memdev=n", never: "pc-dimm",
		},
		{
			name: "less memory, with a DIMM and room", change: func(src, dst *facts.Facts) {
				src.MemoryDevices, dst.MemoryDevices = []facts.MemoryDevice{dimm}, []facts.MemoryDevice{dimm}
				dst.BaseBytes /= 2
				src.MemoryBytes, dst.MemoryBytes = src.BaseBytes+dimm.Bytes, dst.BaseBytes+dimm.Bytes
				for _, f := range []*facts.Facts{src, dst} {
					f.MemorySlots, f.MaxMemoryBytes = 2, 1<<30
				}
			},
			problem: "memory differs: source 262144 KiB, destination 131072 KiB",
			mend:    "start the destination with -m 262144k,slots=2,maxmem=1048576k",
		},
		{
			name:    "no room",
			change:  func(src, _ *facts.Facts) { src.MemorySlots, src.MaxMemoryBytes = 2, 1<<30 },
			problem: "source slots=2,maxmem=1024M, destination none",
			mend:    "start the destination with -m 262144k,slots=2,maxmem=1048576k",
		},
		{
			name:    "room",
			change:  func(_, dst *facts.Facts) { dst.MemorySlots, dst.MaxMemoryBytes = 2, 1<<30 },
			problem: "source none, destination slots=2",
			mend:    "start the destination with -m 262144k",
		},
		{
			name: "one vCPU more, and room for it", change: func(src, dst *facts.Facts) {
				src.VCPUs, src.Topology = 2, map[string]int64{"maxcpus": 4, "sockets": 4, "cores": 1, "threads": 1, "dies": 1}
			}, problem: "vCPUs differ: source 2, destination 1", mend: "start the destination with -smp " +
				"2,maxcpus=4,sockets=4,cores=1",
		},
		{name: "NUMA", change: func(src, dst *facts.Facts) {
			src.Topology, dst.Topology = map[string]int64{"nodes": 2}, map[string]int64{"nodes": 1}
		}, problem: "source 2, destination 1", mend: "start the destination with the source's -numa"},
		{name: "machine type", change: func(_, dst *facts.Facts) {
			dst.Machine, dst.MachineTypes = "pc-i440fx-7.2", []string{"pc-i440fx-7.2", "pc-q35-7.2"}
		}, mend: "start the destination with -machine pc-q35-7.2"},
		{
			name: "machine type that the other QEMU lacks", change: func(src, dst *facts.Facts) {
				src.Machine, dst.Machine = "pc-q35-10.0", "pc-q35-7.2"
				dst.MachineTypes = []string{"q35", "pc-q35-7.2", "pc-q35-7.1", "pc-i440fx-7.2"}
				src.MachineTypes = append([]string{"pc-q35-10.0"}, dst.MachineTypes...)
			},
			mend: "destination QEMU x has no pc-q35-10.0: use a QEMU there that has it, or start the guest anew with " +
				"a machine type that both have (pc-q35-7.1, pc-q35-7.2)",
		},
		{
			name: "machine type of another family", change: func(src, dst *facts.Facts) {
				src.Machine, dst.MachineTypes = "microvm", []string{"pc-q35-7.2"}
			}, mend: "destination QEMU x has no microvm: use a QEMU there that has it",
		},
		{
			name:    "hpet on one side",
			change:  func(_, dst *facts.Facts) { device(facts.Device{Type: "hpet", Bus: "System", Path: "hpet"})(dst) },
			problem: "device hpet is on the destination only",
			mend:    "start the destination with -machine hpet=off",
		},
		{
			name: "no smbus",
			change: func(src, _ *facts.Facts) {
				device(facts.Device{Type: "ICH9-SMB", Bus: "PCIE", Path: "q35-pcihost/1f.3"})(src)
			},
			mend: "start the destination with -machine smbus=on",
		},
		{
			name:   "no vmport",
			change: func(src, _ *facts.Facts) { device(facts.Device{Type: "vmport", Bus: "ISA", Path: "vmport"})(src) },
			mend:   "start the destination with -machine vmport=on",
			never:  "  ",
		},
		{name: "second AHCI", change: func(src, _ *facts.Facts) {
			device(facts.Device{Type: "ich9-ahci", ID: "x", Bus: "PCIE", Path: "q35-pcihost/05.0"})(src)
		}, mend: "start the destination with -device ich9-ahci, with the source's options and address"},
		{name: "card in the root complex", change: func(src, _ *facts.Facts) {
			device(facts.Device{Type: "virtio-net-pci", ID: "nic", Bus: "PCIE", Path: "q35-pcihost/05.0"})(src)
		}, mend: "start the destination with -device virtio-net-pci, with the source's options and " +
			"address", never: "device_del"},
		{name: "card behind a port", change: func(src, dst *facts.Facts) {
			both(facts.Device{Type: "pcie-root-port", Bus: "PCIE", Path: "q35-pcihost/07.0"})(src, dst)
			device(facts.Device{Type: "virtio-net-pci", ID: "nic", Bus: "PCIE", Path: "q35-pcihost/07.0/00.0"})(src)
		}, contains: ", or unplug it on the source (device_del nic)"},
		{name: "card without an id behind a port", change: func(src, dst *facts.Facts) {
			both(facts.Device{Type: "pcie-root-port", Bus: "PCIE", Path: "q35-pcihost/07.0"})(src, dst)
			device(facts.Device{Type: "virtio-net-pci", Bus: "PCIE", Path: "q35-pcihost/07.0/00.0"})(src)
		}, contains: "-device virtio-net-pci", never: "device_del"},
		{name: "VGA", change: func(_, dst *facts.Facts) {
			device(facts.Device{Type: "VGA", Bus: "PCI", Path: "i440FX-pcihost/02.0"})(dst)
		}, mend: "start the destination without it (-nodefaults leaves out what QEMU adds unasked)", never: "device_add"},
		{name: "card of an i440FX", change: func(_, dst *facts.Facts) {
			device(facts.Device{Type: "e1000", ID: "n", Bus: "PCI", Path: "i440FX-pcihost/05.0"})(dst)
		}, mend: "start the destination without it, or plug it in on the source (device_add e1000)"},
		{
			name: "serial port",
			change: func(_, dst *facts.Facts) {
				device(facts.Device{Type: "isa-serial", Bus: "ISA", Path: "isa-serial"})(dst)
			},
			mend:  "start the destination without it...",
			never: "device_add",
		},
		{name: "two of a kind on a bus without addresses", change: func(src, dst *facts.Facts) {
			device(facts.Device{Type: "isa-serial", Bus: "ISA", Path: "x/isa-serial"})(src)
			device(facts.Device{Type: "isa-serial", Bus: "ISA", Path: "y/isa-serial"})(dst)
		}, problem: "device isa-serial is missing on the destination", never: "is at "},
		{name: "another port of the same controller", change: func(src, dst *facts.Facts) {
			device(facts.Device{Type: "usb-tablet", Bus: "usb-bus", Address: "1", Path: "q35-pcihost/07.0/1"})(src)
			device(facts.Device{Type: "usb-tablet", Bus: "usb-bus", Address: "2", Path: "q35-pcihost/07.0/2"})(dst)
		}, problem: "at USB port 1 on the source is at USB port 2 on the destination"},
		{name: "the same port of another controller", change: func(src, dst *facts.Facts) {
			device(facts.Device{Type: "usb-tablet", ID: "t", Bus: "usb-bus", Address: "1", Path: "q35-pcihost/07.0/1"})(src)
			device(facts.Device{Type: "usb-tablet", ID: "t", Bus: "usb-bus", Address: "1", Path: "q35-pcihost/08.0/1"})(dst)
		}, problem: "device usb-tablet t at USB port 1 is missing on the destination", never: "is at USB port 1 on " +
			"the destination"},
		{name: "property of the machine", change: func(src, dst *facts.Facts) {
			device(facts.Device{Type: "mch", Bus: "PCIE", Path: "q35-pcihost/00.0",
				Properties: map[string]string{"below-4g-mem-size": "1 (1 B)"}})(src)
			device(facts.Device{Type: "mch", Bus: "PCIE", Path: "q35-pcihost/00.0",
				Properties: map[string]string{"below-4g-mem-size": "2 (2 B)"}})(dst)
		}, problem: "source 1, destination 2", contains: "max-ram-below-4g="},
		{name: "property of an on-board device", change: func(src, dst *facts.Facts) {
			device(facts.Device{Type: "hpet", Bus: "System", Path: "hpet", Properties: map[string]string{"timers": "3 (0x3)"}})(src)
			device(facts.Device{Type: "hpet", Bus: "System", Path: "hpet", Properties: map[string]string{"timers": "4 (0x4)"}})(dst)
		}, contains: "-global hpet.timers=3"},
		{
			name:    "UUID",
			change:  func(src, dst *facts.Facts) { src.UUID, dst.UUID = "a", "b" },
			problem: "source a, destination b",
			mend:    "start the destination with -uuid a",
		},
		{
			name:    "no UUID",
			change:  func(_, dst *facts.Facts) { dst.UUID = "b" },
			problem: "source none, destination b",
			mend:    "start the destination without -uuid",
		},
		{name: "9p", change: func(src, _ *facts.Facts) {
			src.Blockers = []string{"Migration is disabled when VirtFS export path '/x' is mounted in the guest using " +
				"mount_tag 'y'"}
		}, mend: "unmount the share in the guest"},
		{name: "invtsc", change: func(src, _ *facts.Facts) {
			src.Blockers = []string{"State blocked by non-migratable CPU device (invtsc flag)"}
		}, contains: "CPU flag", never: "device_del"},
		{name: "image format", change: func(src, _ *facts.Facts) {
			src.Blockers = []string{"The vmdk format used by node 'n' does not support live migration"}
		}, contains: "raw or qcow2", never: "device_del"},
		{
			name:    "a blocker of the future",
			change:  func(src, _ *facts.Facts) { src.Blockers = []string{"it is Monday"} },
			problem: "source cannot migrate: it is Monday",
			mend:    "undo what QEMU names",
		},
		{name: "host CPU", change: func(src, dst *facts.Facts) {
			src.CPU.Type, dst.CPU.Type = "max-x86_64-cpu", "max-x86_64-cpu"
			word := facts.FeatureWord{EAX: 1, ECX: 0, Register: "ECX"}
			src.CPU.Features, dst.CPU.Features = map[facts.FeatureWord]int64{word: 1 << 30}, map[facts.FeatureWord]int64{word: 0}
		}, problem: "rdrand", mend: "-cpu max is what a host...", never: "start the destination with"},
	} {
		src, dst := factsOf("src", 10, 0), factsOf("dst", 10, 0)
		for _, f := range []*facts.Facts{src, dst} {
			f.RunState, f.Running, f.Machine, f.VCPUs, f.BaseBytes = "running", true, "pc-q35-7.2", 1, f.MemoryBytes
			f.RAM = []facts.RAMBlock{{Name: "pc.ram", PageSize: "4 KiB", Bytes: f.MemoryBytes, MaxBytes: f.MemoryBytes}}
			f.Devices = []facts.Device{base}
		}
		dst.RunState, dst.Running = "inmigrate", false
		c.change(src, dst)
		refusals, doubts := Compare(src, dst, plan.Plan{})
		all := append(refusals, doubts...)
		for i := len(all) - 1; i >= 0; i-- {
			if strings.Contains(all[i].Problem, "does not tell its") {
				all = append(all[:i], all[i+1:]...)
			}
		}
		if len(all) == 0 {
			t.Errorf("%s: nothing is said", c.name)
			continue
		}
		got := all[0]
		begin, open := strings.CutSuffix(c.mend, "...")
		if !strings.Contains(got.Problem,
			c.problem) || !open && c.mend != "" && got.Mend != c.mend || !strings.HasPrefix(got.Mend,
			begin) || !strings.Contains(got.Mend, c.contains) {
			t.Errorf("%s: %v\nwant problem %q, mend %q%q", c.name, got, c.problem, c.mend, c.contains)
		}
		for _, m := range all {
			if c.never != "" && strings.Contains(m.Error(), c.never) {
				t.Errorf("%s: %v\nit has %q", c.name, m, c.never)
			}
			if blank.MatchString(m.Error()) {
				t.Errorf("%s: %v: there is a blank where a value should be", c.name, m)
			}
		}
	}
}
