package recordtest

import (
	"time"

	"qmigrate/engine/record"
)

// Told is how much the sources at hand tell of a downtime.
type Told string

// The ways.
const (
	Stamped Told = "stamped" // both logs, with time stamps
	Bare    Told = "bare"    // both logs, without time stamps: when is told by events alone
	Untold  Told = "untold"  // events alone, as of QEMU 7.2
)

// Anatomy is a downtime taken apart: from STOP at stop, in nanoseconds from the first command, over wire. The critical
// parts follow each other and sum to wire. The shares are those of a small guest; device names are QEMU's.
func Anatomy(mode record.Mode, told Told, stop, wire time.Duration) []record.AnatomyPart {
	a := anatomy{at: stop, stop: stop}
	share := func(percent float64) time.Duration { return time.Duration(float64(wire) * percent / 100) }
	post := mode == record.PostCopyMode || mode == record.HybridMode
	if told == Stamped {
		a.beside(record.OnSource, record.PartStopVCPUs, "", stop-share(1), share(1))
	}
	if mode == record.StopAndCopyMode {
		a.critical(record.OnQmigrate, record.PartDecision, "", share(0.1), clock)
		a.critical(record.OnSource, record.PartSetup, "", share(1), events)
	}
	a.critical(record.OnSource, record.PartDisks, "", share(1), events)
	if told == Stamped {
		a.sections(share, post)
	} else {
		a.critical(record.OnSource, record.PartUntold, "", share(60), events)
		a.critical(record.OnDestination, record.PartUntold, "", stop+share(98)-a.at, events)
	}
	if !post {
		a.critical(record.OnQmigrate, record.PartNotice, "", share(0.4), clock)
	}
	a.critical(record.OnQmigrate, record.PartDecision, "", share(0.1), clock)
	a.critical(record.OnDestination, record.PartStart, "", stop+wire-a.at, events)
	if told == Bare { // of the log's sections only how long they took
		logged := anatomy{at: stop, stop: stop}
		logged.sections(share, post)
		for _, p := range logged.parts {
			if p.Device != "" {
				p.Start, p.Critical, p.Error = nil, false, time.Microsecond
				a.parts = append(a.parts, p)
			}
		}
	}
	return a.parts
}

// What told a part.
const (
	trace  = "trace"
	events = "events"
	clock  = "clock of qmigrate"
)

type anatomy struct {
	at, stop time.Duration
	parts    []record.AnatomyPart
}

// sections is what the logs tell: up to 98 % of the downtime.
func (a *anatomy) sections(share func(percent float64) time.Duration, post bool) {
	a.critical(record.OnSource, record.PartDisks, "", share(1), trace)
	ram := share(40)
	if post {
		ram = share(0.5) // the memory follows the guest
	} else {
		a.beside(record.OnDestination, record.PartRAMLoad, "ram", a.at+share(0.2), ram)
	}
	a.critical(record.OnSource, record.PartRAMSave, "ram", ram, trace)
	names := []string{"timer", "cpu", "0000:00:01.0/vga", "0000:00:02.0/virtio-net", "0000:00:03.0/virtio-blk",
		"0000:00:1f.2/ich9_ahci", "apic", "globalstate"}
	left := share(60) - a.at + a.stop - share(1)
	for i, name := range names {
		took := left * time.Duration(2*(i%5)+1) / 34
		if !post {
			a.beside(record.OnDestination, record.PartDeviceLoad, name, a.at+took, took/2)
		}
		a.critical(record.OnSource, record.PartDeviceSave, name, took, trace)
	}
	a.critical(record.OnLink, record.PartWire, "", share(0.7), "frames")
	left = share(95) - a.at + a.stop
	for i, name := range names {
		a.critical(record.OnDestination, record.PartDeviceLoad, name, left*time.Duration(2*((i+2)%5)+1)/46, trace)
	}
	a.critical(record.OnDestination, record.PartBottomHalf, "", share(1), trace)
	a.critical(record.OnDestination, record.PartAnnounce, "", share(0.5), trace)
	a.critical(record.OnDestination, record.PartBottomHalf, "", share(1), trace)
	a.critical(record.OnSource, record.PartLastWord, "", a.stop+share(98)-a.at, events)
}

func (a *anatomy) critical(side record.Place, part record.PartName, device string, took time.Duration,
	source string) {
	a.parts = append(a.parts, record.AnatomyPart{Side: side, Part: part, Device: device, Start: record.Of(a.at),
		Duration: took, Error: 2 * time.Microsecond, Source: source, Critical: true})
	a.at += took
}

func (a *anatomy) beside(side record.Place, part record.PartName, device string, start, took time.Duration) {
	a.parts = append(a.parts, record.AnatomyPart{Side: side, Part: part, Device: device, Start: &start, Duration: took,
		Error: 2 * time.Microsecond, Source: trace})
}

// TakenApart gives a completed record such an anatomy. Where its memory followed the guest, it gets latencies of page
// requests too.
func TakenApart(m *record.Migration, told Told) *record.Migration {
	stop := m.Stage(record.StopAndCopy)
	if m.Outcome != record.Completed || m.Downtime.Wire == nil || stop == nil {
		return m
	}
	m.Anatomy = Anatomy(m.Mode, told, stop.Start, *m.Downtime.Wire)
	if m.Mode == record.PostCopyMode || m.Mode == record.HybridMode {
		m.PostCopy = &record.PostCopyFigures{Latency: d(180e3), VCPULatency: []time.Duration{190e3, 150e3},
			OtherLatency: d(60e3), LatencyBuckets: Latencies()}
	}
	return m
}

// Latencies are buckets as QEMU 10.1 and newer has them: powers of two of microseconds.
func Latencies() []record.LatencyBucket {
	var all []record.LatencyBucket
	for i, n := range []int64{0, 0, 0, 2, 30, 240, 900, 610, 120, 31, 12, 4, 0, 0, 1} {
		from := time.Microsecond << i
		all = append(all, record.LatencyBucket{From: from, To: 2 * from, Count: n})
	}
	return all
}
