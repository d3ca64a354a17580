// Package record holds what one live migration was: its plan, stages, passes, downtimes and checks, and the JSON lines
// in which they are kept. It depends on nothing but the standard library, so that any Go program can read a record.
//
// Every duration is in nanoseconds, every size in bytes; a key ends in its unit. A field that is absent was not
// measured: absent never means zero.
package record

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"
)

// Schema is the version of the record's shape; a renamed key changes it.
const Schema = "qmigrate/record/1"

// Mode is how the guest is moved.
type Mode string

// The modes that qmigrate drives.
const (
	PreCopyMode     Mode = "pre-copy"      // copy while the guest runs, stop it for the last pass
	StopAndCopyMode Mode = "stop-and-copy" // stop the guest, then copy everything
	PostCopyMode    Mode = "post-copy"     // run the guest on the destination at once; its memory follows
	HybridMode      Mode = "hybrid"        // pre-copy passes first, then post-copy
	SaveMode        Mode = "save"          // into a file
	RestoreMode     Mode = "restore"       // out of one
	COLOMode        Mode = "colo"          // a secondary that is kept in step and takes over when the primary dies
)

// Outcome says how a migration ended.
type Outcome string

// The outcomes.
const (
	Completed Outcome = "completed" // the guest runs on the destination
	Failed    Outcome = "failed"    // something broke; GuestOn says where the guest is
	Cancelled Outcome = "cancelled" // we were asked to stop; the guest runs on the source
	Recovered Outcome = "recovered" // something broke past the switch-over and the guest was brought back to life

	// GuestEnded: the guest shut down, or was reset where that ends QEMU (-no-reboot): nobody has it, and nothing was
	// lost.
	GuestEnded Outcome = "guest-ended"

	// Unfinished: somebody else's migration was under way when watching it was ended; GuestOn says where the guest was
	// then.
	Unfinished Outcome = "unfinished"
)

// Holder says which side holds the guest.
type Holder string

// The holders.
const (
	Source      Holder = "source"
	Destination Holder = "destination"
	File        Holder = "file"    // it was saved and nothing runs it
	None        Holder = "none"    // lost, or paused on both sides: the error's text says which, and the mend
	Unknown     Holder = "unknown" // a side could not be asked
)

// StageName names one of the six stages of Clark et al., NSDI 2005, or one of ours beside them.
type StageName string

// The stages in their order.
const (
	Initialization StageName = "initialization" // both monitors answer; versions, capabilities and machine agree
	Reservation    StageName = "reservation"    // capabilities and parameters set, the destination listens
	PreCopy        StageName = "pre-copy"       // `migrate` .. STOP on the source: passes while the guest runs
	StopAndCopy    StageName = "stop-and-copy"  // STOP .. both sides completed: last pages and device state
	Commitment     StageName = "commitment"     // both completed .. our `cont`: the source may not run the guest again
	Activation     StageName = "activation"     // our `cont` .. RESUME on the destination
)

// The stages that only some migrations have. Post-copy and recovery may come several times, in turns.
const (
	Storage StageName = "storage" // between reservation and pre-copy: disks are mirrored until they are in step
	// RESUME on the destination .. both completed: the rest of the memory follows the guest
	PostCopy StageName = "post-copy"
	Snapshot StageName = "snapshot" // background save: `migrate` .. completed, while the guest runs on
	Loading  StageName = "loading"  // restore: `migrate-incoming` .. the destination has read all of it
	Recovery StageName = "recovery" // post-copy is paused for want of a link .. it goes on

	After StageName = "after" // no stage, but what was observed after the last of them: for CPUUse
)

