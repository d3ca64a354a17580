// Package experiment runs migrations by the dozen: one file names factors and their values, every cell of the cross is
// a plan and a lab, every trial of a cell a record. What is impossible is refused with the line that asks for it before
// anything starts; a run that is stopped goes on where it was.
package experiment

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"

	"qmigrate/engine/lab"
	"qmigrate/engine/plan"
	"qmigrate/engine/record/units"
	"qmigrate/engine/setting"
	"qmigrate/guest/wire"
	"qmigrate/internal/near"
)

// How often a guest is booted.
const (
	PerTrial = "trial" // for each trial
	PerCell  = "cell"  // for all trials of a cell, which then follow each other: the guest goes back and forth
)

// Experiment is a file as it is meant at one scale.
type Experiment struct {
	File         string
	Text         []byte // of the file
	Name         string // default: the file's name without .toml
	Title        string
	Scale        string // "": the real size
	Scales       []string
	Seed         *int64 // nil: drawn, and kept in the folder
	Repeats      int    // of a cell whose sweep says nothing else; default 5
	WarmUp       int    // trials that are run before the first and not recorded; default 1
	TrialTimeout time.Duration
	Boot         string   // PerTrial (default) or PerCell
	Shrink       int64    // guest memory and working sets are divided by it; default 1
	Without      []string // what of the study this file does not do, a line each
	LeftOut      []string // what of the file is not done here, and why, a line each
	Figures      []Figure
	Sweeps       []*Sweep
	Cells        []*Cell

	hash string // of the file's meaning, before Check leaves anything out
}

const (
	defaultRepeats      = 5
	defaultTrialTimeout = 10 * time.Minute
	maxTrials           = 1_000_000
)

// Sweep is one part of an experiment: cells that are crossed or listed.
type Sweep struct {
	Name     string   `json:"name,omitempty"`
	Note     string   `json:"note,omitempty"`
	Optional bool     `json:"optional,omitempty"` // cells that this host cannot do are left out, which is said
	Repeats  int      `json:"repeats"`
	Factors  []string `json:"factors"` // those that vary, in the file's order
	line     int
}

// Figure is one that the report should have, in the words of the record's keys and the factors' names.
type Figure struct {
	Title   string `json:"title"`
	Kind    string `json:"kind"`              // one of FigureKinds
	Show    string `json:"show,omitempty"`    // key of the record: total.wall_ns
	Against string `json:"against,omitempty"` // factor on the x axis
	By      string `json:"by,omitempty"`      // factor with a line each
	Sweep   string `json:"sweep,omitempty"`   // whose trials; "": all
}

// FigureKinds are the kinds of a figure.
func FigureKinds() []string {
	return []string{"against", "passes", "stages", "observers", "timeline", "cpu", "prediction", "ecdf", "table"}
}

// Cell is one combination of values.
type Cell struct {
	Sweep   *Sweep
	Name    string         // derived from the values that vary, so that it cannot lie
	Factors map[string]any // every factor that the file gives, in its words
	Lab     lab.Spec
	Plan    plan.Plan

	lines map[string]int // of each factor's value
	texts map[string]string
}

// Trial is one cell's n-th repeat.
type Trial struct {
	*Cell
	Repeat int // from 1
	Order  int // place in the experiment's order, from 0
}

// ID is the same whenever the experiment is run.
func (t Trial) ID() string { return fmt.Sprintf("%s #%d", t.Name, t.Repeat) }

// Parse reads an experiment's file, at one of its scales or, "", at its real size. The errors are *Error, joined; those
// of the other scales are found too.
func Parse(file string, text []byte, scale string) (*Experiment, error) {
	root, err := parse(file, text)
	if err != nil {
		return nil, err
	}
	scales := root.table["scale"]
	r := &reader{file: file, seen: map[int]bool{}}
	var names []string
	if scales != nil && r.is(scales, "scale", aTable) {
		names = scales.keys
	}
	if scale != "" && !slices.Contains(names, scale) {
		return nil, fmt.Errorf("%s has no scale %q: it has %s", file, scale, cmp.Or(strings.Join(names, ", "), "none"))
	}
	var chosen *Experiment
	for _, name := range append([]string{""}, names...) {
		e := r.experiment(root, name)
		e.File, e.Text, e.Scales = file, text, names
		if name == scale {
			chosen = e
		}
	}
	if len(r.errs) > 0 {
		slices.SortStableFunc(r.errs, func(a, b *Error) int { return a.Line - b.Line })
		var all []error
		for _, e := range r.errs {
			all = append(all, e)
		}
		return nil, errors.Join(all...)
	}
	return chosen, nil
}

