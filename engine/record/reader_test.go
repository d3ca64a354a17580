package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// TestReader: whole records come one by one; half a line is told and no record; a line that is none is an error behind
// which the reading goes on.
func TestReader(t *testing.T) {
	long := full(t)
	long.Warnings = []string{strings.Repeat("w", 1<<20)} // longer than any buffer
	var file bytes.Buffer
	for _, m := range []*Migration{full(t), long} {
		line, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		file.Write(append(line, '\n'))
	}
	file.WriteString("{\"schema\":\"another/1\"}\n")
	file.WriteString("{\"schema\":\"" + Schema +
		"\",\"id\":\"last\",\"unknown\":{\"a\":[1,2]},\"total\":{\"wall_ns\":5,\"new_ns\":6}}\n")
	const half = `{"schema":"qmigrate/record/1","id":"ha`
	file.WriteString(half)
	for name, in := range map[string]io.Reader{"at once": bytes.NewReader(file.Bytes()),
		"byte by byte": iotest.OneByteReader(bytes.NewReader(file.Bytes()))} {
		r := NewReader(in)
		var got []*Migration
		var errs []string
		for m, err := range r.All() {
			if err != nil {
				errs = append(errs, err.Error())
				continue
			}
			got = append(got, m)
		}
		if len(got) != 3 || got[2].ID != "last" || got[2].Total.Wall != 5 ||
			!reflect.DeepEqual(got[1].Warnings, long.Warnings) {
			t.Errorf("%s: %d records", name, len(got))
		}
		if len(errs) != 1 || !strings.Contains(errs[0], "line 3") || !strings.Contains(errs[0], "another/1") {
			t.Errorf("%s: %q", name, errs)
		}
		if r.Half() != len(half) || r.Number() != 4 {
			t.Errorf("%s: half a line of %d bytes after %d lines", name, r.Half(), r.Number())
		}
	}
	broken := errors.New("broken")
	r := NewReader(io.MultiReader(bytes.NewReader(file.Bytes()), iotest.ErrReader(broken)))
	var last error
	for _, err := range r.All() {
		last = err
	}
	if !errors.Is(last, broken) {
		t.Errorf("a broken disk: %v", last)
	}
	for range NewReader(bytes.NewReader(file.Bytes())).All() {
		break // leaves nothing behind
	}
}

func TestReadSamples(t *testing.T) {
	dir := t.TempDir()
	f, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := full(t)
	m.Samples = []Sample{{T: 1, Side: Source, Status: "active", Remaining: Of(int64(4096))},
		{T: 2, Side: Source, Status: "completed"}}
	if err := f.Append(m); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSamples(dir, m.ID)
	if err != nil || !reflect.DeepEqual(got, m.Samples) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := ReadSamples(dir, "other"); err != nil || got != nil {
		t.Errorf("of none: %v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "samples", "bad.jsonl"), []byte("{}\n[]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadSamples(dir, "bad"); err == nil || got != nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("of a bad one: %v, %v", got, err)
	}
}
