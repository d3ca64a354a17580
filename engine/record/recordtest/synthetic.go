// Package recordtest makes records of migrations that never were, for tests and benchmarks of what reads records: of
// the size and shape of real ones, the same for the same seed.
package recordtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"qmigrate/engine/record"
)

// The factors of the synthetic experiment: 3 x 3 x 2 cells.
func bandwidths() []string     { return []string{"32MiB/s", "64MiB/s", "128MiB/s"} }
func rates() []string          { return []string{"1000/s", "4000/s", "16000/s"} }
func modes() []record.Mode     { return []record.Mode{record.PreCopyMode, record.StopAndCopyMode} }
func epoch() time.Time         { return time.Date(2026, 11, 1, 8, 0, 0, 0, time.UTC) }
func ns(s float64) *int64      { return record.Of(int64(s * 1e9)) }
func d(n int64) *time.Duration { return record.Of(time.Duration(n)) }

// Synthetic yields n records of one experiment whose cells take turns. Time is memory over bandwidth, lengthened by the
// dirty rate; each value has a skewed error, and some downtimes are whole milliseconds, as QEMU gives them. One in
// fifty failed.
func Synthetic(seed uint64, n int) iter.Seq[*record.Migration] {
	return func(yield func(*record.Migration) bool) {
		random := rand.New(rand.NewPCG(seed, 1))
		for i := range n {
			if !yield(synthetic(random, i)) {
				return
			}
		}
	}
}