// Migration is the whole record of one migration: one line of records.jsonl.
type Migration struct {
	Schema    string    `json:"schema"`
	ID        string    `json:"id"`
	StartedAt time.Time `json:"started_at"` // wall clock of the machine that ran qmigrate, at the first command
	Name      string    `json:"name"`       // derived from the plan's values
	Mode      Mode      `json:"mode"`
	Outcome   Outcome   `json:"outcome"`
	GuestOn   Holder    `json:"guest_on"`
	Error     *Error    `json:"error,omitempty"`
	Warnings  []string  `json:"warnings,omitempty"` // doubts about the result, printed as footnotes
	Workload  string    `json:"workload,omitempty"`

	Experiment string `json:"experiment,omitempty"` // name of the experiment that this is a trial of
	// which trial: cell and repeat, the same whenever the experiment is run
	Trial string `json:"trial,omitempty"`
	Order *int   `json:"order,omitempty"` // place of the trial in the experiment's order, from 0
	// value of each of the experiment's factors, in the words of its file
	Factors map[string]any `json:"factors,omitempty"`

	PostCopy *PostCopyFigures `json:"post_copy,omitempty"` // in the modes that may go over to it

	Saved    *Saved           `json:"file,omitempty"`     // modes save and restore
	Snapshot *SnapshotFigures `json:"snapshot,omitempty"` // of a background save
	COLO     *COLOFigures     `json:"colo,omitempty"`     // in mode colo

	Decisions []Decision `json:"decisions,omitempty"` // of the policy, in their order

	Plan map[string]any `json:"plan"` // what was asked, in the words of the command line
	// the source's query-migrate-parameters, in QEMU's names and units
	Parameters   map[string]any  `json:"parameters,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"` // the source's query-migrate-capabilities

	QEMU  QEMU  `json:"qemu"`
	Hosts Hosts `json:"hosts"`

	Watched *Watched `json:"watched,omitempty"` // somebody else drove the migration, and qmigrate looked on

	Stages   []Stage  `json:"stages"`
	Passes   []Pass   `json:"passes"`
	Total    Total    `json:"total"`
	Downtime Downtime `json:"downtime"`
	Clocks   *Clocks  `json:"clocks,omitempty"` // where a host's clock is not qmigrate's
	// the downtime taken apart, in the order of their beginnings
	Anatomy []AnatomyPart `json:"anatomy,omitempty"`
	// what the source had still to send, at most 300 times, in the order of time; QEMU 11.1 and newer, with a trace log
	Pending []Pending `json:"pending,omitempty"`

	Guest       *Guest       `json:"guest,omitempty"`
	Timeline    []Series     `json:"timeline,omitempty"` // what observers counted, bin by bin
	Marks       []Mark       `json:"marks,omitempty"`    // instants to draw on the timeline, in the order of time
	CPU         []CPUUse     `json:"cpu,omitempty"`      // what QEMU's threads took of the hosts' processors
	CPUCap      *CPUCap      `json:"cpu_cap,omitempty"`  // the limit on the guest's vCPUs, if they had one
	Web         *Web         `json:"web,omitempty"`
	Stream      *Stream      `json:"tcp_stream,omitempty"`
	Network     *Network     `json:"network,omitempty"`
	MemoryCheck *MemoryCheck `json:"memory_check,omitempty"`
	Tools       *Tools       `json:"tools,omitempty"`
	Boot        *Boot        `json:"boot,omitempty"`
	Tunnel      *Tunnel      `json:"tunnel,omitempty"`
	DiskCheck   *DiskCheck   `json:"disk_check,omitempty"`
	Mirrors     []Mirror     `json:"mirrors,omitempty"`
	Sampling    *Sampling    `json:"sampling,omitempty"`
	Prediction  *Prediction  `json:"prediction,omitempty"` // made before the migration

	// Origin is the instant of the first command on this process's monotonic clock; every start_ns counts from it. Not
	// kept in files.
	Origin time.Time `json:"-"`
	// Samples is the time series, kept in samples/ID.jsonl.
	Samples []Sample `json:"-"`
}

// Watched is how a migration was watched that somebody else drove.
type Watched struct {
	Destination bool `json:"destination"` // its QEMU was watched too
	// the migration was under way when watching began: what came before is not in the record
	Midway bool   `json:"midway"`
	Status string `json:"status,omitempty"` // the source's query-migrate at that moment, if it was under way
}

// Decision is one step that a convergence policy took.
type Decision struct {
	Pass int           `json:"pass"` // during which it was taken
	At   time.Duration `json:"at_ns"`
	Text string        `json:"text"` // what was seen, and what was done about it
}

// Error is why a migration did not complete.
type Error struct {
	Stage   StageName `json:"stage"`
	Message string    `json:"message"`
}

