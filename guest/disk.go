package guest

import (
	"fmt"
	"strconv"
	"strings"
)

// Disk is one of a guest's disks: a device on a block node of a name that stays, by which block commands take it. The
// node of the protocol below it is Node + "-file". What the guest sees, its serial and its place on the bus, is the
// same on both sides.
type Disk struct {
	Node   string // node name of the format's node, at most 26 bytes, and the device's serial; unique within the guest
	Format string // raw (default) or qcow2
	Driver string // file (default), iscsi or nfs
	Path   string // file: the image on the host; nfs: the image on the server; iscsi: the target's name (IQN)
	Server string // nfs: the server's address; iscsi: the portal, ADDRESS:PORT
	LUN    int    // iscsi
	User   string // iscsi: CHAP's user; empty: no CHAP
	Secret string // iscsi: file on the host with CHAP's password
	Cache  string // writeback (default), or none (past the host's page cache) where the host's file system can
}

// The places of the disks, or of their controllers, on the bus.
const (
	firstDiskAddress = 0x10
	ahciPorts        = 6
)

// MaxDisks is how many a guest may have.
const MaxDisks = 8

// diskArgs are the arguments for all disks.
func (s Spec) diskArgs() (a []string) {
	if s.DiskBus == VirtioSCSI && len(s.Disks) > 0 {
		a = append(a, "-device", fmt.Sprintf("virtio-scsi-pci,id=scsi,addr=%#x", firstDiskAddress))
	}
	for i, d := range s.Disks {
		if n := i / ahciPorts; s.DiskBus == AHCI && i%ahciPorts == 0 {
			a = append(a, "-device", fmt.Sprintf("ich9-ahci,id=ahci%d,addr=%#x", n, firstDiskAddress+n))
		}
		file := []string{"node-name=" + comma(d.Node) + "-file"}
		add := func(key, value string) {
			if value != "" {
				file = append(file, key+"="+comma(value))
			}
		}
		switch d.Driver {
		case "iscsi":
			add("driver", "iscsi")
			add("transport", "tcp")
			add("portal", d.Server)
			add("target", d.Path)
			add("lun", strconv.Itoa(d.LUN))
			if d.User != "" {
				a = append(a, "-object", "secret,id="+comma(d.Node)+"-chap,file="+comma(d.Secret))
				add("user", d.User)
				add("password-secret", d.Node+"-chap")
			}
		case "nfs":
			add("driver", "nfs")
			add("server.type", "inet")
			add("server.host", d.Server)
			add("path", d.Path)
		default:
			add("driver", "file")
			add("filename", d.Path)
		}
		format := d.Format
		if format == "" {
			format = "raw"
		}
		cache := ""
		if d.Cache == "none" {
			cache = ",cache.direct=on"
		}
		a = append(a,
			"-blockdev", strings.Join(file, ",")+cache,
			"-blockdev", fmt.Sprintf("node-name=%[1]s,driver=%[2]s,file=%[1]s-file%[3]s", comma(d.Node), format, cache),
			"-device", s.diskDevice(i, comma(d.Node)))
	}
	return a
}

// diskDevice is what the guest sees of its i-th disk.
func (s Spec) diskDevice(i int, node string) string {
	device := ""
	switch s.DiskBus {
	case VirtioSCSI:
		device = fmt.Sprintf("scsi-hd,bus=scsi.0,scsi-id=%d", i)
	case AHCI:
		device = fmt.Sprintf("ide-hd,bus=ahci%d.%d", i/ahciPorts, i%ahciPorts)
	default:
		return fmt.Sprintf("virtio-blk-pci,id=%[1]s-dev,drive=%[1]s,serial=%[1]s,addr=%#[2]x", node, firstDiskAddress+i)
	}
	return fmt.Sprintf("%[2]s,id=%[1]s-dev,drive=%[1]s,serial=%[1]s", node, device)
}

// RootSerial is the serial of the guest's root disk, by which the agent finds it, and its block node's name.
const RootSerial = "root"

// rootAddress is that disk's place on the bus.
const rootAddress = 0x4

// rootArgs are the arguments for the root disk. Both QEMUs have it open at once, and neither may write.
func (i Image) rootArgs() []string {
	if i.Root == "" {
		return nil
	}
	return []string{
		"-blockdev", "node-name=" + RootSerial + "-file,driver=file,read-only=on,filename=" + comma(i.Root),
		"-blockdev", "node-name=" + RootSerial + ",driver=raw,read-only=on,file=" + RootSerial + "-file",
		"-device", fmt.Sprintf("virtio-blk-pci,id=%[1]s-dev,drive=%[1]s,serial=%[1]s,addr=%#[2]x", RootSerial, rootAddress),
	}
}
