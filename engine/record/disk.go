package record

import "time"

// DiskCheck is what became of the guest's acknowledged writes. A writer in the guest writes numbered records to blocks of 4 KiB, past the
// guest's cache, and acknowledges each to the host only after the device has said that it is durable.
type DiskCheck struct {
	Storage            string         `json:"storage"` // what the disks are on, with all parameters
	Disks              int            `json:"disks"`
	BlocksChecked      int64          `json:"blocks_checked"`               // blocks that were read after the migration, on the side that holds the guest
	WritesAcknowledged int64          `json:"writes_acknowledged"`          // that reached the host from the writers' start to their stop, after the migration
	WritesLost         int64          `json:"writes_lost"`                  // blocks that hold neither the last record acknowledged for them nor a later one
	BlocksWrong        int64          `json:"blocks_wrong"`                 // blocks that are neither blank nor a whole record: torn, moved or changed
	WriteErrors        int64          `json:"write_errors"`                 // writes that the device refused; none of them is acknowledged
	WriteLongest       *time.Duration `json:"write_longest_ns,omitempty"`   // the slowest write, on the guest's clock, which stands still while the guest does
	ImagesIdentical    *bool          `json:"images_identical,omitempty"`   // mirror: source's and destination's images, but for blocks that the guest wrote again since the switch-over
	BlocksDifferent    *int64         `json:"blocks_different,omitempty"`   // mirror: blocks that are not
	AcksDropped        int64          `json:"acknowledgements_not_counted"` // writes that were durable and for whose acknowledgement there was no room
}

// OK tells whether every acknowledged write is there and nothing is wrong.
func (d *DiskCheck) OK() bool {
	return d.WritesLost == 0 && d.BlocksWrong == 0 && (d.ImagesIdentical == nil || *d.ImagesIdentical)
}

// Mirror is one disk that was copied to the destination by the source's blockdev-mirror.
type Mirror struct {
	Node        string         `json:"node"`
	CopyMode    string         `json:"copy_mode"`                   // background or write-blocking
	Bytes       int64          `json:"disk_bytes"`                  // the disk's size
	Transferred *int64         `json:"transferred_bytes,omitempty"` // the job's own count at its end: the disk and what was written again
	Ready       *time.Duration `json:"ready_ns,omitempty"`          // blockdev-mirror .. BLOCK_JOB_READY: both sides were the same once
	Finish      *time.Duration `json:"finish_ns,omitempty"`         // block-job-cancel .. BLOCK_JOB_COMPLETED, while the guest stands still: part of the downtime
}
