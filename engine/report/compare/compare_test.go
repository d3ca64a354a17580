package compare

import (
	"encoding/json"
	"fmt"
	"iter"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"qmigrate/engine/record"
	"qmigrate/engine/record/recordtest"
	"qmigrate/engine/report/stats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// trial is a small record.
func trial(i int, wall time.Duration, factors map[string]any, plan map[string]any) *record.Migration {
	return &record.Migration{
		Schema: record.Schema, StartedAt: time.Date(2026, 11, 1, 0, 0, i, 0, time.UTC), Name: "x", Mode: record.PreCopyMode, Outcome: record.Completed,
		Factors: factors, Plan: plan, Total: record.Total{Wall: wall},
	}
}

func write(t testing.TB, dir string, all iter.Seq[*record.Migration]) string {
	t.Helper()
	if err := recordtest.WriteFolder(dir, all); err != nil {
		t.Fatal(err)
	}
	return dir
}

func of(all ...*record.Migration) iter.Seq[*record.Migration] { return slices.Values(all) }

// row finds a measure of a group in a cell.
func row(t *testing.T, a *Answer, cell, column, group string) Row {
	t.Helper()
	for _, c := range a.Cells {
		for _, r := range c.Rows {
			if c.Name == cell && r.Column == column && r.Group == group {
				return r
			}
		}
	}
	t.Fatalf("no %s of %s in %q", column, group, cell)
	return Row{}
}

// TestBy: the values of a factor are the groups, in their order by size; what else varies makes the cells; and the numbers are those that the records give by
// hand.
func TestBy(t *testing.T) {
	dir := write(t, filepath.Join(t.TempDir(), "d"), recordtest.Synthetic(1, 18*12))
	a, err := Ask(Question{Folders: []string{dir}, By: "max-bandwidth"})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Groups) != 3 || a.Groups[0].Name != "32MiB/s" || a.Groups[1].Name != "64MiB/s" || a.Groups[2].Name != "128MiB/s" {
		t.Fatalf("%+v", a.Groups)
	}
	if len(a.Cells) != 6 || a.Cells[0].Name != "dirty-rate 1000/s, mode pre-copy" || a.Cells[5].Name != "dirty-rate 16000/s, mode stop-and-copy" {
		t.Fatalf("%d cells, %q first, %q last", len(a.Cells), a.Cells[0].Name, a.Cells[len(a.Cells)-1].Name)
	}
	all, err := record.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	completed, failed := 0, 0
	wire := map[string][]float64{}
	for _, m := range all {
		if m.Outcome != record.Completed {
			failed++
			continue
		}
		completed++
		if m.Factors["dirty-rate"] == "4000/s" && m.Mode == record.PreCopyMode {
			b := m.Factors["max-bandwidth"].(string)
			wire[b] = append(wire[b], float64(*m.Downtime.Wire))
		}
	}
	var have, others, family int
	for _, g := range a.Groups {
		have += g.Completed
		others += g.Others["failed"]
	}
	if have != completed || others != failed || failed == 0 {
		t.Errorf("%d completed and %d failed are counted, want %d and %d", have, others, completed, failed)
	}
	r := row(t, a, "dirty-rate 4000/s, mode pre-copy", "downtime_wire_ns", "128MiB/s")
	want := stats.Compare(wire["32MiB/s"], wire["128MiB/s"], stats.Level)
	if r.Against == nil || r.Against.Test != want.Test || r.Against.Shift.Value != want.Shift.Value || *r.Against.Shift.Interval != *want.Shift.Interval || r.Median.N != len(wire["128MiB/s"]) {
		t.Errorf("%+v, want %+v", r.Against, want)
	}
	for _, c := range a.Cells {
		for _, r := range c.Rows {
			if r.Against != nil && r.Against.Test.Method != stats.Equal {
				family++
				if r.Against.Holm < r.Against.Test.P {
					t.Errorf("%s, %s: corrected to less", c.Name, r.Column)
				}
			}
			if r.Group == "32MiB/s" && r.Against != nil {
				t.Error("the base is compared with itself")
			}
		}
	}
	if a.Family != family || family < 100 {
		t.Errorf("a family of %d, want %d", a.Family, family)
	}
	if _, err := json.Marshal(a); err != nil {
		t.Error(err)
	}

	a, err = Ask(Question{Folders: []string{dir}, By: "mode", Base: "stop-and-copy", Where: []Where{{"dirty-rate", "4000/s"}, {"max-bandwidth", "64MiB/s"}}, Measures: []string{"stage_stop_and_copy_ns", "time"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Cells) != 1 || len(a.Cells[0].Rows) != 4 || a.Groups[0].Name != "stop-and-copy" || a.Cells[0].Rows[3].Against.Relative == nil || *a.Cells[0].Rows[3].Against.Relative <= 0 {
		t.Errorf("%+v", a)
	}
	a, err = Ask(Question{Folders: []string{dir}, By: "downtime-limit", Pool: true})
	if err == nil || !strings.Contains(err.Error(), "in every record") {
		t.Errorf("by what is the same in all: %v, %v", a, err)
	}
}

// TestFolders: folders that were made with one plan each are compared whatever the plans are, and it is said in what they differ; a folder alone is summed up.
func TestFolders(t *testing.T) {
	dir := t.TempDir()
	make := func(name string, bandwidth float64, walls ...time.Duration) string {
		return write(t, filepath.Join(dir, name), func(yield func(*record.Migration) bool) {
			for i, w := range walls {
				m := trial(i, w, nil, map[string]any{"mode": "pre-copy", "max_bandwidth_bytes_per_s": bandwidth, "listen": fmt.Sprint("tcp:", i)})
				if !yield(m) {
					return
				}
			}
		})
	}
	a := make("a", 1e6, 10, 12, 11, 13, 15, 14)
	b := make("b", 2e6, 5, 7, 6, 8, 10, 9)
	got, err := Ask(Question{Folders: []string{a, b}})
	if err != nil {
		t.Fatal(err)
	}
	r := row(t, got, "", "total_wall_ns", b)
	if got.Groups[0].Differs["max_bandwidth_bytes_per_s"] != "1000000" || got.Groups[1].Differs["max_bandwidth_bytes_per_s"] != "2000000" || r.Against.Shift.Value != -5 || got.Family != 1 {
		t.Errorf("%+v %+v", got.Groups, r.Against)
	}
	if len(got.Drifts) != 0 { // tau 0.6, p 0.14 in each
		t.Errorf("drifts: %+v", got.Drifts)
	}
	one, err := Ask(Question{Folders: []string{a}})
	if err != nil || one.Family != 0 || len(one.Cells) != 1 || one.Cells[0].Rows[0].Median.Value != 12.5 || one.Cells[0].Rows[0].Median.Interval.Low != 10 {
		t.Errorf("%+v, %v", one, err)
	}
	few, err := Ask(Question{Folders: []string{make("few", 1e6, 1, 2, 3), make("others", 2e6, 7, 8, 9)}})
	if err != nil || len(few.Warnings) != 1 || !strings.Contains(few.Warnings[0], "needs n >= 4 in each group") {
		t.Errorf("%+v, %v", few, err)
	}
	rising, err := Ask(Question{Folders: []string{make("rising", 1e6, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)}})
	if err != nil || len(rising.Drifts) != 1 || rising.Drifts[0].Test.Statistic != 1 || rising.Drifts[0].N != 10 {
		t.Errorf("%+v, %v", rising.Drifts, err)
	}
}

// TestDriftBetweenCells: cells a hundred times apart that take turns are no drift; a slow rise of all of them is one.
func TestDriftBetweenCells(t *testing.T) {
	for name, rise := range map[string]time.Duration{"level": 0, "rising": 300} {
		random := rand.New(rand.NewPCG(17, 5))
		dir := write(t, filepath.Join(t.TempDir(), name), func(yield func(*record.Migration) bool) {
			for i := range 24 {
				w := []time.Duration{1000, 100000}[i%2] + time.Duration(random.IntN(1000)) + time.Duration(i)*rise
				m := trial(i, w, map[string]any{"x": []string{"slow", "fast"}[i%2]}, nil)
				m.Order = record.Of(i)
				if !yield(m) {
					return
				}
			}
		})
		a, err := Ask(Question{Folders: []string{dir}, By: "x", Measures: []string{"total_wall_ns"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := len(a.Drifts) == 1; got != (rise > 0) {
			t.Errorf("%s: %+v", name, a.Drifts)
		}
	}
}

// TestRefusals: what cannot be compared is one line that says why and what to try.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	a := write(t, filepath.Join(dir, "a"), of(trial(1, 5, map[string]any{"x": "1"}, nil), trial(2, 6, map[string]any{"x": "2"}, nil)))
	b := write(t, filepath.Join(dir, "b"), of(trial(1, 5, map[string]any{"x": "3"}, nil), trial(2, 6, map[string]any{"x": "4"}, nil)))
	lost := trial(1, 5, nil, nil)
	lost.Outcome = record.Failed
	failed := write(t, filepath.Join(dir, "failed"), of(lost, lost))
	down := func(i int, d *record.Downtime) *record.Migration {
		m := trial(i, 5, nil, nil)
		m.Downtime = *d
		return m
	}
	ping := write(t, filepath.Join(dir, "ping"), of(down(1, &record.Downtime{Ping: record.Of(time.Second)})))
	tcp := write(t, filepath.Join(dir, "tcp"), of(down(1, &record.Downtime{TCP: record.Of(time.Second)})))
	named := func(i int, factors map[string]any) *record.Migration {
		m := trial(i, 5, factors, nil)
		m.ID = fmt.Sprintf("id %d", i)
		return m
	}
	some := write(t, filepath.Join(dir, "some"), of(named(1, map[string]any{"x": "1"}), named(2, nil)))
	again := write(t, filepath.Join(dir, "again"), of(named(1, nil), named(2, nil)))
	empty := write(t, filepath.Join(dir, "empty"), of())
	for want, q := range map[string]Question{
		"no migration in common that agrees in x: filter what is alike (where)":         {Folders: []string{a, b}},
		"no completed migration to compare: 2 failed":                                   {Folders: []string{a, failed}},
		"no measure in common: ":                                                        {Folders: []string{ping, tcp}, Measures: []string{"downtime_ping_ns", "downtime_tcp_ns"}},
		"have x, folder":                                                                {Folders: []string{a}, By: "y"},
		"there is nothing to compare by it":                                             {Folders: []string{a}, By: "mode"},
		`no record has x "9": have 1, 2`:                                                {Folders: []string{a}, Where: []Where{{"x", "9"}}},
		`no group "7" to compare with: have 1, 2`:                                       {Folders: []string{a}, By: "x", Base: "7"},
		`measure "downtime" is no column of numbers`:                                    {Folders: []string{a}, Measures: []string{"downtime"}},
		"has no records.jsonl: give a folder that records were written to":              {Folders: []string{a, filepath.Join(dir, "nothing")}},
		"no record is there":                                                            {Folders: []string{empty}},
		`no record has x "9": have (none), 1`:                                           {Folders: []string{some}, Where: []Where{{"x", "9"}}},
		`no group "9" to compare with: have (none), 1`:                                  {Folders: []string{some}, By: "x", Base: "9"},
		"of " + again + " no record is left to compare: 2 records stand more than once": {Folders: []string{some, again}},
		"of " + empty + " no record is left":                                            {Folders: []string{a, empty}},
	} {
		got, err := Ask(q)
		if err == nil || got != nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", want, err)
		}
	}
	if got, err := Ask(Question{Folders: []string{some}, By: "x", Base: "(none)"}); err != nil || got.Groups[0].Name != "(none)" {
		t.Errorf("compared with those that have none: %+v, %v", got, err)
	}
	if got, err := Ask(Question{Folders: []string{some}, Where: []Where{{"x", "(none)"}}}); err != nil || got.Groups[0].Completed != 1 {
		t.Errorf("those alone that have none: %+v, %v", got, err)
	}
	twice := trial(1, 5, nil, nil)
	twice.ID = "the same"
	double, err := Ask(Question{Folders: []string{write(t, filepath.Join(dir, "double"), of(twice, twice, trial(2, 6, nil, nil)))}})
	if err != nil || double.Groups[0].Completed != 2 || len(double.Warnings) != 1 || !strings.Contains(double.Warnings[0], "1 records stand more than once") {
		t.Errorf("a record that stands twice: %+v, %v", double, err)
	}
	mixed, err := Ask(Question{Folders: []string{a, b}, Pool: true})
	if err != nil || len(mixed.Cells) != 1 || mixed.Cells[0].Rows[0].Median.N != 2 {
		t.Errorf("pooled: %+v, %v", mixed, err)
	}
}

// TestLevel: of folders from one population, with four measures, a difference is called in at most one of twenty, through the whole command's path.
func TestLevel(t *testing.T) {
	const times, n = 2000, 7
	random := rand.New(rand.NewPCG(17, 6))
	dir := t.TempDir()
	folder := func(name string) string {
		return write(t, filepath.Join(dir, name), func(yield func(*record.Migration) bool) {
			for i := range n {
				d := func() *time.Duration { return record.Of(time.Duration(1e6 * random.ExpFloat64())) }
				m := trial(i, *d(), nil, nil)
				m.Downtime = record.Downtime{Wire: d(), Ping: d(), QEMU: record.Of(d().Truncate(time.Millisecond))}
				if !yield(m) {
					return
				}
			}
		})
	}
	called, compared := 0, 0
	for range times {
		a, err := Ask(Question{Folders: []string{folder("a"), folder("b")}})
		if err != nil {
			t.Fatal(err)
		}
		differs := false
		for _, r := range a.Cells[0].Rows {
			if r.Against != nil {
				compared++
				differs = differs || r.Against.Holm < 1-stats.Level
			}
		}
		if differs {
			called++
		}
	}
	if compared != 4*times || called > 130 || called == 0 { // 130 of 2,000 is what 5 % passes once in 1,000
		t.Errorf("of %d comparisons of the same with the same, each with four measures, %d call a difference", times, called)
	}
}

func TestOrder(t *testing.T) {
	for _, want := range [][]string{{"9MiB/s", "10MiB/s", "1GiB/s"}, {"512MiB", "1GiB"}, {"20ms", "1s"}, {"1000/s", "16000/s"}, {"1", "2", "10"}, {"hybrid", "post-copy", "pre-copy"}, {"25%", "100%"}} {
		got := slices.Clone(want)
		slices.Reverse(got)
		slices.SortFunc(got, order)
		if !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	}
}

// TestByPart: the downtime is compared part by part; a part that only ran beside others is 0 on the critical path, and
// one that no source told is absent.
func TestByPart(t *testing.T) {
	dir := t.TempDir()
	make := func(name string, wire time.Duration, told recordtest.Told) string {
		return write(t, filepath.Join(dir, name), func(yield func(*record.Migration) bool) {
			for i := range 6 {
				m := trial(i, time.Second, nil, nil)
				m.Downtime.Wire = record.Of(wire + time.Duration(i)*time.Millisecond)
				m.Anatomy = recordtest.Anatomy(record.PreCopyMode, told, time.Second, *m.Downtime.Wire)
				if !yield(m) {
					return
				}
			}
		})
	}
	a, b := make("a", 50*time.Millisecond, recordtest.Stamped), make("b", 100*time.Millisecond, recordtest.Stamped)
	got, err := Ask(Question{Folders: []string{a, b}, Measures: []string{"downtime_wire_ns", ByPart}})
	if err != nil {
		t.Fatal(err)
	}
	if r := row(t, got, "", "anatomy_ram_save_ns", b); r.Title != "part ram-save" || r.Against.Shift.Value != 20e6 {
		t.Errorf("ram-save is 40 %% of 50 ms and of 100 ms: %+v", r.Against)
	}
	if r := row(t, got, "", "anatomy_ram_load_ns", b); r.Median.Value != 0 || r.Median.N != 6 {
		t.Errorf("ram-load ran beside, and is %+v", r.Median)
	}
	sum, wire := 0.0, row(t, got, "", "downtime_wire_ns", a).Median.Value
	for _, r := range got.Cells[0].Rows {
		if strings.HasPrefix(r.Column, "anatomy_") && r.Group == a {
			sum += r.Median.Value
		}
	}
	if sum < wire*0.999 || sum > wire*1.001 {
		t.Errorf("the parts' medians, which here rise together, sum to %v of %v", sum, wire)
	}
	for _, told := range []recordtest.Told{recordtest.Untold, recordtest.Bare} {
		old := make(string(told), 50*time.Millisecond, told)
		got, err = Ask(Question{Folders: []string{a, old}, Measures: []string{ByPart}})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, r := range got.Cells[0].Rows {
			if r.Group != old {
				continue
			}
			n++
			if !slices.Contains([]string{"part disks", "part untold", "part notice", "part decision", "part start"}, r.Title) {
				t.Errorf("%s: %s of records that do not tell when it was: %+v", told, r.Title, r.Median)
			}
		}
		if n != 5 {
			t.Errorf("%s: %d parts", told, n)
		}
	}
	if all, err := Ask(Question{Folders: []string{a, b}}); err != nil || slices.ContainsFunc(all.Cells[0].Rows,
		func(r Row) bool { return strings.HasPrefix(r.Column, "anatomy_") }) {
		t.Errorf("parts are compared although nobody asked: %v", err)
	}
}
