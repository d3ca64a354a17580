package report

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/recordtest"
	"qmigrate/engine/report/figure"
)

// apart are completed records of pre-copy and of post-copy in turns, whose downtimes are taken apart.
func apart(n int, told recordtest.Told) []*record.Migration {
	var all []*record.Migration
	for i := range n {
		mode := []record.Mode{record.PreCopyMode, record.PostCopyMode}[i%2]
		at := time.Date(2026, 11, 30, 12, 0, i, 0, time.UTC)
		wire := time.Duration(60+i) * time.Millisecond
		m := &record.Migration{
			Schema: record.Schema, ID: fmt.Sprintf("%s-%06x", at.Format("20060102T150405.000Z"), i), StartedAt: at, Name: string(mode), Mode: mode,
			Outcome: record.Completed, GuestOn: record.Destination, Plan: map[string]any{"mode": string(mode)},
			QEMU:   record.QEMU{SourceVersion: "11.1.3", DestinationVersion: "11.1.3", Accelerator: "tcg", Machine: "pc-q35-7.2", MemoryBytes: 256 << 20, VCPUs: 1},
			Stages: []record.Stage{{Name: record.PreCopy, Duration: time.Second}, {Name: record.StopAndCopy, Start: time.Second, Duration: wire}},
			Total:  record.Total{Wall: time.Second + wire}, Downtime: record.Downtime{Wire: &wire},
		}
		all = append(all, recordtest.TakenApart(m, told))
	}
	return all
}

// keys are the figures whose keys begin so.
func keys(r *Report, prefix string) (out []string) {
	for _, f := range r.Figures {
		if strings.HasPrefix(f.Key, prefix) {
			out = append(out, f.Key)
		}
	}
	return out
}

