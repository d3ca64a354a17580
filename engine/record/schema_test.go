package record

import (
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write docs/schema.md and docs/schema.json anew")

// source is what this package's comments say: of each struct, and of each of its fields.
type source struct {
	types  map[string]string
	fields map[string]string // Type.Field
	enums  map[string][]string
}

func readSource(t *testing.T) source {
	t.Helper()
	s := source{map[string]string{}, map[string]string{}, map[string][]string{}}
	names, err := filepath.Glob("*.go")
	if err != nil || len(names) == 0 {
		t.Fatal("no source: ", err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			d, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					s.types[spec.Name.Name] = oneLine(d.Doc.Text())
					body, ok := spec.Type.(*ast.StructType)
					if !ok {
						continue
					}
					for _, f := range body.Fields.List {
						for _, n := range f.Names {
							s.fields[spec.Name.Name+"."+n.Name] = oneLine(f.Doc.Text() + " " + f.Comment.Text())
						}
					}
				case *ast.ValueSpec:
					if of, ok := spec.Type.(*ast.Ident); ok && d.Tok == token.CONST {
						for _, v := range spec.Values {
							if text, ok := v.(*ast.BasicLit); ok && text.Kind == token.STRING {
								s.enums[of.Name] = append(s.enums[of.Name], strings.Trim(text.Value, `"`))
							}
						}
					}
				}
			}
		}
	}
	return s
}

// plain is what keys mean that need no comment where they stand, since they mean the same wherever they do; Type.Field
// before the key.
func plain(field, key string) string {
	texts := map[string]string{
		"schema": "version of the record's shape: " + Schema, "id": "unique, and sorts by time; names samples/ID.jsonl",
		"workload": "what ran in the guest, with all parameters", "message": "what went wrong, in words", "error": "why it failed; absent: it did not", "path": "of the file, as it was given",
		"start_ns": "when it began, from the first command", "duration_ns": "how long it took", "at_ns": "when, from the first command", "from_ns": "when the span began, from the first command",
		"span_ns": "the span's length", "bin_ns": "a bin's length",
		"Total.Transferred": "sent in all, by query-migrate's `transferred`", "Total.Normal": "pages sent with their content, by query-migrate's `normal`",
		"Total.Postcopy": "what followed the guest, by query-migrate's `postcopy-bytes`", "Total.Multifd": "through multifd's channels, by query-migrate's `multifd-bytes`",
		"Sample.Transferred": "query-migrate's `transferred`", "Sample.Remaining": "query-migrate's `remaining`", "Sample.DirtyPagesRate": "query-migrate's `dirty-pages-rate`: QEMU measures it at a synchronisation",
		"Sample.Throughput": "query-migrate's `mbps`, in bytes", "Sample.Throttle": "query-migrate's `cpu-throttle-percentage`", "Sample.ExpectedDowntime": "query-migrate's `expected-downtime`",
		"Sample.SyncCount": "query-migrate's `dirty-sync-count`", "Sample.Status": "query-migrate's `status`",
		"Hosts.Source": "name of the source host: local, netns:NAME, ...", "Hosts.Destination": "likewise", "Hosts.Kernel": "release of the source host's kernel, by uname", "Hosts.CPU": "the source host's processors, by /proc/cpuinfo",
		"source_version": "version and package, by the source's query-version", "destination_version": "the destination's query-version", "machine": "versioned machine type of the source", "memory_bytes": "guest RAM, by the machine's property `memory`, or query-memory-size-summary",
		"vcpus": "guest processors, by query-cpus-fast", "pings_sent": "ICMP echo requests of the observer", "pings_lost": "of them without a reply within 1 s of the last one",
		"tcp_survived": "every number came back, in order, over the one connection", "pages_checked": "pages whose index, counter and content the guest's agent compared", "pages_wrong": "of them those that were not as they should be",
		"disks": "how many were written to", "node": "QEMU's name of the block node", "samples": "replies of query-migrate", "period_p50_ns": "time between two questions, median", "period_p99_ns": "likewise, 99th percentile",
		"checkpoint_p99_ns": "likewise, 99th percentile", "Series.Name": "what was counted", "model": "name of the model", "value": "in the unit beside it", "Program.Name": "of the program",
		"retransmits": "TCP segments sent again", "Prediction.Total": "total time", "Prediction.Downtime": "wire downtime", "Prediction.Transferred": "bytes in all",
		"body_bytes": "length of a response's body", "answered_per_s": "requests answered a second", "p99_ns": "likewise, 99th percentile", "p999_ns": "likewise, 99.9th percentile",
		"max_ns": "likewise, the longest", "received_bytes_per_s": "from the guest", "acked_bytes_per_s": "to the guest",
		"RedisWriter.Version": "of the server, as it says", "connections": "that were opened", "writes_acknowledged": "that the server said are done",
	}
	if text := texts[field]; text != "" {
		return text
	}
	return texts[key]
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// unit is that at the end of a key, and what is said of times.
func unit(key string, typ reflect.Type) string {
	for _, u := range []struct{ end, text string }{
		{"bytes_per_s", "bytes/s"}, {"pages_per_s", "pages/s"}, {"per_s", "1/s"}, {"percent", "%"}, {"bytes", "bytes"}, {"pages", "pages"}, {"ppm", "ppm"}, {"ns", "ns"},
	} {
		if key == u.end || strings.HasSuffix(key, "_"+u.end) || u.end == "pages" && strings.HasPrefix(key, "pages_") {
			return u.text
		}
	}
	if typ == reflect.TypeFor[time.Time]() {
		return "UTC, ns"
	}
	return ""
}

// property is one key as the documents have it.
type property struct {
	path, key, kind, unit, text string
	optional                    bool
	typ                         reflect.Type
}

// properties are a struct's keys in their order.
func (s source) properties(t *testing.T, path string, typ reflect.Type) (out []property) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if key == "-" {
			continue
		}
		ft := f.Type
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		p := property{path: path, key: key, optional: options == "omitempty", typ: ft, unit: unit(key, ft),
			text: s.fields[typ.Name()+"."+f.Name]}
		if of, ok := strings.CutSuffix(key, "_error_ns"); ok && p.text == "" {
			p.text = "error of `" + of + "_ns`: measurements.md or timeline.md defines it"
		}
		p.kind = s.kind(ft)
		if p.text == "" {
			p.text = plain(typ.Name()+"."+f.Name, key)
		}
		if of := base(ft); p.text == "" { // an own type says it
			p.text = s.types[of.Name()]
		}
		if p.text == "" {
			t.Errorf("%s.%s has no comment: say what it is and where it comes from", typ.Name(), f.Name)
		}
		out = append(out, p)
	}
	return out
}

