package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Device is one device of a guest: what it is, where the guest finds it, and how it was set up.
type Device struct {
	Type       string            // virtio-net-pci
	ID         string            // the user's; "" if it has none
	Bus        string            // the type of the bus it is on: PCIE, usb-bus, SCSI, ISA, System, ...
	Path       string            // the addresses from the machine inwards: q35-pcihost/03.0/virtio-net-device; unique, and the same on both sides
	Address    string            // the last of them
	PCI        string            // of a PCI device: 1af4:1000 (sub 1af4:0001)
	Properties map[string]string // as QEMU prints them
}

// String names a device for people.
func (d Device) String() string {
	text := d.Type
	if d.ID != "" {
		text += " " + d.ID
	}
	if where := d.where(); where != "" {
		text += " at " + where
	}
	return text
}

// where is the device's address in the words of its bus; "" if it has none.
func (d Device) where() string {
	switch d.Bus {
	case "PCI", "PCIE":
		return "PCI address " + strings.Join(pciAddresses(d.Path), "/")
	case "usb-bus":
		return "USB port " + d.Address
	case "SCSI":
		return "SCSI address " + d.Address
	case "IDE":
		return "IDE unit " + d.Address
	case "virtio-serial-bus":
		return "port " + d.Address
	}
	if a := pciAddresses(d.Path); len(a) > 0 && strings.HasPrefix(d.Bus, "virtio-") { // a part of what is there: virtio-net-device of virtio-net-pci
		return "PCI address " + strings.Join(a, "/")
	}
	return ""
}

// pciAddresses are the slots and functions on the way to a device: one for each bridge and its own.
func pciAddresses(path string) (all []string) {
	for part := range strings.SplitSeq(path, "/") {
		if len(part) == 4 && part[2] == '.' {
			all = append(all, part)
		}
	}
	return all
}

// parseDevices reads the answer to `info qtree`, QEMU's tree of buses and devices. It is text for people, two blanks a level:
//
//	bus: pcie.0
//	  type PCIE
//	  dev: virtio-net-pci, id "nic"
//	    addr = 03.0
//	    class Ethernet controller, addr 00:03.0, pci id 1af4:1000 (sub 1af4:0001)
//	    bus: virtio-bus
//
// Why this and not a walk through QOM is docs/decisions/0011. Seen on 7.2.22 and 10.0.2.
func parseDevices(text string) []Device {
	type bus struct {
		kind     string
		index    int // among its device's buses
		children []*node
	}
	var roots []*bus
	type level struct {
		bus  *bus
		node *node
	}
	var stack []level
	buses := map[*node][]*bus{}
	for line := range strings.Lines(strings.ReplaceAll(text, "\r", "")) {
		body := strings.TrimLeft(strings.TrimRight(line, "\n"), " ")
		depth := (len(strings.TrimRight(line, "\n")) - len(body)) / 2
		if body == "" {
			continue
		}
		if name, ok := strings.CutPrefix(body, "bus: "); ok && name != "" {
			stack = stack[:min(depth, len(stack))]
			b := &bus{}
			if len(stack) > 0 && stack[len(stack)-1].node != nil {
				owner := stack[len(stack)-1].node
				b.index = len(buses[owner])
				buses[owner] = append(buses[owner], b)
			} else {
				roots = append(roots, b)
			}
			stack = append(stack, level{bus: b})
			continue
		}
		if name, ok := strings.CutPrefix(body, "dev: "); ok {
			stack = stack[:min(depth, len(stack))]
			n := &node{}
			n.Properties = map[string]string{}
			n.Type, n.ID, _ = strings.Cut(name, ", id ")
			n.ID = strings.Trim(n.ID, `"`)
			if len(stack) > 0 && stack[len(stack)-1].bus != nil {
				b := stack[len(stack)-1].bus
				n.Bus = b.kind
				b.children = append(b.children, n)
			}
			stack = append(stack, level{node: n})
			continue
		}
		stack = stack[:min(depth, len(stack))]
		if len(stack) == 0 {
			continue
		}
		top := stack[len(stack)-1]
		switch name, value, property := strings.Cut(body, " = "); {
		case top.bus != nil && strings.HasPrefix(body, "type "):
			top.bus.kind = body[len("type "):]
		case top.node == nil:
		case property:
			top.node.Properties[name] = value
		case strings.HasPrefix(body, "class "):
			_, top.node.PCI, _ = strings.Cut(body, ", pci id ")
		case top.node.Bus == "usb-bus" && strings.HasPrefix(body, "addr "):
			_, rest, _ := strings.Cut(body, "port ")
			top.node.port, _, _ = strings.Cut(rest, ",")
		}
	}
	var all []Device
	var walk func(prefix string, b *bus)
	walk = func(prefix string, b *bus) {
		seen := map[string]int{}
		for _, n := range b.children {
			n.Address = n.address()
			if seen[n.Address]++; seen[n.Address] > 1 {
				n.Address += fmt.Sprintf("#%d", seen[n.Address])
			}
			n.Path = prefix + n.Address
			all = append(all, n.Device)
			for _, child := range buses[n] {
				inner := n.Path + "/"
				if len(buses[n]) > 1 {
					inner += fmt.Sprintf("bus%d/", child.index)
				}
				walk(inner, child)
			}
		}
	}
	for _, b := range roots {
		walk("", b)
	}
	return all
}

