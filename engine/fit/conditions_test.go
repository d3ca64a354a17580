package fit

import (
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
)

var update = flag.Bool("update", false, "write the table in docs/compatibility.md anew")

// recordedRunStates are the members of QEMU's RunState by a recorded query-qmp-schema.
func recordedRunStates(t *testing.T, version string) []string {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "qmp", "testdata", "schema-"+version+".json.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var entries []struct {
		Kind    string `json:"meta-type"`
		Members []struct{ Name string }
	}
	if err := json.NewDecoder(z).Decode(&entries); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var names []string
		for _, m := range e.Members {
			names = append(names, m.Name)
		}
		if e.Kind == "enum" && slices.Contains(names, "inmigrate") {
			return names
		}
	}
	t.Fatalf("the schema of %s has no RunState", version)
	return nil
}

// TestRunStates: each run state of each QEMU has one line, and so one answer. What may not follow inmigrate on the
// destination (runstate_transitions_def) would abort it, so it must never be sent.
func TestRunStates(t *testing.T) {
	t.Parallel()
	want := map[string]Answer{
		"running":        Move,
		"suspended":      Warn,
		"paused":         Warn,
		"prelaunch":      Warn,
		"io-error":       Warn,
		"watchdog":       Warn,
		"guest-panicked": Warn,
		"internal-error": Warn, "shutdown": Warn, "debug": Refuse, "colo": Refuse, "inmigrate": Refuse, "postmigrate": Refuse,
		"save-vm": Wait, "restore-vm": Wait, "finish-migrate": Wait,
	}
	for _, version := range []string{"7.2", "10.0", "11.1"} {
		states := recordedRunStates(t, version)
		if len(states) != len(want) {
			t.Errorf("QEMU %s has %d run states, the test knows %d: %v", version, len(states), len(want), states)
		}
		for _, state := range states {
			src, dst := factsOf("src", 10, 0), factsOf("dst", 10, 0)
			src.RunState = state
			c := &combination{src: src, dst: dst}
			if l := runState(c); l.answer != want[state] || l.state != state || l.name == "" {
				t.Errorf("%s: %s by line %q, want %s", state, l.answer, l.name, want[state])
			}
			refusals, doubts := SortOut(Conditions(src, dst, plan.Plan{}))
			held := state == "inmigrate" || state == "postmigrate" // which engine/holder decides, in its words
			if got := len(refusals); (got > 0) != (want[state] == Refuse && !held || want[state] == Wait) {
				t.Errorf("%s: %d refusals: %v", state, got, refusals)
			}
			if (len(doubts) > 0) != (want[state] == Warn) {
				t.Errorf("%s: warnings %v", state, doubts)
			}
			if src.Live() != (state == "suspended") { // Running is not set here
				t.Errorf("%s: live is %t", state, src.Live())
			}
		}
	}
	unknown := factsOf("src", 12, 0)
	unknown.RunState = "levitating"
	if all := Conditions(unknown, nil,
		plan.Plan{}); len(all) != 1 || all[0].Answer != Warn || !strings.Contains(all[0].Problem, "levitating") {
		t.Errorf("a run state of the future: %v", all)
	}
}

// TestAsleep: what becomes of a guest in ACPI S3 depends on both versions.
func TestAsleep(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		src, dst [2]int
		want     Answer
		text     string
	}{
		{[2]int{10, 0}, [2]int{11, 1}, Warn, "it arrives asleep"},
		{[2]int{9, 0}, [2]int{9, 0}, Warn, "it arrives asleep"},
		{[2]int{7, 2}, [2]int{10, 0}, Warn, "wakes it up"},
		{[2]int{8, 2}, [2]int{7, 2}, Warn, "wakes it up"},
		{[2]int{10, 0}, [2]int{7, 2}, Refuse, "its clock would stand still"},
		{[2]int{9, 0}, [2]int{8, 2}, Refuse, "its clock would stand still"},
		{[2]int{10, 0}, [2]int{}, Warn, "it arrives asleep"},
	} {
		src, dst := factsOf("src", c.src[0], c.src[1]), factsOf("dst", c.dst[0], c.dst[1])
		src.RunState = "suspended"
		if c.dst == [2]int{} {
			dst = nil
		}
		if all := Conditions(src, dst,
			plan.Plan{}); len(all) != 1 || all[0].Answer != c.want || !strings.Contains(all[0].Error(), c.text) {
			t.Errorf("%v to %v: %v; want %s with %q", c.src, c.dst, all, c.want, c.text)
		}
	}
}

