package figure

import (
	"bytes"
	"fmt"
	"html"
	"image/color"
	"math"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The drawing's measures, in points.
const (
	svgWidth    = 480
	panelHeight = 190
	legendLine  = 14
	fontSize    = 9
)

// SVG draws the figure.
func (f *Figure) SVG() ([]byte, error) {
	curves := f.Curves()
	columns := 2
	for _, c := range curves {
		if style(fontSize, draw.XLeft, draw.YCenter).Width(c.Name) > svgWidth/2-40 {
			columns = 1
		}
	}
	rows := (len(curves) + columns - 1) / columns
	height := vg.Length(len(f.Panels)*panelHeight + rows*legendLine + 24 + f.tickDepth())
	canvas := vgsvg.New(svgWidth, height)
	dc := draw.New(canvas)
	dc.FillText(style(11, draw.XLeft, draw.YTop), vg.Point{X: 8, Y: height - 6}, f.Title)
	f.legend(dc, curves, columns, height-24)
	plots := make([][]*plot.Plot, len(f.Panels))
	for i := range f.Panels {
		plots[i] = []*plot.Plot{f.plot(i)}
	}
	left := vg.Length(6)
	if f.tilted() { // the first name begins left of its tick
		left += 40
	}
	area := draw.Crop(dc, left, -14, 4, -vg.Length(rows*legendLine)-26)
	for i, row := range plot.Align(plots, draw.Tiles{Rows: len(plots), Cols: 1, PadY: 8}, area) {
		plots[i][0].Draw(row[0])
	}
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("draw %s: %w", f.Key, err)
	}
	out := b.String()
	if at := strings.Index(out, "<svg"); at >= 0 { // what a screen reader says in the drawing's place
		if end := strings.IndexByte(out[at:], '>'); end >= 0 {
			end += at + 1
			out = out[:end] + fmt.Sprintf("\n<title>%s</title>\n<desc>%s</desc>", html.EscapeString(f.Title),
				html.EscapeString(f.Caption.Text())) + out[end:]
		}
	}
	return []byte(out), nil
}

// style is the text of labels.
func style(size vg.Length, x text.XAlignment, y text.YAlignment) text.Style {
	return text.Style{Color: color.Black, Font: font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, size),
		XAlign: x, YAlign: y, Handler: plot.DefaultTextHandler}
}

// tilted tells whether the names of categories are too long to stand side by side.
func (f *Figure) tilted() bool {
	longest := 0
	for _, name := range f.X.Names {
		longest = max(longest, len(name))
	}
	return float64(longest*len(f.X.Names))*fontSize*0.55 > svgWidth-80
}

// tickDepth is the room for tilted names.
func (f *Figure) tickDepth() int {
	if !f.tilted() {
		return 0
	}
	longest := 0
	for _, name := range f.X.Names {
		longest = max(longest, len(name))
	}
	return min(longest*3, 150)
}

// legend draws what each style means; panels do not repeat it.
func (f *Figure) legend(dc draw.Canvas, curves []Curve, columns int, top vg.Length) {
	areas := f.Areas()
	for i, c := range curves {
		x := vg.Length(8 + (i%columns)*svgWidth/columns)
		y := top - vg.Length((i/columns)*legendLine) - 6
		if areas {
			fill(&dc, box(x, y-4, x+22, y+4), c.Style)
		} else {
			if c.Shape != Apart {
				dc.StrokeLine2(lineStyle(c.Style), x, y, x+22, y)
			}
			if c.Marked {
				dc.DrawGlyph(glyph(c.Style), vg.Point{X: x + 11, Y: y})
			}
		}
		dc.FillText(style(fontSize, draw.XLeft, draw.YCenter), vg.Point{X: x + 28, Y: y}, c.Name)
	}
}

