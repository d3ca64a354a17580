package qmp_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qmigrate/qmp"
	"qmigrate/qmp/qmptest"
)

func schemaFile(version string) string {
	return filepath.Join("testdata", "schema-"+version+".json.gz")
}

// readSchema is a recorded answer to query-qmp-schema.
func readSchema(t testing.TB, version string) []byte {
	t.Helper()
	f, err := os.Open(schemaFile(version))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSchemaReal compares the recorded schemas with those of the QEMUs here, or records them with -update.
func TestSchemaReal(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			c, err := qmp.Dial(limit(t), "unix", filepath.Join(startQEMU(t, version, []string{"m"}, "-machine", "none"), "m"), qmp.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := c.Schema(limit(t))
			if err != nil {
				t.Fatal(err)
			}
			b, err := s.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				var z bytes.Buffer
				w, _ := gzip.NewWriterLevel(&z, gzip.BestCompression)
				w.Write(b)
				w.Close()
				if err := os.WriteFile(schemaFile(version), z.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			checkSchema(t, version, s)
			k, err := c.QueryMigrateCapabilities(limit(t))
			if err != nil {
				t.Fatal(err)
			}
			p, err := c.QueryMigrateParameters(limit(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range s.MigrationCapabilities() {
				if _, ok := k[name]; !ok {
					t.Errorf("capability %s is in the schema only", name)
				}
			}
			members := s.MigrationParameters()
			for name := range p {
				if !slices.ContainsFunc(members, func(m qmp.Member) bool { return m.Name == name }) {
					t.Errorf("parameter %s is not in the schema", name)
				}
			}
		})
	}
}

func TestSchema(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			s, err := qmp.ParseSchema(readSchema(t, version))
			if err != nil {
				t.Fatal(err)
			}
			checkSchema(t, version, s)
		})
	}
}

// checkSchema holds what is true of the QEMU of that version.
func checkSchema(t *testing.T, version string, s *qmp.Schema) {
	t.Helper()
	old := version == "7.2"
	for name, want := range map[string]bool{
		"query-migrate": true, "migrate-recover": true, "calc-dirty-rate": true, "yank": true, "nope": false, "MIGRATION": false, "query-block-jobs": true,
		"query-vcpu-dirty-limit": true, "x-query-virtio": true,
	} {
		if s.HasCommand(name) != want {
			t.Errorf("has %s: %v", name, !want)
		}
	}
	if c, e := s.Commands(), s.Events(); len(c) < 200 || len(e) < 40 || !slices.IsSorted(c) || !slices.IsSorted(e) || !slices.Contains(e, "MIGRATION_PASS") {
		t.Errorf("%d commands, %d events", len(c), len(e))
	}
	k := s.MigrationCapabilities()
	for name, want := range map[string]bool{
		"events": true, "postcopy-ram": true, "multifd": true, "x-colo": true, "compress": old, "mapped-ram": !old, "switchover-ack": !old, "dirty-limit": !old,
	} {
		if slices.Contains(k, name) != want {
			t.Errorf("%s: capability %s: %v", version, name, !want)
		}
	}
	parameters := make(map[string]qmp.Member)
	for _, m := range s.MigrationParameters() {
		parameters[m.Name] = m
		if !m.Optional || m.Type == "" {
			t.Errorf("parameter %+v: want an optional one with a type", m)
		}
	}
	for name, want := range map[string]string{
		"max-bandwidth": "int", "downtime-limit": "int", "cpu-throttle-tailslow": "boolean", "multifd-compression": "enum", "tls-creds": "string|null",
		"block-bitmap-mapping": "array", "nope": "",
	} {
		if parameters[name].Type != want {
			t.Errorf("parameter %s has type %q, want %q", name, parameters[name].Type, want)
		}
	}
	if e := parameters["multifd-compression"].Enum; !slices.Contains(e, "none") || !slices.Contains(e, "zstd") {
		t.Errorf("multifd-compression: %q", e)
	}
	if e := parameters["zero-page-detection"].Enum; old != (e == nil) || !old && !slices.Contains(e, "multifd") {
		t.Errorf("zero-page-detection: %q", e)
	}
	if a := s.Arguments("migrate-set-capabilities"); len(a) != 1 || a[0].Type != "array" || a[0].Optional {
		t.Errorf("arguments of migrate-set-capabilities: %+v", a)
	}
	if a := s.Arguments("query-status"); len(a) != 0 {
		t.Errorf("arguments of query-status: %+v", a)
	}
	names := ""
	for _, m := range s.Arguments("migrate") {
		names += m.Name + " "
	}
	detach := strings.Contains(names, "detach ") // a word without an effect, until 11.1
	if !strings.Contains(names, "uri ") || strings.Contains(names, "channels ") == old || detach == (version == "11.1") {
		t.Errorf("arguments of migrate: %s", names)
	}
	backends := s.Arguments("netdev_add") // an object with variants
	if i := slices.IndexFunc(backends, func(m qmp.Member) bool { return m.Name == "ifname" }); i < 0 || !backends[i].Optional {
		t.Errorf("arguments of netdev_add: %+v", backends)
	}
	if e := s.Enum("netdev_add", "type"); !slices.Contains(e, "tap") {
		t.Errorf("netdev_add type: %q", e)
	}
	if e := s.Enum("migrate-continue", "state"); !slices.Contains(e, "pre-switchover") {
		t.Errorf("migrate-continue state: %q", e)
	}
	for _, path := range []string{"nope", "uri.nope", "", "."} {
		if e := s.Enum("migrate", path); e != nil {
			t.Errorf("enum %q: %q", path, e)
		}
	}
}

