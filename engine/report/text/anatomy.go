package text

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
)

// dearest is how many devices are listed: what is left is one row.
const dearest = 5

// partTime is the stretches of one part on one side of the critical path, taken together.
type partTime struct {
	part            record.PartName
	side            record.Place
	duration, error time.Duration
	sources         []string

	end time.Duration // of the stretch before, from the first command
	run time.Duration // the error of stretches that follow each other: what lies between two of them cancels out
}

// addError adds the error of a stretch, which is at most the sum of those of the runs.
func (t *partTime) addError(p record.AnatomyPart) {
	if p.Start != nil && t.duration > 0 && *p.Start == t.end {
		more := max(p.Error-t.run, 0)
		t.error, t.run = t.error+more, t.run+more
	} else {
		t.error, t.run = t.error+p.Error, p.Error
	}
	if p.Start != nil {
		t.end = *p.Start + p.Duration
	}
}

// criticalPath is the critical parts of a downtime, in the order of their beginnings, and the sum of them.
func criticalPath(all []record.AnatomyPart) (path []partTime, sum time.Duration) {
	for _, p := range all {
		if !p.Critical {
			continue
		}
		i := slices.IndexFunc(path, func(t partTime) bool { return t.part == p.Part && t.side == p.Side })
		if i < 0 {
			i = len(path)
			path = append(path, partTime{part: p.Part, side: p.Side})
		}
		t := &path[i]
		t.addError(p)
		t.duration, sum = t.duration+p.Duration, sum+p.Duration
		if !slices.Contains(t.sources, p.Source) {
			t.sources = append(t.sources, p.Source)
		}
	}
	return path, sum
}

// untold is how much of the downtime no source could tell apart, and why; empty where that is next to nothing.
func untold(r *record.Migration, path []partTime, sum time.Duration) (what, why string) {
	left := time.Duration(0)
	for _, t := range path {
		if t.part == record.PartUntold {
			left += t.duration
		}
	}
	const little = 100 // th of the downtime, which needs no word
	if left <= sum/little {
		return "", ""
	}
	why = "no trace lines of QEMU were read: they come from a QEMU that qmigrate starts, or by --trace-log FILE"
	if old := withoutTraces(r); old != "" {
		why = fmt.Sprintf("QEMU %s has no trace events of its downtime; 8.2 and newer do", old)
	}
	for _, p := range r.Anatomy {
		if p.Start == nil {
			why = "when QEMU wrote its trace lines is not known: `-msg timestamp=on` gives them time stamps"
			break
		}
		if p.Source == "trace" {
			why = "nothing that was read tells it apart"
		}
	}
	return fmt.Sprintf("%s of %s", units.FormatDuration(left), units.FormatDuration(sum)), why
}

// withoutTraces is the version of a QEMU that is too old for trace events of its downtime.
func withoutTraces(r *record.Migration) string {
	for _, version := range []string{r.QEMU.SourceVersion, r.QEMU.DestinationVersion} {
		var major, minor int
		n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor)
		if n == 2 && (major < 8 || major == 8 && minor < 2) {
			return Version(version)
		}
	}
	return ""
}

// anatomy prints the downtime taken apart: its critical path, a line a part, and the devices that took longest.
func (p Page) anatomy(r *record.Migration) {
	path, sum := criticalPath(r.Anatomy)
	if sum <= 0 {
		return
	}
	what, why := untold(r, path, sum)
	fmt.Fprintln(p.W)
	if len(path) == 1 && what != "" {
		fmt.Fprintf(p.W, "%-10s%s\n", "downtime", Fold("not told apart: "+why, 10, p.width()))
		return
	}
	t := Table{Align: "llrlrl"}
	t.Row("critical path", "side", "duration", "error", "share", "told by")
	for _, x := range path {
		t.Row(string(x.part), string(x.side), units.FormatDuration(x.duration), "+/- "+units.FormatDuration(x.error),
			fmt.Sprintf("%.1f %%", 100*float64(x.duration)/float64(sum)), strings.Join(x.sources, ", "))
	}
	t.Row("sum", "", units.FormatDuration(sum), "", "", "")
	t.Print(p.W, p.width())
	if what != "" {
		fmt.Fprintln(p.W, Fold("untold: "+what+": "+why, 2, p.width()))
	}
	p.devices(r)
}

// deviceTime is what one device took.
type deviceTime struct {
	name                 string
	save, load, critical time.Duration
}

