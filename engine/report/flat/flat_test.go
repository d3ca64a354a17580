package flat

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	"go.uber.org/goleak"

	"qmigrate/engine/record"
	"qmigrate/engine/record/recordtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// folder is one with n synthetic records.
func folder(t testing.TB, seed uint64, n int) string {
	dir := filepath.Join(t.TempDir(), "out")
	if err := recordtest.WriteFolder(dir, recordtest.Synthetic(seed, n)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func appendTo(t testing.TB, dir, text string) {
	f, err := os.OpenFile(filepath.Join(dir, record.RecordsFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func noWarning(t testing.TB) func(string) { return func(text string) { t.Error("warned: ", text) } }

// TestScan: records of many batches come in their order; what is none is told with its place, and the rest still comes.
func TestScan(t *testing.T) {
	a, b := folder(t, 1, 500), folder(t, 2, 40)
	appendTo(t, a, "not JSON\n"+`{"schema":"qmigrate/record/9","id":"of a newer one"}`+"\n")
	appendTo(t, b, `{"schema":"qmigrate/record/1","id":"ha`)
	var warned, ids []string
	for r, err := range Scan([]string{a, b}, func(text string) { warned = append(warned, text) }) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.ID)
	}
	var want []string
	for _, dir := range []iter.Seq[*record.Migration]{recordtest.Synthetic(1, 500), recordtest.Synthetic(2, 40)} {
		for m := range dir {
			want = append(want, m.ID)
		}
	}
	if !slices.Equal(ids, want) {
		t.Errorf("%d records, want %d in their order", len(ids), len(want))
	}
	if len(warned) != 3 || !strings.Contains(warned[0], "line 501") || !strings.Contains(warned[1], "line 502") || !strings.Contains(warned[1], "record/9") ||
		!strings.Contains(warned[2], "half a line of 38 bytes") {
		t.Errorf("%q", warned)
	}
	n := 0
	for range Scan([]string{a, b}, noWarning(t)) {
		if n++; n == 3 {
			break // the workers end: goleak looks
		}
	}
	for _, bad := range []string{filepath.Join(a, "nothing"), t.TempDir()} {
		last := errors.New("no error")
		for _, err := range Scan([]string{b, bad}, func(string) {}) {
			last = err
		}
		if last == nil || !strings.Contains(last.Error(), "has no records.jsonl") {
			t.Errorf("%s: %v", bad, last)
		}
	}
}

// TestPart: reading a part of the keys gives what reading all gives.
func TestPart(t *testing.T) {
	var tops []int
	whole := reflect.TypeFor[record.Migration]()
	for _, name := range []string{"Total", "Downtime", "Guest", "Stages"} {
		f, _ := whole.FieldByName(name)
		tops = append(tops, f.Index[0])
	}
	p := newPart(tops)
	var text bytes.Buffer
	if err := recordtest.Write(&text, recordtest.Synthetic(3, 50)); err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text.Bytes()) {
		want, err := record.Decode(line)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.decode(line)
		if err != nil {
			t.Fatal(err)
		}
		for key, i := range p.fields {
			if a, b := reflect.ValueOf(got).Elem().Field(i), reflect.ValueOf(want).Elem().Field(i); !reflect.DeepEqual(a.Interface(), b.Interface()) {
				t.Fatalf("%s: %v, want %v", key, a, b)
			}
		}
		if got.Passes != nil || got.Parameters != nil {
			t.Fatal("more was decoded than asked for")
		}
	}
	for _, bad := range []string{"", "{", "[]", "{]", `{"a"}`, `{"a":}`, `{"a":1`, `{"a":1,}`, `{"a":1}}`, `{"a":{}`, `{"a":"`, `{"a":"\"}`, `{"schema":1}`, `{"schema":"x"}`,
		`{"schema":"qmigrate/record/1" "id":"a"}`, `{"schema":"qmigrate/record/1","order":x}`, `{"schema":"qmigrate/record/1","total":{"wall_ns":}}`} {
		if m, err := p.decode([]byte(bad)); err == nil || m != nil {
			t.Errorf("%s: %v, %v", bad, m, err)
		}
	}
	m, err := p.decode([]byte(` { "schema" : "qmigrate/record/1" , "x":[{"a":"]}\\\""},"\\"], "name":"a\"b\\", "order":7 } `))
	if err != nil || m.Name != `a"b\` || *m.Order != 7 {
		t.Errorf("%+v, %v", m, err)
	}
}

// FuzzPart: a line that decodes as a whole decodes in part, to the same.
func FuzzPart(f *testing.F) {
	f.Add([]byte(`{"schema":"qmigrate/record/1","name":"a","passes":[{"pass":1}],"total":{"wall_ns":5}}`))
	f.Add([]byte(`{"schema":"qmigrate/record/1","x":"\\\"","y":[1,{"z":"}"}]}`))
	total, _ := reflect.TypeFor[record.Migration]().FieldByName("Total")
	p := newPart(total.Index)
	keys := map[string]bool{}
	for k := range p.fields {
		keys[k] = true
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		want, err := record.Decode(line)
		if err != nil {
			return
		}
		plain := true // encoding/json also takes keys that are written otherwise
		_ = members(line, func(key, _ []byte) error {
			lower := strings.ToLower(string(key))
			plain = plain && bytes.IndexByte(key, '\\') < 0 && (!keys[lower] || keys[string(key)]) && isASCII(key)
			return nil
		})
		if !plain {
			return
		}
		got, err := p.decode(line)
		if err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if !reflect.DeepEqual(got.Total, want.Total) || got.Name != want.Name || !reflect.DeepEqual(got.Factors, want.Factors) {
			t.Fatalf("%q", line)
		}
	})
}

func isASCII(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c >= 0x80 }) }

// TestLoad: a frame has the numbers of the records, NaN where they have none.
func TestLoad(t *testing.T) {
	dir := folder(t, 4, 300)
	f, err := Load([]string{dir}, []string{"downtime_wire_ns", "passes", "stage_pre_copy_ns", "stage_recovery_ns", "network_tcp_survived"}, []string{"qemu_source_version", "qemu_vcpus", "nothing"})
	if err != nil {
		t.Fatal(err)
	}
	all, err := record.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if f.Rows != len(all) || !slices.Equal(f.Factors(), []string{"dirty-rate", "max-bandwidth", "mode"}) || len(f.Warnings()) != 0 {
		t.Fatalf("%d rows, factors %q, %q", f.Rows, f.Factors(), f.Warnings())
	}
	absent := 0
	for i, m := range all {
		wire := math.NaN()
		if m.Downtime.Wire != nil {
			wire = float64(*m.Downtime.Wire)
		} else {
			absent++
		}
		if got := f.Number("downtime_wire_ns", i); got != wire && !(math.IsNaN(got) && math.IsNaN(wire)) {
			t.Fatalf("row %d: wire %v, want %v", i, got, wire)
		}
		if f.Number("passes", i) != float64(len(m.Passes)) || f.Number("stage_pre_copy_ns", i) != float64(m.Stage(record.PreCopy).Duration) || !math.IsNaN(f.Number("stage_recovery_ns", i)) ||
			f.Text("factor:dirty-rate", i) != m.Factors["dirty-rate"] || f.Text("outcome", i) != string(m.Outcome) || f.Text("qemu_source_version", i) != m.QEMU.SourceVersion || f.Text("qemu_vcpus", i) != "1" ||
			f.Order(i) != float64(*m.Order) || !f.Started(i).Equal(m.StartedAt) || f.Number("network_tcp_survived", i) != 1 {
			t.Fatalf("row %d is not its record", i)
		}
	}
	if absent == 0 {
		t.Error("no record without a downtime: the test has lost its point")
	}
	for name, want := range map[string]string{"max-bandwidth": "factor:max-bandwidth", "max_bandwidth": "factor:max-bandwidth", "downtime-limit": "plan:downtime_limit_ns",
		"sample-interval": "plan:sample_interval_ns", "workload": "workload", "outcome": "outcome", "nothing": "", "sample": "", "qemu_source_version": "qemu_source_version"} {
		if got := f.Find(name); got != want {
			t.Errorf("%s is found as %q, want %q", name, got, want)
		}
	}
	if _, err := Load([]string{dir}, []string{"downtime_wires_ns"}, nil); err == nil || !strings.Contains(err.Error(), "no column") {
		t.Error(err)
	}
}

// TestLoadMemory: what is kept of a record is its numbers.
func TestLoadMemory(t *testing.T) {
	const n = 20_000
	dir := folder(t, 5, n)
	f, err := Load([]string{dir}, []string{"downtime_wire_ns", "total_wall_ns", "passes"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	if f.Rows != n || m.HeapAlloc > n*300+8<<20 {
		t.Errorf("%d rows, %d bytes in use", f.Rows, m.HeapAlloc)
	}
	runtime.KeepAlive(f)
}

// export writes a table in both formats and returns the rows of each as text; the Parquet file is read by the library's own reader.
func export(t *testing.T, table string, dirs ...string) (fromCSV, fromParquet [][]string) {
	t.Helper()
	tab, ok := Find(table)
	if !ok {
		t.Fatal("no table ", table)
	}
	var text, file bytes.Buffer
	n, err := Export(dirs, tab, noWarning(t), func(c []Column) (Writer, error) { return NewCSV(&text, c) })
	if err != nil {
		t.Fatal(err)
	}
	if fromCSV, err = csv.NewReader(&text).ReadAll(); err != nil || len(fromCSV) != n+1 {
		t.Fatalf("%d lines of %d rows, %v", len(fromCSV), n, err)
	}
	var types []Type
	m, err := Export(dirs, tab, noWarning(t), func(c []Column) (Writer, error) {
		for _, c := range c {
			types = append(types, c.Type)
		}
		return NewParquet(&file, c)
	})
	if err != nil || m != n {
		t.Fatalf("%d rows, %v", m, err)
	}
	f, err := parquet.OpenFile(bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range f.Root().Columns() {
		names = append(names, c.Name())
		if unit, ok := f.Lookup("unit:" + c.Name()); ok != (UnitOf(c.Name()) != "") || unit != UnitOf(c.Name()) {
			t.Errorf("%s: unit %q", c.Name(), unit)
		}
	}
	fromParquet = append(fromParquet, names)
	r := parquet.NewReader(bytes.NewReader(file.Bytes()))
	defer r.Close()
	rows := make([]parquet.Row, 16)
	for {
		n, err := r.ReadRows(rows)
		for _, row := range rows[:n] {
			cells := make([]string, len(names))
			for _, v := range row {
				i := v.Column()
				switch {
				case v.IsNull():
				case types[i] == Int:
					cells[i] = cellText(v.Int64())
				case types[i] == Float:
					cells[i] = cellText(v.Double())
				case types[i] == Bool:
					cells[i] = cellText(v.Boolean())
				case types[i] == Time:
					cells[i] = cellText(time.Unix(0, v.Int64()))
				default:
					cells[i] = string(v.ByteArray())
				}
			}
			fromParquet = append(fromParquet, cells)
		}
		if err == io.EOF {
			return fromCSV, fromParquet
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestExport: CSV and Parquet hold the same cells, which are the record's.
func TestExport(t *testing.T) {
	a, b := folder(t, 6, 60), folder(t, 7, 40)
	for _, table := range Tables() {
		text, file := export(t, table.Name, a, b)
		if len(text) != len(file) {
			t.Fatalf("%s: %d lines of CSV, %d of Parquet", table.Name, len(text), len(file))
		}
		for i := range text {
			if !slices.Equal(text[i], file[i]) {
				t.Fatalf("%s: row %d is\n%q in CSV,\n%q in Parquet", table.Name, i, text[i], file[i])
			}
		}
		if names := slices.Sorted(slices.Values(text[0])); len(slices.Compact(names)) != len(text[0]) {
			t.Errorf("%s: two columns of one name: %q", table.Name, text[0])
		}
	}
	text, _ := export(t, "migrations", a)
	cell := func(row int, column string) string {
		i := slices.Index(text[0], column)
		if i < 0 {
			t.Fatalf("no column %s among %q", column, text[0])
		}
		return text[row][i]
	}
	i := 0
	for m := range recordtest.Synthetic(6, 60) {
		i++
		wire := ""
		if m.Downtime.Wire != nil {
			wire = fmt.Sprint(int64(*m.Downtime.Wire))
		}
		for column, want := range map[string]string{"folder": a, "id": m.ID, "downtime_wire_ns": wire, "total_wall_ns": fmt.Sprint(int64(m.Total.Wall)), "passes": fmt.Sprint(len(m.Passes)),
			"factor_max_bandwidth": m.Factors["max-bandwidth"].(string), "plan_downtime_limit_ns": "300000000", "stage_stop_and_copy_ns": fmt.Sprint(int64(m.Stages[3].Duration)),
			"qemu_memory_bytes": "268435456", "started_at": m.StartedAt.Format(time.RFC3339Nano), "order": fmt.Sprint(*m.Order), "network_tcp_survived": "true", "tunnel_kind": "", "stage_recovery_ns": ""} {
			if got := cell(i, column); got != want {
				t.Errorf("row %d: %s is %q, want %q", i, column, got, want)
			}
		}
	}
	passes, _ := export(t, "passes", a)
	if len(passes) < 61 || passes[0][0] != "folder" || passes[0][1] != "id" || passes[1][1] != text[1][slices.Index(text[0], "id")] {
		t.Errorf("%q", passes[:2])
	}
}

// TestTables: samples come from their files, a timeline is one row a bin, and factors of several types share a column.
func TestTables(t *testing.T) {
	dir := t.TempDir()
	f, err := record.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i, factor := range []any{1.0, 2.5, nil} {
		m := &record.Migration{Schema: record.Schema, ID: fmt.Sprint("m", i), Mode: record.PreCopyMode, Factors: map[string]any{"x y": factor, "X-y": "text", "on": true, "list": []any{1.0}}}
		m.Samples = []record.Sample{{T: 5, Side: record.Source, Status: "active", Remaining: record.Of(int64(4096))}, {T: 9, Side: record.Source, Status: "completed"}}
		m.Timeline = []record.Series{{Name: "guest_events", Unit: "events/s", Source: "the guest", Start: 100, Bin: 10, Values: []*float64{record.Of(1.5), nil}}}
		if i == 2 {
			m.Anatomy = recordtest.Anatomy(record.PreCopyMode, recordtest.Bare, time.Second, time.Millisecond)
		}
		if err := f.Append(m); err != nil {
			t.Fatal(err)
		}
	}
	parts, _ := export(t, "anatomy", dir)
	want := recordtest.Anatomy(record.PreCopyMode, recordtest.Bare, time.Second, time.Millisecond)
	if len(parts) != 1+len(want) || !slices.Equal(parts[0],
		[]string{"folder", "id", "side", "part", "device", "start_ns", "duration_ns", "error_ns", "source", "critical"}) {
		t.Fatalf("%d rows of %d parts, %q", len(parts)-1, len(want), parts[0])
	}
	for i, p := range want {
		start, critical := "", ""
		if p.Start != nil {
			start = fmt.Sprint(int64(*p.Start))
		}
		if p.Critical {
			critical = "true"
		}
		if row := []string{dir, "m2", string(p.Side), string(p.Part), p.Device, start, fmt.Sprint(int64(p.Duration)), fmt.Sprint(int64(p.Error)), p.Source,
			critical}; !slices.Equal(parts[i+1], row) {
			t.Errorf("%q, want %q", parts[i+1], row)
		}
	}
	text, _ := export(t, "samples", dir)
	if len(text) != 7 || text[1][slices.Index(text[0], "remaining_bytes")] != "4096" || text[2][slices.Index(text[0], "remaining_bytes")] != "" {
		t.Errorf("%q", text)
	}
	text, file := export(t, "timeline", dir)
	if want := []string{dir, "m0", "guest_events", "events/s", "the guest", "110", "10", ""}; len(text) != 7 || !slices.Equal(text[2], want) || !slices.Equal(file[2], want) {
		t.Errorf("%q", text)
	}
	text, file = export(t, "migrations", dir)
	for column, want := range map[string][]string{"factor_x_y": {"text", "text", "text"}, "factor_x_y_": {"1", "2.5", ""}, "factor_on": {"true", "true", "true"}, "factor_list": {"[1]", "[1]", "[1]"}} {
		i := slices.Index(text[0], column)
		if i < 0 {
			t.Errorf("no %s among %q", column, text[0])
			continue
		}
		for row, w := range want {
			if text[row+1][i] != w || file[row+1][i] != w {
				t.Errorf("%s, row %d: %q, want %q", column, row, text[row+1][i], w)
			}
		}
	}
}

// BenchmarkLoad reads 10,000 records.
func BenchmarkLoad(b *testing.B) {
	dir := folder(b, 1, 10_000)
	info, err := os.Stat(filepath.Join(dir, record.RecordsFile))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(info.Size())
	for b.Loop() {
		if _, err := Load([]string{dir}, []string{"downtime_wire_ns", "total_wall_ns", "total_transferred_bytes"}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
