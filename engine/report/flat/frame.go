package flat

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/record"
)

// IsNumber tells whether a migration's row has a column of numbers, or of yes and no, of that name.
func IsNumber(name string) bool {
	c, ok := columnOf(migrationColumns(), name)
	return ok && (c.Type == Int || c.Type == Float || c.Type == Bool)
}

func columnOf(all []Column, name string) (Column, bool) {
	i := slices.IndexFunc(all, func(c Column) bool { return c.Name == name })
	if i < 0 {
		return Column{}, false
	}
	return all[i], true
}

// Frame is a few columns of many records: all that statistics need of them. A hundred thousand records take some 50 MB.
type Frame struct {
	Rows    int
	numbers map[string][]float64 // NaN: absent
	texts   map[string]*texts
	factors []string // names, in order
	plan    []string
	order   []float64 // of the trial in its experiment, NaN without
	started []int64   // ns
	warn    []string
}

// texts is a column of texts, each different one kept once; 0 is the empty one, which stands for absent.
type texts struct {
	codes []uint32
	words []string
	code  map[string]uint32
}

func (t *texts) add(row int, word string) {
	for len(t.codes) < row {
		t.codes = append(t.codes, 0)
	}
	c, ok := t.code[word]
	if !ok {
		c = uint32(len(t.words))
		word = strings.Clone(word)
		t.words, t.code[word] = append(t.words, word), c
	}
	t.codes = append(t.codes, c)
}

func newTexts() *texts { return &texts{words: []string{""}, code: map[string]uint32{"": 0}} }

// frameRow is what is kept of one record.
type frameRow struct {
	numbers []float64
	words   []string
	factors map[string]any
	plan    map[string]any
	order   float64
	started int64
	id      string
}

// Load reads the folders' records and keeps some columns of a migration's row, as numbers and as texts, beside the
// factors, the plan and what tells trials apart. A record that stands twice, by its id, counts once.
func Load(folders []string, numbers, asText []string) (*Frame, error) {
	f := &Frame{numbers: map[string][]float64{}, texts: map[string]*texts{}}
	words := []string{"folder", "name", "mode", "outcome", "workload"}
	var cols, textCols []Column
	var tops []int
	all := migrationColumns()
	for _, name := range numbers {
		c, ok := columnOf(all, name)
		if !ok || c.Type == Text || c.Type == Time {
			return nil, fmt.Errorf("there is no column of numbers %q: `qmigrate export --columns` lists the columns", name)
		}
		if f.numbers[name] == nil {
			cols, tops = append(cols, c), append(tops, c.top)
			f.numbers[name] = []float64{}
		}
	}
	for _, name := range asText {
		if c, ok := columnOf(all, name); ok && !slices.Contains(words, name) {
			textCols, words, tops = append(textCols, c), append(words, name), append(tops, c.top)
		}
	}
	for _, w := range words {
		f.texts[w] = newTexts()
	}
	take := func(folder string, m *record.Migration) frameRow {
		v := reflect.ValueOf(m).Elem()
		r := frameRow{
			numbers: make([]float64, len(cols)), words: []string{folder, m.Name, string(m.Mode), string(m.Outcome),
				m.Workload}, factors: m.Factors, plan: m.Plan,
			order: math.NaN(), started: m.StartedAt.UnixNano(), id: m.ID,
		}
		for i := range cols {
			r.numbers[i] = cols[i].number(v)
		}
		for i := range textCols {
			r.words = append(r.words, cellText(textCols[i].value(v)))
		}
		if m.Order != nil {
			r.order = float64(*m.Order)
		}
		return r
	}
	factors, plan, ids, twice := map[string]bool{}, map[string]bool{}, map[string]bool{}, 0
	for r, err := range scan(folders, func(text string) { f.warn = append(f.warn, text) }, newPart(tops).decode, take) {
		if err != nil {
			return nil, err
		}
		if r.id != "" && ids[r.id] {
			twice++
			continue
		}
		ids[r.id] = true
		for i, v := range r.numbers {
			f.numbers[cols[i].Name] = append(f.numbers[cols[i].Name], v)
		}
		for i, w := range r.words {
			f.texts[words[i]].add(f.Rows, w)
		}
		f.values("factor:", factors, r.factors)
		f.values("plan:", plan, r.plan)
		f.order, f.started = append(f.order, r.order), append(f.started, r.started)
		f.Rows++
	}
	if twice > 0 {
		f.warn = append(f.warn, fmt.Sprintf("%d records stand more than once, and count once: where they were read first",
			twice))
	}
	f.factors, f.plan = slices.Sorted(maps.Keys(factors)), slices.Sorted(maps.Keys(plan))
	return f, nil
}

func (f *Frame) values(prefix string, seen map[string]bool, values map[string]any) {
	for k, v := range values {
		if !seen[k] {
			seen[strings.Clone(k)] = true
			f.texts[prefix+k] = newTexts()
		}
		if text, ok := textOf(v); ok {
			f.texts[prefix+k].add(f.Rows, text)
		}
	}
}

// Warnings are what was passed over.
func (f *Frame) Warnings() []string { return f.warn }

// Factors are the names of all factors, in alphabetical order.
func (f *Frame) Factors() []string { return f.factors }

// Plan are the names of the plans' values, in alphabetical order.
func (f *Frame) Plan() []string { return f.plan }

// Number is a row's cell; NaN where it is absent.
func (f *Frame) Number(name string, row int) float64 { return f.numbers[name][row] }

// Text is a row's cell; "" where it is absent. The name is that of a factor ("factor:NAME"), of a value of the plan
// ("plan:NAME") or of a column.
func (f *Frame) Text(name string, row int) string {
	if t := f.texts[name]; t != nil && row < len(t.codes) {
		return t.words[t.codes[row]]
	}
	return ""
}

// Started is when the row's migration began.
func (f *Frame) Started(row int) time.Time { return time.Unix(0, f.started[row]).UTC() }

// Order is the row's place in its experiment; NaN where it is no trial.
func (f *Frame) Order(row int) float64 { return f.order[row] }

// Find tells which column people mean by a name: a factor, a column of the records, or a value of the plan, with or
// without its unit. "" if none.
func (f *Frame) Find(name string) string {
	flat := columnName("", name)
	for _, k := range f.factors {
		if k == name || columnName("", k) == flat {
			return "factor:" + k
		}
	}
	if f.texts[flat] != nil {
		return flat
	}
	for _, k := range f.plan {
		if rest, ok := strings.CutPrefix(k, flat); ok && (rest == "" || rest[0] == '_' && UnitOf(rest) != "" &&
			"_"+strings.ReplaceAll(UnitOf(rest), "/", "_per_") == rest) {
			return "plan:" + k
		}
	}
	return ""
}

// Names are what Find knows, for a message.
func (f *Frame) Names() []string {
	out := slices.Clone(f.factors)
	for _, k := range slices.Sorted(maps.Keys(f.texts)) {
		if !strings.Contains(k, ":") && !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	for _, k := range f.plan {
		if !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}