// reader turns the tree into an experiment and collects what is wrong on the way.
type reader struct {
	file string
	errs []*Error
	seen map[int]bool
}

func (r *reader) wrong(line int, format string, args ...any) {
	if !r.seen[line] { // one thing at a time; and each scale reads the whole file
		r.seen[line] = true
		r.errs = append(r.errs, &Error{r.file, line, fmt.Sprintf(format, args...)})
	}
}

func (r *reader) is(n *node, what string, k kind) bool {
	if n.kind != k {
		r.wrong(n.line, "%s is a %s, not a %s", what, k, n.kind)
	}
	return n.kind == k
}

// The keys of the file's top, and those that a scale may give too.
var (
	scaledKeys = []string{"repeats", "warm-up", "seed", "trial-timeout", "boot", "shrink", "without", "common", "sweep"}
	topKeys    = append([]string{"name", "title", "figures", "scale"}, scaledKeys...)
	sweepKeys  = []string{"name", "note", "repeats", "optional", "skip", "cells", "exclude", "only"}
)

func (r *reader) experiment(root *node, scale string) *Experiment {
	e := &Experiment{Name: strings.TrimSuffix(filepath.Base(r.file), ".toml"), Scale: scale, Repeats: defaultRepeats,
		WarmUp: 1, TrialTimeout: defaultTrialTimeout, Boot: PerTrial, Shrink: 1}
	top, common, overlay := root, root.table["common"], (*node)(nil)
	if scale != "" {
		s := root.table["scale"].table[scale]
		if r.is(s, "scale "+scale, aTable) {
			r.known(s, "scale "+scale, scaledKeys)
			top, overlay = root.over(s), s.table["sweep"]
			if c := s.table["common"]; c != nil && common != nil && r.is(c, "common", aTable) {
				common = common.over(c)
			} else if c != nil {
				common = c
			}
		}
	}
	r.known(root, "the file", topKeys)
	r.text(top, "name", &e.Name)
	r.text(top, "title", &e.Title)
	r.number(top, "repeats", &e.Repeats, 1)
	r.number(top, "warm-up", &e.WarmUp, 0)
	if n := top.table["seed"]; n != nil {
		if seed, ok := n.value.(int64); ok {
			e.Seed = &seed
		} else {
			r.wrong(n.line, "seed %s: a whole number", n.text)
		}
	}
	if n := top.table["trial-timeout"]; n != nil {
		var err error
		if e.TrialTimeout, err = units.Duration(n.text); err != nil {
			r.wrong(n.line, "trial-timeout: %v", err)
		} else if e.TrialTimeout < time.Second {
			r.wrong(n.line, "trial-timeout %s: at least 1s", n.text)
		}
	}
	if n := top.table["boot"]; n != nil {
		if !slices.Contains([]string{PerTrial, PerCell}, n.text) {
			r.wrong(n.line, "boot %q: %s", n.text, near.Hint(n.text, []string{PerTrial, PerCell}))
		}
		e.Boot = n.text
	}
	shrink := int(1)
	r.number(top, "shrink", &shrink, 1)
	e.Shrink = int64(shrink)
	if n := top.table["without"]; n != nil && r.is(n, "without", aList) {
		for _, line := range n.list {
			e.Without = append(e.Without, line.text)
		}
	}
	if common != nil && r.is(common, "common", aTable) {
		for _, key := range common.keys {
			r.factor(key, common.table[key])
		}
	} else {
		common = newTable(1)
	}
	r.sweeps(e, root, common, overlay)
	r.figures(e, root)
	return e
}

func (r *reader) known(n *node, what string, keys []string) {
	for _, key := range n.keys {
		if !slices.Contains(keys, key) {
			r.wrong(n.table[key].line, "%s has no key %q: %s", what, key, near.Hint(key, keys))
		}
	}
}

// factor tells whether there is one of that name.
func (r *reader) factor(key string, n *node) bool {
	if !isFactor(key) {
		r.wrong(n.line, "unknown factor %q: %s", key, nearFactor(key))
		return false
	}
	return true
}

