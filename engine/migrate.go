package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/holder"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// Limits of the steps that nobody can interrupt.
const (
	undoLimit     = time.Minute      // the whole undo after a failure
	activateLimit = 30 * time.Second // `cont` .. RESUME
	figuresLimit  = 5 * time.Second  // the last figures
)

// migration is one run. Its state is touched by the goroutine of Migrate alone; the pollers own what they collect until
// they have ended.
type migration struct {
	plan plan.Plan
	opts plan.Options
	log  *slog.Logger
	rec  *record.Migration

	src, dst   *side
	parameters map[string]any // the plan's, in QEMU's types
	listening  bool           // migrate-incoming was sent: this destination can do nothing else any more
	paused     bool           // we stopped the source ourselves
	stream     *os.File       // the source's end of a stream by descriptors, until it has it
	held       string         // the run state of a guest that something else has stopped; "": nothing has
	undoing    bool           // what happens now is the undo's doing
	asked      <-chan string  // the source's run state, asked for after a STOP; nil once it is known
	issued     bool           // `migrate` was sent
	issuedAt   time.Time      // and when
	split      bool           // `migrate-start-postcopy` was sent
	yanked     bool           // the source's connection was closed in the switch to post-copy
	elsewhere  bool           // where the source connects to was not told by the destination itself
	contSent   bool           // `cont` was sent to the destination
	committed  bool           // and the guest is the destination's: a source that runs it again is stopped
	edge       time.Time      // the end of the last stage
	ended      bool           // the running stage has set its own end
	mendBy     time.Time      // when a post-copy that lost its link is given up; zero: something was sent since the last mend
	passes     []passEdge
	converge   *converge // the policy at work; nil: none, or no more
	mirrors    []*mirrorJob
	mirrored   bool                          // the source has nodes or jobs of ours
	undo       func(context.Context) verdict // where a failure leaves the guest: settle, or a file's or COLO's own
	far        atomic.Bool                   // a guest that was stopped first is far from its switch-over
	silent     <-chan *side                  // while they are watched: a side that has not answered for the limit of hanging
	unwatched  func()                        // ends the watching; nil: there is none
	alarm      <-chan time.Time              // it is time to look whether something is due
	poll       *poll
}

// stage is one step of the line.
type stage struct {
	name record.StageName
	run  func(context.Context) error
}

// Migrate moves the guest behind src to dst in the six stages of Clark et al., NSDI 2005. Until commitment an error leaves
// the guest running on src, after it on dst, and never on both. A guest that was paused moves and stays paused.
// The record is returned also with an error, which is a *StageError.
func Migrate(ctx context.Context, src, dst *endpoint.Endpoint, p plan.Plan, o plan.Options) (*record.Migration, error) {
	m := newMigration(src, dst, p, o)
	defer m.close()
	for _, s := range []stage{
		{record.Initialization, m.initialize},                                                       // both monitors answer; versions, capabilities and machine agree
		{record.Reservation, func(ctx context.Context) error { return m.promptly(ctx, m.reserve) }}, // both sides configured, dst listens
		{record.Storage, m.startMirrors},                                                            // disks are copied until they are in step; only where there are mirrors
		{record.PreCopy, m.preCopy},                                                                 // passes while the guest runs, until QEMU stops it
		{record.StopAndCopy, m.stopAndCopy},                                                         // STOP .. both completed: last pages and device state
		{record.Commitment, m.commit},                                                               // src stopped and dst completed: from here dst runs the guest
		{record.Activation, m.activate},                                                             // our cont on dst .. RESUME
	} {
		if s.name == record.Storage && len(m.mirrors) == 0 {
			continue
		}
		if err := m.do(ctx, s); err != nil {
			return m.rec, m.abort(ctx, s.name, err)
		}
	}
	err := m.confirm(ctx) // at once
	if err == nil && m.split {
		if err := m.followUp(ctx); err != nil { // post-copy: the rest of the memory follows the guest
			return m.rec, m.abort(ctx, m.rec.Stages[len(m.rec.Stages)-1].Name, err)
		}
	}
	if err == nil {
		m.finish(ctx)
		err = m.confirm(ctx) // and when everything that takes time is done
	}
	if err != nil {
		return m.rec, m.abort(ctx, record.Activation, err)
	}
	m.rec.Outcome, m.rec.GuestOn = record.Completed, record.Destination
	m.tellLife()
	return m.rec, nil
}

