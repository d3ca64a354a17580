package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"qmigrate/engine/record"
	"qmigrate/engine/record/recordtest"
	"qmigrate/engine/report/figure"
)

var update = flag.Bool("update", false, "write the golden files anew")

// built makes a report of records without any file.
func built(t testing.TB, all []*record.Migration, described ...*experiment) *Report {
	t.Helper()
	r, err := build(setOf(all), described, Options{Command: "qmigrate report out"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func setOf(all []*record.Migration) *set {
	s := &set{}
	for _, m := range all {
		s.trials = append(s.trials, &trial{Migration: m, dir: "nowhere"})
	}
	s.factors = factorsOf(s.trials)
	return s
}

func (r *Report) figure(t testing.TB, key string) *figure.Figure {
	t.Helper()
	var keys []string
	for _, f := range r.Figures {
		if f.Key == key {
			return f
		}
		keys = append(keys, f.Key)
	}
	t.Fatalf("no figure %q: have %q", key, keys)
	return nil
}

// TestGolden: the same records give the same drawings, numbers and tables, to the byte.
func TestGolden(t *testing.T) {
	dir := synthetic(t, 96)
	r := write(t, dir)
	files := []string{"results.csv", "checks.csv", "failed.csv", "environment.csv", "study.csv", "stages.csv", "stages.svg", "downtime-by-observer.csv", "predicted.csv", "ecdf-downtime.svg",
		"by-max-bandwidth-pre-copy.csv", "by-max-bandwidth-pre-copy.svg", "load-generator.csv"}
	for _, f := range r.Figures {
		if strings.HasPrefix(f.Key, "passes-pre-copy") {
			files = append(files, f.Key+".csv", f.Key+".svg")
		}
	}
	golden := filepath.Join("..", "..", "testdata", "golden", "report")
	if *update {
		if err := os.MkdirAll(golden, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range files {
		got, err := os.ReadFile(filepath.Join(dir, "figures", name))
		if err != nil {
			t.Error(err)
			continue
		}
		if *update {
			if err := os.WriteFile(filepath.Join(golden, name), got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(filepath.Join(golden, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not the golden one (%v); -update writes it anew", name, err)
		}
	}
	if have, err := os.ReadDir(golden); err != nil || len(have) != len(files) {
		t.Errorf("%d golden files, %d compared: %v", len(have), len(files), err)
	}
	again, err := Build([]string{dir}, Options{Command: "qmigrate report out"})
	if err != nil {
		t.Fatal(err)
	}
	one, err := r.HTML()
	if err != nil {
		t.Fatal(err)
	}
	two, err := again.HTML()
	if err != nil || !bytes.Equal(one, two) {
		t.Errorf("the page differs from one time to the next: %v", err)
	}
}

// TestMedians: points are the medians of the trials of one cell, with an interval from n = 6 on, and every trial stands behind them.
func TestMedians(t *testing.T) {
	all := invented(96)
	f := built(t, all).figure(t, "by-max-bandwidth-pre-copy")
	if len(f.Panels) != 3 || len(f.Panels[0].Curves) != 4 || f.X.Unit != "MiB/s" {
		t.Fatalf("%d panels, %d curves, x in %s", len(f.Panels), len(f.Panels[0].Curves), f.X.Unit)
	}
	curve := f.Panels[0].Curves[2]
	if curve.Name != "workload-rate 4000/s" || len(curve.Points) != 4 {
		t.Fatalf("curve %q has %d points", curve.Name, len(curve.Points))
	}
	var want []float64
	for _, m := range all {
		if m.Mode == record.PreCopyMode && m.Outcome == record.Completed && m.Factors["max-bandwidth"] == "64MiB/s" && strings.Contains(m.Workload, "=4000/s") {
			want = append(want, m.Total.Wall.Seconds())
		}
	}
	slices.Sort(want)
	p := curve.Points[1]
	if n := len(want); n != 4 || p.N != n || p.X != 64 || math.Abs(p.Y-(want[1]+want[2])/2) > 1e-9 || !math.IsNaN(p.Low) {
		t.Errorf("point %+v, of %v", p, want)
	}
	var got []float64
	for _, q := range curve.Trials {
		if q.X == 64 {
			got = append(got, q.Y)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("trials %v, want %v", got, want)
	}
	for _, q := range built(t, invented(480)).figure(t, "by-max-bandwidth-pre-copy").Panels[0].Curves[2].Points {
		if q.N < 6 || !(q.Low <= q.Y && q.Y <= q.High) {
			t.Errorf("with n = %d: %+v", q.N, q)
		}
	}
	if caption := f.Caption; caption.N != "n = 3 to 4 a point; trials that failed, or where it was not measured, are not in it" || caption.Command != "qmigrate report out" ||
		!strings.Contains(caption.Measured, "max-bandwidth") || len(caption.Definitions) != 3 {
		t.Errorf("caption %+v", caption)
	}
}

// TestSplit: no median is taken over trials that differ in a factor, and no figure has more curves than can be told apart.
func TestSplit(t *testing.T) {
	all := invented(480)
	for i, m := range all {
		m.Factors["memory"], m.Factors["vcpus"] = []string{"256MiB", "1GiB"}[i/48%2], float64(1+i/96%2)
	}
	s := setOf(all)
	if len(s.factors) != 5 {
		t.Fatalf("factors %+v", s.factors)
	}
	for _, f := range s.factors {
		seen := 0
		for _, part := range splitFor(f, s.trials, without(s.factors, f.name), curveLimit) {
			if n := len(groupBy(part.trials, part.by)); n > curveLimit {
				t.Errorf("%s: %d curves in one figure", f.name, n)
			}
			for _, g := range groupBy(part.trials, append(slices.Clone(part.by), f)) {
				seen += len(g.trials)
				if len(groupBy(g.trials, s.factors)) != 1 {
					t.Errorf("%s: a point takes different cells together: %s", f.name, g.name)
				}
			}
		}
		if seen != len(all) {
			t.Errorf("%s: %d of %d trials are shown", f.name, seen, len(all))
		}
	}
}

// TestCases: factors that change together are one axis, and what goes with it is said.
func TestCases(t *testing.T) {
	all := invented(96)
	for i, m := range all {
		k := i / 3 % 4
		m.Factors = map[string]any{"mode": string(m.Mode), "case": []string{"tiny", "small", "large", "huge"}[k], "memory": fmt.Sprintf("%dMiB", 256<<k), "vcpus": float64(max(k, 1)), "workload": m.Factors["workload"]}
	}
	r := built(t, all)
	f := r.figure(t, "by-case-stop-and-copy")
	if got := f.Caption.Notes; !slices.Equal(got, []string{"Memory and vcpus change with case."}) || len(f.Panels[0].Curves) != 4 || len(f.Panels[0].Curves[0].Points) != 4 {
		t.Errorf("%q, %d curves", got, len(f.Panels[0].Curves))
	}
	if !slices.Equal(f.X.Names, []string{"tiny", "small", "large", "huge"}) {
		t.Errorf("the cases stand as %q, not by their memory", f.X.Names)
	}
	for _, f := range r.Figures {
		if strings.HasPrefix(f.Key, "by-memory") {
			t.Errorf("%q shows what stands against case already", f.Title)
		}
	}
}

func TestLevels(t *testing.T) {
	for _, c := range []struct {
		value any
		text  string
		kind  kind
		n     float64
	}{
		{"32MiB/s", "32 MiB/s", rateKind, 32 << 20}, {"1Gbit/s", "119 MiB/s", rateKind, 125e6}, {"1024MiB", "1 GiB", sizeKind, 1 << 30}, {"1GiB", "1 GiB", sizeKind, 1 << 30}, {"300ms", "300 ms", timeKind, 0.3},
		{"2000/s", "2000/s", perSecond, 2000}, {"50%", "50%", percent, 50}, {float64(2), "2", none, 2}, {134217728.0, "134217728", none, 1 << 27}, {true, "on", none, math.NaN()},
		{"pre-copy", "pre-copy", none, math.NaN()}, {nil, "", none, math.NaN()}, {"", "", none, math.NaN()}, {"nan", "nan", none, math.NaN()}, {"-Inf", "-Inf", none, math.NaN()},
		{[]any{"a", 1.0}, `["a",1]`, none, math.NaN()},
	} {
		l := levelOf(c.value)
		if l.String() != c.text || l.kind != c.kind || l.number != c.n && !(math.IsNaN(l.number) && math.IsNaN(c.n)) {
			t.Errorf("%v: %q, %q, %v", c.value, l.String(), l.kind, l.number)
		}
	}
	if a, b := levelOf("1024MiB"), levelOf("1GiB"); !a.equal(b) || a.compare(b) != 0 {
		t.Error("1024MiB is not 1GiB")
	}
	for _, order := range [][]any{{"stop-and-copy", "pre-copy", "post-copy", "hybrid"}, {"", "a", "b"}, {"64MiB/s", "128MiB/s", "1GiB/s"}, {"", "1/s", "x"}} {
		levels := make([]level, len(order))
		for i, v := range order {
			levels[len(order)-1-i] = levelOf(v)
		}
		slices.SortFunc(levels, level.compare)
		for i, v := range order {
			if !levels[i].equal(levelOf(v)) {
				t.Errorf("sorted %v to %v", order, levels)
			}
		}
	}
}

// TestFactors: an idle guest is one that dirties 0 pages a second; without an experiment what varies in the plans counts.
func TestFactors(t *testing.T) {
	s := setOf(invented(96))
	rate, ok := find(s.factors, "workload-rate")
	if !ok || !rate.numeric || len(rate.levels) != 4 || rate.levels[0].String() != "0/s" {
		t.Errorf("rate %+v", rate)
	}
	if _, ok := find(s.factors, workloadFactor); ok {
		t.Error("idle and dirty are two workloads, though one is the other at rate 0")
	}
	all := invented(96)
	for _, m := range all {
		m.Factors, m.Experiment = nil, ""
	}
	s = setOf(all)
	var names []string
	for _, f := range s.factors {
		names = append(names, f.name)
	}
	if !slices.Equal(names, []string{"mode", "max-bandwidth", "workload-rate"}) {
		t.Errorf("from the plans: %q", names)
	}
	all[0].Plan["max_bandwidth_bytes_per_s"] = 0.0 // no limit
	if f, _ := find(setOf(all).factors, bandwidthFactor); f.numeric || len(f.levels) != 5 {
		t.Errorf("no limit stands at 0 on an axis: %+v", f)
	}
	mixed := invented(24)
	mixed[5].Factors["workload"] = "compute:kind=linpack"
	if _, ok := find(setOf(mixed).factors, workloadFactor); !ok {
		t.Error("two workloads are one")
	}
}

// TestSweeps: what one sweep varies is no factor of another's, and the figures that the experiment names are made of their sweep.
func TestSweeps(t *testing.T) {
	all := invented(192)
	var some []*record.Migration
	for _, m := range all {
		bandwidth, dirty := strings.Contains(m.Workload, "=1000/s"), m.Factors["max-bandwidth"] == "64MiB/s" && m.Mode == record.PreCopyMode
		switch {
		case bandwidth:
			m.Factors["sweep"] = "bandwidth"
		case dirty:
			m.Factors["sweep"], m.Factors["case"] = "dirty", "small"
		default:
			continue
		}
		some = append(some, m)
	}
	r := built(t, some, &experiment{Schema: experimentSchema, Title: "A title", Command: "qmigrate run x.toml", Without: []string{"a disk"}, Figures: []named{
		{Title: "1: time", Kind: "against", Show: "total.wall_ns", Against: "max-bandwidth", By: "mode", Sweep: "bandwidth"},
		{Title: "2: set-up", Show: "total.normal_pages", Against: "workload-rate", Sweep: "dirty"},
		{Title: "3: none", Show: "total.wall_ns", Against: "memory", Sweep: "dirty"},
		{Title: "4: unmeasured", Show: "total.multifd_bytes", Against: "workload-rate", Sweep: "dirty"},
		{Title: "5: ecdf", Kind: "ecdf", Show: "downtime.wire_ns", By: "mode", Sweep: "bandwidth"},
		{Title: "6: observers", Kind: "observers", Sweep: "bandwidth"},
		{Title: "7: passes", Kind: "passes", Sweep: "dirty"},
		{Title: "8: later", Kind: "hologram"},
		{Title: "10: cpu", Kind: "cpu", Against: "workload", Sweep: "dirty"},
		{Title: "11: events", Kind: "timeline", Show: "guest_events", Sweep: "dirty"},
		{Title: "9: gone", Kind: "stages", Sweep: "gone"},
	}})
	if r.Title != "A title" || r.Made != "qmigrate run x.toml" || len(r.Without) != 1 {
		t.Errorf("%q %q %q", r.Title, r.Made, r.Without)
	}
	if got := []string{r.Tables[0].Key, r.Tables[1].Key}; !slices.Equal(got, []string{"bandwidth-results", "dirty-results"}) ||
		!slices.Equal(r.Tables[0].Head[:3], []string{"mode", "max-bandwidth", "n"}) || !slices.Equal(r.Tables[1].Head[:2], []string{"workload-rate", "n"}) {
		t.Errorf("%q: %q, %q", got, r.Tables[0].Head, r.Tables[1].Head)
	}
	i := slices.IndexFunc(r.Tables, func(t Table) bool { return t.Key == "named" })
	want := [][]string{{"1: time", "figure 1"}, {"2: set-up", "figure 2"}, {"3: none", "not in these records: memory has one value in them"},
		{"4: unmeasured", "not in these records: total.multifd_bytes was not measured"}, {"5: ecdf", "figure 3"}, {"6: observers", "figure 4"}, {"7: passes", "figure 5"},
		{"8: later", `not in these records: this qmigrate has no figures of kind "hologram"`}, {"10: cpu", "figure 6"}, {"11: events", "figure 7"},
		{"9: gone", "not in these records: no trial of sweep gone"}}
	if !reflect.DeepEqual(r.Tables[i].Rows, want) {
		t.Errorf("%q", r.Tables[i].Rows)
	}
	if f := r.Figures[0]; f.Title != "1: time" || f.Key != "1-time" || len(f.Panels[0].Curves) != 2 || len(f.Panels[0].Curves[0].Points) != 4 {
		t.Errorf("%+v", f)
	}
	if f := r.Figures[5]; len(f.Panels) != 2 || f.X.Label != "workload-rate" {
		t.Errorf("%d panels against %s", len(f.Panels), f.X.Label)
	}
	if f := r.Figures[6]; len(f.Panels) != 1 || len(f.Panels[0].Curves) != 1 || len(f.Marks) != 3 {
		t.Errorf("%+v", f)
	}
	for _, f := range r.Figures[7:] {
		if strings.Contains(f.Title, "otal time") && strings.Contains(f.Title, "against max-bandwidth") && strings.Contains(f.Title, "sweep bandwidth") {
			t.Errorf("%q is drawn a second time", f.Title)
		}
	}
}

// TestChecks: a drift over the order is found, and so is a trial that stands apart; without either nothing is said.
func TestChecks(t *testing.T) {
	row := func(all []*record.Migration) []string {
		s := setOf(all)
		for _, r := range checks(s.sweeps()).Rows {
			if r[0] == "downtime" {
				return r
			}
		}
		t.Fatal("no row for the downtime")
		return nil
	}
	if r := row(invented(480)); strings.Contains(r[3], "drifts") || r[1] != "475" {
		t.Errorf("independent trials: %q", r)
	}
	all := invented(480)
	for i, m := range all {
		if m.Downtime.Wire != nil {
			*m.Downtime.Wire += *m.Downtime.Wire * time.Duration(i) / 480
		}
	}
	if r := row(all); !strings.HasSuffix(r[3], "drifts") || !strings.HasPrefix(r[2], "0.") {
		t.Errorf("trials that drift: %q", r)
	}
	all = invented(480)
	*all[100].Downtime.Wire *= 100
	if r := row(all); !strings.Contains(r[5], all[100].ID) && !strings.Contains(r[5], "more") {
		t.Errorf("an outlier: %q", r)
	}
}

func TestWarnings(t *testing.T) {
	s := &set{}
	for i, texts := range [][]string{{"a 5ms gap at 1.5s of 3", "b"}, {"a 7ms gap at -2s of 3"}, {"b"}, {"b"}} {
		s.trials = append(s.trials, &trial{Migration: &record.Migration{ID: fmt.Sprint("id", i), Warnings: texts}})
	}
	want := []Warning{{"b", 3, "id0"}, {"a ... gap at ... of 3", 2, "id0"}}
	if got := warnings(s); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

// TestEscaping: nothing that a record holds becomes a part of the page or a formula of a spreadsheet.
func TestEscaping(t *testing.T) {
	const evil = `</script><script>alert(1)</script><img src=x onerror=alert(2)>"'&`
	all := invented(48)
	for i, m := range all {
		m.Warnings, m.Experiment, m.Name, m.Hosts.CPU, m.Trial = []string{evil}, evil, evil, evil, evil
		m.Factors = map[string]any{evil: evil + fmt.Sprint(i%2), "=cmd": "=1+1" + fmt.Sprint(i%2), "mode": string(m.Mode)}
		if m.Prediction != nil {
			m.Prediction.Model = evil
		}
		for k := range m.Timeline {
			m.Timeline[k].Name, m.Timeline[k].Source, m.Timeline[k].Unit = evil, evil, evil+fmt.Sprint(k)
		}
		if m.Error != nil {
			m.Error.Message = evil
		}
	}
	r := built(t, all)
	r.Command = evil
	page, err := r.HTML()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := html.Parse(bytes.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode {
			counts[n.Data]++
			for _, a := range n.Attr {
				if strings.HasPrefix(a.Key, "on") || a.Key == "src" {
					t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
				}
			}
		}
	}
	if counts["script"] != 3 || counts["img"] != 0 || counts["figure"] != len(r.Figures) || len(r.Figures) == 0 {
		t.Errorf("elements %v, %d figures", counts, len(r.Figures))
	}
	for _, f := range r.Figures {
		svg, err := f.SVG()
		if err != nil || bytes.Contains(svg, []byte("<script")) || bytes.Contains(svg, []byte("<img")) {
			t.Errorf("%s: %v", f.Key, err)
		}
		var b strings.Builder
		if err := f.WriteCSV(&b); err != nil {
			t.Fatal(err)
		}
		rows, err := csv.NewReader(strings.NewReader(b.String())).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			for _, cell := range row {
				if _, err := strconv.ParseFloat(cell, 64); err != nil && strings.HasPrefix(cell, "=") {
					t.Errorf("%s: a formula %q", f.Key, cell)
				}
			}
		}
	}
}

// TestFolders: what cannot be read is said in one line; a record in two folders counts once; a report replaces the one before and touches nothing else.
func TestFolders(t *testing.T) {
	empty := t.TempDir()
	for dir, want := range map[string]string{empty: "no records in it", filepath.Join(empty, "gone"): "no such file"} {
		if r, err := Build([]string{dir}, Options{}); r != nil || err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", dir, err)
		}
	}
	a := synthetic(t, 30)
	if r, err := Build([]string{a}, Options{Trials: []string{"nobody"}}); r != nil || err == nil || !strings.Contains(err.Error(), `no trial "nobody"`) {
		t.Errorf("a trial that is not there: %v", err)
	}
	r, err := Build([]string{a, a}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Warnings[0].Count != 30 || !strings.Contains(r.Summary, "30 migrations") {
		t.Errorf("%+v, %s", r.Warnings[0], r.Summary)
	}
	if r, err = Build([]string{a}, Options{Trials: []string{invented(30)[3].ID}}); err != nil || !slices.ContainsFunc(r.Figures, func(f *figure.Figure) bool {
		return strings.HasPrefix(f.Key, "passes-") && strings.Contains(f.Caption.Measured, invented(30)[3].ID)
	}) {
		t.Errorf("the passes of the trial that was asked for are not there: %v", err)
	}
	write(t, a)
	own, old := filepath.Join(a, "figures", "own.csv"), filepath.Join(a, "figures", "old.svg")
	for _, name := range []string{own, old} {
		if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	index := filepath.Join(a, "figures", indexFile)
	b, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(index, append(b, "old.svg,t,c\n../../records.jsonl,t,c\n/etc/x.csv,t,c\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	r = write(t, a)
	if _, err := os.Stat(own); err != nil {
		t.Error("somebody's own file is gone")
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("a figure of the report before is left")
	}
	svg, _ := filepath.Glob(filepath.Join(a, "figures", "*.svg"))
	if len(svg) != len(r.Figures) {
		t.Errorf("%d drawings of %d figures", len(svg), len(r.Figures))
	}
	if left, _ := filepath.Glob(filepath.Join(a, "figures", ".new*")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	if err := os.WriteFile(filepath.Join(a, "experiment.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Build([]string{a}, Options{}); err == nil || !strings.Contains(err.Error(), "experiment.json") {
		t.Errorf("a broken experiment.json: %v", err)
	}
}

// TestSamples: half a line at the end of a series is passed over, and an id is no path.
func TestSamples(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "samples"), 0o755); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int{"": 0, "{\"t_ns\":1}\n": 1, "{\"t_ns\":1}\n{\"t_ns\":2": 1} {
		if err := os.WriteFile(filepath.Join(dir, "samples", "x.jsonl"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := (&trial{Migration: &record.Migration{ID: "x"}, dir: dir}).samples()
		if err != nil || len(got) != want {
			t.Errorf("%q: %d samples, %v", text, len(got), err)
		}
	}
	if _, err := (&trial{Migration: &record.Migration{ID: "../records"}, dir: dir}).samples(); err == nil {
		t.Error("an id that leads out of the folder is followed")
	}
}

// TestThin: of a long series the extremes stay.
func TestThin(t *testing.T) {
	var points []figure.Point
	for i := range 100_000 {
		points = append(points, raw(float64(i), float64(i%10)))
	}
	points[55_555].Y, points[77_777].Y = 1000, -1000
	out := thin(points)
	values := make([]float64, len(out))
	for i, p := range out {
		values[i] = p.Y
	}
	if len(out) > drawnPoints || slices.Max(values) != 1000 || slices.Min(values) != -1000 ||
		!slices.IsSortedFunc(out, func(a, b figure.Point) int { return int(a.X - b.X) }) {
		t.Errorf("%d points from %v to %v", len(out), slices.Min(values), slices.Max(values))
	}
}

// TestUnwritable: a file that cannot be written is named, and not the one that would have become it.
func TestUnwritable(t *testing.T) {
	name := filepath.Join(t.TempDir(), "nowhere", "report.html")
	if err := saveFile(name, nil); err == nil ||
		err.Error() != "write report: "+name+": no such file or directory: name another folder" {
		t.Error(err)
	}
}

// TestSeenRate: all passes that can be counted in sum; a short one, behind which the guest's housekeeping is all that there is, does not stand for the workload.
func TestSeenRate(t *testing.T) {
	m := &record.Migration{Passes: []record.Pass{
		{Duration: 2 * time.Second}, {Duration: 20 * time.Millisecond, DirtyPages: record.Of[int64](1000)}, {Duration: 10 * time.Millisecond, DirtyPages: record.Of[int64](10)},
		{Duration: time.Hour, DirtyPages: record.Of[int64](900), Stopped: true},
	}}
	if got, ok := seenRate().of(m); !ok || got != 500 {
		t.Errorf("%v dirty pages a second, want 1010 in 2.02 s", got)
	}
	if _, ok := seenRate().of(&record.Migration{Passes: m.Passes[:1]}); ok {
		t.Error("a rate of one pass")
	}
}

// TestFewDots: a scatter of two trials says nothing and is no figure.
func TestFewDots(t *testing.T) {
	var trials []*trial
	for i := range 3 {
		if fig := scatter(trials, nil, totalTime(), []metric{downtime()}, "x", "X"); fig.Drawn() {
			t.Errorf("a scatter of %d trials", i)
		}
		trials = append(trials, &trial{Migration: &record.Migration{ID: fmt.Sprint(i), Outcome: record.Completed, Total: record.Total{Wall: time.Second}, Downtime: record.Downtime{Wire: record.Of(time.Second)}}})
	}
	if fig := scatter(trials, nil, totalTime(), []metric{downtime()}, "x", "X"); !fig.Drawn() {
		t.Error("no scatter of three trials")
	}
}

// TestPanelNames: several panels stand above each other, each about 150 pixels high: a longer name reaches into the next.
func TestPanelNames(t *testing.T) {
	for _, m := range []metric{totalTime(), downtime(), sentBytes(), passes(), slowdown(), hostCPU(), vcpuCPU()} {
		if unit, _ := scale(m.kind, 1); len(figure.UnitText(m.name, unit)) > 26 {
			t.Errorf("%q has no room beside its panel", figure.UnitText(m.name, unit))
		}
	}
}

// TestMarkers: no two curves of the page's legend have the same marker.
func TestMarkers(t *testing.T) {
	glyphs := map[string]bool{}
	for i := range figure.Styles {
		l := legendOf(figure.Curve{Style: i})
		glyphs[l.Marker+l.MarkerClass] = true
	}
	if len(glyphs) != figure.Styles {
		t.Errorf("%d markers for %d styles", len(glyphs), figure.Styles)
	}
}

// TestPoor: records that say next to nothing make a report, too.
func TestPoor(t *testing.T) {
	bare := func(outcome record.Outcome) *record.Migration {
		return &record.Migration{Schema: record.Schema, ID: "x" + string(outcome), Mode: record.PreCopyMode, Outcome: outcome, StartedAt: time.Unix(0, 0)}
	}
	odd := bare(record.Completed)
	odd.Total.Wall, odd.Downtime.Wire = 1, record.Of(time.Duration(-5))
	odd.Passes = []record.Pass{{}, {DirtyPages: record.Of(int64(-1))}}
	odd.Timeline = []record.Series{{Unit: "x"}, {Unit: "x", Bin: 1, Values: []*float64{nil, nil}}}
	for name, all := range map[string][]*record.Migration{"completed": {bare(record.Completed)}, "failed": {bare(record.Failed)}, "odd": {odd}, "both": {bare(record.Completed), bare(record.Failed)}} {
		r := built(t, all)
		if _, err := r.HTML(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := r.Write(t.TempDir()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestExtremes: whatever numbers a record holds, it can be reported. A tenth of them, drawn from a known seed, are replaced by what is hardest to draw.
func TestExtremes(t *testing.T) {
	chance := rand.New(rand.NewPCG(1, 2))
	hard := []float64{0, -1, 1, 1 << 40, -(1 << 62), 1 << 62}
	var spoil func(v any) any
	spoil = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				v[k] = spoil(v[k])
			}
		case []any:
			for i := range v {
				v[i] = spoil(v[i])
			}
		case float64:
			if chance.IntN(10) == 0 {
				return hard[chance.IntN(len(hard))]
			}
		}
		return v
	}
	for range 25 {
		var all []*record.Migration
		for _, m := range append(invented(6), apart(4, recordtest.Stamped)...) {
			line, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			var v any
			if err := json.Unmarshal(line, &v); err != nil {
				t.Fatal(err)
			}
			if line, err = json.Marshal(spoil(v)); err != nil {
				t.Fatal(err)
			}
			bad, err := record.Decode(line)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, bad)
		}
		drawAll(t, built(t, all))
	}
}

func drawAll(t *testing.T, r *Report) {
	t.Helper()
	for _, figure := range r.Figures {
		svg, err := figure.SVG()
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(svg, []byte("NaN")); i >= 0 {
			t.Fatalf("%s is drawn with what is no number: %s", figure.Key, svg[max(i-80, 0):i+10])
		}
	}
	if _, err := r.HTML(); err != nil {
		t.Fatal(err)
	}
}

// FuzzReport: whatever decodes as a record can be reported, and nothing panics.
func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"schema":"qmigrate/record/1","outcome":"completed","total":{"wall_ns":9223372036854775807,"transferred_bytes":-1},"downtime":{"wire_ns":1,"ping_ns":-9223372036854775808},"stages":[{"duration_ns":-1}],"factors":{"a":null,"mode":{}}}`))
	f.Add([]byte(`{"schema":"qmigrate/record/1","outcome":"completed","mode":"pre-copy","total":{"wall_ns":5},"passes":[{"pass":1,"duration_ns":3,"transferred_bytes":7,"dirty_pages":2}],"timeline":[{"unit":"bytes/s","bin_ns":1,"values":[1,null,2]}]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := record.Decode(line)
		if err != nil {
			return
		}
		m.ID = "x"
		drawAll(t, built(t, []*record.Migration{m}))
	})
}
