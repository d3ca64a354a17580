package experiment

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/setting"
	"qmigrate/hostnet"
	"qmigrate/qmp"
	"qmigrate/testdata/experiments"
)

func mustParse(t *testing.T, text, scale string) *Experiment {
	t.Helper()
	e, err := Parse("x.toml", []byte(text), scale)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func names(e *Experiment) (all []string) {
	for _, c := range e.Cells {
		all = append(all, c.Name)
	}
	return all
}

// TestCells: crossed, listed, both, less what the constraints leave out; a sweep's value over the common one; a scale's over the file's.
func TestCells(t *testing.T) {
	const text = `
repeats = 4
[common]
memory = "1GiB"
vcpus  = 2
[[sweep]]
name          = "a"
mode          = ["pre-copy", "stop-and-copy"]
max-bandwidth = ["32MiB/s", "64MiB/s", "128MiB/s"]
vcpus         = 1
exclude       = [{ mode = "stop-and-copy", max-bandwidth = ["32MiB/s", "64MiB/s"] }]
[[sweep]]
name    = "b"
repeats = 2
cells   = [{ case = "x", memory = "512MiB" }, { case = "y", memory = "2GiB" }]
workload      = "dirty:pattern=sequential"
workload-rate = ["1000/s", "2000/s"]
only          = [{ case = "x" }, { workload-rate = "2000/s" }]
[scale.small]
repeats = 3
[scale.small.common]
memory = "256MiB"
[scale.small.sweep.a]
max-bandwidth = "16MiB/s"
exclude = []
[scale.tiny.sweep.b]
skip = true
`
	for scale, want := range map[string][]string{
		"": {"a mode=pre-copy max-bandwidth=32MiB/s", "a mode=pre-copy max-bandwidth=64MiB/s", "a mode=pre-copy max-bandwidth=128MiB/s", "a mode=stop-and-copy max-bandwidth=128MiB/s",
			"b case=x memory=512MiB workload-rate=1000/s", "b case=x memory=512MiB workload-rate=2000/s", "b case=y memory=2GiB workload-rate=2000/s"},
		"small": {"a mode=pre-copy", "a mode=stop-and-copy",
			"b case=x memory=512MiB workload-rate=1000/s", "b case=x memory=512MiB workload-rate=2000/s", "b case=y memory=2GiB workload-rate=2000/s"},
		"tiny": {"a mode=pre-copy max-bandwidth=32MiB/s", "a mode=pre-copy max-bandwidth=64MiB/s", "a mode=pre-copy max-bandwidth=128MiB/s", "a mode=stop-and-copy max-bandwidth=128MiB/s"},
	} {
		e := mustParse(t, text, scale)
		if got := names(e); !slices.Equal(got, want) {
			t.Errorf("scale %q:\n%q, want\n%q", scale, got, want)
		}
		if scale == "" && (len(e.Trials(1)) != 4*4+3*2 || e.Name != "x") {
			t.Errorf("%d trials of %s", len(e.Trials(1)), e.Name)
		}
	}
	small := mustParse(t, text, "small")
	c := small.Cells[0]
	if c.Plan.Mode != record.PreCopyMode || c.Plan.MaxBandwidth != 16<<20 || c.Lab.Guest.Memory != 256<<20 || c.Lab.Guest.VCPUs != 1 || c.Sweep.Repeats != 3 {
		t.Errorf("the cell's values: %+v, %+v, %+v", c.Plan, c.Lab.Guest, c.Sweep)
	}
	if w := small.Cells[2].Lab.Workload; w.Number("rate") != 1000 || w.Choice("pattern") != "sequential" {
		t.Errorf("a workload's parameter by itself: %v", w)
	}
	if v := mustParse(t, "[[sweep]]\nqemu = 10.0\n", "").Cells[0].Lab.SourceQEMU; v != "10.0" {
		t.Errorf("version 10.0 without quotes is %q", v)
	}
	if got := fmt.Sprint(c.Factors); got != "map[max-bandwidth:16MiB/s memory:256MiB mode:pre-copy sweep:a vcpus:1]" {
		t.Errorf("factors %s", got)
	}
}

// TestShrink: memory, fill and working sets get smaller, and the factors say what they are then.
func TestShrink(t *testing.T) {
	e := mustParse(t, `
shrink = 4
[[sweep]]
cells = [{ case = "m1.tiny", memory = "512MiB" }, { case = "m1.small", memory = "2GiB", fill = "1GiB" }, { case = "less", memory = "256MiB" }]
workload = "dirty:working-set=64MiB"
`, "")
	if want := []string{"case=m1.tiny memory=128MiB", "case=m1.small memory=512MiB fill=256MiB", "case=less memory=128MiB"}; !slices.Equal(names(e), want) {
		t.Errorf("names %q", names(e))
	}
	var got []string
	for _, c := range e.Cells {
		got = append(got, fmt.Sprint(c.Lab.Guest.Memory>>20, " ", c.Lab.Fill>>20, " ", c.Lab.Workload.Number("working-set")/(1<<20), " ", c.Factors["memory"], " ", c.Factors["shrink"]))
	}
	if want := []string{"128 0 16 128MiB 4", "512 256 16 512MiB 4", "128 0 16 128MiB 4"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestTrialsOrder: the same seed gives the same order, another one another; every cell comes once in each round; and the very order of one
// seed is kept, for folders hold its beginning.
func TestTrialsOrder(t *testing.T) {
	const text = `
repeats = 3
[[sweep]]
name = "a"
max-bandwidth = ["1MiB/s", "2MiB/s", "3MiB/s", "4MiB/s", "5MiB/s"]
[[sweep]]
name = "b"
repeats = 2
vcpus = [1, 2]
`
	order := func(seed int64, boot string) (ids []string) {
		e := mustParse(t, "boot = \""+boot+"\"\n"+text, "")
		for i, trial := range e.Trials(seed) {
			if trial.Order != i {
				t.Errorf("trial %d has order %d", i, trial.Order)
			}
			ids = append(ids, trial.ID())
		}
		return ids
	}
	a := order(7, PerTrial)
	if !slices.Equal(a, order(7, PerTrial)) || slices.Equal(a, order(8, PerTrial)) {
		t.Errorf("the order is not the seed's")
	}
	for round, n := range []int{7, 7, 5} {
		from := 7 * round
		for _, id := range a[from : from+n] {
			if !strings.HasSuffix(id, fmt.Sprintf("#%d", round+1)) {
				t.Errorf("%s is in round %d", id, round+1)
			}
		}
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(a))); len(sorted) != 19 {
		t.Errorf("%d different trials of 19: %q", len(sorted), a)
	}
	if want := goldenOrder; !slices.Equal(a[:4], want) {
		t.Errorf("seed 7 draws %q, and drew %q: folders that hold a part of it would get a mixture", a[:4], want)
	}
	last := ""
	for i, id := range order(7, PerCell) {
		cell, repeat, _ := strings.Cut(id, " #")
		if repeat == "1" {
			last = cell
		} else if cell != last {
			t.Errorf("trial %d is %s, after one of %s: with one boot a cell they follow each other", i, id, last)
		}
	}
}

// TestWrongLines: what is wrong is found with the line that it is in. testdata/scripts/experiment-wrong.txtar has the same for the program.
func TestWrongLines(t *testing.T) {
	for _, c := range []struct {
		line       int
		text, want string
	}{
		{3, "a = 1\n\nb = 1x\n", "strings must be quoted"},
		{2, "repeats = 3\nrepeats = 4\n", "already defined"},
		{1, "repeats = 3\n", "nothing to run"},
		{1, "repeat = 3\n[[sweep]]\n", `no key "repeat": did you mean repeats`},
		{1, "repeats = 0\n[[sweep]]\n", "at least 1"},
		{2, "[[sweep]]\nmax-bandwith = \"1MiB/s\"\n", `unknown key "max-bandwith": did you mean max-bandwidth`},
		{4, "[[sweep]]\nmemory = [\n  \"256MiB\",\n  256,\n]\n", "no unit"},
		{3, "[[sweep]]\ncells = [\n  { vcpus = 0 },\n]\n", "1 to 255"},
		{3, "[[sweep]]\nmode = [\"pre-copy\",\n\"pre-copy\"]\n", "twice"},
		{3, "[[sweep]]\nmax-bandwidth = [\"32MiB/s\",\n\"33554432B/s\"]\n", "33554432B/s is 32MiB/s in other words"},
		{2, "[[sweep]]\ncapability = [\"multifd=on,return-path=on\", \"return-path=on,multifd=on\"]\n", "in other words"},
		{2, "[[sweep]]\nmode = []\n", "no values"},
		{2, "[[sweep]]\nmode = \"live\"\n", "have pre-copy, stop-and-copy"},
		{3, "[[sweep]]\nmode = [\"pre-copy\", \"hybrid\"]\nexclude = [{ mode = \"post-copy\" }]\n", "matches no cell"},
		{1, "[[sweep]]\nmode = \"hybrid\"\nexclude = [{ mode = \"hybrid\" }]\n", "leave no cell"},
		{1, "[[sweep]]\n\n[[sweep]]\nname = \"b\"\n", "has no name"},
		{3, "[[sweep]]\nname = \"b\"\n[[sweep]]\nname = \"b\"\n", "there twice, first in line 1"},
		{4, "[[sweep]]\nname = \"b\"\n[scale.small]\nsweep.c.skip = true\n", `no sweep "c"`},
		{3, "[[sweep]]\n[scale.small]\nrepeets = 1\n", "did you mean repeats"},
		{2, "[[sweep]]\nworkload = \"dirty:speed=3\"\n", "no parameter"},
		{3, "[[sweep]]\nworkload = \"idle\"\nworkload-rate = [\"1/s\"]\n", `idle has no parameter "rate"`},
		{2, "[[sweep]]\npolicy = \"never\"\n", "does not exist"},
		{2, "[[sweep]]\ncapability = \"multifd\"\n", "NAME=on|off"},
		{1, "figures = [{ kind = \"against\" }]\n[[sweep]]\n", "against which factor"},
		{2, "figures = [{ title = \"x\",\nkind = \"pie\" }]\n[[sweep]]\n", "have against"},
		{2, "figures = [{ title = \"x\", against = \"vcpus\",\nshow = \"downtime.wires_ns\" }]\n[[sweep]]\n", "no number of a record has this key: did you mean downtime."},
		{2, "figures = [{ title = \"x\", kind = \"ecdf\",\nshow = \"name\" }]\n[[sweep]]\n", "no number of a record has this key: docs/schema.md"},
		{1, "figures = [{ title = \"x\", kind = \"ecdf\" }]\n[[sweep]]\n", "says what it shows"},
		{1, "repeats = 1000001\n[[sweep]]\n", "at most 1000000"},
		{1, "name = \"\"\n[[sweep]]\n", "name is empty"},
		{1, "title = \"a\\u001b[31m\"\n[[sweep]]\n", "without control characters"},
		{2, "[[sweep]]\ncase = [\"a\", \"b\\nc\"]\n", "without control characters"},
		{2, "[[sweep]]\nmemory = 2024-01-01\n", "one value"},
		{1, "common = 3\n[[sweep]]\n", "common is a table"},
	} {
		_, err := Parse("x.toml", []byte(c.text), "")
		var at *Error
		if !errors.As(err, &at) || at.Line != c.line || !strings.Contains(at.Text, c.want) {
			t.Errorf("%q\nsays %v; want line %d, %q", c.text, err, c.line, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: one thing is wrong, and it says %v", c.text, err)
		}
	}
}

// TestLineBySetting: what is found when the file has been read is said with the line of the setting that it is about,
// whatever words of other lines the error's text has.
func TestLineBySetting(t *testing.T) {
	for _, c := range []struct {
		line       int
		text, want string
	}{
		{3, "mode = \"pre-copy\"\nswitch-after = 2\nparameter = \"mode=normal\"\n", "it is for mode hybrid"},
		{2, "disk-bus = \"ahci\"\nguest = \"tiny\"\nstorage = \"none\"\n", "the guest has no disks"},
		{2, "cpu-cap = \"4%\"\ncpu-cap-period = \"20ms\"\nping-interval = \"20ms\"\nmode = \"pre-copy\"\n", "least quota"},
		{2, "capability = \"events=off\"\nparameter = \"events=off\"\n", "MIGRATION events"}, // the same words twice
		{3, "parameter = \"postcopy-ram=off\"\ncapability = \"postcopy-ram=off\"\nmode = \"post-copy\"\n", "needs it"},
		{2, "workload = \"redis\"\nguest = \"tiny\"\n", "redis needs guest debian"},
		{3, "tls = \"x509\"\ntransport = \"exec\"\nmode = \"pre-copy\"\n", "TLS handshake"},
	} {
		e := mustParse(t, "[[sweep]]\n"+c.text, "")
		var at *Error
		if err := e.Check(t.Context(), qmp.SchemaCache{}); !errors.As(err, &at) || at.Line != c.line || !strings.Contains(at.Text, c.want) {
			t.Errorf("%q\nsays %v; want line %d, %q", c.text, err, c.line, c.want)
		}
	}
}

// TestSameUnderTwoNames: a case changes nothing, and is no word for another.
func TestSameUnderTwoNames(t *testing.T) {
	if e := mustParse(t, "[[sweep]]\ncase = [\"A\", \"A again\"]\n", ""); len(e.Cells) != 2 {
		t.Errorf("%d cells, want 2", len(e.Cells))
	}
}

// TestNumbers: what figures may show is a number of a record, measured by whomever.
func TestNumbers(t *testing.T) {
	for key, want := range map[string]bool{"total.wall_ns": true, "downtime.guest_clock_error_ns": true, "guest.slowdown_percent": true, "qemu.vcpus": true, "passes": true, "boot.trial_ns": true,
		"parameters.max-bandwidth": true, "anatomy.device_load_ns": true, "anatomy.duration_ns": false, "stages": false, "mode": false, "total": false, "total.": false, "wall_ns": false, "": false} {
		if isNumber(key) != want {
			t.Errorf("%q is a number: %t, want %t", key, !want, want)
		}
	}
}

// TestOptional: what this build does not know, and this host cannot do, is left out of an optional sweep, and an error in another one.
func TestOptional(t *testing.T) {
	const text = `
[[sweep]]
name = "here"
mode = "pre-copy"
[[sweep]]
name = "elsewhere"
optional = true
teleporter = ["a", "b"]
[[sweep]]
name = "too-large"
optional = true
mode = "pre-copy"
memory = ["256MiB", "900TiB"]
`
	e := mustParse(t, text, "")
	e.Cells = slices.DeleteFunc(e.Cells, func(c *Cell) bool { return c.Sweep.Name == "here" || c.Factors["memory"] == "256MiB" }) // they would ask a QEMU
	if err := e.Check(t.Context(), qmp.SchemaCache{}); err == nil || !strings.Contains(err.Error(), "nothing is left") {
		t.Errorf("the check says %v", err)
	}
	if len(e.LeftOut) != 2 || !strings.Contains(e.LeftOut[0], `sweep elsewhere: line 8: unknown key "teleporter"`) || !strings.Contains(e.LeftOut[1], "too-large memory=900TiB: line 13: two QEMUs of") {
		t.Errorf("left out: %q", e.LeftOut)
	}
	e = mustParse(t, strings.Replace(text, "name = \"too-large\"\noptional = true", "name = \"too-large\"", 1), "")
	e.Cells = e.Cells[len(e.Cells)-1:]
	var at *Error
	if err := e.Check(t.Context(), qmp.SchemaCache{}); !errors.As(err, &at) || at.Line != 12 || !strings.Contains(at.Text, "shrink = ") {
		t.Errorf("a cell that does not fit: %v", err)
	}
}

// TestTooMany: more trials than anybody waits for are refused, not made.
func TestTooMany(t *testing.T) {
	e := mustParse(t, "repeats = 1000000\n[[sweep]]\nmode = [\"pre-copy\", \"stop-and-copy\"]\n", "")
	if _, err := e.Plan(t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "2000000 trials") {
		t.Errorf("two million trials: %v", err)
	}
}

// TestBrokenRecords: the folder whose records cannot be read is named.
func TestBrokenRecords(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, record.RecordsFile), []byte("{\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := mustParse(t, "[[sweep]]\n", "").Plan(dir, nil); err == nil || !strings.HasPrefix(err.Error(), dir+": read records: line 1") {
		t.Error(err)
	}
}

// TestResume: a folder takes the same experiment again, comments and titles aside, and no other.
func TestResume(t *testing.T) {
	const text = "title = \"x\"\n[[sweep]]\nmode = [\"pre-copy\", \"stop-and-copy\"]\n"
	dir := t.TempDir()
	first := mustParse(t, text, "")
	first.hash = first.meaning()
	p, err := first.Plan(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.keep(dir, "qmigrate run x.toml", p.Seed, len(p.Trials), nil); err != nil {
		t.Fatal(err)
	}
	folder, err := record.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	done := notBegun(p.Trials[3], time.Now(), errors.New("no lab"))
	done.Experiment, done.Trial = first.Name, p.Trials[3].ID()
	if err := folder.Append(done); err != nil {
		t.Fatal(err)
	}
	seed := int64(5)
	for _, c := range []struct {
		text, scale, want string
		change            func(*Experiment)
	}{
		{text: "# another title\n" + strings.Replace(text, `"x"`, `"y"`, 1)},
		{text: strings.Replace(text, "stop-and-copy", "hybrid", 1), want: "x.toml has changed since"},
		{text: text, change: func(e *Experiment) { e.SetRepeats(3) }, want: "has changed"},
		{text: text, change: func(e *Experiment) { e.Seed = &seed }, want: "drawn from seed"},
		{text: text, change: func(e *Experiment) { e.Name = "z" }, want: "holds trials of experiment x, this is z"},
		{text: text + "[scale.small]\n", scale: "small", want: "this is x at scale small"},
	} {
		e := mustParse(t, c.text, c.scale)
		if c.change != nil {
			c.change(e)
		}
		e.hash = e.meaning()
		q, err := e.Plan(dir, nil)
		switch {
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		case c.want == "" && err != nil:
			t.Errorf("%q: %v", c.text, err)
		case c.want == "" && (q.Seed != p.Seed || len(q.Left) != len(p.Trials)-1 || slices.ContainsFunc(q.Left, func(t Trial) bool { return t.ID() == done.Trial })):
			t.Errorf("seed %d, %d left of %d with one done", q.Seed, len(q.Left), len(p.Trials))
		}
	}
	if err := os.Remove(statePath(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Plan(dir, nil); err == nil || !strings.Contains(err.Error(), "no experiment.json") {
		t.Errorf("records without an experiment.json: %v", err)
	}
}

// TestSlot: the second one is told who holds it, and gets it afterwards.
func TestSlot(t *testing.T) {
	t.Setenv(SlotVariable, filepath.Join(t.TempDir(), "slot"))
	first, err := takeSlot("process 1, kvm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := takeSlot("process 2"); err == nil || !strings.Contains(err.Error(), "process 1, kvm") {
		t.Errorf("a slot that is taken: %v", err)
	}
	first.release()
	second, err := takeSlot("process 2")
	if err != nil {
		t.Fatal(err)
	}
	second.release()
	dir := t.TempDir() // a folder is locked likewise
	own, by, err := take(dir, "x")
	if err != nil || by != "" {
		t.Fatal(err, by)
	}
	defer own.release()
	if _, by, err := take(dir, "y"); err != nil || by == "" {
		t.Errorf("a folder that is locked: %v, %q", err, by)
	}
}

// TestNoLab: a host that can make no lab is refused before any trial has failed for it; what a lab can do without is no matter.
func TestNoLab(t *testing.T) {
	tun := hostnet.Capability{Name: hostnet.CapTUN, Reason: "this user may not open /dev/net/tun", Mend: "run as root"}
	err := canHaveLabs(hostnet.Capabilities{{Name: hostnet.CapRoot, Optional: true}, {Name: hostnet.CapNamespaces, OK: true}, tun})
	if err == nil || err.Error() != "no lab can be had here: TUN: this user may not open /dev/net/tun; run as root" {
		t.Errorf("without TUN: %v", err)
	}
	if err := canHaveLabs(hostnet.Capabilities{{Name: hostnet.CapRoot, Optional: true}, {Name: hostnet.CapNamespaces, OK: true}}); err != nil {
		t.Error(err)
	}
}

// TestEstimate: by rule until there are records; then a cell takes as long as it took, and others are corrected as the rule was.
func TestEstimate(t *testing.T) {
	e := mustParse(t, "[[sweep]]\nmax-bandwidth = [\"16MiB/s\", \"1GiB/s\"]\n", "")
	slow, fast := e.Cells[0], e.Cells[1]
	if p, err := e.Plan(t.TempDir(), nil); err != nil || p.Estimate.WarmUp != 1 {
		t.Errorf("a plan's estimate: %v, %+v", err, p)
	}
	x := newEstimator(e, nil)
	if x.trial(slow) <= x.trial(fast) {
		t.Errorf("at 16 MiB/s %s, at 1 GiB/s %s", x.trial(slow), x.trial(fast))
	}
	rule := x.trial(fast)
	longer := mustParse(t, "[[sweep]]\nmax-bandwidth = \"1GiB/s\"\nguest = \"debian\"\nobserve = \"10s\"\n", "").Cells[0]
	if got, _ := longer.guess(e.TrialTimeout); got < rule+18*time.Second {
		t.Errorf("a Debian guest that is watched for 10 s before and after takes %s, a tiny one %s", got, rule)
	}
	var records []*record.Migration
	for range 3 {
		took, _ := slow.guess(e.TrialTimeout)
		r := notBegun(Trial{Cell: slow}, time.Now(), errors.New("no lab"))
		r.Factors, r.Boot = slow.Factors, &record.Boot{Trial: 2 * took}
		records = append(records, r)
	}
	other := notBegun(Trial{Cell: slow}, time.Now(), errors.New("no lab"))
	other.Factors, other.Boot = map[string]any{"memory": "1TiB"}, &record.Boot{Trial: time.Hour}
	x = newEstimator(e, append(records, other))
	if got, _ := slow.guess(e.TrialTimeout); x.known != 3 || x.trial(slow) != 2*got || (x.trial(fast)-2*rule).Abs() > time.Millisecond {
		t.Errorf("%d records, slow %s of %s, fast %s of %s", x.known, x.trial(slow), got, x.trial(fast), rule)
	}
	before := x.all(nil, []Trial{{Cell: slow}, {Cell: fast}}).Time
	if got := x.all([]Trial{{Cell: slow}}, []Trial{{Cell: slow}, {Cell: fast}}); got.Time != before+x.trial(slow) || got.WarmUp != 1 {
		t.Errorf("with a trial for warm-up %s, without %s", got.Time, before)
	}
	mean := x.trial(slow)
	x.learn(slow, mean+4*time.Minute) // one of four: the time of four such is four times the mean, and not the median
	if got := x.trial(slow); got != mean+time.Minute {
		t.Errorf("mean %s after a trial that took 4 minutes more, want %s", got, mean+time.Minute)
	}
}

// TestBundled: each study is read, at its real size and small; small is at most so many trials as fit into eight minutes at 8 s each.
func TestBundled(t *testing.T) {
	files, err := experiments.Files.ReadDir(".")
	if err != nil || len(files) != 5 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		text, err := experiments.Files.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, scale := range []string{"", "small"} {
			e, err := Parse(f.Name(), text, scale)
			if err != nil {
				t.Errorf("scale %q: %v", scale, err)
				continue
			}
			trials := e.Trials(1)
			if len(trials) == 0 || scale == "small" && len(trials) > 60 || len(e.Figures) == 0 || e.Title == "" || e.Name+".toml" != f.Name() {
				t.Errorf("%s at scale %q: %d trials, %d figures, title %q", f.Name(), scale, len(trials), len(e.Figures), e.Title)
			}
			drawn := map[Figure]string{}
			for _, f := range e.Figures {
				title := f.Title
				if f.Title = ""; drawn[f] != "" {
					t.Errorf("%s: %q is %q again", e.Name, title, drawn[f])
				}
				drawn[f] = title
			}
			t.Logf("%s %s: %d trials of %d cells, %s; left out %q", e.Name, cmp.Or(scale, "real"), len(trials), len(e.Cells), newEstimator(e, nil).all(nil, trials).Time.Round(time.Second), e.LeftOut)
		}
	}
}

// TestVocabulary: docs/experiments.md has each key of the file, and the table of the factors as -update writes it.
func TestVocabulary(t *testing.T) {
	name := filepath.Join("..", "..", "docs", "experiments.md")
	doc, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range slices.Concat(topKeys, sweepKeys) {
		if !strings.Contains(string(doc), "`"+w+"`") {
			t.Errorf("docs/experiments.md does not have `%s`", w)
		}
	}
	var table strings.Builder
	for _, f := range factors() {
		if strings.HasPrefix(f.Name, "workload-") { // by a line below the table
			continue
		}
		fmt.Fprintf(&table, "| `%s` | `%s` | %s | %s |\n", f.Name, f.Example, f.Otherwise(setting.Run),
			strings.ReplaceAll(f.Help, "|", `\|`))
	}
	const head = "| factor | example | default | meaning |\n|---|---|---|---|\n"
	before, rest, ok := strings.Cut(string(doc), head)
	_, after, ok2 := strings.Cut(rest, "\n\n")
	if !ok || !ok2 {
		t.Fatal("docs/experiments.md has no table of factors")
	}
	want := before + head + table.String() + "\n" + after
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(doc) != want {
		t.Error("the table of factors in docs/experiments.md is another one: `go test ./engine/experiment -run TestVocabulary -update` writes it")
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

// TestDocumentsExample: the first example of docs/experiments.md is an experiment.
func TestDocumentsExample(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "experiments.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "```toml\n")
	text, _, ok := strings.Cut(rest, "```\n")
	if !ok {
		t.Fatal("docs/experiments.md has no example")
	}
	for scale, want := range map[string]int{"": 9 * 6, "small": 9 * 2} {
		if e := mustParse(t, text, scale); len(e.Trials(1)) != want || e.Name != "first" || len(e.Figures) != 1 {
			t.Errorf("scale %q: %d trials of %q, want %d", scale, len(e.Trials(1)), e.Name, want)
		}
	}
}

// goldenOrder is the beginning of TestTrialsOrder's order for seed 7.
var goldenOrder = []string{"a max-bandwidth=5MiB/s #1", "a max-bandwidth=4MiB/s #1", "a max-bandwidth=3MiB/s #1", "b vcpus=1 #1"}

// FuzzParse: any text is an experiment or an error with a line of it, and nothing else.
func FuzzParse(f *testing.F) {
	f.Add("[[sweep]]\nmode = [\"pre-copy\"]\ncells = [{vcpus = 1}]\nexclude = [{vcpus = 1}]\n[scale.small.sweep.x]\na.b = 1\n")
	f.Add("a = 1979-05-27\n[a.b]\n")
	f.Add("[[sweep]]\n[sweep.sub]\nx = 1\n")
	f.Add("sweep = 3\nscale = []\nfigures = [[]]\n")
	f.Fuzz(func(t *testing.T, text string) {
		e, err := Parse("f.toml", []byte(text), "")
		if err == nil {
			if len(e.Cells) < 1000 && e.Repeats < 1000 {
				e.SetRepeats(1)
				e.Trials(1)
			}
			return
		}
		var at *Error
		if errors.As(err, &at) && (at.Line < 1 || at.Line > strings.Count(text, "\n")+2) {
			t.Errorf("%q: line %d", text, at.Line)
		}
	})
}