func newMigration(src, dst *endpoint.Endpoint, p plan.Plan, o plan.Options) *migration {
	m := &migration{plan: p.WithDefaults(), opts: o, log: o.Logger}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.src, m.dst = &side{role: record.Source, ep: src}, &side{role: record.Destination, ep: dst}
	now := time.Now()
	m.edge = now
	m.rec = &record.Migration{
		Schema: record.Schema, ID: record.NewID(now), StartedAt: now.Round(0), Origin: now,
		Mode: m.plan.Mode, Name: m.plan.Name(), Plan: m.plan.Words(), GuestOn: record.Unknown,
		Hosts:  record.Hosts{Source: src.Host, Destination: dst.Host},
		Stages: []record.Stage{}, Passes: []record.Pass{},
	}
	m.undo = m.settle
	if m.plan.PostCopies() {
		m.rec.PostCopy = &record.PostCopyFigures{}
	}
	return m
}

// do runs one stage, which begins where the one before ended.
func (m *migration) do(ctx context.Context, s stage) error {
	m.rec.Stages = append(m.rec.Stages, record.Stage{Name: s.name, Start: m.edge.Sub(m.rec.Origin)})
	m.ended = false
	err := s.run(ctx)
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = m.cause(ctx) // what stopped us, not which command it cut short
	}
	if !m.ended {
		m.end(time.Now())
	}
	m.log.Info("stage", "name", s.name, "duration", m.rec.Stage(s.name).Duration, "err", err)
	return err
}

// end ends the running stage: by a stage itself at the event that ends it, else by do.
func (m *migration) end(at time.Time) {
	m.ended = true
	s := &m.rec.Stages[len(m.rec.Stages)-1]
	m.edge = later(at, m.edge)
	s.Duration = m.edge.Sub(m.rec.Origin) - s.Start
}

// endEmpty ends the running stage at the given instant with no duration: the stage before it lasts until then.
func (m *migration) endEmpty(at time.Time) {
	n := len(m.rec.Stages)
	before, now := &m.rec.Stages[n-2], &m.rec.Stages[n-1]
	m.edge = later(at, m.edge)
	now.Start, now.Duration = m.edge.Sub(m.rec.Origin), 0
	before.Duration = now.Start - before.Start
	m.ended = true
}

// initialize opens the monitors and learns what both sides are; it changes nothing. Everything that this pair would refuse
// later is refused here.
func (m *migration) initialize(ctx context.Context) error {
	if err := cmp.Or(m.plan.Check(), m.plan.CheckAddresses()); err != nil {
		return err
	}
	if err := m.openBoth(ctx); err != nil {
		return err
	}
	if err := m.settleSource(ctx); err != nil {
		return err
	}
	if err := m.introspect(ctx); err != nil {
		return err
	}
	q := &m.rec.QEMU
	q.SourceVersion, q.DestinationVersion = m.src.facts.Version, m.dst.facts.Version
	q.Accelerator, q.Machine = m.src.facts.Accelerator, m.src.facts.Machine
	q.MemoryBytes, q.VCPUs = m.src.facts.MemoryBytes, m.src.facts.VCPUs
	for _, warning := range fit.UnsafeSource(m.src.facts) {
		m.rec.Warn("%s", warning)
	}
	var err error
	if m.parameters, err = fit.Resolve(m.plan, m.src.facts, m.dst.facts); err != nil {
		return err
	}
	if err := m.compare(ctx); err != nil {
		return err
	}
	if err := cmp.Or(m.checkTLS(), m.checkListen()); err != nil {
		return err
	}
	if err := m.preparePolicy(); err != nil {
		return err
	}
	m.warnTimedSyncs()
	if err := m.prepareMirrors(ctx); err != nil {
		return err
	}
	return fit.FirstMismatch(fit.Rules(m.src.facts, m.dst.facts, m.plan))
}

