package main

import (
	"fmt"
	"io"
	"strings"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/guest"
)

// printHardware says what of the guest's hardware is not the usual, and what a CPU cap did.
func printHardware(w io.Writer, r *record.Migration) {
	var parts []string
	if r.QEMU.NIC != "" && r.QEMU.NIC != guest.VirtioNet {
		parts = append(parts, "network card "+r.QEMU.NIC)
	}
	if r.QEMU.DiskBus != "" && r.QEMU.DiskBus != guest.VirtioBlk {
		parts = append(parts, "disks by "+r.QEMU.DiskBus)
	}
	if len(parts) > 0 {
		fmt.Fprintf(w, "hardware %s\n", strings.Join(parts, ", "))
	}
	c := r.CPUCap
	if c == nil {
		return
	}
	text := fmt.Sprintf("CPU cap  %d %% of one processor for the vCPUs, in periods of %s (cgroup %s)", c.Percent, units.FormatDuration(c.Period), c.Cgroup)
	for _, side := range []struct {
		name string
		use  *record.CapUse
	}{{"source", c.Source}, {"destination", c.Destination}} {
		if side.use != nil {
			text += fmt.Sprintf("; %s: held back in %s of %s, used %s", side.name, count(side.use.Throttled), plural(side.use.Periods, "period", "periods"), units.FormatDuration(side.use.Used))
		}
	}
	fmt.Fprintln(w, fold(text, 9, page(w)))
}
