package lab

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/lab/load"
	"qmigrate/engine/lab/observe"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// Migrate moves the lab's guest to the other host while it is observed, checks its memory there, and returns the whole
// record. A failed migration returns its record too, with what the observers saw and the memory check on the side that
// holds the guest.
func (l *Lab) Migrate(ctx context.Context, p plan.Plan, o plan.Options) (_ *record.Migration, err error) {
	if l.destination == nil {
		return nil, errors.New("the lab has no second QEMU to migrate to: what mode colo leaves is one, " +
			"which runs the guest; make the lab anew")
	}
	observers, before, err := l.observe(ctx)
	if err != nil {
		return nil, err
	}
	defer observers.Stop()
	run, err := l.setUp(ctx, p, o)
	if err != nil {
		return nil, err
	}
	rec, err := engine.Migrate(ctx, l.endpoint(l.source), l.endpoint(l.destination), run.plan, run.options)
	run.finish(rec)
	l.label(rec)
	run.caps.note(rec)
	for _, w := range l.warnings {
		rec.Warn("%s", w)
	}
	// What follows is after the wall time. Ctrl-C does not stop it: a result needs its check, and this is quick.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyLimit)
	defer cancel()
	during, answers := l.ask(after, rec, "after the migration")
	if answers {
		// for gaps to close, replies to come and QEMU's announcements: at 0, 50, 200 and 450 ms by default
		time.Sleep(l.tools.Watch(cmp.Or(l.spec.Observe, settleTime)))
	}
	observers.Stop()
	if answers {
		l.tools.Settle(after)
		observers.NoteRates(rec, before, during)
		observers.NoteEvents(after, l.agent, rec, before, l.spec.Workload.Type().Report)
		err = errors.Join(err, l.check(after, rec))
		l.disks.Check(after, l.agent, rec)
	}
	failed := observers.Note(rec, answers)
	l.rows.Note(rec, observers.Began())
	err = errors.Join(err, failed)
	if err == nil {
		err = l.tools.Judge(rec)
	}
	return rec, err
}

// ask looks at the workload of a guest that a run has ended for. It is false where no side holds the guest, or where it
// does not answer.
func (l *Lab) ask(ctx context.Context, rec *record.Migration, when string) (_ observe.Progress, answers bool) {
	if rec.GuestOn != record.Destination && rec.GuestOn != record.Source {
		return observe.Progress{}, false
	}
	during, err := observe.Look(ctx, l.agent)
	if failed := (observe.WorkloadError{}); err != nil && !errors.As(err, &failed) {
		rec.Warn("the guest does not answer %s: %v", when, err)
		return during, false
	}
	return during, true
}

// observe starts the observers and the count of the guest's looks at its clock, and lets the workload run: the "before"
// of every rate and gap.
func (l *Lab) observe(ctx context.Context) (_ *observe.Observers, before [2]observe.Progress, err error) {
	observers, err := l.startObservers(ctx)
	if err != nil {
		return nil, before, err
	}
	defer func() {
		if err != nil {
			observers.Stop()
		}
	}()
	if err := observe.ResetClock(ctx, l.agent); err != nil {
		return nil, before, err
	}
	if before[0], err = observe.Look(ctx, l.agent); err != nil {
		return nil, before, err
	}
	select {
	case <-time.After(l.tools.Watch(cmp.Or(l.spec.Observe, warmUp))):
	case <-ctx.Done():
		return nil, before, context.Cause(ctx)
	}
	before[1], err = observe.Look(ctx, l.agent)
	return observers, before, err
}

// startObservers starts them in the third namespace of the link.
func (l *Lab) startObservers(ctx context.Context) (*observe.Observers, error) {
	observer, address := l.site.Observer(), l.site.GuestAddress(0)
	return observe.Start(ctx, observe.Spec{
		Network: l.site, Observer: observer,
		Source: l.source, Destination: l.destination, From: l.hostOf(l.source), To: l.hostOf(l.destination),
		Ping: address, Echo: netip.AddrPortFrom(address, wire.DefaultEchoPort), PingInterval: l.spec.PingInterval,
		Beats: netip.AddrPortFrom(l.site.Gateway(), beatPort), BeatInterval: l.spec.BeatInterval,
		Load: load.Client(l.spec.Workload, observer, address),
	})
}

// check stops the workload and has every page of the guest's checked memory verified. A workload that failed is the
// error.
func (l *Lab) check(ctx context.Context, rec *record.Migration) (failed error) {
	observe.NoteClock(ctx, l.agent, rec)
	toolsEnd := l.tools.Finish(ctx, rec)
	var status wire.Status
	if err := l.agent.Call(ctx, wire.DoWorkloadStop, wire.Bins{Max: -1}, &status); err != nil {
		rec.Warn("the guest's workload does not answer: %v", err)
	} else if status.State == wire.Failed {
		failed = observe.WorkloadError{Name: status.Name, Text: status.Error}
		rec.Warn("%v", failed)
	} else if s := status.Score; s != nil {
		if rec.Guest == nil {
			rec.Guest = &record.Guest{}
		}
		rec.Guest.Score = &record.Score{Value: s.Value, Unit: s.Unit}
	}
	toolsEnd(status)
	var v wire.Verified
	if err := l.agent.Call(ctx, wire.DoVerify, nil, &v); err != nil {
		rec.Warn("the guest's memory was not checked: %v", err)
		return failed
	}
	rec.MemoryCheck = &record.MemoryCheck{PagesChecked: v.Checked, PagesWrong: v.Wrong}
	if !v.OK() {
		rec.Warn("the memory check FAILED: %d of %d pages wrong; %d writes claimed, %d found", v.Wrong, v.Checked, v.Claimed,
			v.Found)
	}
	if v.Zero > 0 {
		rec.Warn("%d of the %d checked pages are zero by the workload's own choice: "+
			"a lost write to one of them cannot be seen", v.Zero, v.Checked)
	}
	var hello wire.Hello
	if err := l.agent.Call(ctx, wire.DoHello, nil, &hello); err == nil && hello.BootID != l.hello.BootID {
		rec.Warn("the guest has rebooted: its boot id is another one")
	}
	return failed
}

// endpoint is one of the lab's QEMUs. Of a QEMU of another host it is found by words, as the user would write them:
// over a new channel when one has broken.
func (l *Lab) endpoint(vm *guest.VM) *endpoint.Endpoint {
	if _, far := vm.Host().(*host.Far); far && l.spec.Pool != nil {
		if e, err := connect.Parse(endpointOf(vm.Host().Name(), vm.Spec().Dir), l.spec.Pool); err == nil {
			return e
		}
	}
	return connect.Endpoint(vm)
}
