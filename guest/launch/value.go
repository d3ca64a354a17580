package launch

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// value is an option's value: text of the form a,b=c,d=on, or the same as JSON.
type value struct {
	options
	json any // nil for text
	// what the leaves of json were
	before options
}

// parseValue reads either form. The keys of JSON are those that the text would have: addr.path, hostfwd.0.
func parseValue(s string) (value, error) {
	if !strings.HasPrefix(s, "{") {
		return value{options: parseOptions(s)}, nil
	}
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	v := value{}
	if err := d.Decode(&v.json); err != nil {
		return v, fmt.Errorf("not JSON: %w", err)
	}
	flatten("", v.json, &v.options)
	v.before = slices.Clone(v.options)
	return v, nil
}

// flatten lists the leaves of JSON, keys in order.
func flatten(key string, v any, into *options) {
	under := func(k string) string { return strings.TrimPrefix(key+"."+k, ".") }
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			flatten(under(k), v[k], into)
		}
	case []any:
		for i := range v {
			flatten(under(strconv.Itoa(i)), v[i], into)
		}
	case bool:
		*into = append(*into, pair{key: key, value: map[bool]string{true: "on", false: "off"}[v]})
	default:
		*into = append(*into, pair{key: key, value: fmt.Sprint(v)})
	}
}

// kinds are the values that say what an option is about: its backend, type or driver, and with " server" if it listens.
func (v value) kinds() (all []string) {
	add := func(k string) {
		if v.on("server") {
			all = append(all, k+" server")
			return
		}
		all = append(all, k)
	}
	if k := v.first(); k != "" {
		add(k)
	}
	for _, p := range v.options {
		switch last := p.key[strings.LastIndex(p.key, ".")+1:]; {
		case p.bare:
		case last == "driver", p.key == "type", p.key == "backend", p.key == "qom-type":
			add(p.value)
		}
	}
	return all
}

// String is the value in the form that it came in.
func (v value) String() string {
	if v.json == nil {
		return v.options.String()
	}
	for _, p := range v.before {
		if !slices.Contains(v.options, p) {
			v.json = graft(v.json, strings.Split(p.key, "."), gone{})
		}
	}
	for _, p := range v.options {
		if !slices.Contains(v.before, p) {
			var leaf any = p.value
			switch p.value {
			case "on", "off":
				leaf = p.value == "on"
			}
			v.json = graft(v.json, strings.Split(p.key, "."), leaf)
		}
	}
	b, err := json.Marshal(prune(v.json))
	if err != nil {
		panic(err) // it was JSON
	}
	return string(b)
}

// gone is what graft leaves where it took something away: null has a meaning of its own.
type gone struct{}

// graft puts leaf at the end of path.
func graft(v any, path []string, leaf any) any {
	if len(path) == 0 {
		return leaf
	}
	if list, ok := v.([]any); ok {
		if i, err := strconv.Atoi(path[0]); err == nil && i < len(list) {
			list[i] = graft(list[i], path[1:], leaf)
		}
		return list
	}
	m, ok := v.(map[string]any)
	if !ok {
		m = map[string]any{}
	}
	m[path[0]] = graft(m[path[0]], path[1:], leaf)
	return m
}

// prune removes what is gone, and what has nothing left in it by that.
func prune(v any) any {
	switch v := v.(type) {
	case []any:
		var left []any
		for _, e := range v {
			if e = prune(e); e != (gone{}) {
				left = append(left, e)
			}
		}
		if len(left) == 0 && len(v) > 0 {
			return gone{}
		}
		return append([]any{}, left...)
	case map[string]any:
		before := len(v)
		for k, e := range v {
			if v[k] = prune(e); v[k] == (gone{}) {
				delete(v, k)
			}
		}
		if len(v) == 0 && before > 0 {
			return gone{}
		}
	}
	return v
}

// options is a value of the form a,b=c,d=on, in order, in which ",," stands for a comma.
type options []pair

type pair struct {
	key, value string
	bare       bool // no "="
}

func parseOptions(s string) (o options) {
	var item strings.Builder
	end := func() {
		k, v, ok := strings.Cut(item.String(), "=")
		if item.Len() > 0 || len(o) == 0 { // nothing after the last comma is nothing
			o = append(o, pair{k, v, !ok})
		}
		item.Reset()
	}
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != ',':
			item.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == ',':
			item.WriteByte(',')
			i++
		default:
			end()
		}
	}
	end()
	return o
}

func (o options) String() string {
	var b strings.Builder
	for i, p := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(comma(p.key))
		if !p.bare {
			b.WriteString("=" + comma(p.value))
		}
	}
	return b.String()
}

// first is the value whose key is implied.
func (o options) first() string {
	if len(o) > 0 && o[0].bare {
		return o[0].key
	}
	return ""
}

// get is the last value of a key, "" if there is none.
func (o options) get(key string) string {
	for _, p := range slices.Backward(o) {
		if p.key == key && !p.bare {
			return p.value
		}
	}
	return ""
}

// set replaces the values of a key that is there.
func (o options) set(key, value string) {
	for i, p := range o {
		if p.key == key && !p.bare {
			o[i].value = value
		}
	}
}

// on reports whether a switch is on: "server", "server=on".
func (o options) on(key string) bool {
	for i, p := range slices.Backward(o) {
		switch {
		case p.key == key && p.bare && i > 0:
			return true
		case p.key == key && !p.bare:
			return p.value == "on" || p.value == "yes" || p.value == "true" || p.value == "y"
		case p.key == "no"+key && p.bare && i > 0:
			return false
		}
	}
	return false
}

// without leaves out keys and switches; a first value whose key is implied is none.
func (o options) without(keys ...string) (left options) {
	for i, p := range o {
		if i == 0 && p.bare || !slices.Contains(keys, p.key) {
			left = append(left, p)
		}
	}
	return left
}

// rsplit cuts s at its last sep.
func rsplit(s, sep string) (head, tail string) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", s
	}
	return s[:i], s[i+len(sep):]
}

// comma doubles the commas of a value, as QEMU's option syntax wants them.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }
