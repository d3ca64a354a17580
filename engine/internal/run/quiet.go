package run

import (
	"strings"
	"sync/atomic"
	"time"

	"qmigrate/qmp"
)

// QuietLimit is how long a quiet lasts at most.
const QuietLimit = 500 * time.Millisecond

// quiet is a time in which nobody is asked anything that can wait: the guest does not run, and what QEMU does for an
// answer it does not do for the guest. QEMU 7.2 to 11.1 answer the source's questions at the end of its switch-over
// anyway, when it lets go of the big lock. The events tell the edges: it begins with each step of the switch-over and
// ends when the guest runs. A switch-over that takes long is watched and sampled all the same: then the quiet is over
// before it.
type quiet struct{ until atomic.Int64 } // ns of the epoch

func (q *quiet) begin(d time.Duration) { q.until.Store(time.Now().Add(d).UnixNano()) }
func (q *quiet) end()                  { q.until.Store(0) }
func (q *quiet) now() bool             { return time.Now().UnixNano() < q.until.Load() }

// beQuiet begins a quiet.
func (r *Run) beQuiet() {
	d := min(QuietLimit, r.Plan.HangLimit()/8)
	r.quiet.begin(d)
	for _, s := range []*Side{r.Src, r.Dst} {
		if s.follower != nil {
			s.follower.Pause(d)
		}
	}
}

// speakAgain ends a quiet.
func (r *Run) speakAgain() {
	r.quiet.end()
	for _, s := range []*Side{r.Src, r.Dst} {
		if s.follower != nil {
			s.follower.Pause(0)
		}
	}
}

// hush begins or ends a quiet by an event. Of a guest that was stopped first STOP is no step of the switch-over: all of
// it is yet to be copied.
func (r *Run) hush(s *Side, ev qmp.Event) {
	switch {
	case ev.Name == "RESUME", ev.Name == "MIGRATION" && (s.Broke() || strings.HasPrefix(s.Status, "cancel")):
		r.speakAgain()
		if s == r.Dst && ev.Name == "RESUME" {
			r.Poll.runs()
		}
	case s != r.Src || !r.Issued || !s.Still() || !r.Dst.started.IsZero():
	case r.Watched && !r.Rec.Capabilities["events"]: // somebody else's, of which samples alone tell how it ends
	case ev.Name == "MIGRATION" && s.Done() && r.Dst.C == nil: // there is no RESUME to come
		r.speakAgain()
	case ev.Name == "STOP", ev.Name == "MIGRATION" && (s.Done() || s.Status == "device" || s.Status == "postcopy-device"):
		r.beQuiet()
	}
}
