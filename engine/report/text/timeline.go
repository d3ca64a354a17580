package text

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/guest/wire"
)

// phases prints what the guest did, and what that took of the hosts, before, during and after the migration.
func (p Page) phases(r *record.Migration) {
	t := Table{Align: "lrrr"}
	row := func(name string, format func(float64) string, values ...*float64) {
		cells := []string{name}
		some := false
		for _, v := range values {
			if v == nil {
				cells = append(cells, "-")
				continue
			}
			cells, some = append(cells, format(*v)), true
		}
		if some {
			t.Row(cells...)
		}
	}
	t.Row("", "before", "during", "after")
	if g := r.Guest; g != nil {
		row("guest, "+eventName(r)+"/s", number, g.EventsBefore, g.EventsDuring, g.EventsAfter)
	}
	if x := r.Web; x != nil {
		of := func(f func(record.WebPhase) float64) (values []*float64) {
			for _, name := range []record.PhaseName{record.BeforePhase, record.DuringPhase, record.AfterPhase} {
				i := slices.IndexFunc(x.Phases, func(p record.WebPhase) bool { return p.Phase == name && p.Requests > p.Errors })
				if i < 0 {
					values = append(values, nil)
					continue
				}
				values = append(values, record.Of(f(x.Phases[i])))
			}
			return values
		}
		latency := func(v float64) string { return units.FormatDuration(time.Duration(v)) }
		row("web, answered/s", number, of(func(p record.WebPhase) float64 { return p.Answered })...)
		row("web, latency p50", latency, of(func(p record.WebPhase) float64 { return float64(p.P50) })...)
		row("web, latency p99", latency, of(func(p record.WebPhase) float64 { return float64(p.P99) })...)
		row("web, latency p99.9", latency, of(func(p record.WebPhase) float64 { return float64(p.P999) })...)
		row("web, latency max", latency, of(func(p record.WebPhase) float64 { return float64(p.Max) })...)
	}
	if x := r.Stream; x != nil {
		of := func(f func(record.StreamPhase) float64) (values []*float64) {
			for _, name := range []record.PhaseName{record.BeforePhase, record.DuringPhase, record.AfterPhase} {
				i := slices.IndexFunc(x.Phases, func(p record.StreamPhase) bool { return p.Phase == name })
				if i < 0 {
					values = append(values, nil)
					continue
				}
				values = append(values, record.Of(f(x.Phases[i])))
			}
			return values
		}
		row("tcp, from the guest", units.FormatRate, of(func(p record.StreamPhase) float64 { return p.Received })...)
		row("tcp, to the guest", units.FormatRate, of(func(p record.StreamPhase) float64 { return p.Acked })...)
	}
	for _, side := range []record.Holder{record.Source, record.Destination} {
		s := series(r, "cpu_"+string(side))
		if s == nil {
			continue
		}
		end := r.Total.Wall
		row("host CPU, "+string(side), func(v float64) string { return fmt.Sprintf("%.0f %%", v) },
			mean(s, math.MinInt64, 0), mean(s, 0, end), mean(s, end, math.MaxInt64))
	}
	if len(t.Rows) > 1 {
		fmt.Fprintln(p.W)
		t.Print(p.W, p.width())
	}
	if g := r.Guest; g != nil && g.Blackout != nil {
		text := fmt.Sprintf("%s without an event", between(*g.Blackout, g.BlackoutError))
		if g.Brownout != nil {
			text += fmt.Sprintf("; brownout %s below 95 %% of the rate before", between(*g.Brownout, g.BrownoutError))
		}
		fmt.Fprintf(p.W, "\n%-10s%s\n", "blackout", Fold(text, 10, p.width()))
	}
	if text := threadsText(r); text != "" {
		fmt.Fprintf(p.W, "%-10s%s\n", "threads", Fold(text, 10, p.width()))
	}
}

// eventName is what the workload counts, or events.
func eventName(r *record.Migration) string {
	w, err := wire.ParseWorkload(r.Workload)
	if err != nil {
		return "events" // of a workload that this program does not know
	}
	return w.Type().Event
}

func number(v float64) string {
	if v < 100 {
		return fmt.Sprintf("%.1f", v)
	}
	return Count(int64(math.Round(v)))
}

func between(v time.Duration, margin *time.Duration) string {
	if margin == nil {
		return units.FormatDuration(v)
	}
	return fmt.Sprintf("%s +/- %s", units.FormatDuration(v), units.FormatDuration(*margin))
}

// threadsText is who of the source's threads took the processor in pre-copy, and of the destination's afterwards.
func threadsText(r *record.Migration) string {
	var parts []string
	for _, of := range []struct {
		side  record.Holder
		stage record.StageName
		text  string
	}{{record.Source, record.PreCopy, "source in pre-copy"}, {record.Destination, record.PreCopy,
		"destination in pre-copy"}, {record.Destination, record.After, "destination after"}} {
		var threads []string
		for _, u := range r.CPU {
			if u.Side == of.side && u.Stage == of.stage && u.Thread != "process" && u.Percent >= 0.5 {
				threads = append(threads, fmt.Sprintf("%s %.0f %%", u.Thread, u.Percent))
			}
		}
		if len(threads) > 0 {
			parts = append(parts, of.text+" "+strings.Join(threads, ", "))
		}
	}
	return strings.Join(parts, "; ")
}

func series(r *record.Migration, name string) *record.Series {
	for i := range r.Timeline {
		if r.Timeline[i].Name == name {
			return &r.Timeline[i]
		}
	}
	return nil
}

