package report

import (
	"fmt"
	"strings"
	"testing"
)

// TestTicks: an axis is marked at the values that were tried; labels do not run into each other, and the last is always
// there.
func TestTicks(t *testing.T) {
	many := make([]float64, tickLimit+1)
	for i := range many {
		many[i] = float64(i)
	}
	for _, c := range []struct {
		values []float64
		log    bool
		want   string
	}{
		{[]float64{32, 64, 128, 256}, false, "32 64 128 256"},
		{[]float64{0, 1000, 4000, 16000}, false, "0 1000 4000 16k"},
		{[]float64{1, 2, 3, 1000}, false, "1 _ _ 1000"},
		{[]float64{1, 2, 3, 1000}, true, "1 2 3 1000"},
		{[]float64{100, 999, 1000}, false, "100 _ 1000"},
		{[]float64{5}, false, "5"},
		{many, false, ""}, // of so many the usual places are easier to read
		{many[:tickLimit], false, "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"},
		{nil, false, ""},
	} {
		f := &Figure{X: Axis{Log: c.log}, Panels: []Panel{{Curves: []Curve{{}}}}}
		for _, v := range c.values {
			f.X.Ticks = append(f.X.Ticks, Tick{Value: v})
			f.Panels[0].Curves[0].Points = append(f.Panels[0].Curves[0].Points, Point{X: v})
		}
		f.frame()
		var got []string
		for _, tick := range f.X.Ticks {
			if tick.Label == "" {
				tick.Label = "_"
			}
			got = append(got, tick.Label)
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%v: %q, want %q", c.values, text, c.want)
		}
	}
}

// TestPageOrder: results that are read at a glance, then figures, then long tables.
func TestPageOrder(t *testing.T) {
	long := Table{Key: "results", Title: "Results by cell", Head: []string{"cell"}}
	for i := range glance + 1 {
		long.Rows = append(long.Rows, []string{fmt.Sprint(i)})
	}
	short := long
	short.Rows = long.Rows[:glance]
	environment := Table{Key: "environment", Title: "Environment", Head: []string{"what"}}
	for _, c := range []struct {
		tables []Table
		want   []string
	}{
		{[]Table{short, environment}, []string{`<h2 id="results">`, `<h2 id="figures">`, `<h2 id="tables">`, `<h2 id="environment">`}},
		{[]Table{long, environment}, []string{`<h2 id="figures">`, `<h2 id="tables">`, `<h2 id="results">`, `<h2 id="environment">`}},
	} {
		page, err := (&Report{Title: "x", Tables: c.tables}).HTML()
		if err != nil {
			t.Fatal(err)
		}
		rest := string(page)
		for _, heading := range c.want {
			_, after, ok := strings.Cut(rest, heading)
			if !ok {
				t.Fatalf("%s is not at its place", heading)
			}
			rest = after
		}
	}
}
