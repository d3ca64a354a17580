// Package figure is figures as data, and two of their renderings: an SVG file and a CSV file. The page draws the same
// data by its script. Axes, styles and units are part of the data, so that no rendering can say something else.
//
// It knows no record and decides nothing about what is worth a figure: engine/report does. It imports nothing of ours.
package figure

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Figure is one figure as data: everything that its drawings and its file of numbers show.
type Figure struct {
	Key     string // names its files and its place in the page
	Title   string
	Caption Caption
	X       Axis
	Panels  []Panel // one above the other, over the same x
	Marks   []Mark  // instants, through all panels

	Shows []string // which metrics of which trials against which factor: nothing is drawn twice
}

// Caption is what a reader has to know to use a figure.
type Caption struct {
	Measured    string   // what is drawn
	Definitions []string // of each number, with the record's key
	N           string   // how many trials
	Command     string   // that made it
	Notes       []string
}

// Axis is a scale. Its numbers are in its unit.
type Axis struct {
	Label    string
	Unit     string
	Log      bool
	Min, Max float64
	Names    []string // categories: the i-th is at i, and the axis has no other places
	Ticks    []Tick   // where the values are that were tried; nil: the usual places
}

// Tick is a place of an axis that is marked; without a label where the one beside it leaves no room.
type Tick struct {
	Value float64 `json:"v"`
	Label string  `json:"label,omitempty"`
}

// Panel is curves over one y axis.
type Panel struct {
	Y       Axis
	Stacked bool // bars, each on the one before
	// of the curves' spans, from the top: names in the place of a scale of y. Points are not drawn then.
	Lanes  []string
	Curves []Curve
	Lines  []Line
}

// Shape is how a curve's points are joined.
type Shape string

// The shapes.
const (
	Apart Shape = "apart" // points alone
	Lines Shape = "lines"
	Steps Shape = "steps" // the value holds until the next point
	// where they are not stacked: each as wide as to the next point, so that the last one only ends the one before it
	Bars Shape = "bars"
)

// Curve is one series. Style numbers its colour, its dashes, its marker and its hatching, so that colour is never the
// only mark; the same name has the same style in all panels of a figure.
type Curve struct {
	Name   string
	Style  int
	Shape  Shape
	Marked bool    // points have markers
	Points []Point // in the order of x
	Trials []Point // each trial's own value, behind the points
	Spans  []Span  // in a panel with lanes
}

// Span is a bar along x in a lane.
type Span struct {
	From, To float64 // x
	Lane     int     // of the panel's
	Kind     Kind
	Label    string // what it is in words, beside the curve's name
}

// Kind is how a span is drawn.
type Kind string

// The kinds, from the top of a lane to its bottom.
const (
	Main   Kind = "main"   // high
	Beside Kind = "beside" // low and pale
	Detail Kind = "detail" // thin: what another span consists of
)

// Reach is where in its lane a span of that kind is drawn: from low to high, 0 is the lane's bottom and 1 its top.
func (k Kind) Reach() (low, high float64) {
	switch k {
	case Beside:
		return 0.36, 0.56
	case Detail:
		return 0.1, 0.32
	}
	return 0.6, 0.94
}

// Point is a value; a NaN y is a gap, a NaN Low or High no interval.
type Point struct {
	X, Y      float64
	Low, High float64
	N         int
	Label     string // x in words, where it is a level; the id of a single trial
}

// Mark is an instant.
type Mark struct {
	X     float64
	Label string
}

// Line is y = Slope x + Y: what would be the case if something held.
type Line struct {
	Y, Slope float64
	Label    string
}

// Styles is how many curves can be told from each other.
const Styles = 8

// names are the curves of all panels, each once, in their order.
func (f *Figure) Curves() []Curve {
	var all []Curve
	seen := map[string]bool{}
	for _, p := range f.Panels {
		for _, c := range p.Curves {
			if !seen[c.Name] {
				seen[c.Name] = true
				all = append(all, c)
			}
		}
	}
	return all
}