// devices prints the devices that took longest, saving and loading taken together.
func (p Page) devices(r *record.Migration) {
	var all []deviceTime
	for _, x := range r.Anatomy {
		if x.Part != record.PartDeviceSave && x.Part != record.PartDeviceLoad || x.Device == "" {
			continue
		}
		i := slices.IndexFunc(all, func(d deviceTime) bool { return d.name == x.Device })
		if i < 0 {
			i = len(all)
			all = append(all, deviceTime{name: x.Device})
		}
		d := &all[i]
		if x.Part == record.PartDeviceSave {
			d.save += x.Duration
		} else {
			d.load += x.Duration
		}
		if x.Critical {
			d.critical += x.Duration
		}
	}
	if len(all) == 0 {
		return
	}
	slices.SortStableFunc(all, func(a, b deviceTime) int { return cmp.Compare(b.save+b.load, a.save+a.load) })
	if n := len(all) - dearest; n > 1 {
		rest := deviceTime{name: fmt.Sprintf("%d others", n)}
		for _, d := range all[dearest:] {
			rest.save, rest.load, rest.critical = rest.save+d.save, rest.load+d.load, rest.critical+d.critical
		}
		all = append(all[:dearest], rest)
	}
	t := Table{Align: "lrrr"}
	t.Row("device", "save", "load", "critical")
	placed := slices.ContainsFunc(all, func(d deviceTime) bool { return d.critical > 0 })
	if !placed { // without time stamps that is not known
		t = Table{Align: "lrr"}
		t.Row("device", "save", "load")
	}
	const room = 40 // of the page, for the numbers
	for _, d := range all {
		name := d.name
		if n := len(name) - (p.width() - room); n > 0 { // what kind it is stands at the end
			name = "..." + name[n+3:]
		}
		row := []string{name, units.FormatDuration(d.save), units.FormatDuration(d.load)}
		if placed {
			row = append(row, units.FormatDuration(d.critical))
		}
		t.Row(row...)
	}
	fmt.Fprintln(p.W)
	t.Print(p.W, p.width())
}

// where is the critical path in one line, the longest part first: as many of them as it has room for. It is empty where
// next to nothing is told apart; the details say why.
func (p Page) where(r *record.Migration) string {
	all, sum := criticalPath(r.Anatomy)
	var path []partTime // wherever it was
	for _, t := range all {
		if i := slices.IndexFunc(path, func(x partTime) bool { return x.part == t.part }); i >= 0 {
			path[i].duration += t.duration
		} else {
			path = append(path, t)
		}
	}
	mostly := func(t partTime) bool { return t.part == record.PartUntold && t.duration > sum-sum/10 }
	if sum <= 0 || slices.ContainsFunc(path, mostly) {
		return ""
	}
	slices.SortStableFunc(path, func(a, b partTime) int { return cmp.Compare(b.duration, a.duration) })
	of, unit, _ := strings.Cut(units.FormatDuration(sum), " ")
	one := float64(map[string]time.Duration{"us": time.Microsecond, "ms": time.Millisecond, "s": time.Second}[unit])
	line := fmt.Sprintf("downtime  %s %s:", of, unit)
	for i, t := range path {
		part := fmt.Sprintf(" %s %s", t.part, inUnit(float64(t.duration)/max(one, 1)))
		if i+1 < len(path) {
			part += ","
		}
		more := ""
		if i+1 < len(path) {
			more = " ..."
		}
		if len(line)+len(part)+len(more) > p.width() {
			return line + " ..."
		}
		line += part
	}
	return line
}

// inUnit is a value with two or three digits, and no more than two behind the point.
func inUnit(v float64) string {
	digits := map[bool]int{true: 1, false: 2}[v >= 10]
	if v >= 100 {
		digits = 0
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

// latencies say how long the page requests of a post-copy took, by QEMU's buckets.
func latencies(f *record.PostCopyFigures) (parts []string) {
	total := int64(0)
	for _, b := range f.LatencyBuckets {
		total += b.Count
	}
	if total > 0 {
		bucket := func(share float64) string {
			seen, need := int64(0), int64(math.Ceil(share*float64(total)))
			for _, b := range f.LatencyBuckets {
				if seen += b.Count; seen >= max(need, 1) && b.Count > 0 {
					return units.FormatDuration(b.From) + " to " + units.FormatDuration(b.To)
				}
			}
			return ""
		}
		parts = append(parts, Plural(total, "page request", "page requests")+": median "+bucket(0.5))
		if total >= 100 { // of fewer it is the longest
			parts = append(parts, "p99 "+bucket(0.99))
		}
		parts = append(parts, "longest "+bucket(1))
	}
	if f.Latency == nil {
		return parts
	}
	mean := "mean " + units.FormatDuration(*f.Latency)
	// a vCPU that requested none has 0
	of := slices.DeleteFunc(slices.Clone(f.VCPULatency), func(d time.Duration) bool { return d == 0 })
	if len(of) > 0 {
		least, most := slices.Min(of), slices.Max(of)
		mean += ", by vCPU " + units.FormatDuration(least)
		if least != most {
			mean += " to " + units.FormatDuration(most)
		}
	}
	if f.OtherLatency != nil {
		mean += ", by QEMU's other threads " + units.FormatDuration(*f.OtherLatency)
	}
	return append(parts, mean)
}
