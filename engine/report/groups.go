package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/report/figure"
)

// stages is the stack of the stages' durations.
func stages(s *set) *figure.Figure {
	groups, by := coarse(completed(s.trials), s.factors, 12)
	fig := &figure.Figure{Key: "stages", Title: "Stages", X: figure.Axis{Label: labelOf(by), Names: namesOf(groups)}}
	var order []record.StageName
	for _, t := range s.trials {
		for _, st := range t.Stages {
			if !slices.Contains(order, st.Name) {
				order = append(order, st.Name)
			}
		}
	}
	sorted := []record.StageName{record.Initialization, record.Reservation, record.Storage, record.PreCopy,
		record.StopAndCopy, record.Commitment, record.Activation, record.PostCopy}
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
	p := figure.Panel{Y: figure.Axis{Label: "duration", Unit: unit}, Stacked: true}
	n := counter{}
	for k, name := range order {
		c := figure.Curve{Name: string(name), Style: k % figure.Styles, Shape: figure.Bars}
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
			c.Points = append(c.Points, figure.Point{X: float64(i), Y: e.Value, Low: math.NaN(), High: math.NaN(), N: e.N,
				Label: g.name})
		}
		p.Curves = append(p.Curves, c)
	}
	fig.Panels = []figure.Panel{p}
	fig.Caption = figure.Caption{
		Measured: "Duration of each stage, one on the other in their order, from the bottom. Bars: medians, which need not " +
			"add up to the median of the total.",
		Definitions: []string{"stages (stages.duration_ns): contiguous, from the first command to RESUME on the " +
			"destination; in post-copy modes to the end of what follows the guest; " +
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
		if !slices.ContainsFunc(by, func(b factor) bool { return b.name == f.name }) &&
			len(groupBy(trials, []factor{f})) > 1 {
			names = append(names, f.name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return []string{"Trials that differ in " + join(names) +
		" are taken together here; the table of results has every cell."}
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
func downtimes(s *set) *figure.Figure {
	groups, by := coarse(completed(s.trials), s.factors, curveLimit)
	fig := &figure.Figure{Key: "downtime-by-observer", Title: "Downtime by each observer",
		X: figure.Axis{Label: "observer"}}
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
	p := figure.Panel{Y: figure.Axis{Label: "downtime", Unit: unit, Log: wide(all, 50)}}
	n := counter{}
	for i, g := range groups {
		c := figure.Curve{Name: g.name, Style: i, Shape: figure.Apart, Marked: true}
		for k, o := range present {
			x := float64(k) + 0.7*(float64(i)-float64(len(groups)-1)/2)/float64(len(groups))
			var values []float64
			for _, t := range g.trials {
				if v, ok := seconds(o.of(&t.Downtime)); ok {
					values = append(values, v/one)
					c.Trials = append(c.Trials, figure.Point{X: x, Y: v / one, Low: math.NaN(), High: math.NaN(), Label: t.ID})
				}
			}
			if len(values) > 0 {
				n.add(len(g.trials), len(values))
				c.Points = append(c.Points, pointOf(estimateOf(values), x, o.name))
			}
		}
		p.Curves = append(p.Curves, c)
	}
	fig.Panels = []figure.Panel{p}
	fig.Caption.Measured = "The same silence of the guest from several places, side by side. " + medianWords
	fig.Caption.N = n.String()
	fig.Caption.Notes = append(pooled(s.trials, by, s.factors), "Each observer's definition and error: "+
		"docs/measurements.md, Downtime. They differ, and each difference means something.")
	return fig
}

// distribution is the empirical distribution of metrics: the share of trials with at most that value.
func distribution(s *set, m metric, factors []factor) *figure.Figure {
	groups, by := coarse(completed(s.trials), factors, curveLimit)
	all, _ := m.values(s.trials)
	fig := &figure.Figure{Key: "ecdf-" + m.key, Title: "Distribution of the " + m.name}
	if len(all) == 0 {
		return fig
	}
	unit, one := scale(m.kind, slices.Max(all))
	fig.X = figure.Axis{Label: m.name, Unit: unit, Log: wide(all, 50)}
	p := figure.Panel{Y: figure.Axis{Label: "share of trials"}}
	n := counter{}
	for i, g := range groups {
		values, _ := m.values(g.trials)
		if len(values) == 0 {
			continue
		}
		slices.Sort(values)
		c := figure.Curve{Name: fmt.Sprintf("%s (n = %d)", g.name, len(values)), Style: i, Shape: figure.Steps,
			Marked: len(values) <= 40}
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
	fig.Panels = []figure.Panel{p}
	fig.Caption = figure.Caption{
		Measured: "Empirical distribution of the " + m.name +
			": at each value the share of the completed trials that have at most that. Nothing is dropped.",
		Definitions: []string{m.definition},
		N:           n.String(),
		Notes:       pooled(s.trials, by, s.factors),
	}
	return fig
}

// processors is what QEMU's threads took of the hosts, stage by stage.
func processors(s *set) *figure.Figure {
	fig := &figure.Figure{Key: "cpu", Title: "Processor of the hosts", X: figure.Axis{Label: "stage"}}
	type key struct {
		side   record.Holder
		thread string
	}
	values := map[key]map[string][]float64{}
	var keys []key
	stageOrder := []string{"before", "", string(record.PreCopy), string(record.StopAndCopy), string(record.Commitment),
		string(record.Activation), string(record.PostCopy), string(record.After)}
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
		return cmp.Or(-cmp.Compare(a.side, b.side), -cmp.Compare(rank(a.thread), rank(b.thread)),
			cmp.Compare(a.thread, b.thread))
	})
	keys = keys[:min(len(keys), figure.Styles)]
	slices.SortStableFunc(names, func(a, b string) int {
		return cmp.Compare(slices.Index(stageOrder, a),
			slices.Index(stageOrder, b))
	})
	fig.X.Names = names
	p := figure.Panel{Y: figure.Axis{Label: "processor", Unit: "% of one"}}
	n := counter{}
	for i, k := range keys {
		c := figure.Curve{Name: fmt.Sprintf("%s, %s", k.side, k.thread), Style: i, Shape: figure.Apart, Marked: true}
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
	fig.Panels = []figure.Panel{p}
	fig.Caption = figure.Caption{
		Measured: "What each thread of QEMU's took of its host, stage by stage. " + medianWords,
		Definitions: []string{"processor: 100 x time on a processor / span, by schedstat of each thread (cpu.percent); 100 " +
			"% is one processor; process: the whole QEMU; before: before `migrate`"},
		N:     n.String(),
		Notes: pooled(s.trials, nil, s.factors),
	}
	return fig
}

// predicted sets what was predicted against what was measured.
func predicted(s *set) *figure.Figure {
	fig := &figure.Figure{Key: "predicted", Title: "Predicted against measured",
		X: figure.Axis{Label: "measured, as a share of the largest", Unit: "%"}}
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
		p := figure.Panel{Y: figure.Axis{Label: pair.name, Unit: "%"},
			Lines: []figure.Line{{Slope: 1, Label: "predicted = measured"}}}
		for i, name := range names {
			p.Curves = append(p.Curves, figure.Curve{Name: name, Style: i % figure.Styles, Shape: figure.Apart, Marked: true})
		}
		each(func(i int, t *trial, m, predicted float64) {
			q := raw(100*m/largest, 100*predicted/largest)
			q.Label, q.N = t.ID, 1
			p.Curves[i].Points = append(p.Curves[i].Points, q)
		})
		for i := range p.Curves {
			slices.SortStableFunc(p.Curves[i].Points, func(a, b figure.Point) int { return cmp.Compare(a.X, b.X) })
			n.add(len(models[names[i]]), len(p.Curves[i].Points))
		}
		unit, one := scale(pair.kind, largest)
		fig.Panels = append(fig.Panels, p)
		fig.Caption.Definitions = append(fig.Caption.Definitions,
			fmt.Sprintf("%s; 100 %% is %.4g %s", pair.definition, largest/one, unit))
	}
	fig.Caption.Measured = "Each completed trial that has a prediction: predicted (up) against measured (across), in " +
		"percent of the largest measured one. On the line they agree."
	fig.Caption.N = n.String()
	return fig
}