// Drawn tells whether there is anything to draw.
func (f *Figure) Drawn() bool {
	for _, p := range f.Panels {
		for _, c := range p.Curves {
			if len(c.Points) > 0 || len(c.Trials) > 0 || len(c.Spans) > 0 {
				return true
			}
		}
	}
	return false
}

// Areas tells whether the curves are areas, which a legend shows as such.
func (f *Figure) Areas() bool {
	return slices.ContainsFunc(f.Panels, func(p Panel) bool {
		return p.Stacked || p.Lanes != nil || slices.ContainsFunc(p.Curves, func(c Curve) bool { return c.Shape == Bars })
	})
}

// dotLimit is how many single trials are drawn at one place.
const dotLimit = 400

// Dots are the trials that are drawn one by one: all of them, or where too many stand at one place, the outermost and
// evenly spaced ones between. The CSV has all.
func (c *Curve) Dots() []Point {
	at := map[float64][]Point{}
	var places []float64
	for _, p := range c.Trials {
		if at[p.X] == nil {
			places = append(places, p.X)
		}
		at[p.X] = append(at[p.X], p)
	}
	var out []Point
	for _, x := range places {
		points := at[x]
		if n := len(points); n > dotLimit {
			slices.SortFunc(points, func(a, b Point) int { return cmp.Compare(a.Y, b.Y) })
			const outer = dotLimit / 4 // from each end
			some := slices.Concat(points[:outer], points[n-outer:])
			for i := range dotLimit - 2*outer {
				some = append(some, points[outer+i*(n-2*outer)/(dotLimit-2*outer)])
			}
			points = some
		}
		out = append(out, points...)
	}
	return out
}

// Frame gives the axes their limits: what is drawn, zero on linear axes of y, and a margin.
func (f *Figure) Frame() {
	var xs []float64
	fewer := false
	for i := range f.Panels {
		p := &f.Panels[i]
		for j := range p.Curves {
			fewer = fewer || len(p.Curves[j].Dots()) < len(p.Curves[j].Trials)
		}
		var ys []float64
		tops := map[float64]float64{}
		for _, c := range p.Curves {
			for _, q := range append(c.Points[:len(c.Points):len(c.Points)], c.Trials...) {
				xs = append(xs, q.X)
				if p.Stacked {
					tops[q.X] += max(q.Y, 0)
					ys = append(ys, tops[q.X])
					continue
				}
				ys = append(ys, q.Y, q.Low, q.High)
			}
			for _, q := range c.Spans {
				xs = append(xs, q.From, q.To)
			}
		}
		if p.Lanes != nil { // the first is at the top, below the labels of the marks
			p.Y.Min, p.Y.Max = 0, float64(len(p.Lanes))+0.4
			continue
		}
		p.Y.limits(ys, true)
	}
	if fewer {
		f.Caption.Notes = append(f.Caption.Notes,
			fmt.Sprintf("Where more than %d trials stand at one place, the outermost and evenly spaced ones between are drawn "+
				"as dots; the CSV file has each.", dotLimit))
	}
	for _, m := range f.Marks {
		xs = append(xs, m.X)
	}
	if f.X.Names != nil {
		f.X.Log, f.X.Min, f.X.Max = false, -0.6, float64(len(f.X.Names))-0.4
		return
	}
	f.X.limits(xs, false)
	f.X.label()
}

// tickLimit is how many values an axis is marked at; of more the usual places are easier to read.
const tickLimit = 16

