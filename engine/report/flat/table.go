package flat

import (
	"maps"
	"reflect"
	"slices"
	"time"

	"qmigrate/engine/record"
)

// Table is one way to lay records out: which rows a record gives.
type Table struct {
	Name    string
	About   string
	columns func() []Column
	rows    func(Row) ([]reflect.Value, error)
}

// bin is one bin of a timeline.
type bin struct {
	Name   string        `json:"name"`
	Unit   string        `json:"unit"`
	Source string        `json:"source"`
	Start  time.Duration `json:"start_ns"`
	Bin    time.Duration `json:"bin_ns"`
	Value  *float64      `json:"value,omitempty"`
}

// Tables are all there are.
func Tables() []Table {
	return []Table{
		{"migrations", "one row a migration: every field that has one value, the time of each stage, the factors and the plan", nil, nil},
		ofList("stages", "one row a stage", func(r Row) ([]record.Stage, error) { return r.Stages, nil }),
		ofList("passes", "one row a pass", func(r Row) ([]record.Pass, error) { return r.Passes, nil }),
		ofList("samples", "one row a sample of query-migrate, from samples/ID.jsonl",
			func(r Row) ([]record.Sample, error) { return record.ReadSamples(r.Folder, r.ID) }),
		ofList("timeline", "one row a bin of what an observer counted", func(r Row) ([]bin, error) {
			var all []bin
			for _, s := range r.Timeline {
				for i, v := range s.Values {
					all = append(all, bin{s.Name, s.Unit, s.Source, s.Start + time.Duration(i)*s.Bin, s.Bin, v})
				}
			}
			return all, nil
		}),
		ofList("cpu", "one row a thread and span: what it took of its host's processors",
			func(r Row) ([]record.CPUUse, error) { return r.CPU, nil }),
		ofList("anatomy", "one row a part of the downtime, with its side and its device",
			func(r Row) ([]record.AnatomyPart, error) { return r.Anatomy, nil }),
		ofList("pending", "one row an instant: what the source had still to send, split",
			func(r Row) ([]record.Pending, error) { return r.Pending, nil }),
		ofList("decisions", "one row a decision of the policy",
			func(r Row) ([]record.Decision, error) { return r.Decisions, nil }),
	}
}

// Find returns the table of that name.
func Find(name string) (Table, bool) {
	all := Tables()
	i := slices.IndexFunc(all, func(t Table) bool { return t.Name == name })
	if i < 0 {
		return Table{}, false
	}
	return all[i], true
}

func ofList[T any](name, about string, list func(Row) ([]T, error)) Table {
	return Table{name, about, func() []Column { return columns(reflect.TypeFor[T]()) },
		func(r Row) ([]reflect.Value, error) {
			all, err := list(r)
			if err != nil {
				return nil, err
			}
			out := make([]reflect.Value, len(all))
			for i := range all {
				out[i] = reflect.ValueOf(&all[i]).Elem()
			}
			return out, nil
		}}
}

// Columns are those that any record may have; factors and plans bring more, by their names.
func (t Table) Columns() []Column {
	if t.columns == nil {
		return migrationColumns()
	}
	return t.columns()
}

// Writer takes the rows of one table.
type Writer interface {
	Write(row []any) error // nil, int64, float64, bool, string or time.Time, as the column's type says
	Close() error          // writes what is left; the file itself is the caller's
}

// Export writes a table of the folders' records, and returns how many rows it has. What is no record is passed over and
// told by warn.
func Export(folders []string, t Table, warn func(string), open func([]Column) (Writer, error)) (rows int, err error) {
	named := func(Row) []any { return nil }
	all := []Column{{Name: "folder", Type: Text}}
	if t.columns == nil {
		var more []Column
		if more, named, err = namedColumns(folders); err != nil {
			return 0, err
		}
		all = slices.Concat(all, t.Columns(), more)
	} else {
		all = slices.Concat(all, []Column{{Name: "id", Type: Text}}, t.Columns())
	}
	w, err := open(all)
	if err != nil {
		return 0, err
	}
	own := t.Columns()
	for r, err := range Scan(folders, warn) {
		if err != nil {
			return rows, err
		}
		first := []any{r.Folder}
		of := []reflect.Value{reflect.ValueOf(r.Migration).Elem()}
		if t.rows != nil {
			first = append(first, r.ID)
			if of, err = t.rows(r); err != nil {
				return rows, err
			}
		}
		for _, v := range of {
			row := slices.Clone(first)
			for i := range own {
				row = append(row, own[i].value(v))
			}
			if err := w.Write(append(row, named(r)...)); err != nil {
				return rows, err
			}
			rows++
		}
	}
	return rows, w.Close()
}

// namedColumns are the columns of the factors and the plans that these folders have, and what gets a row's cells of
// them. It takes one reading of its own.
func namedColumns(folders []string) ([]Column, func(Row) []any, error) {
	type names struct{ factors, plan map[string]Type }
	seen := names{map[string]Type{}, map[string]Type{}}
	for n, err := range scan(folders, func(string) {}, newPart(nil).decode, func(_ string, m *record.Migration) names {
		of := func(values map[string]any) map[string]Type {
			out := map[string]Type{}
			for k, v := range values {
				if v != nil {
					out[k] = typeOf(v)
				}
			}
			return out
		}
		return names{of(m.Factors), of(m.Plan)}
	}) {
		if err != nil {
			return nil, nil, err
		}
		for k, t := range n.factors {
			seen.factors[k] = both(seen.factors[k], t)
		}
		for k, t := range n.plan {
			seen.plan[k] = both(seen.plan[k], t)
		}
	}
	var out []Column
	var keys []string
	add := func(prefix string, types map[string]Type) {
		for _, k := range slices.Sorted(maps.Keys(types)) {
			name := columnName(prefix, k)
			for slices.ContainsFunc(out, func(c Column) bool { return c.Name == name }) { // a-b and a_b
				name += "_"
			}
			out, keys = append(out, Column{Name: name, Unit: UnitOf(name), Type: types[k]}), append(keys, k)
		}
	}
	add("factor_", seen.factors)
	factors := len(out)
	add("plan_", seen.plan)
	return out, func(r Row) []any {
		row := make([]any, len(keys))
		for i, k := range keys {
			v := r.Factors[k]
			if i >= factors {
				v = r.Plan[k]
			}
			row[i] = cellOf(v, out[i].Type)
		}
		return row
	}, nil
}

// cellOf is a value of a factor or a plan in its column.
func cellOf(v any, t Type) any {
	switch v := v.(type) {
	case nil:
		return nil
	case float64:
		switch t {
		case Int:
			return int64(v)
		case Float:
			return v
		}
	case bool:
		if t == Bool {
			return v
		}
	}
	text, _ := textOf(v)
	return text
}
