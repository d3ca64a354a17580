package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/guest"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// downtimes are those of the migrations of one kind.
type downtimes struct {
	anatomy    string
	wire, wall []time.Duration
	lines      []float64 // that both QEMUs wrote meanwhile
}

// anatomy is what taking the downtime apart costs: migrations with and without it take turns. Their difference is small
// beside what differs from one migration to the next, so the cost of one trace line is measured too, where nothing else
// goes on, and multiplied by how many were written.
func (b *bench) anatomy(ctx context.Context, r *Result) (err error) {
	q := b.qemus[0]
	p, err := b.realGuest(ctx, q, "a")
	if err != nil {
		return err
	}
	defer p.close(&err)
	on, off := &downtimes{anatomy: plan.AnatomyOn}, &downtimes{anatomy: plan.AnatomyOff}
	for i := range b.pick(2, 25) {
		for j := range 2 {
			d := on
			if (i+j)%2 == 1 { // who comes first changes
				d = off
			}
			if err := p.takeApart(ctx, d); err != nil {
				return err
			}
		}
	}
	line, err := b.traceLine(ctx, q)
	if err != nil {
		return err
	}
	name := "QEMU " + guest.Series(q.Version) + " "
	wireOn, wireOff := in(time.Millisecond, on.wire...), in(time.Millisecond, off.wire...)
	r.add(name+"wire downtime, anatomy on", "ms", "", ofMedian(wireOn))
	r.add(name+"wire downtime, anatomy off", "ms", "", ofMedian(wireOff))
	r.add(name+"wire downtime, on - off", "ms", "", ofDifference(wireOn, wireOff))
	r.add(name+"wall time, on - off", "ms", "", ofDifference(in(time.Millisecond, on.wall...), in(time.Millisecond, off.wall...)))
	r.add(name+"trace lines of both QEMUs", "lines", "", ofMedian(on.lines))
	r.add(name+"one trace line", "us", "", ofMedian(line))
	var share []float64
	for i, us := range line {
		share = append(share, us*median(on.lines)/1e3/on.wire[i%len(on.wire)].Seconds()/1e3)
	}
	r.add(name+"trace lines x one line / wire downtime", "ratio", "<= 0.01", ofMedian(share))
	r.note("guest of 256 MiB under TCG, idle, loopback, 50 device sections; QEMU writes and flushes each line itself, in " +
		"the thread that saves or loads; the wall time has the notes' fsync, the proof of both logs and the switching, all of " +
		"it before `migrate`")
	return nil
}

// takeApart migrates once and counts the lines of both logs.
func (p *pingPong) takeApart(ctx context.Context, d *downtimes) error {
	destination, err := p.next(ctx)
	if err != nil {
		return err
	}
	count := func() (n float64) {
		for _, vm := range []*guest.VM{p.vm, destination} {
			log, _ := os.ReadFile(vm.Spec().Socket(guest.TraceLog))
			n += float64(bytes.Count(log, []byte("\n")))
		}
		return n
	}
	before := count()
	rec, err := engine.Migrate(ctx, connect.Endpoint(p.vm), connect.Endpoint(destination), plan.Plan{Anatomy: d.anatomy},
		plan.Options{Traces: filepath.Join(p.base, "traces")})
	after := count()
	if err := errors.Join(err, p.moved(destination, err)); err != nil {
		return err
	}
	if rec.Downtime.Wire == nil {
		return errors.New("no wire downtime")
	}
	d.wire, d.wall = append(d.wire, *rec.Downtime.Wire), append(d.wall, rec.Total.Wall)
	d.lines = append(d.lines, after-before)
	return nil
}

// cast is a trace event that QEMU meets hundreds of times while it answers one of its commands.
const cast = "object*dynamic_cast_assert"

// traceLine is what one line costs, in us: what a QEMU without a guest takes to answer with the lines, less what it
// takes without them, divided by the number of lines.
func (b *bench) traceLine(ctx context.Context, q guest.Binary) (us []float64, err error) {
	vm, err := guest.Start(ctx, host.Local(), guest.Spec{Name: "bench-line", QEMU: q.Path, Memory: 16 << 20, Paused: true,
		Dir: filepath.Join(b.dir, "line")})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	nc, err := vm.Dial(ctx, guest.Control)
	if err != nil {
		return nil, err
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for range b.pick(3, 25) {
		var took [2]time.Duration
		var lines int
		for i, with := range []bool{false, true} {
			log, err := os.ReadFile(vm.Spec().Socket(guest.TraceLog))
			if err != nil {
				return nil, err
			}
			if err := c.SetTraceEvent(ctx, cast, with); err != nil {
				return nil, err
			}
			begun := time.Now()
			for range 20 {
				if _, err := c.CPUs(ctx); err != nil {
					return nil, err
				}
				if _, err := c.MachineType(ctx); err != nil {
					return nil, err
				}
				if _, err := c.MemorySize(ctx); err != nil {
					return nil, err
				}
			}
			took[i] = time.Since(begun)
			if err := c.SetTraceEvent(ctx, cast, false); err != nil {
				return nil, err
			}
			after, err := os.ReadFile(vm.Spec().Socket(guest.TraceLog))
			if err != nil {
				return nil, err
			}
			lines = bytes.Count(after[len(log):], []byte("\n"))
		}
		if lines < 100 {
			return nil, fmt.Errorf("only %d trace lines came of %s", lines, cast)
		}
		us = append(us, float64((took[1]-took[0]).Nanoseconds())/1e3/float64(lines))
	}
	return us, nil
}