// label gives the ticks their labels, from the left, as far as they do not run into each other, and the last one its
// own.
func (a *Axis) label() {
	if len(a.Ticks) > tickLimit {
		a.Ticks = nil
	}
	const letters = 70 // of an axis' length, as wide as the narrowest drawing has it
	at := func(v float64) float64 {
		if a.Log {
			return letters * math.Log(v/a.Min) / math.Log(a.Max/a.Min)
		}
		return letters * (v - a.Min) / (a.Max - a.Min)
	}
	begin := func(t Tick) float64 { return at(t.Value) - float64(len(tickLabel(t.Value)))/2 }
	end, last := math.Inf(-1), len(a.Ticks)-1
	for i := range a.Ticks {
		t := &a.Ticks[i]
		room := begin(a.Ticks[last])
		if i == last {
			room = math.Inf(1)
		}
		if width := float64(len(tickLabel(t.Value))); begin(*t) > end+1 && begin(*t)+width+1 < room {
			t.Label, end = tickLabel(t.Value), begin(*t)+width
		}
	}
}

// limits sets Min and Max around the values. A logarithmic axis has whole decades where that costs little, and becomes
// linear where a value is not above 0.
func (a *Axis) limits(values []float64, zero bool) {
	low, high := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			low, high = min(low, v), max(high, v)
		}
	}
	if low > high {
		low, high = 0, 1
	}
	if a.Log = a.Log && low > 0; a.Log {
		a.Min, a.Max = low/1.3, high*1.3
		if a.Max/a.Min < 10 { // a decade at least, or there would be no labels
			middle := math.Sqrt(a.Min * a.Max)
			a.Min, a.Max = middle/4, middle*4
		}
		return
	}
	if zero {
		low, high = min(low, 0), max(high, 0)
	}
	margin := 0.06 * (high - low)
	if margin == 0 {
		margin = max(math.Abs(high)*0.1, 0.5)
	}
	a.Min, a.Max = low-margin, high+margin
	if zero && low == 0 {
		a.Min = 0
	}
}

// WriteCSV writes every number of the figure: one row a point.
func (f *Figure) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	number := func(v float64) string {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return ""
		}
		return strconv.FormatFloat(v, 'g', 10, 64)
	}
	// Flush and Error tell. A span is a row whose x is its beginning and whose y is its length.
	_ = c.Write([]string{"panel", "curve", "what", "x", "x_unit", "x_label", "y", "y_unit", "low", "high", "n"})
	for _, p := range f.Panels {
		for _, curve := range p.Curves {
			for i, points := range [][]Point{curve.Points, curve.Trials} {
				for _, q := range points {
					what, n := "point", strconv.Itoa(q.N)
					if i == 1 {
						what = "trial"
					}
					x := number(q.X)
					label := q.Label
					if f.X.Names != nil {
						x = f.X.Names[int(math.Round(q.X))]
					}
					if q.N == 0 {
						n = ""
					}
					_ = c.Write([]string{Plain(p.Y.Label), Plain(curve.Name), what, Plain(x), f.X.Unit, Plain(label), number(q.Y),
						p.Y.Unit, number(q.Low), number(q.High), n})
				}
			}
			for _, q := range curve.Spans {
				_ = c.Write([]string{p.Lanes[q.Lane], Plain(curve.Name), string(q.Kind), number(q.From), f.X.Unit, Plain(q.Label),
					number(q.To - q.From), f.X.Unit, "", "", ""})
			}
		}
	}
	c.Flush()
	return c.Error()
}

// Plain keeps a text that came from a record from being a formula where a spreadsheet opens the file.
func Plain(text string) string {
	if text != "" && strings.ContainsRune("=+-@\t\r", rune(text[0])) {
		if _, err := strconv.ParseFloat(text, 64); err != nil {
			return "'" + text
		}
	}
	return text
}

// Text is the caption in one line.
func (c Caption) Text() string {
	parts := []string{c.Measured, c.N + "."}
	parts = append(parts, strings.Join(c.Definitions, "; ")+".")
	parts = append(parts, c.Notes...)
	return strings.Join(append(parts, "Made by: "+c.Command), " ")
}

// UnitText is a label with its unit.
func UnitText(label, unit string) string {
	if unit == "" {
		return label
	}
	return label + " (" + unit + ")"
}
