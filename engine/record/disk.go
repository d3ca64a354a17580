package record

import "time"

// DiskCheck is what became of the guest's acknowledged writes. A writer in the guest writes numbered records to blocks
// of 4 KiB, past the guest's cache, and acknowledges each to the host only after the device has said that it is
// durable.
type DiskCheck struct {
	Storage string `json:"storage"` // what the disks are on, with all parameters
	Disks   int    `json:"disks"`
	// blocks that were read after the migration, on the side that holds the guest
	BlocksChecked int64 `json:"blocks_checked"`
	// that reached the host from the writers' start to their stop, after the migration
	WritesAcknowledged int64 `json:"writes_acknowledged"`
	// blocks that hold neither the last record acknowledged for them nor a later one
	WritesLost int64 `json:"writes_lost"`
	// blocks that are neither blank nor a whole record: torn, moved or changed
	BlocksWrong int64 `json:"blocks_wrong"`
	// writes that the device refused; none of them is acknowledged
	WriteErrors int64 `json:"write_errors"`
	// the slowest write, on the guest's clock, which stands still while the guest does
	WriteLongest *time.Duration `json:"write_longest_ns,omitempty"`
	// mirror: source's and destination's images, but for blocks that the guest wrote again since the switch-over
	ImagesIdentical *bool  `json:"images_identical,omitempty"`
	BlocksDifferent *int64 `json:"blocks_different,omitempty"` // mirror: blocks that are not
	// writes that were durable and for whose acknowledgement there was no room
	AcksDropped int64 `json:"acknowledgements_not_counted"`
}

// OK tells whether every acknowledged write is there and nothing is wrong.
func (d *DiskCheck) OK() bool {
	return d.WritesLost == 0 && d.BlocksWrong == 0 && (d.ImagesIdentical == nil || *d.ImagesIdentical)
}

// Mirror is one disk that was copied to the destination by the source's blockdev-mirror.
type Mirror struct {
	Node     string `json:"node"`
	CopyMode string `json:"copy_mode"`  // background or write-blocking
	Bytes    int64  `json:"disk_bytes"` // the disk's size
	// the job's own count at its end: the disk and what was written again
	Transferred *int64 `json:"transferred_bytes,omitempty"`
	// blockdev-mirror .. BLOCK_JOB_READY: both sides were the same once
	Ready *time.Duration `json:"ready_ns,omitempty"`
	// block-job-cancel .. BLOCK_JOB_COMPLETED, while the guest stands still: part of the downtime
	Finish *time.Duration `json:"finish_ns,omitempty"`
}