// openBoth opens the two sides at the same time. If one cannot be reached, the other may hold, paused, what an interrupted migration
// left; a destination that does not answer is then not waited for.
func (m *migration) openBoth(ctx context.Context) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	var both sync.WaitGroup
	var srcErr, dstErr error
	both.Go(func() {
		if srcErr = m.src.open(ctx, m.opts); srcErr != nil {
			time.AfterFunc(answerLimit, cancel)
		}
	})
	both.Go(func() { dstErr = m.dst.open(waiting, m.opts) })
	both.Wait()
	const mend = "%w; %s holds a guest and does not run it (%s): if an interrupted migration left it so, `qmigrate migrate --recover` with the same endpoints runs it where that is safe"
	switch {
	case srcErr != nil && dstErr == nil && m.dst.facts.MigrationStatus == "completed" && !m.dst.facts.Running:
		return fmt.Errorf(mend, srcErr, "destination "+m.dst.ep.Name, m.dst.facts.RunState)
	case srcErr == nil && dstErr != nil && !m.src.facts.Running && m.src.facts.RunState != "inmigrate":
		return fmt.Errorf(mend, dstErr, "source "+m.src.ep.Name, m.src.facts.RunState)
	}
	return cmp.Or(srcErr, dstErr)
}

// introspect reads the schemas that a plan with parameters is checked against. A QEMU whose schema is not known is busy with
// the answer for some 40 ms (7.2, 10.0), in which its guest's devices wait. So it is asked for only when it is needed, and a
// source that is the destination's twin is not asked.
func (m *migration) introspect(ctx context.Context) error {
	if len(m.plan.Parameters) == 0 && m.plan.Channels == plan.FormURI {
		return nil
	}
	read := func(s *side) (err error) {
		if s.facts.Schema, s.facts.SchemaKnown, err = m.opts.Schemas.Schema(ctx, s.control); err != nil {
			return fmt.Errorf("inspect %s %s: %w", s.role, s.ep.Name, err)
		}
		return nil
	}
	if m.src.facts.Twin(m.dst.facts) {
		err := read(m.dst)
		m.src.facts.Schema, m.src.facts.SchemaKnown = m.dst.facts.Schema, m.dst.facts.SchemaKnown
		return err
	}
	var both sync.WaitGroup
	var srcErr, dstErr error
	both.Go(func() { srcErr = read(m.src) })
	both.Go(func() { dstErr = read(m.dst) })
	both.Wait()
	return cmp.Or(srcErr, dstErr)
}

// reserve configures the destination, makes it listen, and only then configures the source.
func (m *migration) reserve(ctx context.Context) error {
	if err := m.secure(ctx); err != nil {
		return err
	}
	if err := m.dst.control.Stop(ctx); err != nil { // in inmigrate this only means: do not start by yourself
		return fmt.Errorf("keep destination paused: %w", err)
	}
	if err := m.configure(ctx, m.dst); err != nil {
		return err
	}
	m.listening = true
	if err := m.listen(ctx); err != nil {
		if strings.Contains(err.Error(), "already been started") { // it listens for somebody else, and is not ours to end
			m.listening = false
			return fmt.Errorf("listen on %s: %w: if a migration was interrupted, `qmigrate migrate --recover` with the same endpoints ends it", m.plan.Listen, err)
		}
		m.listening = !qmp.IsRefusal(err) // one that has refused waits as before, and may be asked again
		return fmt.Errorf("listen on %s: %w", m.plan.Listen, err)
	}
	if err := m.tells(ctx, m.dst); err != nil {
		return err
	}
	if m.plan.Connect == "" { // the destination itself says where
		var err error
		if m.plan.Connect, err = connectURI(ctx, m.dst.control, m.plan.Listen); err != nil {
			return err
		}
		m.elsewhere = !m.sameAddress()
	} else {
		m.elsewhere = !m.sameAddress() || m.plan.Connect != m.plan.Listen && m.plan.Tunnel == "" && m.plan.TLS == nil
	}
	if err := m.configure(ctx, m.src); err != nil {
		return err
	}
	var err error
	if m.rec.Capabilities, err = m.src.control.QueryMigrateCapabilities(ctx); err != nil {
		return fmt.Errorf("read capabilities back: %w", err)
	}
	if m.rec.Parameters, err = m.src.control.QueryMigrateParameters(ctx); err != nil {
		return fmt.Errorf("read parameters back: %w", err)
	}
	m.doubts()
	return nil
}

// sameAddress tells whether the address at which the destination listens means the destination to the source too: a
// socket's path and a loopback address do so on one host only. A tunnel leads where it was built to, and with TLS the
// other end has proved that it is the destination.
func (m *migration) sameAddress() bool {
	if m.plan.Tunnel != "" || m.plan.TLS != nil || m.src.ep.Host == m.dst.ep.Host {
		return true
	}
	kind, rest, _ := strings.Cut(m.plan.Connect, ":")
	if kind != "tcp" {
		return m.src.facts.Here && m.dst.facts.Here
	}
	host, _, err := net.SplitHostPort(rest)
	ip := net.ParseIP(host)
	return err == nil && host != "" && host != "localhost" && (ip == nil || !ip.IsLoopback() && !ip.IsUnspecified())
}

