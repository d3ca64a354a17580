package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"qmigrate/engine/report/figure"
	"qmigrate/engine/report/stats"
)

// against draws metrics against a factor, a panel each: medians with their intervals, and each trial behind them. by
// tells the curves apart.
func against(key, title string, trials []*trial, f factor, by []factor, metrics []metric) *figure.Figure {
	fig := &figure.Figure{Key: key, Title: title, X: figure.Axis{Label: f.name}}
	place := axisOf(&fig.X, f, trials)
	groups := groupBy(trials, by)
	n := counter{}
	for _, m := range metrics {
		if !m.measured(trials) {
			continue
		}
		all, _ := m.values(trials)
		unit, one := scale(m.kind, slices.MaxFunc(all,
			func(a, b float64) int { return int(math.Copysign(1, math.Abs(a)-math.Abs(b))) }))
		p := figure.Panel{Y: figure.Axis{Label: m.name, Unit: unit, Log: wide(all, 100)}}
		for i, g := range groups {
			c := figure.Curve{Name: g.name, Style: i, Shape: figure.Lines, Marked: true}
			if !f.numeric {
				c.Shape = figure.Apart
			}
			for _, cell := range groupBy(g.trials, []factor{f}) {
				values, of := m.values(cell.trials)
				if len(values) == 0 {
					continue
				}
				x := place(cell.levels[0])
				if !f.numeric { // curves stand beside each other
					x += 0.7 * (float64(i) - float64(len(groups)-1)/2) / float64(len(groups))
				}
				for j := range values {
					values[j] /= one
					c.Trials = append(c.Trials, figure.Point{X: x, Y: values[j], Low: math.NaN(), High: math.NaN(), Label: of[j].ID})
				}
				c.Points = append(c.Points, pointOf(estimateOf(values), x, cell.levels[0].String()))
				n.add(len(cell.trials), len(values))
			}
			if len(c.Points) > 0 {
				p.Curves = append(p.Curves, c)
			}
		}
		fig.Panels = append(fig.Panels, p)
		fig.Caption.Definitions = append(fig.Caption.Definitions, m.definition)
		fig.Shows = append(fig.Shows, shown(m, f))
	}
	names := make([]string, len(fig.Panels))
	for i, p := range fig.Panels {
		names[i] = p.Y.Label
	}
	fig.Caption.Measured = fmt.Sprintf("%s against %s. %s", sentence(join(names)), f.name, medianWords)
	fig.Caption.N = n.String()
	return fig
}

// shown names a panel by what it shows.
func shown(m metric, f factor) string { return m.key + " against " + f.name }

const medianWords = "Large marks: median of the completed trials of a cell; bars: its interval (order statistics, at " +
	"least 95 %, needs n >= 6); small dots left of them: each trial."

// pointOf is the estimate at x.
func pointOf(e stats.Estimate, x float64, label string) figure.Point {
	p := figure.Point{X: x, Y: e.Value, Low: math.NaN(), High: math.NaN(), N: e.N, Label: label}
	if e.Interval != nil {
		p.Low, p.High = e.Interval.Low, e.Interval.High
	}
	return p
}

// axisOf makes the factor's axis and returns where a level stands on it.
func axisOf(a *figure.Axis, f factor, trials []*trial) func(level) float64 {
	var present []level
	for _, l := range f.levels {
		if slices.ContainsFunc(trials, func(t *trial) bool { return t.levels[f.name].text == l.text }) {
			present = append(present, l)
		}
	}
	if f.numeric {
		numbers := make([]float64, len(present))
		largest := 0.0
		for i, l := range present {
			numbers[i] = l.number
			largest = max(largest, l.number)
		}
		var one float64
		a.Unit, one = scale(f.kind, largest)
		a.Log = wide(numbers, 16)
		for _, n := range numbers {
			a.Ticks = append(a.Ticks, figure.Tick{Value: n / one})
		}
		slices.SortFunc(a.Ticks, func(s, t figure.Tick) int { return cmp.Compare(s.Value, t.Value) })
		return func(l level) float64 { return l.number / one }
	}
	for _, l := range present {
		name := l.String()
		if name == "" {
			name = "(not given)"
		}
		a.Names = append(a.Names, name)
	}
	return func(l level) float64 {
		return float64(slices.IndexFunc(present, func(p level) bool { return p.text == l.text }))
	}
}

