package facts

import (
	"context"
	"testing"
	"time"

	"qmigrate/engine/endpoint"
)

// process has the threads with these numbers.
type process []int

func (process) Kill(context.Context) error            { return nil }
func (process) Done() <-chan struct{}                 { return nil }
func (process) MainThreadCPU() (time.Duration, error) { return 0, nil }
func (p process) HasThread(id int) bool {
	for _, n := range p {
		if n == id {
			return true
		}
	}
	return false
}

// TestLocate: a QEMU is here if a process of this machine has its vCPUs. Who merely listens for it proves nothing.
func TestLocate(t *testing.T) {
	for name, c := range map[string]struct {
		thread  int // the first vCPU's, as QEMU says
		process endpoint.Process
		told    endpoint.Where
		want    endpoint.Where
	}{
		"its process":                      {7, process{6, 7}, endpoint.Unknown, endpoint.Here},
		"a forwarder":                      {7, process{8}, endpoint.Unknown, endpoint.Unknown},
		"a forwarder, said to be here":     {7, process{8}, endpoint.Here, endpoint.Unknown},
		"a forwarder to another machine":   {7, process{8}, endpoint.Elsewhere, endpoint.Elsewhere},
		"a QEMU that names no thread":      {0, process{0}, endpoint.Unknown, endpoint.Unknown},
		"no process, and nothing was said": {7, nil, endpoint.Unknown, endpoint.Unknown},
		"no process, said to be here":      {7, nil, endpoint.Here, endpoint.Here},
		"no process, said to be elsewhere": {7, nil, endpoint.Elsewhere, endpoint.Elsewhere},
	} {
		f := &Facts{VCPUThread: c.thread}
		f.Locate(&endpoint.Endpoint{Process: c.process, Where: c.told})
		if f.Where != c.want || f.Here() != (c.want == endpoint.Here) {
			t.Errorf("%s: %q, want %q", name, f.Where, c.want)
		}
	}
}