// QEMU describes the two emulators and the machine that moved.
type QEMU struct {
	SourceVersion      string `json:"source_version,omitempty"`
	DestinationVersion string `json:"destination_version,omitempty"`
	Accelerator        string `json:"accelerator,omitempty"`        // kvm or tcg, by the source's query-kvm
	AcceleratorReason  string `json:"accelerator_reason,omitempty"` // why that one, where qmigrate chose it
	Machine            string `json:"machine,omitempty"`
	MemoryBytes        int64  `json:"memory_bytes,omitempty"`
	VCPUs              int    `json:"vcpus,omitempty"`
	// model of the guest's network card, where the lab gave it one: virtio-net, e1000, ...
	NIC string `json:"nic,omitempty"`
	// how the guest has its disks, where the lab gave it some: virtio-blk, virtio-scsi, ahci
	DiskBus string `json:"disk_bus,omitempty"`
}

// Hosts names the places; Kernel and CPU are the source host's.
type Hosts struct {
	Source      string `json:"source,omitempty"`
	Destination string `json:"destination,omitempty"`
	Kernel      string `json:"kernel,omitempty"`
	CPU         string `json:"cpu,omitempty"`
}

// Clocks are the hosts' realtime clocks beside that of the machine that ran qmigrate. A host with the same clock has
// none.
type Clocks struct {
	Source      *Clock `json:"source,omitempty"`
	Destination *Clock `json:"destination,omitempty"`
	Observer    *Clock `json:"observer,omitempty"` // of the host that pings the guest, from the observation's beginning on
}

// Clock is a host's realtime clock: offset + drift * (time since the first look) is theirs less ours.
type Clock struct {
	Offset time.Duration `json:"offset_ns"` // theirs less ours at the first look, before anything was changed
	// of an instant of that host, at most: half the shortest round trip of a look and its distance from the line
	Error time.Duration `json:"error_ns"`
	// by how many millionths theirs is faster; absent where the looks are too close together to tell
	Drift      *float64    `json:"drift_ppm,omitempty"`
	DriftError *float64    `json:"drift_error_ppm,omitempty"` // what the first look and the last leave open
	Samples    int         `json:"samples"`                   // looks: before, each second during, and after
	Steps      []ClockStep `json:"steps,omitempty"`           // where it was set, in the order of time
}

// ClockStep is a jump of a host's clock.
type ClockStep struct {
	From  time.Duration `json:"from_ns"` // the look before it
	To    time.Duration `json:"to_ns"`   // the look after it
	By    time.Duration `json:"by_ns"`   // how far it jumped; below 0: back
	Error time.Duration `json:"by_error_ns"`
}

// Words tell of the step of the clock of a host, which is called so.
func (s ClockStep) Words(whose string) string {
	way, by := "forwards", s.By
	if by < 0 {
		way, by = "back", -by
	}
	return fmt.Sprintf("the clock of %s was set %s by %s, between %s and %s after the first command", whose, way,
		by.Round(time.Millisecond), s.From.Round(time.Millisecond), s.To.Round(time.Millisecond))
}

// Stage is one stage. StartNS counts from the first command; the stages are contiguous, so their durations sum to
// Total.Wall.
type Stage struct {
	Name     StageName     `json:"name"`
	Start    time.Duration `json:"start_ns"`
	Duration time.Duration `json:"duration_ns"`
}

// Pass is one turn over the pages that were dirty when it began. The last one is sent while the guest is stopped.
// How a pass is told from QEMU's raw dirty-sync-count is docs/measurements.md, "Passes".
type Pass struct {
	Pass     int           `json:"pass"` // from 1; the set-up's full copy is pass 1
	Start    time.Duration `json:"start_ns"`
	Duration time.Duration `json:"duration_ns"`
	// on the wire during the pass, by query-migrate's `transferred`
	Transferred *int64 `json:"transferred_bytes,omitempty"`
	Remaining   *int64 `json:"remaining_bytes,omitempty"` // left to send at the pass's last sample
	// pages waiting when the pass began, by its first sample
	DirtyPages *int64   `json:"dirty_pages,omitempty"`
	Throughput *float64 `json:"throughput_bytes_per_s,omitempty"` // Transferred / Duration
	// auto-converge's throttle at the pass's last sample
	Throttle *int64 `json:"throttle_percent,omitempty"`
	Stopped  bool   `json:"guest_stopped,omitempty"` // the pass of the stop-and-copy stage
	PostCopy bool   `json:"post_copy,omitempty"`     // what followed the guest
	// samples that fell into the pass: 0 means its bytes are the neighbours' edges
	Samples int `json:"samples"`
}

