package anatomy

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/record"
)

var update = flag.Bool("update", false, "write the golden files anew")

// recorded is a migration of real QEMUs of one machine: their logs and events, and when `stop`, `migrate` and `cont`
// were sent or answered.
func recorded(t *testing.T, name string) Migration {
	t.Helper()
	m := Migration{ReturnPath: strings.Contains(name, "return-path") || strings.Contains(name, "pause"),
		PostCopy: strings.Contains(name, "post-copy") || strings.Contains(name, "hybrid")}
	instant := func(at time.Time) Instant { return Instant{at, time.Microsecond} }
	for _, side := range []string{"source", "destination"} {
		s := &m.Source
		if side == "destination" {
			s = &m.Destination
		}
		log, err := os.ReadFile(filepath.Join("testdata", name, side+".log"))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range Parse(log) {
			mark := Mark{Line: l}
			if !l.Stamp.IsZero() {
				mark.Instant = instant(l.Stamp)
			}
			s.Marks = append(s.Marks, mark)
		}
		events, err := os.ReadFile(filepath.Join("testdata", name, side+".events"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(events)) {
			var ev struct {
				Event     string
				Data      struct{ Status string }
				Timestamp struct{ Seconds, Microseconds int64 }
				Arrived   float64
			}
			if err := json.Unmarshal([]byte(line), &ev); err != nil {
				t.Fatal(err)
			}
			at := time.Unix(ev.Timestamp.Seconds, ev.Timestamp.Microseconds*1000).UTC()
			switch what := ev.Event + ev.Data.Status; {
			case what == "STOP" && m.Stop.At.IsZero():
				m.Stop = instant(at)
			case what == "RESUME" && side == "destination":
				m.Resume = instant(at)
			case ev.Event == "MIGRATION":
				s.Events = append(s.Events, Status{ev.Data.Status, instant(at)})
			case what == "qmigratestopped":
				m.Stopped, m.StoppedFirst = at, true
			case what == "qmigrateissued":
				m.Issued = at
			case what == "qmigratecont":
				m.ContSent = at
			}
			if arrived := time.UnixMicro(int64(ev.Arrived * 1e6)); ev.Data.Status == "completed" && arrived.After(m.Heard) &&
				!m.PostCopy {
				m.Heard = arrived
			}
		}
	}
	m.Origin = m.Stop.At.Add(-time.Second)
	m.Wire, m.WireError = m.Resume.At.Sub(m.Stop.At), 2*time.Microsecond
	return m
}

// table writes parts for people; the golden files are such tables.
func table(parts []record.AnatomyPart) string {
	var b strings.Builder
	for _, p := range parts {
		start, mark := "", " "
		if p.Start != nil {
			start = fmt.Sprint((*p.Start - time.Second).Microseconds())
		}
		if p.Critical {
			mark = "*"
		}
		fmt.Fprintf(&b, "%8s %8d %s %-11s %-11s %-6s %s\n", start, p.Duration.Microseconds(), mark, p.Side, p.Part, p.Source,
			p.Device)
	}
	return b.String()
}

// wantWhole: the critical parts follow each other from STOP to RESUME.
func wantWhole(t *testing.T, m Migration, parts []record.AnatomyPart) {
	t.Helper()
	at, sum := m.Stop.At.Sub(m.Origin), time.Duration(0)
	for _, p := range parts {
		if p.Duration <= 0 || p.Error < 0 {
			t.Errorf("%+v", p)
		}
		if !p.Critical {
			continue
		}
		if p.Start == nil || *p.Start != at {
			t.Fatalf("a gap, or two at once, before %+v\n%s", p, table(parts))
		}
		at += p.Duration
		sum += p.Duration
	}
	if sum != m.Wire {
		t.Errorf("the parts sum to %s, not to %s", sum, m.Wire)
	}
}

// length is how long the critical parts of a name are.
func length(parts []record.AnatomyPart, names ...record.PartName) (sum time.Duration) {
	for _, p := range parts {
		for _, n := range names {
			if p.Critical && p.Part == n {
				sum += p.Duration
			}
		}
	}
	return sum
}

// TestRecorded takes recorded migrations apart. What is untold is a few seams.
func TestRecorded(t *testing.T) {
	t.Parallel()
	dirs, err := filepath.Glob("testdata/1*")
	if err != nil || len(dirs) < 13 {
		t.Fatal(dirs, err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			m := recorded(t, filepath.Base(dir))
			parts := Take(m)
			wantWhole(t, m, parts)
			golden := filepath.Join(dir, "parts")
			if *update {
				if err := os.WriteFile(golden, []byte(table(parts)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got := table(parts); got != string(want) {
				t.Errorf("not as in %s:\n%s", golden, got)
			}
		})
	}
}

// change is a recorded migration of which something is not known, or is otherwise.
func change(t *testing.T, name string, how func(m *Migration)) (Migration, []record.AnatomyPart) {
	t.Helper()
	m := recorded(t, name)
	how(&m)
	parts := Take(m)
	wantWhole(t, m, parts)
	return m, parts
}

// critical are the names of the critical parts with their sides, each once in a row.
func critical(parts []record.AnatomyPart) string {
	var all []string
	for _, p := range parts {
		word := fmt.Sprintf("%s:%s", p.Side, p.Part)
		if p.Critical && (len(all) == 0 || all[len(all)-1] != word) {
			all = append(all, word)
		}
	}
	return strings.Join(all, " ")
}

const tail = " qmigrate:notice qmigrate:decision destination:start"

// TestLess: what is not there makes a part untold, and the rest stays as it is.
func TestLess(t *testing.T) {
	t.Parallel()
	without := func(name string) func(m *Migration) {
		return func(m *Migration) {
			for _, s := range []*Side{&m.Source, &m.Destination} {
				s.Marks = slices.DeleteFunc(s.Marks, func(x Mark) bool { return x.Name == name && x.Event != Load })
			}
		}
	}
	untraced := func(m *Migration) { m.Source.Marks, m.Destination.Marks = nil, nil }
	for _, c := range []struct {
		what, name string
		how        func(m *Migration)
		want       string
	}{
		{"no traces", "10.0-pre-copy", untraced,
			"source:disks source:untold destination:untold" + tail},
		{"no traces, no device event: 7.2", "10.0-pre-copy", func(m *Migration) {
			untraced(m)
			m.Source.Events = slices.DeleteFunc(m.Source.Events, func(s Status) bool { return s.Name == "device" })
		}, "source:untold destination:untold" + tail},
		{"no traces, return path", "10.0-pre-copy-return-path", untraced,
			"source:disks source:untold source:last-word" + tail},
		{"no traces, pause", "10.0-pause", untraced,
			"source:disks qmigrate:pause source:untold source:last-word" + tail},
		{"no traces, stopped first", "10.0-stop-and-copy", untraced, "source:disks qmigrate:decision source:setup " +
			"source:ram-save source:untold destination:untold" + tail},
		{"no traces, post-copy", "10.0-post-copy", untraced, "source:disks source:untold destination:untold"},
		{"no log of the source", "10.0-pre-copy", func(m *Migration) { m.Source.Marks = nil },
			"source:disks source:untold destination:device-load link:wire destination:device-load destination:bottom-half " +
				"destination:announce destination:bottom-half" + tail},
		{"no log of the source, return path", "10.0-pre-copy-return-path", func(m *Migration) { m.Source.Marks = nil },
			"source:disks source:untold destination:bottom-half destination:announce destination:bottom-half " +
				"source:last-word" + tail},
		{"no log of the destination", "10.0-pre-copy", func(m *Migration) { m.Destination.Marks = nil },
			"source:disks source:ram-save source:device-save destination:untold" + tail},
		{"no log of the destination, post-copy", "10.0-post-copy", func(m *Migration) { m.Destination.Marks = nil },
			"source:disks source:ram-save source:device-save link:wire destination:untold"},
		{"the line of memory is lost", "10.0-pre-copy", func(m *Migration) {
			m.Source.Marks = slices.DeleteFunc(m.Source.Marks, func(x Mark) bool {
				return x.Event == SyncEnd || x.Event == Save && x.Iterable
			})
		}, "source:disks source:untold source:device-save destination:device-load link:wire destination:device-load " +
			"destination:bottom-half destination:announce destination:bottom-half" + tail},
		{"a checkpoint is lost", "10.0-pre-copy", without("src-iterable-saved"),
			critical(Take(recorded(t, "10.0-pre-copy")))},
		{"the source's end is lost", "10.0-pre-copy", func(m *Migration) {
			m.Source.Marks = slices.DeleteFunc(m.Source.Marks, func(x Mark) bool {
				return x.Name == "src-downtime-end" || x.Name == "src-non-iterable-saved"
			})
		}, "source:disks source:ram-save source:device-save source:untold destination:device-load link:wire " +
			"destination:device-load destination:bottom-half destination:announce destination:bottom-half" + tail},
		{"the destination's end is lost", "10.0-pre-copy", func(m *Migration) {
			m.Destination.Marks = slices.DeleteFunc(m.Destination.Marks, func(x Mark) bool { return x.Event == Checkpoint })
		}, "source:disks source:ram-save source:device-save destination:untold" + tail},
		{"that it has loaded is lost", "10.0-pre-copy", without("dst-precopy-loadvm-completed"),
			strings.Replace(critical(Take(recorded(t, "10.0-pre-copy"))), "destination:bottom-half ", "", 1)},
		{"clocks that contradict each other", "10.0-pre-copy", func(m *Migration) {
			for i := range m.Destination.Marks {
				m.Destination.Marks[i].At = m.Destination.Marks[i].At.Add(-50 * time.Millisecond)
			}
		}, "source:disks source:ram-save source:device-save destination:untold" + tail},
		{"somebody else's cont", "10.0-pre-copy", func(m *Migration) { m.ContSent, m.Heard = time.Time{}, time.Time{} },
			"source:disks source:ram-save source:device-save destination:device-load link:wire destination:device-load " +
				"destination:bottom-half destination:announce destination:bottom-half destination:untold"},
		{"a clock that was set", "10.0-pre-copy", func(m *Migration) { m.Wire += time.Second }, "source:untold"},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			if _, parts := change(t, c.name, c.how); critical(parts) != c.want {
				t.Errorf("%s\nwant\n%s\n%s", critical(parts), c.want, table(parts))
			}
		})
	}
	if Take(Migration{}) != nil {
		t.Error("parts of no downtime")
	}
}

// TestPassed: what sees the link tells the destination's waiting from its reading. What passes later is something
// else's.
func TestPassed(t *testing.T) {
	t.Parallel()
	const late = time.Millisecond
	_, parts := change(t, "10.0-pre-copy", func(m *Migration) {
		for _, at := range []time.Duration{time.Millisecond, 2189*time.Microsecond + late, time.Second} {
			m.Passed = append(m.Passed, Instant{m.Stop.At.Add(at), time.Microsecond})
		}
		m.PassedSource = "frames"
	})
	if got := length(parts, record.PartWire); got != late {
		t.Errorf("wire %s, not %s\n%s", got, late, table(parts))
	}
	_, parts = change(t, "10.0-pre-copy", func(m *Migration) {
		m.Passed = []Instant{{m.Stop.At.Add(time.Millisecond), 0}}
	})
	if got := length(parts, record.PartWire); got != 0 {
		t.Errorf("the link had nothing to do, and has %s\n%s", got, table(parts))
	}
}

// TestSum: whatever lines are missing and however the clocks are off, the critical parts sum to the wire downtime.
func TestSum(t *testing.T) {
	t.Parallel()
	dirs, err := filepath.Glob("testdata/1*")
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 13))
	for i := range 2000 {
		m, _ := change(t, filepath.Base(dirs[i%len(dirs)]), func(m *Migration) {
			off := time.Duration(random.Int64N(int64(20*time.Millisecond))) - 10*time.Millisecond
			for _, s := range []*Side{&m.Source, &m.Destination} {
				keep := random.Float64()
				s.Marks = slices.DeleteFunc(s.Marks, func(Mark) bool { return random.Float64() > keep })
				for j := range s.Marks {
					if !s.Marks[j].At.IsZero() && s == &m.Destination {
						s.Marks[j].At = s.Marks[j].At.Add(off)
					}
					s.Marks[j].Error = 10 * time.Millisecond
				}
				keep = random.Float64()
				s.Events = slices.DeleteFunc(s.Events, func(Status) bool { return random.Float64() > keep })
			}
			m.ReturnPath, m.PostCopy = random.IntN(2) == 0, random.IntN(2) == 0
			if random.IntN(2) == 0 {
				m.Passed = []Instant{{m.Stop.At.Add(time.Duration(random.Int64N(int64(2 * m.Wire)))), 0}}
			}
			if random.IntN(4) == 0 {
				m.ContSent = m.ContSent.Add(-m.Wire)
			}
		})
		if t.Failed() {
			t.Fatalf("%+v", m)
		}
	}
}
