package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
)

// kind says what a number counts; numbers are kept in bytes, bytes/s, seconds, 1/s and percent.
type kind string

const (
	none      kind = ""
	sizeKind  kind = "bytes"
	rateKind  kind = "bytes/s"
	timeKind  kind = "s"
	perSecond kind = "/s"
	percent   kind = "%"
)

// level is one value of a factor.
type level struct {
	text   string // as it was written
	kind   kind
	number float64 // NaN: not a number
}

func (l level) isNumber() bool     { return !math.IsNaN(l.number) && l.text != "" }
func (l level) equal(m level) bool { return l.text == m.text }
func (l level) isSwitch() bool     { return l.text == "on" || l.text == "off" }

// String prints a size, rate or time in the unit that fits, so that 1024MiB and 1GiB are the same, and anything else as
// it was written.
func (l level) String() string {
	switch {
	case !l.isNumber():
		return l.text
	case l.kind == sizeKind:
		return units.FormatSize(int64(l.number))
	case l.kind == rateKind:
		return units.FormatRate(l.number)
	case l.kind == timeKind:
		return units.FormatDuration(time.Duration(math.Round(l.number * 1e9)))
	case l.kind == perSecond:
		return strconv.FormatFloat(l.number, 'f', -1, 64) + "/s"
	}
	return l.text
}

// compare orders numbers by their value, then words; nothing comes first, and modes in the order in which they were
// invented.
func (l level) compare(m level) int {
	switch {
	case l.isNumber() && m.isNumber():
		return cmp.Compare(l.number, m.number)
	case l.isNumber() != m.isNumber():
		if l.text == "" || m.text != "" && l.isNumber() {
			return -1
		}
		return 1
	}
	modes := []string{string(record.StopAndCopyMode), string(record.PreCopyMode), string(record.PostCopyMode),
		string(record.HybridMode), string(record.COLOMode)}
	if a, b := slices.Index(modes, l.text), slices.Index(modes, m.text); a >= 0 && b >= 0 {
		return cmp.Compare(a, b)
	}
	return cmp.Compare(l.text, m.text)
}

// levelOf reads a value as records have it. Equal quantities are equal levels, however they were written.
func levelOf(v any) level {
	l := level{number: math.NaN()}
	switch v := v.(type) {
	case nil:
		return l
	case bool:
		l.text = map[bool]string{true: "on", false: "off"}[v]
		return l
	case float64:
		return level{text: strconv.FormatFloat(v, 'f', -1, 64), number: v}
	case int64:
		return level{text: strconv.FormatInt(v, 10), number: float64(v)}
	case int:
		return level{text: strconv.Itoa(v), number: float64(v)}
	case string:
		l.text = v
	default:
		b, err := json.Marshal(v)
		if err != nil {
			b = fmt.Append(nil, v)
		}
		l.text = string(b)
		return l
	}
	if n, err := strconv.ParseFloat(l.text, 64); err == nil && !math.IsInf(n, 0) && !math.IsNaN(n) {
		l.number = n
		return l
	}
	if n, err := units.Size(l.text); err == nil {
		l.kind, l.number = sizeKind, float64(n)
	} else if n, err := units.Rate(l.text); err == nil {
		l.kind, l.number = rateKind, float64(n)
	} else if d, err := units.Duration(l.text); err == nil {
		l.kind, l.number = timeKind, d.Seconds()
	} else if text, ok := strings.CutSuffix(l.text, "/s"); ok {
		if n, err := strconv.ParseFloat(text, 64); err == nil {
			l.kind, l.number = perSecond, n
		}
	} else if text, ok := strings.CutSuffix(l.text, "%"); ok {
		if n, err := strconv.ParseFloat(strings.TrimSpace(text), 64); err == nil {
			l.kind, l.number = percent, n
		}
	}
	if l.isNumber() && l.kind != percent {
		l.text = l.String()
	}
	return l
}

// factor is something that varies between the trials.
type factor struct {
	name      string
	levels    []level // in their order
	numeric   bool    // an axis can be made of it: numbers of one kind
	kind      kind
	ambiguous bool // another factor has a value that looks the same: the name has to stand before it
}

