package run

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// cpuEvery is how many ticks share one reading of the cost, for reading the thread's clock costs as much as asking
// QEMU. After the first cpuReadings it is read less often still.
const (
	cpuEvery    = 8
	cpuReadings = 8
)

// poll is what runs beside the events: query-migrate on the source for the series, query-status on both sides for the
// bracket.
type poll struct {
	interval time.Duration
	origin   time.Time
	stop     context.CancelFunc
	all      sync.WaitGroup
	kicks    chan struct{}
	ran      chan struct{} // closed when the destination has said that it runs
	quiet    *quiet
	stopped  bool
	Turned   atomic.Int64 // passes that have ended by policy.Turns
	decider  *Decider     // that sees each sample, until it is over; nil: there is none

	// Each belongs to one goroutine until all has been waited for.
	samples  []record.Sample
	longest  time.Duration
	cpu      []time.Duration
	src, dst []answer
}

// answer is one reply of query-status: true at some instant between asked and answered.
type answer struct {
	asked, answered time.Time
	running         bool
}

// StartPolling starts the pollers; a negative interval starts none.
func (r *Run) StartPolling(ctx context.Context) {
	if r.Plan.SampleInterval < 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &poll{interval: r.Plan.SampleInterval, origin: r.Rec.Origin, stop: cancel, kicks: make(chan struct{}, 1),
		ran: make(chan struct{}), quiet: &r.quiet, decider: r.Decider}
	r.Poll = p
	first, done := context.WithTimeout(ctx, AnswerLimit) // one that hangs is until's to find
	// the bracket's outer edges, before anything moves
	p.src, p.dst = ask(first, r.Src.events, nil), ask(first, r.Dst.events, nil)
	done()
	halted := make(chan struct{})
	p.all.Go(func() { p.source(ctx, r.Src, r.Opts.Sampled, sync.OnceFunc(func() { close(halted) })) })
	p.all.Go(func() { // while the source runs the guest, the destination has nothing to tell
		select {
		case <-halted:
		case <-p.ran:
		case <-ctx.Done():
		}
		p.destination(ctx, r.Dst.events)
	})
}

// Polls tells whether the pollers are at work.
func (r *Run) Polls() bool { return r.Poll != nil && !r.Poll.stopped }

// StopPolling ends the pollers, and asks both sides once more so that the bracket closes.
func (r *Run) StopPolling(ctx context.Context) {
	p := r.Poll
	if p == nil || p.stopped {
		return
	}
	p.stopped = true
	p.stop()
	if r.Src.sampler != nil {
		_ = r.Src.sampler.SetDeadline(time.Now()) // a question that QEMU has not answered by now is given up
	}
	p.all.Wait()
	for s, answers := range map[*Side]*[]answer{r.Src: &p.src, r.Dst: &p.dst} {
		if !s.mute {
			*answers = ask(ctx, s.events, *answers)
		}
	}
}

// kick asks for a sample at once: at the edge of a pass.
func (p *poll) kick() {
	if p == nil {
		return
	}
	select {
	case p.kicks <- struct{}{}:
	default: // one is on its way
	}
}

// runs notes that the destination has said that it runs.
func (p *poll) runs() {
	if p == nil {
		return
	}
	select {
	case <-p.ran:
	default:
		close(p.ran)
	}
}

// source asks query-migrate and then query-status at each tick and at each kick that does not fall into a quiet, until
// ctx ends or the monitors go away. One goroutine does both, for most of what polling costs is waking up: side by side
// it was a third more. A tick that falls into an unanswered question is dropped. Halted is called when the source does
// not run.
func (p *poll) source(ctx context.Context, s *Side, sampled func(record.Sample), halted func()) {
	query := func(info *qmp.MigrationInfo) error { return s.sampler.QueryMigrate(info) }
	if s.sampler == nil {
		query = func(info *qmp.MigrationInfo) error {
			reply, err := s.Control.QueryMigrate(ctx)
			if err == nil {
				*info = *reply
			}
			return err
		}
	}
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	var info qmp.MigrationInfo
	var turns policy.Turns
	var err error // the first of query's, which is its last
	ended := func() bool { return err != nil && s.events.Err() != nil }
	for n := 0; !ended(); n++ {
		cost := p.cost(s, n)
		if err == nil && !p.quiet.now() {
			asked := time.Now()
			if err = query(&info); err == nil {
				answered := time.Now()
				p.longest = max(p.longest, answered.Sub(asked))
				x := sampleOf(&info, asked.Sub(p.origin), answered.Sub(p.origin))
				p.samples = append(p.samples, x)
				if turns.Ends(&x) {
					p.Turned.Add(1)
				}
				if sampled != nil {
					sampled(x)
				}
				if p.decider != nil {
					select {
					case p.decider.Samples <- x:
					case <-p.decider.Over:
					case <-ctx.Done():
						return
					}
				}
			}
		}
		if !p.quiet.now() { // it may have begun while an answer was waited for
			p.src = ask(ctx, s.events, p.src)
			if last := len(p.src) - 1; last >= 0 && !p.src[last].running {
				halted()
			}
			cost()
		}
		select {
		case <-tick.C:
		case <-p.kicks:
		case <-ctx.Done():
			return
		}
	}
}