// mean is the mean of the bins that overlap a time, by how much they do; nil of none. An open end is math.MinInt64 or
// MaxInt64.
func mean(s *record.Series, from, to time.Duration) *float64 {
	var sum, weight float64
	for i, v := range s.Values {
		a := s.Start + time.Duration(i)*s.Bin
		if in := min(to, a+s.Bin) - max(from, a); v != nil && in > 0 {
			sum += *v * in.Seconds()
			weight += in.Seconds()
		}
	}
	if weight == 0 {
		return nil
	}
	return record.Of(sum / weight)
}

// The steps of a sparkline, from nothing to the top of its scale.
const (
	sparkBlocks = "▁▂▃▄▅▆▇█"
	sparkASCII  = "_.:-=+*#"
)

// sparkWidth is the widest that the picture of a timeline is.
const sparkWidth = 80

// timeline draws the timeline, a row a series, and below them where the migration began, where the guest stopped and
// where it ran again.
func (p Page) timeline(r *record.Migration) {
	if len(r.Timeline) == 0 {
		return
	}
	first, last := time.Duration(math.MaxInt64), time.Duration(math.MinInt64)
	name := 0
	for _, s := range r.Timeline {
		first, last = min(first, s.Start), max(last, s.Start+time.Duration(len(s.Values))*s.Bin)
		name = max(name, min(len(s.Name), 20))
	}
	steps := []rune(sparkASCII)
	if p.Blocks {
		steps = []rune(sparkBlocks)
	}
	const scale = 17 // columns for what the top of a row is
	columns := max(min(p.width(), sparkWidth)-name-2-scale, 10)
	step := columnStep(last-first, columns)
	n := int((last - first + step - 1) / step)
	if n <= 0 {
		return
	}
	fmt.Fprintln(p.W)
	for _, s := range r.Timeline {
		values := make([]*float64, n)
		var all []float64
		for i := range values {
			from := first + time.Duration(i)*step
			if values[i] = mean(&s, from, from+step); values[i] != nil {
				all = append(all, *values[i])
			}
		}
		if len(all) == 0 {
			continue
		}
		top := rowTop(all, s.Unit)
		line := make([]rune, n)
		for i, v := range values {
			switch {
			case v == nil:
				line[i] = ' '
			default:
				line[i] = steps[min(max(int(math.Ceil(*v/top*float64(len(steps)-1))), 0), len(steps)-1)]
			}
		}
		fmt.Fprintf(p.W, "%-*.*s  %s  %s\n", name, name, s.Name, string(line),
			strings.TrimSpace("top "+rowScale(top, s.Unit)))
	}
	letters := []rune(strings.Repeat(" ", n+3)) // a mark at the end may need a place behind it
	var legend []string
	for _, m := range []struct{ name, letter, text string }{{"migrate", "M", "migrate"}, {"stop", "S", "STOP"},
		{"resume", "R", "RESUME"}} {
		i := slices.IndexFunc(r.Marks, func(x record.Mark) bool { return x.Name == m.name })
		if i < 0 {
			continue
		}
		at := r.Marks[i].At
		column := int((at - first) / step)
		for column >= 0 && column < len(letters) && letters[column] != ' ' {
			column++
		}
		if column >= 0 && column < len(letters) {
			letters[column] = rune(m.letter[0])
		}
		legend = append(legend, fmt.Sprintf("%s %s %s", m.letter, m.text, units.FormatDuration(at)))
	}
	if text := strings.TrimRight(string(letters), " "); text != "" {
		fmt.Fprintf(p.W, "%-*s  %s\n", name, "", text)
	}
	legend = append(legend, "a column "+units.FormatDuration(step))
	fmt.Fprintf(p.W, "%-*s  %s\n", name, "", Fold(strings.Join(legend, ", "), name+2, min(p.width(), sparkWidth)))
}

// columnStep is how much time a column has, so that all of it fits: at least the bins' 100 ms, and with two digits or
// so.
func columnStep(all time.Duration, columns int) time.Duration {
	step := max(all/time.Duration(columns), 100*time.Millisecond)
	grain := 10 * time.Millisecond
	for step >= 100*grain {
		grain *= 10
	}
	step = (step + grain - 1) / grain * grain
	for step*time.Duration(columns) < all { // what the division lost
		step += grain
	}
	return step
}

// rowTop is the top of a row's scale: its greatest value, or 1.5 times its median where a burst would flatten the rest;
// what is above is drawn full. Of percent it is 100 at least, so that two such rows can be compared.
func rowTop(values []float64, unit string) float64 {
	sorted := slices.Sorted(slices.Values(values))
	top, median := sorted[len(sorted)-1], sorted[len(sorted)/2]
	switch {
	case unit == "percent":
		return max(top, 100)
	case median > 0:
		return min(top, 1.5*median)
	case top <= 0:
		return 1
	}
	return top
}

// rowScale is a value with its unit, in few columns.
func rowScale(v float64, unit string) string {
	switch unit {
	case "percent":
		return fmt.Sprintf("%.3g %%", v)
	case "bytes/s":
		return units.FormatRate(v)
	case "events/s":
		unit = "/s"
	}
	if v >= 1e7 {
		return fmt.Sprintf("%.3g", v) + strings.TrimPrefix(unit, "segments")
	}
	return number(v) + strings.TrimPrefix(unit, "segments")
}
