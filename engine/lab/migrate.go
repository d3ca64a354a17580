package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet"
)

// seen is what the observers collected around one migration.
type seen struct {
	pings      []time.Time
	sent, lost int
	beats      []beat
	echoes     []time.Time
	survived   bool
	resent     *int64
	changes    []hostnet.Change
	announced  []hostnet.Frame // by the guest, or for it, on the link
	first      []hostnet.Frame // of the guest out of the destination's TAP: one, or none
	cpu        *cpuSampler
	load       load
	ended      time.Time // when they were about to be ended
}

// Migrate moves the lab's guest to the other host while it is observed, checks its memory there, and returns the whole record. A
// failed migration returns its record too, with what the observers saw and the memory check on the side that holds the guest.
func (l *Lab) Migrate(ctx context.Context, p plan.Plan, o plan.Options) (_ *record.Migration, failed error) {
	if l.destination == nil {
		return nil, errors.New("the lab has no second QEMU to migrate to: what mode colo leaves is one, which runs the guest; make the lab anew")
	}
	watch, before, err := l.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer watch.close()
	began := watch.began
	run, err := l.setUp(ctx, p, o)
	if err != nil {
		return nil, err
	}
	rec, migrateErr := engine.Migrate(ctx, connect.Endpoint(l.source), connect.Endpoint(l.destination), run.plan, run.options)
	run.finish(rec, migrateErr != nil)
	l.label(rec)
	run.caps.note(rec)
	for _, w := range l.warnings {
		rec.Warn("%s", w)
	}

	defer func() { // whatever became of the guest
		l.seen.cpu.fill(rec)
		l.marks(rec)
		if l.seen.load != nil {
			failed = errors.Join(failed, l.seen.load.fill(rec, began, l.seen.ended))
		}
		l.addTallies(rec, began)
		if failed == nil {
			failed = l.tools.judge(rec)
		}
	}()

	// What follows is after the wall time. Ctrl-C does not stop it, for a result without its check is none; it is short.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyLimit)
	defer cancel()
	if rec.GuestOn != record.Destination && rec.GuestOn != record.Source {
		l.seen = watch.close()
		return rec, migrateErr
	}
	during, err := l.progress(after, l.agent)
	if failed := (workloadError{}); err != nil && !errors.As(err, &failed) {
		rec.Warn("the guest does not answer after the migration: %v", err)
		l.seen = watch.close()
		return rec, migrateErr
	}
	time.Sleep(l.tools.watch(cmp.Or(l.spec.Observe, settleTime))) // for gaps to close, replies to come and QEMU's announcements: at 0, 50, 200 and 450 ms by default
	l.seen = watch.close()
	l.tools.settle(after)
	l.rates(rec, before, during)
	l.events(after, rec, before, l.seen.ended)
	migrateErr = errors.Join(migrateErr, l.check(after, rec))
	l.checkDisks(after, rec)
	l.linkFigures(rec)
	return rec, migrateErr
}

// progress is how far the workload had come.
type progress struct {
	events          uint64
	asked, answered time.Time
	clock           time.Duration // the guest's, in between
	unit            string        // what an event is
}

// workloadError is a workload that ended by its own error: its check of its own result, for one.
type workloadError struct{ name, text string }

func (e workloadError) Error() string {
	return fmt.Sprintf("the guest's workload %s failed: %s", e.name, e.text)
}

func (l *Lab) progress(ctx context.Context, a *guest.Agent) (progress, error) {
	p := progress{asked: time.Now()}
	var s wire.Status
	if err := a.Call(ctx, wire.DoWorkloadStatus, wire.Bins{Max: -1}, &s); err != nil {
		return progress{}, fmt.Errorf("ask the guest for its workload: %w", err)
	}
	if s.State == wire.Failed {
		return progress{}, workloadError{s.Name, s.Error}
	}
	p.answered, p.events, p.clock, p.unit = time.Now(), s.Events, s.Started+s.Elapsed, s.Unit
	return p, nil
}

