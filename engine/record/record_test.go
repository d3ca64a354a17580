package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// full is a record in which every field has a value of its own.
func full(t testing.TB) *Migration {
	m := new(Migration)
	n := 0
	fill(reflect.ValueOf(m).Elem(), &n)
	m.Schema, m.Mode = Schema, PreCopyMode
	m.StartedAt = time.Date(2026, 11, 22, 3, 40, 9, 279123456, time.UTC)
	m.Plan, m.Parameters = map[string]any{"mode": "pre-copy"}, map[string]any{"max-bandwidth": 1e9, "tls-creds": ""}
	m.ID, m.Origin, m.Samples = NewID(m.StartedAt), time.Time{}, nil
	return m
}

func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Map:
		if v.Type().Elem().Kind() == reflect.Bool {
			v.Set(reflect.MakeMap(v.Type()))
			v.SetMapIndex(reflect.ValueOf("xbzrle"), reflect.ValueOf(true))
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Float64:
		v.SetFloat(float64(*n) + 0.5)
	}
}

// TestKeys: every key of a record ends in its unit where it has one, and none is lost on the way to a file and back.
func TestKeys(t *testing.T) {
	want := full(t)
	line, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(line)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("went in as\n%+v\ncame out as\n%+v", want, got)
	}
	durations(t, reflect.TypeFor[Migration]())
	durations(t, reflect.TypeFor[Sample]())
}

// durations checks that the keys of durations end in _ns, and those of pointers, which may be absent, are left out
// then.
func durations(t *testing.T, typ reflect.Type) {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[time.Time]() {
		return
	}
	for i := range typ.NumField() {
		f := typ.Field(i)
		key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if key == "-" {
			continue
		}
		if d := reflect.TypeFor[time.Duration](); (f.Type == d || f.Type == reflect.PointerTo(d) || f.Type == reflect.SliceOf(d)) != strings.HasSuffix(key, "_ns") {
			t.Errorf("%s.%s: a duration's key ends in _ns, and no other: %s", typ.Name(), f.Name, key)
		}
		if f.Type.Kind() == reflect.Pointer && options != "omitempty" {
			t.Errorf("%s.%s: what is absent has to be left out", typ.Name(), f.Name)
		}
		durations(t, f.Type)
	}
}

func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "out")
	f, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := Read(dir); err != nil || len(all) != 0 {
		t.Fatalf("an empty folder has %d records, %v", len(all), err)
	}
	var want []*Migration
	for i := range 3 {
		m := full(t)
		m.Name = fmt.Sprint(i)
		m.Samples = []Sample{{T: 1, Side: Source, Status: "active", Remaining: Of(int64(i))}, {T: 2}}
		if err := f.Append(m); err != nil {
			t.Fatal(err)
		}
		series, err := os.ReadFile(f.SamplesPath(m.ID))
		if err != nil || bytes.Count(series, []byte("\n")) != 2 ||
			!bytes.HasPrefix(series, []byte(`{"t_ns":1,"side":"source","status":"active","remaining_bytes":`)) {
			t.Errorf("series: %q, %v", series, err)
		}
		m.Samples = nil
		want = append(want, m)
		if f, err = OpenFolder(dir); err != nil { // another run appends
			t.Fatal(err)
		}
	}
	f.Close()
	got, err := Read(dir)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read back %v, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

