package wire

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The guests that there are: what a workload needs is in its type.
const (
	TinyGuest   = "tiny"   // an initramfs with our agent alone: the default
	DebianGuest = "debian" // the same kernel and agent on a root of Debian's packages, with real tools
)

// Guests lists them, the default first.
func Guests() []string { return []string{TinyGuest, DebianGuest} }

// The ports of the tools, the guest's but for iperf3's, which is the observer's.
const (
	SSHPort   = 22
	RedisPort = 6379
	IperfPort = 5201
)

// Where sshd looks for its key, and for the keys of those it lets in.
const (
	SSHHostKey        = "/etc/ssh/host_key"
	SSHAuthorizedKeys = "/etc/ssh/authorized_keys"
)

// toolTypes are the workloads that are programs of Debian's.
func toolTypes(duration Param) []WorkloadType {
	interval := Param{Name: "interval", Unit: Span, Default: "100ms", Min: 1e7, Max: 1e10,
		Text: "time between two lines that the command in the ssh session prints"}
	rate := Param{Name: "rate", Unit: Rate, Default: "500/s", Max: 1e6,
		Text: "writes a second by all connections; 0: as fast as they are acknowledged"}
	value := Param{Name: "value", Unit: Size, Default: "64B", Min: 16, Max: 4096, Text: "size of a written value"}
	return []WorkloadType{
		{Name: "sysbench", Event: "event", Guest: DebianGuest, Report: time.Second,
			Text: "sysbench cpu, a thread a vCPU: an event is the search for the primes below 10,000", Params: []Param{duration}},
		{Name: "iperf3", Event: "byte", Guest: DebianGuest, Report: time.Second, Outside: true,
			Text: "iperf3 over TCP between the guest and the observer", Params: []Param{
				{Name: "direction", Unit: Choice, Default: "send", Choices: []string{"send", "receive"},
					Text: "of the guest"}, duration}},
		{Name: "stress-ng", Event: "bogo op", Guest: DebianGuest, Report: time.Second,
			Text: "stress-ng --cpu --verify in runs of 1 s, a worker a vCPU", Params: []Param{
				{Name: "method", Unit: Choice, Default: "int64",
					Choices: []string{"ackermann", "bitops", "crc16", "double", "euler", "fft", "fibonacci", "gcd", "hamming",
						"hanoi", "int32", "int64", "jmp", "loop", "matrixprod", "nsqrt", "phi", "pi", "prime", "queens", "rand", "sieve", "sqrt", "trig"}, Text: "stress-ng's --cpu-method"}, duration}},
		{Name: "redis", Event: "none", Guest: DebianGuest, Outside: true,
			Text: "redis in the guest, written to by the observer, which reads every acknowledged write back", Params: []Param{rate, value, duration}},
		{Name: "ssh", Event: "none", Guest: DebianGuest, Outside: true,
			Text: "an ssh session of the observer with a running command that counts", Params: []Param{interval, duration}},
		{Name: "survive", Event: "request", Guest: DebianGuest, Outside: true,
			Text:   "ssh, redis and web at once: what has to survive a migration",
			Params: []Param{interval, rate, value, duration}},
	}
}

// SurviveWeb is the web workload that is a part of survive.
func SurviveWeb() Workload {
	return Workload{Name: "web", Params: map[string]string{"rate": "100/s", "connections": "4"}}
}

// CheckGuest refuses a workload in a guest that has not what it takes.
func (w Workload) CheckGuest(guest string) error {
	if need := w.Type().Guest; need != "" && need != guest {
		return fmt.Errorf("%s needs guest %s", w.Name, need)
	}
	return nil
}

// PutFile writes a file in the guest; the folder must be there.
type PutFile struct {
	Path string `json:"path"`
	Data []byte `json:"data"`
	Mode uint32 `json:"mode"`
}

// Counted is what EventCounted tells: what a tool reported of a span of the guest's time.
type Counted struct {
	Workload string        `json:"workload"`
	Events   float64       `json:"events"`
	From     time.Duration `json:"from_ns"` // CLOCK_MONOTONIC
	To       time.Duration `json:"to_ns"`
}