// begin starts the observers and the count of the guest's looks at its clock, and lets the workload run: the "before" of every rate and gap.
func (l *Lab) begin(ctx context.Context) (_ *watchers, before [2]progress, err error) {
	watch, err := l.watch(ctx)
	if err != nil {
		return nil, before, err
	}
	watch.began = time.Now()
	defer func() {
		if err != nil {
			watch.close()
		}
	}()
	if err := l.agent.Call(ctx, wire.DoClockReset, nil, nil); err != nil {
		return nil, before, fmt.Errorf("count the guest's looks at its clock: %w", err)
	}
	if before[0], err = l.progress(ctx, l.agent); err != nil {
		return nil, before, err
	}
	select {
	case <-time.After(l.tools.watch(cmp.Or(l.spec.Observe, warmUp))):
	case <-ctx.Done():
		return nil, before, context.Cause(ctx)
	}
	before[1], err = l.progress(ctx, l.agent)
	return watch, before, err
}

// watchers are the observers of one migration.
type watchers struct {
	began    time.Time // when all of them had begun
	pinger   *pinger
	listener *listener
	echoer   *echoer
	fdb      *hostnet.Watch
	announce *hostnet.FrameWatch
	first    *hostnet.FrameWatch
	cpu      *cpuSampler
	load     load // the observer's part of the workload; nil: it has none
	closed   bool
}

