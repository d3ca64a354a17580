package snapshot

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io" // header is what the beginning of a saved guest tells of it.

	// the first block of RAM: pc.ram, or a backend's name
	// its length in bytes; 0: it is not told
	"io/fs"
	"os"
)

type header struct {
	machine   string
	mappedRAM bool
	block     string
	memory    int64
}

func (h header) format() string {
	if h.mappedRAM {
		return MappedRAMFormat
	}
	return StreamFormat
}

// The marks in QEMU's stream that come before the pages. Sources: migration/savevm.h and savevm.c (configuration),
// migration/ram.c (ram_save_setup); the same in 7.2 and 10.0.2. All numbers are big-endian.
const (
	fileMagic         = 0x5145564d // QEVM
	fileVersion       = 3
	markSectionStart  = 0x01
	markSubsection    = 0x05
	markConfiguration = 0x07
	flagMemorySize    = 0x04
	longestName       = 1 << 10 // machine types and blocks have names of some ten bytes; the wire allows more
)

var errNotSaved = errors.New("it is not a guest that QEMU saved")

// readHeader reads the beginning of a saved guest. What a newer QEMU writes after the machine's name is passed over:
// that much is then not known.
func readHeader(from io.Reader) (h header, err error) {
	defer func() {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: it ends after a few bytes", errNotSaved)
		}
		if err != nil {
			h = header{}
		}
	}()
	r := reader{bufio.NewReader(from), nil}
	switch magic, version := r.u32(), r.u32(); {
	case r.err != nil:
		return h, r.err
	case magic != fileMagic:
		return h, fmt.Errorf("%w: it does not begin with QEVM", errNotSaved)
	case version != fileVersion:
		return h, fmt.Errorf("%w, or in a version that is not known: %d, have %d", errNotSaved, version, fileVersion)
	}
	if mark := r.u8(); mark != markConfiguration {
		return h, r.err // send-configuration=off: no name
	}
	h.machine = r.text(int(r.u32()))
	for r.err == nil && r.peek() == markSubsection {
		r.u8()
		name := r.text(int(r.u8()))
		r.u32() // its version
		switch name {
		case "configuration/target-page-bits":
			r.u32()
		case "configuration/capabilities":
			for range min(r.u32(), longestName) {
				if r.text(int(r.u8())) == "mapped-ram" {
					h.mappedRAM = true
				}
			}
		case "configuration/uuid":
			r.text(16)
		default:
			return h, r.err
		}
	}
	if r.u8() != markSectionStart {
		return h, r.err
	}
	r.u32() // the section's number
	if name := r.text(int(r.u8())); name != "ram" {
		return h, r.err
	}
	r.u32() // instance
	r.u32() // version
	if r.u64()&flagMemorySize != 0 {
		h.block = r.text(int(r.u8()))
		h.memory = int64(r.u64())
	}
	return h, r.err
}

// reader reads numbers; after the first error everything is zero.
type reader struct {
	*bufio.Reader
	err error
}

func (r *reader) bytes(n int) []byte {
	b := make([]byte, min(max(n, 0), longestName))
	if r.err == nil && n > longestName {
		r.err = fmt.Errorf("%w: a name of %d bytes", errNotSaved, n)
	}
	if r.err == nil {
		_, r.err = io.ReadFull(r.Reader, b)
	}
	if r.err != nil {
		clear(b)
	}
	return b
}

func (r *reader) u8() byte          { return r.bytes(1)[0] }
func (r *reader) u32() uint32       { return binary.BigEndian.Uint32(r.bytes(4)) }
func (r *reader) u64() uint64       { return binary.BigEndian.Uint64(r.bytes(8)) }
func (r *reader) text(n int) string { return string(r.bytes(n)) }

func (r *reader) peek() byte {
	b, err := r.Peek(1)
	if err != nil {
		r.err = err
		return 0
	}
	return b[0]
}

// examine reads a saved guest's header.
func examine(name string) (header, fs.FileInfo, error) {
	file, err := os.Open(name)
	if err != nil {
		return header{}, nil, fmt.Errorf("open saved guest: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no regular file")
	}
	if err != nil {
		return header{}, nil, fmt.Errorf("open saved guest %s: %w", name, err)
	}
	h, err := readHeader(file)
	if err != nil {
		return header{}, nil, fmt.Errorf("read saved guest %s: %w", name, err)
	}
	return h, info, nil
}

// FormatOf is the format of a saved guest.
func FormatOf(name string) (string, error) {
	h, _, err := examine(name)
	if err != nil {
		return "", err
	}
	return h.format(), nil
}
