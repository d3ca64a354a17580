package fit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/qmp"
)

// Likeness is how much two layers are one.
type Likeness int

const (
	Same     Likeness = iota // one file
	Namesake                 // of one name; nothing says that it is one file, or that it is not
	Doubtful                 // of two names that may mean one file
	Other                    // two files
)

// Alike tells how much two layers are one; here tells that both QEMUs run on one machine.
func Alike(l, k facts.Layer, here bool) Likeness {
	switch {
	case here && l.Opened != nil && k.Opened != nil:
		switch {
		case l.Opened.ID == k.Opened.ID:
			return Same
		case l.Opened.Uncertain != "" && l.Opened.Path == k.Opened.Path && !l.Opened.Removed:
			return Namesake
		}
		return Other
	case l.Name == k.Name, l.File != "" && l.File == k.File:
		return Namesake
	}
	return Doubtful
}

// difference is what is wrong with the images under a disk on the destination.
type difference struct {
	likeness Likeness
	format   bool   // one file, read in two ways
	problem  string // "" if nothing is wrong
	mend     string
}

// images compares the images under a disk: d on the source, e on the destination. Both have a medium.
func images(d, e facts.Disk, name string, here bool) difference {
	if len(d.Layers) == 0 || len(e.Layers) == 0 {
		return difference{likeness: Namesake}
	}
	a, b := d.Layers[0], e.Layers[0]
	found := difference{likeness: Alike(a, b, here)}
	set := func(mend, problem string, args ...any) difference {
		found.problem, found.mend = fmt.Sprintf("disk "+name+" "+problem, args...), mend
		return found
	}
	below := func(l facts.Layer, all []facts.Layer) bool {
		return slices.ContainsFunc(all[1:], func(k facts.Layer) bool { return Alike(l, k, here) <= Namesake })
	}
	start := "start the destination with " + a.String()
	const sameLayers = "start the destination with the same layers"
	switch {
	case found.likeness <= Namesake && a.ImageFormat() != b.ImageFormat():
		found.format = true
		return set("start the destination with format="+a.ImageFormat()+" for it",
			"is of format %s on the source, and the destination opens the same %s as %s: the guest would find garbage",
			a.ImageFormat(), b.Where(), b.ImageFormat())
	case misread(a, b, found.likeness):
		found.format = true
		return set("start the destination with format="+b.Opened.Content+" for it",
			"is raw on the destination, but %s is an image of format %s: the guest would find garbage",
			b.Where(), b.Opened.Content)
	case found.likeness <= Namesake:
	case a.Opened != nil && a.Opened.Removed:
		return set("copy it into an image that stays: blockdev-add of that, blockdev-mirror with sync=full, "+
			"block-job-complete",
			"is written to %s on the source, a removed file (snapshot=on makes it so) that no other QEMU can open, "+
				"and is %s on the destination", a.File, b)
	case below(b, d.Layers):
		return set(start+", or merge it first: block-commit, then block-job-complete",
			"is %s on the source, a layer over what it is on the destination, %s: "+
				"what the guest wrote since that snapshot would be gone", a, b)
	case below(a, e.Layers):
		return set(start,
			"is %s on the source, and %s on the destination, a layer over it that the guest no longer has", a, b)
	case found.likeness == Doubtful:
		return set("give both the same storage, or mirror it",
			"is %s on the source, %s on the destination: unless they are one and the same, or mirrored, "+
				"the guest finds another disk", a.Where(), b.Where())
	default:
		return set(start+", or mirror it",
			"is %s on the source, %s on the destination, which is another file: the guest finds another disk",
			a.Where(), b.Where())
	}
	for i := 1; i < max(len(d.Layers), len(e.Layers)); i++ {
		switch {
		case i >= len(e.Layers):
			found.likeness = Other
			return set(sameLayers, "is based on %s on the source, and on nothing on the destination", d.Layers[i])
		case i >= len(d.Layers):
			found.likeness = Other
			return set(sameLayers, "is based on %s on the destination, and on nothing there on the source", e.Layers[i])
		}
		a, b := d.Layers[i], e.Layers[i]
		how := Alike(a, b, here)
		found.likeness = max(found.likeness, how)
		if found.format = how <= Namesake && a.ImageFormat() != b.ImageFormat(); found.format || how > Namesake {
			return set(sameLayers, "is based on %s on the source, on %s on the destination", a, b)
		}
	}
	return found
}

// misread tells whether the destination would read an image of another format as a raw one. What a guest wrote to a raw
// disk may begin as an image does: then it does so on the source too.
func misread(l, k facts.Layer, how Likeness) bool {
	if k.Opened == nil || k.Opened.Content == "" || k.ImageFormat() != "raw" {
		return false
	}
	return l.ImageFormat() != "raw" || how > Namesake && l.Opened != nil && l.Opened.Content != k.Opened.Content
}

