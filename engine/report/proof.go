package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"qmigrate/engine/report/figure"
)

// proof sets what the load generator was asked for against what it counted itself and what QEMU found dirty; f is the
// rate that was asked for.
func proof(s *set, f factor) *figure.Figure {
	fig := &figure.Figure{Key: "load-generator", Title: "The load generator: claimed against seen",
		X: figure.Axis{Label: "claimed: " + f.name}}
	place := axisOf(&fig.X, f, s.trials)
	p := figure.Panel{Y: figure.Axis{Label: "page writes, dirty pages", Unit: "/s"},
		Lines: []figure.Line{{Slope: 1, Label: "seen = claimed"}}}
	n := counter{}
	for i, m := range []metric{ownRate(), seenRate()} {
		c := figure.Curve{Name: m.name, Style: i, Shape: figure.Lines, Marked: true}
		for _, cell := range groupBy(s.trials, []factor{f}) {
			values, of := m.values(cell.trials)
			if len(values) == 0 {
				continue
			}
			x := place(cell.levels[0])
			for j, v := range values {
				q := raw(x, v)
				q.Label = of[j].ID
				c.Trials = append(c.Trials, q)
			}
			c.Points = append(c.Points, pointOf(estimateOf(values), x, cell.levels[0].String()))
			n.add(len(cell.trials), len(values))
		}
		if len(c.Points) > 0 {
			p.Curves = append(p.Curves, c)
			fig.Caption.Definitions = append(fig.Caption.Definitions, m.definition)
		}
	}
	fig.Panels = []figure.Panel{p}
	fig.Caption.Measured = "The rate that was asked of the load generator, against its own count and against what " +
		"QEMU's dirty bitmap shows. " + medianWords
	fig.Caption.N = n.String()
	if !fig.Drawn() {
		return fig
	}
	fig.Caption.Notes = pooled(s.trials, []factor{f}, s.factors)
	return fig
}

// fewestDots is how many trials a scatter needs: of one or two no eye can tell anything, and the tables have them.
const fewestDots = 3

// scatter is metrics against a measured number, one dot a trial.
func scatter(trials []*trial, factors []factor, x metric, metrics []metric, key, title string) *figure.Figure {
	groups, by := coarse(completed(trials), factors, curveLimit)
	fig := &figure.Figure{Key: key, Title: title}
	xs, _ := x.values(trials)
	if len(xs) < fewestDots {
		return fig
	}
	unit, one := scale(x.kind, slices.Max(xs))
	fig.X = figure.Axis{Label: x.name, Unit: unit, Log: wide(xs, 50)}
	n := counter{}
	names := []string{}
	for _, m := range metrics {
		ys, _ := m.values(trials)
		if len(ys) == 0 {
			continue
		}
		names = append(names, m.name)
		yUnit, yOne := scale(m.kind, slices.Max(ys))
		p := figure.Panel{Y: figure.Axis{Label: m.name, Unit: yUnit, Log: wide(ys, 100)}}
		for i, g := range groups {
			c := figure.Curve{Name: g.name, Style: i, Shape: figure.Apart, Marked: true}
			for _, t := range g.trials {
				a, ok := x.of(t.Migration)
				b, also := m.of(t.Migration)
				if ok && also {
					c.Points = append(c.Points, figure.Point{X: a / one, Y: b / yOne, Low: math.NaN(), High: math.NaN(), N: 1,
						Label: t.ID})
				}
			}
			slices.SortStableFunc(c.Points, func(a, b figure.Point) int { return cmp.Compare(a.X, b.X) })
			n.add(len(g.trials), len(c.Points))
			if len(c.Points) > 0 {
				p.Curves = append(p.Curves, c)
			}
		}
		fig.Panels = append(fig.Panels, p)
		fig.Caption.Definitions = append(fig.Caption.Definitions, m.definition)
	}
	fig.Caption.Measured = fmt.Sprintf("%s against %s: one mark a completed trial.", sentence(join(names)), x.name)
	fig.Caption.Definitions = append(fig.Caption.Definitions, x.definition)
	fig.Caption.N = fmt.Sprintf("n = %d", len(xs))
	fig.Caption.Notes = pooled(trials, by, factors)
	return fig
}
