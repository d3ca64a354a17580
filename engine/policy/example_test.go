package policy_test

import (
	"fmt"
	"time"

	"qmigrate/engine/policy"
	"qmigrate/engine/record"
)

// A policy is asked at each sample of a migration. Here are three passes of two seconds; the last one found no less to
// send than the one before.
func ExampleFollow() {
	spec, err := policy.Parse("post-copy-on-stall:progress=20%")
	if err != nil {
		fmt.Println(err)
		return
	}
	limits := policy.Limits{MemoryBytes: 256 << 20, MaxBandwidth: 32 << 20, DowntimeLimit: 300 * time.Millisecond,
		CanPostCopy: true}
	setting, capabilities, err := spec.Initial(limits)
	if err != nil {
		fmt.Println(err) // this pair of QEMUs, or this plan, does not allow the policy
		return
	}
	fmt.Println("needs", capabilities)

	follower := policy.Follow(spec.Policy(), limits, setting, 0)
	found := []int64{256 << 20, 96 << 20, 95 << 20}
	for i := range 12 {
		at := time.Duration(i+1) * 500 * time.Millisecond
		d := follower.Observe(record.Sample{
			T: at, Asked: at, Side: record.Source, Status: "active",
			SyncCount:   record.Of(int64(i/4 + 1)),
			Remaining:   record.Of(found[i/4] - int64(i%4)*(16<<20)),
			Transferred: record.Of(int64(i+1) * (16 << 20)),
		})
		if d.Action != "" {
			fmt.Println(d.At, d.Action)
			fmt.Println(d.Text)
		}
	}
	// Output:
	// needs [postcopy-ram]
	// 4.5s post-copy
	// pass 3: stalled: 95 MiB > 0.80 x 96 MiB; post-copy
}
