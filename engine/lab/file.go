package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/wire"
)

// Save saves the lab's guest into a file, a background save observed, and has its memory checked where it is. A guest that is left paused is not
// checked: nothing in it runs.
func (l *Lab) Save(ctx context.Context, p plan.Plan, f engine.File, o plan.Options) (*record.Migration, error) {
	watch := &watchers{}
	if f.Background {
		var err error
		if watch, err = l.watch(ctx); err != nil {
			return nil, err
		}
		select {
		case <-time.After(warmUp):
		case <-ctx.Done():
			watch.close()
			return nil, context.Cause(ctx)
		}
	}
	defer watch.close()
	if err := l.agent.Call(ctx, wire.DoClockReset, nil, nil); err != nil {
		return nil, fmt.Errorf("count the guest's looks at its clock: %w", err)
	}
	rec, saveErr := engine.Save(ctx, connect.Endpoint(l.source), p, f, o)
	l.label(rec)
	if rec.GuestOn != record.Source || saveErr == nil && rec.Saved.RunState != "running" {
		return rec, saveErr
	}
	if f.Background {
		time.Sleep(settleTime)
	}
	l.seen = watch.close()
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyLimit)
	defer cancel()
	saveErr = errors.Join(saveErr, l.check(after, rec))
	l.stalls(rec)
	rec.Downtime = record.Downtime{} // a save has none: what the guest's clock saw is a stall
	return rec, saveErr
}

// stalls are the longest times in which the guest did nothing while it was being saved.
func (l *Lab) stalls(rec *record.Migration) {
	x := rec.Snapshot
	if x == nil {
		return
	}
	arrivals := make([]time.Time, len(l.seen.beats))
	for i := range l.seen.beats {
		arrivals[i] = l.seen.beats[i].arrived
	}
	stage := rec.Stage(record.Snapshot)
	if g, ok := longestGap(arrivals, rec.Origin.Add(stage.Start), rec.End(record.Snapshot)); ok {
		g.put(rec, "heartbeat", &x.Stall, &x.StallError)
	}
	x.StallGuest = rec.Downtime.GuestClock
}

// Restore loads the guest from a file into the lab's waiting QEMU on host b and has its memory checked there. What ran it before must have
// been stopped: the guest has one address.
func (l *Lab) Restore(ctx context.Context, p plan.Plan, f engine.File, o plan.Options) (*record.Migration, error) {
	arriving, err := dialAgent(ctx, l.destination)
	if err != nil {
		return nil, err
	}
	rec, restoreErr := engine.Restore(ctx, connect.Endpoint(l.destination), p, f, o)
	l.label(rec)
	if rec.GuestOn != record.Destination || f.Paused {
		arriving.Close()
		return rec, restoreErr
	}
	l.agent.Close()
	l.agent = arriving
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyLimit)
	defer cancel()
	restoreErr = errors.Join(restoreErr, l.check(after, rec))
	rec.Downtime = record.Downtime{}
	return rec, restoreErr
}

// label notes what the lab knows of a record.
func (l *Lab) label(rec *record.Migration) {
	rec.Workload = l.spec.Workload.String()
	rec.QEMU.AcceleratorReason = l.accelerator.Reason
	l.noteHardware(rec)
	rec.Hosts.Kernel, rec.Hosts.CPU = connect.Machine()
}
