package fit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"qmigrate/engine/facts"
)

// compareTopology compares how the CPUs are arranged, in the words that both have: it is in the guest's CPUID, ACPI
// tables and APIC ids.
func compareTopology(src, dst *facts.Facts, refuse func(problem, mend string)) {
	if src.VCPUs != dst.VCPUs {
		return // that is said
	}
	var here, there []string
	for _, name := range slices.Sorted(maps.Keys(src.Topology)) {
		a := src.Topology[name]
		b, both := dst.Topology[name]
		switch {
		case !both || a == b || name == "cpus": // how many there are is compared by itself
		case name == "nodes":
			refuse(fmt.Sprintf("NUMA nodes of the CPUs differ: source %d, destination %d", a, b),
				"start the destination with the source's -numa")
		default:
			here, there = append(here, fmt.Sprintf("%s=%d", name, a)), append(there, fmt.Sprintf("%s=%d", name, b))
		}
	}
	if len(here) > 0 {
		refuse(fmt.Sprintf("CPU topology differs: source %s, destination %s", strings.Join(here, ","),
			strings.Join(there, ",")), "start the destination with "+smpOption(src))
	}
}

// smpOption is the -smp of a guest. What is one by default is left out: not every QEMU knows every word.
func smpOption(f *facts.Facts) string {
	text := fmt.Sprintf("-smp %d", f.VCPUs)
	if most := f.Topology["maxcpus"]; most > int64(f.VCPUs) {
		text += fmt.Sprintf(",maxcpus=%d", most)
	}
	for _, name := range []string{"sockets", "dies", "clusters", "modules", "cores", "threads"} {
		if n := f.Topology[name]; n > 1 || n == 1 && (name == "sockets" || name == "cores") {
			text += fmt.Sprintf(",%s=%d", name, n)
		}
	}
	return text
}

// compareUUIDs: the guest has read its UUID when it started, and QEMU compares them with validate-uuid alone.
func compareUUIDs(src, dst *facts.Facts, say func(problem, mend string)) {
	if src.UUID == dst.UUID {
		return
	}
	mend := "start the destination with -uuid " + src.UUID
	if src.UUID == "" {
		mend = "start the destination without -uuid"
	}
	say(fmt.Sprintf("UUIDs differ: source %s, destination %s: the guest finds another one after its next reset",
		cmp.Or(src.UUID, "none"), cmp.Or(dst.UUID, "none")), mend)
}

// compareNetwork looks at what is behind the network cards.
func compareNetwork(src, dst *facts.Facts, doubt func(problem, mend string)) {
	there := byPath(dst.Devices)
	for _, d := range src.Devices {
		e, ok := there[d.Path]
		here, has := d.Properties["netdev"]
		if !ok || !has {
			continue
		}
		here, there := strings.Trim(here, `"`), strings.Trim(e.Properties["netdev"], `"`)
		a, b := src.Netdevs[here], dst.Netdevs[there]
		switch {
		case here != "" && there == "":
			doubt(fmt.Sprintf("network card %s has the backend %s on the source and none on the destination: the "+
				"guest loses its network", d, here), "start the destination with a -netdev for it")
		case d.Type == "virtio-net-device" && a == "tap" && b != "" && b != "tap" && !strings.HasPrefix(b, "vhost"):
			doubt(fmt.Sprintf("network card %s has a TAP on the source and a %s backend on the destination: QEMU "+
				"refuses it (\"saved image requires vnet_hdr=on\") unless the source's TAP has "+
				"vnet_hdr=off", d, b), "start the destination with a TAP too (-netdev tap)")
		}
	}
}
