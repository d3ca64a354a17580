package experiment

import (
	"reflect"
	"slices"
	"strings"

	"qmigrate/engine/record"
	"qmigrate/internal/near"
)

// isNumber tells whether a record has a number of that key, as figures show it: total.wall_ns; passes, which is how
// many there were; or a part of the downtime, anatomy.ram_save_ns.
func isNumber(key string) bool {
	found := false
	numbers(reflect.TypeFor[record.Migration](), "", func(have string) {
		prefix, any := strings.CutSuffix(have, "*")
		found = found || have == key || any && strings.HasPrefix(key, prefix)
	})
	isPart := func(p record.PartName) bool { return p.Key() == key }
	return found || key == "passes" || slices.ContainsFunc(record.PartNames(), isPart)
}

// nearNumber names the keys that a wrong one may have meant, or where they are listed.
func nearNumber(key string) string {
	var have []string
	numbers(reflect.TypeFor[record.Migration](), "", func(one string) { have = append(have, one) })
	for _, p := range record.PartNames() {
		have = append(have, p.Key())
	}
	return near.Or(key, have, "docs/schema.md lists them")
}

// numbers tells the keys of all numbers of a record's part; what QEMU names itself ends in *.
func numbers(t reflect.Type, prefix string, tell func(key string)) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Map:
		tell(prefix + "*")
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && name != "-" {
				numbers(f.Type, prefix+name+".", tell)
			}
		}
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint64, reflect.Float64:
		tell(strings.TrimSuffix(prefix, "."))
	}
}
