// Package compare sets groups of records side by side, cell by cell: medians with intervals, and whether and by how
// much each group differs from the first. Records alone are read; what was not measured is absent; failed migrations
// are counted and not mixed in. docs/statistics.md has the formulas.
package compare

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"qmigrate/engine/record"
	"qmigrate/engine/report/flat"
	"qmigrate/engine/report/stats"
)

// Schema is the version of an answer's shape.
const Schema = "qmigrate/comparison/1"

// Question is what to set beside what.
type Question struct {
	Folders  []string // each is a group, unless By is given: then all of them are one lot
	By       string   // a factor, a column or a value of the plan: each of its values is a group
	Base     string   // the group that the others are compared with; the first one if empty
	Where    []Where  // only records with all of these
	Measures []string // columns of numbers, or ByPart; Default if none
	Pool     bool     // mix what else differs within a group
	Level    float64  // of the intervals; stats.Level if 0
}

// Where asks for one value of a factor, a column or a value of the plan.
type Where struct{ Name, Value string }

// Measure is a quantity that is compared.
type Measure struct {
	Column string `json:"column"` // of `qmigrate export`
	Title  string `json:"title"`
	Unit   string `json:"unit"` // ns, bytes, percent; "" is a count
}

// Default are the measures that are compared unless others are asked for.
func Default() []Measure {
	return []Measure{
		{"total_wall_ns", "time", "ns"},
		{"total_qemu_total_ns", "time, QEMU's", "ns"},
		{"downtime_qemu_ns", "down, qemu", "ns"},
		{"downtime_wire_ns", "down, wire", "ns"},
		{"downtime_status_ns", "down, status", "ns"},
		{"downtime_ping_ns", "down, ping", "ns"},
		{"downtime_heartbeat_ns", "down, beat", "ns"},
		{"downtime_guest_clock_ns", "down, guest", "ns"},
		{"downtime_tcp_ns", "down, tcp", "ns"},
		{"total_transferred_bytes", "sent", "bytes"},
		{"total_postcopy_bytes", "followed", "bytes"},
		{"passes", "passes in all", ""},
		{"guest_slowdown_percent", "slowdown", "percent"},
		{"guest_brownout_ns", "brownout", "ns"},
		{"guest_blackout_ns", "blackout", "ns"},
	}
}

// ByPart names all of Parts at once, as a measure that is asked for.
const ByPart = "anatomy"

// Parts are the parts of the downtime on its critical path, which sum to the wire downtime. They are no default: each
// more comparison makes Holm's correction of all of them stronger.
func Parts() (all []Measure) {
	for _, p := range record.PartNames() {
		if p == record.PartStopVCPUs { // before STOP, so never critical
			continue
		}
		all = append(all, Measure{flat.PartColumn(p), "part " + string(p), "ns"})
	}
	return all
}

// Answer is the whole comparison.
type Answer struct {
	Schema   string   `json:"schema"`
	Level    float64  `json:"level"`
	By       string   `json:"by,omitempty"`
	Groups   []Group  `json:"groups"` // the first is what the others are compared with
	Cells    []Cell   `json:"cells"`
	Family   int      `json:"family"`           // comparisons that Holm's correction is over
	Drifts   []Drift  `json:"drifts,omitempty"` // values that rise or fall over the order of the trials
	Warnings []string `json:"warnings,omitempty"`
}

// Group is one side of the comparison.
type Group struct {
	Name      string            `json:"name"`
	Completed int               `json:"completed"`        // migrations that are compared
	Others    map[string]int    `json:"others,omitempty"` // outcomes that are not: failed, cancelled, recovered
	Differs   map[string]string `json:"differs,omitempty"`
}

// Cell is the records that agree in everything that varies within a group.
type Cell struct {
	Name string `json:"name"` // "" where there is but one
	Rows []Row  `json:"rows"`
}

// Row is one measure of one group in a cell.
type Row struct {
	Measure
	Group    string         `json:"group"`
	Median   stats.Estimate `json:"median"`
	Outliers []float64      `json:"outliers,omitempty"` // Tukey's; they are in every figure all the same
	// the first group; nil for itself, and where that has none of the measure
	Against *stats.Comparison `json:"against,omitempty"`
}

// Drift is a trend over the order of the trials, of what is left when each cell's median is taken off.
type Drift struct {
	Measure
	Group string     `json:"group"`
	N     int        `json:"n"`
	Test  stats.Test `json:"test"`
	Holm  float64    `json:"p_holm"` // over all groups and measures
}

// set is the rows of one group.
type set struct {
	name string
	rows []int
}