// nearFactor names the factors that a wrong word may have meant, and those of more, or where they are listed.
func nearFactor(word string, more ...string) string {
	return near.Or(word, append(Factors(), more...), "docs/experiments.md lists them")
}

func (r *reader) text(n *node, key string, into *string) {
	v := n.table[key]
	if v == nil {
		return
	}
	switch s, ok := v.value.(string); {
	case ok && strings.ContainsFunc(s, unicode.IsControl):
		r.wrong(v.line, "%s %q: one line, without control characters", key, s)
	case ok && s != "":
		*into = s
	case ok:
		r.wrong(v.line, "%s is empty", key)
	default:
		r.wrong(v.line, "%s: a text, not %s", key, cmp.Or(v.text, string(v.kind)))
	}
}

func (r *reader) number(n *node, key string, into *int, least int64) {
	v := n.table[key]
	if v == nil {
		return
	}
	const most = 1_000_000
	i, ok := v.value.(int64)
	switch {
	case !ok || i < least:
		r.wrong(v.line, "%s %s: a whole number, at least %d", key, cmp.Or(v.text, string(v.kind)), least)
	case i > most:
		r.wrong(v.line, "%s %d: at most %d", key, i, most)
	default:
		*into = int(i)
	}
}

func (r *reader) truth(n *node, key string, into *bool) {
	v := n.table[key]
	if v == nil {
		return
	}
	ok := false
	if *into, ok = v.value.(bool); !ok {
		r.wrong(v.line, "%s: true or false, not %s", key, cmp.Or(v.text, string(v.kind)))
	}
}

func (r *reader) sweeps(e *Experiment, root, common, overlay *node) {
	list := root.table["sweep"]
	if list == nil {
		r.wrong(root.line, "there is nothing to run: give a [[sweep]] with factors")
		return
	}
	if !r.is(list, "sweep", aList) {
		return
	}
	names := map[string]int{}
	for _, n := range list.list {
		if !r.is(n, "sweep", aTable) {
			continue
		}
		var name string
		r.text(n, "name", &name)
		switch before, twice := names[name]; {
		case name == "" && len(list.list) > 1:
			r.wrong(n.line, "this sweep has no name: of several each needs one")
		case twice:
			r.wrong(n.line, "sweep %q is there twice, first in line %d", name, before)
		}
		names[name] = n.line
	}
	if overlay != nil && r.is(overlay, "sweep of a scale", aTable) {
		for _, name := range overlay.keys {
			if _, ok := names[name]; !ok {
				r.wrong(overlay.table[name].line, "there is no sweep %q: %s", name,
					near.Hint(name, slices.Sorted(maps.Keys(names))))
			}
		}
	} else {
		overlay = newTable(1)
	}
	for _, n := range list.list {
		if n.kind == aTable {
			s := &Sweep{Repeats: e.Repeats, line: n.line}
			r.text(n, "name", &s.Name)
			if o := overlay.table[s.Name]; o != nil && r.is(o, "sweep "+s.Name, aTable) {
				n = n.over(o)
			}
			r.sweep(e, s, n, common)
		}
	}
}

// value is one value of one factor.
type value struct {
	factor string
	node   *node
}

