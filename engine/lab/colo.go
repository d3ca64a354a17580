package lab

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"qmigrate/engine/colo"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/wire"
)

// COLOMachine is the machine type of guests that run in step: on q35, the lab's usual one, the secondary aborts.
const COLOMachine = "pc-i440fx-7.2"

// COLOTrial is what is done to a pair in step.
type COLOTrial struct {
	Run         time.Duration // in step, and then the end; 0, without a kill: until ctx ends
	Checkpoints int           // and until so many are whole
	Kill        record.Holder // killed then by SIGKILL; the source is the primary; "": the secondary is let go
	Reprotect   bool          // give the guest a new secondary after a kill, for as long as Run
}

const killLimit = 20 * time.Second // of a QEMU, on a busy machine

// COLO keeps the lab's guest in step with a secondary on the other host while it is observed, does what the trial says,
// checks the guest's memory on the side that is left, and returns the whole record. Afterwards the lab's source is that
// side, and its destination the new secondary's QEMU, or none.
func (l *Lab) COLO(ctx context.Context, p colo.Plan, t COLOTrial, o plan.Options) (*record.Migration, error) {
	if l.destination == nil {
		return nil, errors.New("the lab has no QEMU for a secondary")
	}
	if l.spec.Storage.Disks > 0 {
		return nil, &plan.UnsupportedError{Feature: "mode colo of a guest with disks",
			Have: "it keeps memory and network in step: both sides would write to the disks"}
	}
	// The guest's beats hold its clock, which the two sides' never agree on: each would ask for a checkpoint.
	var beats wire.BeatReport
	if err := l.agent.Call(ctx, wire.DoBeat, wire.BeatSet{Interval: record.Of(time.Duration(0))}, &beats); err != nil {
		return nil, fmt.Errorf("turn the guest's heartbeats off: %w", err)
	}
	observers, before, err := l.observe(ctx)
	if err != nil {
		return nil, err
	}
	defer observers.Stop()

	rec, coloErr := l.inStep(ctx, p, t, o)
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyLimit)
	defer cancel()
	during, answers := l.ask(after, rec, "on the side that is left")
	if !answers {
		return rec, coloErr
	}
	if t.Reprotect && rec.Outcome == record.Recovered {
		l.reprotect(ctx, rec, p, t, o)
	}
	time.Sleep(settleTime) // for gaps to close and replies to come
	observers.Stop()
	observers.NoteRates(rec, before, during)
	coloErr = errors.Join(coloErr, l.check(after, rec))
	// its loop ran through every checkpoint: no one gap is the failover's
	rec.Downtime.GuestClock, rec.Downtime.GuestClockError = nil, nil
	begin, end := failover(rec)
	observers.NoteFailover(rec, begin, end)
	return rec, coloErr
}

