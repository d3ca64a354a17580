// Package wire is what the host and the agent inside the guest say to each other: JSON objects, one a line, over a
// virtio-serial port; beats over UDP as well; and the words on the kernel's command line by which the agent is set up.
//
// Host to agent, a request:    {"id":7,"do":"fill","args":{"bytes":134217728}}
// agent to host, its reply:    {"id":7,"result":{...}}   or   {"id":7,"error":"..."}
// agent to host, unasked:      {"event":"ready","data":{...}}
//
// Either side may lose the other in the middle of a line (a migration moves the guest's half of the port and leaves the
// host's behind), so every line also begins with a newline: empty lines mean nothing, a half line spoils only itself.
// Ids are the host's choice and mean nothing to the agent, which answers a repeated id again.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

const (
	// Port is the name of the virtio-serial port.
	Port = "qmigrate.agent"
	// Protocol is raised when an older peer could misunderstand a line.
	Protocol = 1
	// MaxLine and MaxRequest are the longest lines in bytes that the host and the agent keep; a longer one is thrown away
	// up to its newline.
	MaxLine    = 1 << 20
	MaxRequest = 64 << 10
	// PageSize in bytes: the unit of fill, dirty and verify, and QEMU's target page on x86-64.
	PageSize = 4096
)

// What a request may ask.
const (
	DoHello          = "hello"           // -> Hello
	DoFill           = "fill"            // Fill -> Filled
	DoVerify         = "verify"          // -> Verified
	DoCorrupt        = "corrupt"         // Corrupt; for tests: verify must then find that page
	DoWorkloadStart  = "workload.start"  // Workload -> Status
	DoWorkloadStatus = "workload.status" // Bins -> Status
	DoWorkloadStop   = "workload.stop"   // Bins -> Status
	DoWorkloadRate   = "workload.rate"   // NewRate -> Status; of a workload that has a rate
	DoWorkloadMark   = "workload.mark"   // -> Marked; of the page dirtier
	DoWorkloadSpoil  = "workload.spoil"  // for tests: the workload's own check must then fail
	DoClockReset     = "clock.reset"     // the looks at the clock are counted afresh
	DoClockReport    = "clock.report"    // -> ClockReport; the count goes on
	DoClockStop      = "clock.stop"      // -> ClockReport; the count ends
	DoBeat           = "beat"            // BeatSet -> BeatReport
	DoPoweroff       = "poweroff"        // the reply is sent first
	DoDiskStart      = "disk.start"      // DiskStart -> DiskStatus
	DoDiskStatus     = "disk.status"     // DiskName -> DiskStatus
	// DiskName -> DiskStatus, when the last acknowledgement has been given to the port
	DoDiskStop    = "disk.stop"
	DoDiskRead    = "disk.read"    // DiskRead -> DiskBlocks
	DoDiskCorrupt = "disk.corrupt" // DiskCorrupt; for tests
	DoPutFile     = "file.put"     // PutFile
)

// What a note may tell.
const (
	EventReady = "ready" // Hello, once after boot
	EventBeat  = "beat"  // Beat
	EventDone  = "done"  // Status: a workload was stopped, ended or failed
	EventPanic = "panic" // Panic: the agent itself is broken and powers the guest off

	EventDiskAck = "disk.ack" // DiskAcks
	EventCounted = "counted"  // Counted
)

// Request asks the agent for something. ID comes back in the reply.
type Request struct {
	ID   uint64          `json:"id"`
	Do   string          `json:"do"`
	Args json.RawMessage `json:"args,omitempty"`
}

