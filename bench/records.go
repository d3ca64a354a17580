package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine/record"
	"qmigrate/engine/record/recordtest"
)

// records looks at the program from outside while it sums up many records, and sets its processor time beside that of
// decoding each of them whole.
func (b *bench) records(ctx context.Context, r *Result) error {
	n := b.pick(10_000, 100_000)
	dir := filepath.Join(b.dir, "records")
	if err := recordtest.WriteFolder(dir, recordtest.Synthetic(17, n)); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	info, err := os.Stat(filepath.Join(dir, record.RecordsFile))
	if err != nil {
		return err
	}
	for _, args := range [][]string{{"compare", dir, "--by", "max-bandwidth", "--json"},
		{"export", dir, "--output", os.DevNull}} {
		name := args[0]
		var wall, cpu, peak []float64
		for range b.pick(1, 6) {
			c := exec.CommandContext(ctx, b.qmigrate, args...)
			c.Stdout, c.Stderr = io.Discard, os.Stderr
			begin := time.Now()
			if err := c.Run(); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			wall = append(wall, time.Since(begin).Seconds())
			cpu = append(cpu, (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds())
			peak = append(peak, float64(c.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)/1024)
		}
		wallTarget, peakTarget := "", ""
		if name == "compare" && !b.quick {
			wallTarget, peakTarget = "< 10", "< 300"
		}
		r.add(name+", wall", "s", wallTarget, ofMedian(wall))
		r.add(name+", processor time", "s", "", ofMedian(cpu))
		r.add(name+", peak memory", "MiB", peakTarget, ofMedian(peak))
		if name != "compare" {
			continue
		}
		var whole []float64
		for range b.pick(1, 3) {
			took, err := decodeAll(filepath.Join(dir, record.RecordsFile), n)
			if err != nil {
				return err
			}
			whole = append(whole, took.Seconds())
		}
		ratios := make([]float64, len(cpu))
		for i := range cpu {
			ratios[i] = cpu[i] / median(whole)
		}
		r.add(name+", processor time / that of decoding each record whole", "ratio", "< 1", ofMedian(ratios))
	}
	r.note("peak memory is getrusage's, which begins with what this program held when it started the other: an upper bound")
	r.note("%d synthetic records, %d bytes each on average; compare sums up 15 measures by three values of a factor in "+
		"six cells, with medians, intervals and tests", n, info.Size()/int64(n))
	return nil
}

// decodeAll is the processor time of reading the records one after the other.
func decodeAll(name string, n int) (time.Duration, error) {
	file, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	begin, err := processorTime()
	if err != nil {
		return 0, err
	}
	got := 0
	for _, err := range record.NewReader(file).All() {
		if err != nil {
			return 0, err
		}
		got++
	}
	end, err := processorTime()
	if err == nil && got != n {
		err = fmt.Errorf("%d records were read, %d are there", got, n)
	}
	return end - begin, err
}

func processorTime() (time.Duration, error) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}