// watch starts the observers, on the third namespace of the link.
func (l *Lab) watch(ctx context.Context) (_ *watchers, err error) {
	w := &watchers{}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	observer, address := l.network.Observer(), l.network.GuestAddress(0)
	if w.fdb, err = l.network.Watch(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	nic := l.destination.Spec().NIC
	if w.announce, err = l.network.WatchAnnouncements(nic.MAC); err != nil {
		return nil, err
	}
	if w.first, err = l.network.WatchFirstFrame(l.hostOf(l.destination), nic.TAP, nic.MAC); err != nil {
		return nil, err
	}
	if w.listener, err = startListener(ctx, observer, netip.AddrPortFrom(l.network.Gateway(), beatPort)); err != nil {
		return nil, err
	}
	if every := l.spec.PingInterval; every > 0 {
		if w.pinger, err = startPinger(ctx, observer, address, every); err != nil {
			return nil, err
		}
		if w.echoer, err = startEchoer(ctx, observer, netip.AddrPortFrom(address, wire.DefaultEchoPort), every); err != nil {
			return nil, err
		}
	}
	if w.load, err = l.startLoad(ctx); err != nil {
		return nil, err
	}
	w.cpu = startCPUSampler(l.source, l.destination)
	return w, nil
}

// close ends the observers and returns what they saw; a second close returns nothing.
func (w *watchers) close() (s seen) {
	if w.closed {
		return s
	}
	w.closed, s.ended = true, time.Now()
	if w.cpu != nil {
		w.cpu.close()
		s.cpu = w.cpu
	}
	if w.load != nil {
		w.load.close()
		s.load = w.load
	}
	if w.echoer != nil {
		s.echoes, s.survived, s.resent = w.echoer.close()
	}
	if w.pinger != nil {
		s.pings, s.sent, s.lost = w.pinger.close()
	}
	if w.listener != nil {
		s.beats = w.listener.close()
	}
	if w.announce != nil {
		s.announced = w.announce.Close()
	}
	if w.first != nil {
		s.first = w.first.Close()
	}
	if w.fdb != nil {
		w.fdb.Close()
		for c := range w.fdb.C {
			s.changes = append(s.changes, c)
		}
	}
	return s
}

// check stops the workload and has every page of the guest's checked memory verified. A workload that failed is the error.
func (l *Lab) check(ctx context.Context, rec *record.Migration) (failed error) {
	var report wire.ClockReport
	if err := l.agent.Call(ctx, wire.DoClockStop, nil, &report); err != nil {
		rec.Warn("the guest's heartbeat does not answer: %v", err)
	} else if rec.Outcome == record.Completed && report.Turns > 0 {
		rec.Downtime.GuestClock, rec.Downtime.GuestClockError = record.Of(report.Longest), record.Of(report.Resolution)
	}
	toolsEnd := l.tools.finish(ctx, rec)
	var status wire.Status
	if err := l.agent.Call(ctx, wire.DoWorkloadStop, wire.Bins{Max: -1}, &status); err != nil {
		rec.Warn("the guest's workload does not answer: %v", err)
	} else if status.State == wire.Failed {
		failed = workloadError{status.Name, status.Error}
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
		rec.Warn("the memory check FAILED: %d of %d pages wrong; %d writes claimed, %d found", v.Wrong, v.Checked, v.Claimed, v.Found)
	}
	if v.Zero > 0 {
		rec.Warn("%d of the %d checked pages are zero by the workload's own choice: a lost write to one of them cannot be seen", v.Zero, v.Checked)
	}
	var hello wire.Hello
	if err := l.agent.Call(ctx, wire.DoHello, nil, &hello); err == nil && hello.BootID != l.hello.BootID {
		rec.Warn("the guest has rebooted: its boot id is another one")
	}
	return failed
}

// rates are the workload's events per second before and during the migration, by our clock.
func (l *Lab) rates(rec *record.Migration, before [2]progress, during progress) {
	rec.Guest = &record.Guest{}
	rate := func(a, b progress) float64 { return float64(b.events-a.events) / b.answered.Sub(a.answered).Seconds() }
	if during.events > 0 && before[1].events > before[0].events && during.events >= before[1].events {
		b, d := rate(before[0], before[1]), rate(before[1], during)
		rec.Guest.EventsBefore, rec.Guest.EventsDuring = &b, &d
		rec.Guest.SlowdownPercent = record.Of(100 * (1 - d/b))
	}
	// The guest's clock against ours: the least (arrival - guest clock) before and after, so that delays on the way drop out.
	begin, end := rec.Origin, rec.Origin.Add(rec.Total.Wall)
	var first, last []time.Duration
	for _, b := range l.seen.beats {
		lag := b.arrived.Sub(begin) - b.Clock
		switch {
		case b.arrived.Before(begin):
			first = append(first, lag)
		case b.arrived.After(end):
			last = append(last, lag)
		}
	}
	if len(first) > 1 && len(last) > 1 {
		slices.Sort(first)
		slices.Sort(last)
		rec.Guest.ClockSlip = record.Of(last[0] - first[0])
		rec.Guest.ClockSlipError = record.Of(max(first[len(first)/2]-first[0], last[len(last)/2]-last[0]))
	}
}

// observed is what the observers counted, and how often they looked.
func (l *Lab) observed() *record.Network {
	s := &l.seen
	n := &record.Network{PingsSent: s.sent, PingsLost: s.lost, Retransmits: s.resent}
	if every := l.spec.PingInterval; every > 0 {
		n.PingInterval, n.TCPSurvived = &every, &s.survived
	}
	if every := l.spec.BeatInterval; every > 0 {
		n.BeatInterval = &every
	}
	return n
}

// linkFigures fills in what was seen on the link.
func (l *Lab) linkFigures(rec *record.Migration) {
	s := &l.seen
	rec.Network = l.observed()
	if rec.Outcome != record.Completed {
		return
	}
	begin, end := rec.Origin, rec.End(record.Activation)
	d := &rec.Downtime
	if g, ok := longestGap(s.pings, begin, end); ok {
		g.put(rec, "ping", &d.Ping, &d.PingError)
	}
	arrivals := make([]time.Time, len(s.beats))
	for i := range s.beats {
		arrivals[i] = s.beats[i].arrived
	}
	if g, ok := longestGap(arrivals, begin, end); ok {
		g.put(rec, "heartbeat", &d.Heartbeat, &d.HeartbeatError)
	}
	if g, ok := longestGap(s.echoes, begin, end); ok {
		g.put(rec, "tcp", &d.TCP, &d.TCPError)
	}
	if stop := rec.End(record.PreCopy); rec.Downtime.Wire != nil {
		for _, o := range []struct {
			name     string
			arrivals []time.Time
		}{{"ping", s.pings}, {"heartbeat", arrivals}, {"tcp", s.echoes}} {
			if x, ok := around(o.name, o.arrivals, begin, stop, end); ok {
				rec.Network.Gaps = append(rec.Network.Gaps, x)
			}
		}
	}
	for _, f := range s.announced {
		if f.Type == hostnet.RARP && f.At.After(end) {
			rec.Network.RARP = append(rec.Network.RARP, f.At.Sub(end))
		}
	}
	for _, c := range s.changes {
		if c.Kind == hostnet.FDB && c.Action == hostnet.Add && c.Host == "link" && !c.Local &&
			c.MAC.String() == l.destination.Spec().NIC.MAC && strings.HasSuffix(c.Port, "-"+l.hostOf(l.destination)) && c.At.After(rec.End(record.PreCopy)) {
			rec.Network.AnnounceToFirstPacket = record.Of(c.At.Sub(end))
			break
		}
	}
}