// Reply answers one request. Error is empty on success. ID is 0 where a line was no request.
type Reply struct {
	ID     uint64          `json:"id"`
	Error  string          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// Note is what the agent says unasked.
type Note struct {
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data,omitempty"`
}

// Message is one line from the agent: exactly one of the two is set.
type Message struct {
	Reply *Reply
	Note  *Note
}

// Hello is who the agent is and where it runs.
type Hello struct {
	Protocol int    `json:"protocol"`
	Agent    string `json:"agent"`  // the content part of the agent binary's Go build id
	Kernel   string `json:"kernel"` // uname -r
	// /proc/sys/kernel/random/boot_id: a migrated guest keeps it, a rebooted one does not
	BootID      string        `json:"boot_id"`
	MemoryBytes int64         `json:"memory_bytes"` // what the kernel has to give: less than the machine's RAM
	VCPUs       int           `json:"vcpus"`
	Uptime      time.Duration `json:"uptime_ns"` // CLOCK_BOOTTIME at this answer
	Clock       time.Duration `json:"clock_ns"`  // CLOCK_MONOTONIC at this answer
	// CLOCK_MONOTONIC when the agent's main began: the kernel's share of the boot
	Started time.Duration `json:"started_ns"`
	// CLOCK_MONOTONIC when the agent was ready: Ready - Started is its own share
	Ready     time.Duration `json:"ready_ns"`
	Workloads []string      `json:"workloads"` // names
	// what went wrong while the guest was set up; the agent runs none the less
	Problems []string `json:"problems"`
	Lines    uint64   `json:"garbage_lines"` // lines from the host that were no request
	Beats    uint64   `json:"dropped_beats"` // beats that found the port full or closed
	// notes other than beats for which there was no room while no host read
	Notes   uint64 `json:"dropped_notes"`
	Address string `json:"address"`      // of eth0, with prefix; empty: none
	Region  int64  `json:"region_bytes"` // what fill holds; 0 before
	Running string `json:"workload"`     // the running workload as String has it; empty: none
}

// Panic is the agent's own end.
type Panic struct {
	Text string `json:"text"` // the panic's value and its stack
}

// Beat is one heartbeat: a UDP datagram or, in a guest that was not told where to send them, the same bytes as a note
// on the port.
type Beat struct {
	Seq   uint64        // from 1, without holes at the sender
	Clock time.Duration // the guest's CLOCK_MONOTONIC when it was sent
}

// BeatSet changes the heartbeats, at each of which the guest looks at its clock too; a nil Interval leaves them as they
// are, 0 turns them off.
type BeatSet struct {
	Interval *time.Duration `json:"interval_ns,omitempty"`
}

// BeatReport is what the heartbeats did since boot.
type BeatReport struct {
	Interval time.Duration `json:"interval_ns"` // 0: off
	Seq      uint64        `json:"seq"`         // of the last beat
	Dropped  uint64        `json:"dropped"`     // not sent by the port, for it was full or closed
	UDPLost  uint64        `json:"udp_lost"`    // not sent by UDP
}

// ClockReport is what the guest saw of its own clock since the reset, or what workload clock saw.
type ClockReport struct {
	Interval   time.Duration `json:"interval_ns"`   // of the beats at the last look; the workload's own
	Turns      uint64        `json:"turns"`         // 0: nothing was looked at, and nothing below is known
	Elapsed    time.Duration `json:"elapsed_ns"`    // CLOCK_MONOTONIC since the reset
	Longest    time.Duration `json:"longest_ns"`    // longest gap between two turns
	LongestAt  time.Duration `json:"longest_at_ns"` // CLOCK_MONOTONIC at that gap's beginning
	Resolution time.Duration `json:"resolution_ns"` // p50 of the gaps: the error of Longest. At most 1/16 too large
	P99        time.Duration `json:"p99_ns"`        // of the gaps
}

// Fill asks for memory to be held and written: every page with its index, counter 0 and content.
type Fill struct {
	Bytes   int64  `json:"bytes,omitempty"`   // rounded up to pages; 0: half of the guest's memory
	Content string `json:"content,omitempty"` // random (the default), compressible or zero
	Seed    uint64 `json:"seed,omitempty"`    // 0: 1
}

// Filled answers a Fill.
type Filled struct {
	Bytes    int64         `json:"bytes"`
	Pages    int64         `json:"pages"`
	Duration time.Duration `json:"duration_ns"`
}

// Corrupt flips one bit of a page behind the table's back.
type Corrupt struct {
	Page int64 `json:"page"`
}

// Verified is the memory check. The check has passed if Wrong is 0 and Found equals Claimed and Held.
type Verified struct {
	Checked int64 `json:"pages_checked"`
	Wrong   int64 `json:"pages_wrong"`
	// of those checked, all zero by design: there a stale page looks like a fresh one
	Zero    int64  `json:"pages_zero"`
	Claimed uint64 `json:"writes_claimed"` // page writes counted by the dirtier since fill
	Held    uint64 `json:"writes_held"`    // sum of the counters that the table expects
	// sum of the counters in the pages themselves; a zero page's counter is the table's
	Found    uint64        `json:"writes_found"`
	First    []WrongPage   `json:"first_wrong"` // at most 8
	Duration time.Duration `json:"duration_ns"`
}

// OK reports whether every page is right and the sums agree.
func (v Verified) OK() bool {
	return v.Checked > 0 && v.Wrong == 0 && v.Found == v.Claimed && v.Held == v.Claimed
}

// WrongPage is one page that is not as it should be.
type WrongPage struct {
	Page     int64  `json:"page"`
	Expected string `json:"expected"`
	Found    string `json:"found"`
}

// Workload is what workload.start takes: see ParseWorkload.
type Workload struct {
	Name   string            `json:"name"`
	Params map[string]string `json:"params,omitempty"` // as written; what is absent has its default
}

// NewRate changes the rate of the workload that runs, from now on.
type NewRate struct {
	Rate float64 `json:"rate_per_s"` // as the parameter rate: 0 is as fast as it can
}

// Marked is what the page dirtier did between the last mark, or its start, and this one. While it marks, nothing is
// written.
type Marked struct {
	From     time.Duration `json:"from_ns"`  // CLOCK_MONOTONIC at the last mark
	At       time.Duration `json:"at_ns"`    // CLOCK_MONOTONIC at this one
	Writes   uint64        `json:"writes"`   // page writes
	Distinct int64         `json:"distinct"` // pages that were written at least once
}

// Bins asks for a stretch of a workload's time line.
type Bins struct {
	From int64 `json:"from,omitempty"` // the first bin wanted, counted from the workload's start
	Max  int   `json:"max,omitempty"`  // at most so many; 0: 2048, the most; negative: none
}

// The states of a workload.
const (
	Running = "running"
	Done    = "done"   // stopped, or at its end
	Failed  = "failed" // Error says why
)

// Status is a workload's progress or, unless its State is Running, its result.
type Status struct {
	Workload
	State   string        `json:"state"`
	Error   string        `json:"error,omitempty"`
	Unit    string        `json:"unit"`       // what an event is: "page write"
	Events  uint64        `json:"events"`     // since the start
	Started time.Duration `json:"started_ns"` // CLOCK_MONOTONIC
	Elapsed time.Duration `json:"elapsed_ns"` // CLOCK_MONOTONIC, to now or to its end
	Bin     time.Duration `json:"bin_ns"`     // width of a bin; bin i begins at Started + i*Bin
	First   int64         `json:"first_bin"`  // index of Bins[0]: more than asked for if older bins are gone
	Bins    []uint64      `json:"bins,omitempty"`
	Next    int64         `json:"next_bin"` // ask from here to go on
	// the workload's own: Dirtied, ClockReport, Livermore, Dhrystones, Linpack
	Result json.RawMessage `json:"result,omitempty"`
	// the result in the workload's own unit; absent: it has none, or none yet
	Score *Score `json:"score,omitempty"`
}

// Score is a workload's result as it is usually given.
type Score struct {
	Value float64 `json:"value"`
	Unit  string  `json:"unit"` // MFLOPS, Dhrystones/s
}

// Livermore is the result of the Livermore kernels. A rate is a kernel's floating-point operations by the time in its
// loops, of all passes so far; means are over the 24 rates.
type Livermore struct {
	Rounds     uint64      `json:"rounds"` // whole rounds through the 24 kernels, each with its checksum right
	MFLOPS     [24]float64 `json:"mflops"`
	Least      float64     `json:"least_mflops"`
	Most       float64     `json:"most_mflops"`
	Arithmetic float64     `json:"arithmetic_mean_mflops"`
	Geometric  float64     `json:"geometric_mean_mflops"` // the score
	Harmonic   float64     `json:"harmonic_mean_mflops"`
	WorstError float64     `json:"worst_error"` // largest |checksum - reference| / |reference| so far
}

// Dhrystones is the result of Dhrystone 2.1.
type Dhrystones struct {
	Runs      uint64  `json:"runs"`
	PerSecond float64 `json:"dhrystones_per_s"` // the score: runs by the time in the loop
	VAXMIPS   float64 `json:"vax_mips"`         // PerSecond / 1757, the VAX 11/780's
}

// Linpack is the result of the Linpack benchmark.
type Linpack struct {
	N      int    `json:"n"`
	Solves uint64 `json:"solves"`
	// the score: (2/3 n^3 + 2 n^2) by the mean time of a factorisation and a solution
	MFLOPS float64 `json:"mflops"`
	Best   float64 `json:"best_mflops"` // the same of the fastest
	// largest ||Ax-b|| / (n ||A|| ||x|| eps) so far, in the norms of the original
	WorstResidual float64 `json:"worst_residual"`
}

// Dirtied is the page dirtier's own result.
type Dirtied struct {
	Writes     uint64 `json:"writes"`      // page writes since its start
	Distinct   int64  `json:"distinct"`    // pages written at least once since its start
	WorkingSet int64  `json:"working_set"` // pages
	// pages whose content was changed to the workload's before the first write, not counted in Writes
	Prepared int64   `json:"prepared"`
	Missed   uint64  `json:"missed"`     // writes that were due and were given up because the guest got no CPU
	Rate     float64 `json:"rate_per_s"` // asked for now; 0: as fast as it can
	VCPUs    int     `json:"vcpus"`      // writers
	Start    int64   `json:"start_page"` // first page of the working set now: it drifts
}

var errNotLine = errors.New("no JSON object")

// Line returns v as a line with its newline before and after.
func Line(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode line: %w", err)
	}
	return append(append([]byte{'\n'}, b...), '\n'), nil
}

