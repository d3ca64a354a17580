package procfs

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const rest = "1 4171 2551 0 -1 4194304 104 0 0 0 0 0 0 0 20 0 1 0 69119 3133440 384\n"
	for text, want := range map[string]Stat{
		"4176 (cat) R " + rest:                 {"cat", 'R', 69119},
		"4176 (CPU 0/TCG) S " + rest:           {"CPU 0/TCG", 'S', 69119},
		"4176 (a) Z 1 (b) c) t " + rest:        {"a) Z 1 (b) c", 't', 69119},
		"4176 (tmux: server\n) S 9) D " + rest: {"tmux: server\n) S 9", 'D', 69119},
		"4176 () S " + rest:                    {"", 'S', 69119},
	} {
		if got, err := ParseStat([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "1 cat R " + rest, ") (", "1 (cat) R 1 2 3", "1 (cat) run " + rest,
		"1 (cat) R " + strings.Replace(rest, "69119", "soon", 1)} {
		if got, err := ParseStat([]byte(text)); err == nil || got != (Stat{}) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestParseSchedule(t *testing.T) {
	got, err := ParseSchedule([]byte("6022474 205001 35\n"))
	if want := (Schedule{6022474 * time.Nanosecond, 35}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, text := range []string{"", "1 2", "1 2 3 4", "1 x 3", "-1 2 3", "9223372036854775808 2 3"} {
		if got, err := ParseSchedule([]byte(text)); err == nil || got != (Schedule{}) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestValue(t *testing.T) {
	status := []byte("Name:\tqemu: VmRSS:\nState:\tt (tracing stop)\nUid:\t1000\t0\t0\t0\nVmPeak:\t  99 kB\nVmRSS:\t    1234 kB\nCapEff:\t000001ffffffffff")
	for key, want := range map[string]string{"Name": "qemu: VmRSS:", "State": "t (tracing stop)", "Uid": "1000\t0\t0\t0",
		"VmRSS": "1234 kB", "CapEff": "000001ffffffffff", "Vm": "", "VmSwap": ""} {
		if got := Value(status, key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	for key, want := range map[string]int64{"VmRSS": 1234 << 10, "VmSwap": 0, "State": 0} {
		if got := Bytes(status, key); got != want {
			t.Errorf("%s: %d, want %d", key, got, want)
		}
	}
	if got := Value([]byte("processor\t: 0\nmodel name\t: A: 2 GHz\n\nprocessor\t: 1\nmodel name\t: B\n"), "model name"); got !=
		"A: 2 GHz" {
		t.Errorf("%q", got)
	}
}

func TestSoftLimit(t *testing.T) {
	limits := []byte("Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max open files            1024                 524288               files     \n" +
		"Max nice priority         0                    0                    \n" +
		"Max address space         unlimited            unlimited            bytes     \n" +
		"Max locked memory         x                    y                    bytes     \nMax stack size\n")
	for resource, want := range map[string]int64{"Max open files": 1024, "Max nice priority": 0} {
		if got, err := SoftLimit(limits, resource); err != nil || got == nil || *got != want {
			t.Errorf("%s: %v, %v; want %d", resource, got, err, want)
		}
	}
	if got, err := SoftLimit(limits, "Max address space"); got != nil || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	for _, resource := range []string{"Max locked memory", "Max stack size", "Max open"} {
		if got, err := SoftLimit(limits, resource); err == nil {
			t.Errorf("%s: %v", resource, got)
		}
	}
}

func TestArgs(t *testing.T) {
	for text, want := range map[string][]string{"": nil, "\x00": nil, "a\x00": {"a"},
		"a b\x00\x00-c\x00": {"a b", "", "-c"}, "a\x00b": {"a", "b"}} {
		if got := Args([]byte(text)); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestParseIDs(t *testing.T) {
	got, err := ParseIDs([]byte("         0       1000          1\n         1     100000      65536\n"))
	if want := []IDs{{0, 1000, 1}, {1, 100000, 65536}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if got, err := ParseIDs([]byte("0 0\n")); err == nil || got != nil {
		t.Errorf("%v, %v", got, err)
	}
}

// TestSelf: this kernel's files are as the golden texts are.
func TestSelf(t *testing.T) {
	self := Process(os.Getpid())
	read := func(name string) []byte {
		b, err := os.ReadFile(string(self) + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if s, err := self.Stat(os.ReadFile); err != nil || s.Name != "procfs.test" || s.Start == 0 ||
		!strings.ContainsRune("RSD", rune(s.State)) {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := Thread(os.Getpid(), os.Getpid()).Schedule(os.ReadFile); err != nil || s.Turns == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if got := Args(read("cmdline")); !slices.Equal(got, os.Args) {
		t.Errorf("%q, want %q", got, os.Args)
	}
	if ids, err := ParseIDs(read("uid_map")); err != nil || len(ids) == 0 || ids[0].Count == 0 {
		t.Errorf("%v, %v", ids, err)
	}
	if _, err := SoftLimit(read("limits"), "Max locked memory"); err != nil {
		t.Error(err)
	}
	if Bytes(read("status"), "VmHWM") == 0 {
		t.Errorf("%q has no peak of memory", read("status"))
	}
	if _, err := Process(0).Stat(os.ReadFile); err == nil {
		t.Error("process 0 has a state")
	}
	if _, err := Process(0).Schedule(os.ReadFile); err == nil {
		t.Error("process 0 has a schedule")
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("4176 (cat) R 4171 4171 2551 0 -1 4194304 104 0 0 0 0 0 0 0 20 0 1 0 69119 3133440 384"))
	f.Add([]byte("7 (a) Z (b\n) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 18446744073709551615"))
	f.Add([]byte(") ("))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseStat(data)
		if err != nil {
			if s != (Stat{}) {
				t.Errorf("an error and %+v", s)
			}
			return
		}
		again, err := ParseStat(fmt.Appendf(nil, "1 (%s) %s%s %d", s.Name, []byte{s.State},
			strings.Repeat(" 0", 18), s.Start))
		if err != nil || again != s {
			t.Errorf("%+v, encoded and decoded: %+v, %v", s, again, err)
		}
	})
}