// plot makes one panel.
func (f *Figure) plot(i int) *plot.Plot {
	p, panel := plot.New(), &f.Panels[i]
	p.BackgroundColor = nil
	last := i == len(f.Panels)-1
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle.Font = font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, fontSize)
		a.Tick.Label.Font = a.Label.TextStyle.Font
	}
	if panel.Lanes == nil {
		p.Y.Label.Text = axisText(panel.Y)
	}
	if last {
		p.X.Label.Text = axisText(f.X)
	}
	setAxis(&p.Y, panel.Y)
	setAxis(&p.X, f.X)
	switch {
	case f.X.Names != nil:
		p.X.Tick.Marker = categories(f.X.Names)
		if f.tilted() {
			p.X.Tick.Label.Rotation, p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = math.Pi/5, draw.XRight, draw.YTop
		}
	case f.X.Ticks != nil:
		p.X.Tick.Marker = measured(f.X.Ticks)
	case f.X.Log:
		p.X.Tick.Marker = decades{}
	}
	switch {
	case panel.Lanes != nil:
		p.Y.Tick.Marker = lanes(panel.Lanes)
		p.Y.Padding = 0
	case panel.Y.Log:
		p.Y.Tick.Marker = decades{}
	default:
		p.Y.Tick.Marker = short{}
	}
	if f.X.Names == nil && f.X.Ticks == nil && !f.X.Log {
		p.X.Tick.Marker = short{}
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = gridColour(), gridColour()
	if f.X.Names != nil {
		grid.Vertical.Width = 0
	}
	p.Add(grid, drawing{f, panel})
	return p
}

// axisText is what stands at an axis: what, in which unit, and that it is no linear scale. The page's says the same.
func axisText(a Axis) string {
	if !a.Log {
		return UnitText(a.Label, a.Unit)
	}
	return UnitText(a.Label, strings.TrimPrefix(a.Unit+", log scale", ", "))
}

func gridColour() color.Color { return color.Gray{Y: 0xdd} }

func setAxis(a *plot.Axis, of Axis) {
	a.Min, a.Max = of.Min, of.Max
	a.Padding = 3
	if of.Log {
		a.Scale = plot.LogScale{}
	}
}

// categories are ticks with names.
type categories []string

func (c categories) Ticks(_, _ float64) []plot.Tick {
	ticks := make([]plot.Tick, len(c))
	for i, name := range c {
		ticks[i] = plot.Tick{Value: float64(i), Label: name}
	}
	return ticks
}

// lanes are ticks in the middle of each lane.
type lanes []string

func (l lanes) Ticks(_, _ float64) []plot.Tick {
	ticks := make([]plot.Tick, len(l))
	for i, name := range l {
		ticks[i] = plot.Tick{Value: float64(len(l)-i) - 0.5, Label: name}
	}
	return ticks
}

// measured are ticks at the values that were tried.
type measured []Tick

func (m measured) Ticks(_, _ float64) []plot.Tick {
	ticks := make([]plot.Tick, len(m))
	for i, t := range m {
		ticks[i] = plot.Tick{Value: t.Value, Label: t.Label}
	}
	return ticks
}

// short are the usual ticks with the page's labels.
type short struct{}

func (short) Ticks(low, high float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = tickLabel(ticks[i].Value)
		}
	}
	return ticks
}

// tickLabel is a number on an axis: large ones in thousands, millions, ...
func tickLabel(v float64) string {
	for _, k := range []struct {
		one  float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if math.Abs(v) >= max(k.one, 1e4) {
			return strconv.FormatFloat(v/k.one, 'g', 4, 64) + k.name
		}
	}
	text := strconv.FormatFloat(v, 'g', 4, 64)
	if text == "-0" {
		return "0"
	}
	return text
}

// decades are the ticks of a logarithmic axis, as the page has them: the more of it there is, the fewer in a decade.
type decades struct{}

func (decades) Ticks(low, high float64) []plot.Tick {
	steps := []float64{1}
	if high/low <= 200 {
		steps = []float64{1, 2, 5}
	}
	var ticks []plot.Tick
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for _, d := range steps {
			if v := d * math.Pow(10, e); v >= low && v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: tickLabel(v)})
			}
		}
	}
	return ticks
}

// drawing draws a panel's curves.
type drawing struct {
	f     *Figure
	panel *Panel
}