// cost begins to measure what the n-th tick costs QEMU, if it is its turn, and returns what ends it.
func (p *poll) cost(s *Side, n int) func() {
	every := cpuEvery
	if len(p.cpu) >= cpuReadings {
		every *= cpuReadings
	}
	if s.Endpoint.Process == nil || n%every != every-1 || p.quiet.now() {
		return func() {}
	}
	before, err := s.Endpoint.Process.MainThreadCPU()
	return func() {
		if after, afterErr := s.Endpoint.Process.MainThreadCPU(); err == nil && afterErr == nil {
			p.cpu = append(p.cpu, after-before)
		}
	}
}

// sampleOf keeps what the reply had; what it had not is absent.
func sampleOf(info *qmp.MigrationInfo, asked, answered time.Duration) record.Sample {
	x := record.Sample{T: answered, Asked: asked, Side: record.Source, Status: info.Status}
	if info.Has.Contains(qmp.FieldTransferred | qmp.FieldRemaining) {
		x.Transferred, x.Remaining = record.Of(info.Transferred), record.Of(info.Remaining)
		x.DirtyPagesRate, x.Throughput = record.Of(info.DirtyPagesRate), record.Of(info.Throughput)
		x.SyncCount, x.Pages = record.Of(info.DirtySyncCount), record.Of(info.Normal+info.Duplicate)
	}
	if info.Has.Contains(qmp.FieldThrottlePercent) {
		x.Throttle = record.Of(info.ThrottlePercent)
	}
	if info.Has.Contains(qmp.FieldExpectedDowntime) {
		x.ExpectedDowntime = record.Of(info.ExpectedDowntime)
	}
	return x
}

// destination asks query-status at each tick that does not fall into a quiet, and when the destination has said that it
// runs, until it does, ctx ends or the monitor goes away.
func (p *poll) destination(ctx context.Context, c *qmp.Conn) {
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	for ran := p.ran; c != nil && c.Err() == nil; {
		select {
		case <-tick.C:
		case <-ran:
			ran = nil
		case <-ctx.Done():
			return
		}
		if p.quiet.now() {
			continue
		}
		p.dst = ask(ctx, c, p.dst)
		if last := len(p.dst) - 1; last >= 0 && p.dst[last].running {
			return
		}
	}
}

// ask appends one answer to query-status, if there is one.
func ask(ctx context.Context, c *qmp.Conn, answers []answer) []answer {
	if c == nil { // there is no such side: a file
		return answers
	}
	a := answer{asked: time.Now()}
	status, err := c.QueryStatus(ctx)
	if err != nil {
		return answers
	}
	a.answered, a.running = time.Now(), status.Running
	return append(answers, a)
}

// bracket derives the downtime from the two sides' answers: the source stopped between its last `running` was asked and
// its first other answer came, the destination started between its last other answer was asked and its first `running`
// came. The downtime is the middle of what that allows, and half its width the error; ok is false where an edge is
// missing. A source that stood still before counts since it ran again (zero: it never did), and a destination that
// stood still later until then.
func bracket(src, dst []answer, since, until time.Time) (downtime, uncertainty time.Duration, ok bool) {
	src = slices.DeleteFunc(slices.Clone(src), func(a answer) bool { return a.asked.Before(since) })
	dst = slices.DeleteFunc(slices.Clone(dst), func(a answer) bool { return !until.IsZero() && a.answered.After(until) })
	stop := slices.IndexFunc(src, func(a answer) bool { return !a.running })
	start := slices.IndexFunc(dst, func(a answer) bool { return a.running })
	if stop < 1 || start < 1 {
		return 0, 0, false
	}
	shortest := max(dst[start-1].asked.Sub(src[stop].answered), 0)
	longest := dst[start].answered.Sub(src[stop-1].asked)
	return (shortest + longest) / 2, (longest - shortest) / 2, true
}

// sampling is what the sampling was and what it cost QEMU.
func (p *poll) sampling() *record.Sampling {
	if p == nil || len(p.samples) == 0 {
		return nil
	}
	s := &record.Sampling{Samples: len(p.samples), LongestUnanswered: p.longest}
	var periods []time.Duration
	for i := 1; i < len(p.samples); i++ {
		periods = append(periods, p.samples[i].Asked-p.samples[i-1].Asked)
	}
	s.PeriodP50, s.PeriodP99 = Quantile(periods, 0.50), Quantile(periods, 0.99)
	if len(p.cpu) > 0 {
		s.QEMUCPU = record.Of(Quantile(p.cpu, 0.5) * time.Duration(len(p.samples)))
	}
	return s
}

// Quantile is the smallest value with at least the share q of all at or below it; 0 of none.
func Quantile(values []time.Duration, q float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, min(len(sorted)-1, int(q*float64(len(sorted))+0.999999)-1))]
}
