// Package flat lays records out flat: one row a migration, or one a pass, a stage, a sample, a bin of the timeline, for
// pandas, R, DuckDB and the program's own statistics. A column's name is the record's keys joined by "_", so that it
// ends in its unit as they do; a cell that was not measured is empty, never zero.
package flat

import (
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/record"
)

// Type is what a column's cells hold.
type Type string

// The types.
const (
	Int   Type = "integer"
	Float Type = "number"
	Bool  Type = "boolean"
	Text  Type = "text"
	Time  Type = "time" // UTC
)

// Column is one column. What gets its cells is hidden: a cell is nil, int64, float64, bool, string or time.Time.
type Column struct {
	Name string
	Unit string // by the name's end: ns, bytes, percent, ...; "" for a text or a count
	Type Type

	top  int                                // the field of the row's struct that it lies in
	find func(reflect.Value) reflect.Value  // in that struct; the zero Value where absent
	cell func(v reflect.Value) (value any)  // of what find found
	list func(row reflect.Value) (cell any) // instead of both
}

// value is the cell of a row.
func (c *Column) value(row reflect.Value) any {
	if c.list != nil {
		return c.list(row)
	}
	if v := c.find(row); v.IsValid() {
		return c.cell(v)
	}
	return nil
}

// number is the cell as a number, NaN where there is none.
func (c *Column) number(row reflect.Value) float64 {
	if c.list != nil {
		return toNumber(c.list(row))
	}
	v := c.find(row)
	switch {
	case !v.IsValid():
	case v.CanInt():
		return float64(v.Int())
	case v.CanFloat():
		return v.Float()
	case v.Kind() == reflect.Bool:
		return toNumber(v.Bool())
	}
	return math.NaN()
}

func toNumber(cell any) float64 {
	switch cell := cell.(type) {
	case int64:
		return float64(cell)
	case float64:
		return cell
	case bool:
		if cell {
			return 1
		}
		return 0
	}
	return math.NaN()
}

// Units are the ends of keys that are units, the longer ones first.
func units() []string {
	return []string{"bytes_per_s", "pages_per_s", "per_s", "percent", "bytes", "pages", "ppm", "ns"}
}

// UnitOf is the unit at the end of a key, as it is written: "ns", "bytes/s"; "" if it has none.
func UnitOf(key string) string {
	for _, u := range units() {
		if key == u || strings.HasSuffix(key, "_"+u) {
			if u == "per_s" {
				return "1/s"
			}
			return strings.Replace(u, "_per_s", "/s", 1)
		}
	}
	return ""
}

// columns are those of a struct's fields, and of the structs in it. Lists become JSON texts, but for those in skip.
func columns(t reflect.Type, skip ...string) []Column {
	var out []Column
	for i := range t.NumField() {
		f := t.Field(i)
		key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if key == "-" || slices.Contains(skip, key) {
			continue
		}
		get := func(row reflect.Value) reflect.Value { return row.Field(i) }
		out = append(out, fieldColumns(key, f.Type, options == "omitempty", i, get)...)
	}
	return out
}

// fieldColumns is one column, or those of a struct.
func fieldColumns(name string, t reflect.Type, omit bool, top int, get func(reflect.Value) reflect.Value) []Column {
	if t.Kind() == reflect.Pointer {
		inner := get
		get = func(row reflect.Value) reflect.Value {
			if v := inner(row); v.IsValid() && !v.IsNil() {
				return v.Elem()
			}
			return reflect.Value{}
		}
		t, omit = t.Elem(), false
	}
	if omit {
		inner := get
		get = func(row reflect.Value) reflect.Value {
			if v := inner(row); v.IsValid() && !v.IsZero() {
				return v
			}
			return reflect.Value{}
		}
	}
	c := Column{Name: name, Unit: UnitOf(name), top: top, find: get}
	switch {
	case t == reflect.TypeFor[time.Time]():
		c.Type, c.cell = Time, func(v reflect.Value) any { return v.Interface() }
	case t.Kind() == reflect.Struct:
		var out []Column
		for i := range t.NumField() {
			f := t.Field(i)
			key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if key == "-" {
				continue
			}
			inside := func(row reflect.Value) reflect.Value {
				if v := get(row); v.IsValid() {
					return v.Field(i)
				}
				return reflect.Value{}
			}
			out = append(out, fieldColumns(name+"_"+key, f.Type, options == "omitempty", top, inside)...)
		}
		return out
	case t.Kind() == reflect.Int || t.Kind() == reflect.Int64:
		c.Type, c.cell = Int, func(v reflect.Value) any { return v.Int() }
	case t.Kind() == reflect.Float64:
		c.Type, c.cell = Float, func(v reflect.Value) any { return v.Float() }
	case t.Kind() == reflect.Bool:
		c.Type, c.cell = Bool, func(v reflect.Value) any { return v.Bool() }
	case t.Kind() == reflect.String:
		c.Type, c.cell = Text, func(v reflect.Value) any { return v.String() }
	default: // a list or a map
		c.Type, c.cell = Text, func(v reflect.Value) any {
			if v.Len() == 0 {
				return nil
			}
			text, err := json.Marshal(v.Interface())
			if err != nil {
				return nil // no list of the record's holds what JSON cannot
			}
			return string(text)
		}
	}
	return []Column{c}
}

