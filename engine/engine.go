// Package engine moves a running guest from one QEMU to another by speaking QMP to both, in the six stages of Clark et al.
// (NSDI 2005), and records what happened. It knows monitors, not hosts or guests: what it needs of those is in Endpoint.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"time"

	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// Dialer opens a connection to one monitor of a QEMU.
type Dialer func(ctx context.Context) (net.Conn, error)

// Endpoint is one QEMU as the engine sees it: up to three monitors, for a QMP socket serves one client, and a command on a
// shared one waits for the command before it.
type Endpoint struct {
	Name    string  // as the user wrote it: unix:/run/a.qmp
	Host    string  // where it runs, for the record
	Control Dialer  // every command
	Events  Dialer  // events and status polls; nil: over Control
	Sampler Dialer  // the lock-step query-migrate; nil: over Control
	Files   bool    // a path means the same file to it and to us: a guest can be saved there
	Process Process // nil: the process can only be asked to quit, and is dead when its monitor is closed

	// ReadFile reads a file as that QEMU would see it; nil: its files cannot be read from here.
	ReadFile func(name string) ([]byte, error)

	// Opened tells what files that QEMU has open are to its host, by the names that QEMU gives them. Those that cannot be
	// told are left out. nil: none can be told from here.
	Opened func(names []string) map[string]OpenFile

	// Clock measures that host's realtime clock minus ours and the error of that; nil: it is our clock.
	Clock func(ctx context.Context) (offset, uncertainty time.Duration, err error)
	// Reaches tries whether that host reaches another, by its address; nil: it cannot be tried from there.
	Reaches func(ctx context.Context, host string) error
}

// Process is what the engine needs of a QEMU's process, for fencing and for the cost of sampling.
type Process interface {
	// Kill ends it, if need be by force, and returns nil only when it is known dead.
	Kill(ctx context.Context) error
	// Done is closed when it has ended; nil if it is not known which process it is.
	Done() <-chan struct{}
	// HasThread tells whether the thread with this number is one of its own. Who listens on a socket may be a forwarder: only
	// the process that has the vCPU threads is the QEMU, and only its death is the guest's end.
	HasThread(id int) bool
	// MainThreadCPU is the processor time of the thread that answers the monitor.
	MainThreadCPU() (time.Duration, error)
}

// Plan is what to do; its zero value is a plain pre-copy with QEMU's defaults.
type Plan struct {
	Mode           record.Mode       // default pre-copy
	MaxBandwidth   int64             // bytes/s, set on both sides; 0: 128 MiB/s; negative: unlimited
	DowntimeLimit  time.Duration     // set on both sides; 0: 300 ms; at most 2,000 s
	Capabilities   map[string]bool   // by QEMU's names, set on both sides; every other one is switched off
	Parameters     map[string]string // by QEMU's names and in QEMU's units, set on both sides
	Listen         string            // the destination's migrate-incoming URI; default tcp:127.0.0.1:0
	Connect        string            // the source's migrate URI; default: where the destination says it listens
	Channels       string            // how the two are written in the commands: FormURI (default) or FormChannels
	AllowUnsafe    bool              // do also what is known to lose a guest when it fails
	SampleInterval time.Duration     // of query-migrate and query-status; 0: 10 ms; negative: no polling
	Timeout        time.Duration     // from `migrate` to the switch-over; 0: none
	Policy         policy.Spec       // what to do about a pre-copy that does not converge; zero: QEMU decides alone
	LinkRate       int64             // bytes/s of the link, for the policy; 0: not known
	Mirror         Mirror            // disks that the hosts do not share
	SwitchAfter    SwitchAfter       // hybrid: when post-copy begins; zero: after one pass
	StallLimit     time.Duration     // post-copy in which nothing was sent for so long has lost its link, and a destination that is silent so long while disks are copied hangs; 0: 5 s
	RecoverLimit   time.Duration     // how long a post-copy that lost its link tries to go on, how long its switch may stand still, and how long a QEMU may be silent before it is taken to hang, each at least; 0: 1 min
	Tunnel         TunnelKind        // what carries the connections from Connect to Listen, which the caller has seen to; "": nothing does
	TLS            *TLS              // encryption by QEMU itself; nil: as both QEMUs have been told by somebody else, which is usually none
}

