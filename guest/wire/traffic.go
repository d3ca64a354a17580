package wire

import (
	"encoding/binary"
	"strconv"
)

// The ports of the guest's servers that carry traffic.
const (
	WebPort    = 80   // web: HTTP
	StreamPort = 7001 // tcp: a stream each way
)

// trafficTypes are the workloads that the observer has a part in: it asks, sends and receives, and both ends check what
// comes.
func trafficTypes(duration Param) []WorkloadType {
	return []WorkloadType{
		{Name: "web", Event: "request", Text: "an HTTP server, asked by the observer at a fixed rate; latencies",
			Params: []Param{
				{Name: "rate", Unit: Rate, Default: "200/s", Min: 1, Max: 1e5,
					Text: "requests a second in all, each due at its time whatever became of those before"},
				{Name: "connections", Unit: Count, Default: "8", Min: 1, Max: 1000,
					Text: "connections that the requests take turns on, and that are kept"},
				{Name: "size", Unit: Size, Default: "4KiB", Min: 8, Max: 16 << 20, Text: "body of a response"}, duration}},
		{Name: "tcp", Event: "byte received", Text: "a TCP stream each way between guest and observer; bytes/s",
			Params: []Param{
				{Name: "rate", Unit: Speed, Default: "2MiB/s", Max: 1 << 40,
					Text: "speed each way; 0B/s: as fast as it goes"}, duration}},
	}
}

// Pattern is what the n-th response of `web` and the stream of `tcp` (n = 0) hold, from the word at position on (8
// bytes are a word): it appends to b until b's capacity is full. No two words of a response are the same, nor of two
// responses at the same place.
func Pattern(b []byte, n, position uint64) []byte {
	for ; cap(b)-len(b) >= 8; position++ {
		b = binary.LittleEndian.AppendUint64(b, (n<<32+position)*0x9e3779b97f4a7c15)
	}
	for i := 0; len(b) < cap(b); i++ {
		b = append(b, byte(n>>(8*i)))
	}
	return b
}

// WebPath is the path of the n-th request.
func WebPath(n uint64) string { return "/" + strconv.FormatUint(n, 10) }

// Served is the web server's own result.
type Served struct {
	Requests    uint64 `json:"requests"`    // that were answered
	Connections uint64 `json:"connections"` // that were accepted
	Refused     uint64 `json:"refused"`     // requests that were not understood: their connection was closed
}

// Streamed is the tcp workload's own result.
type Streamed struct {
	Received    uint64 `json:"received_bytes"` // and checked
	Sent        uint64 `json:"sent_bytes"`     // given to the kernel
	Connections uint64 `json:"connections"`
}
