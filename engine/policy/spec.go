package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/record/units"
	"qmigrate/internal/near"
)

// Spec is a policy by its name, with all its values.
type Spec struct {
	Name   string
	values []value // in the order of the kind's parameters
}

// value is a parameter's: a duration in ns, a size in bytes, a count, a percentage, or the index of a word.
type value int64

// form is how a parameter is written.
type form int

const (
	duration form = iota
	size
	count
	percent
	choice
)

// parameter is one knob of a policy.
type parameter struct {
	name        string
	form        form
	value       value    // the default
	least, most value    // what is allowed; most 0: a form's own limit
	words       []string // of a choice
	meaning     string
}

// kind is one policy that exists.
type kind struct {
	name       string
	meaning    string
	parameters []parameter
	initial    func(s Spec, l Limits) Setting                            // nil: the plan's
	needs      func(s Spec, l Limits) (capabilities []string, err error) // nil: nothing
	policy     func(s Spec) Policy
}

func kinds() []kind {
	return []kind{none(), timeout(), doubling(), steps(), ramp(), stall(), postCopyOnStall(), quickFinish(),
		autoConverge(), switchover()}
}

// Names lists the policies.
func Names() []string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return names
}

// Help describes each policy in a line, and each of its parameters with its default in another.
func Help() string {
	var b strings.Builder
	for _, k := range kinds() {
		fmt.Fprintf(&b, "%-18s %s\n", k.name, k.meaning)
		for _, p := range k.parameters {
			fmt.Fprintf(&b, "  %-16s %s (default %s)\n", p.name, p.meaning, p.format(p.value))
		}
	}
	return b.String()
}

func (s Spec) kind() kind {
	for _, k := range kinds() {
		if k.name == s.Name {
			return k
		}
	}
	return none() // the zero Spec
}

// Parse reads NAME[:k=v,...].
func Parse(text string) (Spec, error) {
	name, rest, given := strings.Cut(strings.TrimSpace(text), ":")
	all := kinds()
	i := slices.IndexFunc(all, func(k kind) bool { return k.name == name })
	if i < 0 {
		return Spec{}, fmt.Errorf("policy %q does not exist: %s", name, near.Hint(name, Names()))
	}
	k := all[i]
	s := Spec{Name: k.name}
	for _, p := range k.parameters {
		s.values = append(s.values, p.value)
	}
	if !given {
		return s, nil
	}
	seen := map[string]bool{}
	for _, word := range strings.Split(rest, ",") {
		key, text, ok := strings.Cut(word, "=")
		key = strings.TrimSpace(key)
		if !ok {
			return Spec{}, fmt.Errorf("policy %s: %q is not of the form key=value: %s", name, word, k.usage())
		}
		j := slices.IndexFunc(k.parameters, func(p parameter) bool { return p.name == key })
		if j < 0 {
			return Spec{}, fmt.Errorf("policy %s has no parameter %q: %s", name, key, near.Or(key, k.names(), k.usage()))
		}
		if seen[key] {
			return Spec{}, fmt.Errorf("policy %s: %s is given twice", name, key)
		}
		seen[key] = true
		v, err := k.parameters[j].parse(strings.TrimSpace(text))
		if err != nil {
			return Spec{}, fmt.Errorf("policy %s: %s: %w", name, key, err)
		}
		s.values[j] = v
	}
	return s, nil
}

// names are those of its parameters.
func (k kind) names() (all []string) {
	for _, p := range k.parameters {
		all = append(all, p.name)
	}
	return all
}

// usage says what may be given.
func (k kind) usage() string {
	if len(k.parameters) == 0 {
		return "it takes none"
	}
	var words []string
	for _, p := range k.parameters {
		words = append(words, p.name+"="+p.format(p.value))
	}
	return "it takes " + strings.Join(words, ",")
}

