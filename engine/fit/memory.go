package fit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"qmigrate/engine/facts"
)

// memoryOption is the -m of a guest, with the room for what is plugged in.
func memoryOption(f *facts.Facts) string {
	text := fmt.Sprintf("-m %dk", f.Base()>>10)
	if f.MemorySlots > 0 {
		text += fmt.Sprintf(",slots=%d", f.MemorySlots)
	}
	if f.MaxMemoryBytes > f.Base() {
		text += fmt.Sprintf(",maxmem=%dk", f.MaxMemoryBytes>>10)
	}
	return text
}

// dimms are the memory devices that are on no bus, and so are not among Facts.Devices.
func dimms(f *facts.Facts) map[string]facts.MemoryDevice {
	all := map[string]facts.MemoryDevice{}
	for _, d := range f.MemoryDevices {
		if d.Kind == "dimm" || d.Kind == "nvdimm" {
			all[d.Memdev] = d
		}
	}
	return all
}

// compareMemoryDevices compares the DIMMs, whatever their own ids: the stream names their backends.
func compareMemoryDevices(src, dst *facts.Facts, refuse func(problem, mend string)) {
	here, there := dimms(src), dimms(dst)
	for _, name := range slices.Sorted(maps.Keys(here)) {
		d := here[name]
		e, ok := there[name]
		switch d.ID = cmp.Or(d.ID, e.ID); {
		case !ok:
			refuse(fmt.Sprintf("memory %s that was plugged in on the source, %s, is missing on the destination", name, d),
				"start the destination with "+d.Options())
		case d.Bytes != e.Bytes || d.Addr != e.Addr || d.Slot != e.Slot || d.Node != e.Node:
			refuse(fmt.Sprintf("memory %s that was plugged in differs: source %s, destination %s", name, d, e),
				"start the destination with "+d.Options())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(there)) {
		if _, ok := here[name]; !ok {
			refuse(fmt.Sprintf("memory %s, %s, is on the destination only", name, there[name]),
				"start the destination without it")
		}
	}
}

// compareMemory finds what QEMU says about memory when the stream begins: "Unknown ramblock", "Size mismatch"
// (migration/ram.c, parse_ramblock).
func compareMemory(src, dst *facts.Facts, refuse func(problem, mend string)) {
	if src.MemorySlots != dst.MemorySlots || src.MaxMemoryBytes != dst.MaxMemoryBytes {
		refuse(fmt.Sprintf("room for memory that is plugged in differs: source %s, destination %s", slots(src), slots(dst)),
			"start the destination with "+memoryOption(src))
	}
	if len(src.RAM) == 0 || len(dst.RAM) == 0 {
		return
	}
	there := map[string]facts.RAMBlock{}
	for _, b := range dst.RAM {
		there[b.Name] = b
	}
	const rootBus = "0000:00:" // how the name of a block begins whose device is there
	devices := map[string]bool{}
	at := byPath(src.Devices)
	for _, d := range dst.Devices {
		if a := facts.PciAddresses(d.Path); len(a) == 1 && d.PCI != "" && at[d.Path].Type == d.Type {
			devices[rootBus+a[0]] = true
		}
	}
	plugged := dimms(src)
	for _, b := range src.RAM {
		if _, said := plugged[b.Name]; said {
			continue
		}
		other, ok := there[b.Name]
		device, part, ofDevice := strings.Cut(b.Name, "/")
		ofDevice = ofDevice && strings.HasPrefix(b.Name, rootBus)
		mend := fmt.Sprintf("start the destination with the source's memory backends, under the same ids (this "+
			"one: -object memory-backend-...,id=%s,size=%dk)", b.Name, b.Bytes>>10)
		if b.Name == "pc.ram" {
			mend = "start the destination without -machine memory-backend= and -numa memdev="
		}
		switch {
		case strings.HasSuffix(b.Name, ".rom"):
			mend = "give the device on the destination the source's romfile= (one of the same size, or none)"
		case strings.HasPrefix(b.Name, "system.flash") || strings.HasSuffix(b.Name, ".bios"):
			mend = "start the destination with the source's firmware images (-bios, -pflash), or others of these sizes"
		case ofDevice:
			mend = "start the destination's device with the source's memory size (vgamem_mb= and the like)"
		}
		switch {
		case !ok && ofDevice && len(dst.Devices) > 0 && !devices[device]:
			// its device is missing or another one, which is said
		case !ok && ofDevice:
			refuse(fmt.Sprintf("%s of the device at %s is missing on the destination", part,
				strings.TrimPrefix(device, rootBus)), mend)
		case !ok:
			refuse(fmt.Sprintf("memory block %s is missing on the destination (%s)", b.Name, names(dst.RAM)), mend)
		case b.Bytes == other.Bytes || src.Base() != dst.Base() && b.Bytes == src.Base(): // the latter has been said
		case (other.MaxBytes > other.Bytes || strings.HasPrefix(b.Name, "/rom@")) && b.Bytes <= other.MaxBytes:
			// it takes the source's size
		default:
			refuse(fmt.Sprintf("memory block %s differs: source %d KiB, destination %d KiB", b.Name, b.Bytes>>10,
				other.MaxBytes>>10), mend)
		}
	}
}

// comparePages is for post-copy, where one page is what is asked for: "Mismatched RAM page size" (migration/ram.c,
// parse_ramblock).
func comparePages(src, dst *facts.Facts, refuse func(problem, mend string)) {
	for _, b := range src.RAM {
		for _, e := range dst.RAM {
			if b.Name == e.Name && b.PageSize != e.PageSize {
				refuse(fmt.Sprintf("page sizes of memory block %s differ, which post-copy does not take: source %s, "+
					"destination %s", b.Name, b.PageSize, e.PageSize), "back the destination's by pages of the source's "+
					"size (memory-backend-ram, or memory-backend-file on hugetlbfs)")
			}
		}
	}
}

func slots(f *facts.Facts) string {
	if f.MemorySlots == 0 {
		return "none"
	}
	return fmt.Sprintf("slots=%d,maxmem=%dM", f.MemorySlots, f.MaxMemoryBytes>>20)
}

// names are the memory blocks that may stand for a missing one: the guest's RAM.
func names(all []facts.RAMBlock) string {
	var text []string
	for _, b := range all {
		if !strings.Contains(b.Name, "/") && b.Bytes >= 1<<20 && !strings.HasPrefix(b.Name, "pc.bios") {
			text = append(text, b.Name)
		}
	}
	if len(text) == 0 {
		return "it has none of this size"
	}
	return "it has " + list(text)
}

// compareShared is for a plan with x-ignore-shared: what both sides map from one file is not sent. Whether it is one
// file QEMU does not check: what the source leaves out and the destination does not map is a page of zeros to the
// guest.
func compareShared(src, dst *facts.Facts, refuse, doubt func(problem, mend string)) {
	const mend = "start the destination with the source's memory-backend-file (same mem-path, share=on), or leave " +
		"x-ignore-shared off"
	there := map[string]facts.Backend{}
	for _, b := range dst.Backends {
		there[b.ID] = b
	}
	shared := false
	for _, b := range src.Backends {
		e, ok := there[b.ID]
		switch {
		case !b.Share:
			continue
		case !ok || !e.Share:
			refuse(fmt.Sprintf("x-ignore-shared would lose memory %s: it is shared on the source and not on the destination",
				b.ID), mend)
		case b.File != e.File:
			refuse(fmt.Sprintf("x-ignore-shared would lose memory %s: the source maps %s, the destination %s", b.ID,
				orNothing(b.File), orNothing(e.File)), mend)
		case b.File == "":
			refuse(fmt.Sprintf("x-ignore-shared would lose memory %s: it is shared, but no file that another QEMU could map",
				b.ID), mend)
		case !(src.Beside(dst)):
			doubt(fmt.Sprintf("x-ignore-shared does not send memory %s: both sides must map one and the same file %s", b.ID,
				b.File), mend)
		}
		shared = true
	}
	if !shared {
		doubt("x-ignore-shared has no effect: the source has no shared memory",
			"start both with memory-backend-file,share=on, or leave it off")
	}
}

func orNothing(file string) string {
	if file == "" {
		return "no file"
	}
	return file
}
