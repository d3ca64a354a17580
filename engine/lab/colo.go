package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/colo"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// COLOMachine is the machine type of guests that run in step: on q35, the lab's usual one, the secondary aborts.
const COLOMachine = "pc-i440fx-7.2"

// COLOTrial is what is done to a pair in step.
type COLOTrial struct {
	Run         time.Duration // in step, and then the end; 0, without a kill: until ctx ends
	Checkpoints int           // and until so many are whole
	Kill        record.Holder // the side that is killed then (SIGKILL): source, the primary; destination, the secondary; "": the secondary is let go
	Reprotect   bool          // give the guest a new secondary after a kill, for as long as Run
}

const killLimit = 20 * time.Second // of a QEMU, on a busy machine

const probeLimit = time.Minute // two QEMUs without a machine, started and ended, on a busy machine

// COLO keeps the lab's guest in step with a secondary on the other host while it is observed, does what the trial says, checks the guest's memory
// on the side that is left, and returns the whole record. Afterwards the lab's source is that side, and its destination the new
// secondary's QEMU, or none.
func (l *Lab) COLO(ctx context.Context, p colo.Plan, t COLOTrial, o plan.Options) (*record.Migration, error) {
	if l.destination == nil {
		return nil, errors.New("the lab has no QEMU for a secondary")
	}
	if l.spec.Storage.Disks > 0 {
		return nil, &plan.UnsupportedError{Feature: "mode colo of a guest with disks", Have: "it keeps memory and network in step: both sides would write to the disks"}
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
	rec.Downtime.GuestClock, rec.Downtime.GuestClockError = nil, nil // its loop ran through every checkpoint: no one gap is the failover's
	begin, end := failover(rec)
	observers.NoteFailover(rec, begin, end)
	return rec, coloErr
}

// inStep is one run of the engine's COLO, with the kill in it; afterwards the lab knows which of its QEMUs is left.
func (l *Lab) inStep(ctx context.Context, p colo.Plan, t COLOTrial, o plan.Options) (*record.Migration, error) {
	if p.Listen == "" {
		p.Listen = fmt.Sprintf("tcp:%s:0", l.network.Address(l.hostOf(l.destination)))
	}
	if p.Mirror == "" {
		p.Mirror = l.network.Address(l.hostOf(l.source)).String()
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
				func() <-chan time.Time { return protected }, func() <-chan time.Time { return time.After(t.Run) }, func() <-chan time.Time { return enough },
			} {
				select {
				case <-due():
				case <-killing.Done():
					return
				}
			}
			l.say("kill -9 of the %s, after %s in step", map[record.Holder]string{record.Source: "primary", record.Destination: "secondary"}[t.Kill], t.Run)
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
	if refused := rec.Error != nil && rec.Error.Stage == record.Initialization; !refused && (rec.GuestOn == record.Source || rec.GuestOn == record.Destination) {
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
	return &record.Migration{Schema: record.Schema, ID: record.NewID(now), StartedAt: now.Round(0), Origin: now, Mode: record.COLOMode,
		Outcome: record.Failed, GuestOn: record.Source, Stages: []record.Stage{}, Passes: []record.Pass{}, COLO: &record.COLOFigures{},
		Plan: map[string]any{"checkpoint_delay_ns": p.CheckpointDelay}, Error: &record.Error{Stage: record.Initialization, Message: "the secondary's agent port was not reached"}}
}

// hostOf is the host's name in the lab's network.
func (l *Lab) hostOf(vm *guest.VM) string {
	if vm.Host().Name() == l.network.Host(sourceHost).Name() {
		return sourceHost
	}
	return destinationHost
}

// reprotect gives the guest, which is left alone, a new secondary on the other host, and lets the two run in step.
func (l *Lab) reprotect(ctx context.Context, rec *record.Migration, p colo.Plan, t COLOTrial, o plan.Options) {
	f := rec.COLO
	f.Reprotected = record.Of(false)
	other, qemu := destinationHost, l.qemu[1]
	if l.hostOf(l.source) == destinationHost {
		other, qemu = sourceHost, l.qemu[0]
	}
	if err := l.attach(ctx, other, qemu); err != nil {
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
func (l *Lab) attach(ctx context.Context, host, qemu string) (err error) {
	if err := probeCOLO(ctx, l.network.Host(sourceHost), l.source.Spec().QEMU, qemu, filepath.Join(l.dir, "probe")); err != nil {
		return err
	}
	l.destination, err = l.startDestination(ctx, host, qemu)
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

// probeCOLO tries on two throw-away QEMUs without a machine whether the first enters COLO, and the second follows: nothing that QEMU says of
// itself tells, and the guest would have to be stopped to find out. They meet on host h, at sockets in dir, which is removed again.
// The primary is tried with its like first: what it cannot do is then not taken for the secondary's fault.
func probeCOLO(ctx context.Context, h host.Host, primary, secondary, dir string) error {
	if primary != secondary {
		if err := tryCOLO(ctx, h, primary, primary, dir); err != nil {
			return err
		}
	}
	return tryCOLO(ctx, h, primary, secondary, dir)
}

func tryCOLO(ctx context.Context, h host.Host, primary, secondary, dir string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	if err := h.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("try COLO: %w", err)
	}
	defer func() { err = errors.Join(err, h.RemoveAll(dir)) }()
	var conns [2]*qmp.Conn
	for i, qemu := range []string{primary, secondary} {
		d := filepath.Join(dir, string(rune('a'+i)))
		argv := []string{qemu, "-name", "qmig-probe", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-accel", "tcg",
			"-chardev", "socket,id=control,server=on,wait=off,path=" + guest.Spec{Dir: d}.Socket(guest.Control), "-mon", "chardev=control,mode=control"}
		if i == 1 {
			argv = append(argv, "-incoming", "defer")
		}
		vm, startErr := guest.StartIncoming(ctx, h, host.Command{Args: argv}, d)
		if startErr != nil {
			return fmt.Errorf("try COLO: %w", startErr)
		}
		defer func() { err = errors.Join(err, vm.Close()) }()
		nc, dialErr := vm.Dial(ctx, guest.Control)
		if dialErr != nil {
			return fmt.Errorf("try COLO: %w", dialErr)
		}
		if conns[i], err = qmp.NewConn(ctx, nc, qmp.Options{}); err != nil {
			return fmt.Errorf("try COLO: %w", err)
		}
		defer conns[i].Close()
		if err := conns[i].SetMigrateCapabilities(ctx, map[string]bool{"x-colo": true, "events": true}); err != nil {
			// 11.1.3 wants return-path with it, and with that its primary does not get into step with the stages of
			// engine.COLO (seen).
			return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO on QEMU %s", conns[i].Greeting().Version),
				Have: fmt.Sprintf("%v; mode colo works with primaries such as QEMU 7.2: try --qemu 7.2", err)}
		}
	}
	source, destination := conns[0], conns[1]
	address := "unix:" + filepath.Join(dir, "m")
	if err := destination.MigrateIncoming(ctx, address); err != nil {
		return fmt.Errorf("try COLO: %w", err)
	}
	if err := source.Migrate(ctx, address); err != nil {
		return fmt.Errorf("try COLO: %w", err)
	}
	for {
		a, err := source.QueryMigrate(ctx)
		if err != nil {
			return fmt.Errorf("try COLO: %w", err)
		}
		if a.Status == "completed" {
			return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO with QEMU %s as the primary", source.Greeting().Version),
				Have: "tried on a QEMU without a guest: its migration completes instead of entering COLO, as 10.0's do, which begin it only from a state that they have left by then (migration_completion in migration/migration.c): " +
					"try --qemu 7.2, or --source-qemu 7.2, for this one can be the secondary"}
		}
		b, err := destination.QueryMigrate(ctx)
		switch {
		case err != nil && destination.Err() == nil:
			return fmt.Errorf("try COLO: %w", err)
		case err != nil: // a secondary that cannot follow exits; the primary goes on to say what became of its migration
			b = &qmp.MigrationInfo{Status: "gone"}
		}
		switch {
		case a.Status == "colo" && b.Status == "colo":
			return nil
		case a.Status == "failed", b.Status == "failed", a.Status == "colo" && b.Status == "gone":
			return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO from QEMU %s to %s", source.Greeting().Version, destination.Greeting().Version),
				Have: strings.TrimSpace("tried on QEMUs without a guest: the migration failed " + a.ErrorDesc + b.ErrorDesc)}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("try COLO: the primary is %q and the secondary %q after %s", a.Status, b.Status, probeLimit)
		}
	}
}
