package facts

import (
	"fmt"
	"strings"
)

// Device is one device of a guest: what it is, where the guest finds it, and how it was set up.
type Device struct {
	Type string // virtio-net-pci
	ID   string // the user's; "" if it has none
	Bus  string // the type of the bus it is on: PCIE, usb-bus, SCSI, ISA, System, ...
	// the addresses from the machine inwards: q35-pcihost/03.0/virtio-net-device; unique, and the same on both sides
	Path       string
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
	if where := d.Where(); where != "" {
		text += " at " + where
	}
	return text
}

// Where is the device's address in the words of its bus; "" if it has none.
func (d Device) Where() string {
	switch d.Bus {
	case "PCI", "PCIE":
		return "PCI address " + strings.Join(PciAddresses(d.Path), "/")
	case "usb-bus":
		return "USB port " + d.Address
	case "SCSI":
		return "SCSI address " + d.Address
	case "IDE":
		return "IDE unit " + d.Address
	case "virtio-serial-bus":
		return "port " + d.Address
	}
	// a part of what is there: virtio-net-device of virtio-net-pci
	if a := PciAddresses(d.Path); len(a) > 0 && strings.HasPrefix(d.Bus, "virtio-") {
		return "PCI address " + strings.Join(a, "/")
	}
	return ""
}

// PciAddresses are the slots and functions on the way to a device: one for each bridge and its own.
func PciAddresses(path string) (all []string) {
	for part := range strings.SplitSeq(path, "/") {
		if len(part) == 4 && part[2] == '.' {
			all = append(all, part)
		}
	}
	return all
}

// ParseDevices reads the answer to `info qtree`, QEMU's tree of buses and devices. It is text for people, two blanks a
// level:
//
//	bus: pcie.0
//	  type PCIE
//	  dev: virtio-net-pci, id "nic"
//	    addr = 03.0
//	    class Ethernet controller, addr 00:03.0, pci id 1af4:1000 (sub 1af4:0001)
//	    bus: virtio-bus
//
// Why this and not a walk through QOM is docs/decisions/0011. Seen on 7.2.22 and 10.0.2.
func ParseDevices(text string) []Device {
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

// address is where on its bus the guest finds a device, by which QEMU names it in the stream too; where the bus has no
// addresses, its type.
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
	return SameType(n.Type)
}

// SameType gives the types that stand for one and the same device under KVM and TCG one name: what they send is the
// same (vmstate i8254, i8259, ioapic, apic).
func SameType(t string) string {
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
