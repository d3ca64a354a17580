package fit

import (
	"fmt"
	"slices"
	"strings"

	"qmigrate/engine/facts"
	"qmigrate/engine/holder"
)

// compareStates finds a pair that is not source and destination, and machines that cannot be the same.
func compareStates(src, dst *facts.Facts) (all []Mismatch) {
	add := func(problem, mend string, args ...any) {
		all = append(all, Mismatch{Problem: fmt.Sprintf(problem, args...), Mend: mend})
	}
	if m, ok := MayBegin(src, dst); !ok {
		all = append(all, m)
		if src.Same(dst) {
			return all // nothing else can differ
		}
	}
	if src.Machine != dst.Machine {
		add("machine types differ: source %s, destination %s", machineMend(src, dst), src.Machine, dst.Machine)
	}
	if a, b := src.Base(), dst.Base(); a != b {
		mend := "start the destination with " + memoryOption(src)
		add("memory differs: source %d KiB, destination %d KiB", mend, a>>10, b>>10)
	}
	compareMemoryDevices(src, dst, func(problem,
		mend string) {
		all = append(all, Mismatch{Problem: problem, Mend: mend})
	})
	if src.VCPUs != dst.VCPUs {
		add("vCPUs differ: source %d, destination %d", "start the destination with "+smpOption(src), src.VCPUs, dst.VCPUs)
	}
	for _, reason := range src.Blockers {
		if !src.Dumps { // it is waited for
			add("source cannot migrate: %s", blockerMend(reason), reason)
		}
	}
	return all
}

// machineMend is how two machine types become one. A QEMU has only so many.
func machineMend(src, dst *facts.Facts) string {
	if len(dst.MachineTypes) == 0 || slices.Contains(dst.MachineTypes, src.Machine) {
		return "start the destination with -machine " + src.Machine
	}
	mend := fmt.Sprintf("destination QEMU %s has no %s: use a QEMU there that has it", dst.Version, src.Machine)
	family := src.Machine[:strings.LastIndex(src.Machine, "-")+1] // pc-q35- of pc-q35-7.2
	var common []string
	for _, name := range dst.MachineTypes {
		same := family != "" && strings.HasPrefix(name, family)
		if same && slices.Contains(src.MachineTypes, name) && !slices.Contains(common, name) {
			common = append(common, name)
		}
	}
	if len(common) > 0 {
		slices.Sort(common)
		mend += ", or start the guest anew with a machine type that both have (" + list(common) + ")"
	}
	return mend
}

// blockerMend is what to do about a reason of QEMU's for not migrating.
func blockerMend(reason string) string {
	switch has := func(words string) bool { return strings.Contains(reason, words) }; {
	case has("VirtFS"):
		return "unmount the share in the guest"
	case has("non-migratable CPU"):
		return "start the guest anew without the CPU flag that QEMU names"
	case has("non-migratable device"):
		return "unplug that device (device_del) if it can be, or start the guest anew without it"
	case has("format used by node"):
		return "convert the image, or copy it to one of format raw or qcow2 while the guest runs " +
			"(blockdev-mirror, job-complete)"
	}
	return "undo what QEMU names"
}

// UnsafeSource says in what way this source is known to lose memory.
func UnsafeSource(f *facts.Facts) []string {
	if f.Accelerator != "tcg" || !f.Before(9, 0) {
		return nil
	}
	if f.MemoryBytes%(256<<10) == 0 {
		return []string{fmt.Sprintf("source QEMU %s under TCG loses dirty pages when RAM is a multiple of 256 KiB, as here "+
			"(fixed upstream in 9.0, commit 03bfc2188f): the guest on the destination may be corrupt; use QEMU >= 9.0 or RAM "+
			"such as %dk", f.Version, f.MemoryBytes>>10+8)}
	}
	return []string{fmt.Sprintf("source QEMU %s under TCG: this RAM is not a multiple of 256 KiB, which avoids its loss "+
		"of dirty pages but stalls the guest when migration starts", f.Version)}
}

// MayBegin is what is in the way of a migration between two QEMUs.
func MayBegin(src, dst *facts.Facts) (Mismatch, bool) {
	s := holder.Situation{
		Asker:  holder.Migrate,
		Source: holder.QEMU{Reach: holder.Answers, Run: holder.RunOf(src.RunState), Status: src.Migration()},
		Destination: holder.QEMU{
			Reach: holder.Answers, Run: holder.RunOf(dst.RunState), Status: dst.Migration(),
		},
		Leftover: len(src.Mirrors) > 0,
	}
	if src.Same(dst) {
		s.Strangers = "one QEMU"
	}
	d := holder.Decide(s)
	if !d.Doubt {
		return Mismatch{}, true
	}
	words := map[string]string{"S": src.Name, "D": dst.Name, "d": dst.RunState, "m": src.MigrationStatus,
		"n": dst.MigrationStatus, "L": strings.Join(src.Mirrors, ", ")}
	problem, mend, _ := strings.Cut(holder.Fill(d.Text, words), "\t")
	return Mismatch{Problem: problem, Mend: mend}, false
}
