package engine

import (
	"context"
	"time"

	"qmigrate/engine/internal/run"
	"qmigrate/engine/record"
)

// faultTimes is what a destination with the capability postcopy-blocktime tells of page requests, once it has completed
// and not before. Source: qapi/migration.json, MigrationInfo; seen on 7.2.22, 10.0.2, 11.1.3.
type faultTimes struct {
	Blocktime     *int64  `json:"postcopy-blocktime"`      // ms
	VCPUBlocktime []int64 `json:"postcopy-vcpu-blocktime"` // ms
	// 10.1 and newer
	Latency     *int64  `json:"postcopy-latency"`          // ns
	Buckets     []int64 `json:"postcopy-latency-dist"`     // requests that took 2^n us or longer and less than 2^(n+1) us
	VCPULatency []int64 `json:"postcopy-vcpu-latency"`     // ns; 0: it made no request
	Other       int64   `json:"postcopy-non-vcpu-latency"` // ns; 0: no thread but the vCPUs made one
}

// readFaultTimes asks the destination for them, which costs the guest nothing any more.
func readFaultTimes(ctx context.Context, r *run.Run) {
	ctx, cancel := context.WithTimeout(ctx, run.AnswerLimit)
	defer cancel()
	var told faultTimes
	if err := r.Dst.Control.Execute(ctx, "query-migrate", nil, &told); err != nil {
		r.Log.Info("ask destination for the times of page requests", "err", err)
		return
	}
	told.note(r.Rec.PostCopy)
}

// note writes them into the record.
func (f *faultTimes) note(p *record.PostCopyFigures) {
	in := func(unit time.Duration, values []int64) (all []time.Duration) {
		for _, v := range values {
			all = append(all, time.Duration(v)*unit)
		}
		return all
	}
	if f.Blocktime != nil {
		p.Blocktime = record.Of(time.Duration(*f.Blocktime) * time.Millisecond)
	}
	p.VCPUBlocktime, p.VCPULatency = in(time.Millisecond, f.VCPUBlocktime), in(time.Nanosecond, f.VCPULatency)
	p.LatencyBuckets = buckets(f.Buckets)
	if f.Latency != nil && len(p.LatencyBuckets) > 0 { // of no requests it is 0
		p.Latency = record.Of(time.Duration(*f.Latency))
	}
	if f.Other > 0 {
		p.OtherLatency = record.Of(time.Duration(f.Other))
	}
}

// buckets are QEMU's from the first to the last that has any.
func buckets(counts []int64) (all []record.LatencyBucket) {
	last := -1
	for i, n := range counts {
		if n == 0 && all == nil || i > maxBucket {
			continue
		}
		from := time.Microsecond << i
		if i == 0 { // QEMU counts there what took less than 1 us
			from = 0
		}
		all = append(all, record.LatencyBucket{From: from, To: time.Microsecond << (i + 1), Count: n})
		if n > 0 {
			last = len(all)
		}
	}
	if last < 0 {
		return nil
	}
	return all[:last]
}

// maxBucket is the last whose bounds a Duration can hold. QEMU 11.1 has 24.
const maxBucket = 51
