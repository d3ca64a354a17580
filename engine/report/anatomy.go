package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/engine/report/figure"
)

// anatomyLanes are where the parts of a downtime pass, in the order in which they are drawn.
func anatomyLanes() []record.Place {
	return []record.Place{record.OnSource, record.OnLink, record.OnQmigrate, record.OnDestination}
}

// partStyle gives a part the style that it has in all figures. Parts of one lane differ in theirs.
func partStyle(part record.PartName) int {
	return map[record.PartName]int{
		// on the source
		record.PartStopVCPUs: 0, record.PartSetup: 1, record.PartDisks: 2, record.PartRAMSave: 3, record.PartDeviceSave: 4,
		record.PartLastWord: 5,
		// on the link
		record.PartWire: 5,
		// at qmigrate
		record.PartPause: 1, record.PartNotice: 2, record.PartDecision: 0,
		// on the destination
		record.PartRAMLoad: 5, record.PartDeviceLoad: 7, record.PartBottomHalf: 0, record.PartAnnounce: 2,
		record.PartStart: 1,
		// anywhere
		record.PartUntold: 6,
	}[part]
}

// placed are the parts of a downtime of which is known when they were, counted from STOP; whole: these are all.
func (t *trial) placed() (parts []record.AnatomyPart, whole bool) {
	stop := time.Duration(math.MaxInt64)
	for _, p := range t.Anatomy {
		if p.Critical && p.Start != nil {
			stop = min(stop, *p.Start)
		}
	}
	for _, p := range t.Anatomy {
		if p.Start != nil {
			p.Start = record.Of(*p.Start - stop)
			parts = append(parts, p)
		}
	}
	return parts, len(parts) == len(t.Anatomy)
}

// downtimeParts is one downtime, part by part: where each passed, and the devices one by one.
func downtimeParts(t *trial) *figure.Figure {
	parts, whole := t.placed()
	fig := &figure.Figure{
		Key:   "downtime-parts-" + slug(string(t.Mode)+"-"+t.ID),
		Title: fmt.Sprintf("The downtime of one migration, part by part (%s)", t.Name),
	}
	total, untold := time.Duration(0), time.Duration(0)
	for _, p := range parts {
		if p.Critical {
			total += p.Duration
			if p.Part == record.PartUntold {
				untold += p.Duration
			}
		}
	}
	if total <= 0 || untold > total-total/10 || !t.completed() { // there is next to nothing to see
		return fig
	}
	unit, one := scale(timeKind, total.Seconds())
	fig.X = figure.Axis{Label: "time since STOP on the source", Unit: unit}
	fig.Marks = []figure.Mark{{X: 0, Label: "STOP"}, {X: total.Seconds() / one, Label: "RESUME"}}
	panel := figure.Panel{Y: figure.Axis{Label: "where"}}
	for _, place := range anatomyLanes() {
		panel.Lanes = append(panel.Lanes, string(place))
	}
	for _, name := range record.PartNames() {
		c := figure.Curve{Name: string(name), Style: partStyle(name)}
		for lane, place := range anatomyLanes() {
			of := slices.DeleteFunc(slices.Clone(parts),
				func(p record.AnatomyPart) bool { return p.Part != name || p.Side != place })
			c.Spans = append(c.Spans, spansOf(of, lane, one)...)
		}
		if len(c.Spans) > 0 {
			panel.Curves = append(panel.Curves, c)
		}
	}
	fig.Panels = []figure.Panel{panel}
	fig.Caption = figure.Caption{
		Measured: "One downtime, from STOP on the source to RESUME on the destination: " + t.which() + ". High bars: the " +
			"critical path, on which the guest waited; they follow each other. Low bars: what ran beside it. Thin bars " +
			"below: the devices, one by one.",
		Definitions: []string{"parts: docs/anatomy.md says where each begins and ends, and what told it (anatomy)"},
		N:           "n = 1: a single migration",
	}
	if !whole {
		fig.Caption.Notes = append(fig.Caption.Notes, "When QEMU wrote its trace lines is not known, or of some of them. How long "+
			"their parts took is in the record, and not drawn. `-msg timestamp=on` gives the lines time stamps.")
	}
	return fig
}

