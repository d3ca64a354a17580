package engine

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"qmigrate/qmp"
)

// Disk is one of the guest's disks and what is behind it.
type Disk struct {
	Device    string // the path of the device that the guest sees, as in Facts.Devices; "" if it is not attached to one
	QOM       string // that device's id, or its path among QEMU's objects; "" if QEMU names none
	Name      string // drive's name, or its node's
	Node      string // the node's name; "" if there is no medium
	File      string
	Driver    string // raw, qcow2, ...
	Bytes     int64  // what the guest sees
	ReadOnly  bool
	Removable bool
	Direct    bool    // past the host's page cache (cache.direct=on)
	Layers    []Layer // the image that the guest writes to, then those that it is based on; nil without a medium
	Bitmaps   []Bitmap

	throttle  qmp.Throttle
	threshold int64 // bytes; 0: none
	mirrored  bool  // the migration copies it
	flash     bool  // it is the firmware's flash memory: its content travels with the guest's memory
}

// Bitmap is a dirty bitmap of a disk.
type Bitmap struct {
	Name       string
	Persistent bool // kept in the image
}

// Layer is one image of a disk.
type Layer struct {
	Name   string    // as QEMU names it
	Format string    // raw, qcow2, ...: how QEMU reads it
	File   string    // the host's file or block device, as QEMU was told; "" if the image is on a server
	Opened *OpenFile // what that file is to the host; nil: not known
}

// OpenFile is a file or block device that a QEMU has open, as its host knows it.
type OpenFile struct {
	Path      string // where it is, without links, under the root of QEMU's process
	ID        string // two open files with one ID are one file
	Block     bool   // it is a block device
	Removed   bool   // it is in no folder any more, or another file has taken its place
	Content   string // the format that its first bytes name, such as qcow2; "": they name none, as in a raw image
	Uncertain string // the kind of file system on which one file may have two IDs, such as overlay; "": it has one
}

// disks brings the drives and the devices together.
func disks(blocks []qmp.BlockDevice, devices []Device) (all []Disk) {
	for _, b := range blocks {
		d := Disk{Name: b.Device, Removable: b.Removable, QOM: b.Path}
		if m := b.Inserted; m != nil {
			for _, b := range m.Bitmaps {
				d.Bitmaps = append(d.Bitmaps, Bitmap{b.Name, b.Persistent})
			}
			d.Node, d.File, d.Driver, d.Bytes = m.Node, m.File, m.Driver, m.Image.VirtualSize
			d.ReadOnly, d.Direct = m.ReadOnly, m.Cache.Direct
			d.Layers, d.throttle, d.threshold = layers(m.Image), m.Throttle, m.Threshold
		}
		if d.Name == "" {
			d.Name = d.Node
		}
		for _, dev := range devices {
			drive := strings.Trim(dev.Properties["drive"], `"`)
			if drive != "" && (drive == b.Device || drive == d.Node) || dev.ID != "" && d.Node == "" && dev.ID == b.Path {
				d.Device, d.flash = dev.Path, strings.HasPrefix(dev.Type, "cfi.pflash")
			}
		}
		all = append(all, d)
	}
	return all
}

// layers are the images of a chain. Filters between them, such as throttle, hold no data and are left out.
func layers(i qmp.BlockImage) (all []Layer) {
	for next := &i; next != nil; next = next.Backing {
		if !slices.Contains(filters, next.Format) {
			all = append(all, Layer{Name: next.File, Format: next.Format, File: localFile(next.File)})
		}
	}
	return all
}

// QEMU's block drivers that are filters, and those that are formats of images. Source: qapi/block-core.json,
// BlockdevDriver, 7.2 to 11.1. A driver in neither list reads what is there as it is, which is raw.
var (
	filters = []string{"throttle", "copy-on-read", "blkdebug", "blklogwrites", "blkreplay", "blkverify", "compress",
		"copy-before-write", "preallocate", "snapshot-access", "mirror_top", "commit_top", "backup-top"}
	formats = []string{"bochs", "cloop", "dmg", "luks", "parallels", "qcow", "qcow2", "qed", "vdi", "vhdx", "vmdk", "vpc"}
)