// inStep is one run of the engine's COLO, with the kill in it; afterwards the lab knows which of its QEMUs is left.
func (l *Lab) inStep(ctx context.Context, p colo.Plan, t COLOTrial, o plan.Options) (*record.Migration, error) {
	if p.Listen == "" {
		p.Listen = fmt.Sprintf("tcp:%s:0", l.site.Address(l.hostOf(l.destination)))
	}
	if p.Mirror == "" {
		p.Mirror = l.site.Address(l.hostOf(l.source)).String()
	}
	victim := map[record.Holder]*guest.VM{record.Source: l.source, record.Destination: l.destination}[t.Kill]
	var kill sync.WaitGroup
	var killed time.Time
	var killErr error
	killing, stop := context.WithCancel(ctx)
	if victim == nil {
		p.Run, p.Checkpoints = t.Run, t.Checkpoints
	} else {
		protected, enough := make(chan time.Time), make(chan time.Time)
		p.Checkpointed = func(n int) {
			if n == 1 {
				close(protected)
			}
			if n == max(t.Checkpoints, 1) {
				close(enough)
			}
		}
		kill.Go(func() {
			for _, due := range []func() <-chan time.Time{
				func() <-chan time.Time { return protected },
				func() <-chan time.Time { return time.After(t.Run) },
				func() <-chan time.Time { return enough },
			} {
				select {
				case <-due():
				case <-killing.Done():
					return
				}
			}
			l.say("kill -9 of the %s, after %s in step",
				map[record.Holder]string{record.Source: "primary", record.Destination: "secondary"}[t.Kill], t.Run)
			killed = time.Now()
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), killLimit)
			defer cancel()
			killErr = victim.Kill(limited)
		})
	}
	arriving, err := dialAgent(ctx, l.destination)
	if err != nil {
		stop()
		return newCOLORecord(p), err
	}
	rec, coloErr := colo.Protect(ctx, connect.Endpoint(l.source), connect.Endpoint(l.destination), p, o)
	stop()
	kill.Wait()
	l.label(rec)
	for _, w := range l.warnings {
		rec.Warn("%s", w)
	}
	if killErr != nil {
		rec.Warn("the kill: %v", killErr)
	}
	if f := rec.COLO; !killed.IsZero() && f.LostAt != nil {
		f.Noticed = record.Of(max(rec.Origin.Add(*f.LostAt).Sub(killed), 0))
	}
	left, gone := l.source, l.destination
	if rec.GuestOn == record.Destination {
		l.agent.Close()
		l.agent, left, gone = arriving, l.destination, l.source
	} else {
		arriving.Close()
	}
	// A pair that was refused before anything changed stays as it was.
	refused := rec.Error != nil && rec.Error.Stage == record.Initialization
	if !refused && (rec.GuestOn == record.Source || rec.GuestOn == record.Destination) {
		if err := gone.Close(); err != nil {
			rec.Warn("remove the QEMU that has gone: %v", err)
		}
		l.source, l.destination = left, nil
		if err := l.save(); err != nil {
			rec.Warn("%v", err)
		}
	}
	return rec, coloErr
}

// newCOLORecord is for a run that did not begin.
func newCOLORecord(p colo.Plan) *record.Migration {
	now := time.Now()
	return &record.Migration{
		Schema: record.Schema, ID: record.NewID(now), StartedAt: now.Round(0), Origin: now,
		Mode: record.COLOMode, Outcome: record.Failed, GuestOn: record.Source,
		Stages: []record.Stage{}, Passes: []record.Pass{}, COLO: &record.COLOFigures{},
		Plan:  map[string]any{"checkpoint_delay_ns": p.CheckpointDelay},
		Error: &record.Error{Stage: record.Initialization, Message: "the secondary's agent port was not reached"},
	}
}

// reprotect gives the guest, which is left alone, a new secondary on the other host, and lets the two run in step.
func (l *Lab) reprotect(ctx context.Context, rec *record.Migration, p colo.Plan, t COLOTrial, o plan.Options) {
	f := rec.COLO
	f.Reprotected = record.Of(false)
	other := destinationHost
	if l.hostOf(l.source) == destinationHost {
		other = sourceHost
	}
	if err := l.attach(ctx, other); err != nil {
		rec.Warn("not protected again: %v", err)
		return
	}
	p.Listen, p.Mirror, p.Connect = "", "", ""
	again, err := l.inStep(ctx, p, COLOTrial{Run: max(t.Run, time.Second)}, o)
	if err != nil {
		rec.Warn("not protected again: %v", err)
	}
	*f.Reprotected = again.COLO.Protected != nil
	f.Reprotection = again.COLO.Protected
	if again.GuestOn != record.Source {
		rec.GuestOn = again.GuestOn
	}
	for _, w := range again.Warnings {
		rec.Warn("protected again: %s", w)
	}
}

// attach starts a new QEMU that waits for the lab's guest, on a host whose former one has gone.
func (l *Lab) attach(ctx context.Context, host string) (err error) {
	if err := l.tryCOLO(ctx, l.source.Spec().QEMU, l.hosts[host].qemu.Path); err != nil {
		return err
	}
	l.destination, err = l.startDestination(ctx, host)
	if err == nil {
		err = l.save()
	}
	return err
}

// failover is from when a side was lost to when the other one ran the guest; zero: there was none.
func failover(rec *record.Migration) (begin, end time.Time) {
	f := rec.COLO
	if f.LostAt == nil || f.Failover == nil {
		return begin, end
	}
	begin = rec.Origin.Add(*f.LostAt)
	end = begin.Add(*f.Failover)
	if f.Noticed != nil {
		begin = begin.Add(-*f.Noticed)
	}
	return begin, end
}
