package record

import "time"

// The stages of mode colo that follow stop-and-copy.
const (
	Protection StageName = "protection" // the first whole checkpoint .. one side was lost, or the secondary is let go
	Failover   StageName = "failover"   // .. the side that is left runs the guest alone
)

// COLOFigures is what keeping a secondary in step cost, and what its use was. docs/colo.md defines each.
type COLOFigures struct {
	Checkpoints int `json:"checkpoints"` // whole ones, the first included
	// the guest stood still for one: STOP to RESUME on the primary, by QEMU's stamps
	CheckpointP50 *time.Duration `json:"checkpoint_p50_ns,omitempty"`
	CheckpointP99 *time.Duration `json:"checkpoint_p99_ns,omitempty"`
	IntervalP50   *time.Duration `json:"interval_p50_ns,omitempty"` // it ran between two: RESUME to STOP
	// of the time from the first checkpoint's STOP to the last one's RESUME, 100 x stood still / all
	StoppedPercent *float64 `json:"stopped_percent,omitempty"`
	// when the first whole checkpoint ended, from the first command
	Protected *time.Duration `json:"protected_at_ns,omitempty"`
	// the side that was lost: source is the primary; absent: the secondary was let go
	Lost   Holder         `json:"lost,omitempty"`
	LostAt *time.Duration `json:"lost_at_ns,omitempty"` // the first sign of it, from the first command
	// where the trial itself killed that side: from the kill to the first sign
	Noticed *time.Duration `json:"noticed_ns,omitempty"`
	// from the first sign until the side that is left runs the guest with no filter in its way and, if it is the other
	// one, has announced itself
	Failover *time.Duration `json:"failover_ns,omitempty"`
	// where it was asked for: a new secondary was attached, and a checkpoint was whole
	Reprotected *bool `json:"reprotected,omitempty"`
	// from that one's first command to the end of its first whole checkpoint
	Reprotection *time.Duration `json:"reprotection_ns,omitempty"`
}