// spansOf are the bars of one part in one lane: stretches that follow each other are one, and each device has its own
// besides. Between what ran beside, QEMU has written its log.
func spansOf(parts []record.AnatomyPart, lane int, one float64) (spans []figure.Span) {
	bar := func(from, to time.Duration, kind figure.Kind, label string) figure.Span {
		return figure.Span{From: from.Seconds() / one, To: to.Seconds() / one, Lane: lane, Kind: kind, Label: label}
	}
	for _, kind := range []figure.Kind{figure.Main, figure.Beside} {
		touch := time.Duration(0)
		if kind == figure.Beside {
			touch = 50 * time.Microsecond
		}
		var from, to time.Duration
		n := 0 // stretches of the bar that is open
		end := func() {
			label := ""
			if n > 1 {
				label = fmt.Sprintf("%d stretches", n)
			}
			if n > 0 {
				spans = append(spans, bar(from, to, kind, label))
			}
			n = 0
		}
		for _, p := range parts {
			if p.Critical != (kind == figure.Main) {
				continue
			}
			if n > 0 && *p.Start > to+touch {
				end()
			}
			if n == 0 {
				from, to = *p.Start, *p.Start
			}
			to = max(to, *p.Start+p.Duration)
			n++
		}
		end()
	}
	for _, p := range parts {
		if p.Device != "" && (p.Part == record.PartDeviceSave || p.Part == record.PartDeviceLoad) {
			spans = append(spans, bar(*p.Start, *p.Start+p.Duration, figure.Detail, p.Device))
		}
	}
	return spans
}

// The most bars and parts that are told apart in one figure.
const (
	barLimit  = 12
	partLimit = figure.Styles
)

// anatomies is the critical path of the downtime: a bar a group of trials, or of few trials a bar each.
func anatomies(s *set) *figure.Figure {
	trials := slices.DeleteFunc(completed(s.trials), func(t *trial) bool { return len(t.Anatomy) == 0 })
	groups, by := coarse(trials, s.factors, barLimit)
	fig := &figure.Figure{Key: "downtime-parts", Title: "The downtime, part by part",
		X: figure.Axis{Label: labelOf(by), Names: namesOf(groups)}}
	each := len(groups) == 1 && len(trials) > 1 && len(trials) <= 2*barLimit
	if each {
		groups, fig.X = nil, figure.Axis{Label: "trial, in their order"}
		for i, t := range trials {
			groups = append(groups, group{name: t.ID, trials: []*trial{t}})
			fig.X.Names = append(fig.X.Names, fmt.Sprint(i+1))
		}
	}
	medians := map[record.PartName][]float64{} // s, by group
	sums := map[record.PartName]float64{}
	tops := make([]float64, len(groups))
	var present []record.PartName
	n := counter{}
	for _, name := range record.PartNames() {
		for i, g := range groups {
			var values []float64
			for _, t := range g.trials {
				took, _ := t.CriticalTime(name)
				values = append(values, took.Seconds())
			}
			if len(values) == 0 {
				continue
			}
			n.add(len(values), len(values))
			v := estimateOf(values).Value
			medians[name] = append(medians[name], v)
			sums[name] += v
			tops[i] += v
		}
		if sums[name] > 0 {
			present = append(present, name)
		}
	}
	if len(present) == 0 {
		return fig
	}
	own := slices.Clone(present) // parts with a colour of their own
	slices.SortStableFunc(own, func(a, b record.PartName) int { return int(math.Copysign(1, sums[b]-sums[a])) })
	if len(own) > partLimit {
		own = own[:partLimit-1]
	}
	unit, one := scale(timeKind, slices.Max(tops))
	p := figure.Panel{Y: figure.Axis{Label: "downtime", Unit: unit}, Stacked: true}
	var taken [figure.Styles]bool
	curve := func(name string, style int, of func(group int) float64) {
		for taken[style] {
			style = (style + 1) % figure.Styles
		}
		taken[style] = true
		c := figure.Curve{Name: name, Style: style, Shape: figure.Bars}
		for i, g := range groups {
			c.Points = append(c.Points, figure.Point{X: float64(i), Y: of(i) / one, Low: math.NaN(), High: math.NaN(),
				N: len(g.trials), Label: g.name})
		}
		p.Curves = append(p.Curves, c)
	}
	var rest []record.PartName
	var names []string
	for _, name := range present {
		if !slices.Contains(own, name) {
			rest, names = append(rest, name), append(names, string(name))
			continue
		}
		curve(string(name), partStyle(name), func(i int) float64 { return medians[name][i] })
	}
	if len(rest) > 0 {
		curve("others: "+strings.Join(names, ", "), partStyle(record.PartUntold), func(i int) float64 {
			sum := 0.0
			for _, name := range rest {
				sum += medians[name][i]
			}
			return sum
		})
	}
	fig.Panels = []figure.Panel{p}
	fig.Caption = figure.Caption{
		Measured: "How much of each part is on the critical path of the downtime, one on the other in their order, from " +
			"the bottom. Bars: medians, which need not add up to the median of the downtime.",
		Definitions: []string{"parts: docs/anatomy.md says where each begins and ends; the sum of a part's critical " +
			"stretches (anatomy.duration_ns where critical; columns anatomy_PART_ns of `qmigrate export`)"},
		N:     n.String(),
		Notes: pooled(trials, by, s.factors),
	}
	if each {
		fig.Caption.Measured = "How much of each part is on the critical path of each migration's downtime, one on the " +
			"other in their order, from the bottom: they sum to the wire downtime."
		fig.Caption.N = fmt.Sprintf("n = %d migrations, a bar each", len(trials))
	}
	return fig
}

