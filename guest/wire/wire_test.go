package wire

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What decodes re-encodes to a line that decodes to the same; on an error the value is zero.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{`{"id":1,"do":"hello"}`, `{"id":18446744073709551615,"do":"fill","args":{"bytes":4096}}`, `{"do":""}`, `{"id":-1,"do":"x"}`, `[]`, "null", "{", `{"id":1,"do":"a","args":null}`, "\n\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := DecodeRequest(line)
		if err != nil {
			if !reflect.DeepEqual(r, Request{}) {
				t.Fatalf("error %v with value %+v", err, r)
			}
			return
		}
		law(t, r, func(b []byte) (any, error) { r, err := DecodeRequest(b); return r, err })
	})
}

func FuzzMessage(f *testing.F) {
	for _, s := range []string{`{"id":1,"result":{"a":[1]}}`, `{"id":0,"error":"no"}`, `{"event":"ready","data":{}}`, `{"event":"beat","data":{"seq":1,"clock_ns":2}}`, `{"id":1,"event":"x"}`, `{}`, `{"id":null,"event":"e"}`, `{"id":1,"id":2}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := DecodeMessage(line)
		if err != nil {
			if m != (Message{}) {
				t.Fatalf("error %v with value %+v", err, m)
			}
			return
		}
		decode := func(b []byte) (any, error) {
			m, err := DecodeMessage(b)
			if m.Reply != nil {
				return *m.Reply, err
			}
			return *m.Note, err
		}
		if (m.Reply == nil) == (m.Note == nil) {
			t.Fatalf("not exactly one of the two: %+v", m)
		}
		if m.Reply != nil {
			law(t, *m.Reply, decode)
		} else {
			law(t, *m.Note, decode)
		}
	})
}

func law(t *testing.T, v any, decode func([]byte) (any, error)) {
	t.Helper()
	line, err := Line(v)
	if err != nil {
		t.Fatalf("%+v does not encode: %v", v, err)
	}
	if line[0] != '\n' || strings.Count(string(line), "\n") != 2 || line[len(line)-1] != '\n' {
		t.Fatalf("not one line: %q", line)
	}
	again, err := decode(line)
	if err != nil {
		t.Fatalf("%q does not decode again: %v", line, err)
	}
	second, err := Line(again)
	if err != nil || string(second) != string(line) {
		t.Fatalf("%q became %q, %v", line, second, err)
	}
}

func FuzzBeat(f *testing.F) {
	f.Add(AppendBeat(nil, Beat{Seq: 1, Clock: 2}))
	f.Add([]byte(`{"event":"beat","data":{"seq":+1,"clock_ns":2}}`))
	f.Add([]byte(`{"event":"beat","data":{"seq":18446744073709551615,"clock_ns":-9223372036854775808}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		b, ok := ParseBeat(line)
		if !ok {
			if b != (Beat{}) {
				t.Fatalf("not a beat, but %+v", b)
			}
			return
		}
		if again, ok := ParseBeat(AppendBeat(nil, b)); !ok || again != b {
			t.Fatalf("%q: %+v became %+v", line, b, again)
		}
	})
}

func TestBeatIsANote(t *testing.T) {
	line := AppendBeat(nil, Beat{Seq: 7, Clock: 3 * time.Second})
	m, err := DecodeMessage(line)
	if err != nil || m.Note == nil || m.Note.Event != EventBeat || string(m.Note.Data) != `{"seq":7,"clock_ns":3000000000}` {
		t.Fatalf("%q: %+v, %v", line, m.Note, err)
	}
	var room [96]byte
	if n := testing.AllocsPerRun(100, func() { AppendBeat(room[:0], Beat{Seq: 1 << 60, Clock: 1 << 62}) }); n != 0 {
		t.Errorf("%v allocations a beat, want 0", n)
	}
}