// configure sets one side's capabilities, those left on by somebody included, and its parameters.
func (m *migration) configure(ctx context.Context, s *side) error {
	want := map[string]bool{"events": true}
	for name, on := range s.facts.Capabilities {
		if on && name != "events" {
			want[name] = false
		}
	}
	for name, on := range m.plan.Capabilities {
		want[name] = on
	}
	if err := s.control.SetMigrateCapabilities(ctx, want); err != nil {
		return fmt.Errorf("set %s capabilities: %w", s.role, err)
	}
	if err := s.control.SetMigrateParameters(ctx, m.parametersOf(s)); err != nil {
		return fmt.Errorf("set %s parameters: %w", s.role, err)
	}
	return nil
}

// preCopy sends `migrate` and waits for the guest to be stopped by QEMU's own rule. A guest that is to be copied while it
// stands still is stopped first, and the stage is empty.
func (m *migration) preCopy(ctx context.Context) error {
	still := m.plan.Mode == record.StopAndCopyMode || !m.src.facts.Live()
	if still {
		m.converge = nil // there are no passes that a policy could end
	}
	m.startPolling(ctx)
	m.watch(ctx)
	if still {
		if m.src.facts.Live() && !(m.src.facts.RunState == facts.Asleep && m.src.facts.Wakes()) {
			if err := m.stopSource(ctx); err != nil {
				return err
			}
		}
		m.endEmpty(later(m.src.stopped, m.edge))
		return nil
	}
	m.beginPolicy()
	defer m.endPolicy()
	limited := ctx
	if m.plan.Timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, m.plan.Timeout, errTimeout)
		defer cancel()
	}
	if err := m.sendMigrate(limited); err != nil {
		return err
	}
	if s := m.plan.SwitchAfter; m.plan.Mode == record.HybridMode && s.Time > 0 {
		alarm := time.NewTimer(s.Time)
		defer alarm.Stop()
		m.alarm = alarm.C
	}
	for {
		if err := m.until(limited, func() bool { return m.src.still() || m.due() || m.src.done() }); err != nil {
			return err
		}
		if m.src.done() && m.src.again() {
			return errors.New("somebody has continued the source, which had sent everything")
		}
		if m.due() {
			if err := m.startPostCopy(ctx); err != nil {
				return err
			}
			ctx = context.WithoutCancel(ctx)
			limited = ctx
			if err := m.handOver(ctx, m.src.still); err != nil {
				return err
			}
			continue
		}
		if err := m.whoStopped(ctx, limited); err != nil {
			return err
		}
		if !m.src.again() {
			m.end(m.src.stopped)
			return nil
		}
	}
}

// stopSource stops a guest that is to be copied while it stands still. One that stands still already is held, and stays
// so. A guest that sleeps has no STOP before QEMU 9.0.
func (m *migration) stopSource(ctx context.Context) error {
	if m.catchUp(); m.src.still() {
		status, err := m.src.asked(ctx)
		if err != nil {
			return fmt.Errorf("ask source why the guest stands still: %w", err)
		}
		if stands(status.Status) {
			m.held = status.Status
			return nil
		}
	}
	m.paused = true
	if err := m.promptly(ctx, m.src.control.Stop); err != nil {
		return fmt.Errorf("stop source: %w", err)
	}
	return m.until(ctx, func() bool { return m.src.still() || !m.src.asleep.IsZero() })
}

// whoStopped finds out after a STOP whether it was the switch-over's or somebody else's `stop`. The source is asked, but not waited
// for: during the switch-over it answers late, and then the events have told. A guest that somebody holds is copied on until he
// continues it, or until the switch-over comes and it moves as it is: paused.
func (m *migration) whoStopped(ctx, limited context.Context) error {
	asked, control := make(chan string, 1), m.src.control // an undo may replace that one
	m.asked = asked
	go func() {
		status, _ := control.QueryStatus(ctx) // without an answer the status is empty
		asked <- status.Status
	}()
	switching := func() bool {
		return m.src.again() || m.src.handedOver() || slices.Contains([]string{"device", "postcopy-device", "pre-switchover"}, m.src.status)
	}
	wait := m.until
	if m.split { // which nobody can cancel
		wait = m.handOver
	}
	if err := wait(ctx, func() bool { return m.asked == nil || switching() }); err != nil || m.held == "" {
		return err
	}
	return wait(limited, switching)
}