// TestAppendAfterCrash: half a line, however long, is not a record; it is passed over and then cut off.
func TestAppendAfterCrash(t *testing.T) {
	for name, half := range map[string]string{"short": `{"schema":"qmigrate/re`,
		"long": `{"x":"` + strings.Repeat("y", 200_000), "zeros": strings.Repeat("\x00", 4096), "none": ""} {
		for _, before := range []int{0, 2} {
			t.Run(fmt.Sprint(name, before), func(t *testing.T) {
				dir := t.TempDir()
				f, err := OpenFolder(dir)
				if err != nil {
					t.Fatal(err)
				}
				for range before {
					if err := f.Append(full(t)); err != nil {
						t.Fatal(err)
					}
				}
				file, err := os.OpenFile(filepath.Join(dir, "records.jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := file.WriteString(half); err != nil {
					t.Fatal(err)
				}
				file.Close()
				if all, err := Read(dir); err != nil || len(all) != before {
					t.Fatalf("after the crash: %d records, %v; want %d", len(all), err, before)
				}
				last := full(t)
				if err := f.Append(last); err != nil {
					t.Fatal(err)
				}
				all, err := Read(dir)
				if err != nil || len(all) != before+1 || all[before].ID != last.ID {
					t.Errorf("after the next: %d records, %v; want %d", len(all), err, before+1)
				}
			})
		}
	}
}

// TestReadBad: a whole line that is no record is an error with its number: it was not a crash that wrote it.
func TestReadBad(t *testing.T) {
	for _, bad := range []string{"{}", "[]", "null", "1", "", "x", `{"schema":"qmigrate/record/2"}`,
		`{"schema":"qmigrate/record/1","stages":1}`} {
		dir := t.TempDir()
		f, err := OpenFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Append(full(t)); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(filepath.Join(dir, "records.jsonl"), os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(file, bad)
		file.Close()
		if all, err := Read(dir); err == nil || all != nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %d records, %v", bad, len(all), err)
		}
	}
	if m, err := Decode([]byte(`{"schema":"qmigrate/record/1","of_a_newer_one":{"x":1}}`)); err != nil || m.Schema != Schema {
		t.Errorf("an unknown key: %v", err)
	}
}

// TestOpenFolder: what cannot be written is refused, and what was made for it is gone.
func TestOpenFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, filepath.Join(file, "below"), "/proc/nothing-can-be-made-here", ""} {
		if f, err := OpenFolder(name); err == nil || f != nil {
			t.Errorf("%q: opened", name)
		}
	}
	unused := filepath.Join(dir, "unused")
	f, err := OpenFolder(unused)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	f.Close()
	if _, err := os.Stat(unused); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that was made and not used is left: %v", err)
	}
	mine := filepath.Join(dir, "mine")
	if err := os.Mkdir(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	if f, err = OpenFolder(mine); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("a folder that was there is gone: %v", err)
	}
}

// TestDiskFull: on a small file system the folder is refused when it is opened, and a record that does not fit any more
// leaves the ones before it whole.
func TestDiskFull(t *testing.T) {
	const child = "QMIGRATE_RECORD_TEST_DIR"
	if dir := os.Getenv(child); dir != "" { // in a mount namespace of its own
		diskFull(t, dir)
		return
	}
	c := exec.Command("/proc/self/exe", "-test.run=^TestDiskFull$", "-test.v")
	c.Env = append(os.Environ(), child+"="+t.TempDir())
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if uid := os.Geteuid(); uid != 0 {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
	}
	out, err := c.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		unable(t, "no mount namespace can be had: ", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		unable(t, string(out))
	}
}