func TestParseWorkload(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"idle", "idle:duration=0s"},
		{"dirty", "dirty:rate=2000/s,working-set=16MiB,pattern=uniform,content=random,change=64B,vcpus=1,period=0s,duty=100%,drift=0B/s,duration=0s"},
		{"dirty:rate=2000,working-set=16MiB,pattern=uniform,content=random", "dirty:rate=2000/s,working-set=16MiB,pattern=uniform,content=random,change=64B,vcpus=1,period=0s,duty=100%,drift=0B/s,duration=0s"},
		{"dirty:rate=0/s,working-set=0.5GiB,pattern=hot-cold,content=zero,change=4032B,duration=1m", "dirty:rate=0/s,working-set=512MiB,pattern=hot-cold,content=zero,change=4032B,vcpus=1,period=0s,duty=100%,drift=0B/s,duration=1m0s"},
		{"dirty:vcpus=2,period=1s,duty=50,drift=1MiB/s", "dirty:rate=2000/s,working-set=16MiB,pattern=uniform,content=random,change=64B,vcpus=2,period=1s,duty=50%,drift=1MiB/s,duration=0s"},
		{"dirty:duty=12.5%,drift=1536B/s", "dirty:rate=2000/s,working-set=16MiB,pattern=uniform,content=random,change=64B,vcpus=1,period=0s,duty=12.5%,drift=1536B/s,duration=0s"},
		{"livermore", "livermore:span=long,duration=0s"},
		{"dhrystone:duration=5s", "dhrystone:duration=5s"},
		{"linpack:n=1000", "linpack:n=1000,duration=0s"},
		{"clock:interval=500us", "clock:interval=500µs,duration=0s"},
		{"web:connections=16,size=0.5KiB", "web:rate=200/s,connections=16,size=512B,duration=0s"},
		{"tcp:rate=1.5MiB/s", "tcp:rate=1536KiB/s,duration=0s"},
		{"tcp:rate=0B/s", "tcp:rate=0B/s,duration=0s"},
	} {
		w, err := ParseWorkload(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if got := w.String(); got != c.want {
			t.Errorf("%s: got %s, want %s", c.in, got, c.want)
		}
		if again, err := ParseWorkload(w.String()); err != nil || again.String() != w.String() {
			t.Errorf("%s: does not parse again: %v, %v", w, again, err)
		}
	}
	w, err := ParseWorkload("dirty:rate=100,working-set=8KiB,duration=2s")
	if err != nil || w.Number("rate") != 100 || w.Number("working-set") != 8192 || w.Duration("duration") != 2*time.Second || w.Choice("pattern") != Uniform || w.Number("nothing") != 0 {
		t.Errorf("values: %+v, %v", w, err)
	}
}