// sweep makes the cells of one sweep: listed times crossed, less what the constraints leave out. It is one function
// because each step works on the rows of the one before.
func (r *reader) sweep(e *Experiment, s *Sweep, n, common *node) {
	r.text(n, "note", &s.Note)
	r.number(n, "repeats", &s.Repeats, 1)
	r.truth(n, "optional", &s.Optional)
	var skip bool
	r.truth(n, "skip", &skip)
	before := len(r.errs)
	var fixed []value
	for _, key := range common.keys {
		if v := common.table[key]; isFactor(key) && r.scalar(key, v) {
			fixed = append(fixed, value{key, v})
		}
	}
	rows := [][]value{{}}
	whole := len(e.Cells)
	var varied []string
	if cells := n.table["cells"]; cells != nil && r.is(cells, "cells", aList) {
		rows = nil
		for _, c := range cells.list {
			if !r.is(c, "a cell", aTable) {
				continue
			}
			var row []value
			for _, key := range c.keys {
				if v := c.table[key]; r.factor(key, v) && r.scalar(key, v) {
					row = append(row, value{key, v})
					if !slices.Contains(varied, key) {
						varied = append(varied, key)
					}
				}
			}
			rows = append(rows, row)
		}
		if len(rows) == 0 {
			r.wrong(cells.line, "cells is empty")
		}
	}
	for _, key := range n.keys {
		v := n.table[key]
		if slices.Contains(sweepKeys, key) {
			continue
		}
		if !isFactor(key) {
			r.wrong(v.line, "unknown key %q: %s", key, nearFactor(key, sweepKeys...))
			continue
		}
		values := []*node{v}
		if v.kind == aList {
			if values = v.list; len(values) == 0 {
				r.wrong(v.line, "%s has no values", key)
			}
		}
		if slices.Contains(varied, key) {
			r.wrong(v.line, "%s is crossed here and listed in cells too", key)
			continue
		}
		if len(values) > 1 {
			varied = append(varied, key)
		}
		given := map[any]bool{}
		var crossed [][]value
		for _, row := range rows {
			for _, one := range values {
				crossed = append(crossed, append(slices.Clone(row), value{key, one}))
			}
		}
		for i, one := range values {
			if r.scalar(key, one) && given[one.value] {
				r.wrong(one.line, "%s: %s is there twice", key, one.text)
			}
			given[one.value] = true
			if j := slices.IndexFunc(values[:i], func(other *node) bool {
				return meanTheSame(key, one.text,
					other.text)
			}); j >= 0 {
				r.wrong(one.line, "%s: %s is %s in other words", key, one.text, values[j].text)
			}
		}
		if len(crossed) > maxTrials {
			r.wrong(v.line, "more than %d cells", maxTrials)
			return
		}
		rows = crossed
	}
	exclude, only := r.patterns(n, "exclude"), r.patterns(n, "only")
	if s.Optional && r.leaveOut(e, s, before) {
		return
	}
	if len(r.errs) > before || skip {
		return
	}
	// a listed factor may be the same in each row
	varied = slices.DeleteFunc(varied, func(key string) bool { return !differs(rows, key) })
	s.Factors = varied
	e.Sweeps = append(e.Sweeps, s)
	names, kept := map[string]int{}, 0
	for _, row := range rows {
		c := r.cell(e, s, fixed, row, varied)
		if matches(exclude, c) || len(only) > 0 && !matches(only, c) {
			continue
		}
		kept++
		if line, twice := names[c.Name]; twice {
			r.wrong(c.line(varied...), "this cell is there twice, first in line %d: %s", line, c.Name)
			continue
		}
		names[c.Name] = c.line(varied...)
		e.Cells = append(e.Cells, c)
	}
	for _, p := range append(exclude, only...) {
		if !p.used {
			r.wrong(p.line, "this constraint matches no cell")
		}
	}
	if kept == 0 {
		r.wrong(s.line, "the constraints leave no cell")
	}
	if s.Optional && r.leaveOut(e, s, before) {
		e.Cells, e.Sweeps = e.Cells[:whole], e.Sweeps[:len(e.Sweeps)-1]
	}
}

// leaveOut makes what was found wrong with an optional sweep the reason why it is left out: it may be for another build
// of this program.
func (r *reader) leaveOut(e *Experiment, s *Sweep, before int) bool {
	if len(r.errs) == before {
		return false
	}
	first := r.errs[before]
	for _, e := range r.errs[before:] {
		delete(r.seen, e.Line) // it is to be found at the next scale too
	}
	r.errs = r.errs[:before]
	e.LeftOut = append(e.LeftOut, fmt.Sprintf("sweep %s: line %d: %s", s.Name, first.Line, first.Text))
	return true
}

// differs tells whether the rows have more than one value of a factor.
func differs(rows [][]value, factor string) bool {
	texts := map[string]bool{}
	for _, row := range rows {
		text := ""
		for _, v := range row {
			if v.factor == factor {
				text = "=" + v.node.text
			}
		}
		texts[text] = true
	}
	return len(texts) > 1
}

// meanTheSame tells whether a factor does the same for two texts, which would be two cells that are one. Cases are
// names alone: the same under two of them is what an A/A test asks for.
func meanTheSame(key, a, b string) bool {
	all := factors()
	i := slices.IndexFunc(all, func(f setting.Setting[Cell]) bool { return f.Name == key })
	if i < 0 || key == "case" {
		return false
	}
	var x, y Cell
	return all[i].Set(&x, a) == nil && all[i].Set(&y, b) == nil && reflect.DeepEqual(x, y)
}

