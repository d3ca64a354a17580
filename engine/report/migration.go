package report

import (
	"fmt"
	"math"
	"slices"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/engine/report/figure"
)

// typical is the completed trial of its group whose total time is nearest the median; nil if none completed.
func typical(trials []*trial) *trial {
	m := totalTime()
	values, of := m.values(trials)
	if len(values) == 0 {
		return nil
	}
	middle := estimateOf(values).Value
	best := 0
	for i := range values {
		if math.Abs(values[i]-middle) < math.Abs(values[best]-middle) {
			best = i
		}
	}
	return of[best]
}

// examples are the trials that are drawn one by one: of each mode the typical one of the cell with the most passes, or
// those that were asked for.
func (s *set) examples(ids []string) ([]*trial, error) {
	var out []*trial
	if len(ids) > 0 {
		for _, id := range ids {
			i := slices.IndexFunc(s.trials, func(t *trial) bool { return t.ID == id || t.Trial != "" && t.Trial == id })
			if i < 0 {
				return nil, fmt.Errorf("no trial %q in these records: give the id of a record, such as %s", id, s.trials[0].ID)
			}
			out = append(out, s.trials[i])
		}
		return out, nil
	}
	count := passes()
	mode := factor{name: modeFactor}
	for _, g := range groupBy(s.trials, []factor{mode}) {
		var best *trial
		most := -1.0
		for _, cell := range groupBy(g.trials, s.factors) {
			values, _ := count.values(cell.trials)
			v := 0.0
			if len(values) > 0 {
				v = estimateOf(values).Value
			}
			if v > most {
				if t := typical(cell.trials); t != nil {
					best, most = t, v
				}
			}
		}
		if best != nil {
			out = append(out, best)
		}
	}
	return out, nil
}

// edges are the instants of the migration that every chart over time shows.
func (t *trial) edges() []figure.Mark {
	var marks []figure.Mark
	put := func(name record.StageName, label string) {
		if at, ok := t.at(name); ok {
			marks = append(marks, figure.Mark{X: at.Seconds(), Label: label})
		}
	}
	stop := record.StopAndCopy
	if t.Mode == record.StopAndCopyMode {
		put(stop, "migrate")
	} else {
		put(record.PreCopy, "migrate")
		put(stop, "STOP")
	}
	if a := t.Stage(record.Activation); a != nil && t.completed() {
		marks = append(marks, figure.Mark{X: (a.Start + a.Duration).Seconds(), Label: "RESUME"})
	}
	return marks
}

// seen are the instants that the record marks, beside the edges, each name once, at its first time.
func (t *trial) seen() []string {
	var out, names []string
	for _, m := range t.Marks {
		if !slices.Contains(names, m.Name) {
			names = append(names, m.Name)
			out = append(out, m.Name+" at "+units.FormatDuration(m.At))
		}
	}
	return out
}

const edgeWords = "Dashed verticals: `migrate` sent, STOP on the source, RESUME on the destination"

// which says which trial a figure shows.
func (t *trial) which() string {
	text := t.Name
	if t.Trial != "" {
		text = t.Trial
	}
	return text + ", id " + t.ID
}

// drawnPoints is how many points of a long series are drawn: more than a screen has columns is not seen.
const drawnPoints = 1200

// thin keeps the extremes and the edges of equal parts of a long series.
func thin(points []figure.Point) []figure.Point {
	if len(points) <= drawnPoints {
		return points
	}
	var out []figure.Point
	parts := drawnPoints / 4
	for i := range parts {
		part := points[i*len(points)/parts : (i+1)*len(points)/parts]
		keep := []int{0, 0, 0, len(part) - 1}
		for j, p := range part {
			if p.Y < part[keep[1]].Y {
				keep[1] = j
			}
			if p.Y > part[keep[2]].Y {
				keep[2] = j
			}
		}
		slices.Sort(keep)
		for _, j := range slices.Compact(keep) {
			out = append(out, part[j])
		}
	}
	return out
}

// raw is a point without an interval.
func raw(x, y float64) figure.Point {
	return figure.Point{X: x, Y: y, Low: math.NaN(), High: math.NaN()}
}