// ImageFormat is a layer's format in one word for each way to read it: raw, qcow2, ...
func (l Layer) ImageFormat() string {
	if slices.Contains(formats, l.Format) {
		return l.Format
	}
	return "raw"
}

func (l Layer) String() string { return l.where() + " (" + l.ImageFormat() + ")" }

// where is the file with its whole path where that is known.
func (l Layer) where() string {
	if l.Opened != nil && !l.Opened.Removed {
		return l.Opened.Path
	}
	return cmp.Or(l.File, l.Name)
}

// localFile is the host's file that QEMU means by a file name; "" if it means something else.
func localFile(name string) string {
	if text, ok := strings.CutPrefix(name, "json:"); ok {
		var node map[string]any
		if json.Unmarshal([]byte(text), &node) != nil {
			return ""
		}
		for {
			below, ok := node["file"].(map[string]any)
			if !ok {
				break
			}
			node = below
		}
		switch node["driver"] {
		case "file", "host_device", "host_cdrom":
			file, _ := node["filename"].(string)
			return file
		}
		return ""
	}
	i := strings.IndexAny(name, ":/")
	if i < 0 || name[i] == '/' {
		return name
	}
	switch name[:i] {
	case "file", "host_device", "host_cdrom":
		return name[i+1:]
	}
	return ""
}

// readOpened asks the host what the files under the disks are.
func readOpened(ep *Endpoint, disks []Disk) {
	if ep.Opened == nil {
		return
	}
	var names []string
	for _, d := range disks {
		for _, l := range d.Layers {
			if l.File != "" {
				names = append(names, l.File)
			}
		}
	}
	opened := ep.Opened(names)
	for _, d := range disks {
		for i, l := range d.Layers {
			if o, ok := opened[l.File]; ok {
				d.Layers[i].Opened = &o
			}
		}
	}
}

// likeness is how much two layers are one.
type likeness int

const (
	same     likeness = iota // one file
	namesake                 // of one name; nothing says that it is one file, or that it is not
	doubtful                 // of two names that may mean one file
	other                    // two files
)

// likeness of two layers; here tells that both QEMUs run on this machine.
func (l Layer) likeness(k Layer, here bool) likeness {
	switch {
	case here && l.Opened != nil && k.Opened != nil:
		switch {
		case l.Opened.ID == k.Opened.ID:
			return same
		case l.Opened.Uncertain != "" && l.Opened.Path == k.Opened.Path && !l.Opened.Removed:
			return namesake
		}
		return other
	case l.Name == k.Name, l.File != "" && l.File == k.File:
		return namesake
	}
	return doubtful
}

// difference is what is wrong with the images under a disk on the destination.
type difference struct {
	likeness likeness
	format   bool   // one file, read in two ways
	problem  string // "" if nothing is wrong
	mend     string
}