func (r *reader) scalar(key string, n *node) bool {
	if n.kind != aScalar || n.value == nil {
		r.wrong(n.line, "%s: one value, in quotes or a number", key)
		return false
	}
	if strings.ContainsFunc(n.text, unicode.IsControl) { // it becomes a part of names, which are printed
		r.wrong(n.line, "%s %q: one line, without control characters", key, n.text)
		return false
	}
	return true
}

// pattern is a constraint: factors, and for each the values that match.
type pattern struct {
	line   int
	values map[string][]any
	used   bool
}

func (r *reader) patterns(n *node, key string) (all []*pattern) {
	list := n.table[key]
	if list == nil || !r.is(list, key, aList) {
		return nil
	}
	for _, one := range list.list {
		if !r.is(one, "a constraint", aTable) {
			continue
		}
		p := &pattern{line: one.line, values: map[string][]any{}}
		for _, factor := range one.keys {
			v := one.table[factor]
			if !r.factor(factor, v) {
				continue
			}
			values := []*node{v}
			if v.kind == aList {
				values = v.list
			}
			for _, x := range values {
				if r.scalar(factor, x) {
					p.values[factor] = append(p.values[factor], x.value)
				}
			}
		}
		all = append(all, p)
	}
	return all
}

func matches(all []*pattern, c *Cell) (any bool) {
	for _, p := range all {
		ok := true
		for factor, values := range p.values {
			ok = ok && slices.Contains(values, c.Factors[factor])
		}
		p.used = p.used || ok
		any = any || ok
	}
	return any
}

// cell applies the values, those of the sweep over the common ones.
func (r *reader) cell(e *Experiment, s *Sweep, fixed, row []value, varied []string) *Cell {
	c := &Cell{Sweep: s, Factors: map[string]any{}, lines: map[string]int{}, texts: map[string]string{}}
	for _, v := range append(slices.Clone(fixed), row...) {
		c.Factors[v.factor], c.lines[v.factor], c.texts[v.factor] = v.node.value, v.node.line, v.node.text
	}
	for _, f := range factors() {
		text, given := c.texts[f.Name]
		if !given {
			continue
		}
		if err := f.Set(c, text); err != nil {
			r.wrong(c.line(setting.Of(err)...), "%v", err)
		}
	}
	c.shrink(e.Shrink)
	var words []string
	if s.Name != "" {
		words = append(words, s.Name)
		c.Factors["sweep"] = s.Name
	}
	for _, name := range varied {
		if v, ok := c.Factors[name]; ok {
			words = append(words, fmt.Sprintf("%s=%v", name, v))
		}
	}
	if c.Name = strings.Join(words, " "); c.Name == "" {
		c.Name = "only"
	}
	return c
}

// shrink divides the guest's memory, and the memory that its workload writes to, for a host that is too small.
func (c *Cell) shrink(by int64) {
	if by <= 1 {
		return
	}
	c.Factors["shrink"] = by
	c.Lab.Guest.Memory = max(c.memory()/by&^(1<<20-1), lab.MinMemory)
	c.Factors["memory"] = exactly(c.Lab.Guest.Memory)
	if set := c.Lab.Workload.Number("working-set"); set > 0 {
		c.Lab.Workload.Params = maps.Clone(c.Lab.Workload.Params)
		if c.Lab.Workload.Params == nil {
			c.Lab.Workload.Params = map[string]string{}
		}
		c.Lab.Workload.Params["working-set"] = exactly(max(int64(set)/by&^4095, 4096))
		if _, given := c.texts["workload-working-set"]; given {
			c.Factors["workload-working-set"] = c.Lab.Workload.Params["working-set"]
		}
		if _, given := c.texts["workload"]; given {
			c.Factors["workload"] = asGiven(c.Lab.Workload)
		}
	}
	if c.Lab.Fill > 0 {
		c.Lab.Fill = max(c.Lab.Fill/by&^4095, 4096)
		c.Factors["fill"] = exactly(c.Lab.Fill)
	}
}

// exactly is a size in the largest unit that leaves no rest.
func exactly(bytes int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if bytes%u.size == 0 {
			return fmt.Sprintf("%d%s", bytes/u.size, u.name)
		}
	}
	return fmt.Sprintf("%dB", bytes)
}

// asGiven is a workload with the parameters that it was given.
func asGiven(w wire.Workload) string {
	var words []string
	for _, k := range slices.Sorted(maps.Keys(w.Params)) {
		words = append(words, k+"="+w.Params[k])
	}
	return strings.TrimSuffix(w.Name+":"+strings.Join(words, ","), ":")
}

