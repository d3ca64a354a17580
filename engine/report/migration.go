package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
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

// examples are the trials that are drawn one by one: of each mode the typical one of the cell with the most passes, or those that were asked for.
func (s *set) examples(ids []string) ([]*trial, error) {
	var out []*trial
	if len(ids) > 0 {
		for _, id := range ids {
			i := slices.IndexFunc(s.trials, func(t *trial) bool { return t.ID == id || t.Trial != "" && t.Trial == id })
			if i < 0 {
				return nil, fmt.Errorf("no trial %q in these records: give the id of a record, as in --trial %s", id, s.trials[0].ID)
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
func (t *trial) edges() []Mark {
	var marks []Mark
	put := func(name record.StageName, label string) {
		if at, ok := t.at(name); ok {
			marks = append(marks, Mark{X: at.Seconds(), Label: label})
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
		marks = append(marks, Mark{X: (a.Start + a.Duration).Seconds(), Label: "RESUME"})
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
func thin(points []Point) []Point {
	if len(points) <= drawnPoints {
		return points
	}
	var out []Point
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
func raw(x, y float64) Point { return Point{X: x, Y: y, Low: math.NaN(), High: math.NaN()} }

// waterfall is one migration, pass by pass: what was sent, what was left and the threshold below which QEMU stops the guest, what was dirtied, and the throttle.
func waterfall(t *trial) (*Figure, error) {
	samples, err := t.samples()
	if err != nil {
		return nil, err
	}
	samples = slices.DeleteFunc(samples, func(s record.Sample) bool { return s.Side != record.Source })
	fig := &Figure{
		Key: "passes-" + slug(string(t.Mode)+"-"+t.ID), Title: fmt.Sprintf("Passes of one migration (%s)", t.Name),
		X: Axis{Label: "time since the first command", Unit: "s"}, Marks: t.edges(),
	}
	mib := func(n int64) float64 { return float64(n) / (1 << 20) }
	var sent, left, threshold, rate, throttle []Point
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
	var seen []Point
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
	panel := func(label, unit string, curves ...Curve) {
		curves = slices.DeleteFunc(curves, func(c Curve) bool { return len(c.Points) == 0 })
		if len(curves) > 0 {
			fig.Panels = append(fig.Panels, Panel{Y: Axis{Label: label, Unit: unit}, Curves: curves})
		}
	}
	panel("sent in the pass", "MiB", Curve{Name: "bytes sent in each pass", Style: 0, Shape: Steps, Points: sent})
	panel("remaining", "MiB", Curve{Name: "remaining", Style: 1, Shape: Lines, Points: thin(left)}, Curve{Name: "threshold", Style: 2, Shape: Lines, Points: thin(threshold)})
	panel("dirty rate", "pages/s", Curve{Name: "QEMU's dirty-pages-rate", Style: 3, Shape: Steps, Points: thin(rate)}, Curve{Name: "dirty pages at a pass / pass before", Style: 4, Shape: Apart, Marked: true, Points: seen})
	if slices.ContainsFunc(throttle, func(p Point) bool { return p.Y > 0 }) {
		panel("throttle", "%", Curve{Name: "auto-converge's throttle", Style: 5, Shape: Steps, Points: thin(throttle)})
	}
	fig.Caption = Caption{
		Measured: "One migration over time: " + t.which() + ". " + edgeWords + ".",
		Definitions: []string{
			"sent: bytes on the wire in the pass (passes.transferred_bytes)",
			"remaining: query-migrate's ram.remaining at each sample (samples: remaining_bytes)",
			"threshold: query-migrate's throughput x downtime-limit as read back" + limitWords(hasLimit, limit) + "; QEMU stops the guest when what is left is less",
			"dirty rate: query-migrate's dirty-pages-rate, which QEMU renews at a synchronisation more than 1 s after the last, and dirty pages waiting when a pass began / duration of the pass before",
		},
		N: "n = 1: a single migration, the typical one of its cell (total time nearest the median)",
	}
	if len(samples) == 0 {
		fig.Caption.Notes = append(fig.Caption.Notes, "No samples are kept with this record: remaining is known at the edges of passes alone.")
	}
	if len(samples) > drawnPoints {
		fig.Caption.Notes = append(fig.Caption.Notes, fmt.Sprintf("Of %d samples the extremes of equal parts are drawn; all are in samples/%s.jsonl.", len(samples), t.ID))
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
func timeline(t *trial, only string) *Figure {
	fig := &Figure{
		Key: "timeline-" + slug(string(t.Mode)+"-"+t.ID), Title: fmt.Sprintf("The guest across one migration (%s)", t.Name),
		X: Axis{Label: "time since the first command", Unit: "s"}, Marks: t.edges(),
	}
	byUnit := map[string][]Curve{}
	var order []string
	for _, s := range t.Timeline {
		if only != "" && s.Name != only {
			continue
		}
		c := Curve{Name: s.Name, Shape: Steps, Style: len(fig.Caption.Definitions) % styles}
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
		fig.Caption.Definitions = append(fig.Caption.Definitions, fmt.Sprintf("%s: %s in bins of %s, counted by %s", s.Name, s.Unit, units.FormatDuration(s.Bin), s.Source))
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
		p := Panel{Y: Axis{Label: label, Unit: shown}, Curves: byUnit[unit]}
		for i := range p.Curves {
			for j := range p.Curves[i].Points {
				p.Curves[i].Points[j].Y /= one
			}
		}
		fig.Panels = append(fig.Panels, p)
	}
	fig.Caption.Measured = "What was counted across one migration: " + t.which() + ". " + edgeWords + "; a gap was not observed."
	if len(t.Marks) > 0 {
		fig.Caption.Notes = append(fig.Caption.Notes, "What else was seen is in the record's marks: "+join(t.seen())+".")
	}
	fig.Caption.N = "n = 1: a single migration"
	return fig
}

// stages is the stack of the stages' durations.
func stages(s *set) *Figure {
	groups, by := coarse(completed(s.trials), s.factors, 12)
	fig := &Figure{Key: "stages", Title: "Stages", X: Axis{Label: labelOf(by), Names: namesOf(groups)}}
	var order []record.StageName
	for _, t := range s.trials {
		for _, st := range t.Stages {
			if !slices.Contains(order, st.Name) {
				order = append(order, st.Name)
			}
		}
	}
	sorted := []record.StageName{record.Initialization, record.Reservation, record.Storage, record.PreCopy, record.StopAndCopy, record.Commitment, record.Activation, record.PostCopy}
	slices.SortStableFunc(order, func(a, b record.StageName) int {
		i, j := slices.Index(sorted, a), slices.Index(sorted, b)
		if i < 0 || j < 0 {
			return cmp.Compare(j, i)
		}
		return cmp.Compare(i, j)
	})
	duration := func(m *record.Migration, name record.StageName) float64 {
		var sum time.Duration // post-copy and recovery may come several times
		for _, st := range m.Stages {
			if st.Name == name {
				sum += st.Duration
			}
		}
		return sum.Seconds()
	}
	largest := 0.0
	for _, t := range s.trials {
		largest = max(largest, t.Total.Wall.Seconds())
	}
	unit, one := scale(timeKind, largest)
	p := Panel{Y: Axis{Label: "duration", Unit: unit}, Stacked: true}
	n := counter{}
	for k, name := range order {
		c := Curve{Name: string(name), Style: k % styles, Shape: Bars}
		for i, g := range groups {
			var values []float64
			for _, t := range g.trials {
				values = append(values, duration(t.Migration, name)/one)
			}
			if len(values) == 0 {
				continue
			}
			n.add(len(values), len(values))
			e := estimateOf(values)
			c.Points = append(c.Points, Point{X: float64(i), Y: e.Value, Low: math.NaN(), High: math.NaN(), N: e.N, Label: g.name})
		}
		p.Curves = append(p.Curves, c)
	}
	fig.Panels = []Panel{p}
	fig.Caption = Caption{
		Measured: "Duration of each stage, one on the other in their order, from the bottom. Bars: medians, which need not add up to the median of the total.",
		Definitions: []string{"stages (stages.duration_ns): contiguous, from the first command to RESUME on the destination; in post-copy modes to the end of what follows the guest; " +
			"`migrate` opens pre-copy, STOP on the source stop-and-copy"},
		N:     n.String(),
		Notes: pooled(s.trials, by, s.factors),
	}
	return fig
}

// pooled says over which factors a figure does not tell the trials apart.
func pooled(trials []*trial, by, all []factor) []string {
	var names []string
	for _, f := range all {
		if !slices.ContainsFunc(by, func(b factor) bool { return b.name == f.name }) && len(groupBy(trials, []factor{f})) > 1 {
			names = append(names, f.name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return []string{"Trials that differ in " + join(names) + " are taken together here; the table of results has every cell."}
}

func completed(trials []*trial) []*trial {
	return slices.DeleteFunc(slices.Clone(trials), func(t *trial) bool { return !t.completed() })
}

func labelOf(by []factor) string {
	names := make([]string, len(by))
	for i, f := range by {
		names[i] = f.name
	}
	return join(names)
}

func namesOf(groups []group) []string {
	names := make([]string, len(groups))
	for i, g := range groups {
		names[i] = g.name
	}
	return names
}

// downtimes is the same silence as each observer saw it.
func downtimes(s *set) *Figure {
	groups, by := coarse(completed(s.trials), s.factors, curveLimit)
	fig := &Figure{Key: "downtime-by-observer", Title: "Downtime by each observer", X: Axis{Label: "observer"}}
	var all []float64
	var present []observer
	for _, o := range observers() {
		found := false
		for _, g := range groups {
			for _, t := range g.trials {
				if v, ok := seconds(o.of(&t.Downtime)); ok {
					all, found = append(all, v), true
				}
			}
		}
		if found {
			present = append(present, o)
			fig.X.Names = append(fig.X.Names, o.name)
			fig.Caption.Definitions = append(fig.Caption.Definitions, o.name+": "+o.definition)
		}
	}
	if len(present) == 0 {
		return fig
	}
	unit, one := scale(timeKind, slices.Max(all))
	p := Panel{Y: Axis{Label: "downtime", Unit: unit, Log: wide(all, 50)}}
	n := counter{}
	for i, g := range groups {
		c := Curve{Name: g.name, Style: i, Shape: Apart, Marked: true}
		for k, o := range present {
			x := float64(k) + 0.7*(float64(i)-float64(len(groups)-1)/2)/float64(len(groups))
			var values []float64
			for _, t := range g.trials {
				if v, ok := seconds(o.of(&t.Downtime)); ok {
					values = append(values, v/one)
					c.Trials = append(c.Trials, Point{X: x, Y: v / one, Low: math.NaN(), High: math.NaN(), Label: t.ID})
				}
			}
			if len(values) > 0 {
				n.add(len(g.trials), len(values))
				c.Points = append(c.Points, pointOf(estimateOf(values), x, o.name))
			}
		}
		p.Curves = append(p.Curves, c)
	}
	fig.Panels = []Panel{p}
	fig.Caption.Measured = "The same silence of the guest from several places, side by side. " + medianWords
	fig.Caption.N = n.String()
	fig.Caption.Notes = append(pooled(s.trials, by, s.factors), "Each observer's definition and error: docs/measurements.md, Downtime. They differ, and each difference means something.")
	return fig
}

// distribution is the empirical distribution of metrics: the share of trials with at most that value.
func distribution(s *set, m metric, factors []factor) *Figure {
	groups, by := coarse(completed(s.trials), factors, curveLimit)
	all, _ := m.values(s.trials)
	fig := &Figure{Key: "ecdf-" + m.key, Title: "Distribution of the " + m.name}
	if len(all) == 0 {
		return fig
	}
	unit, one := scale(m.kind, slices.Max(all))
	fig.X = Axis{Label: m.name, Unit: unit, Log: wide(all, 50)}
	p := Panel{Y: Axis{Label: "share of trials"}}
	n := counter{}
	for i, g := range groups {
		values, _ := m.values(g.trials)
		if len(values) == 0 {
			continue
		}
		slices.Sort(values)
		c := Curve{Name: fmt.Sprintf("%s (n = %d)", g.name, len(values)), Style: i, Shape: Steps, Marked: len(values) <= 40}
		c.Points = append(c.Points, raw(values[0]/one, 0))
		for k, v := range values {
			if k+1 < len(values) && values[k+1] == v {
				continue
			}
			q := raw(v/one, float64(k+1)/float64(len(values)))
			c.Points = append(c.Points, q)
		}
		n.add(len(g.trials), len(values))
		p.Curves = append(p.Curves, c)
	}
	fig.Panels = []Panel{p}
	fig.Caption = Caption{
		Measured:    "Empirical distribution of the " + m.name + ": at each value the share of the completed trials that have at most that. Nothing is dropped.",
		Definitions: []string{m.definition},
		N:           n.String(),
		Notes:       pooled(s.trials, by, s.factors),
	}
	return fig
}

// processors is what QEMU's threads took of the hosts, stage by stage.
func processors(s *set) *Figure {
	fig := &Figure{Key: "cpu", Title: "Processor of the hosts", X: Axis{Label: "stage"}}
	type key struct {
		side   record.Holder
		thread string
	}
	values := map[key]map[string][]float64{}
	var keys []key
	stageOrder := []string{"before", "", string(record.PreCopy), string(record.StopAndCopy), string(record.Commitment), string(record.Activation), string(record.PostCopy), string(record.After)}
	var names []string
	for _, t := range completed(s.trials) {
		for _, u := range t.CPU {
			k, stage := key{u.Side, u.Thread}, string(u.Stage)
			if stage == "" {
				stage = "before"
			}
			if values[k] == nil {
				values[k] = map[string][]float64{}
				keys = append(keys, k)
			}
			if !slices.Contains(names, stage) {
				names = append(names, stage)
			}
			values[k][stage] = append(values[k][stage], u.Percent)
		}
	}
	rank := func(thread string) int { return slices.Index([]string{"migration", "main", processThread}, thread) }
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(-cmp.Compare(a.side, b.side), -cmp.Compare(rank(a.thread), rank(b.thread)), cmp.Compare(a.thread, b.thread))
	})
	keys = keys[:min(len(keys), styles)]
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(slices.Index(stageOrder, a), slices.Index(stageOrder, b)) })
	fig.X.Names = names
	p := Panel{Y: Axis{Label: "processor", Unit: "% of one"}}
	n := counter{}
	for i, k := range keys {
		c := Curve{Name: fmt.Sprintf("%s, %s", k.side, k.thread), Style: i, Shape: Apart, Marked: true}
		for j, name := range names {
			if of := values[k][name]; len(of) > 0 {
				n.add(len(of), len(of))
				x := float64(j) + 0.7*(float64(i)-float64(len(keys)-1)/2)/float64(len(keys))
				for _, v := range of {
					c.Trials = append(c.Trials, raw(x, v))
				}
				c.Points = append(c.Points, pointOf(estimateOf(of), x, name))
			}
		}
		p.Curves = append(p.Curves, c)
	}
	fig.Panels = []Panel{p}
	fig.Caption = Caption{
		Measured:    "What each thread of QEMU's took of its host, stage by stage. " + medianWords,
		Definitions: []string{"processor: 100 x time on a processor / span, by schedstat of each thread (cpu.percent); 100 % is one processor; process: the whole QEMU; before: before `migrate`"},
		N:           n.String(),
		Notes:       pooled(s.trials, nil, s.factors),
	}
	return fig
}

// predicted sets what was predicted against what was measured.
func predicted(s *set) *Figure {
	fig := &Figure{Key: "predicted", Title: "Predicted against measured", X: Axis{Label: "measured, as a share of the largest", Unit: "%"}}
	models := map[string][]*trial{}
	var names []string
	for _, t := range completed(s.trials) {
		if t.Prediction != nil {
			if models[t.Prediction.Model] == nil {
				names = append(names, t.Prediction.Model)
			}
			models[t.Prediction.Model] = append(models[t.Prediction.Model], t)
		}
	}
	slices.Sort(names)
	pairs := []struct {
		metric
		of func(*record.Prediction) (float64, bool)
	}{
		{totalTime(), func(p *record.Prediction) (float64, bool) { return seconds(p.Total) }},
		{downtime(), func(p *record.Prediction) (float64, bool) { return seconds(p.Downtime) }},
		{sentBytes(), func(p *record.Prediction) (float64, bool) { return integer(p.Transferred) }},
	}
	n := counter{}
	for _, pair := range pairs {
		largest := 0.0
		each := func(f func(i int, t *trial, measured, predicted float64)) {
			for i, name := range names {
				for _, t := range models[name] {
					m, ok := pair.metric.of(t.Migration)
					if p, known := pair.of(t.Prediction); ok && known {
						f(i, t, m, p)
					}
				}
			}
		}
		each(func(_ int, _ *trial, m, _ float64) { largest = max(largest, m) })
		if largest == 0 {
			continue
		}
		p := Panel{Y: Axis{Label: pair.name, Unit: "%"}, Lines: []Line{{Slope: 1, Label: "predicted = measured"}}}
		for i, name := range names {
			p.Curves = append(p.Curves, Curve{Name: name, Style: i % styles, Shape: Apart, Marked: true})
		}
		each(func(i int, t *trial, m, predicted float64) {
			q := raw(100*m/largest, 100*predicted/largest)
			q.Label, q.N = t.ID, 1
			p.Curves[i].Points = append(p.Curves[i].Points, q)
		})
		for i := range p.Curves {
			slices.SortStableFunc(p.Curves[i].Points, func(a, b Point) int { return cmp.Compare(a.X, b.X) })
			n.add(len(models[names[i]]), len(p.Curves[i].Points))
		}
		unit, one := scale(pair.kind, largest)
		fig.Panels = append(fig.Panels, p)
		fig.Caption.Definitions = append(fig.Caption.Definitions, fmt.Sprintf("%s; 100 %% is %.4g %s", pair.definition, largest/one, unit))
	}
	fig.Caption.Measured = "Each completed trial that has a prediction: predicted (up) against measured (across), in percent of the largest measured one. On the line they agree."
	fig.Caption.N = n.String()
	return fig
}
