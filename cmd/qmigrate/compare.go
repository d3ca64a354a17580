package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/record/units"
	"qmigrate/engine/report/compare"
	"qmigrate/engine/report/stats"
)

func (c *commands) compare() *cli.Command {
	return &cli.Command{
		Name:      "compare",
		Usage:     "two sets of records side by side, with statistics",
		ArgsUsage: "A [B...]",
		Description: "Each folder is a group, and the first is what the others are compared with; or, with --by, each " +
			"value of a factor, a column or the plan. Migrations are compared with " +
			"those of the other group that agree in everything that varies within a group. Of one folder without --by the " +
			"medians are printed.\n\n" +
			"A median stands with its 95 % interval, the change with that of Hodges and Lehmann's shift; p is of Mann and " +
			"Whitney's test after Holm's correction over the whole table. No value " +
			"is dropped, and outliers are named. Only completed migrations are compared; the others are counted. " +
			"docs/statistics.md has the formulas. The exit status is 0 whether or not there is a difference.\n\n" +
			"  qmigrate compare before after\n" +
			"  qmigrate compare out --by max-bandwidth --where mode=pre-copy\n" +
			"  qmigrate compare out --by mode --measure total_wall_ns --measure downtime_wire_ns\n" +
			"  qmigrate compare before after --measure downtime_wire_ns --measure anatomy",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "by", Usage: "`NAME` a factor, a column or a value of the plan: each of its values is a group"},
			&cli.StringFlag{Name: "base", Usage: "`VALUE` the group that the others are compared with; the first if not given"},
			&cli.StringSliceFlag{Name: "where", Usage: "`NAME=VALUE` only records with that value; may be given again"},
			&cli.StringSliceFlag{Name: "measure", Usage: "`COLUMN` what to compare, as `qmigrate export --columns` lists it; " +
				"anatomy is every part of the downtime; may be given again; time, downtimes, bytes, passes and what the guest " +
				"felt if not given"},
			&cli.BoolFlag{Name: "pool", Usage: "mix what else differs within a group"},
			&cli.BoolFlag{Name: "json", Category: aboutOutput,
				Usage: "print the comparison, one line of JSON, instead of the table"},
			&cli.BoolFlag{Name: "csv", Category: aboutOutput,
				Usage: "print one line a cell, measure and group instead of the table"},
		},
		Action: c.runCompare,
	}
}

func (c *commands) runCompare(x *cli.Context) error {
	folders, err := recordFolders(x, "compare")
	if err != nil {
		return err
	}
	q := compare.Question{Folders: folders, By: x.String("by"), Base: x.String("base"), Measures: x.StringSlice("measure"),
		Pool: x.Bool("pool")}
	for _, text := range x.StringSlice("where") {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return usagef("--where %s: write it as NAME=VALUE, as in --where mode=pre-copy", text)
		}
		q.Where = append(q.Where, compare.Where{Name: name, Value: value})
	}
	if x.Bool("json") && x.Bool("csv") {
		return usagef("--json and --csv are two ways to print one answer: leave one out")
	}
	for i, f := range folders {
		if slices.Contains(folders[:i], f) {
			return usagef("%s is named twice: a group compared with itself differs in nothing", f)
		}
	}
	a, err := compare.Ask(q)
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	switch {
	case x.Bool("json"):
		return json.NewEncoder(c.stdout).Encode(a)
	case x.Bool("csv"):
		return writeComparison(c.stdout, a)
	}
	printComparison(c.stdout, a)
	return nil
}