// line is that of the first of the factors that the cell gives, else of its sweep.
func (c *Cell) line(factors ...string) int {
	for _, f := range factors {
		if line, ok := c.lines[f]; ok {
			return line
		}
	}
	return c.Sweep.line
}

func (r *reader) figures(e *Experiment, root *node) {
	list := root.table["figures"]
	if list == nil || !r.is(list, "figures", aList) {
		return
	}
	var sweeps, given []string
	if list := root.table["sweep"]; list != nil {
		for _, s := range list.list {
			if n := s.table["name"]; n != nil {
				sweeps = append(sweeps, n.text)
			}
			given = append(given, s.keys...)
		}
	}
	for _, n := range list.list {
		if !r.is(n, "a figure", aTable) {
			continue
		}
		r.known(n, "a figure", []string{"title", "kind", "show", "against", "by", "sweep"})
		f := Figure{Kind: "against"}
		for key, into := range map[string]*string{"title": &f.Title, "kind": &f.Kind, "show": &f.Show, "against": &f.Against,
			"by": &f.By, "sweep": &f.Sweep} {
			r.text(n, key, into)
		}
		at := func(key string) int {
			if v := n.table[key]; v != nil {
				return v.line
			}
			return n.line
		}
		if !slices.Contains(FigureKinds(), f.Kind) {
			r.wrong(at("kind"), "kind %q of a figure: %s", f.Kind, near.Hint(f.Kind, FigureKinds()))
		}
		for key, name := range map[string]string{"against": f.Against, "by": f.By} {
			if name != "" && !isFactor(name) && !slices.Contains(given, name) { // a sweep that is left out may have it
				r.wrong(at(key), "%s %q of a figure: no factor has this name", key, name)
			}
		}
		if f.Sweep != "" && !slices.Contains(sweeps, f.Sweep) {
			r.wrong(at("sweep"), "sweep %q of a figure: %s", f.Sweep, near.Hint(f.Sweep, sweeps))
		}
		// a timeline shows a series
		if shown := f.Kind == "against" || f.Kind == "ecdf"; shown && f.Show != "" && !isNumber(f.Show) {
			r.wrong(at("show"), "show %q of a figure: no number of a record has this key: %s", f.Show, nearNumber(f.Show))
		}
		if f.Kind == "ecdf" && f.Show == "" {
			r.wrong(n.line, "a figure of kind ecdf says what it shows: show = \"total.wall_ns\"")
		}
		if f.Kind == "against" && (f.Against == "" || f.Show == "") {
			r.wrong(n.line, "a figure of kind against says what it shows and against which factor: show = \"total.wall_ns\", "+
				"against = \"max-bandwidth\"")
		}
		e.Figures = append(e.Figures, f)
	}
}

// SetRepeats gives each cell the same number of repeats, whatever the file says.
func (e *Experiment) SetRepeats(n int) {
	e.Repeats = n
	for _, s := range e.Sweeps {
		s.Repeats = n
	}
}

// SetHosts gives each cell the same hosts, whatever the file says.
func (e *Experiment) SetHosts(hosts string) error {
	set := setting.At(setting.Run, lab.Settings())
	i := slices.IndexFunc(set, func(s setting.Setting[lab.Spec]) bool { return s.Name == hostsFactor })
	for _, c := range e.Cells {
		if err := set[i].Set(&c.Lab, hosts); err != nil {
			return err
		}
		c.Factors[hostsFactor] = hosts
	}
	return nil
}

// hostsFactor is the name of the setting that says what hosts are.
const hostsFactor = "hosts"

// meaning is a hash of all that makes the trials what they are; comments, titles, notes and figures are not in it. The
// order of the cells is: the seed draws from it.
func (e *Experiment) meaning() string {
	type cell struct {
		Name    string
		Repeats int
		Factors map[string]any
	}
	m := struct {
		Name, Scale, Boot string
		TrialTimeout      time.Duration
		Cells             []cell
	}{e.Name, e.Scale, e.Boot, e.TrialTimeout, nil}
	for _, c := range e.Cells {
		m.Cells = append(m.Cells, cell{c.Name, c.Sweep.Repeats, c.Factors})
	}
	b, _ := json.Marshal(m) // texts and numbers
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}