// node is a Device on its way out of the tree.
type node struct {
	Device
	port string // the USB port it got
}

// address is where on its bus the guest finds a device, by which QEMU names it in the stream too; where the bus has no addresses, its type.
func (n *node) address() string {
	p := n.Properties
	plain := func(name string) string { number, _, _ := strings.Cut(p[name], " "); return strings.Trim(number, `"`) }
	switch n.Bus {
	case "PCI", "PCIE":
		return plain("addr")
	case "usb-bus":
		return n.port
	case "SCSI":
		return plain("channel") + ":" + plain("scsi-id") + ":" + plain("lun")
	case "IDE":
		return plain("unit")
	case "virtio-serial-bus":
		return plain("nr")
	case "i2c-bus":
		return plain("address")
	}
	return sameType(n.Type)
}

// sameType gives the types that stand for one and the same device under KVM and TCG one name: what they send is the same
// (vmstate i8254, i8259, ioapic, apic).
func sameType(t string) string {
	switch t {
	case "kvm-pit":
		return "isa-pit"
	case "kvm-i8259":
		return "isa-i8259"
	case "kvm-ioapic":
		return "ioapic"
	}
	return t
}

// unseen tells whether no guest ever sees a device of this type: they put bytes into its memory before it starts, or belong to the
// accelerator, whose differences the CPU's features show.
func unseen(t string) bool {
	return slices.Contains([]string{"loader", "guest-loader", "kvmclock", "kvmvapic"}, t)
}

// onboard tells whether a device may be one that the machine type itself puts there, on a bus whose inhabitants may be cut otherwise
// by another version of QEMU, without a difference to the guest.
func (d Device) onboard() bool {
	if d.Bus != "System" && d.Bus != "ISA" && d.Bus != "i2c-bus" {
		return false
	}
	return d.ID == "" && !strings.HasPrefix(d.Type, "isa-") && !strings.HasPrefix(d.Type, "tpm-")
}