// writeComparison is one line a cell, measure and group. Values are in the measure's unit; an empty cell does not apply
// or cannot be had.
func writeComparison(to io.Writer, a *compare.Answer) error {
	w := csv.NewWriter(to)
	_ = w.Write([]string{"cell", "measure", "unit", "group", "n", "median", "median_low", "median_high", "interval_level",
		"outliers", "against", "shift", "shift_low", "shift_high",
		"shift_level", "change_percent", "cliff_delta", "u", "p", "p_method", "p_holm"})
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	interval := func(e stats.Estimate) []string {
		if e.Interval == nil {
			return []string{"", "", ""}
		}
		return []string{number(e.Interval.Low), number(e.Interval.High), number(e.Interval.Level)}
	}
	for _, cell := range a.Cells {
		for _, r := range cell.Rows {
			line := []string{cell.Name, r.Column, r.Unit, r.Group, strconv.Itoa(r.Median.N), number(r.Median.Value)}
			line = append(append(line, interval(r.Median)...), strconv.Itoa(len(r.Outliers)))
			if x := r.Against; x != nil {
				change := ""
				if x.Relative != nil {
					change = number(*x.Relative)
				}
				line = append(append(line, a.Groups[0].Name, number(x.Shift.Value)), interval(x.Shift)...)
				line = append(line, change, number(x.Cliff), number(x.Test.Statistic), number(x.Test.P), x.Test.Method,
					number(x.Holm))
			} else {
				line = append(line, make([]string, 11)...)
			}
			_ = w.Write(line)
		}
	}
	w.Flush()
	return w.Error()
}

// printComparison prints the groups, one table a cell, and what to mind.
func printComparison(w io.Writer, a *compare.Answer) {
	differs := map[string]bool{}
	for _, g := range a.Groups {
		text := plural(int64(g.Completed), "migration", "migrations")
		if len(g.Others) > 0 {
			text += "; not compared: " + compare.OthersText(g.Others)
		}
		name := g.Name
		if a.By != "" {
			name = a.By + " " + name
		}
		for _, k := range slices.Sorted(maps.Keys(g.Differs)) {
			text += fmt.Sprintf("; %s %s", k, first(g.Differs[k], "(none)"))
			differs[k] = true
		}
		fmt.Fprintln(w, fold(name+": "+text, 2, page(w)))
	}
	if len(differs) > 1 && len(a.Groups) > 1 {
		fmt.Fprintln(w, fold(fmt.Sprintf("the groups differ in %s at once: what of it makes a difference cannot be told",
			strings.Join(slices.Sorted(maps.Keys(differs)), ", ")), 2, page(w)))
	}
	var notes []string
	for _, cell := range a.Cells {
		fmt.Fprintln(w)
		if cell.Name != "" {
			fmt.Fprintln(w, fold(cell.Name, 2, page(w)))
		}
		t := table{Align: "llrrlrlr"}
		if len(a.Groups) > 1 {
			t.Row("measure", "group", "n", "median", "95 % interval", "change", "95 % interval", "p")
		} else {
			t.Align = "lrrl"
			t.Row("measure", "n", "median", "95 % interval")
		}
		last := ""
		for _, r := range cell.Rows {
			title := r.Title
			if title == last {
				title = ""
			}
			last = r.Title
			row := []string{title, r.Group, count(int64(r.Median.N)), valueText(r.Unit, r.Median.Value),
				intervalText(r.Unit, r.Median)}
			if len(a.Groups) == 1 {
				t.Row(slices.Delete(row, 1, 2)...)
			} else {
				t.Row(append(row, changeCells(r)...)...)
			}
			if len(r.Outliers) > 0 {
				notes = append(notes, outlierText(cell.Name, r))
			}
		}
		t.Print(w, page(w))
	}
	if len(a.Groups) > 1 {
		fmt.Fprintln(w, "\n"+fold(fmt.Sprintf("p: Mann-Whitney, after Holm over %s, of which %d differ (*: p below %s). "+
			"Change: Hodges-Lehmann shift, in percent of %s's median.",
			plural(int64(a.Family), "comparison", "comparisons"), called(a), strconv.FormatFloat(math.Round((1-a.Level)*1e6)/1e6,
				'g', -1, 64), a.Groups[0].Name), 2, page(w)))
	}
	for _, d := range a.Drifts {
		way := "rises"
		if d.Test.Statistic < 0 {
			way = "falls"
		}
		fmt.Fprintln(w, fold(fmt.Sprintf("drift: %s of %s %s over the order of the trials (Kendall's tau %.2f, p %s after "+
			"Holm, n %d): the trials are no independent readings of one thing",
			d.Title, d.Group, way, d.Test.Statistic, pText(d.Holm), d.N), 2, page(w)))
	}
	const most = 12
	for i, n := range notes {
		if i == most {
			fmt.Fprintf(w, "outliers: and in %s; --json has all\n", plural(int64(len(notes)-most), "more row", "more rows"))
			break
		}
		fmt.Fprintln(w, fold(n, 2, page(w)))
	}
	for _, text := range a.Warnings {
		fmt.Fprintln(w, fold("warning: "+text, 2, page(w)))
	}
}

