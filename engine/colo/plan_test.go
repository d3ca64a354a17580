package colo

import (
	"testing"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
)

// TestDefaults: a pair in step gets the plan's defaults as a migration does. An empty address would reach QEMU as
// `migrate-incoming ""`.
func TestDefaults(t *testing.T) {
	c := newCOLO(&endpoint.Endpoint{}, &endpoint.Endpoint{}, Plan{}, plan.Options{})
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	want := plan.Plan{}.WithDefaults()
	if p := c.run.Plan; p.Listen != want.Listen || p.Listen == "" || p.MaxBandwidth != want.MaxBandwidth ||
		p.DowntimeLimit != want.DowntimeLimit || p.SampleInterval != want.SampleInterval {
		t.Errorf("the plan of the run is %+v", p)
	}
	if c.want.CheckpointDelay != 200*time.Millisecond {
		t.Errorf("checkpoint delay %s", c.want.CheckpointDelay)
	}
}