// Ask reads the folders and answers.
func Ask(q Question) (*Answer, error) {
	if q.Level == 0 {
		q.Level = stats.Level
	}
	measures, err := q.measures()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, m := range measures {
		names = append(names, m.Column)
	}
	var texts []string
	for _, name := range append(whereNames(q.Where), q.By) {
		texts = append(texts, strings.ReplaceAll(name, "-", "_"))
	}
	f, err := flat.Load(q.Folders, names, texts)
	if err != nil {
		return nil, err
	}
	a := &Answer{Schema: Schema, Level: q.Level, By: q.By, Warnings: f.Warnings()}
	if f.Rows == 0 {
		return nil, fmt.Errorf("%s: no record is there", strings.Join(q.Folders, ", "))
	}
	rows, err := q.where(f)
	if err != nil {
		return nil, err
	}
	sets, by, err := q.sets(f, rows)
	if err != nil {
		return nil, err
	}
	for i := range sets {
		g := Group{Name: sets[i].name}
		sets[i].rows = slices.DeleteFunc(sets[i].rows, func(r int) bool {
			o := f.Text("outcome", r)
			if o == string(record.Completed) {
				g.Completed++
				return false
			}
			if g.Others == nil {
				g.Others = map[string]int{}
			}
			g.Others[o]++
			return true
		})
		if g.Completed == 0 {
			return nil, fmt.Errorf("%s has no completed migration to compare: %s", g.Name, OthersText(g.Others))
		}
		a.Groups = append(a.Groups, g)
	}
	keys, differ := q.keys(f, sets, by)
	for i := range a.Groups {
		for _, k := range differ {
			if a.Groups[i].Differs == nil {
				a.Groups[i].Differs = map[string]string{}
			}
			a.Groups[i].Differs[plain(k)] = f.Text(k, sets[i].rows[0])
		}
	}
	cells := cellsOf(f, sets, keys)
	if err := a.fill(f, measures, sets, cells, keys); err != nil {
		return nil, err
	}
	a.drifts(f, measures, sets, by != "", func(row int) string { return cellKey(f, keys, row) })
	return a, nil
}

func whereNames(all []Where) (names []string) {
	for _, w := range all {
		names = append(names, w.Name)
	}
	return names
}

// measures are the default ones, or those asked for.
func (q *Question) measures() ([]Measure, error) {
	if len(q.Measures) == 0 {
		return Default(), nil
	}
	var out []Measure
	for _, name := range q.Measures {
		if name == ByPart {
			out = append(out, Parts()...)
			continue
		}
		i := slices.IndexFunc(Default(), func(m Measure) bool { return m.Column == name || m.Title == name })
		switch {
		case i >= 0:
			out = append(out, Default()[i])
		case flat.IsNumber(name):
			out = append(out, Measure{name, name, flat.UnitOf(name)})
		default:
			return nil, fmt.Errorf("measure %q is no column of numbers: `qmigrate export --columns` lists the columns", name)
		}
	}
	return out, nil
}

// where are the rows that are asked for.
func (q *Question) where(f *flat.Frame) ([]int, error) {
	rows := make([]int, f.Rows)
	for i := range rows {
		rows[i] = i
	}
	for _, w := range q.Where {
		column := f.Find(w.Name)
		if column == "" {
			return nil, unknown(f, w.Name)
		}
		seen := map[string]bool{}
		rows = slices.DeleteFunc(rows, func(r int) bool {
			seen[f.Text(column, r)] = true
			return groupName(f.Text(column, r)) != groupName(w.Value)
		})
		if len(rows) == 0 {
			return nil, fmt.Errorf("no record has %s %q: have %s", w.Name, w.Value,
				list(slices.SortedFunc(maps.Keys(seen), order), 8))
		}
	}
	return rows, nil
}

func unknown(f *flat.Frame, name string) error {
	return fmt.Errorf("no record has a factor, a column or a value of the plan %q: have %s", name, list(f.Names(), 30))
}

func list(all []string, most int) string {
	more := ""
	if len(all) > most {
		more = fmt.Sprintf(" and %d more", len(all)-most)
	}
	var named []string
	for _, one := range all[:min(most, len(all))] {
		named = append(named, groupName(one))
	}
	return strings.Join(named, ", ") + more
}

// groupName is a value as people read it, and may give it: that of records without one too.
func groupName(value string) string { return cmp.Or(value, "(none)") }

