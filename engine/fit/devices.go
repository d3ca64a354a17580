package fit

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"qmigrate/engine/facts"
)

// unseen tells whether no guest ever sees a device of this type: they put bytes into its memory before it starts, or
// belong to the accelerator, whose differences the CPU's features show.
func unseen(t string) bool {
	return slices.Contains([]string{"loader", "guest-loader", "kvmclock", "kvmvapic"}, t)
}

// onboard tells whether a device may be one that the machine type itself puts there, on a bus whose inhabitants may be
// cut otherwise by another version of QEMU, without a difference to the guest.
func onboard(d facts.Device) bool {
	if d.Bus != "System" && d.Bus != "ISA" && d.Bus != "i2c-bus" {
		return false
	}
	return d.ID == "" && !strings.HasPrefix(d.Type, "isa-") && !strings.HasPrefix(d.Type, "tpm-")
}

// compareDevices finds what one side has and the other has not, or elsewhere, or otherwise. What QEMU refuses later, or
// what would change under a running guest, keeps it from moving; what only might matter is a doubt.
func compareDevices(src, dst *facts.Facts, refuse, doubt func(problem, mend string)) {
	a, b := byPath(src.Devices), byPath(dst.Devices)
	if len(a) == 0 || len(b) == 0 {
		return
	}
	serious := func(d facts.Device) func(problem, mend string) {
		if onboard(d) && !src.Twin(dst) {
			return doubt
		}
		return refuse
	}
	other := func(d, e facts.Device) bool {
		// a type that was renamed keeps its PCI id
		return facts.SameType(d.Type) != facts.SameType(e.Type) && (d.PCI == "" || d.PCI != e.PCI)
	}
	missing, extra := outermost(a, b, other), outermost(b, a, other)
	for _, d := range missing {
		at := func(e facts.Device) bool {
			return e.Type == d.Type && e.ID == d.ID && e.Bus == d.Bus && d.Where() != "" && e.Where() != d.Where()
		}
		if i := slices.IndexFunc(extra, at); i >= 0 {
			refuse(fmt.Sprintf("device %s on the source is at %s on the destination", d, extra[i].Where()),
				"start the destination with the device at the source's address (addr=, port=, nr= or lun= of its -device)")
			extra = slices.Delete(extra, i, i+1)
			continue
		}
		mend := with(d)
		if d.ID != "" && pluggable(d) {
			mend += ", or unplug it on the source (device_del " + d.ID + ")"
		}
		serious(d)(fmt.Sprintf("device %s is missing on the destination", d), mend)
	}
	for _, d := range extra {
		mend := without(d)
		if pluggable(d) {
			mend += ", or plug it in on the source (device_add " + d.Type + ")"
		}
		serious(d)(fmt.Sprintf("device %s is on the destination only: the guest would find it after its next look", d), mend)
	}
	for _, path := range slices.Sorted(maps.Keys(a)) {
		d := a[path]
		e, both := b[path]
		switch {
		case !both:
		case other(d, e):
			serious(d)(fmt.Sprintf("device %s on the source is %s on the destination", d, e.Type), with(d))
		case d.PCI != e.PCI:
			refuse(fmt.Sprintf("device %s has PCI id %s on the source, %s on the destination", d, d.PCI, e.PCI),
				"give both the same properties (disable-legacy, disable-modern, vendor and device ids)")
		default:
			compareProperties(d, e, refuse, doubt)
		}
	}
}

// machineSwitches are the options of -machine that put a device there, or leave it out.
var machineSwitches = map[string]string{
	"hpet": "hpet", "vmport": "vmport", "vmmouse": "vmport", "i8042": "i8042", "isa-pit": "pit", "kvm-pit": "pit",
	"isa-i8259": "pic", "kvm-i8259": "pic", "ICH9-SMB": "smbus", "ich9-ahci": "sata",
}

// byMachine is the option of -machine that decides whether a device is there; "" if it is no such device. One that
// has an id, or an address other than the machine's own, was given by -device.
func byMachine(d facts.Device) string {
	if d.ID != "" || d.Type == "ich9-ahci" && d.Where() != "PCI address 1f.2" {
		return ""
	}
	return machineSwitches[d.Type]
}

// with is how a destination gets a device of the source.
func with(d facts.Device) string {
	switch option := byMachine(d); {
	case option != "":
		return fmt.Sprintf("start the destination with -machine %s=on", option)
	case onboard(d):
		return "start the destination with the source's -machine options, and -device " + d.Type + " if the source has it"
	}
	return "start the destination with -device " + d.Type + ", with the source's options and address"
}

// without is how a destination gets rid of a device that the source has not.
func without(d facts.Device) string {
	switch option := byMachine(d); {
	case option != "":
		return fmt.Sprintf("start the destination with -machine %s=off", option)
	case onboard(d):
		return "start the destination with the source's -machine options, and without -device " + d.Type
	case d.ID == "":
		return "start the destination without it (-nodefaults leaves out what QEMU adds unasked)"
	}
	return "start the destination without it"
}

