package launch

import (
	"slices"
	"strings"
)

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