// waterfall is one migration, pass by pass: what was sent, what was left and the threshold below which QEMU stops the
// guest, what was dirtied, and the throttle.
func waterfall(t *trial) (*figure.Figure, error) {
	samples, err := t.samples()
	if err != nil {
		return nil, err
	}
	samples = slices.DeleteFunc(samples, func(s record.Sample) bool { return s.Side != record.Source })
	fig := &figure.Figure{
		Key: "passes-" + slug(string(t.Mode)+"-"+t.ID), Title: fmt.Sprintf("Passes of one migration (%s)", t.Name),
		X: figure.Axis{Label: "time since the first command", Unit: "s"}, Marks: t.edges(),
	}
	mib := func(n int64) float64 { return float64(n) / (1 << 20) }
	var sent, left, threshold, rate, throttle []figure.Point
	limit, hasLimit := t.Parameters["downtime-limit"].(float64) // ms, as QEMU gave it back
	for _, s := range samples {
		x := s.T.Seconds()
		if s.Remaining != nil {
			left = append(left, raw(x, mib(*s.Remaining)))
		}
		if s.Throughput != nil && hasLimit && *s.Throughput > 0 {
			threshold = append(threshold, raw(x, *s.Throughput*limit/1000/(1<<20)))
		}
		if s.DirtyPagesRate != nil {
			rate = append(rate, raw(x, float64(*s.DirtyPagesRate)))
		}
		if s.Throttle != nil {
			throttle = append(throttle, raw(x, float64(*s.Throttle)))
		}
	}
	var seen []figure.Point
	for i, p := range t.Passes {
		begin, end := p.Start.Seconds(), (p.Start + p.Duration).Seconds()
		if p.Transferred != nil {
			q := raw(begin, mib(*p.Transferred))
			q.Label = fmt.Sprintf("pass %d", p.Pass)
			sent = append(sent, q, raw(end, mib(*p.Transferred)))
		}
		if i > 0 && p.DirtyPages != nil && t.Passes[i-1].Duration > 0 && !p.PostCopy && !p.Stopped {
			q := raw(begin, float64(*p.DirtyPages)/t.Passes[i-1].Duration.Seconds())
			q.Label = fmt.Sprintf("before pass %d", p.Pass)
			seen = append(seen, q)
		}
		if len(samples) == 0 {
			if p.DirtyPages != nil {
				left = append(left, raw(begin, mib(*p.DirtyPages*4096)))
			}
			if p.Remaining != nil {
				left = append(left, raw(end, mib(*p.Remaining)))
			}
		}
	}
	panel := func(label, unit string, curves ...figure.Curve) {
		curves = slices.DeleteFunc(curves, func(c figure.Curve) bool { return len(c.Points) == 0 })
		if len(curves) > 0 {
			fig.Panels = append(fig.Panels, figure.Panel{Y: figure.Axis{Label: label, Unit: unit}, Curves: curves})
		}
	}
	panel("sent in the pass", "MiB", figure.Curve{Name: "bytes sent in each pass", Style: 0, Shape: figure.Steps,
		Points: sent})
	panel("remaining", "MiB", figure.Curve{Name: "remaining", Style: 1, Shape: figure.Lines, Points: thin(left)},
		figure.Curve{Name: "threshold", Style: 2, Shape: figure.Lines, Points: thin(threshold)})
	var pending []figure.Curve
	for i, of := range []struct {
		name  string
		bytes func(record.Pending) int64
	}{{"pending, while the guest runs", func(p record.Pending) int64 { return p.PreCopy }},
		{"pending, while it stands still", func(p record.Pending) int64 { return p.StopCopy }},
		{"pending, may follow it", func(p record.Pending) int64 { return p.PostCopy }}} {
		if slices.ContainsFunc(t.Pending, func(p record.Pending) bool { return of.bytes(p) > 0 }) {
			c := figure.Curve{Name: of.name, Style: (6 + i) % figure.Styles, Shape: figure.Lines}
			for _, p := range t.Pending {
				c.Points = append(c.Points, raw(p.T.Seconds(), mib(of.bytes(p))))
			}
			pending = append(pending, c)
		}
	}
	panel("pending", "MiB", pending...)
	panel("dirty rate", "pages/s", figure.Curve{Name: "QEMU's dirty-pages-rate", Style: 3, Shape: figure.Steps,
		Points: thin(rate)}, figure.Curve{Name: "dirty pages at a pass / pass before", Style: 4, Shape: figure.Apart, Marked: true, Points: seen})
	if slices.ContainsFunc(throttle, func(p figure.Point) bool { return p.Y > 0 }) {
		panel("throttle", "%", figure.Curve{Name: "auto-converge's throttle", Style: 5, Shape: figure.Steps,
			Points: thin(throttle)})
	}
	fig.Caption = figure.Caption{
		Measured: "One migration over time: " + t.which() + ". " + edgeWords + ".",
		Definitions: []string{
			"sent: bytes on the wire in the pass (passes.transferred_bytes)",
			"remaining: query-migrate's ram.remaining at each sample (samples: remaining_bytes)",
			"threshold: query-migrate's throughput x downtime-limit as read back" + limitWords(hasLimit, limit) +
				"; QEMU stops the guest when what is left is less",
			"dirty rate: query-migrate's dirty-pages-rate, which QEMU renews at a synchronisation more than 1 s after the " +
				"last, and dirty pages waiting when a pass began / duration of the pass before",
		},
		N: "n = 1: a single migration, the typical one of its cell (total time nearest the median)",
	}
	if len(t.Pending) > 0 {
		fig.Caption.Definitions = append(fig.Caption.Definitions, "pending: what the source says it has still to send, split "+
			"by when it may send that: while the guest runs on the source, while it stands still, or when it runs on the "+
			"destination (pending)")
	}
	if len(samples) == 0 {
		fig.Caption.Notes = append(fig.Caption.Notes,
			"No samples are kept with this record: remaining is known at the edges of passes alone.")
	}
	if len(samples) > drawnPoints {
		fig.Caption.Notes = append(fig.Caption.Notes,
			fmt.Sprintf("Of %d samples the extremes of equal parts are drawn; all are in samples/%s.jsonl.", len(samples), t.ID))
	}
	return fig, nil
}