// compareDevices finds what one side has and the other has not, or elsewhere, or otherwise. What QEMU refuses later, or what would
// change under a running guest, keeps it from moving; what only might matter is a doubt.
func compareDevices(src, dst *Facts, refuse, doubt func(problem, mend string)) {
	a, b := byPath(src.Devices), byPath(dst.Devices)
	if len(a) == 0 || len(b) == 0 {
		return
	}
	serious := func(d Device) func(problem, mend string) {
		if d.onboard() && !src.twin(dst) {
			return doubt
		}
		return refuse
	}
	other := func(d, e Device) bool {
		return sameType(d.Type) != sameType(e.Type) && (d.PCI == "" || d.PCI != e.PCI) // a type that was renamed keeps its PCI id
	}
	missing, extra := outermost(a, b, other), outermost(b, a, other)
	for _, d := range missing {
		at := func(e Device) bool {
			return e.Type == d.Type && e.ID == d.ID && e.Bus == d.Bus && d.where() != "" && e.where() != d.where()
		}
		if i := slices.IndexFunc(extra, at); i >= 0 {
			refuse(fmt.Sprintf("device %s on the source is at %s on the destination", d, extra[i].where()),
				"start the destination with the device at the source's address (addr=, port=, nr= or lun= of its -device)")
			extra = slices.Delete(extra, i, i+1)
			continue
		}
		mend := d.with()
		if d.ID != "" && d.pluggable() {
			mend += ", or unplug it on the source (device_del " + d.ID + ")"
		}
		serious(d)(fmt.Sprintf("device %s is missing on the destination", d), mend)
	}
	for _, d := range extra {
		mend := d.without()
		if d.pluggable() {
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
			serious(d)(fmt.Sprintf("device %s on the source is %s on the destination", d, e.Type), d.with())
		case d.PCI != e.PCI:
			refuse(fmt.Sprintf("device %s has PCI id %s on the source, %s on the destination", d, d.PCI, e.PCI), "give both the same properties (disable-legacy, disable-modern, vendor and device ids)")
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
func (d Device) byMachine() string {
	if d.ID != "" || d.Type == "ich9-ahci" && d.where() != "PCI address 1f.2" {
		return ""
	}
	return machineSwitches[d.Type]
}

// with is how a destination gets a device of the source.
func (d Device) with() string {
	switch option := d.byMachine(); {
	case option != "":
		return fmt.Sprintf("start the destination with -machine %s=on", option)
	case d.onboard():
		return "start the destination with the source's -machine options, and -device " + d.Type + " if the source has it"
	}
	return "start the destination with -device " + d.Type + ", with the source's options and address"
}

// without is how a destination gets rid of a device that the source has not.
func (d Device) without() string {
	switch option := d.byMachine(); {
	case option != "":
		return fmt.Sprintf("start the destination with -machine %s=off", option)
	case d.onboard():
		return "start the destination with the source's -machine options, and without -device " + d.Type
	case d.ID == "":
		return "start the destination without it (-nodefaults leaves out what QEMU adds unasked)"
	}
	return "start the destination without it"
}

// pluggable tells whether a device can be plugged in and unplugged while the guest runs, by its bus and type. A PCI
// Express root complex has no slots for that: what is behind a port or a bridge can be.
func (d Device) pluggable() bool {
	switch d.Bus {
	case "usb-bus", "SCSI", "virtio-serial-bus":
		return true
	case "PCI", "PCIE":
		for _, fixed := range []string{"VGA", "-vga", "root-port", "pcie-pci-bridge", "ioh3420", "isa-"} {
			if strings.Contains(d.Type, fixed) {
				return false
			}
		}
		return strings.HasPrefix(d.Path, "i440FX") || len(pciAddresses(d.Path)) > 1
	}
	return false
}

func byPath(all []Device) map[string]Device {
	m := make(map[string]Device, len(all))
	for _, d := range all {
		if !unseen(d.Type) {
			m[d.Path] = d
		}
	}
	return m
}

// outermost are the devices of a that b has not, without those behind another one of them, or behind one that is another one in b.
func outermost(a, b map[string]Device, other func(d, e Device) bool) (all []Device) {
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

// Properties that are the host's, or that follow from others which are compared, or that change while a guest runs. Those named x-...
// are QEMU's own. The others are the guest's, and of these the ones in guestSees differ in what a running guest sees at once
// or in the layout of the stream.
var (
	hostProperties = []string{"addr", "netdev", "drive", "chardev", "audiodev", "iothread", "iothread-vq-mapping", "ioeventfd", "vhost", "vhostforce", "vhostfd", "script",
		"romfile", "rombar", "romsize", "bootindex", "busnr", "failover_pair_id", "cyls", "heads", "secs", "lcyls", "lheads", "lsecs", "backend_defaults",
		"account-invalid", "account-failed", "rerror", "werror", "share-rw", "discard_granularity", "ebpf-rss-fds", "tx", "tpmdev", "rng", "memdev", "port",
		"MCFG", "smb_io_base"} // these two the firmware sets while the guest boots
	guestSees = []string{"mac", "serial", "wwn", "vectors", "num-queues", "num_queues", "max_ports", "logical_block_size", "physical_block_size", "below-4g-mem-size", "above-4g-mem-size", "version"}
)

// compareProperties looks at the properties that both sides have.
func compareProperties(d, e Device, refuse, doubt func(problem, mend string)) {
	for _, name := range slices.Sorted(maps.Keys(d.Properties)) {
		here, there := value(d.Properties[name]), value(e.Properties[name])
		if _, both := e.Properties[name]; !both || here == there || strings.HasPrefix(name, "x-") || slices.Contains(hostProperties, name) {
			continue
		}
		mend := fmt.Sprintf("start the destination's device with %s=%s", name, strings.Trim(here, `"`))
		switch {
		case strings.HasSuffix(name, "4g-mem-size"):
			mend = "start the destination with the source's -m and -machine max-ram-below-4g="
		case d.onboard():
			mend = fmt.Sprintf("start the destination with the source's -machine options, or -global "+
				"%s.%s=%s", d.Type, name, strings.Trim(here, `"`))
		case here == `""`:
			mend = fmt.Sprintf("start the destination's device without %s=", name)
		}
		switch {
		case name == "mac":
			refuse(fmt.Sprintf("MAC address of %s differs: source %s, destination %s", d, strings.Trim(here, `"`), strings.Trim(there, `"`)), mend)
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