// DecodeRequest reads a line from the host.
func DecodeRequest(line []byte) (Request, error) {
	var r Request
	if err := decode(line, &r); err != nil {
		return Request{}, fmt.Errorf("decode request: %w", err)
	}
	if r.Do == "" {
		return Request{}, errors.New(`decode request: no "do"`)
	}
	return r, nil
}

// DecodeMessage reads a line from the agent. Beats come out as notes too; ParseBeat is the fast way.
func DecodeMessage(line []byte) (Message, error) {
	var m struct {
		Reply
		Note
		ID *uint64 `json:"id"`
	}
	if err := decode(line, &m); err != nil {
		return Message{}, fmt.Errorf("decode message: %w", err)
	}
	switch {
	case m.Event != "" && m.ID == nil:
		return Message{Note: &m.Note}, nil
	case m.ID != nil && m.Event == "":
		m.Reply.ID = *m.ID
		return Message{Reply: &m.Reply}, nil
	}
	return Message{}, errors.New("decode message: neither a reply nor a note")
}

func decode(line []byte, v any) error {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] != '{' {
		return errNotLine
	}
	return json.Unmarshal(line, v)
}

const (
	beatHead = `{"event":"beat","data":{"seq":`
	beatMid  = `,"clock_ns":`
	beatTail = `}}`
)

// AppendBeat appends the beat's line, newline before and after, and does not allocate if b has room (96 bytes).
func AppendBeat(b []byte, t Beat) []byte {
	b = append(append(b, '\n'), beatHead...)
	b = strconv.AppendUint(b, t.Seq, 10)
	b = append(b, beatMid...)
	b = strconv.AppendInt(b, int64(t.Clock), 10)
	b = append(b, beatTail...)
	return append(b, '\n')
}

// ParseBeat reads what AppendBeat wrote, with or without newlines; ok is false for any other line.
func ParseBeat(line []byte) (t Beat, ok bool) {
	line = bytes.Trim(line, "\n")
	rest, ok := bytes.CutPrefix(line, []byte(beatHead))
	if !ok {
		return Beat{}, false
	}
	rest, ok = bytes.CutSuffix(rest, []byte(beatTail))
	seq, clock, found := bytes.Cut(rest, []byte(beatMid))
	if !ok || !found {
		return Beat{}, false
	}
	n, err := strconv.ParseUint(string(seq), 10, 64)
	c, err2 := strconv.ParseInt(string(clock), 10, 64)
	if err != nil || err2 != nil {
		return Beat{}, false
	}
	return Beat{Seq: n, Clock: time.Duration(c)}, true
}
