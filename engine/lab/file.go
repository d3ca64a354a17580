package lab

import (
	"context"
	"errors"
	"time"

	"qmigrate/engine/connect"
	"qmigrate/engine/lab/observe"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/snapshot"
)

// Save saves the lab's guest into a file, a background save observed, and has its memory checked where it is. A guest
// that is left paused is not checked: nothing in it runs.
func (l *Lab) Save(ctx context.Context, p plan.Plan, f snapshot.File, o plan.Options) (*record.Migration, error) {
	var observers *observe.Observers // nil: they would only see the guest stand still
	if f.Background {
		var err error
		if observers, err = l.startObservers(ctx); err != nil {
			return nil, err
		}
		select {
		case <-time.After(warmUp):
		case <-ctx.Done():
			observers.Stop()
			return nil, context.Cause(ctx)
		}
	}
	defer observers.Stop()
	if err := observe.ResetClock(ctx, l.agent); err != nil {
		return nil, err
	}
	rec, saveErr := snapshot.Save(ctx, connect.Endpoint(l.source), p, f, o)
	l.label(rec)
	if rec.GuestOn != record.Source || saveErr == nil && rec.Saved.RunState != "running" {
		return rec, saveErr
	}
	if f.Background {
		time.Sleep(settleTime)
	}
	observers.Stop()
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyLimit)
	defer cancel()
	saveErr = errors.Join(saveErr, l.check(after, rec))
	if x := rec.Snapshot; x != nil { // the longest times in which the guest did nothing while it was being saved
		observers.NoteStall(rec, &x.Stall, &x.StallError)
		x.StallGuest = rec.Downtime.GuestClock
	}
	rec.Downtime = record.Downtime{} // a save has none: what the guest's clock saw is a stall
	return rec, saveErr
}

// Restore loads the guest from a file into the lab's waiting QEMU on host b and has its memory checked there. What ran
// it before must have been stopped: the guest has one address.
func (l *Lab) Restore(ctx context.Context, p plan.Plan, f snapshot.File, o plan.Options) (*record.Migration, error) {
	arriving, err := dialAgent(ctx, l.destination)
	if err != nil {
		return nil, err
	}
	rec, restoreErr := snapshot.Restore(ctx, connect.Endpoint(l.destination), p, f, o)
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
	rec.Hosts.Kernel, rec.Hosts.CPU = connect.Machine(context.Background(), l.source.Host())
	if site, ok := l.site.(interface{ Name(host string) string }); ok {
		for _, h := range l.hosts {
			for _, at := range []*string{&rec.Hosts.Source, &rec.Hosts.Destination} {
				if *at == h.Name() {
					*at = site.Name(h.name)
				}
			}
		}
	}
}
