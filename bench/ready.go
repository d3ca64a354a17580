package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"qmigrate/hostnet"
)

// ready is the time from the start of `qmigrate demo` to its guest being ready, as a person waits for it: lab, both
// QEMUs, kernel, agent. The demo is then interrupted.
func (b *bench) ready(ctx context.Context, r *Result) error {
	var seconds []float64
	for range b.pick(1, 5) {
		t, err := b.demo(ctx)
		if err != nil {
			return err
		}
		seconds = append(seconds, t.Seconds())
	}
	r.add("`qmigrate demo` to a ready guest, TCG, caches warm", "s", "< 5", ofMedian(seconds))
	return nil
}

// readyLine begins what demo says at that moment.
const readyLine = "guest ready after"

func (b *bench) demo(ctx context.Context) (took time.Duration, err error) {
	c := exec.CommandContext(ctx, b.qmigrate, "demo", "--accelerator", "tcg", "--out", filepath.Join(b.dir, "records"))
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = time.Minute
	said, err := c.StderrPipe()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := c.Start(); err != nil {
		return 0, err
	}
	var lines []string
	for in := bufio.NewScanner(said); in.Scan(); {
		if took == 0 && strings.HasPrefix(in.Text(), readyLine) {
			took = time.Since(begin)
			if err := c.Process.Signal(os.Interrupt); err != nil {
				return 0, err
			}
		}
		lines = append(lines, in.Text())
	}
	err = c.Wait()
	var exit *exec.ExitError
	if took == 0 || err != nil && !(errors.As(err, &exit) && exit.ExitCode() == interrupted) {
		return 0, fmt.Errorf("qmigrate demo: %v: %s", err, strings.Join(lines, "; "))
	}
	return took, nil
}

// interrupted is the exit status after a signal.
const interrupted = 130

// network is how long the lab's hosts and link take to come and to go.
func (b *bench) network(ctx context.Context, r *Result) error {
	if os.Geteuid() != 0 {
		r.note("not measured: making namespaces needs root")
		return nil
	}
	var up, again, down []float64
	for i := range b.pick(5, 15) {
		s := hostnet.Spec{Owner: fmt.Sprintf("bench%d-%d", os.Getpid()%10000, i)}
		begin := time.Now()
		n, err := s.Apply(ctx)
		if err != nil {
			return err
		}
		applied := time.Now()
		_, err = s.Apply(ctx)
		repeated := time.Now()
		if err := errors.Join(err, n.Close()); err != nil {
			return err
		}
		closed := time.Now()
		up, again = append(up, in(time.Millisecond, applied.Sub(begin))...),
			append(again, in(time.Millisecond, repeated.Sub(applied))...)
		down = append(down, in(time.Millisecond, closed.Sub(repeated))...)
	}
	r.add("two hosts and their link, up", "ms", "", ofMedian(up))
	r.add("the same again, nothing to do", "ms", "", ofMedian(again))
	r.add("down", "ms", "", ofMedian(down))
	return nil
}