// TestAnatomyGolden: the drawings of downtimes that were taken apart, and their numbers.
func TestAnatomyGolden(t *testing.T) {
	r := built(t, apart(8, recordtest.Stamped))
	dir := t.TempDir()
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("..", "..", "testdata", "golden", "anatomy")
	names := append(keys(r, "downtime-parts"), keys(r, "page-requests")...)
	if len(names) != 4 { // one of each mode, both modes beside each other, the page requests
		t.Fatalf("%q", names)
	}
	for _, key := range names {
		for _, name := range []string{key + ".svg", key + ".csv"} {
			got, err := os.ReadFile(filepath.Join(dir, "figures", name))
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(filepath.Join(golden, name), got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(filepath.Join(golden, name)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s is not the golden one (%v); -update writes it anew", name, err)
			}
		}
	}
}

// TestDowntimeParts: the high bars follow each other from STOP to RESUME; devices and what ran beside are drawn where it
// is known when they were.
func TestDowntimeParts(t *testing.T) {
	for _, m := range apart(2, recordtest.Stamped) {
		f := downtimeParts(&trial{Migration: m})
		var path []figure.Span
		kinds := map[figure.Kind]int{}
		for _, c := range f.Panels[0].Curves {
			for _, s := range c.Spans {
				kinds[s.Kind]++
				if s.Kind == figure.Main {
					path = append(path, s)
				}
			}
		}
		slices.SortFunc(path, func(a, b figure.Span) int { return int(math.Copysign(1, a.From-b.From)) })
		at := 0.0
		for _, s := range path {
			if math.Abs(s.From-at) > 1e-6 || s.To <= s.From {
				t.Errorf("%s: a bar from %v to %v ms after one that ends at %v", m.Mode, s.From, s.To, at)
			}
			at = s.To
		}
		if wire := m.Downtime.Wire.Seconds() * 1000; math.Abs(at-wire) > 1e-6 || f.Marks[1].X != wire {
			t.Errorf("%s: the path ends at %v of %v ms", m.Mode, at, wire)
		}
		if kinds[figure.Detail] < 16 || kinds[figure.Beside] == 0 || len(f.Caption.Notes) > 0 {
			t.Errorf("%s: bars %v, notes %q", m.Mode, kinds, f.Caption.Notes)
		}
		for i := range m.Anatomy {
			if !m.Anatomy[i].Critical {
				m.Anatomy[i].Start = nil
			}
		}
		if f := downtimeParts(&trial{Migration: m}); !f.Drawn() || len(f.Caption.Notes) != 1 {
			t.Errorf("%s: some parts have no place: notes %q", m.Mode, f.Caption.Notes)
		}
	}
	for _, told := range []recordtest.Told{recordtest.Bare, recordtest.Untold} {
		if downtimeParts(&trial{Migration: apart(1, told)[0]}).Drawn() {
			t.Errorf("%s: next to nothing is told, and it is drawn", told)
		}
	}
}

// TestPartStyles: parts that may stand in one lane differ, and each part has a style.
func TestPartStyles(t *testing.T) {
	var all []record.PartName
	for _, lane := range [][]record.PartName{
		{record.PartStopVCPUs, record.PartSetup, record.PartDisks, record.PartRAMSave, record.PartDeviceSave, record.PartLastWord, record.PartUntold},
		{record.PartWire},
		{record.PartPause, record.PartNotice, record.PartDecision},
		{record.PartRAMLoad, record.PartDeviceLoad, record.PartBottomHalf, record.PartAnnounce, record.PartStart, record.PartUntold},
	} {
		styles := map[int]record.PartName{}
		for _, part := range lane {
			if other := styles[partStyle(part)]; other != "" {
				t.Errorf("%s and %s look alike", other, part)
			}
			styles[partStyle(part)] = part
			all = append(all, part)
		}
	}
	for _, part := range record.PartNames() {
		if !slices.Contains(all, part) {
			t.Errorf("%s has no lane here, and perhaps no style", part)
		}
	}
}

// TestAnatomies: few trials have a bar each, which sums to its wire downtime; groups have medians; parts beyond what can
// be told apart are one.
func TestAnatomies(t *testing.T) {
	var one []*record.Migration
	for _, m := range apart(12, recordtest.Stamped) {
		if m.Mode == record.PreCopyMode {
			one = append(one, m)
		}
	}
	f := anatomies(setOf(one))
	if len(f.X.Names) != 6 || len(f.Panels[0].Curves) != partLimit || !strings.HasPrefix(f.Panels[0].Curves[partLimit-1].Name, "others: ") {
		t.Fatalf("%q, %d curves", f.X.Names, len(f.Panels[0].Curves))
	}
	styles := map[int]bool{}
	for i, m := range one {
		sum := 0.0
		for _, c := range f.Panels[0].Curves {
			styles[c.Style] = true
			sum += c.Points[i].Y
		}
		if wire := m.Downtime.Wire.Seconds() * 1000; math.Abs(sum-wire) > 1e-6 {
			t.Errorf("the parts of trial %d sum to %v of %v ms", i, sum, wire)
		}
	}
	if len(styles) != partLimit {
		t.Errorf("%d styles for %d parts", len(styles), partLimit)
	}
	both := anatomies(setOf(apart(12, recordtest.Stamped)))
	if len(both.X.Names) != 2 || both.Panels[0].Curves[0].Points[0].N != 6 {
		t.Errorf("%+v", both.X)
	}
}

// TestRequests: the shares of a distribution sum to 100 %, and each bucket ends where the next begins.
func TestRequests(t *testing.T) {
	f := requests(setOf(apart(12, recordtest.Stamped)))
	if len(f.Panels) != 1 || !strings.Contains(f.Panels[0].Curves[0].Name, "(n = 11700 requests)") {
		t.Fatalf("%+v", f.Panels)
	}
	sum, last := 0.0, 0.0
	for _, p := range f.Panels[0].Curves[0].Points {
		if p.X <= last || last > 0 && math.Abs(p.X/last-2) > 1e-9 {
			t.Errorf("a bucket at %v follows one at %v", p.X, last)
		}
		if last = p.X; !math.IsNaN(p.Y) {
			sum += p.Y
		}
	}
	if math.Abs(sum-100) > 1e-9 {
		t.Errorf("all are %v %%", sum)
	}
	if f.Frame(); !f.X.Log {
		t.Error("the axis is linear")
	}
}

// TestNoAnatomy: records without any draw none.
func TestNoAnatomy(t *testing.T) {
	r := built(t, invented(24))
	if got := append(keys(r, "downtime-parts"), keys(r, "page-requests")...); len(got) > 0 {
		t.Errorf("%q", got)
	}
	failed := apart(1, recordtest.Stamped)[0]
	failed.Outcome = record.Failed
	if downtimeParts(&trial{Migration: failed}).Drawn() || anatomies(setOf([]*record.Migration{failed})).Drawn() {
		t.Error("the downtime of a migration that failed is drawn")
	}
}

// TestCriticalTime: a part of the downtime can be drawn against a factor, by its key.
func TestCriticalTime(t *testing.T) {
	s := setOf(apart(6, recordtest.Stamped))
	values, _ := metricOf("anatomy.ram_save_ns").values(s.trials)
	if len(values) != 6 || math.Abs(values[0]-0.4*0.06) > 1e-9 {
		t.Errorf("%v", values)
	}
	if metricOf("anatomy.pause_ns").measured(s.trials) {
		t.Error("a part that nothing told is measured")
	}
}

// TestPending: what the source had still to send is a panel of the passes, by when it may send it, where there is any of
// that.
func TestPending(t *testing.T) {
	for _, told := range []bool{false, true} {
		m := apart(1, recordtest.Stamped)[0]
		if m.Passes = []record.Pass{{Pass: 1, Duration: time.Second, Transferred: record.Of(int64(1 << 20))}}; told {
			m.Pending = []record.Pending{{T: 0, PostCopy: 64 << 20}, {T: time.Second, StopCopy: 1 << 20, PostCopy: 2 << 20, Exact: true}}
		}
		f, err := waterfall(&trial{Migration: m, dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		var drawn []string
		for _, p := range f.Panels {
			if p.Y.Label == "pending" {
				for _, c := range p.Curves {
					drawn = append(drawn, fmt.Sprint(c.Name, c.Points[0].Y, c.Points[1].Y))
				}
			}
		}
		want := []string{"pending, while it stands still0 1", "pending, may follow it64 2"}
		if !told {
			want = nil
		}
		if !slices.Equal(drawn, want) {
			t.Errorf("%q, want %q", drawn, want)
		}
	}
}
