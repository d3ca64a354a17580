package run

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// TestLife: what QEMU's events tell of one side's guest.
func TestLife(t *testing.T) {
	zero := time.Now()
	at := func(n int) time.Time { return zero.Add(time.Duration(n) * ms) }
	for name, c := range map[string]struct {
		qemu   string    // empty: one that lets the guest sleep
		events string    // name and time
		data   eventData // of the last one
		still  bool
		ran    int // 0: never
		stands int
		asleep bool
		itself bool
		halted int // 0: never
	}{
		"stopped":                   {events: "STOP 10", still: true},
		"stopped twice":             {events: "STOP 10, RESUME 12, STOP 20", still: true, ran: 12, stands: 1, halted: 20},
		"started":                   {events: "RESUME 10", ran: 10},
		"started, then stopped":     {events: "RESUME 10, STOP 20, RESUME 30", ran: 30, stands: 1, halted: 20},
		"slept and woke":            {events: "SUSPEND 10, WAKEUP 20", ran: 20},
		"sleeps":                    {events: "SUSPEND 10, STOP 20", still: true, asleep: true},
		"started, then slept":       {events: "RESUME 10, SUSPEND 20", ran: 10, asleep: true, halted: 20},
		"woken for the switch-over": {events: "SUSPEND 10, STOP 20, WAKEUP 21", still: true, asleep: true},
		"woken before it stops":     {qemu: "7.2", events: "SUSPEND 10, WAKEUP 20, STOP 21", still: true, ran: 20, asleep: true},
		"woken long before":         {qemu: "7.2", events: "SUSPEND 10, WAKEUP 20, STOP 2000", still: true, ran: 20},
		"woken, stopped, continued": {
			qemu: "7.2", events: "SUSPEND 10, WAKEUP 20, STOP 21, RESUME 30, STOP 31", still: true, ran: 30, stands: 1, halted: 31,
		},
		"woken by somebody":  {events: "SUSPEND 10, WAKEUP 20, STOP 21", still: true, ran: 20},
		"reset in its sleep": {events: "SUSPEND 10, RESET 20"},
		"shut down":          {events: "SHUTDOWN 10", data: eventData{Guest: true, Reason: "guest-shutdown"}, itself: true},
		"reset by somebody":  {events: "SHUTDOWN 10", data: eventData{Reason: "host-qmp-system-reset"}, itself: true},
		"ended by somebody":  {events: "SHUTDOWN 10", data: eventData{Reason: "host-signal"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := life{wakes: c.qemu == "7.2"}
			for event := range strings.SplitSeq(c.events, ", ") {
				name, when, _ := strings.Cut(event, " ")
				n, err := strconv.Atoi(when)
				if err != nil {
					t.Fatal(err)
				}
				l.take(name, c.data, at(n), at(n), true)
			}
			is := func(got time.Time, want int) bool {
				return got.IsZero() && want == 0 || want > 0 && got.Equal(at(want))
			}
			if l.Still() != c.still || !is(l.ran, c.ran) || !is(l.halted, c.halted) || len(l.Stands) != c.stands ||
				l.Asleep.IsZero() == c.asleep || l.Itself != c.itself {
				t.Errorf("%+v, want %+v", l, c)
			}
		})
	}
}

// TestBracketOfManyStops: the bracket is that of the last stop before the destination ran, or there is none.
func TestBracketOfManyStops(t *testing.T) {
	zero := time.Now()
	at := func(n int) time.Time { return zero.Add(time.Duration(n) * ms) }
	a := func(n int, running bool) answer { return answer{at(n), at(n + 1), running} }
	// The source stood still in 15..35 too. It stopped for good in 50..61, the destination ran in 70..81, and stood still
	// again from 85 to 95.
	src := []answer{
		a(0, true), a(10, true), a(20, false), a(30, false), a(40, true), a(50, true), a(60, false), a(70, false),
	}
	dst := []answer{a(60, false), a(70, false), a(80, true), a(90, false), a(100, true)}
	down, e, ok := bracket(src, dst, at(35), at(85))
	if !ok || down-e > 15*ms || down+e < 25*ms || down+e > 31*ms {
		t.Errorf("%v +/- %v, %v: want all of 15 to 25 ms, and no more than 31", down, e, ok)
	}
	short := append([]answer{a(0, true), a(20, false)}, src[6:]...) // nobody asked between the two stops
	if down, e, ok := bracket(short, dst, at(35), at(85)); ok {
		t.Errorf("%v +/- %v: nothing tells the stops apart", down, e)
	}
	if down, e, ok := bracket(src, append([]answer{a(60, false), a(90, false)}, dst[4:]...), at(35), at(85)); ok {
		t.Errorf("%v +/- %v: nothing tells the starts apart", down, e)
	}
}