// sendRest waits until the source has sent everything. A link that was lost without notice holds it for ever: in a
// write, or for the destination's last word. So a source that answers and has sent nothing for the limit of hanging
// is given up. One that does not answer is at its switch-over.
func (m *migration) sendRest(ctx context.Context) error {
	for sent, moved := int64(-1), time.Now(); ; {
		limited, cancel := context.WithTimeoutCause(ctx, answerLimit, errOnTheWay)
		err := m.until(limited, m.src.done)
		cancel()
		if !errors.Is(err, errOnTheWay) {
			return err
		}
		asked, cancel := context.WithTimeout(ctx, answerLimit)
		info, err := m.src.control.QueryMigrate(asked)
		cancel()
		switch limit := m.plan.HangLimit(); {
		case err != nil || info.Transferred != sent:
			moved = time.Now()
			if err == nil {
				sent = info.Transferred
			}
		case time.Since(moved) > limit && m.dst.done():
			return fmt.Errorf("the destination has all of it, and the source does not say so within %s: its link is lost", limit)
		case time.Since(moved) > limit:
			return fmt.Errorf("the source has stopped the guest and has sent nothing for %s: its link is lost", limit)
		}
	}
}

func (m *migration) sendMigrate(ctx context.Context) error {
	m.issued, m.issuedAt = true, time.Now()
	// Whoever wants to stop waits a little for QEMU's answer, for a refusal means that what is under way is somebody
	// else's.
	patient, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { time.AfterFunc(answerLimit, func() { cancel(context.Cause(ctx)) }) })()
	if err := m.promptly(patient, m.connect); err != nil {
		if qmp.IsRefusal(err) { // nothing of ours is under way: what QEMU says of a migration is somebody else's
			m.issued = false
			info, asked := m.src.control.QueryMigrate(ctx)
			if asked == nil && info.Has.Contains(qmp.FieldTransferred) { // under way, or completed from here
				return fmt.Errorf("migrate to %s: %w (the source's migration is %s)", m.plan.Connect, err, info.Status)
			}
		}
		return fmt.Errorf("migrate to %s: %w", m.plan.Connect, err)
	}
	return m.tells(ctx, m.src)
}

// stopAndCopy waits until the source has sent everything and the destination has loaded it.
func (m *migration) stopAndCopy(ctx context.Context) error {
	if !m.issued {
		if err := m.sendMigrate(ctx); err != nil {
			return err
		}
	}
	if m.split {
		ctx = context.WithoutCancel(ctx)
	}
	if m.plan.Capabilities["pause-before-switchover"] {
		wait := m.until
		if m.split {
			wait = m.handOver
		}
		if err := wait(ctx, func() bool { return m.src.status == "pre-switchover" || m.src.handedOver() }); err != nil {
			return err
		}
		if err := m.endMirrors(ctx); err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(ctx, activateLimit)
		err := m.src.control.MigrateContinue(limited, "pre-switchover")
		cancel()
		if err != nil {
			return fmt.Errorf("continue past pre-switchover: %w", err)
		}
	}
	if m.split { // the rest follows the guest
		if err := m.handOver(ctx, func() bool { return m.src.handedOver() && m.dst.loading() }); err != nil {
			return err
		}
		return m.surelyGiven(ctx)
	}
	if err := m.sendRest(ctx); err != nil {
		return err
	}
	if err := m.arrive(ctx); err != nil {
		return err
	}
	m.unwatch()
	m.end(later(m.src.completed, m.dst.completed))
	return nil
}

// commit is the decision, and it costs nothing: the source has stopped and sent all, the destination has loaded all (in post-copy:
// all but memory), and neither runs the guest. From here an error goes back to the source only if the destination is known never to have run.
func (m *migration) commit(ctx context.Context) error {
	m.catchUp()
	if m.dst.gone != nil {
		return m.dst.gone
	}
	if m.src.again() {
		return errors.New("somebody has continued the source, which runs the guest again")
	}
	if s := m.src; s.shutdown != "" && s.itself && m.held == "" { // just before it was stopped
		_ = m.drainFor(context.WithoutCancel(ctx), deathLimit, func() bool { return s.gone != nil })
		if s.gone != nil {
			return m.howEnded(s)
		}
		m.held = "shutdown" // -no-shutdown: what is on the destination is a guest that has shut down
	}
	if s := m.asTold(); !holder.MayRun(s) {
		return fmt.Errorf("the source says %q and the destination %q: it may not be told to run", m.src.status, m.dst.status)
	}
	return nil
}