// A wrong workload gets one line that lists what exists.
func TestParseWorkloadRefuses(t *testing.T) {
	const params = "it has rate, working-set, pattern, content, change, vcpus, period, duty, drift, duration"
	var all []string
	for _, t := range WorkloadTypes() {
		all = append(all, t.Name)
	}
	names := strings.Join(all, ", ")
	for in, want := range map[string]string{
		"":                                   `parse workload "": no workload "": have ` + names,
		"durty":                              `parse workload "durty": no workload "durty": did you mean dirty?`,
		"durty:x":                            `parse workload "durty:x": no workload "durty": did you mean dirty?`,
		"dirty:":                             `parse workload "dirty:": "" is not NAME=VALUE`,
		"dirty:rate":                         `parse workload "dirty:rate": "rate" is not NAME=VALUE`,
		"dirty:speed=1":                      `parse workload "dirty:speed=1": dirty has no parameter "speed": ` + params,
		"dirty:rate=1,rate=2":                `parse workload "dirty:rate=1,rate=2": rate is given twice`,
		"dirty:rate=-1":                      `parse workload "dirty:rate=-1": rate: "-1" is no rate, such as 2000/s`,
		"dirty:rate=1e3":                     `parse workload "dirty:rate=1e3": rate: "1e3" is no rate, such as 2000/s`,
		"dirty:working-set=16":               `parse workload "dirty:working-set=16": working-set: "16" is no size with its unit (B, KiB, MiB, GiB, TiB), such as 16MiB`,
		"dirty:working-set=16MB":             `parse workload "dirty:working-set=16MB": working-set: "16MB" is no size with its unit (B, KiB, MiB, GiB, TiB), such as 16MiB`,
		"dirty:working-set=1B":               `parse workload "dirty:working-set=1B": working-set: 1B is out of range: 4KiB to any`,
		"dirty:change=4KiB":                  `parse workload "dirty:change=4KiB": change: 4KiB is out of range: 64B to 4032B`,
		"dirty:vcpus=0":                      `parse workload "dirty:vcpus=0": vcpus: 0 is out of range: 1 to 64`,
		"dirty:vcpus=1.5":                    `parse workload "dirty:vcpus=1.5": vcpus: "1.5" is no whole number, such as 2`,
		"dirty:duty=101%":                    `parse workload "dirty:duty=101%": duty: 101% is out of range: 1% to 100%`,
		"dirty:duty=half":                    `parse workload "dirty:duty=half": duty: "half" is no percentage, such as 50%`,
		"dirty:period=1":                     `parse workload "dirty:period=1": period: "1" is no time with its unit (ns, us, ms, s, m, h), such as 300ms`,
		"dirty:drift=1MiB":                   `parse workload "dirty:drift=1MiB": drift: "1MiB" is no speed with its unit (B/s, KiB/s, MiB/s, GiB/s, TiB/s), such as 1MiB/s`,
		"livermore:n=10":                     `parse workload "livermore:n=10": livermore has no parameter "n": it has span, duration`,
		"linpack:n=200":                      `parse workload "linpack:n=200": n: "200" is none of 100, 1000`,
		"dhrystone:runs=10":                  `parse workload "dhrystone:runs=10": dhrystone has no parameter "runs": it has duration`,
		"dirty:pattern=hot":                  `parse workload "dirty:pattern=hot": pattern: "hot" is none of sequential, uniform, hot-cold`,
		"idle:duration=0":                    `parse workload "idle:duration=0": duration: "0" is no time with its unit (ns, us, ms, s, m, h), such as 300ms`,
		"idle:duration=-1s":                  `parse workload "idle:duration=-1s": duration: "-1s" is no time with its unit (ns, us, ms, s, m, h), such as 300ms`,
		"web:connections=1.5":                `parse workload "web:connections=1.5": connections: "1.5" is no whole number, such as 2`,
		"web:connections=0":                  `parse workload "web:connections=0": connections: 0 is out of range: 1 to 1000`,
		"tcp:rate=1MiB":                      `parse workload "tcp:rate=1MiB": rate: "1MiB" is no speed with its unit (B/s, KiB/s, MiB/s, GiB/s, TiB/s), such as 1MiB/s`,
		"tcp:rate=1000/s":                    `parse workload "tcp:rate=1000/s": rate: "1000/s" is no speed with its unit (B/s, KiB/s, MiB/s, GiB/s, TiB/s), such as 1MiB/s`,
		"clock:interval=1ns":                 `parse workload "clock:interval=1ns": interval: 1ns is out of range: 10µs to 10s`,
		"dirty:rate=99999999999999999999999": `parse workload "dirty:rate=99999999999999999999999": rate: "99999999999999999999999" is no rate, such as 2000/s`,
	} {
		w, err := ParseWorkload(in)
		if err == nil || err.Error() != want {
			t.Errorf("%q: got  %v\nwant %s", in, err, want)
		}
		if w.Name != "" || w.Params != nil {
			t.Errorf("%q: an error and a value: %+v", in, w)
		}
	}
}

