package report

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"

	"qmigrate/engine/report/figure"
)

// The page's parts. uPlot is the file of the npm package's dist folder, unchanged; its licence lies beside it.
//
//go:embed assets
var assets embed.FS

const uPlotVersion = "1.6.32"

// The page's data, in short keys.
type (
	pageData struct {
		Hatches [figure.Styles]string    `json:"hatches"`
		Dashes  [figure.Styles][]float64 `json:"dashes"`
		Figures []pageFigure             `json:"figures"`
	}
	pageFigure struct {
		Key    string      `json:"key"`
		X      pageAxis    `json:"x"`
		Panels []pagePanel `json:"panels"`
		Marks  []pageMark  `json:"marks,omitempty"`
	}
	pageAxis struct {
		Label string        `json:"label"`
		Unit  string        `json:"unit,omitempty"`
		Log   bool          `json:"log,omitempty"`
		Min   float64       `json:"min"`
		Max   float64       `json:"max"`
		Names []string      `json:"names,omitempty"`
		Ticks []figure.Tick `json:"ticks,omitempty"`
	}
	pagePanel struct {
		Y       pageAxis    `json:"y"`
		Stacked bool        `json:"stacked,omitempty"`
		Lanes   []string    `json:"lanes,omitempty"`
		Curves  []pageCurve `json:"curves"`
		Lines   []pageLine  `json:"lines,omitempty"`
	}
	pageCurve struct {
		Name   string        `json:"name"`
		Style  int           `json:"style"`
		Shape  figure.Shape  `json:"shape"`
		Marked bool          `json:"marked,omitempty"`
		Points []coordinates `json:"p,omitempty"` // x, y, low, high, n
		Trials []coordinates `json:"t,omitempty"` // x, y
		Spans  []pageSpan    `json:"s,omitempty"`
	}
	pageSpan struct {
		From  float64     `json:"from"`
		To    float64     `json:"to"`
		Low   float64     `json:"low"` // y
		High  float64     `json:"high"`
		Lane  int         `json:"lane"`
		Kind  figure.Kind `json:"kind"`
		Label string      `json:"label,omitempty"`
	}
	pageMark struct {
		X     float64 `json:"x"`
		Label string  `json:"label"`
	}
	pageLine struct {
		Y     float64 `json:"y"`
		Slope float64 `json:"slope"`
		Label string  `json:"label"`
	}
)

// coordinates are numbers of one point; what is not one is null, and nulls at the end are left out.
type coordinates []float64

func (c coordinates) MarshalJSON() ([]byte, error) {
	b := []byte{'['}
	end := len(c)
	for end > 2 && (math.IsNaN(c[end-1]) || math.IsInf(c[end-1], 0)) {
		end--
	}
	for i, v := range c[:end] {
		if i > 0 {
			b = append(b, ',')
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			b = append(b, "null"...)
		} else {
			b = strconv.AppendFloat(b, v, 'g', 7, 64)
		}
	}
	return append(b, ']'), nil
}

func pageFigureOf(f *figure.Figure) pageFigure {
	out := pageFigure{Key: f.Key, X: pageAxis(f.X)}
	for _, m := range f.Marks {
		out.Marks = append(out.Marks, pageMark(m))
	}
	for _, p := range f.Panels {
		panel := pagePanel{Y: pageAxis(p.Y), Stacked: p.Stacked, Lanes: p.Lanes}
		for _, l := range p.Lines {
			panel.Lines = append(panel.Lines, pageLine(l))
		}
		for _, c := range p.Curves {
			curve := pageCurve{Name: c.Name, Style: c.Style, Shape: c.Shape, Marked: c.Marked}
			for _, q := range c.Points {
				n := float64(q.N)
				if q.N == 0 {
					n = math.NaN()
				}
				curve.Points = append(curve.Points, coordinates{q.X, q.Y, q.Low, q.High, n})
			}
			for _, q := range c.Dots() {
				curve.Trials = append(curve.Trials, coordinates{q.X, q.Y})
			}
			for _, q := range c.Spans {
				low, high := q.Kind.Reach()
				bottom := float64(len(p.Lanes) - 1 - q.Lane)
				curve.Spans = append(curve.Spans, pageSpan{q.From, q.To, bottom + low, bottom + high, q.Lane, q.Kind, q.Label})
			}
			panel.Curves = append(panel.Curves, curve)
		}
		out.Panels = append(out.Panels, panel)
	}
	return out
}

// Side is the class of a column's cells, for the page's template: right, left, or a text that may be wrapped.
func (t Table) Side(column int) string {
	switch {
	case column < len(t.Align) && t.Align[column] == 'r':
		return "r"
	case column == len(t.Head)-1:
		return "w"
	}
	return "l"
}

// pageLegend is a curve's entry in a figure's legend.
type pageLegend struct {
	Name, Dashes, Marker, MarkerClass, Hatch string
	Style                                    int
	Joined, Marked                           bool
}