// PostCopyFigures is what post-copy cost, beside its stages.
type PostCopyFigures struct {
	// how often it lost its link and was recovered, or was not
	Pauses int `json:"pauses"`
	// all vCPUs at once waited for pages: postcopy-blocktime, ms on the wire, of the destination
	Blocktime     *time.Duration  `json:"blocktime_ns,omitempty"`
	VCPUBlocktime []time.Duration `json:"vcpu_blocktime_ns,omitempty"` // the same for each vCPU: postcopy-vcpu-blocktime
	// mean time of a page request, from the fault on the destination until its page is there: postcopy-latency, ns on
	// the wire, QEMU 10.1 and later; it and the next three need the capability postcopy-blocktime. A fault on a page that
	// is there already is no request.
	Latency *time.Duration `json:"latency_ns,omitempty"`
	// how many requests took how long: postcopy-latency-dist, QEMU 10.1 and later. From the first bucket to the last
	// that has any, those between them included; absent where there was no request.
	LatencyBuckets []LatencyBucket `json:"latency_buckets,omitempty"`
	// mean time of a request by each vCPU: postcopy-vcpu-latency, ns on the wire; 0: it requested no page. QEMU 10.1 and
	// later
	VCPULatency []time.Duration `json:"vcpu_latency_ns,omitempty"`
	// mean time of a request by QEMU's other threads, such as those of devices: postcopy-non-vcpu-latency, ns on the wire;
	// absent where they requested none. QEMU 10.1 and later
	OtherLatency *time.Duration `json:"other_latency_ns,omitempty"`
	// of the destination, by the source's postcopy-requests
	Requests *int64 `json:"page_requests,omitempty"`
}

// LatencyBucket is how many page requests of a post-copy took From or longer, and less than To. QEMU has 24 of them, by
// powers of two of a microsecond.
type LatencyBucket struct {
	From  time.Duration `json:"from_ns"` // 0 of the first
	To    time.Duration `json:"to_ns"`   // the last has what took longer than its 16.8 s, too
	Count int64         `json:"count"`   // of requests
}

// Total is the whole. The QEMU fields are the source's last query-migrate.
type Total struct {
	// first command .. the end of the last stage: RESUME on the destination, in post-copy the later `completed`, or the
	// end of the undo, which belongs to the stage that failed
	Wall        time.Duration  `json:"wall_ns"`
	QEMUTotal   *time.Duration `json:"qemu_total_ns,omitempty"` // total-time, ms on the wire
	QEMUSetup   *time.Duration `json:"qemu_setup_ns,omitempty"` // setup-time, ms on the wire, by the host's wall clock
	Transferred *int64         `json:"transferred_bytes,omitempty"`
	Normal      *int64         `json:"normal_pages,omitempty"`
	Duplicate   *int64         `json:"duplicate_pages,omitempty"` // pages of zeros, sent as a mark of about 9 bytes
	Postcopy    *int64         `json:"postcopy_bytes,omitempty"`
	Multifd     *int64         `json:"multifd_bytes,omitempty"`
	DirtySyncs  *int64         `json:"dirty_sync_count,omitempty"` // QEMU's raw count; what it counts differs by version
}

// Downtime is the guest's silence as each observer saw it; docs/measurements.md defines each, and its error.
type Downtime struct {
	QEMU      *time.Duration `json:"qemu_ns,omitempty"` // query-migrate's downtime, ms on the wire
	QEMUError *time.Duration `json:"qemu_error_ns,omitempty"`
	// STOP on the source to RESUME on the destination, by QEMU's own stamps
	Wire      *time.Duration `json:"wire_ns,omitempty"`
	WireError *time.Duration `json:"wire_error_ns,omitempty"`
	// the same by when both events were at qmigrate, where a host's clock is not qmigrate's
	Arrival      *time.Duration `json:"arrival_ns,omitempty"`
	ArrivalError *time.Duration `json:"arrival_error_ns,omitempty"`
	Status       *time.Duration `json:"status_ns,omitempty"` // query-status polled on both sides: the bracket's middle
	StatusError  *time.Duration `json:"status_error_ns,omitempty"`
	Ping         *time.Duration `json:"ping_ns,omitempty"` // longest gap between echo replies at the observer
	PingError    *time.Duration `json:"ping_error_ns,omitempty"`
	// longest gap between the guest's beats, stamped by the observer
	Heartbeat      *time.Duration `json:"heartbeat_ns,omitempty"`
	HeartbeatError *time.Duration `json:"heartbeat_error_ns,omitempty"`
	// longest gap between two of the guest's looks at its own clock, one at each heartbeat
	GuestClock      *time.Duration `json:"guest_clock_ns,omitempty"`
	GuestClockError *time.Duration `json:"guest_clock_error_ns,omitempty"`
	TCP             *time.Duration `json:"tcp_ns,omitempty"` // longest gap between echoes in one established connection
	TCPError        *time.Duration `json:"tcp_error_ns,omitempty"`
}