// wide tells whether the values are above 0 and span so much that a linear axis would hide the small ones.
func wide(values []float64, factor float64) bool {
	if len(values) == 0 {
		return false
	}
	low, high := slices.Min(values), slices.Max(values)
	return low > 0 && high >= factor*low
}

// counter counts the trials behind a figure's points.
type counter struct {
	least, most, points, failed int
}

func (c *counter) add(trials, used int) {
	if c.points == 0 || used < c.least {
		c.least = used
	}
	c.most, c.points, c.failed = max(c.most, used), c.points+1, c.failed+trials-used
}

func (c *counter) String() string {
	if c.points == 0 {
		return "n = 0"
	}
	text := fmt.Sprintf("n = %d a point", c.most)
	if c.least != c.most {
		text = fmt.Sprintf("n = %d to %d a point", c.least, c.most)
	}
	if c.failed > 0 {
		text += "; trials that failed, or where it was not measured, are not in it"
	}
	return text
}

// split is a part of the trials that one figure can show: at most limit curves, told apart by `by`.
type split struct {
	name   string // what all of its trials have in common, empty where nothing was split off
	trials []*trial
	by     []factor
	with   []string // factors that go with the one of the axis: each of its values has one of theirs
}

// notes say which other factors change along the axis.
func (p split) notes(f factor) []string {
	if len(p.with) == 0 {
		return nil
	}
	return []string{sentence(join(p.with)) +
		map[bool]string{true: " changes with ", false: " change with "}[len(p.with) == 1] + f.name + "."}
}

// splitFor splits the trials until each part has few enough curves, by the first factors first, so that no median is
// taken over trials that differ in a factor. Curves that have one level of f alone are left out where another has more:
// they belong to another comparison.
func splitFor(f factor, trials []*trial, others []factor, limit int) []split {
	var out []split
	var walk func(name, with []string, trials []*trial, rest []factor)
	walk = func(name, with []string, trials []*trial, rest []factor) {
		with = slices.Clone(with)
		rest = slices.DeleteFunc(slices.Clone(rest), func(o factor) bool {
			if len(groupBy(trials, []factor{o})) < 2 {
				return true
			}
			if o.name != modeFactor && follows(o, f, trials) {
				with = append(with, o.name)
				return true
			}
			return false
		})
		groups := groupBy(trials, rest)
		kept := slices.DeleteFunc(groups, func(g group) bool { return len(groupBy(g.trials, []factor{f})) < 2 })
		if len(kept) == 0 {
			return
		}
		var used []*trial
		for _, g := range kept {
			used = append(used, g.trials...)
		}
		if len(kept) <= limit || len(rest) == 0 {
			rest = slices.DeleteFunc(slices.Clone(rest), func(o factor) bool { return len(groupBy(used, []factor{o})) < 2 })
			out = append(out, split{strings.Join(name, ", "), used, rest, with})
			return
		}
		for _, g := range groupBy(used, rest[:1]) {
			part := g.name
			if l := g.trials[0].levels[rest[0].name]; l.isNumber() && !strings.HasPrefix(part, rest[0].name) {
				part = rest[0].name + " " + part // a number alone does not say of what
			}
			walk(append(slices.Clone(name), part), with, g.trials, rest[1:])
		}
	}
	walk(nil, nil, trials, others)
	return out
}

// follows tells whether each value of f has one value of o.
func follows(o, f factor, trials []*trial) bool {
	for _, g := range groupBy(trials, []factor{f}) {
		if len(groupBy(g.trials, []factor{o})) > 1 {
			return false
		}
	}
	return true
}

// curveLimit is how many curves a figure has at most: more cannot be told apart.
const curveLimit = 6

// join is a list in words.
func join(words []string) string {
	switch len(words) {
	case 0:
		return ""
	case 1:
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

// sentence begins a text with a capital letter.
func sentence(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// slug is a text as a part of a file's name.
func slug(text string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(text) {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	text = strings.Trim(b.String(), "-")
	return text[:min(len(text), 60)]
}