// Tooled is the own result of a workload that is a program.
type Tooled struct {
	Reports int     `json:"reports"` // lines with a count that it printed, or runs of it
	Events  float64 `json:"events"`  // the sum of all of them
	// CLOCK_MONOTONIC, from the first span's beginning to the last one's end
	Time        time.Duration `json:"time_ns"`
	Retransmits *int64        `json:"retransmits,omitempty"` // iperf3 sending: by TCP_INFO, of all reports
}

// Result reads a status's own result into v.
func (s Status) ReadResult(v any) error {
	if len(s.Result) == 0 {
		return fmt.Errorf("%s has no result", s.Name)
	}
	if err := json.Unmarshal(s.Result, v); err != nil {
		return fmt.Errorf("read the result of %s: %w", s.Name, err)
	}
	return nil
}

// Sysbench is one line of sysbench's --report-interval: "[ 3s ] thds: 1 eps: 345.20 lat (ms,95%): 3.1".
func Sysbench(line string) (second int, perSecond float64, ok bool) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(line), "[ ")
	at, rest, ok2 := strings.Cut(rest, "s ] ")
	_, rest, ok3 := strings.Cut(rest, "eps: ")
	value, _, _ := strings.Cut(rest, " ")
	second, err := strconv.Atoi(at)
	perSecond, err2 := strconv.ParseFloat(value, 64)
	return second, perSecond, ok && ok2 && ok3 && err == nil && err2 == nil && perSecond >= 0
}

// StressNG is the line of stress-ng's --metrics-brief about a stressor: "stress-ng: metrc: [123] cpu 703 1.00 0.53 0.01
// 700.94 1307.20".
func StressNG(line, stressor string) (ops uint64, ok bool) {
	f := strings.Fields(line)
	if len(f) < 6 || f[0] != "stress-ng:" || f[1] != "metrc:" || f[3] != stressor {
		return 0, false
	}
	ops, err := strconv.ParseUint(f[4], 10, 64)
	return ops, err == nil
}

// Iperf is one line of iperf3's with -f k: of an interval, or of the whole.
type Iperf struct {
	From, To    float64 // seconds
	Bytes       float64 // by the rate, which iperf3 prints in whole Kbit/s: the error is 125 bytes a second
	Retransmits *int64  // nil: the receiver prints none
	Whole       string  // sender or receiver: a line of the summary; empty: of an interval
}

// ParseIperf reads "[ 5] 1.00-2.00 sec 3.07 GBytes 26349424 Kbits/sec 1 1.12 MBytes", or such a line without its last
// three words, or with sender or receiver in the place of the last two.
func ParseIperf(line string) (r Iperf, ok bool) {
	id, rest, found := strings.Cut(strings.TrimSpace(line), "]")
	f := strings.Fields(rest)
	if !found || !strings.HasPrefix(id, "[") || len(f) < 6 || f[1] != "sec" || f[5] != "Kbits/sec" {
		return Iperf{}, false
	}
	from, to, _ := strings.Cut(f[0], "-")
	var errs [3]error
	r.From, errs[0] = strconv.ParseFloat(from, 64)
	r.To, errs[1] = strconv.ParseFloat(to, 64)
	rate, err := strconv.ParseFloat(f[4], 64)
	errs[2] = err
	r.Bytes = rate * 1000 / 8 * (r.To - r.From)
	for _, err := range errs {
		if err != nil {
			return Iperf{}, false
		}
	}
	f = f[6:]
	if len(f) > 0 {
		if n, err := strconv.ParseInt(f[0], 10, 64); err == nil {
			r.Retransmits, f = &n, f[1:]
		}
	}
	if len(f) > 0 && (f[0] == "sender" || f[0] == "receiver") {
		r.Whole = f[0]
	}
	if !(r.To > r.From && r.Bytes >= 0) {
		return Iperf{}, false
	}
	return r, true
}