// TestConditions: each other line holds for one source and for nothing near it.
func TestConditions(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		line    string // the beginning of the line's name
		minor7  bool   // the source is 7.2
		plan    plan.Plan
		change  func(src, dst *facts.Facts)
		answer  Answer
		want    string // in the text; "" : nothing is said
		without string // not in the text
	}{
		{name: "nothing", change: func(*facts.Facts, *facts.Facts) {}},
		{name: "normal mode", change: func(src, _ *facts.Facts) { src.Parameters["mode"] = "normal" }},
		{
			name:   "cpr-reboot",
			line:   "parameter `mode`",
			change: func(src, _ *facts.Facts) { src.Parameters["mode"] = "cpr-reboot" },
			answer: Warn,
			want:   "cpr-reboot on the source",
		},
		{
			name:   "cpr-transfer",
			line:   "parameter `mode`",
			change: func(_, dst *facts.Facts) { dst.Parameters["mode"] = "cpr-transfer" },
			answer: Warn,
			want:   "cpr-transfer on the destination",
		},
		{
			name:   "dump",
			line:   "a memory dump",
			change: func(src, _ *facts.Facts) { src.Dumps = true; src.Blockers = []string{"dump-guest-memory in progress"} },
			answer: Wait,
			want:   "query-dump",
		},
		{
			name:   "commit",
			line:   "a block job that writes",
			change: addJob("commit", true),
			answer: Refuse,
			want:   "block job j (commit)",
		},
		{
			name:   "stream",
			line:   "a block job that writes",
			change: addJob("stream", false),
			answer: Refuse,
			want:   "block-job-cancel",
		},
		{
			name:   "amend",
			line:   "a block job that writes",
			change: addJob("amend", false),
			answer: Refuse,
			want:   "block job j (amend)",
		},
		{
			name:   "backup",
			line:   "a block job `backup`",
			change: addJob("backup", false),
			answer: Refuse,
			want:   "block job j (backup)",
		},
		{
			name:   "mirror",
			line:   "a block job `mirror`, or",
			change: addJob("mirror", false),
			answer: Warn,
			want:   "block job j (mirror) is at work on the source, and stays there",
		},
		{
			name:   "mirror on 7.2",
			line:   "a block job `mirror` that",
			minor7: true,
			change: addJob("mirror", false),
			answer: Refuse,
			want:   "is not ready",
		},
		{
			name:   "ready mirror on 7.2",
			line:   "a block job `mirror`, or",
			minor7: true,
			change: addJob("mirror", true),
			answer: Warn,
			want:   "stays there",
		},
		{
			name:   "a job of the future",
			line:   "a block job `mirror`, or",
			change: addJob("polish", false),
			answer: Warn,
			want:   "block job j (polish)",
		},
		{
			name:   "bitmap",
			line:   "a dirty bitmap",
			change: addBitmap(false),
			answer: Warn,
			want:   "dirty bitmap b of disk d stays on the source",
		},
		{name: "persistent bitmap", change: addBitmap(true)},
		{name: "bitmap that is moved", plan: plan.Plan{Capabilities: on("dirty-bitmaps")}, change: addBitmap(false)},
		{
			name:   "tpm",
			line:   "a TPM",
			change: addDevice(facts.Device{Type: "tpm-crb", Bus: "System"}),
			answer: Warn,
			want:   "device tpm-crb",
		},
		{
			name:   "tpm-tis",
			line:   "a TPM",
			change: addDevice(facts.Device{Type: "tpm-tis", ID: "t", Bus: "ISA"}),
			answer: Warn,
			want:   "device tpm-tis t is in a process beside QEMU (swtpm)",
		},
		{
			name:   "virtiofs",
			line:   "vhost-user",
			change: addDevice(facts.Device{Type: "vhost-user-fs-pci", ID: "fs", Bus: "PCIE", Path: "q35-pcihost/03.0"}),
			answer: Warn,
			want:   "device vhost-user-fs-pci fs at PCI address 03.0",
		},
		{name: "inner half", change: addDevice(facts.Device{Type: "vhost-user-fs-device", Bus: "virtio-pci-bus"})},
		{
			name:    "vhost-user network",
			line:    "vhost-user",
			change:  func(src, _ *facts.Facts) { src.Netdevs = map[string]string{"n": "vhost-user", "m": "tap"} },
			answer:  Warn,
			want:    "network backend n",
			without: "backend m",
		},
		{name: "UEFI variables", line: "UEFI", change: addFlash(false), answer: Warn, want: "vars.fd"},
		{name: "UEFI code", change: addFlash(true)},
		{
			name:   "TAP script",
			line:   "a TAP",
			change: func(src, _ *facts.Facts) { src.Scripts = map[string]string{"n": "/etc/qemu-ifup"} },
			answer: Warn,
			want:   "n (/etc/qemu-ifup) was set up by a script",
		},
	}
	for _, test := range tests {
		src, dst := factsOf("src", 10, 0), factsOf("dst", 10, 0)
		if test.minor7 {
			src.Major, src.Minor = 7, 2
		}
		src.RunState = "running"
		test.change(src, dst)
		all := Conditions(src, dst, test.plan)
		if all[0].Answer != Move {
			t.Fatalf("%s: %v", test.name, all)
		}
		all = all[1:]
		switch {
		case test.want == "" && len(all) > 0:
			t.Errorf("%s: %v; want nothing", test.name, all)
		case test.want == "":
		case len(all) != 1 || all[0].Answer != test.answer || !strings.Contains(all[0].Error(),
			test.want) || strings.Contains(all[0].Error(), "$"):
			t.Errorf("%s: %v; want %s with %q", test.name, all, test.answer, test.want)
		case test.without != "" && strings.Contains(all[0].Error(), test.without):
			t.Errorf("%s: %v has %q", test.name, all, test.without)
		}
		if stops := len(compareStates(src, dst)); test.line == "a memory "+
			"dump" && stops != 1 { // that dst is no destination, and not the dump's blocker
			t.Errorf("%s: compareStates says %d things", test.name, stops)
		}
	}
	for _, l := range conditions() { // a line that no case reaches
		reached := l.state != "" || slices.ContainsFunc([]string{"a migration of somebody " +
			"else", "`-preconfig`"}, func(name string) bool { return l.name == name })
		for _, test := range tests {
			reached = reached || test.line != "" && strings.HasPrefix(l.name, test.line)
		}
		if !reached {
			t.Errorf("no case for %q", l.name)
		}
	}
}

