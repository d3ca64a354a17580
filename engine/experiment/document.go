package experiment

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Error is what is wrong with an experiment's file, and where.
type Error struct {
	File string
	Line int // from 1
	Text string
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text) }

// node is one value of the file: a scalar, a list or a table. go-toml decodes and judges the text; its decoder forgets
// where a value stood, so the tree with the lines is built from its parser's own nodes.
type node struct {
	line  int
	value any              // of a scalar: string, int64, float64 or bool; of another kind (a date): nil
	text  string           // of a scalar, as a flag of the command line would have it
	list  []*node          // of a list
	table map[string]*node // of a table
	keys  []string         // of a table, in the file's order
	kind  kind
}

type kind string

const (
	aScalar kind = "value"
	aList   kind = "list"
	aTable  kind = "table"
)

func newTable(line int) *node { return &node{line: line, kind: aTable, table: map[string]*node{}} }

// put sets a key of a table, in the place of an older one.
func (n *node) put(key string, v *node) {
	if _, is := n.table[key]; !is {
		n.keys = append(n.keys, key)
	}
	n.table[key] = v
}

// parse reads TOML.
func parse(file string, text []byte) (*node, error) {
	var all map[string]any
	if err := toml.Unmarshal(text, &all); err != nil {
		e := &Error{File: file, Line: 1, Text: strings.TrimPrefix(err.Error(), "toml: ")}
		var at *toml.DecodeError
		if errors.As(err, &at) {
			e.Line, _ = at.Position()
		}
		return nil, e
	}
	d := document{root: newTable(1)}
	d.parser.Reset(text)
	into := d.root
	for d.parser.NextExpression() {
		e := d.parser.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			into = d.descend(d.root, e.Key(), e.Kind == unstable.ArrayTable)
		case unstable.KeyValue:
			d.set(into, e)
		}
	}
	if err := d.parser.Error(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	d.fill(d.root, all)
	return d.root, nil
}

// document is one text on its way to a tree.
type document struct {
	parser unstable.Parser
	root   *node
}

func (d *document) line(n *unstable.Node) int { return d.parser.Shape(n.Raw).Start.Line }

// descend is the table that a header names; the keys on the way are made, and of a list of tables its last is meant.
func (d *document) descend(n *node, keys unstable.Iterator, appended bool) *node {
	for keys.Next() {
		key, line := string(keys.Node().Data), d.line(keys.Node())
		next := n.table[key]
		switch last := keys.IsLast(); {
		case last && appended:
			if next == nil {
				next = &node{line: line, kind: aList}
				n.put(key, next)
			}
			next.list = append(next.list, newTable(line))
		case next == nil:
			next = newTable(line)
			n.put(key, next)
		}
		if next.kind == aList {
			next = next.list[len(next.list)-1]
		}
		n = next
	}
	return n
}

// set puts a key = value, whose key may have dots.
func (d *document) set(n *node, kv *unstable.Node) {
	var keys []*unstable.Node
	for it := kv.Key(); it.Next(); {
		keys = append(keys, it.Node())
	}
	for _, key := range keys[:len(keys)-1] {
		next := n.table[string(key.Data)]
		if next == nil {
			next = newTable(d.line(key))
			n.put(string(key.Data), next)
		}
		n = next
	}
	last := keys[len(keys)-1]
	n.put(string(last.Data), d.value(kv.Value(), d.line(last)))
}

// value is a value's shape; its line is its own or, where the parser keeps none, its key's.
func (d *document) value(v *unstable.Node, line int) *node {
	if v.Raw.Length > 0 {
		line = d.line(v)
	}
	n := &node{line: line, kind: aScalar}
	switch v.Kind {
	case unstable.Integer, unstable.Float:
		n.text = string(v.Data) // as it stands there: 10.0 is a version, not 10
	case unstable.Array:
		n.kind = aList
		for it := v.Children(); it.Next(); {
			if it.Node().Kind != unstable.Comment {
				n.list = append(n.list, d.value(it.Node(), line))
			}
		}
	case unstable.InlineTable:
		n = newTable(line)
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				d.set(n, it.Node())
			}
		}
	}
	return n
}

// fill gives the scalars their values, as the decoder read them.
func (d *document) fill(n *node, v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, sub := range v {
			if n.table[key] != nil {
				d.fill(n.table[key], sub)
			}
		}
	case []any:
		for i := range min(len(v), len(n.list)) {
			d.fill(n.list[i], v[i])
		}
	case string, int64, float64, bool:
		if n.value = v; n.text == "" {
			n.text = fmt.Sprint(v)
		}
	}
}

// over is a table with the keys of another one in the place of its own.
func (n *node) over(other *node) *node {
	if other == nil {
		return n
	}
	merged := &node{line: n.line, kind: aTable, table: maps.Clone(n.table), keys: slices.Clone(n.keys)}
	for _, key := range other.keys {
		merged.put(key, other.table[key])
	}
	return merged
}