// images compares the images under a disk: d on the source, e on the destination. Both have a medium.
func (d Disk) images(e Disk, name string, here bool) difference {
	if len(d.Layers) == 0 || len(e.Layers) == 0 {
		return difference{likeness: namesake}
	}
	a, b := d.Layers[0], e.Layers[0]
	found := difference{likeness: a.likeness(b, here)}
	set := func(mend, problem string, args ...any) difference {
		found.problem, found.mend = fmt.Sprintf("disk "+name+" "+problem, args...), mend
		return found
	}
	below := func(l Layer, all []Layer) bool {
		return slices.ContainsFunc(all[1:], func(k Layer) bool { return l.likeness(k, here) <= namesake })
	}
	start := "start the destination with " + a.String()
	const sameLayers = "start the destination with the same layers"
	switch {
	case found.likeness <= namesake && a.ImageFormat() != b.ImageFormat():
		found.format = true
		return set("start the destination with format="+a.ImageFormat()+" for it",
			"is of format %s on the source, and the destination opens the same %s as %s: the guest would find garbage",
			a.ImageFormat(), b.where(), b.ImageFormat())
	case a.misread(b, found.likeness):
		found.format = true
		return set("start the destination with format="+b.Opened.Content+" for it",
			"is raw on the destination, but %s is an image of format %s: the guest would find garbage",
			b.where(), b.Opened.Content)
	case found.likeness <= namesake:
	case a.Opened != nil && a.Opened.Removed:
		return set("copy it into an image that stays: blockdev-add of that, blockdev-mirror with sync=full, block-job-complete",
			"is written to %s on the source, a removed file (snapshot=on makes it so) that no other QEMU can open, "+
				"and is %s on the destination", a.File, b)
	case below(b, d.Layers):
		return set(start+", or merge it first: block-commit, then block-job-complete",
			"is %s on the source, a layer over what it is on the destination, %s: "+
				"what the guest wrote since that snapshot would be gone", a, b)
	case below(a, e.Layers):
		return set(start,
			"is %s on the source, and %s on the destination, a layer over it that the guest no longer has", a, b)
	case found.likeness == doubtful:
		return set("give both the same storage, or mirror it",
			"is %s on the source, %s on the destination: unless they are one and the same, or mirrored, "+
				"the guest finds another disk", a.where(), b.where())
	default:
		return set(start+", or mirror it",
			"is %s on the source, %s on the destination, which is another file: the guest finds another disk",
			a.where(), b.where())
	}
	for i := 1; i < max(len(d.Layers), len(e.Layers)); i++ {
		switch {
		case i >= len(e.Layers):
			found.likeness = other
			return set(sameLayers, "is based on %s on the source, and on nothing on the destination", d.Layers[i])
		case i >= len(d.Layers):
			found.likeness = other
			return set(sameLayers, "is based on %s on the destination, and on nothing there on the source", e.Layers[i])
		}
		a, b := d.Layers[i], e.Layers[i]
		how := a.likeness(b, here)
		found.likeness = max(found.likeness, how)
		if found.format = how <= namesake && a.ImageFormat() != b.ImageFormat(); found.format || how > namesake {
			return set(sameLayers, "is based on %s on the source, on %s on the destination", a, b)
		}
	}
	return found
}

// misread tells whether the destination would read an image of another format as a raw one. What a guest wrote to a raw
// disk may begin as an image does: then it does so on the source too.
func (l Layer) misread(k Layer, how likeness) bool {
	if k.Opened == nil || k.Opened.Content == "" || k.ImageFormat() != "raw" {
		return false
	}
	return l.ImageFormat() != "raw" || how > namesake && l.Opened != nil && l.Opened.Content != k.Opened.Content
}

// pairs calls f for each disk of the guest that both sides have a device for.
func pairs(src, dst *Facts, f func(d, e Disk, name string)) {
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
		name := cmp.Or(d.Name, d.QOM)
		if device := devices[d.Device]; device.where() != "" {
			name += " at " + device.where()
		} else if a := pciAddresses(d.Device); len(a) > 0 {
			name += " at PCI address " + strings.Join(a, "/")
		}
		f(d, e, name)
	}
}