// called is how many of the comparisons are a difference.
func called(a *compare.Answer) (n int) {
	for _, cell := range a.Cells {
		for _, r := range cell.Rows {
			if r.Against != nil && r.Against.Holm < 1-a.Level {
				n++
			}
		}
	}
	return n
}

// changeCells are the change with its interval, and p.
func changeCells(r compare.Row) []string {
	x := r.Against
	if x == nil {
		return []string{"", "", ""}
	}
	p := pText(x.Holm)
	if x.Holm < 1-stats.Level {
		p += " *"
	} else {
		p += "  "
	}
	if x.Test.Method == stats.Equal {
		p = "same  "
	}
	scale, unit := 1.0, r.Unit
	if x.Relative != nil && (r.Unit == "ns" || strings.HasPrefix(r.Unit, "bytes")) {
		scale, unit = *x.Relative/x.Shift.Value, "%"
		if x.Shift.Value == 0 {
			scale = 100 / math.Abs(x.A.Value)
		}
	}
	signed := func(v float64) string {
		text := valueText(unit, v*scale)
		if v > 0 {
			text = "+" + text
		}
		return text
	}
	interval := x.Shift.Note()
	if in := x.Shift.Interval; in != nil {
		interval = "[" + signed(in.Low) + ", " + signed(in.High) + "]"
	}
	return []string{signed(x.Shift.Value), interval, p}
}

func intervalText(unit string, e stats.Estimate) string {
	if e.Interval == nil {
		return e.Note()
	}
	return "[" + valueText(unit, e.Interval.Low) + ", " + valueText(unit, e.Interval.High) + "]"
}

// valueText prints a value of a measure with its unit.
func valueText(unit string, v float64) string {
	switch unit {
	case "ns":
		return units.FormatDuration(time.Duration(math.Round(v)))
	case "bytes":
		return units.FormatSize(int64(math.Round(v)))
	case "bytes/s":
		return units.FormatRate(v)
	case "percent", "%":
		return strconv.FormatFloat(math.Round(v*10)/10+0, 'f', 1, 64) + " %" // + 0: no -0.0
	}
	text := strconv.FormatFloat(v, 'g', 4, 64)
	if v == math.Trunc(v) && math.Abs(v) < 1e15 {
		text = count(int64(v))
	}
	return text
}

func pText(p float64) string {
	switch {
	case p < 0.0001:
		return "<0.0001"
	case p > 0.9995:
		return "1"
	}
	return strconv.FormatFloat(p, 'g', 2, 64)
}

func outlierText(cell string, r compare.Row) string {
	const most = 5
	where := r.Title + ", " + r.Group
	if cell != "" {
		where += ", " + cell
	}
	var values []string
	for i, v := range r.Outliers {
		if i == most {
			values = append(values, fmt.Sprintf("%d more", len(r.Outliers)-most))
			break
		}
		values = append(values, valueText(r.Unit, v))
	}
	return fmt.Sprintf("outliers (kept): %s: %s", where, strings.Join(values, ", "))
}