func (p parameter) parse(text string) (v value, err error) {
	switch p.form {
	case duration:
		d, err := units.Duration(text)
		if err != nil {
			return 0, err
		}
		v = value(d)
	case size:
		n, err := units.Size(text)
		if err != nil {
			return 0, err
		}
		v = value(n)
	case count, percent:
		number := text
		if p.form == percent {
			var ok bool
			if number, ok = strings.CutSuffix(text, "%"); !ok {
				return 0, fmt.Errorf("%q is not a percentage: write it as %s", text, p.format(p.value))
			}
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is not a whole number: write it as %s", text, p.format(p.value))
		}
		v = value(n)
	case choice:
		i := slices.Index(p.words, text)
		if i < 0 {
			return 0, fmt.Errorf("%q is none of %s", text, strings.Join(p.words, ", "))
		}
		return value(i), nil
	}
	if v < p.least || p.most > 0 && v > p.most {
		if p.most > 0 {
			return 0, fmt.Errorf("%s is out of range: from %s to %s", text, p.format(p.least), p.format(p.most))
		}
		return 0, fmt.Errorf("%s is out of range: at least %s", text, p.format(p.least))
	}
	return v, nil
}

// format prints a value so that parse reads the same again.
func (p parameter) format(v value) string {
	switch p.form {
	case duration:
		return time.Duration(v).String()
	case size:
		if text := strings.ReplaceAll(units.FormatSize(int64(v)), " ", ""); exact(text, int64(v)) {
			return text
		}
		return strconv.FormatInt(int64(v), 10) + "B"
	case percent:
		return strconv.FormatInt(int64(v), 10) + "%"
	case choice:
		return p.words[v]
	}
	return strconv.FormatInt(int64(v), 10)
}

func exact(text string, bytes int64) bool {
	n, err := units.Size(text)
	return err == nil && n == bytes
}

// String is the canonical text: every parameter, in a fixed order, so that Parse reads the same again.
func (s Spec) String() string {
	k := s.kind()
	var words []string
	for i, p := range k.parameters {
		words = append(words, p.name+"="+p.format(s.value(i)))
	}
	if len(words) == 0 {
		return k.name
	}
	return k.name + ":" + strings.Join(words, ",")
}

// value is the i-th parameter's: its default in a Spec that was not parsed.
func (s Spec) value(i int) value {
	if i < len(s.values) {
		return s.values[i]
	}
	return s.kind().parameters[i].value
}

// Policy is the function that decides.
func (s Spec) Policy() Policy { return s.kind().policy(s) }

// Initial is what must be in force before `migrate`, and the capabilities that it needs switched on, by QEMU's names.
// An error says what this pair or this plan does not allow.
func (s Spec) Initial(l Limits) (Setting, []string, error) {
	k := s.kind()
	setting := l.start()
	if k.initial != nil {
		setting = k.initial(s, l)
	}
	if k.needs == nil {
		return setting, nil, nil
	}
	capabilities, err := k.needs(s, l)
	if err != nil {
		return Setting{}, nil, fmt.Errorf("policy %s: %w", k.name, err)
	}
	return setting, capabilities, nil
}

func (s Spec) get(name string) value {
	for i, p := range s.kind().parameters {
		if p.name == name {
			return s.value(i)
		}
	}
	panic("policy " + s.Name + " has no parameter " + name) // a slip in this package, which its tests find
}

func (s Spec) duration(name string) time.Duration { return time.Duration(s.get(name)) }
func (s Spec) bytes(name string) int64            { return int64(s.get(name)) }
func (s Spec) number(name string) int             { return int(s.get(name)) }
func (s Spec) share(name string) float64          { return float64(s.get(name)) / 100 }

func (s Spec) word(name string) string {
	for _, p := range s.kind().parameters {
		if p.name == name {
			return p.words[s.get(name)]
		}
	}
	panic("policy " + s.Name + " has no parameter " + name)
}

func none() kind {
	return kind{name: "none", meaning: "QEMU decides alone",
		policy: func(Spec) Policy { return func(*History) Decision { return Decision{} } }}
}
