package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

// Create makes an empty image; a file that is there is an error.
func Create(path, format string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	switch format {
	case "raw":
		err = f.Truncate(size)
	case "qcow2":
		_, err = f.Write(emptyQcow2(size))
	default:
		err = fmt.Errorf("unknown format %q", format)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("make image %s: %w", path, err)
	}
	return nil
}

// Fill writes content that nobody can guess into every second MiB of a raw image from an offset on: what a copy leaves
// out or moves is then seen, be it data or a hole.
func Fill(path string, from, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("fill image: %w", err)
	}
	src := rand.NewChaCha8([32]byte{byte(size >> 20), 1})
	buf := make([]byte, 1<<20)
	for at := from; at < size && err == nil; at += 2 << 20 {
		_, _ = src.Read(buf) // never fails
		_, err = f.WriteAt(buf[:min(int64(len(buf)), size-at)], at)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("fill image %s: %w", path, err)
	}
	return nil
}

// Image is what a guest sees of an image file. It is read as the file stands: whoever writes must have flushed.
type Image interface {
	io.ReaderAt
	Size() int64 // bytes, as the guest sees them
	Close() error
}

// Open opens an image to read it.
func Open(path, format string) (Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	var img Image
	if format == "qcow2" {
		img, err = openQcow2(f)
	} else {
		var info os.FileInfo
		if info, err = f.Stat(); err == nil {
			img = raw{f, info.Size()}
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open image %s: %w", path, err)
	}
	return img, nil
}

type raw struct {
	*os.File
	size int64
}

func (r raw) Size() int64 { return r.size }

// The fields of qcow2 that are used here, all big endian. Source: docs/interop/qcow2.txt in QEMU.
const (
	qcow2Magic   = 0x514649fb
	clusterBits  = 16
	clusterSize  = 1 << clusterBits
	offsetMask   = 0x00fffffffffffe00 // of an entry of the L1 or an L2 table
	compressed   = 1 << 62
	zeroCluster  = 1
	headerLength = 104
)

// emptyQcow2 is an image of version 3 with nothing in it: header, refcount table, one refcount block, L1 table, each
// from a cluster's start.
func emptyQcow2(size int64) []byte {
	be := binary.BigEndian
	perL2 := int64(clusterSize / 8 * clusterSize) // what one L2 table maps
	l1Entries := (size + perL2 - 1) / perL2
	l1Clusters := (l1Entries*8 + clusterSize - 1) / clusterSize
	b := make([]byte, (3+l1Clusters)*clusterSize)
	be.PutUint32(b[0:], qcow2Magic)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], uint64(size))
	be.PutUint32(b[36:], uint32(l1Entries))
	be.PutUint64(b[40:], 3*clusterSize) // L1 table
	be.PutUint64(b[48:], clusterSize)   // refcount table
	be.PutUint32(b[56:], 1)             // clusters of it
	be.PutUint32(b[96:], 4)             // refcounts of 2^4 bits
	be.PutUint32(b[100:], headerLength)
	be.PutUint64(b[clusterSize:], 2*clusterSize)
	for i := range 3 + l1Clusters {
		be.PutUint16(b[2*clusterSize+2*i:], 1)
	}
	return b
}

// qcow2 reads images without backing file, compression, encryption or an external data file: those that we and QEMU's
// mirror make.
type qcow2 struct {
	f    *os.File
	size int64
	bits uint
	l1   []byte
}

func openQcow2(f *os.File) (*qcow2, error) {
	be := binary.BigEndian
	head := make([]byte, headerLength)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	q := &qcow2{f: f, size: int64(be.Uint64(head[24:])), bits: uint(be.Uint32(head[20:]))}
	const dirty = 1 // the only incompatible feature that does not change what is read
	switch {
	case be.Uint32(head) != qcow2Magic || be.Uint32(head[4:]) != 3:
		return nil, errors.New("no qcow2 image of version 3")
	case be.Uint64(head[8:]) != 0 || be.Uint32(head[32:]) != 0 || be.Uint64(head[72:])&^dirty != 0:
		return nil, errors.New("a qcow2 image with a backing file, encryption or features that are not read here")
	case q.bits < 9 || q.bits > 21 || be.Uint32(head[36:]) > 4<<20:
		return nil, errors.New("a broken qcow2 header")
	}
	q.l1 = make([]byte, 8*be.Uint32(head[36:]))
	_, err := f.ReadAt(q.l1, int64(be.Uint64(head[40:])))
	return q, err
}

func (q *qcow2) Size() int64  { return q.size }
func (q *qcow2) Close() error { return q.f.Close() }

func (q *qcow2) ReadAt(b []byte, at int64) (n int, err error) {
	be := binary.BigEndian
	cluster := int64(1) << q.bits
	for n < len(b) {
		if at >= q.size {
			return n, io.EOF
		}
		part := b[n : n+int(min(int64(len(b)-n), cluster-at%cluster, q.size-at))]
		index := at >> q.bits
		perTable := cluster / 8
		if index/perTable*8 >= int64(len(q.l1)) {
			return n, errors.New("the L1 table is too short")
		}
		var entry [8]byte
		if l2 := be.Uint64(q.l1[index/perTable*8:]) & offsetMask; l2 != 0 {
			if _, err := q.f.ReadAt(entry[:], int64(l2)+index%perTable*8); err != nil {
				return n, fmt.Errorf("read L2 table: %w", err)
			}
		}
		e := be.Uint64(entry[:])
		switch {
		case e&compressed != 0:
			return n, errors.New("a compressed cluster")
		case e&zeroCluster != 0, e&offsetMask == 0:
			clear(part)
		default:
			m, err := q.f.ReadAt(part, int64(e&offsetMask)+at%cluster)
			if err == io.EOF { // the last cluster of the file may be short: what was never written is zero
				clear(part[m:])
			} else if err != nil {
				return n, fmt.Errorf("read cluster: %w", err)
			}
		}
		n, at = n+len(part), at+int64(len(part))
	}
	return n, nil
}
