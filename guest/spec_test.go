package guest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"qmigrate/guest"
)

func TestArgs(t *testing.T) {
	image := guest.Image{Kernel: "/c/kernel", Initrd: "/c/initrd", Append: "qmigrate.ip=10.77.0.101/24"}
	for name, s := range map[string]guest.Spec{
		"zero":        {Dir: "/run/q"},
		"source":      {Name: "a", Dir: "/run/q", Memory: 262152 << 10, Image: image, NIC: guest.NIC{TAP: "qmigtap0"}},
		"destination": {Name: "a", Dir: "/run/r", Memory: 262152 << 10, Image: image, NIC: guest.NIC{TAP: "qmigtap1"}, Incoming: true, Paused: true},
		"all": {Name: "b", Machine: "pc", Accelerator: "kvm", Memory: 1 << 30, VCPUs: 4, CPU: "host", Image: image, Dir: "/run/a,b",
			NIC: guest.NIC{Model: "e1000", TAP: "t", MAC: "52:54:00:00:00:01"}, Extra: []string{"-device", "virtio-rng-pci"}},
		"debian": {Name: "d", Dir: "/run/q", Image: guest.Image{Kernel: "/c/kernel", Initrd: "/c/initrd", Root: "/c/a,b/root.squashfs", Append: "qmigrate.root=root"}},
		"disks": {Name: "c", Dir: "/run/q", Disks: []guest.Disk{
			{Node: "disk0", Path: "/i/a,b.raw"},
			{Node: "disk1", Format: "qcow2", Path: "/i/c.qcow2", Cache: "none"},
			{Node: "disk2", Driver: "iscsi", Server: "10.77.0.1:3260", Path: "iqn.2026-11.test:disk2", LUN: 1, User: "qmigrate", Secret: "/run/q/chap"},
			{Node: "disk3", Driver: "nfs", Server: "10.77.0.1", Path: "/export/disk3.raw"}}},
		"virtio-scsi": {Dir: "/run/q", DiskBus: guest.VirtioSCSI, Disks: []guest.Disk{{Node: "disk0", Path: "/i/a.raw"}, {Node: "disk1", Path: "/i/b.raw"}}},
		"ahci":        {Dir: "/run/q", DiskBus: guest.AHCI, Disks: disks(guest.MaxDisks)},
		"vmxnet3":     {Dir: "/run/q", DiskBus: guest.VirtioSCSI, NIC: guest.NIC{Model: "vmxnet3", TAP: "t"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := s.Args()
			if again := s.Args(); !slices.Equal(args, again) {
				t.Errorf("not pure: %q, then %q", args, again)
			}
			golden(t, "testdata/args/"+name+".txt", strings.Join(args, "\n")+"\n")
		})
	}
}

func disks(n int) (all []guest.Disk) {
	for i := range n {
		all = append(all, guest.Disk{Node: fmt.Sprintf("disk%d", i), Path: fmt.Sprintf("/i/%d.raw", i)})
	}
	return all
}

// What the guest sees is the same on both sides: nothing but places on the host and the way it starts may differ.
func TestArgsSameMachine(t *testing.T) {
	machine := func(dir, tap string, incoming bool) (a []string) {
		all := guest.Spec{Name: "a", Dir: dir, NIC: guest.NIC{TAP: tap}, Incoming: incoming, Paused: incoming}.Args()
		for i := 0; i < len(all); i++ {
			switch all[i] {
			case "-chardev", "-netdev", "-pidfile", "-D", "-incoming":
				i++
			case "-S":
			default:
				a = append(a, all[i])
			}
		}
		return a
	}
	if a, b := machine("/a", "t0", false), machine("/b", "t1", true); !slices.Equal(a, b) {
		t.Errorf("source %q, destination %q", a, b)
	}
}

func TestSafeMemory(t *testing.T) {
	for _, c := range []struct {
		version, accelerator string
		in, want             int64
	}{
		{"7.2.22", "tcg", 256 << 20, 262152 << 10},
		{"8.2.1", "tcg", 1 << 30, 1<<30 + 8<<10},
		{"7.2.22", "kvm", 256 << 20, 256 << 20},
		{"9.0.0", "tcg", 256 << 20, 256 << 20},
		{"10.0.2", "tcg", 256 << 20, 256 << 20},
		{"7.2.22", "tcg", 262152 << 10, 262152 << 10},
		{"", "tcg", 256 << 20, 256 << 20},
	} {
		got := guest.SafeMemory(c.version, c.accelerator, c.in)
		if got != c.want {
			t.Errorf("SafeMemory(%s, %s, %d) = %d, want %d", c.version, c.accelerator, c.in, got, c.want)
		}
		if again := guest.SafeMemory(c.version, c.accelerator, got); again != got {
			t.Errorf("SafeMemory of its own result %d is %d", got, again)
		}
	}
}