// synthetic is one record with every key. It is one function because a record is one literal.
func synthetic(random *rand.Rand, i int) *record.Migration {
	const memory, page = 256 << 20, 4096
	cells := len(bandwidths()) * len(rates()) * len(modes())
	cell, repeat := i%cells, i/cells
	b, r, mode := cell%3, cell/3%3, modes()[cell/9]
	bandwidth := float64(int64(32<<20) << b)
	dirty := 1000 * math.Pow(4, float64(r)) * page // bytes a second
	noise := func(spread float64) float64 { return math.Exp(spread * random.NormFloat64()) }

	limit := 0.3
	var passes []record.Pass
	at, left, sent := 0.02, float64(memory)*0.9, 0.0
	for p := 1; ; p++ {
		stopped := mode == record.StopAndCopyMode || left <= bandwidth*limit || p > 12
		took := left / bandwidth * noise(0.02)
		if stopped {
			took *= 0.4 // the limit does not hold while the guest stands still
		}
		passes = append(passes, record.Pass{
			Pass: p, Start: time.Duration(at * 1e9), Duration: time.Duration(took * 1e9),
			Transferred: record.Of(int64(left)), Remaining: record.Of(int64(left / 50)),
			DirtyPages: record.Of(int64(left / page)), Throughput: record.Of(left / took), Stopped: stopped,
			Samples: int(took * 100),
		})
		at, sent = at+took, sent+left
		if stopped {
			break
		}
		left = min(dirty*took, memory*0.9)
	}
	last := passes[len(passes)-1]
	stop := last.Duration.Seconds() + 0.004*noise(0.3)
	wall := at + 0.001*noise(0.5)
	m := &record.Migration{
		Schema: record.Schema, ID: fmt.Sprintf("%s-%06x",
			epoch().Add(time.Duration(i)*8*time.Second).Format("20060102T150405.000Z"), random.IntN(1<<24)),
		StartedAt: epoch().Add(time.Duration(i) * 8 * time.Second), Name: fmt.Sprintf("%s,%s,300ms", mode,
			bandwidths()[b]), Mode: mode,
		Outcome: record.Completed, GuestOn: record.Destination,
		Workload: fmt.Sprintf("dirty:rate=%s,working-set=64MiB,pattern=uniform,content=random,change=64B,duration=0s",
			rates()[r]),
		Experiment: "synthetic", Trial: fmt.Sprintf("cell-%02d/%03d", cell, repeat), Order: record.Of(i),
		Factors: map[string]any{"mode": string(mode), "max-bandwidth": bandwidths()[b], "dirty-rate": rates()[r]},
		Plan: map[string]any{"mode": string(mode), "max_bandwidth_bytes_per_s": bandwidth, "downtime_limit_ns": 3e8,
			"sample_interval_ns": 1e7, "listen": "tcp:10.77.0.12:0"},
		Parameters: map[string]any{
			"announce-initial": 50, "announce-max": 550, "announce-rounds": 5, "announce-step": 100, "avail-switchover-bandwidth": 0, "cpu-throttle-increment": 10,
			"cpu-throttle-initial": 20, "cpu-throttle-tailslow": false, "direct-io": false, "downtime-limit": 300, "max-bandwidth": bandwidth, "max-cpu-throttle": 99,
			"max-postcopy-bandwidth": 0, "mode": "normal", "multifd-channels": 2, "multifd-compression": "none", "multifd-zlib-level": 1, "multifd-zstd-level": 1,
			"throttle-trigger-threshold": 50, "tls-authz": "", "tls-creds": "", "tls-hostname": "", "vcpu-dirty-limit": 1, "x-checkpoint-delay": 20000,
			"x-vcpu-dirty-limit-period": 1000, "xbzrle-cache-size": 67108864, "zero-page-detection": "legacy",
		},
		Capabilities: map[string]bool{
			"auto-converge": false, "background-snapshot": false, "dirty-bitmaps": false, "dirty-limit": false, "events": true, "late-block-activate": false,
			"mapped-ram": false, "multifd": false, "pause-before-switchover": false, "postcopy-blocktime": false, "postcopy-preempt": false, "postcopy-ram": false,
			"rdma-pin-all": false, "release-ram": false, "return-path": false, "switchover-ack": false, "validate-uuid": false, "x-colo": false, "xbzrle": false,
		},
		QEMU: record.QEMU{
			SourceVersion: "10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)", DestinationVersion: "10.0.2 (Debian " +
				"1:10.0.2+ds-2+deb13u1~bpo12+1)",
			Accelerator: "tcg", Machine: "pc-q35-7.2", MemoryBytes: memory, VCPUs: 1,
		},
		Hosts: record.Hosts{Source: "netns:qmig-synthetic-a", Destination: "netns:qmig-synthetic-b",
			Kernel: "6.1.0-56-amd64", CPU: "2 x synthetic"},
		Passes: passes,
	}
	edge := time.Duration(0)
	for _, s := range []struct {
		name record.StageName
		s    float64
	}{{record.Initialization, 0.012}, {record.Reservation, 0.008}, {record.PreCopy,
		max(0, wall-0.02-stop)}, {record.StopAndCopy, stop}, {record.Commitment, 1e-4}, {record.Activation, 2e-4}} {
		took := time.Duration(s.s * 1e9)
		m.Stages = append(m.Stages, record.Stage{Name: s.name, Start: edge, Duration: took})
		edge += took
	}
	m.Total = record.Total{
		Wall: edge, QEMUTotal: d(int64(wall*1e3) * 1e6), QEMUSetup: d(0), Transferred: record.Of(int64(sent)),
		Normal:    record.Of(int64(sent / page)),
		Duplicate: record.Of(int64(memory / 10 / page)), DirtySyncs: record.Of(int64(len(passes) + 1)),
	}
	m.Downtime = record.Downtime{
		QEMU: d(int64(stop*1e3) * 1e6), QEMUError: d(1e6), Wire: d(*ns(stop)), WireError: d(2000),
		Status: d(*ns(stop * noise(0.05))), StatusError: d(9e6),
		Ping: d(*ns(stop + 0.04*noise(0.4))), PingError: d(16e6), Heartbeat: d(*ns(stop +
			0.04*noise(0.4))), HeartbeatError: d(2e7),
		GuestClock: d(*ns(0.05 * noise(0.5))), GuestClockError: d(5e6), TCP: d(*ns(stop + 0.2*noise(0.2))), TCPError: d(2e7),
	}
	before := dirty / page
	during := before * (1 - stop/edge.Seconds()) * noise(0.01)
	m.Guest = &record.Guest{
		ClockSlip: d(*ns(stop)), ClockSlipError: d(1e5), EventsBefore: &before, EventsDuring: &during,
		SlowdownPercent: record.Of(100 * (1 - during/before)),
	}
	m.Network = &record.Network{PingsSent: int(edge.Seconds() * 200), PingsLost: int(stop * 200),
		TCPSurvived: record.Of(true), Retransmits: record.Of(int64(4))}
	for _, o := range []string{"ping", "heartbeat", "tcp"} {
		m.Network.Gaps = append(m.Network.Gaps,
			record.Gap{Observer: o, Before: 2e6, During: *m.Downtime.Wire, After: 4e7, BeforeStop: d(3e7)})
	}
	m.MemoryCheck = &record.MemoryCheck{PagesChecked: 27954}
	m.Sampling = &record.Sampling{Samples: int(edge.Seconds() * 100), PeriodP50: 1e7, PeriodP99: 13e6,
		LongestUnanswered: 25e6, QEMUCPU: d(31e6)}
	for _, name := range []string{"guest_events", "cpu_source"} {
		series := record.Series{Name: name, Unit: "1/s", Source: "synthetic", Start: -2e9, Bin: 5e8}
		for range 20 {
			series.Values = append(series.Values, record.Of(before*noise(0.02)))
		}
		m.Timeline = append(m.Timeline, series)
	}
	for _, side := range []record.Holder{record.Source, record.Destination} {
		for _, thread := range []string{"process", "vcpu0", "migration"} {
			m.CPU = append(m.CPU, record.CPUUse{Side: side, Thread: thread, From: 2e7, Span: edge, Used: edge / 3, Percent: 33.3,
				Stage: record.PreCopy})
		}
	}
	if random.IntN(50) == 0 {
		m.Outcome, m.GuestOn = record.Failed, record.Source
		m.Error = &record.Error{Stage: record.PreCopy, Message: "the link is down"}
		m.Downtime, m.Guest, m.MemoryCheck = record.Downtime{}, nil, nil
	}
	return m
}

// WriteFolder makes a folder with those records, without their time series; much faster than a Folder, which syncs each
// line.
func WriteFolder(dir string, records iter.Seq[*record.Migration]) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(dir, record.RecordsFile))
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(file, 64<<10)
	defer func() {
		if flushErr := w.Flush(); err == nil {
			err = flushErr
		}
		if closeErr := file.Close(); err == nil {
			err = closeErr
		}
	}()
	return Write(w, records)
}

// Write writes records as lines.
func Write(w io.Writer, records iter.Seq[*record.Migration]) error {
	enc := json.NewEncoder(w)
	for m := range records {
		if err := enc.Encode(m); err != nil {
			return err
		}
	}
	return nil
}