func limitWords(has bool, ms float64) string {
	if !has {
		return " (not in the record)"
	}
	return fmt.Sprintf(" (%g ms)", ms)
}

// timeline is what the guest and the network did, bin by bin, around one migration: all series, or those of one name.
func timeline(t *trial, only string) *figure.Figure {
	fig := &figure.Figure{
		Key: "timeline-" + slug(string(t.Mode)+"-"+t.ID), Title: fmt.Sprintf("The guest across one migration (%s)", t.Name),
		X: figure.Axis{Label: "time since the first command", Unit: "s"}, Marks: t.edges(),
	}
	byUnit := map[string][]figure.Curve{}
	var order []string
	for _, s := range t.Timeline {
		if only != "" && s.Name != only {
			continue
		}
		c := figure.Curve{Name: s.Name, Shape: figure.Steps, Style: len(fig.Caption.Definitions) % figure.Styles}
		for i, v := range s.Values {
			q := raw((s.Start + time.Duration(i)*s.Bin).Seconds(), math.NaN())
			if v != nil {
				q.Y = *v
			}
			c.Points = append(c.Points, q)
		}
		if n := len(c.Points); n > 0 { // the last bin has an end too
			c.Points = append(c.Points, raw((s.Start+time.Duration(n)*s.Bin).Seconds(), c.Points[n-1].Y))
		}
		if byUnit[s.Unit] == nil {
			order = append(order, s.Unit)
		}
		byUnit[s.Unit] = append(byUnit[s.Unit], c)
		fig.Caption.Definitions = append(fig.Caption.Definitions,
			fmt.Sprintf("%s: %s in bins of %s, counted by %s", s.Name, s.Unit, units.FormatDuration(s.Bin), s.Source))
	}
	for _, unit := range order {
		label := byUnit[unit][0].Name
		if len(byUnit[unit]) > 1 {
			label = "rate"
		}
		shown, one := unit, 1.0
		if unit == string(rateKind) {
			largest := 0.0
			for _, c := range byUnit[unit] {
				for _, p := range c.Points {
					if p.Y > largest {
						largest = p.Y
					}
				}
			}
			shown, one = scale(rateKind, largest)
		}
		p := figure.Panel{Y: figure.Axis{Label: label, Unit: shown}, Curves: byUnit[unit]}
		for i := range p.Curves {
			for j := range p.Curves[i].Points {
				p.Curves[i].Points[j].Y /= one
			}
		}
		fig.Panels = append(fig.Panels, p)
	}
	fig.Caption.Measured = "What was counted across one migration: " + t.which() + ". " + edgeWords +
		"; a gap was not observed."
	if len(t.Marks) > 0 {
		fig.Caption.Notes = append(fig.Caption.Notes, "What else was seen is in the record's marks: "+join(t.seen())+".")
	}
	fig.Caption.N = "n = 1: a single migration"
	return fig
}