func TestSchemaBad(t *testing.T) {
	for _, b := range []string{"", "{}", "[", "[]]", "[{}]", "[1]", `[{"name": "x"}]`, `[{"name": "x", "meta-type": "command"},]`, `[{"name": "x", "meta-type": "command"}`, "null"} {
		if s, err := qmp.ParseSchema([]byte(b)); err == nil || s != nil {
			t.Errorf("%s: %v, %v", b, s, err)
		}
	}
	// what is not as expected is empty, a type in a circle ends
	s, err := qmp.ParseSchema([]byte(`[{"name": "x", "meta-type": "command", "arg-type": "1"}, {"name": "1", "meta-type": "object", "members": [{"name": "a", "type": "2"},
		{"name": "b", "type": "none"}, {"name": "c", "type": "3"}], "variants": [{"case": "q", "type": "1"}]}, {"name": "2", "meta-type": "alternate", "members": [{"type": "2"}]},
		{"name": "3", "meta-type": "hologram"}, {"name": "y", "meta-type": "command", "arg-type": 3}, {"name": "z", "meta-type": "command", "arg-type": "4"},
		{"name": "4", "meta-type": "enum", "values": ["u", "v"]}, {"name": "5", "meta-type": "command", "arg-type": "6"},
		{"name": "6", "meta-type": "object", "members": [{"name": "old", "type": "4"}]}]`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(s.Arguments("x")), "[{a  [] false} {b  [] false} {c hologram [] false}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if s.Arguments("y") != nil || s.Arguments("z") != nil {
		t.Error("arguments of commands that have none")
	}
	if got := s.Enum("5", "old"); !slices.Equal(got, []string{"u", "v"}) {
		t.Errorf("enum of an old QEMU: %q", got)
	}
}

// cached is a monitor for SchemaCache: known says that nobody will ask for the schema.
func cached(t *testing.T, known bool, capability string) *qmp.Conn {
	t.Helper()
	text := `
< ` + greetingLine + `
> {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}
< {"return": {}}
> {"execute": "query-commands"}
< {"return": [{"name": "stop"}, {"name": "cont"}]}
> {"execute": "query-migrate-capabilities"}
< {"return": [{"capability": "` + capability + `", "state": false}]}
`
	if !known {
		var schema bytes.Buffer
		if err := json.Compact(&schema, readSchema(t, "10.0")); err != nil {
			t.Fatal(err)
		}
		text += "> {\"execute\": \"query-qmp-schema\"}\n< {\"return\": " + schema.String() + "}\n"
	}
	script, err := qmptest.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.Dial(limit(t), "unix", qmptest.ServeTranscript(t, "cached", script), qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestSchemaCache(t *testing.T) {
	k := qmp.SchemaCache{Dir: filepath.Join(t.TempDir(), "a", "b")}
	step := func(what string, known bool, capability string) {
		t.Helper()
		s, got, err := k.Schema(limit(t), cached(t, known, capability))
		if err != nil || got != known {
			t.Fatalf("%s: known %v, %v; want %v", what, got, err, known)
		}
		checkSchema(t, "10.0", s)
	}
	step("first", false, "events")
	step("second", true, "events")
	step("other QEMU of that version", false, "other")
	files, _ := filepath.Glob(filepath.Join(k.Dir, "*"))
	if len(files) != 2 || !strings.HasPrefix(filepath.Base(files[0]), "qmp-schema-10.0.2-") {
		t.Fatalf("files %q", files)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, b[:len(b)-100], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	step("damaged", false, "events")
	step("mended", true, "events")
	if left, _ := filepath.Glob(filepath.Join(k.Dir, ".*")); len(left) != 0 {
		t.Errorf("left over: %q", left)
	}

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k.Dir = filepath.Join(file, "cache") // nobody can write there
	step("not writable", false, "events")
}

func BenchmarkParseSchema(b *testing.B) {
	raw := readSchema(b, "10.0")
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		s, err := qmp.ParseSchema(raw)
		if err != nil || len(s.MigrationCapabilities()) == 0 {
			b.Fatal(err)
		}
	}
}