// pluggable tells whether a device can be plugged in and unplugged while the guest runs, by its bus and type. A PCI
// Express root complex has no slots for that: what is behind a port or a bridge can be.
func pluggable(d facts.Device) bool {
	switch d.Bus {
	case "usb-bus", "SCSI", "virtio-serial-bus":
		return true
	case "PCI", "PCIE":
		for _, fixed := range []string{"VGA", "-vga", "root-port", "pcie-pci-bridge", "ioh3420", "isa-"} {
			if strings.Contains(d.Type, fixed) {
				return false
			}
		}
		return strings.HasPrefix(d.Path, "i440FX") || len(facts.PciAddresses(d.Path)) > 1
	}
	return false
}

func byPath(all []facts.Device) map[string]facts.Device {
	m := make(map[string]facts.Device, len(all))
	for _, d := range all {
		if !unseen(d.Type) {
			m[d.Path] = d
		}
	}
	return m
}

// outermost are the devices of a that b has not, without those behind another one of them, or behind one that is
// another one in b.
func outermost(a, b map[string]facts.Device, other func(d, e facts.Device) bool) (all []facts.Device) {
	last := ""
	for _, path := range slices.Sorted(maps.Keys(a)) {
		e, both := b[path]
		switch {
		case last != "" && strings.HasPrefix(path, last+"/"):
		case !both:
			last = path
			all = append(all, a[path])
		case other(a[path], e):
			last = path
		}
	}
	return all
}

// Properties that are the host's, or that follow from others which are compared, or that change while a guest runs.
// Those named x-... are QEMU's own. The others are the guest's, and of these the ones in guestSees differ in what a
// running guest sees at once or in the layout of the stream.
var (
	hostProperties = []string{"addr", "netdev", "drive", "chardev", "audiodev", "iothread", "iothread-vq-mapping",
		"ioeventfd", "vhost", "vhostforce", "vhostfd", "script",
		"romfile", "rombar", "romsize", "bootindex", "busnr", "failover_pair_id", "cyls", "heads", "secs", "lcyls", "lheads", "lsecs", "backend_defaults",
		"account-invalid", "account-failed", "rerror", "werror", "share-rw", "discard_granularity", "ebpf-rss-fds", "tx", "tpmdev", "rng", "memdev", "port",
		"MCFG", "smb_io_base"} // these two the firmware sets while the guest boots
	guestSees = []string{"mac", "serial", "wwn", "vectors", "num-queues", "num_queues", "max_ports", "logical_block_size",
		"physical_block_size", "below-4g-mem-size", "above-4g-mem-size", "version"}
)

// compareProperties looks at the properties that both sides have.
func compareProperties(d, e facts.Device, refuse, doubt func(problem, mend string)) {
	for _, name := range slices.Sorted(maps.Keys(d.Properties)) {
		here, there := value(d.Properties[name]), value(e.Properties[name])
		if _, both := e.Properties[name]; !both || here == there || strings.HasPrefix(name, "x-") ||
			slices.Contains(hostProperties, name) {
			continue
		}
		mend := fmt.Sprintf("start the destination's device with %s=%s", name, strings.Trim(here, `"`))
		switch {
		case strings.HasSuffix(name, "4g-mem-size"):
			mend = "start the destination with the source's -m and -machine max-ram-below-4g="
		case onboard(d):
			mend = fmt.Sprintf("start the destination with the source's -machine options, or -global "+
				"%s.%s=%s", d.Type, name, strings.Trim(here, `"`))
		case here == `""`:
			mend = fmt.Sprintf("start the destination's device without %s=", name)
		}
		switch {
		case name == "mac":
			refuse(fmt.Sprintf("MAC address of %s differs: source %s, destination %s", d, strings.Trim(here, `"`),
				strings.Trim(there, `"`)), mend)
		case slices.Contains(guestSees, name):
			refuse(fmt.Sprintf("property %s of device %s differs: source %s, destination %s", name, d, here, there), mend)
		default:
			doubt(fmt.Sprintf("property %s of device %s differs: source %s, destination %s: QEMU may refuse it, or the guest may notice", name, d, here, there), mend)
		}
	}
}

// value is a property's without the second form in which QEMU prints numbers: 33554432 (32 MiB).
func value(text string) string {
	if strings.HasPrefix(text, `"`) {
		return text
	}
	number, _, _ := strings.Cut(text, " (")
	return number
}

// Without is a list without those that a command's arguments name, if it is the command for that.
func Without(names []string, arguments string, here bool) []string {
	return slices.DeleteFunc(names, func(name string) bool {
		return here && strings.Contains(arguments, strconv.Quote(name))
	})
}