// Guest is what the guest felt.
type Guest struct {
	// observer's elapsed minus guest's elapsed, over the migration
	ClockSlip       *time.Duration `json:"clock_slip_ns,omitempty"`
	ClockSlipError  *time.Duration `json:"clock_slip_error_ns,omitempty"`
	SlowdownPercent *float64       `json:"slowdown_percent,omitempty"` // 100 * (1 - during/before)
	// the workload's own events, in the observation before the first command
	EventsBefore *float64 `json:"events_before_per_s,omitempty"`
	// the same, from the first command to the end of the wall time
	EventsDuring *float64 `json:"events_during_per_s,omitempty"`
	// the same, from there to the end of the observation
	EventsAfter *float64 `json:"events_after_per_s,omitempty"`
	// a bin, plus what the same rule would find without a migration
	BrownoutError *time.Duration `json:"brownout_error_ns,omitempty"`
	// two of the agent's bins, or the usual silence, plus the error of their edges
	BlackoutError *time.Duration `json:"blackout_error_ns,omitempty"`
	// bins of the workload's events below 95 % of the median before, the blackout not among them
	Brownout *time.Duration `json:"brownout_ns,omitempty"`
	// the longest time without an event that overlaps the wall time
	Blackout *time.Duration `json:"blackout_ns,omitempty"`
	Score    *Score         `json:"score,omitempty"`
}

// Score is a workload's result as its kind is usually given, over its whole run: before, during and after the
// migration.
type Score struct {
	Value float64 `json:"value"`
	Unit  string  `json:"unit"` // MFLOPS, Dhrystones/s
}

// Series is one row of the timeline: what one observer counted in bins of equal length, on the record's clock.
type Series struct {
	Name   string        `json:"name"`     // what: guest_events, tcp_received, cpu_source, ...
	Unit   string        `json:"unit"`     // of the values: events/s, bytes/s, percent (of one processor)
	Source string        `json:"source"`   // who counted, by which clock
	Start  time.Duration `json:"start_ns"` // where the first bin begins: negative before the first command
	Bin    time.Duration `json:"bin_ns"`
	Values []*float64    `json:"values"` // nil: not observed

	// how far an edge of a bin may be from where it is said to be
	EdgeError *time.Duration `json:"edge_error_ns,omitempty"`
}

// Mark is one instant on the record's clock.
type Mark struct {
	// migrate, stop, resume, first_frame, fdb_moved, ...: docs/timeline.md has them all
	Name    string         `json:"name"`
	At      time.Duration  `json:"at_ns"`
	AtError *time.Duration `json:"at_error_ns,omitempty"`
	Source  string         `json:"source"` // who saw it, by which clock
}

// CPUUse is what one thread, or a whole QEMU, took of its host's processors over one span.
type CPUUse struct {
	Side Holder `json:"side"`
	// process (the whole QEMU), vcpu0, vcpu1, ... (vcpus: one thread runs all), main, migration (all threads of it)
	Thread string        `json:"thread"`
	From   time.Duration `json:"from_ns"`
	Span   time.Duration `json:"span_ns"`
	// of threads by /proc/PID/task/TID/schedstat, of the process by its clock of processor time
	Used    time.Duration `json:"used_ns"`
	Percent float64       `json:"percent"`         // 100 * used / span: of one processor
	Stage   StageName     `json:"stage,omitempty"` // "": before the first command; after: when the last stage was over
}

// CPUCap is the limit on the processor time of the guest's vCPU threads, on both hosts; QEMU's other threads have none.
// What it means is docs/hardware.md.
type CPUCap struct {
	Percent int           `json:"percent"`   // of one processor, for all vCPUs of the guest together
	Period  time.Duration `json:"period_ns"` // in each of which it holds
	Cgroup  string        `json:"cgroup"`    // what holds it: v1 (cpu.cfs_quota_us) or v2 (cpu.max)
	// from just before the first command until the migration had ended
	Source      *CapUse `json:"source,omitempty"`
	Destination *CapUse `json:"destination,omitempty"` // on the destination
}

