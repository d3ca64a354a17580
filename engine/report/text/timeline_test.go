package text

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"qmigrate/engine/record"
)

// felt is a record by hand with everything that a guest may feel.
func felt() *record.Migration {
	const ms = time.Millisecond
	r := &record.Migration{
		Workload: "dirty", Total: record.Total{Wall: 2250 * ms},
		Stages: []record.Stage{
			{Name: record.PreCopy, Start: 28 * ms, Duration: 1967 * ms}, {Name: record.StopAndCopy, Start: 1995 * ms, Duration: 255 * ms}},
		Guest: &record.Guest{EventsBefore: record.Of(1998.0), EventsDuring: record.Of(1773.4), EventsAfter: record.Of(1744.1),
			Blackout: record.Of(255 * ms), BlackoutError: record.Of(27 * ms), Brownout: record.Of(1000 * ms), BrownoutError: record.Of(100 * ms)},
		Marks: []record.Mark{{Name: "migrate", At: 28 * ms}, {Name: "stop", At: 1995 * ms}, {Name: "resume", At: 2250 * ms}},
		CPU: []record.CPUUse{{Side: record.Source, Thread: "process", Stage: record.PreCopy, Percent: 35.8}, {Side: record.Source, Thread: "vcpu0", Stage: record.PreCopy, Percent: 18.6},
			{Side: record.Source, Thread: "migration", Stage: record.PreCopy, Percent: 0.1}, {Side: record.Destination, Thread: "vcpu0", Stage: record.After, Percent: 22.6}},
		Web: &record.Web{Phases: []record.WebPhase{{Phase: record.BeforePhase, Requests: 200, Answered: 200, P50: 3 * ms, P99: 5 * ms, P999: 6 * ms, Max: 7 * ms},
			{Phase: record.DuringPhase, Requests: 3, Errors: 3}}},
		Stream: &record.Stream{Phases: []record.StreamPhase{{Phase: record.AfterPhase, Received: 2 << 20, Acked: 1 << 20}}},
	}
	row := func(name, unit, source string, start, bin time.Duration, values ...float64) {
		s := record.Series{Name: name, Unit: unit, Source: source, Start: start, Bin: bin}
		for _, v := range values {
			if v < 0 {
				s.Values = append(s.Values, nil)
			} else {
				s.Values = append(s.Values, record.Of(v))
			}
		}
		r.Timeline = append(r.Timeline, s)
	}
	row("guest_events", "events/s", "the agent's count (page write), in bins", -1000*ms, 100*ms, 2031, 1914, 2055, 1994, 2016, 2025, 2008, 1988, 1995, 1975, 2041, 1931, 2067, 1998, 1987,
		2001, 2014, 1985, 2006, 1998, 728, 2645, 2583, 1792, 2205, 1145, 200, 4897, 2015, 1854, 0, 0, 34, 0, 0, 0, 0, 7373, 1487, 1330, 2796, 2407, 2000, 1987, 1957, 2043)
	row("cpu_source", "percent", "", -1000*ms, 100*ms, 53, 37, 39, 36, 33, 30, 32, 34, 34, 36, 48, 55, 46, 48, 48, 48, 47, 44, 43, 42, 21, 16, 20, 18, 22, 20, 16, 25, 48, 41, 7)
	row("cpu_destination", "percent", "", -800*ms, 100*ms, 0, 0, 0, 0, 0, -1, -1, 2, 9, 4, 25, 22, 20, 11)
	row("iperf3", "bytes/s", "", -1000*ms, time.Second, 3e9, 2.5e9, 2e9, 3e9)
	return r
}

// TestTimeline: the picture is what the record says, in blocks or in ASCII, and no wider than 80 columns whatever the length and the terminal.
func TestTimeline(t *testing.T) {
	for blocks, name := range map[bool]string{true: "timeline.txt", false: "timeline-ascii.txt"} {
		var b bytes.Buffer
		p := Page{W: &b, Blocks: blocks}
		p.phases(felt())
		p.timeline(felt())
		golden(t, name, b.String())
	}
	for _, seconds := range []int{0, 1, 3, 4, 5, 60, 3600} {
		r := felt()
		for range seconds * 10 {
			r.Timeline[0].Values = append(r.Timeline[0].Values, record.Of(float64(seconds)))
		}
		r.Timeline[1].Name = strings.Repeat("long", 20)
		r.Timeline[2].Values = []*float64{record.Of(math.MaxFloat64), record.Of(0.0), nil}
		var b bytes.Buffer
		Page{W: &b, Blocks: true}.timeline(r)
		for line := range strings.Lines(b.String()) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > sparkWidth {
				t.Errorf("%d s more: %d columns: %s", seconds, n, line)
			}
		}
		if !strings.Contains(b.String(), "S STOP 2 s") {
			t.Errorf("%d s more: no STOP:\n%s", seconds, &b)
		}
	}
	for _, r := range []*record.Migration{{}, {Timeline: []record.Series{{Name: "x"}}}, {Timeline: []record.Series{{Name: "x", Bin: time.Second, Values: []*float64{nil}}}}} {
		var b bytes.Buffer
		p := Page{W: &b, Blocks: true}
		p.phases(r)
		p.timeline(r)
		if strings.Contains(b.String(), "top") || strings.Contains(b.String(), "before") {
			t.Errorf("of nothing: %s", &b)
		}
	}
}