// asTold is the situation by the events alone.
func (m *migration) asTold() holder.Situation {
	return holder.Situation{
		Source:      holder.QEMU{Run: holder.Finishing, Status: holder.StatusOf(m.src.status, true, false)},
		Destination: holder.QEMU{Status: holder.StatusOf(m.dst.status, false, false)},
		Tentative:   m.tentative(),
	}
}

// activate starts the guest on the destination. Nobody can cancel it.
func (m *migration) activate(ctx context.Context) error {
	if !m.src.facts.Live() {
		return nil
	}
	if m.held != "" { // tellLife says why
		return nil
	}
	// A guest that fell asleep on the way arrives asleep at a QEMU before 9.0, which takes `cont` and does nothing.
	if !m.src.asleep.IsZero() && m.dst.facts.Wakes() {
		if status, err := m.dst.asked(ctx); err == nil && status.Status == facts.Asleep {
			m.rec.Warn("the guest fell asleep (S3) during the migration: on the destination, QEMU %s, its clock stands "+
				"still when it wakes up, until `stop` and `cont`", m.dst.facts.Version)
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), activateLimit)
	defer cancel()
	m.contSent, m.committed = true, true
	if err := m.dst.control.Cont(ctx); err != nil {
		return fmt.Errorf("start guest on destination: %w", err)
	}
	if err := m.until(ctx, func() bool { return !m.dst.resumed.IsZero() }); err != nil {
		return err
	}
	m.end(m.dst.resumed)
	return nil
}

// confirm looks once more, after the wall time: is the destination alive, and has nobody continued the source meanwhile, which
// QEMU would not refuse? The guest is the destination's now, so such a source is stopped again.
func (m *migration) confirm(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	status, err := m.dst.asked(ctx)
	if m.dst.runState = cmp.Or(status.Status, m.dst.runState); m.dst.control.Err() != nil {
		return fmt.Errorf("destination QEMU went away: %w", m.dst.control.Err())
	} else if err != nil {
		m.rec.Warn("the destination has started the guest and does not answer since: %v", err)
	}
	if err := m.src.ask(ctx); err != nil { // its events come before its answer, and take sees to a source that runs
		m.log.Info("ask source", "err", err)
	}
	m.catchUp()
	return nil
}

// stopAgain stops a source that runs although the guest is the destination's: somebody has continued it, which QEMU
// does not refuse, or QEMU itself has. A post-copy whose link is lost while the source waits for the destination's
// last word fails there, and 10.0 and newer then run the guest (migration/migration.c, migration_completion and
// migration_iteration_finish).
func (m *migration) stopAgain() {
	ctx, cancel := context.WithTimeout(context.Background(), answerLimit)
	defer cancel()
	who, past := "somebody has continued the source", "somebody continued the source"
	if m.split && (m.src.status == "failed" || m.src.status == "failing") {
		who, past = "the link was lost at the end of post-copy, and the source QEMU has continued its guest", "the link was lost at the end of post-copy, and the source QEMU continued its guest"
	}
	if err := m.src.control.Stop(ctx); err != nil {
		m.rec.Warn("%s after the switch-over, and it does not stop (%v): THE GUEST RUNS TWICE: end %s", who, err, m.src.ep.Name)
	} else {
		m.rec.Warn("%s after the switch-over: the guest ran twice until the source was stopped again; end %s", past, m.src.ep.Name)
	}
}

// catchUp takes in the events that have come.
func (m *migration) catchUp() {
	for {
		select {
		case ev, ok := <-m.src.C:
			m.take(m.src, ev, ok)
		case ev, ok := <-m.dst.C:
			m.take(m.dst, ev, ok)
		default:
			return
		}
	}
}

