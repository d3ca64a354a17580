package run

import (
	"context"
	"fmt"
	"strings"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/facts"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// timing is how the events of one side are placed on our clock.
type timing struct {
	follower *clock.Follower // nil: nobody can look at that host's clock
	placed   []placed        // each event, in the order in which they came
}

// placed is one event on our clock.
type placed struct {
	theirs, came time.Time // QEMU's own stamp; when it was here
	clock.Placed
}

// follow looks at the side's clock from now on.
func (s *Side) follow(ctx context.Context) (err error) {
	if s.Endpoint.Clock == nil {
		return nil
	}
	if s.follower, err = clock.Follow(ctx, s.Endpoint.Clock); err != nil {
		return fmt.Errorf("compare clocks with %s: %w", s.Endpoint.Name, err)
	}
	return nil
}

// fit is what is known of a clock that is not ours; nil: it is ours, or nothing is known.
func (s *Side) fit() *clock.Fit {
	if s.follower == nil {
		return nil
	}
	return s.follower.Fit()
}

// Timed tells whether this side's clock is ours, or was looked at.
func (s *Side) Timed() bool { return s.Facts.Here() || s.follower != nil }

// Now is the time by the side's clock.
func (s *Side) Now() time.Time {
	if f := s.fit(); f != nil {
		return time.Now().Add(f.Offset())
	}
	return time.Now()
}

// at places an event on our monotonic clock, by QEMU's own stamp, and notes it. Events come in the order in which they
// happened, and are placed in that order whatever the clocks do: what decides is the order alone.
func (s *Side) at(ev qmp.Event) time.Time {
	p := placed{theirs: ev.QEMUTime, came: ev.Arrived}
	p.Placed = s.place(p.theirs, p.came)
	if n := len(s.placed); n > 0 {
		p.after(s.placed[n-1].At)
	}
	s.placed = append(s.placed, p)
	return p.At
}

// after sees to it that an event is placed after the one before it.
func (p *placed) after(before time.Time) {
	if !p.At.After(before) {
		p.At = before.Add(1)
	}
}

// place places an instant of the side's clock. Where that clock is ours, its age on arrival is the difference of two
// readings of it a moment apart, so that a step of that clock can spoil it only within that moment; an age that cannot
// be is taken as 0. The stamp is in whole microseconds.
func (s *Side) place(theirs, came time.Time) clock.Placed {
	if f := s.fit(); f != nil {
		p := f.Place(theirs, came)
		p.Error += time.Microsecond
		return p
	}
	age := came.Round(0).Sub(theirs)
	if age < 0 || age > UndoLimit {
		age = 0
	}
	return clock.Placed{At: came.Add(-age), Error: time.Microsecond}
}

// Stamped places what the side's QEMU has written down with its stamp, which nobody saw come. Where that clock is ours,
// the event with the nearest stamp says where, so that a step of the clock at another time does no harm.
func (s *Side) Stamped(theirs time.Time) clock.Placed {
	if f := s.fit(); f != nil {
		p := f.Place(theirs, time.Time{})
		p.Error += time.Microsecond
		return p
	}
	now := time.Now()
	best := placed{theirs: now.Round(0), Placed: clock.Placed{At: now}}
	for i, p := range s.placed {
		if i == 0 || theirs.Sub(p.theirs).Abs() < theirs.Sub(best.theirs).Abs() {
			best = p
		}
	}
	return clock.Placed{At: best.At.Add(theirs.Sub(best.theirs)), Error: time.Microsecond}
}

// Told is where an event of this side is placed by what is known now.
func (s *Side) Told(ev qmp.Event) clock.Placed {
	for _, p := range s.placed {
		if p.theirs.Equal(ev.QEMUTime) && p.came.Equal(ev.Arrived) {
			return p.Placed
		}
	}
	return s.place(ev.QEMUTime, ev.Arrived)
}

// of is the event that was placed at an instant. One that was not is taken to be as good as a stamp of our own clock.
func (s *Side) of(at time.Time) placed {
	for i := len(s.placed) - 1; i >= 0; i-- {
		if s.placed[i].At.Equal(at) {
			return s.placed[i]
		}
	}
	return placed{came: at, Placed: clock.Placed{At: at, Error: time.Microsecond}}
}

// StampError is the error of an instant at which an event was placed: the stamp's microsecond and what is not known of
// the clock.
func (s *Side) StampError(at time.Time) time.Duration { return s.of(at).Error }

// lastLookLimit is how long the last look at the clocks may take: a channel that hangs is not waited for.
const lastLookLimit = 2 * time.Second

// measured are the sides that have a clock which is not ours.
func (r *Run) measured() (all []*Side) {
	for _, s := range []*Side{r.Src, r.Dst} {
		if s.fit() != nil {
			all = append(all, s)
		}
	}
	return all
}

// settleClocks looks at the clocks a last time, and places all events anew by what is known now: while they came, the
// looks after them were yet to come. What was derived from them moves with them.
func (r *Run) settleClocks(ctx context.Context) {
	sides := r.measured()
	if len(sides) == 0 || r.Rec.Clocks != nil { // after a failure of the last look at both sides it is done again
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lastLookLimit)
	defer cancel()
	var last []func(context.Context) error
	for _, s := range sides {
		last = append(last, func(ctx context.Context) error { s.follower.Stop(ctx); return nil })
	}
	_ = facts.Together(ctx, last...)
	moved := map[time.Duration]time.Time{} // from where they were, after Origin
	for _, s := range sides {
		for i := range s.placed {
			p, was := &s.placed[i], s.placed[i].At
			p.Placed = s.place(p.theirs, p.came)
			if i > 0 {
				p.after(s.placed[i-1].At)
			}
			moved[was.Sub(r.Rec.Origin)] = p.At
		}
	}
	r.move(func(t time.Time) time.Time {
		if to, ok := moved[t.Sub(r.Rec.Origin)]; ok && !t.IsZero() {
			return to
		}
		return t
	})
	r.Rec.Clocks = &record.Clocks{}
	for _, s := range sides {
		r.noteClock(s)
	}
}

// move moves every instant of an event.
func (r *Run) move(to func(time.Time) time.Time) {
	for _, s := range []*Side{r.Src, r.Dst} {
		s.Completed = to(s.Completed)
		s.life.move(to)
	}
	for i := range r.Passes {
		r.Passes[i].At = to(r.Passes[i].At)
	}
	edge := r.Rec.Origin
	for i := range r.Rec.Stages {
		s := &r.Rec.Stages[i]
		begin, end := to(r.Rec.Origin.Add(s.Start)), to(r.Rec.Origin.Add(s.Start+s.Duration))
		begin = Later(begin, edge)
		edge = Later(end, begin)
		s.Start, s.Duration = begin.Sub(r.Rec.Origin), edge.Sub(begin)
	}
	r.edge = to(r.edge)
	if len(r.Rec.Stages) > 0 {
		r.edge = Later(r.edge, edge)
	}
}

// noteClock writes down what is known of a side's clock, and warns of its steps.
func (r *Run) noteClock(s *Side) {
	c := s.fit().Record(r.Rec.Origin)
	for _, x := range c.Steps {
		r.Rec.Warn("%s: a time there between these two is not known by it", x.Words(fmt.Sprintf("the %s's host", s.Role)))
	}
	if err := s.follower.Err(); err != nil {
		r.Rec.Warn("the clock of the %s's host was not looked at to the end: %v; the times after the last look have a larger "+
			"error", s.Role, err)
	}
	if s == r.Src {
		r.Rec.Clocks.Source = c
	} else {
		r.Rec.Clocks.Destination = c
	}
}

// wire fills in the time from STOP on the source to RESUME on the destination, by both QEMUs' stamps, and by a second
// witness where a clock is not ours: when each event was here.
//
// The second witness needs no clock of theirs. An event is on its way for an unknown time. The last round trip that
// began before the event tells how long that was at most. The source answers questions on the monitor that its events
// come over: STOP happened after the last question was asked whose answer came before STOP. RESUME happened after `cont`
// was sent, or after the last such question to the destination. Each event was on its way no longer than from there
// until it came, and the difference of the two arrivals is off by no more than the longer of these two times. With a
// question every 10 ms that is up to 10 ms and a round trip. The round trips of the looks are much shorter, but an
// event may be held up longer than they take: 18 ms were seen on a busy machine with round trips of 0.1 ms. Where the
// clock of one side is ours, its stamp is taken instead of the arrival.
//
// If a clock was stepped about STOP or RESUME, the stamps tell nothing, and the second witness is the wire downtime.
func (r *Run) wire(stop, resume time.Time) {
	d := &r.Rec.Downtime
	a, b := r.Src.of(stop), r.Dst.of(resume)
	wire, e := resume.Sub(stop), a.Error+b.Error
	arrival := r.Dst.arrival(b).Sub(r.Src.arrival(a))
	arrivalError := max(r.underWay(r.Src, a), r.underWay(r.Dst, b))
	timed := r.Src.Timed() && r.Dst.Timed()
	if timed && len(r.measured()) == 0 { // one clock is behind both stamps
		if wire > 0 {
			d.Wire, d.WireError = record.Of(wire), record.Of(e)
		}
		return
	}
	if arrival > 0 {
		d.Arrival, d.ArrivalError = record.Of(arrival), record.Of(arrivalError)
	}
	if !timed {
		if d.Wire, d.WireError = d.Arrival, d.ArrivalError; wire > 0 && (wire-arrival).Abs() <= arrivalError {
			d.Wire, d.WireError = record.Of(wire), nil
		}
		r.warnUntimed(!r.Src.Timed(), !r.Dst.Timed())
		return
	}
	if a.Doubtful || b.Doubtful {
		var where []string
		if a.Doubtful {
			where = append(where, "of the source's host was set about the time of STOP")
		}
		if b.Doubtful {
			where = append(where, "of the destination's host was set about the time of RESUME")
		}
		d.Wire, d.WireError = d.Arrival, d.ArrivalError
		r.Rec.Warn("the clock %s: the wire downtime is by when both were here, and not by QEMU's stamps",
			strings.Join(where, " and that "))
		return
	}
	if wire > 0 {
		d.Wire, d.WireError = record.Of(wire), record.Of(e)
	}
	if (wire - arrival).Abs() > e+arrivalError {
		r.Rec.Warn("STOP to RESUME took %s (+/- %s) by the two QEMUs' stamps and %s (+/- %s) by when both were here: one of "+
			"the two is wrong by more than its error", wire, e, arrival, arrivalError)
	}
}

// arrival is when an event was here; of a clock that is ours, its stamp is better.
func (s *Side) arrival(p placed) time.Time {
	if s.Timed() && s.fit() == nil {
		return p.At
	}
	return p.came
}

// underWay is how long STOP of the source, or the first RESUME of the destination, was on its way at most.
func (r *Run) underWay(s *Side, p placed) time.Duration {
	if s.Timed() && s.fit() == nil { // it is by its stamp
		return p.Error
	}
	since := r.Rec.Origin
	if r.IssuedAt.Before(p.came) { // not where the guest was stopped first
		since = Later(since, r.IssuedAt)
	}
	if s == r.Dst && r.ContAt.Before(p.came) {
		since = Later(since, r.ContAt)
	}
	if r.Poll != nil {
		answers := r.Poll.src
		if s == r.Dst {
			answers = r.Poll.dst
		}
		for _, a := range answers {
			if a.answered.Before(p.came) {
				since = Later(since, a.asked)
			}
		}
	}
	return p.came.Sub(since)
}
