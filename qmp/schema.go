package qmp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"qmigrate/internal/atomicfile"
)

// Schema is QEMU's description of its own commands and events. Type names in it are opaque numbers, so everything is
// found from a command's name. A Schema may be used by several goroutines.
type Schema struct {
	raw      []byte
	commands map[string]json.RawMessage // entries by name; they point into raw
	events   map[string]json.RawMessage
	types    map[string]json.RawMessage
}

// Member is one argument of a command.
type Member struct {
	Name string
	// boolean, int, number, string, enum, object, array, value (any); several joined by "|" where QEMU takes one of them
	Type     string
	Enum     []string // the members of an enum, or of an array of one
	Optional bool     // also when it belongs to one kind of a union only
}

// schemaEntry is one element of the reply. Source: qapi/introspect.json, SchemaInfo.
type schemaEntry struct {
	Name        string            `json:"name"`
	MetaType    string            `json:"meta-type"`
	JSONType    string            `json:"json-type"`    // builtin
	ElementType string            `json:"element-type"` // array
	ArgType     string            `json:"arg-type"`     // command, event
	Tag         string            `json:"tag"`          // object with variants
	Values      []json.RawMessage `json:"values"`       // enum before 6.2
	Members     []struct {        // enum, object, alternate
		Name    string          `json:"name"`
		Type    string          `json:"type"`
		Default json.RawMessage `json:"default"` // there, as null, if the member is optional
	} `json:"members"`
	Variants []struct {
		Case string `json:"case"`
		Type string `json:"type"`
	} `json:"variants"`
}

// Schema asks for the description: one line of some 200 kB. See SchemaCache.
func (c *Conn) Schema(ctx context.Context) (*Schema, error) {
	var raw json.RawMessage
	if err := c.Execute(ctx, "query-qmp-schema", nil, &raw); err != nil {
		return nil, err
	}
	return ParseSchema(raw)
}

// ParseSchema reads the return value of query-qmp-schema. It keeps b.
func ParseSchema(b []byte) (*Schema, error) {
	s := &Schema{
		raw: b, commands: make(map[string]json.RawMessage), events: make(map[string]json.RawMessage),
		types: make(map[string]json.RawMessage),
	}
	bad := errors.New("parse schema: not the answer to query-qmp-schema")
	p := scanner{b: b}
	if !p.take('[') {
		return nil, bad
	}
	for again := !p.take(']'); again; {
		entry, ok := p.value(2)
		if !ok {
			return nil, bad
		}
		name, kind, ok := schemaName(entry)
		if !ok {
			return nil, bad
		}
		switch kind {
		case "command":
			s.commands[name] = entry
		case "event":
			s.events[name] = entry
		default: // kinds of type that are not known yet, too
			s.types[name] = entry
		}
		if again = p.take(','); !again && !p.take(']') {
			return nil, bad
		}
	}
	if !p.end() {
		return nil, bad
	}
	return s, nil
}

// schemaName finds name and kind of an entry, a valid JSON value, without decoding the rest of it.
func schemaName(entry []byte) (name, kind string, ok bool) {
	p := scanner{b: entry}
	if !p.take('{') {
		return "", "", false
	}
	for again := !p.take('}'); again; {
		var key, v []byte
		key, v, again, _ = p.member()
		if v[0] != '"' {
			continue
		}
		text := scanner{b: v}
		switch string(key) {
		case "name":
			b, _ := text.str()
			name = string(b)
		case "meta-type":
			b, _ := text.str()
			kind = string(b)
		}
	}
	return name, kind, name != "" && kind != ""
}

// MarshalJSON is what ParseSchema reads.
func (s *Schema) MarshalJSON() ([]byte, error) { return s.raw, nil }

// HasCommand says whether QEMU has the command.
func (s *Schema) HasCommand(name string) bool {
	_, ok := s.commands[name]
	return ok
}

// Commands are the names of all commands, sorted.
func (s *Schema) Commands() []string { return slices.Sorted(maps.Keys(s.commands)) }

// Events are the names of all events, sorted.
func (s *Schema) Events() []string { return slices.Sorted(maps.Keys(s.events)) }

// Arguments are a command's arguments in QEMU's order; nil if it takes none or does not exist.
func (s *Schema) Arguments(command string) []Member {
	return s.members(entry(s.commands[command]).ArgType)
}

// Enum are the values that an argument of a command takes, in QEMU's order; nil if it is no enum. A dotted path leads
// into objects and arrays: Enum("migrate-set-capabilities", "capabilities.capability").
func (s *Schema) Enum(command, member string) []string {
	t := entry(s.commands[command]).ArgType
	for name := range strings.SplitSeq(member, ".") {
		if t = s.memberType(t, name); t == "" {
			return nil
		}
	}
	_, values := s.describe(t)
	return values
}

// MigrationCapabilities are the names of all migration capabilities, in QEMU's order.
func (s *Schema) MigrationCapabilities() []string {
	return s.Enum("migrate-set-capabilities", "capabilities.capability")
}

// MigrationParameters are all migration parameters, in QEMU's order.
func (s *Schema) MigrationParameters() []Member { return s.Arguments("migrate-set-parameters") }

// entry decodes; what has another form than known is empty.
func entry(raw json.RawMessage) *schemaEntry {
	e := new(schemaEntry)
	if raw == nil || json.Unmarshal(raw, e) != nil {
		return new(schemaEntry)
	}
	return e
}

