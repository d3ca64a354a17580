package guest

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// hardware is a device that a guest may have. What its kernel needs for it, guest/image knows.
type hardware struct {
	name    string // as users write it
	device  string // QEMU's -device
	refused string // why the lab's guests cannot have it
}

// nics are the network cards.
func nics() []hardware {
	return []hardware{
		{name: VirtioNet, device: "virtio-net-pci"},
		{name: "e1000", device: "e1000"},
		{name: "e1000e", device: "e1000e"},
		{name: "vmxnet3", device: "vmxnet3"},
	}
}

// buses are the ways to disks.
func buses() []hardware {
	return []hardware{
		{name: VirtioBlk, device: "virtio-blk-pci"},
		{name: VirtioSCSI, device: "virtio-scsi-pci"},
		{name: AHCI, device: "ich9-ahci"},
		// Seen on 7.2.22 and 10.0.2: hw/nvme/ctrl.c declares its state unmigratable. 11.1.3 migrates it.
		{name: "nvme", refused: "QEMU 7.2 and 10.0 cannot migrate it (\"State blocked by non-migratable device\")"},
	}
}

// The hardware that code asks for by name.
const (
	VirtioNet  = "virtio-net"
	VirtioBlk  = "virtio-blk"
	VirtioSCSI = "virtio-scsi"
	AHCI       = "ahci"
)

// NICs are the network cards that a guest may have, the default first.
func NICs() []string { return names(nics()) }

// DiskBuses are the ways by which a guest may have its disks, the default first.
func DiskBuses() []string { return names(buses()) }

func names(all []hardware) (list []string) {
	for _, h := range all {
		if h.refused == "" {
			list = append(list, h.name)
		}
	}
	return list
}

// pick finds hardware by its name or by QEMU's; "" is the default.
func pick(kind, name string, all []hardware) (hardware, error) {
	for i, h := range all {
		if h.name != name && (h.device != name || name == "") && (i > 0 || name != "") {
			continue
		}
		if h.refused != "" {
			return hardware{}, fmt.Errorf("%s %s: %s: have %s", kind, name, h.refused, strings.Join(names(all), ", "))
		}
		return h, nil
	}
	return hardware{}, fmt.Errorf("%s %q: have %s", kind, name, strings.Join(names(all), ", "))
}

// CheckNIC refuses what is no network card of a lab's guest, listing what is; "" is the default.
func CheckNIC(name string) error {
	_, err := pick("network card", name, nics())
	return err
}

// CheckDiskBus refuses what is no way to a lab's guest's disks, listing what is; "" is the default.
func CheckDiskBus(name string) error {
	_, err := pick("disk bus", name, buses())
	return err
}

// NICName is a network card's name as users write it; "" is the default.
func NICName(model string) string {
	if nic, err := pick("network card", model, nics()); err == nil {
		return nic.name
	}
	return model
}

// DiskBusName is a disk bus's name as users write it; "" is the default.
func DiskBusName(name string) string {
	if bus, err := pick("disk bus", name, buses()); err == nil {
		return bus.name
	}
	return name
}

// Machines are the versioned PC machine types of a QEMU on this machine, oldest first: the lab's guests run on these.
func Machines(ctx context.Context, qemu string) ([]string, error) {
	out, err := exec.CommandContext(ctx, qemu, "-machine", "help").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its machine types: %w", qemu, err)
	}
	all := parseMachines(string(out))
	if len(all) == 0 {
		return nil, fmt.Errorf("ask %s for its machine types: no PC in %q", qemu, out)
	}
	return all, nil
}

// parseMachines reads "pc-q35-7.2 Standard PC (Q35 + ICH9, 2009)"; aliases and the rest are left out, for they mean
// another machine on another QEMU.
func parseMachines(help string) (all []string) {
	for line := range strings.Lines(help) {
		name, _, _ := strings.Cut(line, " ")
		if _, version := family(name); version != "" {
			all = append(all, name)
		}
	}
	slices.SortFunc(all, func(a, b string) int {
		f, v := family(a)
		g, w := family(b)
		if f != g {
			return strings.Compare(f, g)
		}
		return CompareVersions(v, w)
	})
	return all
}

// family takes a machine type apart: pc-q35- and 7.2.
func family(machine string) (name, version string) {
	for _, f := range []string{"pc-i440fx-", "pc-q35-"} {
		if v, ok := strings.CutPrefix(machine, f); ok && isSeries(v) {
			return f, v
		}
	}
	return "", ""
}

// CheckMachine refuses a machine type that one of the QEMUs does not have, or that may be another one on each, listing
// those that all have. A type may have properties behind it ("pc-q35-7.2,vmport=off"), which are QEMU's to check.
func CheckMachine(ctx context.Context, machine string, qemus ...string) error {
	var common []string
	for i, q := range qemus {
		have, err := Machines(ctx, q)
		if err != nil {
			return err
		}
		if i == 0 {
			common = have
		}
		common = slices.DeleteFunc(common, func(m string) bool { return !slices.Contains(have, m) })
	}
	if name, _, _ := strings.Cut(machine, ","); slices.Contains(common, name) {
		return nil
	}
	var list []string
	for i, m := range common {
		f, v := family(m)
		if i > 0 {
			if before, _ := family(common[i-1]); before == f {
				m = v
			}
		}
		list = append(list, m)
	}
	return fmt.Errorf("machine %q: the QEMUs have %s", machine, strings.Join(list, ", "))
}