// Plan defaults, and QEMU's own limit on downtime-limit (migration/options.c, 7.2 to 11.1).
const (
	defaultMaxBandwidth   = 128 << 20
	defaultDowntimeLimit  = 300 * time.Millisecond
	maxDowntimeLimit      = 2000 * time.Second
	defaultSampleInterval = 10 * time.Millisecond
	defaultListen         = "tcp:127.0.0.1:0"
)

func (p Plan) withDefaults() Plan {
	if p.Mode == "" {
		p.Mode = record.PreCopyMode
	}
	if p.MaxBandwidth == 0 {
		p.MaxBandwidth = defaultMaxBandwidth
	}
	p.MaxBandwidth = max(p.MaxBandwidth, 0) // QEMU's own word for unlimited
	if p.DowntimeLimit == 0 {
		p.DowntimeLimit = defaultDowntimeLimit
	}
	if p.SampleInterval == 0 {
		p.SampleInterval = defaultSampleInterval
	}
	if p.Listen == "" {
		p.Listen = defaultListen
	}
	if p.StallLimit == 0 {
		p.StallLimit = defaultStallLimit
	}
	if p.RecoverLimit == 0 {
		p.RecoverLimit = defaultRecoverLimit
	}
	if p.Mode == record.HybridMode && p.SwitchAfter == (SwitchAfter{}) {
		p.SwitchAfter.Passes = 1
	}
	if p.Capabilities = maps.Clone(p.Capabilities); p.Capabilities == nil { // the caller's stays as it is
		p.Capabilities = map[string]bool{}
	}
	if len(p.Mirror.Nodes) > 0 {
		if p.Mirror.CopyMode == "" {
			p.Mirror.CopyMode = copyBackground
		}
		if _, set := p.Capabilities["pause-before-switchover"]; !set {
			p.Capabilities["pause-before-switchover"] = true
		}
	}
	if _, set := p.Capabilities["postcopy-ram"]; p.postCopies() && !set {
		p.Capabilities["postcopy-ram"] = true
	}
	if p.Channels == "" {
		p.Channels = FormURI
	}
	return p
}

// Options is what a caller may want beside the record.
type Options struct {
	Logger  *slog.Logger        // info: stage edges; debug: wire lines; nil is silent
	Schemas qmp.SchemaCache     // where the introspection of known QEMU binaries is kept; zero: asked each time
	Stream  Stream              // the descriptors of --listen fd:NAME; nil: a socket pair of this machine
	Sampled func(record.Sample) // each sample as it comes, from the sampling goroutine; nil: none
	// Mirrored is told twice a second of stage storage, from a goroutine of its own, how many bytes of how many the mirrors have copied. The
	// whole grows with what the guest writes again. nil: nobody asks.
	Mirrored func(copied, all int64)
}

// StageError is a migration that did not go to its end. Guest says who holds the guest now; Err why; Mend what to do where
// there is something to do. Issued tells whether `migrate` had been sent.
type StageError struct {
	Stage  record.StageName
	Guest  record.Holder
	Issued bool
	Err    error
	Mend   string
	Ended  bool // the guest has ended by itself: no side runs it, and nothing was lost
}

func (e *StageError) Error() string {
	if e.Stage == record.Initialization && e.Guest != record.None { // nothing was changed: only what was wrong matters
		return e.Err.Error()
	}
	if e.Ended {
		text := fmt.Sprintf("%s: %v", e.Stage, e.Err)
		if e.Mend != "" {
			text += "; " + e.Mend
		}
		return text
	}
	where := map[record.Holder]string{
		record.Source:      "the guest is on the source",
		record.Destination: "the guest is on the destination",
		record.File:        "the guest is in its file",
		record.None:        "NO SIDE RUNS THE GUEST",
		record.Unknown:     "it is not known which side holds the guest",
	}[e.Guest]
	text := fmt.Sprintf("%s: %v; %s", e.Stage, e.Err, where)
	if e.Mend != "" {
		text += ": " + e.Mend
	}
	return text
}

func (e *StageError) Unwrap() error { return e.Err }

// UnsupportedError is something that this QEMU, or this pair, cannot do.
type UnsupportedError struct {
	Feature string // what was asked
	Have    string // what there is instead, or which names are near
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s is not supported: %s", e.Feature, e.Have)
}

// errTimeout is the cause of a context that Plan.Timeout ended.
var errTimeout = errors.New("not converged within the time-out")
