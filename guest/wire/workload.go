package wire

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/internal/near"
)

// Unit says how a parameter's value is written.
type Unit string

// The units of parameters.
const (
	Size    Unit = "size"    // bytes: 16MiB
	Rate    Unit = "rate"    // events a second: 2000/s; plain 2000 is understood
	Speed   Unit = "speed"   // bytes a second: 1MiB/s
	Span    Unit = "time"    // 300ms
	Count   Unit = "count"   // a whole number: 4
	Percent Unit = "percent" // 50%; plain 50 is understood
	Choice  Unit = "choice"  // one of Choices
)

// A Param is one parameter of a workload.
type Param struct {
	Name     string
	Unit     Unit
	Default  string
	Choices  []string // for Choice
	Min, Max float64  // in bytes, events a second, bytes a second, nanoseconds, units or percent; Max 0: none
	Text     string   // what it means, one line
}

// A WorkloadType is a workload that exists.
type WorkloadType struct {
	Name   string
	Event  string // what it counts, singular
	Text   string // one line
	Params []Param

	Guest   string        // the guest that it needs; empty: any
	Report  time.Duration // it counts in reports about so far apart: rates over less are none; 0: at once
	Outside bool          // a part of it is on the observer and lives as long as the program that made the lab
}

// The contents of a page.
const (
	Random       = "random"       // every byte differs: nothing to compress
	Compressible = "compressible" // one random 8-byte word, repeated through each 64-byte line
	Zero         = "zero"         // all zero, without index and counter
)

// The patterns of the page dirtier.
const (
	Sequential = "sequential"
	Uniform    = "uniform"
	HotCold    = "hot-cold" // 90 % of the writes go to 10 % of the pages
)

// WorkloadTypes lists the workloads that exist, in the order in which they are listed to people.
func WorkloadTypes() []WorkloadType {
	duration := Param{Name: "duration", Unit: Span, Default: "0s",
		Text: "ends by itself after this time on the guest's clock; 0s: runs until stopped"}
	return append([]WorkloadType{
		{Name: "idle", Event: "none", Text: "does nothing", Params: []Param{duration}},
		{Name: "clock", Event: "turn", Text: "reads the clock, sleeps, counts", Params: []Param{
			{Name: "interval", Unit: Span, Default: "1ms", Min: 1e4, Max: 1e10, Text: "sleep between two turns"}, duration}},
		{Name: "dirty", Event: "page write", Text: "writes to pages of the filled memory at a rate", Params: []Param{
			{Name: "rate", Unit: Rate, Default: "2000/s", Max: 1e9, Text: "page writes a second; 0: as fast as it can"},
			{Name: "working-set", Unit: Size, Default: "16MiB", Min: PageSize, Text: "memory that is written to"},
			{Name: "pattern", Unit: Choice, Default: Uniform, Choices: []string{Sequential, Uniform, HotCold},
				Text: "which page is next; hot-cold: 90 % of the writes on 10 % of the pages"},
			{Name: "content", Unit: Choice, Default: Random, Choices: []string{Random, Compressible, Zero},
				Text: "what is written"},
			{Name: "change", Unit: Size, Default: "64B", Min: 64, Max: PageSize - 64,
				Text: "how much of a page one write alters, in lines of 64 bytes (zero: the first word only)"},
			{Name: "vcpus", Unit: Count, Default: "1", Min: 1, Max: 64,
				Text: "writers, which share the working set and the rate; if there are several, each stays on its own vCPU"},
			{Name: "period", Unit: Span, Default: "0s", Max: 3.6e12, Text: "length of a phase of writing and rest; 0s: no rest"},
			{Name: "duty", Unit: Percent, Default: "100%", Min: 1, Max: 100,
				Text: "the first part of each period, in which alone is written, at the rate"},
			{Name: "drift", Unit: Speed, Default: "0B/s", Max: 1 << 40,
				Text: "speed at which the working set moves through the filled memory, round and round"},
			duration}},
		{Name: "livermore", Event: "floating-point operation",
			Text: "McMahon's 24 Livermore Fortran kernels, their checksums compared; MFLOPS", Params: []Param{
				{Name: "span", Unit: Choice, Default: "long", Choices: []string{"long", "medium", "short"},
					Text: "length of the kernels' loops: 471, 89 or 19 on average"}, duration}},
		{Name: "dhrystone", Event: "Dhrystone", Text: "Weicker's Dhrystone 2.1, its final values compared; Dhrystones/s",
			Params: []Param{duration}},
		{Name: "linpack", Event: "floating-point operation",
			Text: "a dense system solved by LU with partial pivoting, its residual checked; MFLOPS", Params: []Param{
				{Name: "n", Unit: Choice, Default: "100", Choices: []string{"100", "1000"},
					Text: "order of the matrix"}, duration}},
	}, append(trafficTypes(duration), toolTypes(duration)...)...)
}