func (d drawing) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	at := func(q Point) vg.Point { return vg.Point{X: x(q.X), Y: y(q.Y)} }
	for _, m := range d.f.Marks {
		c.StrokeLine2(draw.LineStyle{Color: color.Black, Width: 0.8, Dashes: []vg.Length{4, 3}}, x(m.X), c.Min.Y, x(m.X),
			c.Max.Y)
	}
	if d.panel == &d.f.Panels[0] {
		d.labels(c, x)
	}
	for _, l := range d.panel.Lines {
		if d.f.X.Log || d.panel.Y.Log {
			continue
		}
		line := []vg.Point{{X: x(p.X.Min), Y: y(l.Y + l.Slope*p.X.Min)}, {X: x(p.X.Max), Y: y(l.Y + l.Slope*p.X.Max)}}
		c.StrokeLines(draw.LineStyle{Color: color.Gray{Y: 0x66}, Width: 0.8, Dashes: []vg.Length{1, 3}},
			c.ClipLinesXY(line)...)
		c.FillText(style(8, draw.XRight, draw.YBottom), vg.Point{X: c.Max.X - 4, Y: c.Min.Y + 4}, "dotted: "+l.Label)
	}
	switch {
	case d.panel.Stacked:
		d.stack(c, x, y)
		return
	case d.panel.Lanes != nil:
		d.spans(c, x, y)
		return
	}
	for _, curve := range d.panel.Curves {
		dot := draw.GlyphStyle{Color: faint(curve.Style), Radius: 1.6, Shape: draw.CircleGlyph{}}
		for _, q := range curve.Dots() { // beside the interval, not under it
			p := at(q)
			p.X -= 6
			c.DrawGlyph(dot, p)
		}
	}
	for _, curve := range d.panel.Curves {
		if curve.Shape == Bars {
			for i, q := range curve.Points[:max(len(curve.Points)-1, 0)] {
				if q.Y > 0 {
					fill(&c, box(x(q.X), y(0), x(curve.Points[i+1].X), y(q.Y)), curve.Style)
				}
			}
		}
		if curve.Shape == Lines || curve.Shape == Steps {
			c.StrokeLines(lineStyle(curve.Style), c.ClipLinesXY(paths(curve, at)...)...)
		}
		bar := draw.LineStyle{Color: colour(curve.Style), Width: 1}
		for _, q := range curve.Points {
			if !math.IsNaN(q.Low) && !math.IsNaN(q.High) {
				px, low, high := x(q.X), y(max(q.Low, p.Y.Min)), y(q.High)
				c.StrokeLine2(bar, px, low, px, high)
				c.StrokeLine2(bar, px-3, low, px+3, low)
				c.StrokeLine2(bar, px-3, high, px+3, high)
			}
			if curve.Marked && !math.IsNaN(q.Y) {
				c.DrawGlyph(glyph(curve.Style), at(q))
			}
		}
	}
}

// labels names the marks, each as high as it takes not to stand on the one before.
func (d drawing) labels(c draw.Canvas, x func(float64) vg.Length) {
	sty := style(8, draw.XLeft, draw.YTop)
	var ends []vg.Length
	for _, m := range d.f.Marks {
		width := sty.Width(m.Label)
		left := x(m.X) + 2
		if left+width > c.Max.X {
			left = x(m.X) - width - 2
		}
		row := 0
		for row < len(ends) && ends[row] > left {
			row++
		}
		if row == len(ends) {
			ends = append(ends, 0)
		}
		ends[row] = left + width + 2
		c.FillText(sty, vg.Point{X: left, Y: c.Max.Y - vg.Length(row*10)}, m.Label)
	}
}

// paths are the lines of a curve between its gaps.
func paths(c Curve, at func(Point) vg.Point) [][]vg.Point {
	var all [][]vg.Point
	var line []vg.Point
	for i, q := range c.Points {
		if math.IsNaN(q.Y) {
			if len(line) > 0 && c.Shape == Steps {
				line = append(line, vg.Point{X: at(Point{X: q.X}).X, Y: line[len(line)-1].Y})
			}
			all, line = append(all, line), nil
			continue
		}
		p := at(q)
		if i > 0 && len(line) > 0 && c.Shape == Steps {
			line = append(line, vg.Point{X: p.X, Y: line[len(line)-1].Y})
		}
		line = append(line, p)
	}
	all = append(all, line)
	out := all[:0]
	for _, l := range all {
		if len(l) > 1 {
			out = append(out, l)
		}
	}
	return out
}

