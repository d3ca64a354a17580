package lab

import (
	"slices"
	"testing"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
)

// TestTimeline: a real guest's events, its QEMUs' processors and the marks lie on one clock and agree with the stages, for each workload that the
// observer has a part in and for one that it has none in.
func TestTimeline(t *testing.T) {
	for _, text := range []string{"dirty:rate=3000/s,working-set=8MiB", "web:rate=100/s,connections=2,size=1KiB", "tcp:rate=512KiB/s"} {
		t.Run(text, func(t *testing.T) {
			qemu := guesttest.QEMU(t, "10.0")
			w, err := wire.ParseWorkload(text)
			if err != nil {
				t.Fatal(err)
			}
			l := newLab(t, Spec{SourceQEMU: qemu, DestinationQEMU: qemu, Workload: w})
			lines := l.rows.Row("lines", "lines/s", "a test", time.Second)
			lines.Add(time.Now(), time.Now().Add(2*time.Second), 20)
			rec, err := l.Migrate(within.Context(t), plan.Plan{MaxBandwidth: 128 << 20}, plan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			wantMoved(t, rec)
			rows := map[string]*record.Series{}
			for i := range rec.Timeline {
				rows[rec.Timeline[i].Name] = &rec.Timeline[i]
			}
			for _, name := range []string{"guest_events", "cpu_source", "cpu_destination", "lines"} {
				s := rows[name]
				if s == nil {
					t.Fatalf("no row %s of %d", name, len(rec.Timeline))
				}
				sum := 0.0
				for _, v := range s.Values {
					if v != nil {
						sum += *v
					}
				}
				if sum <= 0 {
					t.Errorf("%s: nothing was counted: %+v", name, s)
				}
			}
			events := rows["guest_events"]
			if end := events.Start + time.Duration(len(events.Values))*events.Bin; events.Start > -500*time.Millisecond || events.Start%events.Bin != 0 || end < rec.Total.Wall || events.EdgeError == nil {
				t.Errorf("events from %v to %v, wall time %v, edge error %v", events.Start, end, rec.Total.Wall, events.EdgeError)
			}
			g := rec.Guest
			if g.EventsBefore == nil || g.EventsDuring == nil || g.EventsAfter == nil || g.Blackout == nil || g.BlackoutError == nil {
				t.Fatalf("%+v", g)
			}
			// No vCPU ran from STOP to RESUME, and nothing was counted. Whether anything was around it is the workload's and the machine's.
			if wire := *rec.Downtime.Wire; *g.Blackout+*g.BlackoutError < wire {
				t.Errorf("blackout %v +/- %v, and no vCPU ran for %v", *g.Blackout, *g.BlackoutError, wire)
			}

			at := map[string]time.Duration{}
			for i, m := range rec.Marks {
				if _, seen := at[m.Name]; !seen {
					at[m.Name] = m.At
				}
				if m.Source == "" || i > 0 && m.At < rec.Marks[i-1].At {
					t.Errorf("mark %d: %+v", i, m)
				}
			}
			for _, pair := range [][2]string{{"migrate", "stop"}, {"stop", "resume"}, {"resume", "first_frame"}, {"first_frame", "rarp"}, {"resume", "fdb_moved"}, {"resume", "fdb_moved_destination"}, {"resume", "fdb_moved_source"},
				{"resume", "first_beat"}, {"resume", "first_ping"}, {"resume", "first_echo"}} {
				a, okA := at[pair[0]]
				b, okB := at[pair[1]]
				if !okA || !okB || a > b {
					t.Errorf("%s at %v (%t), %s at %v (%t)", pair[0], a, okA, pair[1], b, okB)
				}
			}
			if stop := rec.Stage(record.StopAndCopy); at["stop"] != stop.Start {
				t.Errorf("STOP at %v, and the stage begins at %v", at["stop"], stop.Start)
			}

			for _, want := range []struct {
				side   record.Holder
				thread string
				stage  record.StageName
			}{{record.Source, "process", ""}, {record.Source, "vcpu0", ""}, {record.Source, "process", record.PreCopy}, {record.Source, "migration", record.PreCopy}, {record.Source, "main", record.PreCopy},
				{record.Destination, "process", record.PreCopy}, {record.Destination, "process", record.After}, {record.Destination, "vcpu0", record.After}} {
				i := slices.IndexFunc(rec.CPU, func(u record.CPUUse) bool {
					return u.Side == want.side && u.Thread == want.thread && u.Stage == want.stage
				})
				if i < 0 || rec.CPU[i].Used <= 0 || rec.CPU[i].Span < 100*time.Millisecond || rec.CPU[i].Percent <= 0 {
					t.Errorf("%+v: %d of %+v", want, i, rec.CPU)
				}
			}
			if rec.Sampling.Observer == nil || *rec.Sampling.Observer <= 0 {
				t.Errorf("the sampler's own cost: %v", rec.Sampling.Observer)
			}

			switch l.spec.Workload.Name {
			case "web":
				x := rec.Web
				if x == nil || len(x.Phases) != 3 || x.Resets != 0 || x.Wrong != 0 || x.Reconnects != 0 || x.Unanswered != 0 {
					t.Fatalf("%+v", x)
				}
				for _, p := range x.Phases {
					if p.Errors != 0 || p.Requests > 0 && (p.P50 <= 0 || p.Histogram == "") {
						t.Errorf("%+v", p)
					}
				}
			case "tcp":
				x := rec.Stream
				if x == nil || !x.Survived || x.Received == 0 || x.Acked == 0 || len(x.Phases) != 3 || rows["tcp_received"] == nil || rows["tcp_acked"] == nil || rows["tcp_retransmits"] == nil {
					t.Fatalf("%+v", x)
				}
			default:
				if rec.Web != nil || rec.Stream != nil {
					t.Error("somebody else's figures")
				}
				if g.Brownout == nil || g.BrownoutError == nil {
					t.Errorf("%+v", g)
				}
			}
		})
	}
}