// sets are the groups, the base first; by is the column that they are the values of, if they are.
func (q *Question) sets(f *flat.Frame, rows []int) (sets []set, by string, err error) {
	column := "folder"
	if q.By != "" {
		if by = f.Find(q.By); by == "" {
			return nil, "", unknown(f, q.By)
		}
		column = by
	}
	of := map[string][]int{}
	var names []string
	for _, r := range rows {
		name := f.Text(column, r)
		if of[name] == nil {
			names = append(names, name)
		}
		of[name] = append(of[name], r)
	}
	if q.By != "" {
		slices.SortFunc(names, order)
		if len(names) < 2 {
			return nil, "", fmt.Errorf("%s is %q in every record: there is nothing to compare by it", q.By, names[0])
		}
	} else {
		names = slices.DeleteFunc(slices.Clone(q.Folders), func(name string) bool { return of[name] == nil })
		if len(names) < len(q.Folders) {
			why := ""
			if said := f.Warnings(); len(said) > 0 {
				why = ": " + strings.Join(said, "; ")
			}
			return nil, "", fmt.Errorf("of %s no record is left to compare%s",
				list(slices.DeleteFunc(slices.Clone(q.Folders), func(name string) bool { return of[name] != nil }), 8), why)
		}
	}
	if q.Base != "" {
		i := slices.IndexFunc(names, func(name string) bool { return groupName(name) == groupName(q.Base) })
		if i < 0 {
			return nil, "", fmt.Errorf("there is no group %q to compare with: have %s", q.Base, list(names, 8))
		}
		names = slices.Concat(names[i:i+1], names[:i], names[i+1:])
	}
	for _, name := range names {
		sets = append(sets, set{name: groupName(name), rows: of[name]})
	}
	return sets, by, nil
}

// keys are the columns that vary within a group, and so make its cells; differ are those that are one value within each
// group and not the same in all: they are what the groups differ in. Records of an experiment are told apart by its
// factors, others by their plan and workload.
func (q *Question) keys(f *flat.Frame, sets []set, by string) (keys, differ []string) {
	var all []string
	for _, k := range f.Factors() {
		all = append(all, "factor:"+k)
	}
	if len(all) == 0 {
		all = append(all, "mode", "workload")
		for _, k := range f.Plan() {
			// addresses, and what follows from the rest, are no conditions
			if !slices.Contains([]string{"listen", "connect", "policy_limits", "mode"}, k) {
				all = append(all, "plan:"+k)
			}
		}
	}
	for _, k := range all {
		if plain(k) == plain(by) {
			continue
		}
		varies, values := false, map[string]bool{}
		for _, s := range sets {
			for _, r := range s.rows {
				varies = varies || f.Text(k, r) != f.Text(k, s.rows[0])
			}
			values[f.Text(k, s.rows[0])] = true
		}
		switch {
		case varies && !q.Pool:
			keys = append(keys, k)
		case !varies && len(values) > 1:
			differ = append(differ, k)
		}
	}
	return keys, differ
}

func plain(column string) string {
	_, name, ok := strings.Cut(column, ":")
	if !ok {
		return column
	}
	return name
}

// cell is the rows of each set that agree in the keys.
type cell struct {
	name   string
	values []string
	rows   [][]int
}

func cellKey(f *flat.Frame, keys []string, row int) string {
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(f.Text(k, row))
		b.WriteByte(0)
	}
	return b.String()
}

func cellsOf(f *flat.Frame, sets []set, keys []string) []*cell {
	var all []*cell
	by := map[string]*cell{}
	for i, s := range sets {
		for _, r := range s.rows {
			key := cellKey(f, keys, r)
			c := by[key]
			if c == nil {
				c = &cell{rows: make([][]int, len(sets))}
				var parts []string
				for _, k := range keys {
					c.values = append(c.values, f.Text(k, r))
					if v := f.Text(k, r); v != "" {
						parts = append(parts, plain(k)+" "+v)
					}
				}
				c.name = strings.Join(parts, ", ")
				by[key], all = c, append(all, c)
			}
			c.rows[i] = append(c.rows[i], r)
		}
	}
	slices.SortStableFunc(all, func(a, b *cell) int {
		for i := range a.values {
			if c := order(a.values[i], b.values[i]); c != 0 {
				return c
			}
		}
		return 0
	})
	return all
}

// values are those rows' cells that are there.
func values(f *flat.Frame, column string, rows []int) (out []float64) {
	for _, r := range rows {
		if v := f.Number(column, r); !math.IsNaN(v) {
			out = append(out, v)
		}
	}
	return out
}