func addJob(kind string, ready bool) func(src, dst *facts.Facts) {
	return func(src, _ *facts.Facts) { src.Jobs = []facts.Job{{ID: "j", Type: kind, Ready: ready}} }
}

func TestBitmapOfAJob(t *testing.T) {
	t.Parallel()
	c := &combination{src: &facts.Facts{Disks: []facts.Disk{{Name: "d", Bitmaps: []facts.Bitmap{{}, {Name: "b"}}}}}}
	if all := bitmaps(c); len(all) != 1 || all[0] != "dirty bitmap b of disk d" {
		t.Errorf("%q; want the one with a name", all)
	}
}

func addBitmap(persistent bool) func(src, dst *facts.Facts) {
	return func(src, _ *facts.Facts) {
		src.Disks = []facts.Disk{{Name: "d", Bitmaps: []facts.Bitmap{{Name: "b", Persistent: persistent}}}}
	}
}

func addDevice(d facts.Device) func(src, dst *facts.Facts) {
	return func(src, _ *facts.Facts) { src.Devices = []facts.Device{d} }
}

func addFlash(readOnly bool) func(src, dst *facts.Facts) {
	return func(src, _ *facts.Facts) {
		src.Disks = []facts.Disk{{Name: "pflash1", Node: "n", File: "vars.fd", ReadOnly: readOnly, Flash: true}}
	}
}

