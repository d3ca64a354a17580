package figure

import (
	"fmt"
	"math"
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
		f.Frame()
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

func TestTickLabel(t *testing.T) {
	for v, want := range map[float64]string{0: "0", math.Copysign(0, -1): "0", 0.05: "0.05", 1500: "1500", 9999: "9999",
		10000: "10k", 16000: "16k", 250000: "250k", 1.5e6: "1.5M", -3.5e7: "-35M", 2e9: "2G"} {
		if got := tickLabel(v); got != want {
			t.Errorf("%v is labelled %q, not %q", v, got, want)
		}
	}
}

// TestLogScale: an axis that is no linear one says so, in the drawing and in the page.
func TestLogScale(t *testing.T) {
	for want, a := range map[string]Axis{"downtime (s)": {Label: "downtime", Unit: "s"},
		"downtime (s, log scale)": {Label: "downtime", Unit: "s", Log: true}, "passes (log scale)": {Label: "passes",
			Log: true}} {
		if got := axisText(a); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestDots: of very many trials at one place the outermost are drawn, and few are drawn as they are.
func TestDots(t *testing.T) {
	var c Curve
	for i := range 10_000 {
		c.Trials = append(c.Trials, Point{X: float64(i % 2), Y: float64(i * 7919 % 10_000)})
	}
	c.Trials = append(c.Trials, Point{X: 5, Y: 1}, Point{X: 5, Y: 2})
	count := map[float64]int{}
	least, most := math.Inf(1), math.Inf(-1)
	for _, p := range c.Dots() {
		count[p.X]++
		least, most = min(least, p.Y), max(most, p.Y)
	}
	if count[0] != dotLimit || count[1] != dotLimit || count[5] != 2 || least != 0 || most != 9999 ||
		len(c.Trials) != 10_002 {
		t.Errorf("%v from %v to %v", count, least, most)
	}
}

// contrast is WCAG 2.2's ratio of two colours.
func contrast(a, b string) float64 {
	luminance := func(hex string) float64 {
		c, sum := rgb(hex, 0xff), 0.0
		for i, v := range []uint8{c.R, c.G, c.B} {
			x := float64(v) / 255
			if x <= 0.04045 {
				x /= 12.92
			} else {
				x = math.Pow((x+0.055)/1.055, 2.4)
			}
			sum += x * []float64{0.2126, 0.7152, 0.0722}[i]
		}
		return sum
	}
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// TestContrast: texts have 4.5:1 and marks 3:1 at least, on both grounds; and no two styles are alike but for their
// colour.
func TestContrast(t *testing.T) {
	if c := contrast("#000000", "#ffffff"); math.Abs(c-21) > 1e-9 {
		t.Fatalf("black on white is %v, not 21", c)
	}
	for _, p := range []struct {
		ground string
		texts  []string
		marks  [Styles]string
	}{{LightGround, []string{LightText, LightFaint, Light()[0]}, Light()}, {DarkGround,
		[]string{DarkText, DarkFaint, Dark()[0]}, Dark()}} {
		for _, c := range p.texts {
			if got := contrast(c, p.ground); got < 4.5 {
				t.Errorf("text %s on %s: %.2f", c, p.ground, got)
			}
		}
		for _, c := range p.marks {
			if got := contrast(c, p.ground); got < 3 {
				t.Errorf("mark %s on %s: %.2f", c, p.ground, got)
			}
		}
	}
	lines, areas := map[string]bool{}, map[string]bool{}
	for i := range Styles {
		lines[fmt.Sprint(Dashes(i))], areas[Hatch(i)] = true, true
	}
	if len(lines) != Styles || len(areas) != Styles {
		t.Errorf("%d dashes, %d hatchings for %d styles", len(lines), len(areas), Styles)
	}
}