// CapUse is what the kernel counted of one side's limit.
type CapUse struct {
	Periods int64 `json:"periods"` // in which a vCPU wanted to run: nr_periods of cpu.stat
	// those in which the quota was spent and the vCPUs stood still: nr_throttled
	Throttled int64 `json:"throttled_periods"`
	// how long, summed over the host's processors: throttled_time, or throttled_usec
	Stood time.Duration `json:"throttled_ns"`
	// processor time of the vCPU threads, by /proc/PID/task/TID/schedstat
	Used time.Duration `json:"used_ns"`
}

// Boot is how the guest of an experiment's trial came to be there.
type Boot struct {
	// trial: booted for this one; cell: for all trials of the cell that one run makes
	Per string `json:"per"`
	// which of this guest's migrations it was, from 1: the even ones lead back to the host where it was booted
	Migration int `json:"migration"`
	// the trial's begin .. guest ready, memory filled, workload running, destination waiting
	Ready *time.Duration `json:"ready_ns,omitempty"`
	// the trial's begin .. its record, the observers' second before and the checks after included
	Trial time.Duration `json:"trial_ns"`
}

// Network is what the network saw, from the observer.
type Network struct {
	// between two pings, and two TCP echoes; absent: neither was sent
	PingInterval *time.Duration `json:"ping_interval_ns,omitempty"`
	// between two of the guest's heartbeats, and looks at its clock; absent: there were none
	BeatInterval *time.Duration `json:"beat_interval_ns,omitempty"`
	PingsSent    int            `json:"pings_sent"`
	PingsLost    int            `json:"pings_lost"`
	TCPSurvived  *bool          `json:"tcp_survived,omitempty"`
	Retransmits  *int64         `json:"retransmits,omitempty"` // of the observer's echo connection, TCP_INFO
	Gaps         []Gap          `json:"gaps,omitempty"`
	// QEMU's announcements of the guest's MAC address, as seen on the link, after RESUME
	RARP []time.Duration `json:"announcements_after_resume_ns,omitempty"`
	// RESUME to the guest's first frame seen at the link from the destination's port
	AnnounceToFirstPacket *time.Duration `json:"announce_to_first_packet_ns,omitempty"`
}

// Gap is the longest silence that one observer saw around the stop, taken apart at the stop's edges. What lies before
// STOP is no downtime and is felt all the same: a stall when the migration was set up, or a guest that the copying
// slows.
type Gap struct {
	Observer string        `json:"observer"`  // ping, heartbeat, tcp
	Before   time.Duration `json:"before_ns"` // from the gap's beginning to STOP on the source
	During   time.Duration `json:"during_ns"` // from STOP to RESUME on the destination
	After    time.Duration `json:"after_ns"`  // from RESUME to the gap's end
	// the longest gap that ended before STOP, from the first command on
	BeforeStop *time.Duration `json:"longest_before_ns,omitempty"`
}

// MemoryCheck is the guest's own page check on the destination.
type MemoryCheck struct {
	PagesChecked int64 `json:"pages_checked"`
	PagesWrong   int64 `json:"pages_wrong"`
}

// Tunnel is what carried the migration's connections through one authenticated connection of ours.
type Tunnel struct {
	Kind string `json:"kind"` // tls or ssh
	// the migration's own, both ways, at the source's half; what the tunnel adds is not in it
	Bytes int64 `json:"bytes"`
	// of the whole process that held the tunnel's halves, while it stood, by getrusage: an upper bound, because it also
	// samples
	CPU time.Duration `json:"cpu_ns"`
}

// Sampling is the observer effect: how often QEMU was asked, and what that cost it.
type Sampling struct {
	Samples   int           `json:"samples"`
	PeriodP50 time.Duration `json:"period_p50_ns"`
	PeriodP99 time.Duration `json:"period_p99_ns"`
	// the slowest reply: QEMU does not answer during the switch-over
	LongestUnanswered time.Duration `json:"longest_unanswered_ns"`
	// what reading both QEMUs' processor time cost this process, from the beginning of the observation to its end
	Observer *time.Duration `json:"observer_cpu_ns,omitempty"`
	// the source's main thread, over all ticks; from that thread's clock around some of them: docs/measurements.md
	QEMUCPU *time.Duration `json:"qemu_cpu_ns,omitempty"`
}