// ParseWorkload reads NAME or NAME:k=v,... and refuses what does not exist or cannot be, listing what does.
func ParseWorkload(s string) (Workload, error) {
	name, rest, more := strings.Cut(s, ":")
	w := Workload{Name: name}
	if more {
		w.Params = map[string]string{}
		for _, kv := range strings.Split(rest, ",") {
			k, v, ok := strings.Cut(kv, "=")
			if _, dup := w.Params[k]; dup {
				return Workload{}, fmt.Errorf("parse workload %q: %s is given twice", s, k)
			}
			if !ok {
				if _, err := find(name); err != nil {
					return Workload{}, fmt.Errorf("parse workload %q: %w", s, err)
				}
				return Workload{}, fmt.Errorf("parse workload %q: %q is not NAME=VALUE", s, kv)
			}
			w.Params[k] = v
		}
	}
	if err := w.Validate(); err != nil {
		return Workload{}, fmt.Errorf("parse workload %q: %w", s, err)
	}
	return w, nil
}

// Validate refuses an unknown name, an unknown parameter and a value that cannot be.
func (w Workload) Validate() error {
	t, err := find(w.Name)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(w.Params)) {
		i := slices.IndexFunc(t.Params, func(p Param) bool { return p.Name == name })
		if i < 0 {
			var have []string
			for _, p := range t.Params {
				have = append(have, p.Name)
			}
			return fmt.Errorf("%s has no parameter %q: %s", t.Name, name,
				near.Or(name, have, "it has "+strings.Join(have, ", ")))
		}
		if _, err := t.Params[i].parse(w.Params[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// String is the workload as ParseWorkload reads it, every parameter with its value and unit, in the order of its type.
func (w Workload) String() string {
	t, err := find(w.Name)
	if err != nil {
		return w.Name
	}
	var parts []string
	for _, p := range t.Params {
		v := w.value(p)
		if n, err := p.parse(v); err == nil {
			v = p.format(n, v)
		}
		parts = append(parts, p.Name+"="+v)
	}
	return w.Name + ":" + strings.Join(parts, ",")
}

// Type is the workload's type; the zero value if there is none of that name.
func (w Workload) Type() WorkloadType {
	t, _ := find(w.Name)
	return t
}

// Number is a parameter's value or default in bytes, events a second or nanoseconds; 0 if there is no such parameter.
// The workload must be valid.
func (w Workload) Number(name string) float64 {
	for _, p := range w.Type().Params {
		if p.Name == name {
			n, _ := p.parse(w.value(p))
			return n
		}
	}
	return 0
}

// Duration is Number for a time.
func (w Workload) Duration(name string) time.Duration { return time.Duration(w.Number(name)) }

// Choice is the value or default of a parameter that is one of several words.
func (w Workload) Choice(name string) string {
	for _, p := range w.Type().Params {
		if p.Name == name {
			return w.value(p)
		}
	}
	return ""
}

func (w Workload) value(p Param) string {
	if v, ok := w.Params[p.Name]; ok {
		return v
	}
	return p.Default
}

func find(name string) (WorkloadType, error) {
	var have []string
	for _, t := range WorkloadTypes() {
		if t.Name == name {
			return t, nil
		}
		have = append(have, t.Name)
	}
	return WorkloadType{}, fmt.Errorf("no workload %q: %s", name, near.Hint(name, have))
}

var sizes = []struct {
	suffix string
	bytes  float64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"B", 1}}

func (p Param) parse(v string) (float64, error) {
	var n float64
	var err error
	switch p.Unit {
	case Choice:
		if !slices.Contains(p.Choices, v) {
			return 0, fmt.Errorf("%q is none of %s", v, strings.Join(p.Choices, ", "))
		}
		return 0, nil
	case Rate:
		if n, err = number(strings.TrimSuffix(v, "/s")); err != nil {
			return 0, fmt.Errorf("%q is no rate, such as 2000/s", v)
		}
	case Count:
		if n, err = number(v); err != nil || n != math.Trunc(n) {
			return 0, fmt.Errorf("%q is no whole number, such as 2", v)
		}
	case Percent:
		if n, err = number(strings.TrimSuffix(v, "%")); err != nil {
			return 0, fmt.Errorf("%q is no percentage, such as 50%%", v)
		}
	case Speed:
		digits, ok := strings.CutSuffix(v, "/s")
		if n, err = size(digits); err != nil || !ok {
			return 0, fmt.Errorf("%q is no speed with its unit (B/s, KiB/s, MiB/s, GiB/s, TiB/s), such as 1MiB/s", v)
		}
	case Span:
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 || v == "0" {
			return 0, fmt.Errorf("%q is no time with its unit (ns, us, ms, s, m, h), such as 300ms", v)
		}
		n = float64(d)
	case Size:
		if n, err = size(v); err != nil {
			return 0, fmt.Errorf("%q is no size with its unit (B, KiB, MiB, GiB, TiB), such as 16MiB", v)
		}
	}
	if n < p.Min || p.Max > 0 && n > p.Max {
		hi := "any"
		if p.Max > 0 {
			hi = p.format(p.Max, "")
		}
		return 0, fmt.Errorf("%s is out of range: %s to %s", v, p.format(p.Min, ""), hi)
	}
	return n, nil
}

// size reads a number of bytes with its unit.
func size(v string) (float64, error) {
	for _, s := range sizes {
		if digits, ok := strings.CutSuffix(v, s.suffix); ok {
			n, err := number(digits)
			return n * s.bytes, err
		}
	}
	return 0, strconv.ErrSyntax
}

// number reads digits with an optional fraction: no sign, no exponent, no infinity.
func number(s string) (float64, error) {
	if s == "" || strings.Trim(s, "0123456789.") != "" {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseFloat(s, 64)
	if err == nil && n > math.MaxInt64/2 {
		err = strconv.ErrRange
	}
	return n, err
}

func (p Param) format(n float64, choice string) string {
	switch p.Unit {
	case Rate:
		return strconv.FormatFloat(n, 'f', -1, 64) + "/s"
	case Span:
		return time.Duration(n).String()
	case Count:
		return strconv.FormatFloat(n, 'f', -1, 64)
	case Percent:
		return strconv.FormatFloat(n, 'f', -1, 64) + "%"
	case Speed:
		return formatSize(n) + "/s"
	case Size:
		return formatSize(n)
	}
	return choice
}

func formatSize(n float64) string {
	for _, s := range []int{3, 2, 1, 0} {
		if f := n / sizes[s].bytes; f >= 1 && f == math.Trunc(f) {
			return strconv.FormatFloat(f, 'f', -1, 64) + sizes[s].suffix
		}
	}
	return strconv.FormatFloat(n, 'f', -1, 64) + "B"
}