// stack draws bars, each on the one before.
func (d drawing) stack(c draw.Canvas, x, y func(float64) vg.Length) {
	below := map[float64]float64{}
	for _, curve := range d.panel.Curves {
		for _, q := range curve.Points {
			if q.Y <= 0 {
				continue
			}
			low, high := y(below[q.X]), y(below[q.X]+q.Y)
			below[q.X] += q.Y
			fill(&c, box(x(q.X-0.35), low, x(q.X+0.35), high), curve.Style)
		}
	}
}

// spans draws the bars of each lane, with their names where they have room.
func (d drawing) spans(c draw.Canvas, x, y func(float64) vg.Length) {
	for i := range d.panel.Lanes {
		at := y(float64(i + 1))
		c.StrokeLine2(draw.LineStyle{Color: gridColour(), Width: 0.8}, c.Min.X, at, c.Max.X, at)
	}
	sty := style(8, draw.XCenter, draw.YCenter)
	for _, curve := range d.panel.Curves {
		for _, q := range curve.Spans {
			low, high := q.Kind.Reach()
			bottom := float64(len(d.panel.Lanes) - 1 - q.Lane)
			left, right := x(q.From), max(x(q.To), x(q.From)+0.8) // what is short is seen all the same
			area := box(left, y(bottom+low), right, y(bottom+high))
			switch q.Kind {
			case Main:
				fill(&c, area, curve.Style)
				if width := 1.1 * sty.Width(curve.Name); width+6 < right-left { // another font may be wider
					middle := vg.Point{X: (left + right) / 2, Y: (area[0].Y + area[2].Y) / 2}
					c.FillPolygon(color.White, box(middle.X-width/2-2, middle.Y-6, middle.X+width/2+2, middle.Y+6))
					c.FillText(sty, middle, curve.Name)
				}
			case Beside:
				c.FillPolygon(faint(curve.Style), area)
				c.StrokeLines(draw.LineStyle{Color: colour(curve.Style), Width: 0.8}, append(area, area[0]))
			case Detail: // they stand side by side, and are told apart by their edges
				c.FillPolygon(colour(curve.Style), area)
				c.StrokeLines(draw.LineStyle{Color: color.White, Width: 0.4}, append(area, area[0]))
			}
		}
	}
}

// box is a rectangle from its lower left corner to its upper right one.
func box(left, low, right, high vg.Length) []vg.Point {
	return []vg.Point{{X: left, Y: low}, {X: right, Y: low}, {X: right, Y: high}, {X: left, Y: high}}
}

// fill fills a rectangle, given from its lower left corner, with a style's colour and hatching.
func fill(c *draw.Canvas, box []vg.Point, style int) {
	c.FillPolygon(colour(style), box)
	inside := draw.Canvas{Canvas: c.Canvas, Rectangle: vg.Rectangle{Min: box[0], Max: box[2]}}
	line := draw.LineStyle{Color: color.White, Width: 0.9}
	const gap = 5
	width, height := box[2].X-box[0].X, box[2].Y-box[0].Y
	for _, k := range Hatch(style) {
		switch k {
		case '-':
			for y := box[0].Y + gap/2; y < box[2].Y; y += gap {
				c.StrokeLine2(line, box[0].X, y, box[2].X, y)
			}
		case '|':
			for x := box[0].X + gap/2; x < box[2].X; x += gap {
				c.StrokeLine2(line, x, box[0].Y, x, box[2].Y)
			}
		case '/', '\\':
			for s := -height; s < width; s += gap {
				a, b := vg.Point{X: box[0].X + s, Y: box[0].Y}, vg.Point{X: box[0].X + s + height, Y: box[2].Y}
				if k == '\\' {
					a.Y, b.Y = b.Y, a.Y
				}
				c.StrokeLines(line, inside.ClipLinesXY([]vg.Point{a, b})...)
			}
		}
	}
	c.StrokeLines(draw.LineStyle{Color: color.Black, Width: 0.5}, append(box, box[0]))
}