// Prediction is what a model said before the migration.
type Prediction struct {
	Model       string         `json:"model"`
	Total       *time.Duration `json:"total_ns,omitempty"`
	Downtime    *time.Duration `json:"downtime_ns,omitempty"`
	Transferred *int64         `json:"transferred_bytes,omitempty"`
}

// Sample is one line of the time series: one reply of query-migrate, or one edge.
type Sample struct {
	T                time.Duration  `json:"t_ns"` // when the reply was there, from the first command
	Side             Holder         `json:"side"`
	Status           string         `json:"status"`
	Transferred      *int64         `json:"transferred_bytes,omitempty"`
	Remaining        *int64         `json:"remaining_bytes,omitempty"`
	DirtyPagesRate   *int64         `json:"dirty_pages_per_s,omitempty"`
	Throughput       *float64       `json:"throughput_bytes_per_s,omitempty"`
	Throttle         *int64         `json:"throttle_percent,omitempty"`
	ExpectedDowntime *time.Duration `json:"expected_downtime_ns,omitempty"`
	SyncCount        *int64         `json:"dirty_sync_count,omitempty"`
	Pages            *int64         `json:"pages_sent,omitempty"` // normal + duplicate
	Asked            time.Duration  `json:"asked_ns"`             // when the question left, from the first command
}

// NewID returns an id that sorts by time and is unique: 20061102T150405.000Z-1a2b3c.
func NewID(at time.Time) string {
	var b [3]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails on Linux (it would abort the program)
	return at.UTC().Format("20060102T150405.000Z") + "-" + hex.EncodeToString(b[:])
}

// Warn adds a doubt about the result; the same text is kept once.
func (m *Migration) Warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, w := range m.Warnings {
		if w == text {
			return
		}
	}
	m.Warnings = append(m.Warnings, text)
}

// MayGoOn tells whether this is a post-copy that may still go on over a new connection, and may need its TLS
// credentials for that: it has not completed, and its guest is anywhere but on the source, or that is not known.
func (m *Migration) MayGoOn() bool {
	over := m.Outcome == Completed || m.Outcome == GuestEnded || m.GuestOn == Source
	return m.PostCopy != nil && !over
}

// Stage returns the stage of that name, or nil.
func (m *Migration) Stage(name StageName) *Stage {
	for i := range m.Stages {
		if m.Stages[i].Name == name {
			return &m.Stages[i]
		}
	}
	return nil
}

// End returns the instant, on this process's monotonic clock, at which the stage ended; the zero time if it never did.
func (m *Migration) End(name StageName) time.Time {
	s := m.Stage(name)
	if s == nil || m.Origin.IsZero() {
		return time.Time{}
	}
	return m.Origin.Add(s.Start + s.Duration)
}

// Of returns a pointer to v: for the fields in which absent is not zero.
func Of[T any](v T) *T { return &v }

// Saved is the file that a guest was saved into or restored from.
type Saved struct {
	Path      string `json:"path"`
	Format    string `json:"format"`                    // stream or mapped-ram
	Size      *int64 `json:"size_bytes,omitempty"`      // its length; a mapped-ram file has holes
	Allocated *int64 `json:"allocated_bytes,omitempty"` // what it takes on the disk
	RunState  string `json:"run_state,omitempty"`       // the QEMU's query-status afterwards: postmigrate, running, paused
}

// SnapshotFigures is what a background save was to the guest.
type SnapshotFigures struct {
	// `migrate` about to be sent .. completed: all of it is written
	Duration time.Duration `json:"duration_ns"`
	// STOP .. RESUME by QEMU's stamps: its devices are being saved
	Stopped   *time.Duration `json:"stopped_ns,omitempty"`
	StopError *time.Duration `json:"stopped_error_ns,omitempty"` //
	// longest gap between the guest's beats that overlaps it, stamped by the observer: Stopped is part of it, and so are
	// writes to pages that wait to be saved
	Stall      *time.Duration `json:"vcpu_stall_longest_ns,omitempty"`
	StallError *time.Duration `json:"vcpu_stall_longest_error_ns,omitempty"` // as of downtime.heartbeat
	// the longest gap between two of the guest's looks at its own clock, which stands still while the guest is stopped:
	// writes alone
	StallGuest *time.Duration `json:"vcpu_stall_guest_clock_ns,omitempty"`
}
