package wire

import (
	"encoding/binary"
	"hash/crc64"
	"math/bits"
	"time"
)

// BlockSize in bytes is the unit in which the disk writer writes and the check reads.
const BlockSize = 4096

// DiskStart starts a writer on one disk: numbered records, each to a random block of the area, each acknowledged only
// when the device has said that it is durable.
type DiskStart struct {
	Disk string  `json:"disk"`           // the device's serial
	Area int64   `json:"area_bytes"`     // written to, from the disk's first byte on; in whole blocks
	Rate float64 `json:"rate,omitempty"` // writes a second; 0: as fast as the disk takes them
	Seed uint64  `json:"seed,omitempty"` // part of every record's content; 0: 1
}

// DiskName asks about one disk's writer.
type DiskName struct {
	Disk string `json:"disk"`
}

// DiskStatus is how far a disk's writer has come.
type DiskStatus struct {
	Disk    string `json:"disk"`
	Bytes   int64  `json:"bytes"` // of the device
	Running bool   `json:"running"`
	// the device said durable; the number of the last record is at least that
	Writes    uint64 `json:"writes"`
	Errors    uint64 `json:"errors"`       // the device said no; none of those is acknowledged
	LastError string `json:"last_error"`   // the last one's text
	Dropped   uint64 `json:"dropped_acks"` // acknowledgements for which there was no room while no host read
	// the slowest write, on the guest's clock, which stands still while the guest does
	Longest time.Duration `json:"longest_write_ns"`
	Elapsed time.Duration `json:"elapsed_ns"`        // CLOCK_MONOTONIC since the start
	Pending int           `json:"acks_not_yet_sent"` // acknowledgements that wait for the port
}

// DiskAcks is what EventDiskAck tells: for each pair, that the record of that number is durable in that block.
type DiskAcks struct {
	Disk string      `json:"disk"`
	Acks [][2]uint64 `json:"acks"` // block, number
}

// DiskRead asks what stands in a stretch of a disk's blocks. The disk is read, not the guest's cache.
type DiskRead struct {
	Disk  string `json:"disk"`
	First int64  `json:"first_block"`
	Count int64  `json:"blocks"` // at most MaxDiskRead
	Seed  uint64 `json:"seed,omitempty"`
}

// MaxDiskRead is how many blocks one DiskRead may ask for: their numbers fit a line.
const MaxDiskRead = 8192

// DiskBlocks answers a DiskRead: what BlockNumber says of each block.
type DiskBlocks struct {
	First   int64   `json:"first_block"`
	Numbers []int64 `json:"numbers"`
}

// DiskCorrupt flips one bit of a block behind everybody's back; for tests.
type DiskCorrupt struct {
	Disk  string `json:"disk"`
	Block int64  `json:"block"`
}

// What BlockNumber says of a block that holds no record.
const (
	BlockBlank int64 = 0  // nothing but zeros: never written
	BlockWrong int64 = -1 // neither blank nor a record of this writer for this block
)

// A record fills its block: a head of five words (magic, seed, block, number, 0), words that follow from them, and at
// the end a CRC-64 over everything before it. A block that was torn, moved or changed by one bit is none.
const blockMagic = 0x6b7364_67696d71 // "qmigdsk", little endian

// PutBlock writes the record of a number for a block into b, BlockSize bytes.
func PutBlock(b []byte, seed, block, number uint64) {
	le := binary.LittleEndian
	for i, v := range [5]uint64{blockMagic, seed, block, number, 0} {
		le.PutUint64(b[8*i:], v)
	}
	x := seed ^ bits.RotateLeft64(block, 32) ^ number*0x9e3779b97f4a7c15
	for at := 40; at < BlockSize-8; at += 8 {
		x = x*6364136223846793005 + 1442695040888963407 // Knuth's MMIX constants
		le.PutUint64(b[at:], x^x>>29)
	}
	le.PutUint64(b[BlockSize-8:], crc64.Checksum(b[:BlockSize-8], crc64.MakeTable(crc64.ECMA)))
}

// BlockNumber is the number of the record in a block, or BlockBlank, or BlockWrong. scratch is BlockSize bytes to work
// in.
func BlockNumber(b []byte, seed, block uint64, scratch []byte) int64 {
	number := binary.LittleEndian.Uint64(b[24:])
	if number == 0 || number >= 1<<62 {
		for _, v := range b {
			if v != 0 {
				return BlockWrong
			}
		}
		return BlockBlank
	}
	PutBlock(scratch, seed, block, number)
	if string(b) != string(scratch) {
		return BlockWrong
	}
	return int64(number)
}
