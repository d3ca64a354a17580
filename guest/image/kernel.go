package image

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
)

// maxKernel is the largest unpacked kernel that is read, in bytes.
const maxKernel = 512 << 20

// isBzImage reports whether b has the header of Documentation/arch/x86/boot.rst: "HdrS" at 0x202.
func isBzImage(b []byte) bool { return len(b) >= 0x260 && bytes.Equal(b[0x202:0x206], []byte("HdrS")) }

// kernelRelease is what `uname -r` will say, "" if the file (an ELF vmlinux) does not tell in its header.
// Source: boot.rst: kernel_version at 0x20e points 0x200 bytes before the string.
func kernelRelease(kernel []byte) (string, error) {
	if bytes.HasPrefix(kernel, []byte(elf.ELFMAG)) {
		return "", nil
	}
	if !isBzImage(kernel) {
		return "", errors.New("neither a bzImage nor an ELF vmlinux")
	}
	at := int(binary.LittleEndian.Uint16(kernel[0x20e:])) + 0x200
	if at == 0x200 || at >= len(kernel) {
		return "", nil
	}
	v, _, _ := bytes.Cut(kernel[at:min(at+256, len(kernel))], []byte{0})
	release, _, _ := strings.Cut(string(v), " ")
	return release, nil
}

// vmlinux unpacks the kernel in a bzImage, so that the guest need not: 0.3 s of a boot of 2 s under TCG. It is nil
// where that cannot be had: the file is not a bzImage, is packed in another way, or has no PVH entry, by which QEMU
// starts an ELF kernel. Source: boot.rst: payload_offset at 0x248 and payload_length at 0x24c, counted from the end of
// the setup sectors (0x1f1); protocol 2.08 and later.
func vmlinux(kernel []byte) []byte {
	if !isBzImage(kernel) || binary.LittleEndian.Uint16(kernel[0x206:]) < 0x208 {
		return nil
	}
	setup := uint64(kernel[0x1f1])
	if setup == 0 {
		setup = 4
	}
	from := (setup+1)*512 + uint64(binary.LittleEndian.Uint32(kernel[0x248:]))
	to := from + uint64(binary.LittleEndian.Uint32(kernel[0x24c:]))
	if from+8 >= to || to > uint64(len(kernel)) {
		return nil
	}
	payload := kernel[from:to]
	body := bytes.NewReader(payload[:len(payload)-4]) // the build appends the unpacked size, but to gzip, which has it
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}): // LZ4, legacy frame
		r = lz4.NewReader(body)
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(payload)); err == nil {
			z.Multistream(false)
			r = z
		}
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err = zstd.NewReader(body, zstd.WithDecoderConcurrency(1))
	case bytes.HasPrefix(payload, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		r, err = xz.NewReader(body, 0)
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(r, maxKernel))
	if err != nil || !hasPVH(b) {
		return nil
	}
	return b
}

// hasPVH reports whether an ELF kernel has the note XEN_ELFNOTE_PHYS32_ENTRY, its 32-bit entry for PVH. Source:
// include/xen/interface/elfnote.h.
func hasPVH(b []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > uint64(len(b)) {
			continue
		}
		notes, err := io.ReadAll(p.Open())
		if err != nil {
			continue
		}
		for len(notes) >= 12 {
			le := binary.LittleEndian
			name, desc, kind := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:])), le.Uint32(notes[8:])
			end := 12 + (name+3)&^3 + (desc+3)&^3
			if end > uint64(len(notes)) {
				break
			}
			if kind == 18 && name == 4 && string(notes[12:16]) == "Xen\x00" {
				return true
			}
			notes = notes[end:]
		}
	}
	return false
}
