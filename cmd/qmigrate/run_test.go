package main

import (
	"errors"
	"flag"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/record"
	"qmigrate/guest/guesttest"
)

// TestRunCommand: the command that experiment.json and the report name can be pasted into a shell.
func TestRunCommand(t *testing.T) {
	set := flag.NewFlagSet("run", flag.ContinueOnError)
	set.String("out", "out", "")
	set.Int("repeats", 5, "")
	if err := set.Parse([]string{"--out", "mon's & tue's", "my file.toml"}); err != nil {
		t.Fatal(err)
	}
	const want = `qmigrate run 'my file.toml' --out 'mon'\''s & tue'\''s'`
	if got := runCommand(cli.NewContext(nil, set, nil)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestKilledExperiment kills an experiment of real guests at random moments, with the signal that nobody can catch, and starts it again: in the end each
// of its trials has one record, with its series, and nothing is left of the killed runs. QMIGRATE_CHAOS says how often it is killed.
func TestKilledExperiment(t *testing.T) {
	guesttest.Starts(t)
	if works, err := condition(t)("lab"); err != nil || !works {
		guesttest.Unable(t, "no lab can be had: ", err)
	}
	dir := t.TempDir()
	file, out := filepath.Join(dir, "killed.toml"), filepath.Join(dir, "out")
	const text = "repeats = 2\nwarm-up = 0\n[common]\naccelerator = \"tcg\"\nmemory = \"128MiB\"\nfill = \"48MiB\"\n[[sweep]]\nmode = [\"pre-copy\", \"stop-and-copy\"]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := dice(t)
	for range chaos(t, 2) {
		kill(t, r, file, out)
	}
	for range 2 { // the second has nothing to do
		if status, said := result(t, qmigrate(t, "run", file, "--out", out)); status != statusDone {
			t.Fatalf("status %d: %s", status, said)
		}
	}
	records, err := record.Read(out)
	if err != nil {
		t.Fatal(err)
	}
	var trials []string
	for _, r := range records {
		trials = append(trials, r.Trial)
		if r.Outcome != record.Completed || r.MemoryCheck == nil || r.MemoryCheck.PagesWrong > 0 || r.Experiment != "killed" || r.Order == nil || r.Boot == nil {
			t.Errorf("trial %s: %s, %+v, memory check %+v", r.Trial, r.Outcome, r.Error, r.MemoryCheck)
		}
		if _, err := os.Stat(filepath.Join(out, "samples", r.ID+".jsonl")); err != nil {
			t.Error(err)
		}
	}
	slices.Sort(trials)
	if want := []string{"mode=pre-copy #1", "mode=pre-copy #2", "mode=stop-and-copy #1", "mode=stop-and-copy #2"}; !slices.Equal(trials, want) {
		t.Errorf("trials %q, want each of %q once", trials, want)
	}
	if len(records) > 0 && !slices.IsSortedFunc(records, func(a, b *record.Migration) int { return *a.Order - *b.Order }) {
		t.Error("the trials were not run in their order")
	}
}

// kill starts the experiment and kills it some time later; what is in the folder then is whole.
func kill(t *testing.T, r *rand.Rand, file, out string) {
	t.Helper()
	cmd := qmigrate(t, "run", file, "--out", out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	after := 200*time.Millisecond + time.Duration(r.Int64N(int64(5*time.Second)))
	time.Sleep(after)
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	records, err := record.Read(out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after a kill: %v", err)
	}
	t.Logf("killed after %s, with %d trials recorded", after.Round(time.Millisecond), len(records))
}