// TestPattern: the stream is the same however it is cut, and no response is another's.
func TestPattern(t *testing.T) {
	whole := Pattern(make([]byte, 0, 800), 0, 0)
	for _, cut := range []int{8, 80, 392} {
		parts := append(Pattern(make([]byte, 0, cut), 0, 0), Pattern(make([]byte, 0, 800-cut), 0, uint64(cut/8))...)
		if !bytes.Equal(parts, whole) {
			t.Errorf("cut at %d it is another", cut)
		}
	}
	seen := map[string]uint64{}
	for n := range uint64(1000) {
		for _, size := range []int{8, 9, 15} {
			b := Pattern(make([]byte, 0, size), n, 0)
			if other, found := seen[string(b)]; found || len(b) != size {
				t.Fatalf("response %d of %d bytes has %d, and is that of %d", n, size, len(b), other)
			}
			seen[string(b)] = n
		}
	}
}

func FuzzWorkload(f *testing.F) {
	for _, s := range []string{"idle", "dirty:rate=0.1,working-set=1.5MiB", "clock:interval=1ms", "dirty:pattern=sequential,content=zero", "dirty:working-set=.B", "web:rate=1000/s,connections=2", "tcp:rate=1KiB/s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		w, err := ParseWorkload(s)
		if err != nil {
			if strings.Contains(err.Error(), "\n") || w.Name != "" {
				t.Fatalf("error %q with value %+v", err, w)
			}
			return
		}
		again, err := ParseWorkload(w.String())
		if err != nil || again.String() != w.String() {
			t.Fatalf("%q is %s, which is %s, %v", s, w, again, err)
		}
	})
}

func TestBoot(t *testing.T) {
	b := Boot{
		IP: netip.MustParsePrefix("10.77.0.101/24"), Gateway: netip.MustParseAddr("10.77.0.1"), Beat: netip.MustParseAddrPort("10.77.0.1:7777"),
		BeatInterval: 20 * time.Millisecond, Echo: 77,
	}
	got, err := ParseBoot("console=ttyS0 " + strings.Join(b.Words(), " ") + " quiet")
	if err != nil || got != b {
		t.Errorf("got %+v, %v; want %+v", got, err, b)
	}
	if got, err := ParseBoot("quiet"); err != nil || got != (Boot{BeatInterval: DefaultBeatInterval, Echo: DefaultEchoPort}) {
		t.Errorf("without words: %+v, %v", got, err)
	}
	off := Boot{BeatInterval: -1}
	if got, err := ParseBoot(strings.Join(off.Words(), " ")); err != nil || got.BeatInterval != -1 {
		t.Errorf("no beats: %+v, %v", got, err)
	}
	for _, word := range []string{"qmigrate.ip=10.77.0.101", "qmigrate.ip=fe80::1/64", "qmigrate.gw=x", "qmigrate.gw=::1", "qmigrate.beat=10.77.0.1", "qmigrate.beat=[::1]:7", "qmigrate.beat_interval=5", "qmigrate.beat_interval=-5ms", "qmigrate.echo=0", "qmigrate.echo=70000", "qmigrate.eco=7"} {
		got, err := ParseBoot(word + " qmigrate.echo=9")
		if err == nil || !strings.Contains(err.Error(), word) || got.Echo != 9 || got.IP.IsValid() || got.Beat.IsValid() || got.Gateway.IsValid() || got.BeatInterval != DefaultBeatInterval {
			t.Errorf("%s: %+v, %v", word, got, err)
		}
	}
}

// Only a check of something, with no page wrong and all sums equal, is right.
func TestVerifiedOK(t *testing.T) {
	var v Verified
	if v.OK() {
		t.Error("nothing checked is not right")
	}
	if err := json.Unmarshal([]byte(`{"pages_checked":2,"pages_wrong":0,"writes_claimed":5,"writes_held":5,"writes_found":5}`), &v); err != nil || !v.OK() {
		t.Errorf("%+v, %v", v, err)
	}
	for _, bad := range []func(*Verified){func(v *Verified) { v.Wrong = 1 }, func(v *Verified) { v.Found = 4 }, func(v *Verified) { v.Held = 6 }} {
		w := v
		if bad(&w); w.OK() {
			t.Errorf("%+v is not right", w)
		}
	}
}