// compareDisks finds disks that would be others than the guest knows. QEMU checks none of this: the guest finds out.
func compareDisks(src, dst *Facts, refuse, doubt func(problem, mend string)) {
	here := src.here && dst.here
	pairs(src, dst, func(d, e Disk, name string) {
		say := refuse
		if d.Removable {
			say = doubt
		}
		switch {
		case d.Node == "" && e.Node == "":
			return
		case d.Node != "" && e.Node == "":
			say(fmt.Sprintf("disk %s has no medium on the destination, and %s on the source", name, d.File),
				"put the source's medium into it (blockdev-change-medium, or on the command line)")
			return
		case d.Node == "":
			say(fmt.Sprintf("disk %s has no medium on the source, and %s on the destination", name, e.File),
				"eject it on the destination (`eject`, blockdev-remove-medium)")
			return
		}
		limits, others := d.throttle, e.throttle
		if limits.Group, others.Group = "", ""; limits != others {
			doubt(fmt.Sprintf("limits of bytes and requests a second of disk %s differ: source %s, destination %s",
				name, limited(limits), limited(others)), "give the destination's those of the source (block_set_io_throttle)")
		}
		found := d.images(e, name, here)
		switch {
		case found.format && !d.mirrored: // which explains another size
			refuse(found.problem, found.mend)
			return
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
		case d.mirrored || d.flash:
		case !d.ReadOnly && !d.Removable && d.Driver != "raw" && strings.HasPrefix(d.File, "nfs://"):
			// QEMU's NFS client knows a file's length from when it opened it, before the source made it longer (block/nfs.c, read in an
			// older form, has no bdrv_getlength). Seen on 7.2.22 and 10.0.2: of 274 acknowledged writes 109 read as zeros on the destination.
			refuse(fmt.Sprintf("disk %s is an image of format %s on NFS, by QEMU's own client: the destination does not learn that it has grown, and the guest loses what it wrote", name, d.Driver),
				"mirror it, or use a raw image, or mount the share on both hosts and give QEMU the file")
		case found.problem != "":
			doubt(found.problem, found.mend)
		case (!d.Direct || !e.Direct) && !d.ReadOnly && !d.Removable && !here:
			doubt(fmt.Sprintf("disk %s goes through the host's page cache (cache.direct off) on both hosts' %s: the destination may read what is old", name, d.File),
				"set cache.direct=on (cache=none) on both, unless the file system keeps both hosts' caches the same")
		}
	})
}

// limited is a drive's limits in the words of block_set_io_throttle.
func limited(t qmp.Throttle) string {
	b, err := json.Marshal(t)
	if t == (qmp.Throttle{}) || err != nil {
		return "none"
	}
	var words []string
	for word := range strings.SplitSeq(strings.Trim(string(b), "{}"), ",") {
		if word = strings.ReplaceAll(word, `"`, ""); !strings.HasSuffix(word, ":0") {
			words = append(words, strings.ReplaceAll(word, ":", "="))
		}
	}
	return strings.Join(words, ",")
}

// LaunchedDisks compares the disks of a guest with those of a destination that was started for it on the same machine,
// from its own command line. What may be right for another pair is wrong here: each disk has to be the source's very
// image, layer by layer. Disks that the plan mirrors are exempt, and those whose file the user chose: chosen has these
// files, as the destination names them.
func LaunchedDisks(src, dst *Facts, p Plan, chosen []string) (refusals, doubts []Mismatch) {
	refuse := func(mend, problem string, args ...any) {
		refusals = append(refusals, Mismatch{fmt.Sprintf(problem, args...), mend})
	}
	pairs(src, dst, func(d, e Disk, name string) {
		own := slices.ContainsFunc(e.Layers, func(l Layer) bool { return l.File != "" && slices.Contains(chosen, l.File) })
		switch {
		case own, d.Node != "" && slices.Contains(p.Mirror.Nodes, d.Node), d.Node == "" && e.Node == "":
			return
		case e.Node == "":
			refuse("eject it on the source, or start the destination yourself",
				"disk %s has no medium on the destination, and has %s on the source", name, d.File)
			return
		case d.Node == "":
			refuse("put it in on the source, or start the destination yourself",
				"disk %s has a medium on the destination only, %s", name, e.File)
			return
		}
		found := d.images(e, name, src.here && dst.here)
		switch {
		case found.likeness == other, found.format,
			found.likeness == doubtful && filepath.Base(d.File) != filepath.Base(e.File):
			refusals = append(refusals, Mismatch{found.problem, found.mend})
		case found.likeness != same:
			doubts = append(doubts, Mismatch{
				fmt.Sprintf("disk %s is %s on the source, %s on the destination: nothing says that they are one and the same%s",
					name, d.Layers[0].where(), e.Layers[0].where(), unsure(d.Layers)),
				"look yourself, or mirror it"})
		}
	})
	return refusals, doubts
}

// unsure says why layers cannot be told from others.
func unsure(all []Layer) string {
	for _, l := range all {
		switch {
		case l.File == "":
			return ", for it is on a server"
		case l.Opened == nil:
			return ", for this user may not see which files that QEMU has open"
		case l.Opened.Uncertain != "":
			return ", for a file system of kind " + l.Opened.Uncertain + " may number one file twice"
		}
	}
	return ""
}