// TestLeft: each run state of QEMU in which a guest does not run has words and a mend.
func TestLeft(t *testing.T) {
	for _, state := range []string{
		"debug", "guest-panicked", "internal-error", "io-error", "paused", "prelaunch", "restore-vm", "save-vm", "shutdown",
		"suspended", "watchdog", "colo", "new",
	} {
		text := left(state, record.Destination)
		if !strings.Contains(text, "on the destination") || !strings.Contains(text, "`") {
			t.Errorf("%s: %s", state, text)
		}
	}
}

// TestDowntimes: which of the two QEMUs' downtimes are kept. The guest was stopped at 100 ms, and started at 104.
func TestDowntimes(t *testing.T) {
	zero := time.Now()
	at := func(n int) time.Time { return zero.Add(time.Duration(n) * ms) }
	for name, c := range map[string]struct {
		change     func(m *Run)
		qemu       time.Duration // what QEMU says
		keep, wire bool
		untimed    bool // the wire downtime has no error figure
		warns      string
	}{
		"pre-copy":                     {qemu: 3 * ms, keep: true, wire: true},
		"pre-copy, with its last word": {qemu: 6 * ms, keep: true, wire: true},
		"post-copy":                    {change: func(m *Run) { m.Split = true }, qemu: 3 * ms, keep: true, wire: true},
		"post-copy, until all is there": {
			change: func(m *Run) { m.Split = true }, qemu: 800 * ms, wire: true, warns: "was 800ms",
		},
		"longer than all":       {qemu: time.Hour, wire: true, warns: "was 1h"},
		"held":                  {change: func(m *Run) { m.Held = "paused" }, qemu: 3 * ms, warns: "stood still"},
		"asleep":                {change: func(m *Run) { m.Src.Asleep = at(50) }, qemu: 3 * ms, warns: "stood still"},
		"paused from the start": {change: func(m *Run) { m.Src.Facts.Running = false }, qemu: 3 * ms},
		"into a file":           {change: func(m *Run) { m.Dst.Facts = nil }, qemu: 3 * ms},
		"of another machine": {
			change: func(m *Run) { m.Dst.Facts.Where = endpoint.Elsewhere },
			qemu:   3 * ms, keep: true, wire: true, untimed: true, warns: "unix:b is not known to be this machine's",
		},
		"of machines that are not known": {
			change: func(m *Run) { m.Src.Facts.Where, m.Dst.Facts.Where = endpoint.Unknown, endpoint.Unknown },
			qemu:   3 * ms, keep: true, wire: true, untimed: true, warns: "unix:a and of ",
		},
		"of another machine with a measured clock": {
			change: func(m *Run) {
				m.Dst.Facts.Where, m.Dst.timing = endpoint.Elsewhere, clockOf(t, time.Hour)
			},
			qemu: 3 * ms, keep: true, wire: true,
		},
		"a start that came late": {change: func(m *Run) { m.Dst.Resumed = at(900) }, qemu: 3 * ms, keep: true, wire: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := &Run{
				Rec: &record.Migration{Origin: at(0), Total: record.Total{Wall: time.Second}},
				Src: &Side{Endpoint: &endpoint.Endpoint{Name: "unix:a"}, Facts: &facts.Facts{Running: true, Where: endpoint.Here},
					life: life{Stopped: at(100)}},
				Dst: &Side{Endpoint: &endpoint.Endpoint{Name: "unix:b"}, Facts: &facts.Facts{Where: endpoint.Here},
					life: life{started: at(104), Resumed: at(104)}},
			}
			if c.change != nil {
				c.change(m)
			}
			m.downtimes(&qmp.MigrationInfo{Has: qmp.FieldDowntime, Downtime: c.qemu})
			d, said := m.Rec.Downtime, strings.Join(m.Rec.Warnings, " ")
			if (d.QEMU != nil) != c.keep || (d.Wire != nil) != c.wire || (d.WireError != nil) != (c.wire && !c.untimed) ||
				d.Wire != nil && *d.Wire != 4*ms {
				t.Errorf("%+v", d)
			}
			if !strings.Contains(said, c.warns) || (said == "") != (c.warns == "") {
				t.Errorf("warns %q", said)
			}
		})
	}
}