// A save asks the same table, and never speaks of a destination.
func TestSaveConditions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		state      string
		change     func(src, dst *facts.Facts)
		background bool
		want       Answer
		said       string
	}{
		{state: "running", want: Move},
		{state: "suspended", want: Warn, said: "restored asleep"},
		{state: "paused", want: Warn, said: "with paused"},
		{state: "shutdown", want: Warn, said: "`system_reset` and `cont`"},
		{state: "guest-panicked", want: Warn, said: "with paused"},
		{state: "debug", want: Refuse, said: "debugger"},
		{state: "save-vm", want: Wait, said: "save when that has ended"},
		{state: "finish-migrate", want: Wait, said: "save when it has ended"},
		{state: "levitating", want: Warn, said: "levitating"},
		{state: "running", change: addJob("commit", false), want: Refuse, said: "then save"},
		{state: "running", change: addJob("commit", false), background: true, want: Warn, said: "beside the save"},
		{state: "running", change: addJob("mirror", true), want: Warn, said: "the file has no disks"},
		{state: "running", change: addBitmap(false), want: Warn, said: "full one"},
		{state: "running", change: func(src, _ *facts.Facts) { src.Scripts = map[string]string{"n": "/etc/qemu-ifup"} }, want: Move},
	} {
		src := factsOf("src", 10, 0)
		src.RunState = c.state
		if c.change != nil {
			c.change(src, nil)
		}
		all := SaveConditions(src, plan.Plan{}, c.background)
		if c.state == "running" && c.change != nil {
			all = all[1:]
		}
		if len(all) != 1 || all[0].Answer != c.want || !strings.Contains(all[0].Error(), c.said) {
			t.Errorf("%s: %v, want %s with %q", c.state, all, c.want, c.said)
		}
	}
	for _, l := range conditions() {
		if answer, mend := l.forSave(); answer != Move && strings.Contains(mend, "destination") {
			t.Errorf("%s: a save has no destination: %s", l.name, mend)
		}
	}
}

// The table in docs/compatibility.md is written from the one in the code.
func TestConditionsPage(t *testing.T) {
	t.Parallel()
	const name, begin, end = "../../docs/compatibility.md", "<!-- conditions -->\n", "<!-- end -->\n"
	var table strings.Builder
	table.WriteString("| the source | answer | what becomes of it | why | a save |\n|---|---|---|---|---|\n")
	words := strings.NewReplacer("$S", "SOURCE", "$v", "VERSION", "$w", "VERSION", "$x", "IT")
	for _, l := range conditions() {
		text := "see [who holds the guest](who-holds-the-guest.md)"
		if l.said != "" {
			text = words.Replace(Mismatch{Problem: l.said, Mend: l.mend}.Error())
		}
		answer, mend := l.forSave()
		save := fmt.Sprintf("**%s**", answer)
		if l.said != "" && answer != Move && mend != l.mend {
			save += ": " + words.Replace(mend)
		}
		fmt.Fprintf(&table, "| %s | **%s** | %s | %s | %s |\n", l.name, l.answer, text, l.why, save)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(b), begin)
	old, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has no place for the table between %q and %q", name, begin, end)
	}
	if old == table.String() {
		return
	}
	if !*update {
		t.Fatalf("%s is out of date: go test ./engine/fit -run TestConditionsPage -update", name)
	}
	if err := os.WriteFile(name, []byte(before+begin+table.String()+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