func base(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

func (s source) kind(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "RFC 3339"
	case t.Kind() == reflect.Slice:
		return "list of " + s.kind(t.Elem())
	case t.Kind() == reflect.Pointer:
		return s.kind(t.Elem()) + " or null"
	case t.Kind() == reflect.Struct:
		return t.Name()
	case t.Kind() == reflect.Map:
		return "object"
	case t.Kind() == reflect.Bool:
		return "boolean"
	case t.Kind() == reflect.Float64:
		return "number"
	case t.Kind() == reflect.Int || t.Kind() == reflect.Int64:
		return "integer"
	case len(s.enums[t.Name()]) > 0:
		return "one of " + strings.Join(s.enums[t.Name()], ", ")
	}
	return "text"
}

// markdown is docs/schema.md.
func (s source) markdown(t *testing.T) string {
	var b strings.Builder
	b.WriteString("# The record, key by key\n\nWritten from the comments in engine/record by `go test ./engine/record -run TestSchema -update`; the test fails where this page is out of date.\n" +
		"[measurements.md](measurements.md) defines each number further, with its clock and error; [schema.json](schema.json) is the same for a program, as JSON Schema.\n\n" +
		"`records.jsonl` has one record a line, `samples/ID.jsonl` one sample a line. A key marked *maybe* is absent where it was not measured or does not apply: absent never means\n" +
		"zero. A value of a list of names may be one that this page does not know, from a newer program. `qmigrate export --columns` lists the same as flat columns: the keys joined by `_`.\n")
	seen := map[reflect.Type]bool{}
	var write func(title string, typ reflect.Type)
	write = func(title string, typ reflect.Type) {
		if seen[typ] {
			return
		}
		seen[typ] = true
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| key | type | unit | | what it is, and its source |\n|---|---|---|---|---|\n",
			title, s.types[typ.Name()])
		all := s.properties(t, title, typ)
		for _, p := range all {
			maybe := ""
			if p.optional {
				maybe = "maybe"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", p.key, p.kind, p.unit, maybe,
				strings.ReplaceAll(p.text, "|", "\\|"))
		}
		for _, p := range all {
			if of := base(p.typ); of.Kind() == reflect.Struct && of != reflect.TypeFor[time.Time]() {
				name := p.key
				if title != "record" {
					name = title + "." + p.key
				}
				write(name, of)
			}
		}
	}
	write("record", reflect.TypeFor[Migration]())
	write("sample", reflect.TypeFor[Sample]())
	return b.String()
}