// members lists what an object of the named type may hold, of all its variants.
func (s *Schema) members(typeName string) []Member {
	var list []Member
	s.walk(typeName, func(name, memberType string, optional bool) bool {
		if !slices.ContainsFunc(list, func(m Member) bool { return m.Name == name }) {
			m := Member{Name: name, Optional: optional}
			m.Type, m.Enum = s.describe(memberType)
			list = append(list, m)
		}
		return true
	})
	return list
}

// memberType is the type of one member, in an object or in the objects of an array; "" if there is none.
func (s *Schema) memberType(typeName, member string) (found string) {
	if t := entry(s.types[typeName]); t.MetaType == "array" {
		typeName = t.ElementType
	}
	s.walk(typeName, func(name, memberType string, _ bool) bool {
		if name == member {
			found = memberType
		}
		return found == ""
	})
	return found
}

// walk calls f for each member of an object and of its variants, until f says false.
func (s *Schema) walk(typeName string, f func(name, memberType string, optional bool) bool) {
	seen := make(map[string]bool)
	var object func(typeName string, variant bool) bool
	object = func(typeName string, variant bool) bool {
		if typeName == "" || seen[typeName] {
			return true
		}
		seen[typeName] = true
		t := entry(s.types[typeName])
		if t.MetaType != "object" {
			return true
		}
		for _, m := range t.Members {
			if !f(m.Name, m.Type, variant || m.Default != nil) {
				return false
			}
		}
		for _, v := range t.Variants {
			if !object(v.Type, true) {
				return false
			}
		}
		return true
	}
	object(typeName, false)
}

// describe is a type in JSON's words, with the values of an enum.
func (s *Schema) describe(typeName string) (kind string, values []string) {
	t := entry(s.types[typeName])
	switch t.MetaType {
	case "builtin":
		return t.JSONType, nil
	case "enum":
		for _, m := range t.Members {
			values = append(values, m.Name)
		}
		for _, v := range t.Values {
			var name string
			if len(t.Members) == 0 && json.Unmarshal(v, &name) == nil {
				values = append(values, name)
			}
		}
	case "array":
		if e := entry(s.types[t.ElementType]); e.MetaType == "enum" {
			_, values = s.describe(t.ElementType)
		}
	case "alternate":
		var kinds []string
		for _, m := range t.Members {
			if entry(s.types[m.Type]).MetaType == "alternate" {
				continue // QEMU has none inside another
			}
			k, v := s.describe(m.Type)
			kinds = append(kinds, k)
			values = append(values, v...)
		}
		return strings.Join(kinds, "|"), values
	}
	return t.MetaType, values
}

// SchemaCache keeps schemas in files, for asking costs QEMU more than everything else before a migration.
type SchemaCache struct {
	Dir    string       // created when needed; "" caches nothing
	Logger *slog.Logger // warns of a cache that cannot be written; nil is silent
}

const schemaHeader = "qmigrate schema 1 "

// Schema is the schema of the QEMU behind c. Known says that it came from the cache: from a QEMU of the same version
// and package with the same commands and migration capabilities. A file that is damaged is written anew.
func (k SchemaCache) Schema(ctx context.Context, c *Conn) (s *Schema, known bool, err error) {
	if k.Dir == "" {
		s, err = c.Schema(ctx)
		return s, false, err
	}
	key, err := schemaKey(ctx, c)
	if err != nil {
		return nil, false, err
	}
	name := filepath.Join(k.Dir, key)
	if b, err := os.ReadFile(name); err == nil {
		if s := openSchema(b); s != nil {
			return s, true, nil
		}
	}
	if s, err = c.Schema(ctx); err != nil {
		return nil, false, err
	}
	if err := keepSchema(name, sealSchema(s)); err != nil && k.Logger != nil {
		k.Logger.Warn("schema is not cached", "err", err)
	}
	return s, false, nil
}

// schemaKey is the name of the file for the QEMU behind c.
func schemaKey(ctx context.Context, c *Conn) (string, error) {
	var commands []struct {
		Name string `json:"name"`
	}
	if err := c.Execute(ctx, "query-commands", nil, &commands); err != nil {
		return "", err
	}
	capabilities, err := c.QueryMigrateCapabilities(ctx)
	if err != nil {
		return "", err
	}
	names := slices.Sorted(maps.Keys(capabilities))
	n := len(names)
	for _, e := range commands {
		names = append(names, e.Name)
	}
	slices.Sort(names[n:])
	v := c.Greeting().Version
	sum := sha256.Sum256([]byte(v.String() + "\n" + v.Package + "\n" + strings.Join(names, "\n")))
	return fmt.Sprintf("qmp-schema-%v-%s.json", v, hex.EncodeToString(sum[:8])), nil
}

// sealSchema is a schema as a file: a line with a checksum, then QEMU's reply.
func sealSchema(s *Schema) []byte {
	sum := sha256.Sum256(s.raw)
	return append([]byte(schemaHeader+hex.EncodeToString(sum[:])+"\n"), s.raw...)
}

// openSchema undoes sealSchema; nil if the file is not whole.
func openSchema(b []byte) *Schema {
	header, raw, _ := strings.Cut(string(b), "\n")
	sum := sha256.Sum256([]byte(raw))
	if header != schemaHeader+hex.EncodeToString(sum[:]) {
		return nil
	}
	s, err := ParseSchema([]byte(raw))
	if err != nil {
		return nil
	}
	return s
}

// keepSchema writes a file of the cache.
func keepSchema(name string, b []byte) error {
	err := os.MkdirAll(filepath.Dir(name), 0o700)
	if err == nil {
		err = atomicfile.Write(name, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write schema cache: %w", err)
	}
	return nil
}