// requestPanels is how many distributions of page requests stand one above the other.
const requestPanels = 4

// requests is how long the page requests of post-copies took.
func requests(s *set) *figure.Figure {
	fig := &figure.Figure{Key: "page-requests", Title: "Page requests of post-copy by how long they took"}
	trials := slices.DeleteFunc(completed(s.trials), func(t *trial) bool {
		return t.PostCopy == nil || len(t.PostCopy.LatencyBuckets) == 0
	})
	if len(trials) == 0 {
		return fig
	}
	longest := time.Duration(0)
	for _, t := range trials {
		for _, b := range t.PostCopy.LatencyBuckets {
			if b.Count > 0 {
				longest = max(longest, b.To)
			}
		}
	}
	unit, one := scale(timeKind, longest.Seconds())
	fig.X = figure.Axis{Label: "time of a page request", Unit: unit, Log: true}
	groups, by := coarse(trials, s.factors, requestPanels)
	all := int64(0)
	for i, g := range groups {
		counts := map[record.LatencyBucket]int64{} // by its edges
		sum := int64(0)
		for _, t := range g.trials {
			for _, b := range t.PostCopy.LatencyBuckets {
				counts[record.LatencyBucket{From: b.From, To: b.To}] += b.Count
				sum += b.Count
			}
		}
		if sum <= 0 {
			continue
		}
		all += sum
		var buckets []record.LatencyBucket
		for b, n := range counts {
			b.Count = n
			buckets = append(buckets, b)
		}
		slices.SortFunc(buckets, func(a, b record.LatencyBucket) int { return int(a.From - b.From) })
		for len(buckets) > 1 && buckets[0].Count == 0 {
			buckets = buckets[1:]
		}
		for len(buckets) > 1 && buckets[len(buckets)-1].Count == 0 {
			buckets = buckets[:len(buckets)-1]
		}
		c := figure.Curve{Name: fmt.Sprintf("%s (n = %d requests)", g.name, sum), Style: i, Shape: figure.Bars}
		for k, b := range buckets {
			from := max(b.From, b.To/2) // a logarithmic axis has no 0
			q := raw(from.Seconds()/one, 100*float64(b.Count)/float64(sum))
			q.N, q.Label = int(b.Count), units.FormatDuration(b.From)+" to "+units.FormatDuration(b.To)
			c.Points = append(c.Points, q)
			if k+1 == len(buckets) || buckets[k+1].From > b.To {
				c.Points = append(c.Points, raw(b.To.Seconds()/one, math.NaN()))
			}
		}
		y := figure.Axis{Label: "page requests", Unit: "%"}
		fig.Panels = append(fig.Panels, figure.Panel{Y: y, Curves: []figure.Curve{c}})
	}
	fig.Caption = figure.Caption{
		Measured: "Page requests of the destination by how long each took, from the fault until its page was there, all " +
			"completed migrations of a group together: the share of each bucket.",
		Definitions: []string{"buckets: QEMU's postcopy-latency-dist, powers of two of a microsecond; the first and the " +
			"last have what is shorter and longer, too (post_copy.latency_buckets)"},
		N:     fmt.Sprintf("n = %d page requests of %s", all, plural(len(trials), "migration")),
		Notes: pooled(trials, by, s.factors),
	}
	return fig
}
