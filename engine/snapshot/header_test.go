package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// saved is the beginning of a saved guest, byte by byte as QEMU writes it.
func saved(machine string, capabilities []string, block string, bytes uint64) []byte {
	var b []byte
	u32 := func(n uint32) { b = binary.BigEndian.AppendUint32(b, n) }
	u64 := func(n uint64) { b = binary.BigEndian.AppendUint64(b, n) }
	short := func(s string) { b = append(append(b, byte(len(s))), s...) }
	u32(fileMagic)
	u32(fileVersion)
	b = append(b, markConfiguration)
	u32(uint32(len(machine)))
	b = append(b, machine...)
	if capabilities != nil {
		b = append(b, markSubsection)
		short("configuration/capabilities")
		u32(1)
		u32(uint32(len(capabilities)))
		for _, c := range capabilities {
			short(c)
		}
	}
	b = append(b, markSectionStart)
	u32(2)
	short("ram")
	u32(0)
	u32(4)
	u64(bytes | flagMemorySize)
	short(block)
	u64(bytes)
	return b
}

func TestHeader(t *testing.T) {
	whole := saved("pc-q35-7.2", []string{"x-ignore-shared", "mapped-ram"}, "pc.ram", 256<<20)
	h, err := readHeader(bytes.NewReader(whole))
	if want := (header{"pc-q35-7.2", true, "pc.ram", 256 << 20}); err != nil || h != want {
		t.Errorf("%+v, %v", h, err)
	}
	h, err = readHeader(bytes.NewReader(saved("pc", nil, "mem0", 1<<20)))
	if want := (header{"pc", false, "mem0", 1 << 20}); err != nil || h != want {
		t.Errorf("%+v, %v", h, err)
	}
	for n := range len(whole) {
		if h, err := readHeader(bytes.NewReader(whole[:n])); !errors.Is(err, errNotSaved) || h != (header{}) {
			t.Fatalf("%d of %d bytes: %+v, %v", n, len(whole), h, err)
		}
	}
	newer := bytes.Clone(whole)
	newer[7] = 4
	if _, err := readHeader(bytes.NewReader(newer)); err == nil || !strings.Contains(err.Error(), "4, have 3") {
		t.Errorf("a newer version: %v", err)
	}
}

// FuzzHeader: on an error nothing is said, and no name is longer than what was read.
func FuzzHeader(f *testing.F) {
	f.Add(saved("pc-q35-7.2", []string{"mapped-ram"}, "pc.ram", 256<<20))
	f.Add([]byte("QEVM\x00\x00\x00\x03\x07\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHeader(bytes.NewReader(b))
		if err != nil && h != (header{}) {
			t.Fatalf("%+v with %v", h, err)
		}
		if len(h.machine)+len(h.block) > len(b) {
			t.Fatalf("%+v out of %d bytes", h, len(b))
		}
	})
}