// The factors that have a meaning of their own here.
const (
	modeFactor      = "mode"
	workloadFactor  = "workload"
	bandwidthFactor = "max-bandwidth"
	folderFactor    = "folder"
	sweepFactor     = "sweep" // one of the experiment's designs: what it varies, others do not
)

// paramFactor is the name of a parameter of the workload, as a factor.
func paramFactor(param string) string { return workloadFactor + "-" + param }

// factorsOf finds what varies: the experiment's own factors where there are any, and otherwise what varies in the
// plans. Each trial gets its levels.
func factorsOf(trials []*trial) []factor {
	order := []string{sweepFactor, modeFactor} // first ones first: this is also the order in which results are listed
	columns := map[string][]level{}
	add := func(i int, name string, v any) {
		if columns[name] == nil {
			columns[name] = slices.Repeat([]level{{number: math.NaN()}}, len(trials))
			if name != modeFactor && name != sweepFactor {
				order = append(order, name)
			}
		}
		columns[name][i] = levelOf(v)
	}
	dirs := map[string]bool{}
	for _, t := range trials {
		dirs[t.dir] = true
	}
	for i, t := range trials {
		add(i, modeFactor, string(t.Mode))
		if len(dirs) > 1 {
			add(i, folderFactor, t.dir)
		}
		add(i, "experiment", t.Experiment)
		values := t.Factors
		if len(values) == 0 {
			values = planned(t.Migration)
		}
		for _, name := range slices.Sorted(maps.Keys(values)) {
			if name == workloadFactor {
				if w, ok := values[name].(string); ok {
					name, params := workload(w)
					add(i, workloadFactor, name)
					for _, p := range params {
						add(i, paramFactor(p[0]), p[1])
					}
					continue
				}
			}
			if name != modeFactor { // the record's own is what was done
				add(i, name, values[name])
			}
		}
	}
	for i := range trials {
		trials[i].levels = map[string]level{}
	}
	sweeps := map[string][]int{}
	for i := range trials {
		key := ""
		if columns[sweepFactor] != nil {
			key = columns[sweepFactor][i].text
		}
		sweeps[key] = append(sweeps[key], i)
	}
	for _, of := range sweeps {
		idle(of, columns)
	}
	for name, column := range columns {
		for i, l := range column {
			trials[i].levels[name] = l
		}
	}
	return varying(trials, order)
}

// varying are those of the names that have more than one level among the trials.
func varying(trials []*trial, order []string) []factor {
	var all []factor
	for _, name := range order {
		f := factor{name: name, numeric: true}
		seen := map[string]bool{}
		for _, t := range trials {
			if l := t.levels[name]; !seen[l.text] {
				seen[l.text] = true
				f.levels = append(f.levels, l)
			}
		}
		if len(f.levels) < 2 {
			continue
		}
		slices.SortFunc(f.levels, level.compare)
		for i, l := range f.levels {
			if i == 0 {
				f.kind = l.kind
			}
			unlimited := l.number == 0 && name == bandwidthFactor // 0B/s is QEMU's word for no limit, and no place on an axis
			f.numeric = f.numeric && l.isNumber() && l.kind == f.kind && !unlimited
		}
		all = append(all, f)
	}
	for i := range all { // names of sizes stand in the order of the sizes
		f := &all[i]
		if f.numeric || f.name == modeFactor {
			continue
		}
		for _, o := range all {
			if o.numeric && follows(o, *f, trials) {
				of := map[string]float64{}
				for _, t := range trials {
					of[t.levels[f.name].text] = t.levels[o.name].number
				}
				slices.SortStableFunc(f.levels, func(a, b level) int { return cmp.Compare(of[a.text], of[b.text]) })
				break
			}
		}
	}
	for i := range all {
		for j := range all {
			if i != j && slices.ContainsFunc(all[i].levels, func(l level) bool {
				return l.text != "" && slices.ContainsFunc(all[j].levels, func(m level) bool { return l.text == m.text })
			}) {
				all[i].ambiguous = true
			}
		}
	}
	return all
}