// The keys of a record that are no column of the migration's row: they are tables of their own, or columns by name.
func ownTables() []string {
	return []string{"stages", "passes", "timeline", "cpu", "anatomy", "pending", "decisions", "factors", "plan"}
}

// migrationColumns are the columns of a migration's row that every record may have: its fields, the time of each stage
// and of each part on the critical path of its downtime, and how many passes there were.
func migrationColumns() []Column {
	t := reflect.TypeFor[record.Migration]()
	out := columns(t, ownTables()...)
	top := func(name string) int { f, _ := t.FieldByName(name); return f.Index[0] }
	for _, s := range []record.StageName{record.Initialization, record.Reservation, record.Storage, record.PreCopy,
		record.StopAndCopy, record.Commitment,
		record.Activation, record.PostCopy, record.Recovery, record.Snapshot, record.Loading, record.Protection,
		record.Failover} {
		out = append(out, Column{Name: "stage_" + strings.ReplaceAll(string(s), "-", "_") + "_ns", Unit: "ns", Type: Int,
			top: top("Stages"), list: func(row reflect.Value) any {
				sum, there := time.Duration(0), false
				for _, x := range row.Addr().Interface().(*record.Migration).Stages {
					if x.Name == s { // post-copy and recovery may come several times
						sum, there = sum+x.Duration, true
					}
				}
				if !there {
					return nil
				}
				return int64(sum)
			}})
	}
	for _, p := range record.PartNames() {
		out = append(out, Column{Name: PartColumn(p), Unit: "ns", Type: Int, top: top("Anatomy"),
			list: func(row reflect.Value) any {
				if sum, told := row.Addr().Interface().(*record.Migration).CriticalTime(p); told {
					return int64(sum)
				}
				return nil
			}})
	}
	return append(out, Column{Name: "passes", Type: Int, top: top("Passes"), list: func(row reflect.Value) any {
		if n := len(row.Addr().Interface().(*record.Migration).Passes); n > 0 {
			return int64(n)
		}
		return nil
	}})
}

// PartColumn is the column of a part of the downtime: how much of it is on the critical path.
func PartColumn(p record.PartName) string {
	return "anatomy_" + strings.ReplaceAll(string(p), "-", "_") + "_ns"
}

// columnName is a factor's or a plan's name as a column's.
func columnName(prefix, name string) string {
	return prefix + strings.Map(func(r rune) rune {
		switch {
		case r == '-' || r == '.' || r == ' ':
			return '_'
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return r
	}, name)
}

// textOf is a value of a factor or a plan as people write it; "" and false for a list.
func textOf(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	case int:
		return strconv.Itoa(v), true
	case nil:
		return "", false
	}
	text, err := json.Marshal(v)
	return string(text), err == nil
}

// typeOf is the type of such a value, and both the type that holds two values.
func typeOf(v any) Type {
	switch v := v.(type) {
	case bool:
		return Bool
	case int:
		return Int
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return Int
		}
		return Float
	}
	return Text
}

func both(a, b Type) Type {
	switch {
	case a == b || b == "":
		return a
	case a == "":
		return b
	case a == Int && b == Float || a == Float && b == Int:
		return Float
	}
	return Text
}
