package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"qmigrate/engine/experiment"
	"qmigrate/engine/record"
)

// trials is what a trial of an experiment takes: of an idle guest that is booted for it, and of the demo's guest,
// booted for each and for all of them. From begin to begin, so that the lab's end is in it.
func (b *bench) trials(ctx context.Context, r *Result) error {
	n := b.pick(3, 10)
	for _, x := range []struct{ name, boot, workload, target string }{
		{"an idle guest of 256 MiB, booted fresh", experiment.PerTrial, "idle", "< 8"},
		{"the demo's guest, booted for each trial", experiment.PerTrial, "dirty:rate=2000/s,working-set=16MiB", ""},
		{"the demo's guest, booted once", experiment.PerCell, "dirty:rate=2000/s,working-set=16MiB", ""},
	} {
		begins, took, err := b.experiment(ctx, x.boot, x.workload, n)
		if err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
		if x.target != "" {
			r.add("a trial of "+x.name+", to its record", "s", x.target, ofMedian(took))
			continue
		}
		apart := ofMedian(begins)
		r.add("from trial to trial: "+x.name, "s", "", apart)
		r.note("%s: %.0f trials an hour", x.name, 3600/apart.median)
	}
	return nil
}

// experiment runs n trials of one cell and returns how far they are apart and how long each took, in seconds.
func (b *bench) experiment(ctx context.Context, boot, workload string, n int) (apart, took []float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "trials-")
	if err != nil {
		return nil, nil, err
	}
	file, out := filepath.Join(dir, "bench.toml"), filepath.Join(dir, "out")
	text := fmt.Sprintf("repeats = %d\nboot = %q\n[common]\naccelerator = \"tcg\"\nworkload = %q\n[[sweep]]\n", n, boot,
		workload)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, nil, err
	}
	c := exec.CommandContext(ctx, b.qmigrate, "run", file, "--out", out, "--quiet")
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = time.Minute
	if said, err := c.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("qmigrate run: %v: %s", err, said)
	}
	records, err := record.Read(out)
	if err != nil {
		return nil, nil, err
	}
	var last time.Time
	for _, m := range records {
		if m.Outcome != record.Completed || m.Boot == nil || m.Boot.Ready == nil {
			return nil, nil, fmt.Errorf("trial %s: %s, %v", m.Trial, m.Outcome, m.Error)
		}
		took = append(took, m.Boot.Trial.Seconds())
		if !last.IsZero() {
			apart = append(apart, m.StartedAt.Sub(last).Seconds())
		}
		last = m.StartedAt
	}
	return apart, took, nil
}