// pairs calls f for each disk of the guest that both sides have a device for.
func pairs(src, dst *facts.Facts, f func(d, e facts.Disk, name string)) {
	there, devices := map[string]facts.Disk{}, map[string]facts.Device{}
	for _, d := range dst.Devices {
		there[d.Path] = facts.Disk{Device: d.Path} // of a device without a drive
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
		if device := devices[d.Device]; device.Where() != "" {
			name += " at " + device.Where()
		} else if a := facts.PciAddresses(d.Device); len(a) > 0 {
			name += " at PCI address " + strings.Join(a, "/")
		}
		f(d, e, name)
	}
}

// compareDisks finds disks that would be others than the guest knows. QEMU checks none of this: the guest finds out.
func compareDisks(src, dst *facts.Facts, refuse, doubt func(problem, mend string)) {
	here := src.Beside(dst)
	pairs(src, dst, func(d, e facts.Disk, name string) {
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
		limits, others := d.Throttle, e.Throttle
		if limits.Group, others.Group = "", ""; limits != others {
			doubt(fmt.Sprintf("limits of bytes and requests a second of disk %s differ: source %s, destination %s",
				name, limited(limits), limited(others)), "give the destination's those of the source (block_set_io_throttle)")
		}
		found := images(d, e, name, here)
		switch {
		case found.format && !d.Mirrored: // which explains another size
			refuse(found.problem, found.mend)
			return
		case d.Bytes != e.Bytes:
			say(fmt.Sprintf("sizes of disk %s differ: source %d KiB (%s), destination %d KiB (%s)", name, d.Bytes>>10, d.File,
				e.Bytes>>10, e.File),
				"give the destination the same storage, or a copy of the same size; if the source's was resized, start the "+
					"destination anew")
		}
		switch {
		case !d.ReadOnly && e.ReadOnly:
			refuse(fmt.Sprintf("disk %s is writable on the source and read-only on the destination", name),
				"start the destination with it writable, as on the source")
		case d.ReadOnly && !e.ReadOnly:
			doubt(fmt.Sprintf("disk %s is read-only on the source and writable on the destination", name),
				"start the destination with it read-only (readonly=on)")
		}
		switch {
		case d.Mirrored || d.Flash:
		case !d.ReadOnly && !d.Removable && d.Driver != "raw" && strings.HasPrefix(d.File, "nfs://"):
			// QEMU's NFS client knows a file's length from when it opened it, before the source made it longer (block/nfs.c,
			// read in an older form, has no bdrv_getlength). Seen on 7.2.22 and 10.0.2: of 274 acknowledged writes 109 read as
			// zeros on the destination.
			refuse(fmt.Sprintf("disk %s is an image of format %s on NFS, by QEMU's own client: the destination does not learn "+
				"that it has grown, and the guest loses what it wrote", name, d.Driver),
				"mirror it, or use a raw image, or mount the share on both hosts and give QEMU the file")
		case found.problem != "":
			doubt(found.problem, found.mend)
		case (!d.Direct || !e.Direct) && !d.ReadOnly && !d.Removable && !here:
			doubt(fmt.Sprintf("disk %s goes through the host's page cache (cache.direct off) on both hosts' %s: the "+
				"destination may read what is old", name, d.File),
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
func LaunchedDisks(src, dst *facts.Facts, p plan.Plan, chosen []string) (refusals, doubts []Mismatch) {
	refuse := func(mend, problem string, args ...any) {
		refusals = append(refusals, Mismatch{Problem: fmt.Sprintf(problem, args...), Mend: mend})
	}
	pairs(src, dst, func(d, e facts.Disk, name string) {
		own := slices.ContainsFunc(e.Layers, func(l facts.Layer) bool {
			return l.File != "" &&
				slices.Contains(chosen, l.File)
		})
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
		found := images(d, e, name, src.Beside(dst))
		switch {
		case found.likeness == Other, found.format,
			found.likeness == Doubtful && filepath.Base(d.File) != filepath.Base(e.File):
			refusals = append(refusals, Mismatch{Problem: found.problem, Mend: found.mend})
		case found.likeness != Same:
			doubts = append(doubts, Mismatch{
				Problem: fmt.Sprintf("disk %s is %s on the source, %s on the destination: nothing says that they are one and the same%s",
					name, d.Layers[0].Where(), e.Layers[0].Where(), unsure(d.Layers)),
				Mend: "look yourself, or mirror it"})
		}
	})
	return refusals, doubts
}

// unsure says why layers cannot be told from others.
func unsure(all []facts.Layer) string {
	for _, l := range all {
		switch {
		case l.File == "":
			return " (it is on a server)"
		case l.Opened == nil:
			return " (this user may not see which files that QEMU has open)"
		case l.Opened.Uncertain != "":
			return " (a file system of kind " + l.Opened.Uncertain + " may number one file twice)"
		}
	}
	return ""
}