func diskFull(t *testing.T, dir string) {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Skip("make mounts private: ", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("mount a small file system: ", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	out := filepath.Join(dir, "out")
	f, err := OpenFolder(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Append(full(t)); err != nil {
		t.Fatal(err)
	}
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	filler.Close()
	series := full(t)
	series.Samples = slices.Repeat([]Sample{{Status: "active"}}, 100_000)
	long := full(t)
	long.Warnings = []string{strings.Repeat("x", 100_000)}
	for name, m := range map[string]*Migration{"series": series, "record": long} {
		if err := f.Append(m); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("append a %s that does not fit: %v", name, err)
		}
	}
	if all, err := Read(out); err != nil || len(all) != 1 {
		t.Errorf("%d records, %v", len(all), err)
	}
	b, err := os.ReadFile(filepath.Join(out, "records.jsonl"))
	if err != nil || !bytes.HasSuffix(b, []byte("}\n")) {
		t.Errorf("half a line is left: %v", err)
	}
	if f, err := OpenFolder(filepath.Join(dir, "other")); !errors.Is(err, syscall.ENOSPC) || f != nil {
		t.Errorf("open a folder on a full file system: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "other")); err == nil {
		t.Error("a folder that cannot be used is left")
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	if err := f.Append(full(t)); err != nil {
		t.Error("append after room was made: ", err)
	}
	if all, err := Read(out); err != nil || len(all) != 2 {
		t.Errorf("%d records, %v", len(all), err)
	}
}

func TestEnd(t *testing.T) {
	m := &Migration{Stages: []Stage{{Name: PreCopy, Start: 5, Duration: 7}}}
	if !m.End(PreCopy).IsZero() {
		t.Error("a record from a file has no instants")
	}
	m.Origin = time.Now()
	if got := m.End(PreCopy).Sub(m.Origin); got != 12 {
		t.Errorf("ended at %v", got)
	}
	if !m.End(Activation).IsZero() || m.Stage(Activation) != nil {
		t.Error("a stage that never was has an end")
	}
	m.Warn("a %d", 1)
	m.Warn("a %d", 1)
	m.Warn("b")
	if !slices.Equal(m.Warnings, []string{"a 1", "b"}) {
		t.Errorf("warnings %q", m.Warnings)
	}
}

func TestNewID(t *testing.T) {
	at := time.Date(2026, 11, 22, 3, 4, 5, 6e6, time.FixedZone("", 3600))
	a, b, later := NewID(at), NewID(at), NewID(at.Add(time.Millisecond))
	if a == b || !strings.HasPrefix(a, "20261122T020405.006Z-") || a[:20] > later[:20] || later < a[:20] {
		t.Errorf("%s %s %s", a, b, later)
	}
}

// FuzzDecode: what decodes re-encodes to what decodes to the same; on an error there is no record.
func FuzzDecode(f *testing.F) {
	line, err := json.Marshal(full(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add([]byte(`{"schema":"qmigrate/record/1"}`))
	f.Add([]byte(`{"schema":"qmigrate/record/1","plan":{"a":1e999}}`))
	f.Add([]byte(`{"schema":"qmigrate/record/1","started_at":"2026-11-22T03:40:09.279+01:00","stages":[null,{}],"total":{"wall_ns":-1}}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := Decode(line)
		if err != nil {
			if m != nil {
				t.Fatal("a record and an error")
			}
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatalf("encode what was decoded: %v", err)
		}
		if bytes.IndexByte(again, '\n') >= 0 {
			t.Fatalf("more than a line: %q", again)
		}
		m2, err := Decode(again)
		if err != nil {
			t.Fatalf("decode what was encoded: %v: %s", err, again)
		}
		third, err := json.Marshal(m2)
		if err != nil || !bytes.Equal(again, third) {
			t.Fatalf("%v\n%s\n%s", err, again, third)
		}
	})
}

// unable skips; where QMIGRATE_REQUIRE_QEMU=1 promises root a whole machine, it fails: a skip may not hide a fault.
func unable(t *testing.T, why ...any) {
	t.Helper()
	if os.Geteuid() == 0 && os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1" {
		t.Fatal(why...)
	}
	t.Skip(why...)
}

// TestMayGoOn: what a post-copy needs for another connection is not removed while it may make one.
func TestMayGoOn(t *testing.T) {
	post := &PostCopyFigures{}
	for _, c := range []struct {
		rec  Migration
		want bool
	}{
		{Migration{PostCopy: post, Outcome: Failed, GuestOn: Destination}, true},
		{Migration{PostCopy: post, Outcome: Failed, GuestOn: Unknown}, true}, // a monitor was lost
		{Migration{PostCopy: post, Outcome: Failed, GuestOn: None}, true},    // paused on both sides
		{Migration{PostCopy: post, Outcome: Failed, GuestOn: Source}, false},
		{Migration{PostCopy: post, Outcome: Cancelled, GuestOn: Source}, false},
		{Migration{PostCopy: post, Outcome: Recovered, GuestOn: Destination}, true}, // it runs, and pages may be missing
		{Migration{PostCopy: post, Outcome: GuestEnded, GuestOn: None}, false},
		{Migration{PostCopy: post, Outcome: Completed, GuestOn: Destination}, false},
		{Migration{Outcome: Failed, GuestOn: Unknown}, false},
	} {
		if got := c.rec.MayGoOn(); got != c.want {
			t.Errorf("%s, guest on %s: %v, want %v", c.rec.Outcome, c.rec.GuestOn, got, c.want)
		}
	}
}
