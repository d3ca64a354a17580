package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"qmigrate/engine/record"
	"qmigrate/internal/procfs"
)

// process looks at a `qmigrate migrate` from outside: its memory and its processor time, in migrations of some seconds
// at the default sampling.
func (b *bench) process(ctx context.Context, r *Result) (err error) {
	q := b.qemus[0]
	p, err := b.realGuest(ctx, q, "p")
	if err != nil {
		return err
	}
	defer p.close(&err)
	var peak, share, steady, qemu, wall []float64
	for range b.pick(1, 6) {
		destination, err := p.next(ctx)
		if err != nil {
			return err
		}
		u, rec, err := b.watched(ctx, p.vm.Spec().Dir, destination.Spec().Dir)
		if moveErr := p.moved(destination, err); err == nil {
			err = moveErr
		}
		if err != nil {
			return err
		}
		peak = append(peak, float64(u.peak)/(1<<20))
		share = append(share, 100*u.cpu.Seconds()/u.wall.Seconds())
		wall = append(wall, rec.Total.Wall.Seconds())
		if u.steadyWall > 0 {
			steady = append(steady, 100*u.steadyCPU.Seconds()/u.steadyWall.Seconds())
		}
		if s := rec.Sampling; s != nil && s.QEMUCPU != nil {
			qemu = append(qemu, 100*s.QEMUCPU.Seconds()/rec.Stage(record.PreCopy).Duration.Seconds())
		}
	}
	r.add("`qmigrate migrate`, peak resident memory", "MiB", "< 50", ofMedian(peak))
	r.add("`qmigrate migrate`, processor while it samples each 10 ms", "% of a core", "< 3", ofMedian(steady))
	r.add("`qmigrate migrate`, processor from start to exit", "% of a core", "< 3", ofMedian(share))
	r.add("QEMU's main thread for the sampling, by the record", "% of a core", "", ofMedian(qemu))
	r.add("wall time of these migrations", "s", "", ofMedian(wall))
	r.note("QEMU %s, max-bandwidth %s so that a migration lasts; memory is the process's own VmHWM, for getrusage's "+
		"counts its parent's; `while it samples` leaves the first %v out", q.Version, slowBandwidth, steadyAfter)
	return nil
}

const (
	slowBandwidth = "10MiB/s"
	steadyAfter   = 500 * time.Millisecond // for start, initialization and reservation
)

// used is what a child used.
type used struct {
	peak                  int64 // bytes
	cpu, wall             time.Duration
	steadyCPU, steadyWall time.Duration // from steadyAfter to the last look
}

// watched runs `qmigrate migrate` between two folders of monitors.
func (b *bench) watched(ctx context.Context, src, dst string) (u used, rec *record.Migration, err error) {
	c := exec.CommandContext(ctx, b.qmigrate, "migrate", "--source", "unix:"+src, "--destination", "unix:"+dst,
		"--max-bandwidth", slowBandwidth, "--json", "--quiet", "--out", filepath.Join(b.dir, "records"))
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	begin := time.Now()
	if err := c.Start(); err != nil {
		return u, nil, err
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	var firstCPU, lastCPU time.Duration
	var first time.Time
	for {
		select {
		case <-look.C:
			if v := peakOf(c.Process.Pid); v > 0 {
				u.peak = v
			}
			now := time.Now()
			if now.Sub(begin) < steadyAfter {
				continue
			}
			cpu := threadsCPU(c.Process.Pid)
			if first.IsZero() {
				first, firstCPU = now, cpu
			}
			if cpu >= lastCPU { // at the exit the threads go one by one
				u.steadyCPU, u.steadyWall = cpu-firstCPU, now.Sub(first)
				lastCPU = cpu
			}
		case err := <-done:
			u.wall = time.Since(begin)
			if err != nil {
				return u, nil, fmt.Errorf("qmigrate migrate: %w: %s", err, strings.TrimSpace(errs.String()))
			}
			u.cpu = c.ProcessState.UserTime() + c.ProcessState.SystemTime()
			rec = new(record.Migration)
			if err := json.Unmarshal(out.Bytes(), rec); err != nil {
				return u, nil, fmt.Errorf("read record: %w", err)
			}
			return u, rec, nil
		}
	}
}

// peakOf is the largest resident set of a process so far, in bytes; 0 if it is gone.
func peakOf(pid int) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return procfs.Bytes(b, "VmHWM")
}

// threadsCPU is the processor time of all threads of a process, in ns exactly; a Go program's threads stay.
func threadsCPU(pid int) (sum time.Duration) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, dir := range threads {
		s, _ := procfs.Dir(dir).Schedule(os.ReadFile)
		sum += s.Ran
	}
	return sum
}
