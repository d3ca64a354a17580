package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/guest"
	"qmigrate/hostnet/host"
	"qmigrate/qmp/qmptest"
)

// again is a second bare loop: its ratio to the first is what this machine's noise makes of 1.
const again = "bare again"

// roundTrip asks one monitor for query-migrate with each driver in turn. One monitor serves one client, so they take
// turns by blocks, in an order that changes; a ratio is that of two medians of one round, and the figure the median
// over the rounds. The source of a completed migration is asked, because its answer is a whole one (600 bytes) and
// nothing runs in it.
func (b *bench) roundTrip(ctx context.Context, r *Result) error {
	for _, q := range b.qemus {
		if err := b.roundTripOf(ctx, r, q); err != nil {
			return fmt.Errorf("QEMU %s: %w", q.Version, err)
		}
	}
	r.note("%q is the same write-read loop a second time: its ratio is this run's noise", again)
	return nil
}

func (b *bench) roundTripOf(ctx context.Context, r *Result, q guest.Binary) (err error) {
	p, err := b.firmware(ctx, q)
	if err != nil {
		return err
	}
	defer p.close(&err)
	destination, err := p.next(ctx)
	if err != nil {
		return err
	}
	if _, err := engine.Migrate(ctx, connect.Endpoint(p.vm), connect.Endpoint(destination), plan.Plan{SampleInterval: -1},
		plan.Options{}); err != nil {
		return err
	}
	if err := destination.Close(); err != nil { // quiet
		return err
	}
	dial := func(ctx context.Context) (net.Conn, error) { return p.vm.Dial(ctx, guest.Sampler) }
	path := p.vm.Spec().Socket(guest.Sampler)
	drivers := []string{qmptest.Bare, qmptest.Sampler, qmptest.Conn, qmptest.SocketMonitor, again}
	medians := map[string][]float64{}
	for round := range b.pick(12, 60) {
		for i := range drivers {
			name := drivers[(i+round)%len(drivers)]
			t, err := block(ctx, name, dial, path)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			medians[name] = append(medians[name], t)
		}
	}
	name := "QEMU " + guest.Series(q.Version) + " "
	ratio := func(driver string) estimate {
		out := make([]float64, len(medians[driver]))
		for i, v := range medians[qmptest.Sampler] {
			out[i] = v / medians[driver][i]
		}
		return ofMedian(out)
	}
	r.add(name+"sampler / bare loop", "ratio", "<= 1.1", ratio(qmptest.Bare))
	r.add(name+"sampler / go-qemu SocketMonitor", "ratio", "< 1", ratio(qmptest.SocketMonitor))
	r.add(name+"sampler / our Conn", "ratio", "", ratio(qmptest.Conn))
	noise := make([]float64, len(medians[again]))
	for i, v := range medians[again] {
		noise[i] = v / medians[qmptest.Bare][i]
	}
	r.add(name+again+" / bare loop", "ratio", "", ofMedian(noise))
	for _, driver := range drivers[:4] {
		r.add(name+driver+", p50 of a block", "us", "", ofMedian(medians[driver]))
	}
	for _, driver := range drivers[1:4] {
		target := ""
		if driver == qmptest.Sampler {
			target = "= 0"
		}
		n, err := allocations(ctx, driver, dial, path)
		if err != nil {
			return fmt.Errorf("%s: %w", driver, err)
		}
		r.add(name+driver+", allocations a call", "", target, exactly(n, calls))
	}
	return nil
}

const (
	blockSize = 100  // calls that a driver makes in its turn
	warmUp    = 10   // calls before them
	calls     = 1000 // over which allocations are counted
)

// block is the median time of one call, in us, over one turn of a driver.
func block(ctx context.Context, name string, dial func(context.Context) (net.Conn, error), path string) (float64,
	error) {
	if name == again {
		name = qmptest.Bare
	}
	call, hangUp, err := qmptest.Driver(ctx, name, dial, path)
	if err != nil {
		return 0, err
	}
	defer hangUp()
	times := make([]time.Duration, 0, blockSize)
	for k := -warmUp; k < blockSize; k++ {
		begin := time.Now()
		if err := call(); err != nil {
			return 0, err
		}
		if took := time.Since(begin); k >= 0 {
			times = append(times, took)
		}
	}
	slices.Sort(times)
	return float64(times[blockSize/2]) / float64(time.Microsecond), ctx.Err()
}

// allocations is how often one call allocates, on average and rounded down.
func allocations(ctx context.Context, name string, dial func(context.Context) (net.Conn, error), path string) (float64,
	error) {
	call, hangUp, err := qmptest.Driver(ctx, name, dial, path)
	if err != nil {
		return 0, err
	}
	defer hangUp()
	n := testing.AllocsPerRun(calls, func() {
		if e := call(); e != nil {
			err = e
		}
	})
	return n, err
}

// firmware is a guest that sits in its firmware: for what does not depend on the guest.
func (b *bench) firmware(ctx context.Context, q guest.Binary) (*pingPong, error) {
	p := &pingPong{base: filepath.Join(b.dir, "f"+guest.Series(q.Version)),
		spec: guest.Spec{QEMU: q.Path, Memory: 64 << 20}}
	return p, p.start(ctx, host.Local())
}
