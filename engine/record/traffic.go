package record

import "time"

// PhaseName names a part of the observation.
type PhaseName string

// The phases: the first command and the end of the wall time part them.
const (
	BeforePhase PhaseName = "before"
	DuringPhase PhaseName = "during"
	AfterPhase  PhaseName = "after"
)

// Web is what a client on the observer saw of the guest's HTTP server. Each request was due at its own time, and its
// latency counts from then, whatever became of those before it: a server that stands still delays all that were due
// meanwhile, and each of them counts.
type Web struct {
	Asked       float64    `json:"asked_per_s"` // requests that were due a second
	Connections int        `json:"connections"`
	Body        int64      `json:"body_bytes"` // of each response
	Resets      int        `json:"resets"`     // connections that broke: reset, or closed before a whole response
	Reconnects  int        `json:"reconnects"` // connections beyond the first Connections
	Wrong       int        `json:"wrong"`      // responses with another status or body than the request's
	Unanswered  int        `json:"unanswered"` // requests that were due and had no answer when the observation ended
	Phases      []WebPhase `json:"phases"`
}

// WebPhase is one part, by the time at which a request was due.
type WebPhase struct {
	Phase    PhaseName `json:"phase"`
	Requests int       `json:"requests"` // that were due and were answered or failed
	// of them, those that failed: broken connections, time-outs, wrong responses
	Errors int `json:"errors"`
	// requests that were due in the phase and were answered, by its length
	Answered float64 `json:"answered_per_s"`
	// latency of half of those that were answered: the arrival of the last byte less when the request was due, by the
	// observer's clock
	P50  time.Duration `json:"p50_ns"`
	P99  time.Duration `json:"p99_ns"`  // the same of 99 % of them
	P999 time.Duration `json:"p999_ns"` // the same of 99.9 % of them
	Max  time.Duration `json:"max_ns"`  // the greatest latency, exact
	// all of them: an HdrHistogram, V2 compressed, base64; values in ns from 1 us to 60 s, 3 digits
	Histogram string `json:"latency_hdr,omitempty"`
}

// Stream is what one TCP connection carried between the observer and the guest, both ways at once.
type Stream struct {
	Received    int64  `json:"received_bytes"`        // from the guest, all of it checked
	Acked       int64  `json:"acked_bytes"`           // to the guest, by its TCP
	Retransmits *int64 `json:"retransmits,omitempty"` // segments that the observer's end sent again, TCP_INFO
	// the connection stood to the end, and every byte was the one that was sent
	Survived bool          `json:"survived"`
	Broken   string        `json:"broken,omitempty"` // why not
	Phases   []StreamPhase `json:"phases"`
}

// StreamPhase is one part.
type StreamPhase struct {
	Phase    PhaseName `json:"phase"`
	Received float64   `json:"received_bytes_per_s"` // from the guest, when the observer's program had read it
	// to the guest, when its TCP had acknowledged it, TCP_INFO of the observer's end
	Acked float64 `json:"acked_bytes_per_s"`
	// segments that the observer's end sent again, TCP_INFO each 10 ms
	Retransmits *int64 `json:"retransmits,omitempty"`
}
