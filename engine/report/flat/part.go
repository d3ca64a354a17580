package flat

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"qmigrate/engine/record"
)

// part decodes some of a record's keys and passes over the others without a look into them: the parameters, the series
// and the passes are most of a line. What is passed over has to be balanced, and is not checked further.
type part struct {
	fields map[string]int // of record.Migration, by key
}

// newPart decodes those fields besides the ones that every row needs.
func newPart(fields []int) *part {
	p := &part{fields: map[string]int{}}
	t := reflect.TypeFor[record.Migration]()
	for i := range t.NumField() {
		f := t.Field(i)
		always := slices.Contains([]string{"Schema", "ID", "StartedAt", "Name", "Mode", "Outcome", "Workload", "Order",
			"Factors", "Plan"}, f.Name)
		if key, _, _ := strings.Cut(f.Tag.Get("json"), ","); key != "-" && (always || slices.Contains(fields, i)) {
			p.fields[key] = i
		}
	}
	return p
}

// decode reads one line. On an error the record is nil.
func (p *part) decode(line []byte) (*record.Migration, error) {
	m := new(record.Migration)
	to := reflect.ValueOf(m).Elem()
	err := members(line, func(key, value []byte) error {
		i, ok := p.fields[string(key)]
		if !ok {
			return nil
		}
		if err := json.Unmarshal(value, to.Field(i).Addr().Interface()); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("decode record: %w", err)
	}
	if m.Schema != record.Schema {
		return nil, fmt.Errorf("decode record: schema is %q, this program reads %q", m.Schema, record.Schema)
	}
	return m, nil
}

var errSyntax = errors.New("it is no JSON object")

// members calls f for each member of a JSON object, key without its quotes and value as it stands.
func members(line []byte, f func(key, value []byte) error) error {
	rest, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("{"))
	if !ok {
		return errSyntax
	}
	for first := true; ; first = false {
		rest = bytes.TrimLeft(rest, " \t\r")
		if len(rest) == 0 {
			return errSyntax
		}
		if rest[0] == '}' && first || len(rest) == 1 && rest[0] == '}' {
			if len(rest) > 1 {
				return errSyntax
			}
			return nil
		}
		if !first {
			if rest[0] != ',' {
				return errSyntax
			}
			rest = bytes.TrimLeft(rest[1:], " \t\r")
		}
		n := stringEnd(rest)
		if n == 0 {
			return errSyntax
		}
		key := rest[1 : n-1]
		rest, ok = bytes.CutPrefix(bytes.TrimLeft(rest[n:], " \t\r"), []byte(":"))
		if !ok {
			return errSyntax
		}
		if n = valueEnd(rest); n == 0 {
			return errSyntax
		}
		if err := f(key, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
}

// stringEnd is the length of the quoted string at the beginning of b; 0 if there is none.
func stringEnd(b []byte) int {
	if len(b) == 0 || b[0] != '"' {
		return 0
	}
	for i := 1; ; {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return 0
		}
		i += n + 1
		escapes := 0
		for b[i-2-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return i
		}
	}
}

// valueEnd is the length of the value at the beginning of b, up to the comma or bracket that ends it; 0 if there is
// none.
func valueEnd(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			n := stringEnd(b[i:])
			if n == 0 {
				return 0
			}
			i += n - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		case ',':
			if depth == 0 {
				return i
			}
		}
	}
	return 0
}
