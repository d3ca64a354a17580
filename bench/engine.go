package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/qmp"
)

// The ways to know the QEMUs' own description of their commands, 230 kB: asked for, read from the cache, or not needed
// since the plan names no parameter, as by default.
const (
	unknown = "unknown"
	known   = "known"
	unasked = "not needed"
)

// outcome is what one migration gave, durations in ms.
type outcome struct {
	schema   string
	polled   bool
	stages   map[record.StageName]float64
	overhead float64 // pre-copy .. activation less QEMU's total-time
	handover float64 // source completed .. both completed
	wire     float64
}

// engine migrates an idle guest to and fro, in six ways that take turns: three of the schema, with polling and without.
func (b *bench) engine(ctx context.Context, r *Result) error {
	for _, q := range b.qemus {
		if err := b.engineOf(ctx, r, q); err != nil {
			return fmt.Errorf("QEMU %s: %w", q.Version, err)
		}
	}
	r.note("idle guest of 256 MiB under TCG, no network card; each migration goes to a new QEMU, and the one before is " +
		"ended. Wall is first command .. RESUME")
	r.note("overhead is (pre-copy .. activation) - total-time, which QEMU gives in whole ms: each value is off by up to 1 ms")
	r.note("introspection: %q is a plan with a parameter and an empty cache, %q the same with its schemas in the cache, "+
		"%q a plan without one, as by default", unknown, known, unasked)
	return nil
}

func (b *bench) engineOf(ctx context.Context, r *Result, q guest.Binary) (err error) {
	name := "QEMU " + guest.Series(q.Version) + " "
	p, err := b.realGuest(ctx, q, "e")
	if err != nil {
		return err
	}
	defer p.close(&err)
	cache := filepath.Join(b.dir, "schema"+guest.Series(q.Version))
	migrate := func(schema string, polled bool, t *tracer) (*record.Migration, error) {
		var want plan.Plan
		o := plan.Options{Schemas: qmp.SchemaCache{Dir: cache}}
		if schema != unasked {
			want.Parameters = map[string]string{"announce-rounds": "5"} // QEMU's own default
		}
		if schema == unknown {
			empty, err := os.MkdirTemp(b.dir, "empty")
			if err != nil {
				return nil, err
			}
			o.Schemas.Dir = empty
		}
		if !polled {
			want.SampleInterval = -1
		}
		return p.migrate(ctx, want, o, t.around)
	}
	// The first are traced and not counted: a trace costs time, and the second fills the cache.
	for _, schema := range []string{unknown, known, known, unasked} {
		t := &tracer{}
		rec, err := migrate(schema, true, t)
		if err != nil {
			return err
		}
		if schema == known && t.asked("query-qmp-schema") {
			continue
		}
		r.note("%sintrospection %s: %s", name, schema, t.summary(rec))
	}
	var all []outcome
	ways := []outcome{{schema: unknown, polled: true}, {schema: known}, {schema: unasked, polled: true}, {schema: unknown},
		{schema: known, polled: true}, {schema: unasked}}
	for i := range b.pick(12, 60) {
		o := ways[(i+i/len(ways))%len(ways)] // who comes first changes
		rec, err := migrate(o.schema, o.polled, nil)
		if err != nil {
			return err
		}
		o.take(rec)
		all = append(all, o)
	}
	if err := p.hello(ctx); err != nil {
		return err
	}
	polled := func(o outcome) bool { return o.polled }
	unpolled := func(o outcome) bool { return !o.polled }
	schema := func(s string) func(outcome) bool { return func(o outcome) bool { return o.schema == s } }
	stage := func(names ...record.StageName) func(outcome) float64 {
		return func(o outcome) (sum float64) {
			for _, n := range names {
				sum += o.stages[n]
			}
			return sum
		}
	}
	wire := func(o outcome) float64 { return o.wire }
	before := stage(record.Initialization, record.Reservation)
	r.add(name+"overhead, polling each 10 ms", "ms", "<= 10",
		ofMedian(values(all, polled, func(o outcome) float64 { return o.overhead })))
	r.add(name+"overhead, no polling", "ms", "",
		ofMedian(values(all, unpolled, func(o outcome) float64 { return o.overhead })))
	r.add(name+"  of it: source completed .. destination completed", "ms", "",
		ofMedian(values(all, every, func(o outcome) float64 { return o.handover })))
	r.add(name+"  of it: commitment + activation (cont .. RESUME)", "ms", "< 1",
		ofMedian(values(all, every, stage(record.Commitment, record.Activation))))
	r.add(name+"  of it: the rest, before and after QEMU's own clock", "ms", "",
		ofMedian(values(all, every, func(o outcome) float64 {
			return o.overhead - o.handover - o.stages[record.Commitment] - o.stages[record.Activation]
		})))
	r.add(name+"initialization + reservation, introspection unknown", "ms", "<= 80",
		ofMedian(values(all, schema(unknown), before)))
	r.add(name+"initialization + reservation, introspection known", "ms", "<= 15",
		ofMedian(values(all, schema(known), before)))
	r.add(name+"initialization + reservation, introspection not needed", "ms", "<= 15",
		ofMedian(values(all, schema(unasked), before)))
	for _, s := range []record.StageName{record.Initialization, record.Reservation, record.PreCopy, record.StopAndCopy,
		record.Commitment, record.Activation} {
		r.add(name+"stage "+string(s)+", introspection known", "ms", "", ofMedian(values(all, schema(known), stage(s))))
	}
	on, off := values(all, polled, wire), values(all, unpolled, wire)
	r.add(name+"wire downtime, polling each 10 ms", "ms", "", ofMedian(on))
	r.add(name+"wire downtime, no polling", "ms", "", ofMedian(off))
	r.add(name+"wire downtime that polling adds", "ms", "< 1", ofDifference(on, off))
	return nil
}

// take reads a record.
func (o *outcome) take(rec *record.Migration) {
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	o.stages = map[record.StageName]float64{}
	for _, s := range rec.Stages {
		o.stages[s.Name] = ms(s.Duration)
	}
	own := rec.End(record.Activation).Sub(rec.End(record.Reservation))
	if rec.Total.QEMUTotal != nil {
		o.overhead = ms(own - *rec.Total.QEMUTotal)
	}
	if n := len(rec.Passes); n > 0 { // the last pass ends when the source says completed
		o.handover = ms(rec.End(record.StopAndCopy).Sub(rec.Origin) - rec.Passes[n-1].Start - rec.Passes[n-1].Duration)
	}
	if rec.Downtime.Wire != nil {
		o.wire = ms(*rec.Downtime.Wire)
	}
}

func values(all []outcome, which func(outcome) bool, value func(outcome) float64) (out []float64) {
	for _, o := range all {
		if which(o) {
			out = append(out, value(o))
		}
	}
	return out
}