func legendOf(c figure.Curve) pageLegend {
	l := pageLegend{Name: c.Name, Style: c.Style % figure.Styles, Joined: c.Shape != figure.Apart, Marked: c.Marked,
		MarkerClass: "solid"}
	var dash []string
	for _, d := range figure.Dashes(c.Style) {
		dash = append(dash, strconv.FormatFloat(d, 'g', -1, 64))
	}
	l.Dashes = strings.Join(dash, " ")
	l.Marker = [figure.Styles]string{
		"M21.5 7a4.5 4.5 0 1 1-9 0a4.5 4.5 0 1 1 9 0", "M13 3H21V11H13Z", "M17 2L22 11H12Z", "M17 1L23 7L17 13L11 7Z",
		"M13 3L21 11M21 3L13 11", "M21.5 7a4.5 4.5 0 1 1-9 0a4.5 4.5 0 1 1 9 0", "M13 3H21V11H13Z", "M11 7H23M17 1V13",
	}[l.Style]
	if l.Style >= 4 {
		l.MarkerClass = "open"
	}
	for _, k := range figure.Hatch(c.Style) {
		l.Hatch += map[rune]string{'/': "M1 13L13 1M11 13L23 1M21 13L33 1", '\\': "M1 1L13 13M11 1L23 13M21 1L33 13",
			'-': "M1 5H33M1 9H33", '|': "M6 1V13M12 1V13M18 1V13M24 1V13M30 1V13"}[k]
	}
	return l
}

// palette is the page's colours as style sheet: the dark ones where the reader prefers them and does not print.
func palette() string {
	one := func(ground, text, faint, rule, link string, c [figure.Styles]string) string {
		var b strings.Builder
		fmt.Fprintf(&b, "--ground:%s;--text:%s;--faint:%s;--rule:%s;--link:%s;", ground, text, faint, rule, link)
		for i, hex := range c {
			fmt.Fprintf(&b, "--c%d:%s;", i, hex)
		}
		return b.String()
	}
	day := one(figure.LightGround, figure.LightText, figure.LightFaint, "#d9d9d9", figure.Light()[0], figure.Light())
	night := one(figure.DarkGround, figure.DarkText, figure.DarkFaint, "#3a3f45", figure.Dark()[0], figure.Dark())
	var b strings.Builder
	fmt.Fprintf(&b, ":root{%s}\n@media screen and (prefers-color-scheme:dark){:root:not(.printing){%s}}\n", day, night)
	for i := range figure.Styles {
		fmt.Fprintf(&b, ".c%d{color:var(--c%d)}\n", i, i)
	}
	return b.String()
}

// glance is how many rows of results are read at a glance.
const glance = 8

// HTML is the page, whole in itself: it asks no network for anything, and its policy forbids it.
func (r *Report) HTML() ([]byte, error) {
	read := func(name string) string {
		b, err := assets.ReadFile("assets/" + name)
		if err != nil {
			panic(err) // they are in the program
		}
		return string(b)
	}
	type drawn struct {
		*figure.Figure
		Index, Number int
		Legend        []pageLegend
		Data          Table
		Areas         bool
	}
	data := pageData{}
	for i := range figure.Styles {
		data.Hatches[i], data.Dashes[i] = figure.Hatch(i), figure.Dashes(i)
	}
	var figures []drawn
	for i, f := range r.Figures {
		data.Figures = append(data.Figures, pageFigureOf(f))
		x := drawn{Figure: f, Index: i, Number: i + 1, Data: dataOf(f), Areas: f.Areas()}
		for _, c := range f.Curves() {
			x.Legend = append(x.Legend, legendOf(c))
		}
		figures = append(figures, x)
	}
	short := 0 // the tables of results that are read at a glance stand before the figures
	for short < len(r.Tables) && strings.HasSuffix(r.Tables[short].Key, "results") && len(r.Tables[short].Rows) <= glance {
		short++
	}
	b, err := json.Marshal(data) // which escapes <, > and &
	if err != nil {
		return nil, fmt.Errorf("encode figures: %w", err)
	}
	uplot, script := read("uPlot.iife.min.js"), read("page.js")
	page, err := template.New("page").Parse(read("page.html"))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = page.Execute(&out, map[string]any{
		"Report": r, "Answer": r.Tables[:short], "Tables": r.Tables[short:], "Figures": figures, "Data": template.JS(b), "UPlotVersion": uPlotVersion,
		"Style": template.CSS(read("uPlot.min.css") + palette() +
			read("page.css")), "UPlot": template.JS(uplot), "Script": template.JS(script),
		"Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src " + hashOf(uplot) + " " +
			hashOf(script),
	})
	if err != nil {
		return nil, fmt.Errorf("write page: %w", err)
	}
	return out.Bytes(), nil
}

// hashOf is how a policy names a script that may run: no other one can, whatever a record holds.
func hashOf(script string) string {
	sum := sha256.Sum256([]byte(script))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
