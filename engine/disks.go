package engine

import (
	"fmt"
	"strings"

	"qmigrate/qmp"
)

// Disk is one of the guest's disks and what is behind it.
type Disk struct {
	Device    string // the path of the device that the guest sees, as in Facts.Devices; "" if it is not attached to one
	Name      string // drive's name, or its node's
	Node      string // the node's name; "" if there is no medium
	File      string
	Driver    string // raw, qcow2, ...
	Bytes     int64  // what the guest sees
	ReadOnly  bool
	Removable bool
	Direct    bool // past the host's page cache (cache.direct=on)
	Bitmaps   []Bitmap

	mirrored bool // the migration copies it
	flash    bool // it is the firmware's flash memory: its content travels with the guest's memory
}

// Bitmap is a dirty bitmap of a disk.
type Bitmap struct {
	Name       string
	Persistent bool // kept in the image
}

// disks brings the drives and the devices together.
func disks(blocks []qmp.BlockDevice, devices []Device) (all []Disk) {
	for _, b := range blocks {
		d := Disk{Name: b.Device, Removable: b.Removable}
		if m := b.Inserted; m != nil {
			for _, b := range m.Bitmaps {
				d.Bitmaps = append(d.Bitmaps, Bitmap{b.Name, b.Persistent})
			}
			d.Node, d.File, d.Driver, d.Bytes, d.ReadOnly, d.Direct = m.Node, m.File, m.Driver, m.Image.VirtualSize, m.ReadOnly, m.Cache.Direct
		}
		if d.Name == "" {
			d.Name = d.Node
		}
		for _, dev := range devices {
			drive := strings.Trim(dev.Properties["drive"], `"`)
			if drive != "" && (drive == b.Device || drive == d.Node) {
				d.Device, d.flash = dev.Path, strings.HasPrefix(dev.Type, "cfi.pflash")
			}
		}
		all = append(all, d)
	}
	return all
}

// compareDisks finds disks that would be others than the guest knows. QEMU checks none of this: the guest finds out.
func compareDisks(src, dst *Facts, refuse, doubt func(problem, mend string)) {
	there, devices := map[string]Disk{}, map[string]Device{}
	for _, d := range dst.Devices {
		there[d.Path] = Disk{Device: d.Path} // of a device without a drive
	}
	for _, d := range dst.Disks {
		there[d.Device] = d
	}
	for _, d := range src.Devices {
		devices[d.Path] = d
	}
	for _, d := range src.Disks {
		e, ok := there[d.Device]
		if !ok || d.Device == "" {
			continue // its device is missing, which is said, or the guest does not see it
		}
		name := d.Name
		if device := devices[d.Device]; device.where() != "" {
			name += " at " + device.where()
		} else if a := pciAddresses(d.Device); len(a) > 0 {
			name += " at PCI address " + strings.Join(a, "/")
		}
		say := refuse
		if d.Removable {
			say = doubt
		}
		switch {
		case d.Node == "" && e.Node == "":
			continue
		case d.Node != "" && e.Node == "":
			say(fmt.Sprintf("disk %s has no medium on the destination, and %s on the source", name, d.File),
				"put the source's medium into it (blockdev-change-medium, or on the command line)")
			continue
		case d.Node == "":
			say(fmt.Sprintf("disk %s has no medium on the source, and %s on the destination", name, e.File),
				"eject it on the destination (`eject`, blockdev-remove-medium)")
			continue
		case d.Bytes != e.Bytes:
			say(fmt.Sprintf("sizes of disk %s differ: source %d KiB (%s), destination %d KiB (%s)", name, d.Bytes>>10, d.File, e.Bytes>>10, e.File),
				"give the destination the same storage, or a copy of the same size; if the source's was resized, start the destination anew")
		}
		switch {
		case !d.ReadOnly && e.ReadOnly:
			refuse(fmt.Sprintf("disk %s is writable on the source and read-only on the destination", name),
				"start the destination with it writable, as on the source")
		case d.ReadOnly && !e.ReadOnly:
			doubt(fmt.Sprintf("disk %s is read-only on the source and writable on the destination", name), "start the destination with it read-only (readonly=on)")
		}
		switch {
		case d.ReadOnly || d.Removable || d.mirrored || d.flash:
		case d.Driver != "raw" && strings.HasPrefix(d.File, "nfs://"):
			// QEMU's NFS client knows a file's length from when it opened it, before the source made it longer (block/nfs.c, read in an
			// older form, has no bdrv_getlength). Seen on 7.2.22 and 10.0.2: of 274 acknowledged writes 109 read as zeros on the destination.
			refuse(fmt.Sprintf("disk %s is an image of format %s on NFS, by QEMU's own client: the destination does not learn that it has grown, and the guest loses what it wrote", name, d.Driver),
				"mirror it, or use a raw image, or mount the share on both hosts and give QEMU the file")
		case d.File != e.File:
			doubt(fmt.Sprintf("disk %s is %s on the source, %s on the destination: unless they are one and the same, or mirrored, the guest finds another disk", name, d.File, e.File),
				"give both the same storage, or mirror it")
		case (!d.Direct || !e.Direct) && !(src.here && dst.here):
			doubt(fmt.Sprintf("disk %s goes through the host's page cache (cache.direct off) on both hosts' %s: the destination may read what is old", name, d.File),
				"set cache.direct=on (cache=none) on both, unless the file system keeps both hosts' caches the same")
		}
	}
}
