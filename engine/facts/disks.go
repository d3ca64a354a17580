package facts

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"qmigrate/engine/endpoint" // Disk is one of the guest's disks and what is behind it.
	"qmigrate/qmp"
	"slices"
	"strings" // the path of the device that the guest sees, as in Facts.Devices; "" if it is not attached to one
	// that device's id, or its path among QEMU's objects; "" if QEMU names none
	// drive's name, or its node's
)

type Disk struct {
	Device    string
	QOM       string
	Name      string
	Node      string // the node's name; "" if there is no medium
	File      string
	Driver    string // raw, qcow2, ...
	Bytes     int64  // what the guest sees
	ReadOnly  bool
	Removable bool
	Direct    bool    // past the host's page cache (cache.direct=on)
	Layers    []Layer // the image that the guest writes to, then those that it is based on; nil without a medium
	Bitmaps   []Bitmap

	Throttle  qmp.Throttle
	Threshold int64 // bytes; 0: none
	Mirrored  bool  // the migration copies it
	Flash     bool  // it is the firmware's flash memory: its content travels with the guest's memory
}

// Bitmap is a dirty bitmap of a disk.
type Bitmap struct {
	Name       string
	Persistent bool // kept in the image
}

// Layer is one image of a disk.
type Layer struct {
	Name   string             // as QEMU names it
	Format string             // raw, qcow2, ...: how QEMU reads it
	File   string             // the host's file or block device, as QEMU was told; "" if the image is on a server
	Opened *endpoint.OpenFile // what that file is to the host; nil: not known
}

// disks brings the drives and the devices together.
func DisksOf(blocks []qmp.BlockDevice, devices []Device) (all []Disk) {
	for _, b := range blocks {
		d := Disk{Name: b.Device, Removable: b.Removable, QOM: b.Path}
		if m := b.Inserted; m != nil {
			for _, b := range m.Bitmaps {
				d.Bitmaps = append(d.Bitmaps, Bitmap{b.Name, b.Persistent})
			}
			d.Node, d.File, d.Driver, d.Bytes = m.Node, m.File, m.Driver, m.Image.VirtualSize
			d.ReadOnly, d.Direct = m.ReadOnly, m.Cache.Direct
			d.Layers, d.Throttle, d.Threshold = layers(m.Image), m.Throttle, m.Threshold
		}
		if d.Name == "" {
			d.Name = d.Node
		}
		for _, dev := range devices {
			drive := strings.Trim(dev.Properties["drive"], `"`)
			if drive != "" && (drive == b.Device || drive == d.Node) || dev.ID != "" && d.Node == "" && dev.ID == b.Path {
				d.Device, d.Flash = dev.Path, strings.HasPrefix(dev.Type, "cfi.pflash")
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
			all = append(all, Layer{Name: next.File, Format: next.Format, File: LocalFile(next.File)})
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

// IsFilter tells whether a block driver holds no data.
func IsFilter(driver string) bool { return slices.Contains(filters, driver) }

// IsFormat tells whether a block driver reads a format of images.
func IsFormat(driver string) bool { return slices.Contains(formats, driver) }

// ImageFormat is a layer's format in one word for each way to read it: raw, qcow2, ...
func (l Layer) ImageFormat() string {
	if slices.Contains(formats, l.Format) {
		return l.Format
	}
	return "raw"
}

func (l Layer) String() string { return l.Where() + " (" + l.ImageFormat() + ")" }

// Where is the file with its whole path where that is known.
func (l Layer) Where() string {
	if l.Opened != nil && !l.Opened.Removed {
		return l.Opened.Path
	}
	return cmp.Or(l.File, l.Name)
}

// LocalFile is the host's file that QEMU means by a file name; "" if it means something else.
func LocalFile(name string) string {
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

// ReadOpened asks the host what the files under the disks are.
func ReadOpened(ep *endpoint.Endpoint, disks []Disk) {
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

// ReadExports names the disks that a QEMU exports, but for those of our mirrors: "disk0 (nbd)".
func ReadExports(ctx context.Context, c *qmp.Conn) (names []string, err error) {
	var all []struct {
		ID   string `json:"id"`
		Type string `json:"type"`
		Node string `json:"node-name"`
	}
	err = c.Execute(ctx, "query-block-exports", nil, &all)
	for _, e := range all {
		if !strings.HasPrefix(e.ID, MirrorPrefix) {
			names = append(names, fmt.Sprintf("%s (%s)", e.Node, e.Type))
		}
	}
	return names, Optional(err)
}

// Job is a block job. Source: qapi/block-core.json, BlockJobInfo.
type Job struct {
	ID     string `json:"device"`
	Type   string `json:"type"` // mirror, commit, stream, backup, ...
	Length int64  `json:"len"`
	Offset int64  `json:"offset"`
	Ready  bool   `json:"ready"` // a mirror's copy has been the same as its disk once
}

// MirrorPrefix begins the names of our jobs, exports and nodes, so that they are found again.
const MirrorPrefix = "qmigrate-mirror"

// BlockJobs are the jobs of mirrors of ours, by their names, and the others.
func BlockJobs(ctx context.Context, c *qmp.Conn) (ours []string, others []Job, err error) {
	var all []Job
	err = c.Execute(ctx, "query-block-jobs", nil, &all)
	for _, j := range all {
		if strings.HasPrefix(j.ID, MirrorPrefix) {
			ours = append(ours, j.ID)
		} else {
			others = append(others, j)
		}
	}
	return ours, others, err
}

// Writable lists the block devices that hold something and can be written. A saved guest does not have them in its
// file.
func Writable(ctx context.Context, c *qmp.Conn) ([]qmp.BlockDevice, error) {
	all, err := c.BlockDevices(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for disks: %w", err)
	}
	return slices.DeleteFunc(all, func(d qmp.BlockDevice) bool { return d.Inserted == nil || d.Inserted.ReadOnly }), nil
}
