package facts

import (
	"fmt"
	"strconv"
	"strings"
)

// RAMBlock is one piece of the guest's memory as the stream names it: RAM, video memory, firmware, option ROMs.
type RAMBlock struct {
	Name     string // pc.ram, 0000:00:03.0/virtio-net-pci.rom
	PageSize string // 4 KiB, 2 MiB: of the host's memory behind it
	Bytes    int64  // what is used of it
	MaxBytes int64  // what it may grow to; more than Bytes if its size can change
}

// Backend is a memory backend.
type Backend struct {
	ID    string // by which its RAMBlock is named
	Bytes int64
	Share bool
	File  string // what it maps; "" if it is no file
}

// parseRAMBlocks reads the answer to x-query-ramblock, a table for people:
//
//	Block Name    PSize              Offset               Used              Total
//	    pc.ram    4 KiB  0x0000000000000000 0x0000000002000000 0x0000000002000000
//
// 10.0 has further columns. A block without a name is never sent. Seen on 7.2.22 and 10.0.2.
func parseRAMBlocks(text string) (all []RAMBlock) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		for i := 3; i+2 < len(f); i++ {
			if !strings.HasPrefix(f[i], "0x") {
				continue
			}
			used, err1 := strconv.ParseInt(f[i+1], 0, 64)
			total, err2 := strconv.ParseInt(f[i+2], 0, 64)
			if err1 == nil && err2 == nil {
				all = append(all, RAMBlock{strings.Join(f[:i-2], " "), f[i-2] + " " + f[i-1], used, total})
			}
			break
		}
	}
	return all
}

// Base is the memory that the guest was started with.
func (f *Facts) Base() int64 {
	if f.BaseBytes > 0 {
		return f.BaseBytes
	}
	return f.MemoryBytes
}

// Options are those with which a QEMU has this memory from the start.
func (d MemoryDevice) Options() string {
	device := map[string]string{"dimm": "pc-dimm"}[d.Kind]
	if device == "" {
		device = d.Kind
	}
	if d.ID != "" {
		device += ",id=" + d.ID
	}
	return fmt.Sprintf("-object memory-backend-ram,id=%s,size=%dk -device %s,memdev=%s,node=%d,slot=%d,addr=%#x",
		d.Memdev, d.Bytes>>10, device, d.Memdev, d.Node, d.Slot, d.Addr)
}

func (d MemoryDevice) String() string {
	return fmt.Sprintf("%d KiB at %#x (slot %d)", d.Bytes>>10, d.Addr, d.Slot)
}

// PageSize is that of the x86 guest's RAM in QEMU's dirty bitmap.
const PageSize = 4096
