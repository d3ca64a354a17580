package figure

import (
	"image/color"
	"strconv"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// The colours of the eight styles on white and on the dark page: each has a contrast of at least 3:1 there (WCAG 2.2,
// 1.4.11), which a test computes, and styles differ in dashes, marker and hatching too.
func Light() [Styles]string {
	return [Styles]string{"#0059a3", "#b34700", "#00735c", "#8a3399", "#6b5900", "#b0005a", "#3d3d3d", "#7a4a2b"}
}

func Dark() [Styles]string {
	return [Styles]string{"#6cb4ff", "#ff9d5c", "#3fd0a4", "#e09bea", "#e0c64c", "#ff8fbf", "#c8c8c8", "#d6a07c"}
}

// The page's grounds and texts.
const (
	LightGround, LightText, LightFaint = "#ffffff", "#1a1a1a", "#595959"
	DarkGround, DarkText, DarkFaint    = "#14171a", "#ececec", "#a6adb4"
)

// Dashes are in points; nil is a whole line.
func Dashes(style int) []float64 {
	return [Styles][]float64{nil, {7, 3}, {2, 2}, {7, 2, 2, 2}, {12, 3}, {4, 4}, {10, 2, 2, 2, 2, 2}, {1, 3}}[style%Styles]
}

// Hatch is which lines cross a style's area.
func Hatch(style int) string {
	return [Styles]string{"", "/", "-", "\\", "|", "/\\", "-|", "/-"}[style%Styles]
}

func colour(style int) color.Color { return rgb(Light()[style%Styles], 0xff) }
func faint(style int) color.Color  { return rgb(Light()[style%Styles], 0x70) }

func rgb(hex string, alpha uint8) color.NRGBA {
	n, _ := strconv.ParseUint(hex[1:], 16, 32) // they are constants here
	return color.NRGBA{uint8(n >> 16), uint8(n >> 8), uint8(n), alpha}
}

func lineStyle(style int) draw.LineStyle {
	l := draw.LineStyle{Color: colour(style), Width: 1.3}
	for _, d := range Dashes(style) {
		l.Dashes = append(l.Dashes, vg.Length(d))
	}
	return l
}

func glyph(style int) draw.GlyphStyle {
	shape := [Styles]draw.GlyphDrawer{draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}, diamond{},
		draw.CrossGlyph{}, draw.RingGlyph{}, draw.SquareGlyph{}, draw.PlusGlyph{}}[style%Styles]
	return draw.GlyphStyle{Color: colour(style), Radius: 3.4, Shape: shape}
}

// diamond is a square on its corner.
type diamond struct{}

func (diamond) DrawGlyph(c *draw.Canvas, s draw.GlyphStyle, p vg.Point) {
	r := s.Radius * 1.2
	c.FillPolygon(s.Color, []vg.Point{{X: p.X, Y: p.Y - r}, {X: p.X + r, Y: p.Y}, {X: p.X, Y: p.Y + r},
		{X: p.X - r, Y: p.Y}})
}