// until takes in the events of both sides until done, or until one side has failed or gone away, or ctx ends.
func (m *migration) until(ctx context.Context, done func() bool) error {
	for {
		if done() {
			return nil
		}
		if err := m.broken(); err != nil {
			return err
		}
		select {
		case ev, ok := <-m.src.C:
			m.take(m.src, ev, ok)
		case ev, ok := <-m.dst.C:
			m.take(m.dst, ev, ok)
		case state := <-m.asked:
			if m.asked = nil; stands(state) {
				m.held = state
			}
		case x := <-m.observed():
			if err := m.decide(ctx, x); err != nil {
				return err
			}
		case s := <-m.silent:
			if m.catchUp(); done() { // nobody took in what came while a question waited for its answer
				return nil
			}
			if err := m.hangs(s); err != nil {
				return err
			}
		case <-m.alarm:
			m.alarm = nil
		case <-ctx.Done():
			return m.cause(ctx)
		}
	}
}

// cause says why ctx ended, with how far the migration had come when it was the plan's time-out.
func (m *migration) cause(ctx context.Context) error {
	err := context.Cause(ctx)
	if errors.Is(err, errNotInStep) {
		return fmt.Errorf("%w of %s: raise --timeout, or let the guest's writes wait for the copy: copy-mode=write-blocking", err, m.plan.Timeout)
	}
	if errors.Is(err, errTimeout) {
		return fmt.Errorf("%w of %s (pass %d): raise --timeout, --max-bandwidth or --downtime-limit", err, m.plan.Timeout, len(m.passes))
	}
	return err
}

// broken is why the migration cannot go on, as far as the events told.
func (m *migration) broken() error {
	for _, s := range []*side{m.src, m.dst} {
		failed, cancelled := s.broke(), s.status == "cancelled" || s.status == "cancelling"
		switch {
		case s.shutdown != "" && !s.livesOn() && (failed || cancelled), // it ends its migration on its way out
			s.shutdown != "" && s.gone != nil && (s.itself || s == m.dst || !s.done()):
			return m.howEnded(s)
		case failed:
			return fmt.Errorf("%s QEMU: migration failed%s", s.role, s.why())
		case cancelled:
			return fmt.Errorf("%s QEMU: migration was cancelled by somebody else", s.role)
		}
	}
	if m.src.gone != nil && m.src.status != "completed" {
		return m.src.gone
	}
	if m.dst.gone != nil {
		return m.dst.gone
	}
	return m.brokenMirror()
}

// take notes one event.
func (m *migration) take(s *side, ev qmp.Event, ok bool) {
	if !ok {
		s.lost()
		return
	}
	at := s.at(ev)
	m.log.Debug("event", "side", s.role, "name", ev.Name, "data", string(ev.Data), "lag", ev.Arrived.Sub(at))
	if s == m.src {
		m.takeMirror(ev, at)
		if ev.Name == "RESUME" {
			m.asked = nil // an answer to a question about the STOP before it would be stale
			if !m.undoing {
				m.held = ""
			}
		}
	}
	if s == m.src && ev.Name == "RESUME" && m.committed {
		defer m.stopAgain()
	}
	if pass, ok := s.take(ev, at, m.undisturbed(s)); ok && s == m.src {
		m.passes = append(m.passes, passEdge{raw: pass, at: at})
		m.poll.kick()
	}
}

// undisturbed tells whether a RESUME of this side now is not the migration's own: its undo's, a failure's, or the
// destination's first.
func (m *migration) undisturbed(s *side) bool {
	switch {
	case m.undoing:
		return false
	case s == m.dst:
		return !s.started.IsZero()
	}
	return slices.Contains([]string{"", "none", "setup", "active"}, s.status)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// finish reads the last figures and derives the passes and downtimes; it comes after the wall time.
func (m *migration) finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), figuresLimit)
	defer cancel()
	var last *qmp.MigrationInfo
	if !m.src.mute {
		last = m.src.lastFigures(ctx)
	}
	m.stopPolling(ctx)
	m.rec.Total.Wall = m.edge.Sub(m.rec.Origin)
	m.noteMirrors()
	m.figures(last)
	m.unsecure(ctx)
}

// close ends the pollers and lets the monitors go.
func (m *migration) close() {
	m.unwatch()
	ctx, cancel := context.WithTimeout(context.Background(), answerLimit)
	defer cancel()
	m.stopPolling(ctx)
	if m.stream != nil {
		m.stream.Close()
	}
	m.src.close()
	m.dst.close()
}

// waitForEnd is how long a migration waits for something on the source that ends by itself.
const waitForEnd = 10 * time.Second
