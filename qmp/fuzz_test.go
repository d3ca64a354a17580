package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"testing/iotest"
	"time"
)

// seeds are all messages of the transcripts, received or sent.
func seeds(f *testing.F, kind byte, add func(line []byte)) {
	files, err := filepath.Glob("../testdata/transcripts/*/*.qmp")
	if err != nil || len(files) == 0 {
		f.Fatalf("no transcripts: %v", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			if line[0] == kind {
				add(bytes.TrimSpace(line[1:]))
			}
		}
	}
}

func FuzzDecodeMessage(f *testing.F) {
	seeds(f, '<', func(line []byte) { f.Add(line) })
	f.Add([]byte(`{"error": null, "return": null, "id": null, "event": ""}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decodeMessage(line)
		if err != nil {
			if m != nil {
				t.Fatalf("%+v beside %v", m, err)
			}
			return
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeMessage(b)
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		c, err := json.Marshal(again)
		if err != nil || !bytes.Equal(b, c) {
			t.Fatalf("%s became %s, %v", b, c, err)
		}
		m.event(time.Time{})
	})
}

func FuzzDecodeGreeting(f *testing.F) {
	seeds(f, '<', func(line []byte) { f.Add(line) })
	f.Fuzz(func(t *testing.T, line []byte) {
		g, err := decodeGreeting(line)
		if err != nil {
			if !reflect.DeepEqual(g, Greeting{}) {
				t.Fatalf("%+v beside %v", g, err)
			}
			return
		}
		v := g.Version
		b, err := json.Marshal(map[string]any{"QMP": map[string]any{
			"version":      map[string]any{"qemu": map[string]int{"major": v.Major, "minor": v.Minor, "micro": v.Micro}, "package": v.Package},
			"capabilities": g.Capabilities,
		}})
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decodeGreeting(b); err != nil || !reflect.DeepEqual(again, g) {
			t.Fatalf("%+v became %+v, %v", g, again, err)
		}
	})
}

// FuzzFramer has two laws: how a stream is cut into reads does not matter, and what encoding/json takes for a line of
// one object comes out as that object.
func FuzzFramer(f *testing.F) {
	seeds(f, '<', func(line []byte) { f.Add(line) })
	f.Add([]byte("{\n  \"a\": [\n 1\n ]\n}\n{}"))
	f.Add([]byte(`{"a": "\"}"} {"b":{"c":[]}}`))
	f.Fuzz(func(t *testing.T, stream []byte) {
		whole, errWhole := frames(bytes.NewReader(stream))
		bytewise, errBytewise := frames(iotest.OneByteReader(bytes.NewReader(stream)))
		var bad *notMessage
		if !reflect.DeepEqual(whole, bytewise) || errors.As(errWhole, &bad) != errors.As(errBytewise, &bad) {
			t.Fatalf("whole: %q, %v\nbytewise: %q, %v", whole, errWhole, bytewise, errBytewise)
		}
		object := bytes.TrimSpace(stream)
		if len(object) > 0 && object[0] == '{' && json.Valid(object) && !bytes.Contains(object, []byte("\n")) {
			if len(whole) != 1 || whole[0] != string(object) || errWhole != io.EOF {
				t.Fatalf("%q became %q, %v", object, whole, errWhole)
			}
		}
	})
}

// frames are all messages of a stream, and what ended it.
func frames(r io.Reader) (list []string, err error) {
	fr := framer{r: r}
	for {
		m, err := fr.next(0)
		if err != nil {
			return list, err
		}
		list = append(list, string(m))
	}
}

// FuzzScanner holds the parser for the hot path to encoding/json's idea of JSON.
func FuzzScanner(f *testing.F) {
	seeds(f, '<', func(line []byte) { f.Add(line) })
	for _, s := range []string{"-0", "01", "1.", "1e+5", "\"\\u12g4\"", "\"\xff\"", "nul", "[1,]", "{\"a\":1,}", "[[[]]]", "\"\\\"", " true ", "-"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := scanner{b: b}
		_, ok := s.value(1)
		if got := ok && s.end(); got != json.Valid(b) {
			t.Fatalf("%q: %v, encoding/json says %v", b, got, !got)
		}
	})
}

func FuzzSplitReply(f *testing.F) {
	seeds(f, '<', func(line []byte) { f.Add(line) })
	f.Fuzz(func(t *testing.T, line []byte) {
		value, refusal, ok := splitReply(line)
		var m map[string]json.RawMessage
		if err := json.Unmarshal(line, &m); (err == nil && m != nil) != ok {
			t.Fatalf("%q: %v, encoding/json says %v", line, ok, err)
		}
		if !ok {
			if value != nil || refusal != nil {
				t.Fatalf("%q: %q and %q of what is no message", line, value, refusal)
			}
			return
		}
		wantValue, wantRefusal := m["return"], m["error"]
		if m["event"] != nil {
			wantValue, wantRefusal = nil, nil
		} else if wantRefusal != nil {
			wantValue = nil
		}
		if !bytes.Equal(value, wantValue) || !bytes.Equal(refusal, wantRefusal) {
			t.Fatalf("%q: %q and %q, want %q and %q", line, value, refusal, wantValue, wantRefusal)
		}
	})
}

// FuzzMigrationInfo has encoding/json as its oracle.
func FuzzMigrationInfo(f *testing.F) {
	seeds(f, '<', func(line []byte) {
		var m message
		if json.Unmarshal(line, &m) == nil && m.Return != nil {
			f.Add([]byte(m.Return))
		}
	})
	f.Add([]byte(`{"ram": {"mbps": 1e400, "total": -0, "normal": 99999999999999999999}, "ram": {}, "downtime": 1e3, "status": "\ud800", "error-desc": null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d migrationDecoder
		got := MigrationInfo{Status: "old", Has: FieldTotal, Total: 5}
		err := d.decode(b, &got)
		want, ok := oracle(b)
		if (err == nil) != ok {
			t.Fatalf("%q: %v, encoding/json says %v", b, err, ok)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%q:\ngot  %+v\nwant %+v", b, got, want)
		}
		var again MigrationInfo
		if err2 := d.decode(b, &again); (err2 == nil) != ok || !reflect.DeepEqual(again, want) {
			t.Fatalf("%q: second time %+v, %v", b, again, err2)
		}
	})
}

// oracle is migrationDecoder.decode by way of maps.
func oracle(b []byte) (m MigrationInfo, ok bool) {
	var top, ram map[string]json.RawMessage
	if json.Unmarshal(b, &top) != nil || top == nil {
		return m, false
	}
	json.Unmarshal(top["ram"], &ram)
	for _, e := range []struct {
		in    map[string]json.RawMessage
		name  string
		to    *int64
		field Fields
	}{
		{top, "total-time", (*int64)(&m.TotalTime), FieldTotalTime}, {top, "setup-time", (*int64)(&m.SetupTime), FieldSetupTime},
		{top, "downtime", (*int64)(&m.Downtime), FieldDowntime}, {top, "expected-downtime", (*int64)(&m.ExpectedDowntime), FieldExpectedDowntime},
		{top, "postcopy-blocktime", (*int64)(&m.PostcopyBlocktime), FieldPostcopyBlocktime},
		{top, "cpu-throttle-percentage", &m.ThrottlePercent, FieldThrottlePercent},
		{ram, "transferred", &m.Transferred, FieldTransferred}, {ram, "remaining", &m.Remaining, FieldRemaining}, {ram, "total", &m.Total, FieldTotal},
		{ram, "normal-bytes", &m.NormalBytes, FieldNormalBytes}, {ram, "postcopy-bytes", &m.PostcopyBytes, FieldPostcopyBytes},
		{ram, "multifd-bytes", &m.MultifdBytes, FieldMultifdBytes}, {ram, "precopy-bytes", &m.PrecopyBytes, FieldPrecopyBytes},
		{ram, "downtime-bytes", &m.DowntimeBytes, FieldDowntimeBytes}, {ram, "normal", &m.Normal, FieldNormal}, {ram, "duplicate", &m.Duplicate, FieldDuplicate},
		{ram, "dirty-pages-rate", &m.DirtyPagesRate, FieldDirtyPagesRate}, {ram, "pages-per-second", &m.PagesPerSecond, FieldPagesPerSecond},
		{ram, "dirty-sync-count", &m.DirtySyncCount, FieldDirtySyncCount}, {ram, "page-size", &m.PageSize, FieldPageSize},
		{ram, "postcopy-requests", &m.PostcopyRequests, FieldPostcopyRequests},
	} {
		n, err := strconv.ParseInt(string(e.in[e.name]), 10, 64)
		if err != nil {
			continue
		}
		m.Has |= e.field
		*e.to = n
		if e.field&(FieldTotalTime|FieldSetupTime|FieldDowntime|FieldExpectedDowntime|FieldPostcopyBlocktime) != 0 {
			most := int64(math.MaxInt64) / 1e6
			*e.to = max(-most, min(n, most)) * 1e6
		}
	}
	text := func(name string, to *string, field Fields) {
		var s *string
		if json.Unmarshal(top[name], &s) == nil && s != nil {
			*to = *s
			m.Has |= field
		}
	}
	text("status", &m.Status, FieldStatus)
	text("error-desc", &m.ErrorDesc, FieldErrorDesc)
	var reasons *[]string
	if json.Unmarshal(top["blocked-reasons"], &reasons) == nil && reasons != nil {
		m.BlockedReasons, m.Has = *reasons, m.Has|FieldBlockedReasons
	}
	var addresses *[]SocketAddress
	if json.Unmarshal(top["socket-address"], &addresses) == nil && addresses != nil {
		m.SocketAddress, m.Has = *addresses, m.Has|FieldSocketAddress
	}
	var mbps *float64
	if json.Unmarshal(ram["mbps"], &mbps) == nil && mbps != nil {
		m.Throughput, m.Has = *mbps*1e6/8, m.Has|FieldThroughput
	}
	return m, true
}

func FuzzParseSchema(f *testing.F) {
	f.Add([]byte(`[]`))
	f.Add([]byte(`[{"name": "x", "meta-type": "command", "arg-type": "1"}, {"name": "1", "meta-type": "object", "members": [{"name": "a", "type": "2", "default": null}]},
		{"name": "2", "meta-type": "array", "element-type": "3"}, {"name": "3", "meta-type": "enum", "members": [{"name": "u"}], "values": ["u"]}]`))
	f.Add([]byte(`[{"name": "1", "meta-type": "object", "variants": [{"case": "q", "type": "1"}]}, {"name": "int", "meta-type": "builtin", "json-type": "int"},
		{"name": "E", "meta-type": "event", "arg-type": "1"}, {"name": "a", "meta-type": "alternate", "members": [{"type": "int"}, {"type": "a"}]}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSchema(b)
		if err != nil {
			if s != nil {
				t.Fatalf("a schema beside %v", err)
			}
			return
		}
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseSchema(out)
		if err != nil || describeSchema(again) != describeSchema(s) {
			t.Fatalf("%q: changed, %v", b, err)
		}
		if k := openSchema(sealSchema(s)); k == nil || describeSchema(k) != describeSchema(s) {
			t.Fatalf("%q: changed in the cache", b)
		}
	})
}

// describeSchema is all that a Schema answers.
func describeSchema(s *Schema) string {
	text := fmt.Sprint(s.Events(), s.MigrationCapabilities(), s.MigrationParameters())
	for _, c := range s.Commands() {
		text += fmt.Sprintf("\n%q %v", c, s.Arguments(c))
	}
	return text
}

func FuzzOpenSchema(f *testing.F) {
	f.Add([]byte("qmigrate schema 1 \n[]"))
	f.Add(sealSchema(&Schema{raw: []byte("[]")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := openSchema(b); s != nil && !bytes.Equal(sealSchema(s), b) {
			t.Fatalf("%q was taken for a cache file", b)
		}
	})
}

func FuzzDecodeCommand(f *testing.F) {
	seeds(f, '>', func(line []byte) { f.Add(line) })
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeCommand(b)
		if err != nil {
			if r != nil {
				t.Fatalf("%+v beside %v", r, err)
			}
			return
		}
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeCommand(out)
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		c, err := json.Marshal(again)
		if err != nil || !bytes.Equal(out, c) {
			t.Fatalf("%s became %s, %v", out, c, err)
		}
	})
}

// FuzzParameters holds numbers whole: what is read back can be set again.
func FuzzParameters(f *testing.F) {
	f.Add([]byte(`{"max-bandwidth": 9223372036854775807, "x": 1.5, "y": [{"z": 1e3}, null, true, "s"], "big": 1e999}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p parameters
		if err := json.Unmarshal(b, &p); err != nil {
			if p != nil {
				t.Fatalf("%v beside %v", p, err)
			}
			return
		}
		out, err := json.Marshal(map[string]any(p))
		if err != nil {
			t.Fatal(err)
		}
		var again parameters
		if err := json.Unmarshal(out, &again); err != nil || len(again) != len(p) {
			t.Fatalf("%s became %v, %v", out, again, err)
		}
	})
}
