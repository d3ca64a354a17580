package record

import (
	"strings"
	"time"
)

// Place is where a part of the downtime passed.
type Place string

// The places: the two QEMUs, the way between them, and qmigrate itself.
const (
	OnSource      Place = "source"
	OnLink        Place = "link"
	OnDestination Place = "destination"
	OnQmigrate    Place = "qmigrate"
)

// PartName names a part of the downtime. docs/anatomy.md says where each begins and ends, and by which source.
type PartName string

// The parts, a closed list.
const (
	PartStopVCPUs  PartName = "stop-vcpus"  // the vCPUs are stopped; this is before STOP, so it is never critical
	PartSetup      PartName = "setup"       // of a guest that was stopped first: `migrate` is sent .. the source is active
	PartDisks      PartName = "disks"       // block devices are drained, flushed and given up
	PartPause      PartName = "pause"       // a source with pause-before-switchover waits for our migrate-continue
	PartRAMSave    PartName = "ram-save"    // the last pages are sent; without passes all of them
	PartDeviceSave PartName = "device-save" // the state of devices is written, one at a time
	PartWire       PartName = "wire"        // the source has handed over its last byte .. the destination has it
	PartRAMLoad    PartName = "ram-load"    // the last pages are read
	PartDeviceLoad PartName = "device-load" // the state of devices is read, one at a time
	PartBottomHalf PartName = "bottom-half" // everything is loaded .. the destination says `completed`: QEMU's bottom half
	PartAnnounce   PartName = "announce"    // within the bottom half, the guest's addresses are announced
	PartLastWord   PartName = "last-word"   // the destination is ready .. the source says so too, by the return path
	PartNotice     PartName = "notice"      // both QEMUs have said `completed` .. qmigrate has read it
	PartDecision   PartName = "decision"    // qmigrate has read it .. `cont` is sent
	PartStart      PartName = "start"       // `cont` is sent .. RESUME
	PartUntold     PartName = "untold"      // what the sources at hand cannot tell apart
)

// AnatomyPart is one part of the time from STOP on the source to RESUME on the destination. The critical parts follow
// each other without a gap, from STOP to RESUME: their durations sum to the wire downtime. The others ran beside them.
type AnatomyPart struct {
	Side Place    `json:"side"`
	Part PartName `json:"part"`
	// QEMU's name of the section, with "#N" behind it if its instance is not 0; of the parts that have one
	Device string `json:"device,omitempty"`
	// from the first command, as a stage's; absent where the log has no time stamps
	Start    *time.Duration `json:"start_ns,omitempty"`
	Duration time.Duration  `json:"duration_ns"`
	// of the duration, at most: the stamps' microseconds, and between two hosts what is not known of their clocks
	Error    time.Duration `json:"error_ns"`
	Source   string        `json:"source"`             // what told it: trace, events, frames, clock of qmigrate
	Critical bool          `json:"critical,omitempty"` // the guest waited for this part and for no other
}

// PartNames are all parts, in the order in which they follow each other.
func PartNames() []PartName {
	return []PartName{PartStopVCPUs, PartSetup, PartDisks, PartPause, PartRAMSave, PartDeviceSave, PartWire, PartRAMLoad,
		PartDeviceLoad, PartBottomHalf, PartAnnounce, PartLastWord, PartNotice, PartDecision, PartStart, PartUntold}
}

// Key is the key under which figures and tables have a part's critical time: anatomy.ram_save_ns.
func (p PartName) Key() string { return "anatomy." + strings.ReplaceAll(string(p), "-", "_") + "_ns" }

// CriticalTime is how much of the downtime is due to a part: the sum of its critical stretches, on all sides. It is
// false where nothing tells when that part was; a part that only ran beside others is 0.
func (m *Migration) CriticalTime(part PartName) (sum time.Duration, told bool) {
	for _, p := range m.Anatomy {
		if p.Part == part && p.Start != nil {
			told = true
			if p.Critical {
				sum += p.Duration
			}
		}
	}
	return sum, told
}

// Pending is what a source had still to send at one instant, by how it may send it. Source: the trace event
// qemu_savevm_query_pending of QEMU 11.1 and newer.
type Pending struct {
	T        time.Duration `json:"t_ns"`           // from the first command, when the line was written
	PreCopy  int64         `json:"precopy_bytes"`  // may be sent while the guest runs on the source
	StopCopy int64         `json:"stopcopy_bytes"` // only while it stands still
	PostCopy int64         `json:"postcopy_bytes"` // may follow the guest; of memory all, where post-copy is possible
	// it was counted when dirty pages had been looked for; absent: an estimate, without the pages dirtied since
	Exact bool `json:"exact,omitempty"`
}
