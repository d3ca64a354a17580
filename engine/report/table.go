package report

import (
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/engine/report/figure"
	"qmigrate/engine/report/stats"
)

// Table is rows of cells; Align has one letter a column, l or r.
type Table struct {
	Key   string
	Title string
	Text  string // what the numbers are
	Align string
	Head  []string
	Rows  [][]string
}

// Warning is a doubt that records have, with how many of them have it.
type Warning struct {
	Text  string // numbers that differ between the records are replaced by `...`
	Count int
	First string // id of the first record that has it
}

// format prints a value for people.
func format(k kind, v float64) string {
	switch k {
	case timeKind:
		return units.FormatDuration(time.Duration(math.Round(v * 1e9)))
	case sizeKind:
		return units.FormatSize(int64(math.Round(v)))
	case rateKind:
		return units.FormatRate(v)
	case percent:
		return strconv.FormatFloat(v, 'f', 1, 64) + " %"
	}
	if math.Abs(v) >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64) + string(k)
	}
	return strconv.FormatFloat(v, 'g', 4, 64) + string(k)
}

// results is one row a cell: medians with their intervals and n.
func results(s *set) Table {
	t := Table{Key: s.key("results"), Title: s.title("Results by cell"),
		Text: "Median of the completed trials [interval]. n: completed trials of all. " + intervalWords +
			" Definitions: under the figures and in docs/measurements.md."}
	cells := groupBy(s.trials, s.factors)
	for _, f := range s.factors {
		t.Head = append(t.Head, f.name)
		t.Align += map[bool]string{true: "r", false: "l"}[f.numeric]
	}
	if len(s.factors) == 0 {
		t.Head, t.Align = []string{"cell"}, "l"
	}
	t.Head, t.Align = append(t.Head, "n"), t.Align+"r"
	var metrics []metric
	for _, m := range []metric{totalTime(), downtime(), sentBytes(), passes(), slowdown(), hostCPU()} {
		if m.measured(s.trials) {
			metrics = append(metrics, m)
			t.Head, t.Align = append(t.Head, m.name), t.Align+"r"
		}
	}
	for _, c := range cells {
		var row []string
		for _, l := range c.levels {
			row = append(row, l.String())
		}
		if len(s.factors) == 0 {
			row = []string{c.name}
		}
		done := len(completed(c.trials))
		n := fmt.Sprint(done)
		if done != len(c.trials) {
			n = fmt.Sprintf("%d of %d", done, len(c.trials))
		}
		row = append(row, n)
		for _, m := range metrics {
			values, _ := m.values(c.trials)
			row = append(row, estimateText(estimateOf(values), m.kind, done))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// estimateText is the median with its interval; n is said where it is not the cell's.
func estimateText(e stats.Estimate, k kind, n int) string {
	if e.N == 0 {
		return "-"
	}
	text := format(k, e.Value)
	if e.Interval != nil {
		text += fmt.Sprintf(" [%s, %s]", format(k, e.Interval.Low), format(k, e.Interval.High))
	}
	if e.N != n {
		text += fmt.Sprintf(" (n = %d)", e.N)
	}
	return text
}

// checks tells whether the trials are independent readings: whether they drift over their order, and which stand apart.
// Values are taken relative to their cell's median, so that the cells, which take turns, can be looked at together.
func checks(parts []*set) Table {
	t := Table{Key: "checks", Title: "Drift and outliers", Align: "lrrrrl",
		Head: []string{"quantity", "n", "tau", "p", "outliers", "which"},
		Text: "Of the completed trials' values, each divided by its cell's median. tau: Kendall's, against the order of " +
			"the trials: 1 rises always, -1 falls always; p: that it is chance, after Holm's correction over the rows. " +
			"Outliers: more than 1.5 interquartile ranges outside of their cell's quartiles (Tukey); they stay in every median."}
	var p []float64
	for _, s := range parts {
		for _, m := range []metric{totalTime(), downtime(), sentBytes(), slowdown()} {
			type reading struct {
				trial *trial
				value float64
			}
			var all []reading
			var apart []string
			for _, c := range groupBy(s.trials, s.factors) {
				values, of := m.values(c.trials)
				middle := estimateOf(values).Value
				if len(values) < 2 || middle == 0 {
					continue
				}
				for i, v := range values {
					all = append(all, reading{of[i], v / middle})
				}
				for _, i := range stats.Outliers(values) {
					apart = append(apart, of[i].ID)
				}
			}
			if len(all) < 6 {
				continue
			}
			slices.SortStableFunc(all, func(a, b reading) int { return a.trial.StartedAt.Compare(b.trial.StartedAt) })
			values := make([]float64, len(all))
			for i, r := range all {
				values[i] = r.value
			}
			test := stats.Drift(values)
			p = append(p, test.P)
			const shown = 3
			which := strings.Join(apart[:min(len(apart), shown)], ", ")
			if len(apart) > shown {
				which += fmt.Sprintf(" and %d more", len(apart)-shown)
			}
			t.Rows = append(t.Rows, []string{s.title(m.name), fmt.Sprint(len(all)),
				strconv.FormatFloat(test.Statistic, 'f', 2, 64), "", fmt.Sprint(len(apart)), which})
		}
	}
	for i, h := range stats.Holm(p) {
		text := strconv.FormatFloat(h, 'f', 3, 64)
		if h < 0.001 {
			text = "< 0.001"
		}
		if h < 1-stats.Level {
			text += ": drifts"
		}
		t.Rows[i][3] = text
	}
	return t
}

// failures lists the trials that did not complete.
func failures(s *set) Table {
	t := Table{Key: "failed", Title: "Trials that did not complete", Text: "They are in no median.", Align: "lllll",
		Head: []string{"trial", "outcome", "guest on", "stage", "what was wrong"}}
	for _, x := range s.trials {
		if x.completed() {
			continue
		}
		name := x.ID
		if x.Trial != "" {
			name = x.Trial + " (" + x.ID + ")"
		}
		row := []string{name, string(x.Outcome), string(x.GuestOn), "", ""}
		if x.Error != nil {
			row[3], row[4] = string(x.Error.Stage), x.Error.Message
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// environment is where and on what the trials ran, and the parameters as QEMU gave them back: each value with the
// number of trials that had it.
func environment(s *set) Table {
	t := Table{Key: "environment", Title: "Environment",
		Text: "As the records have it; parameters and capabilities as the source's QEMU gave them back, in its names and " +
			"units. A number in brackets: trials with that value, where not all have it.",
		Align: "ll", Head: []string{"what", "value"}}
	row := func(name string, of func(*trial) string) {
		counts := map[string]int{}
		for _, x := range s.trials {
			if v := of(x); v != "" {
				counts[v]++
			}
		}
		if len(counts) == 0 {
			return
		}
		var parts []string
		keys := slices.Sorted(maps.Keys(counts))
		const shown = 8
		for i, v := range keys {
			if i == shown && len(keys) > shown+1 {
				parts = append(parts, fmt.Sprintf("and %d more", len(keys)-shown))
				break
			}
			if counts[v] == len(s.trials) {
				parts = append(parts, v)
			} else {
				parts = append(parts, fmt.Sprintf("%s (%d)", v, counts[v]))
			}
		}
		t.Rows = append(t.Rows, []string{name, strings.Join(parts, "; ")})
	}
	own := regexp.MustCompile(`qmig-.*-(\w+)$`) // namespaces of a run have its name in theirs
	host := func(name string) string { return own.ReplaceAllString(name, "of the run, $1") }
	row("experiment", func(x *trial) string { return x.Experiment })
	row("started", func(x *trial) string { return x.StartedAt.UTC().Format("2006-01-02") })
	row("source host", func(x *trial) string { return host(x.Hosts.Source) })
	row("destination host", func(x *trial) string { return host(x.Hosts.Destination) })
	row("host kernel", func(x *trial) string { return x.Hosts.Kernel })
	row("host processor", func(x *trial) string { return x.Hosts.CPU })
	row("source QEMU", func(x *trial) string { return x.QEMU.SourceVersion })
	row("destination QEMU", func(x *trial) string { return x.QEMU.DestinationVersion })
	row("accelerator", func(x *trial) string { return x.QEMU.Accelerator })
	row("why that one", func(x *trial) string { return x.QEMU.AcceleratorReason })
	row("machine", func(x *trial) string { return x.QEMU.Machine })
	row("memory", func(x *trial) string { return units.FormatSize(x.QEMU.MemoryBytes) })
	row("vCPUs", func(x *trial) string { return fmt.Sprint(x.QEMU.VCPUs) })
	row("workload", func(x *trial) string { return x.Workload })
	row("sampling period, median", func(x *trial) string {
		if x.Sampling == nil {
			return ""
		}
		return units.FormatDuration(x.Sampling.PeriodP50.Round(time.Millisecond))
	})
	names := map[string]bool{}
	for _, x := range s.trials {
		for k := range x.Parameters {
			names[k] = true
		}
	}
	for _, k := range slices.Sorted(maps.Keys(names)) {
		row("parameter "+k, func(x *trial) string {
			if v, ok := x.Parameters[k]; ok {
				if text := levelOf(v).text; text != "" {
					return text
				}
				return `""`
			}
			return ""
		})
	}
	row("capabilities on", func(x *trial) string {
		var on []string
		for _, k := range slices.Sorted(maps.Keys(x.Capabilities)) {
			if x.Capabilities[k] {
				on = append(on, k)
			}
		}
		return strings.Join(on, ", ")
	})
	return t
}

// warnings groups the records' doubts: texts that differ in numbers alone are one.
func warnings(s *set) []Warning {
	numbers := regexp.MustCompile(`(\B-)?[0-9]+(\.[0-9]+)?([a-zµ]+[0-9.]*)*`)
	index := map[string]int{}
	var all []Warning
	var fields [][]string
	for _, t := range s.trials {
		for _, text := range t.Warnings {
			key := numbers.ReplaceAllString(text, "\x00")
			i, ok := index[key]
			if !ok {
				i = len(all)
				index[key] = i
				all = append(all, Warning{Text: text, First: t.ID})
				fields = append(fields, numbers.FindAllString(text, -1))
			}
			all[i].Count++
			for k, n := range numbers.FindAllString(text, -1) {
				if fields[i][k] != n {
					fields[i][k] = "..."
				}
			}
		}
	}
	for i := range all {
		k := -1
		all[i].Text = numbers.ReplaceAllStringFunc(all[i].Text, func(string) string { k++; return fields[i][k] })
	}
	slices.SortStableFunc(all, func(a, b Warning) int { return b.Count - a.Count })
	return all
}

// WriteCSV writes the table.
func (t *Table) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	for _, row := range append([][]string{t.Head}, t.Rows...) {
		safe := make([]string, len(row))
		for i, cell := range row {
			safe[i] = figure.Plain(cell)
		}
		_ = c.Write(safe) // Flush and Error tell
	}
	c.Flush()
	return c.Error()
}

// dataOf is a figure as a table: its points, without the single trials, which are in its CSV.
func dataOf(f *figure.Figure) Table {
	t := Table{Key: f.Key + "-data", Head: []string{"curve", "what", figure.UnitText(f.X.Label, f.X.Unit), "value",
		"interval", "n"}, Align: "llrrrr"}
	number := func(v float64) string {
		if math.IsNaN(v) {
			return "-"
		}
		return strconv.FormatFloat(v, 'g', 4, 64)
	}
	const shown = 200
	more := fmt.Sprintf("The first %d rows; all of them are in the CSV file.", shown)
	for _, p := range f.Panels {
		if p.Lanes != nil {
			t.Head, t.Align = []string{"curve", "lane", "kind", figure.UnitText("begins", f.X.Unit),
				figure.UnitText("lasts", f.X.Unit), "of"}, "lllrrl"
		}
		for _, c := range p.Curves {
			for _, q := range c.Spans {
				if len(t.Rows) == shown {
					t.Text = more
					return t
				}
				t.Rows = append(t.Rows, []string{c.Name, p.Lanes[q.Lane], string(q.Kind), number(q.From), number(q.To - q.From),
					q.Label})
			}
			for _, q := range c.Points {
				if c.Shape == figure.Bars && math.IsNaN(q.Y) {
					continue // the end of the bar before it
				}
				if len(t.Rows) == shown {
					t.Text = more
					return t
				}
				x, n, interval := number(q.X), "", ""
				if f.X.Names != nil {
					x = f.X.Names[int(math.Round(q.X))]
				}
				if q.N > 0 {
					n = fmt.Sprint(q.N)
				}
				if !math.IsNaN(q.Low) && !math.IsNaN(q.High) {
					interval = number(q.Low) + " to " + number(q.High)
				}
				t.Rows = append(t.Rows, []string{c.Name, figure.UnitText(p.Y.Label, p.Y.Unit), x, number(q.Y), interval, n})
			}
		}
	}
	return t
}

// outcomes counts the trials by how they ended.
func outcomes(trials []*trial) string {
	counts := map[record.Outcome]int{}
	for _, t := range trials {
		counts[t.Outcome]++
	}
	var parts []string
	for _, o := range []record.Outcome{record.Completed, record.Recovered, record.Failed, record.Cancelled,
		record.GuestEnded, record.Unfinished} {
		if counts[o] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[o], o))
		}
	}
	return strings.Join(parts, ", ")
}