// jsonSchema is docs/schema.json.
func (s source) jsonSchema(t *testing.T) string {
	defs := map[string]any{}
	var of func(p property) map[string]any
	var object func(typ reflect.Type)
	of = func(p property) map[string]any {
		switch {
		case p.typ == reflect.TypeFor[time.Time]():
			return map[string]any{"type": "string", "format": "date-time"}
		case p.typ.Kind() == reflect.Slice:
			return map[string]any{"type": []string{"array", "null"}, "items": of(property{typ: p.typ.Elem()})}
		case p.typ.Kind() == reflect.Pointer:
			return map[string]any{"anyOf": []any{of(property{typ: p.typ.Elem()}), map[string]any{"type": "null"}}}
		case p.typ.Kind() == reflect.Struct:
			object(p.typ)
			return map[string]any{"$ref": "#/$defs/" + p.typ.Name()}
		case p.typ.Kind() == reflect.Map && p.typ.Elem().Kind() == reflect.Bool:
			return map[string]any{"type": []string{"object", "null"}, "additionalProperties": map[string]any{"type": "boolean"}}
		case p.typ.Kind() == reflect.Map:
			return map[string]any{"type": []string{"object", "null"}}
		case p.typ.Kind() == reflect.Bool, p.typ.Kind() == reflect.Float64:
			return map[string]any{"type": s.kind(p.typ)}
		case p.typ.Kind() == reflect.Int || p.typ.Kind() == reflect.Int64:
			return map[string]any{"type": "integer"}
		case len(s.enums[p.typ.Name()]) > 0:
			return map[string]any{"type": "string", "examples": s.enums[p.typ.Name()]} // a newer program may have more
		}
		return map[string]any{"type": "string"}
	}
	object = func(typ reflect.Type) {
		if defs[typ.Name()] != nil {
			return
		}
		properties, required := map[string]any{}, []string{}
		def := map[string]any{"type": "object", "description": s.types[typ.Name()], "properties": properties}
		defs[typ.Name()] = def
		for _, p := range s.properties(t, "", typ) {
			entry := of(p)
			text := p.text
			if p.unit != "" {
				text = "[" + p.unit + "] " + text
			}
			entry["description"] = text
			properties[p.key] = entry
			if !p.optional {
				required = append(required, p.key)
			}
		}
		def["required"] = required
	}
	object(reflect.TypeFor[Migration]())
	object(reflect.TypeFor[Sample]())
	defs["Migration"].(map[string]any)["properties"].(map[string]any)["schema"] = map[string]any{"const": Schema}
	text, err := json.MarshalIndent(map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "title": Schema, "description": "One line of records.jsonl; one of samples/ID.jsonl is #/$defs/Sample.",
		"$ref": "#/$defs/Migration", "$defs": defs,
	}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + "\n"
}

// TestSchema: the documents are what the comments say, and every key is said.
func TestSchema(t *testing.T) {
	s := readSource(t)
	for name, want := range map[string]string{"schema.md": s.markdown(t), "schema.json": s.jsonSchema(t)} {
		file := filepath.Join("..", "..", "docs", name)
		if *update {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("docs/%s is out of date: go test ./engine/record -run TestSchema -update", name)
		}
	}
	// what cannot be missed: every key of a full record stands in the page
	line, err := json.Marshal(full(t))
	if err != nil {
		t.Fatal(err)
	}
	page := s.markdown(t)
	keys := regexp.MustCompile(`"([a-z0-9_]+)":`).FindAllSubmatch(line, -1)
	if len(keys) < 100 {
		t.Fatalf("only %d keys", len(keys))
	}
	ofMaps := []string{"mode", "xbzrle"}
	for _, k := range keys {
		if key := string(k[1]); !strings.Contains(page, "| `"+key+"` |") && !slices.Contains(ofMaps, key) {
			t.Errorf("%s is not in the page", key)
		}
	}
}
