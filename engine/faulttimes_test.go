package engine_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
)

// walker is real-mode code that writes to each page from 64 KiB to 636 KiB, again and again.
func walker() []byte {
	return []byte{0xb8, 0x00, 0x10, // from: ax = 0x1000, a segment
		0x8e, 0xd8, 0xfe, 0x06, 0x00, 0x00, // next: ds = ax; inc byte [0]
		0x05, 0x00, 0x01, 0x3d, 0x00, 0x9f, 0x72, 0xf2, // ax += 0x100; if it is below 0x9f00: next
		0xeb, 0xed} // jump to from
}

// TestFaultTimes: after a post-copy the record tells how long the page requests took: on QEMU 10.1 and newer each of
// them is in one bucket, on older ones there is the blocktime alone. The guest waits for a page at a time, and writes to
// 143 of them when it runs on the destination.
func TestFaultTimes(t *testing.T) {
	t.Parallel()
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, p := range []plan.Plan{
			{Mode: record.PostCopyMode},
			{Mode: record.HybridMode, SwitchAfter: plan.SwitchAfter{Time: 300 * time.Millisecond}},
		} {
			t.Run(string(p.Mode), func(t *testing.T) {
				t.Parallel()
				bios := firmware(t, walker())
				src, dst := pair(t, qemu, func(a, b *guest.Spec) {
					a.Extra, b.Extra = []string{"-bios", bios}, []string{"-bios", bios}
				})
				p.MaxBandwidth = slow
				p.Parameters = map[string]string{"max-postcopy-bandwidth": fmt.Sprint(8 * slow)} // so that it must ask
				r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), p, plan.Options{})
				if err != nil {
					t.Fatal(err)
				}
				wantRecord(t, r)
				told := r.PostCopy
				text, _ := json.Marshal(told)
				t.Logf("%s", text)
				if told.Requests == nil || *told.Requests == 0 {
					t.Fatal("the guest waited for no page")
				}
				if told.Blocktime == nil || len(told.VCPUBlocktime) != 1 {
					t.Error("no blocktime")
				}
				if r.Capabilities["postcopy-blocktime"] {
					t.Error("the source, which counts nothing, was told to count")
				}
				if !strings.Contains(qemu, "11.1") {
					if told.Latency != nil || told.LatencyBuckets != nil || told.VCPULatency != nil || told.OtherLatency != nil {
						t.Error("this QEMU tells no latencies")
					}
					return
				}
				if told.Latency == nil || len(told.VCPULatency) != 1 {
					t.Fatal("no latencies")
				}
				var n int64
				for i, b := range told.LatencyBuckets {
					if b.From >= b.To || i > 0 && b.From != told.LatencyBuckets[i-1].To {
						t.Errorf("bucket %d is %+v", i, b)
					}
					n += b.Count
				}
				if n != *told.Requests {
					t.Errorf("%d in buckets, of %d requests", n, *told.Requests)
				}
				// The mean is ns, and the sum behind it is told in ms too.
				sum, ms := told.VCPULatency[0]*time.Duration(n), told.VCPUBlocktime[0]
				if told.OtherLatency == nil && (sum < ms || sum-ms > time.Millisecond+time.Duration(n)) {
					t.Errorf("a mean of %v is not %v of %d", told.VCPULatency[0], ms, n)
				}
			})
		}
	})
}

// TestFaultTimesPlugged: QEMU is not told to count the waits of a vCPU that was plugged in, for which it has no room.
func TestFaultTimesPlugged(t *testing.T) {
	t.Parallel()
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		t.Parallel()
		more := strings.Fields("-smp 1,maxcpus=2 -device qemu64-x86_64-cpu,socket-id=0,core-id=1,thread-id=0")
		src, dst := pair(t, qemu, func(a, b *guest.Spec) { a.Extra, b.Extra = more, more })
		p := plan.Plan{Mode: record.PostCopyMode, Capabilities: map[string]bool{"postcopy-blocktime": true}}
		if _, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), p, plan.Options{}); err == nil ||
			!strings.Contains(err.Error(), "write behind") {
			t.Errorf("it is not refused: %v", err)
		}
		r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), plan.Plan{Mode: record.PostCopyMode, MaxBandwidth: slow},
			plan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if r.PostCopy.Blocktime != nil {
			t.Errorf("QEMU counted: %+v", r.PostCopy)
		}
	})
}