// planned is what was asked of a migration that is no trial of an experiment, in the words of the command line.
func planned(m *record.Migration) map[string]any {
	out := map[string]any{
		workloadFactor: m.Workload,
		"memory":       units.FormatSize(m.QEMU.MemoryBytes),
		"vcpus":        m.QEMU.VCPUs,
		"accelerator":  m.QEMU.Accelerator,
		"source-qemu":  m.QEMU.SourceVersion, "destination-qemu": m.QEMU.DestinationVersion,
		"machine": m.QEMU.Machine,
	}
	for key, v := range m.Plan {
		number, isNumber := v.(float64)
		switch name := strings.ReplaceAll(key, "_", "-"); {
		case key == "mode" || key == "listen" || key == "sample_interval_ns":
		case isNumber && strings.HasSuffix(key, "_bytes_per_s"):
			out[strings.TrimSuffix(name, "-bytes-per-s")] = units.FormatRate(number)
		case isNumber && strings.HasSuffix(key, "_bytes"):
			out[strings.TrimSuffix(name, "-bytes")] = units.FormatSize(int64(number))
		case isNumber && strings.HasSuffix(key, "_ns"):
			out[strings.TrimSuffix(name, "-ns")] = time.Duration(number).String()
		default:
			if sub, ok := v.(map[string]any); ok {
				for k, v := range sub {
					out[k] = v
				}
				continue
			}
			out[name] = v
		}
	}
	return out
}

// workload takes NAME:k=v,... apart.
func workload(text string) (name string, params [][2]string) {
	name, rest, _ := strings.Cut(text, ":")
	for _, kv := range strings.Split(rest, ",") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			if _, err := strconv.ParseFloat(v, 64); err == nil && k == "rate" { // a plain 2000 is understood
				v += "/s"
			}
			params = append(params, [2]string{k, v})
		}
	}
	return name, params
}

// idle makes, in one sweep, a guest that does nothing one that dirties 0 pages a second where all others run one and
// the same workload at a rate: it belongs on that axis. The workload's other parameters are then those of the others,
// if these agree.
func idle(of []int, columns map[string][]level) {
	names, rates := columns[workloadFactor], columns[paramFactor("rate")]
	if names == nil || rates == nil {
		return
	}
	other := ""
	for _, i := range of {
		switch l := names[i]; {
		case l.text == "idle" || l.text == "":
		case other != "" && other != l.text || rates[i].text == "":
			return
		default:
			other = l.text
		}
	}
	for name, column := range columns {
		if !strings.HasPrefix(name, paramFactor("")) {
			continue
		}
		common, agree := level{}, true
		for _, i := range of {
			if names[i].text == other {
				agree = agree && (common.text == "" || common.text == column[i].text)
				common = column[i]
			}
		}
		for _, i := range of {
			switch {
			case names[i].text != "idle":
			case name == paramFactor("rate"):
				column[i] = level{text: "0/s", kind: perSecond}
			case agree:
				column[i] = common
			}
		}
	}
	for _, i := range of {
		if names[i].text == "idle" && other != "" {
			names[i].text = other
		}
	}
}

// find returns the factor of that name.
func find(factors []factor, name string) (factor, bool) {
	i := slices.IndexFunc(factors, func(f factor) bool { return f.name == name })
	if i < 0 {
		return factor{}, false
	}
	return factors[i], true
}

// without is the factors but for one.
func without(factors []factor, name string) []factor {
	return slices.DeleteFunc(slices.Clone(factors), func(f factor) bool { return f.name == name })
}

// scale is the unit in which values of a kind are shown, and what one of it is.
func scale(k kind, largest float64) (unit string, one float64) {
	type step struct {
		unit string
		one  float64
	}
	var steps []step
	switch k {
	case timeKind:
		steps = []step{{"s", 1}, {"ms", 1e-3}, {"us", 1e-6}}
	case sizeKind, rateKind:
		suffix := strings.TrimPrefix(string(k), "bytes")
		steps = []step{{"GiB" + suffix, 1 << 30}, {"MiB" + suffix, 1 << 20}, {"KiB" + suffix, 1 << 10}, {"B" + suffix, 1}}
	default:
		return string(k), 1
	}
	for _, s := range steps {
		if math.Abs(largest) >= s.one*0.9999 {
			return s.unit, s.one
		}
	}
	return steps[len(steps)-1].unit, steps[len(steps)-1].one
}