// fill compares cell by cell.
func (a *Answer) fill(f *flat.Frame, measures []Measure, sets []set, cells []*cell, keys []string) error {
	var family []*stats.Comparison
	alone := map[string][]string{} // cells that one group has alone
	common, compared := false, false
	for _, c := range cells {
		var has []string
		for i, rows := range c.rows {
			if len(rows) > 0 {
				has = append(has, a.Groups[i].Name)
			}
		}
		if len(sets) > 1 && (len(has) < 2 || len(c.rows[0]) == 0) {
			key := strings.Join(has, " and ")
			alone[key] = append(alone[key], c.name)
			continue
		}
		common = true
		out := Cell{Name: c.name}
		for _, m := range measures {
			base := values(f, m.Column, c.rows[0])
			var rows []Row
			for i := range sets {
				v := values(f, m.Column, c.rows[i])
				if len(v) == 0 {
					continue
				}
				r := Row{Measure: m, Group: a.Groups[i].Name, Median: stats.Median(v, a.Level)}
				for _, o := range stats.Outliers(v) {
					r.Outliers = append(r.Outliers, v[o])
				}
				if i > 0 && len(base) > 0 {
					x := stats.Compare(base, v, a.Level)
					r.Against, compared = &x, true
					if x.Test.Method != stats.Equal {
						family = append(family, r.Against)
					}
				}
				rows = append(rows, r)
			}
			out.Rows = append(out.Rows, rows...)
		}
		a.Cells = append(a.Cells, out)
	}
	for _, who := range slices.Sorted(maps.Keys(alone)) {
		a.Warnings = append(a.Warnings, fmt.Sprintf("in %s alone, and not compared: %s", who, list(alone[who], 3)))
	}
	if len(sets) == 1 {
		return nil
	}
	if !common {
		for i := range keys {
			keys[i] = plain(keys[i])
		}
		return fmt.Errorf("%s have no migration in common that agrees in %s: filter what is alike (where), or mix all (pool)",
			groupNames(a.Groups), list(keys, 8))
	}
	if !compared {
		return fmt.Errorf("%s have no measure in common: %s", groupNames(a.Groups), measuresText(f, measures, sets))
	}
	stats.Family(family)
	a.Family = len(family)
	if n := stats.FamilyNeed(family, 1-a.Level); n > 0 {
		a.Warnings = append(a.Warnings, fmt.Sprintf("with so few trials no difference can be called in a family of %d "+
			"comparisons: it needs n >= %d in each group, or fewer measures", len(family), n))
	}
	return nil
}

func groupNames(all []Group) string {
	var names []string
	for _, g := range all {
		names = append(names, g.Name)
	}
	return list(names, 6)
}

// measuresText says which of the measures each set has.
func measuresText(f *flat.Frame, measures []Measure, sets []set) string {
	var parts []string
	for _, s := range sets {
		var has []string
		for _, m := range measures {
			if len(values(f, m.Column, s.rows)) > 0 {
				has = append(has, m.Column)
			}
		}
		text := "none of them"
		if len(has) > 0 {
			text = list(has, 6)
		}
		parts = append(parts, s.name+" has "+text)
	}
	return strings.Join(parts, "; ")
}

// OthersText is how many migrations did not complete: "2 failed, 1 cancelled".
func OthersText(others map[string]int) string {
	var parts []string
	for _, o := range slices.Sorted(maps.Keys(others)) {
		parts = append(parts, fmt.Sprintf("%d %s", others[o], o))
	}
	return strings.Join(parts, ", ")
}

// driftLeast is the fewest trials whose order is looked at.
const driftLeast = 6

// drifts looks for trends over the order of the trials. The groups of one lot took turns, so that they are one
// sequence; folders are one each.
func (a *Answer) drifts(f *flat.Frame, measures []Measure, sets []set, together bool, key func(row int) string) {
	type trial struct {
		row  int
		cell string
	}
	sequences := make([][]trial, len(sets))
	for i, s := range sets {
		at := i
		if together {
			at = 0
		}
		for _, r := range s.rows {
			sequences[at] = append(sequences[at], trial{r, s.name + "\x00" + key(r)})
		}
	}
	var p []float64
	var all []Drift
	for i, seq := range sequences {
		if len(seq) < driftLeast {
			continue
		}
		ordered := !slices.ContainsFunc(seq, func(t trial) bool {
			return math.IsNaN(f.Order(t.row)) || f.Text("folder", t.row) != f.Text("folder", seq[0].row)
		})
		slices.SortStableFunc(seq, func(x, y trial) int {
			if ordered {
				return cmp.Compare(f.Order(x.row), f.Order(y.row))
			}
			return f.Started(x.row).Compare(f.Started(y.row))
		})
		name := a.Groups[i].Name
		if together {
			name = "all"
		}
		for _, m := range measures {
			var v []float64
			var cells []string
			for _, t := range seq {
				if x := f.Number(m.Column, t.row); !math.IsNaN(x) {
					v, cells = append(v, x), append(cells, t.cell)
				}
			}
			if len(v) < driftLeast {
				continue
			}
			d := Drift{Measure: m, Group: name, N: len(v), Test: stats.Drift(stats.Residuals(v, cells))}
			if d.Test.Method == stats.Equal {
				continue
			}
			all, p = append(all, d), append(p, d.Test.P)
		}
	}
	for i, h := range stats.Holm(p) {
		all[i].Holm = h
		if h < 1-a.Level {
			a.Drifts = append(a.Drifts, all[i])
		}
	}
}
