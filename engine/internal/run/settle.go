package run

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/holder"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// Limits of an undo and of `--recover`.
const (
	WaitLimit = 5 * time.Second       // for the states to change
	lookPause = 50 * time.Millisecond // between two looks meanwhile
	mostSteps = 50                    // no situation needs more than some ten
	mostTries = 2                     // to reach a monitor again whose way was lost, each for Endpoint.Again
)

// Custody is one undo, or one recovery: it looks at both sides, asks holder.Decide, does the step, and looks again.
type Custody struct {
	Run       *Run
	Situation holder.Situation
	Err       error                   // why the last step failed, for the decision's words
	silent    error                   // why a side did not answer, for the same
	runs      int                     // `cont` that came to nothing
	Did       []string                // what was done, in words
	ended     bool                    // the destination was ended
	tried     map[*Side]int           // its monitor was lost, and how often reaching it again was tried
	unheard   bool                    // migrate_cancel was sent to the source, and nothing came back
	Reaches   map[*Side]holder.Reach  // Recover: those that could not be opened
	regard    func(*holder.Situation) // what the caller knows better; nil: nothing
}

// Continued is what was done where the guest may have been paused on purpose.
const Continued = "the guest was continued on the source"

// Settle brings the guest back to where it can run after a failure.
func (r *Run) Settle(ctx context.Context) Verdict {
	return r.SettleAs(ctx, nil)
}

func (r *Run) SettleAs(ctx context.Context, regard func(*holder.Situation)) Verdict {
	if r.Src.Facts == nil {
		return Verdict{Guest: record.Unknown, Mend: "the source was not reached, and nothing was changed"}
	}
	if v, ok := r.guestEnded(ctx); ok {
		return v
	}
	c := &Custody{Run: r, regard: regard, Situation: holder.Situation{
		Asker:     holder.Undo,
		Sent:      r.lastSent(),
		Leave:     !r.Src.Facts.Live() || r.Held != "" || !r.Issued && !r.Paused,
		Yanked:    r.Yanked,
		Cancelled: r.Issued && r.Src.finished,
		Elsewhere: r.Elsewhere,
		Takes:     r.Src.Facts.Before(10, 0),
		Jams:      r.Src.Facts.Jams(),
		Locks:     r.Dst.Facts != nil && r.Dst.Facts.Before(10, 0) && !r.Plan.Capabilities["late-block-activate"],
		Gives:     r.Plan.Capabilities["release-ram"],
	}}
	d, ok := c.Settle(ctx)
	if !ok {
		return Verdict{Guest: record.Unknown, Mend: fmt.Sprintf("the undo did not come to its end: ask %s and %s for "+
			"query-status, "+
			"then `qmigrate migrate --recover`", r.Src.Endpoint.Name, r.Dst.Endpoint.Name)}
	}
	v := Verdict{Guest: d.Guest, Mend: c.Fill(d.Text)}
	if d.Unfinished {
		v.Outcome = record.Failed
	}
	return v
}

// lastSent is the last command of this run that counts.
func (r *Run) lastSent() holder.Sent {
	switch {
	case r.ContSent:
		return holder.SentCont
	case r.Split:
		return holder.SentSwitch
	case r.Issued:
		return holder.SentMigrate
	case r.Listening:
		return holder.SentIncoming
	}
	return holder.SentNothing
}

// Settle does steps until a decision is final; ok is false if it came to none.
func (c *Custody) Settle(ctx context.Context) (d holder.Decision, ok bool) {
	for range mostSteps {
		c.look(ctx)
		if ctx.Err() != nil { // what does not answer now was not asked
			return d, false
		}
		d = holder.Decide(c.Situation)
		c.Run.Log.Info("decided", "rule", d.Rule, "step", d.Do, "source", c.Situation.Source, "destination",
			c.Situation.Destination, "sent", c.Situation.Sent, "err", c.Err)
		if d.Do == holder.Stay || d.Do == holder.Mend {
			return d, true
		}
		c.do(ctx, d.Do)
	}
	return d, false
}

// do does one step and notes what became of it.
func (c *Custody) do(ctx context.Context, do holder.Step) {
	r := c.Run
	switch do {
	case holder.Wait:
		c.wait(ctx)
	case holder.Cancel:
		c.Situation.Cancelled = true
		if err := r.EndSource(ctx); err != nil {
			c.Err, c.unheard = err, !qmp.IsRefusal(err)
			c.Did = append(c.Did, "migrate_cancel was tried on the source")
		} else {
			c.Did = append(c.Did, "the migration was cancelled")
		}
	case holder.Yank:
		c.Situation.Yanked = true
		r.Yank(ctx, r.Src)
		c.Did = append(c.Did, "the migration's connection was closed")
	case holder.End:
		c.end(ctx)
	case holder.RunSource:
		r.Committed = false // it is the source's again
		if err := c.run(ctx, r.Src); err != nil {
			c.Situation.Stuck = true
		} else {
			c.Did = append(c.Did, Continued)
		}
	case holder.StopSource:
		c.Situation.Stopped = true
		r.stopAgain()
		c.Did = append(c.Did, "the source was stopped")
	case holder.RunDestination:
		before := c.Situation.Sent
		r.ContSent, r.Committed, c.Situation.Sent = true, true, holder.SentCont
		if err := c.run(ctx, r.Dst); err != nil {
			c.Situation.Refused = true
			if qmp.IsRefusal(err) { // it was not done
				r.ContSent, r.Committed, c.Situation.Sent = before == holder.SentCont, before == holder.SentCont, before
			}
		} else {
			c.Did = append(c.Did, "the guest was started on the destination")
		}
	}
}

// run makes a side run the guest. A side that does not answer was not asked, and the next look tells what it is; the
// third time counts.
func (c *Custody) run(ctx context.Context, s *Side) error {
	err := Resume(ctx, s)
	if err == nil {
		return nil
	}
	c.Err = err
	if c.runs++; !qmp.IsRefusal(err) && s.reached() && c.runs < 3 {
		return nil
	}
	return err
}

// end ends the destination. One that may have run must be known dead, of another it is enough that it is gone as far
// as can be seen.
func (c *Custody) end(ctx context.Context) {
	r := c.Run
	told := c.Situation.Sent == holder.SentCont || c.Situation.Ran == holder.Has
	err := r.Dst.Kill(ctx)
	if err == nil && told && !r.Dst.Over(ctx) {
		err = fmt.Errorf("%s is not known dead", r.Dst.Endpoint.Name)
	}
	if err != nil {
		c.Situation.Unended, c.Err = true, err
		c.Did = append(c.Did, "`quit` was tried on the destination")
		return
	}
	r.Committed = false
	// every event that it sent before it died
	_ = r.DrainFor(ctx, KillLimit, func() bool { return r.Dst.Gone != nil || r.Dst.C == nil })
	c.ended = true
	c.Situation.Ended = c.Situation.Asker == holder.Recover
	c.Did = append(c.Did, "the destination QEMU was ended")
}

// wait waits until the states change.
func (c *Custody) wait(ctx context.Context) {
	for begun := time.Now(); ; {
		_ = c.Run.DrainFor(ctx, lookPause, func() bool { return false })
		before := [2]holder.QEMU{c.Situation.Source, c.Situation.Destination}
		tentative := c.Situation.Tentative
		c.look(ctx)
		switch {
		case ctx.Err() != nil || before != [2]holder.QEMU{c.Situation.Source, c.Situation.Destination} ||
			tentative != c.Situation.Tentative:
			return
		case time.Since(begun) > WaitLimit:
			c.Situation.Waited = true
			return
		}
	}
}

// look brings the situation up to now.
func (c *Custody) look(ctx context.Context) {
	r := c.Run
	before := [2]holder.QEMU{c.Situation.Source, c.Situation.Destination}
	r.settled(ctx)
	r.CatchUp()
	for again := -1; again != c.tried[r.Src]+c.tried[r.Dst]; { // what was seen before one was reached again may be old
		again = c.tried[r.Src] + c.tried[r.Dst]
		c.Situation.Source, c.Situation.Destination = c.see(ctx, r.Src), c.see(ctx, r.Dst)
	}
	r.settled(ctx) // what a side said before it died may be its last word
	r.CatchUp()    // and what it said before it answered
	for s, q := range map[*Side]*holder.QEMU{r.Src: &c.Situation.Source, r.Dst: &c.Situation.Destination} {
		if s.Facts != nil && q.Reach == holder.Dead {
			q.Status = s.holds()
		}
	}
	switch {
	case !r.Dst.Resumed.IsZero() || c.Situation.Destination.Reach == holder.Answers &&
		c.Situation.Destination.Run == holder.Running:
		c.Situation.Ran = holder.Has
	case r.Dst.blind || r.Dst.sub != nil && r.Dst.sub.Dropped() > 0 || c.Situation.Destination.Reach == holder.Dead &&
		r.Dst.C != nil:
		c.Situation.Ran = holder.Maybe
	default:
		c.Situation.Ran = holder.Never
	}
	c.Situation.Tentative = r.Tentative()
	c.Situation.Leave = c.Situation.Leave || c.Situation.Asker == holder.Undo && unable(r.Src.RunState)
	if c.Situation.Asker == holder.Undo { // a switch that came too late was none
		c.Situation.Begun = r.Split && (r.Src.parted || !c.Situation.Source.Status.Final())
	}
	if c.regard != nil {
		c.regard(&c.Situation)
	}
	if before != [2]holder.QEMU{c.Situation.Source, c.Situation.Destination} {
		c.Situation.Waited, c.Situation.Refused = false, false
	}
}

// see asks one side how it is. One whose monitor was lost is reached again once; where it was the way to it that was
// lost, a few times.
func (c *Custody) see(ctx context.Context, s *Side) holder.QEMU {
	if reach, closed := c.Reaches[s]; closed {
		return holder.QEMU{Reach: reach}
	}
	if s == c.Run.Dst && c.ended {
		return holder.QEMU{Reach: holder.Dead, Run: holder.RunOf(s.RunState), Status: s.holds(),
			Known: s.Endpoint.Process != nil}
	}
	if s.Facts == nil { // it was never reached, and nothing was sent to it
		return holder.QEMU{Reach: holder.Lost, Status: holder.None}
	}
	q := holder.QEMU{Reach: holder.Answers, Known: s.Endpoint.Process != nil}
	err := s.Ask(ctx)
	if !s.reached() {
		c.silent = fmt.Errorf("%s %s: %w", s.Role, s.Endpoint.Name, cmp.Or(s.Gone, s.Control.Err(), s.events.Err()))
		switch {
		case s.quit || s.Dead(ctx) || s == c.Run.Dst && s.Status == "failed":
			// a failed destination exits by itself, and holds nothing that it could run
			q.Reach = holder.Dead
		case c.tried[s] > 0 && !endpoint.WayLost(c.silent), c.tried[s] >= mostTries:
			q.Reach = holder.Lost
		default:
			if c.tried == nil {
				c.tried = map[*Side]int{}
			}
			c.tried[s]++
			limited, cancel := context.WithTimeout(ctx, AnswerLimit)
			c.Run.StopPolling(limited) // it uses the monitors
			cancel()
			s.regain(ctx)
			c.Run.Log.Info("monitor was lost", "side", s.Role, "regained", s.Gone == nil)
			if s == c.Run.Src && s.Gone == nil && c.unheard { // the way there was lost before the command had come through
				c.Situation.Cancelled, c.unheard = false, false
			}
			return c.see(ctx, s)
		}
	} else if err != nil {
		q.Reach, c.silent = holder.Silent, fmt.Errorf("%s %s: %w", s.Role, s.Endpoint.Name, err)
	}
	s.mute = q.Reach == holder.Silent
	q.Run, q.Status = holder.RunOf(s.RunState), s.holds()
	return q
}

// Ask asks for the run state and the state of the migration, with a limit of its own. It asks on the monitor on which
// the events come: what an answer tells has its events before it there. On another one an answer "paused" could
// overtake the RESUME before it.
func (s *Side) Ask(ctx context.Context) error {
	if s.events == nil || s.Gone != nil {
		return s.Gone
	}
	limited, cancel := context.WithTimeout(ctx, AnswerLimit)
	defer cancel()
	status, info, err := s.says(limited)
	if err != nil {
		return err
	}
	s.RunState, s.Status = status.Status, info.Status
	s.parted = s.parted || strings.HasPrefix(info.Status, "postcopy-")
	if facts.Idle(info.Status) && len(info.SocketAddress) > 0 {
		s.Status = "setup" // it listens, for which 7.2 has no status
	}
	s.outgoing = info.Has.Contains(qmp.FieldTransferred)
	s.look(info)
	return nil
}

// says is what both of its monitors say: `cont` would go over the first one, so its answer counts too. An answer that
// comes a moment later may be another one, so they are asked again; monitors of two QEMUs never agree, and then neither
// is believed.
func (s *Side) says(ctx context.Context) (qmp.Status, *qmp.MigrationInfo, error) {
	ask := func(conn *qmp.Conn) (status qmp.Status, info *qmp.MigrationInfo, err error) {
		if status, err = conn.QueryStatus(ctx); err == nil {
			info, err = conn.QueryMigrate(ctx)
		}
		return status, info, err
	}
	var differ error
	for range agreeTries {
		status, info, err := ask(s.events)
		if err != nil || s.events == s.Control {
			return status, info, err
		}
		first, at, err := ask(s.Control)
		if err != nil || first == status && at.Status == info.Status {
			return status, info, err
		}
		differ = fmt.Errorf("its first monitor says %s (migration: %s) and the one for events %s (%s): do they belong to two QEMUs?", first.Status,
			cmp.Or(at.Status, "none"), status.Status, cmp.Or(info.Status, "none"))
		time.Sleep(agreePause)
	}
	return qmp.Status{}, nil, differ
}

// holds is what its migration is at, by its last answer or event. A guest is in postmigrate only if it was sent away.
func (s *Side) holds() holder.Status {
	sent := s.outgoing || s.RunState == string(holder.Post) || s.Role == record.Source && !s.Completed.IsZero()
	return holder.StatusOf(s.Status, sent, s.RunState == string(holder.InMigrate))
}

// look notes whether a source in post-copy has sent a page since it was asked first.
func (s *Side) look(info *qmp.MigrationInfo) {
	switch {
	case info.Status != "postcopy-active" || s.RunState != string(holder.Finishing) ||
		!info.Has.Contains(qmp.FieldTransferred):
		s.since = nil
	case s.since == nil:
		s.since = record.Of(info.Transferred)
	case info.Transferred != *s.since:
		s.given = true
	}
}

// Tentative tells whether a source that says post-copy may still take its guest back. QEMU before 10.0 says so before
// it stops the guest, and fails and continues when the connection breaks up to just after the device state was sent
// (migration/migration.c, postcopy_start; read in 7.2.22). A page that is sent after the guest was stopped shows that
// this is behind it.
func (r *Run) Tentative() bool {
	return r.Src.Facts != nil && r.Src.Facts.Before(10, 0) && r.Src.Status == "postcopy-active" && !r.Src.given &&
		!r.Dst.Done()
}

// Look finds out who is left: of a side whose monitor has ended, whether it is dead, and if not, what it says when it
// is reached again.
func (r *Run) Look(ctx context.Context) { (&Custody{Run: r}).look(ctx) }

// settled takes in every event of a side that has died: the socket still holds what QEMU sent.
func (r *Run) settled(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, AnswerLimit)
	defer cancel()
	_ = r.drain(ctx, func() bool {
		for _, s := range []*Side{r.Src, r.Dst} {
			if s.C != nil && !s.reached() {
				return false
			}
		}
		return true
	})
}

// Fill puts the values into a decision's words.
func (c *Custody) Fill(text string) string {
	words := map[string]string{"S": c.Run.Src.Endpoint.Name, "D": c.Run.Dst.Endpoint.Name, "X": c.Situation.Strangers,
		"E": "no answer"}
	if err := cmp.Or(c.Err, c.silent); err != nil {
		words["E"] = err.Error()
	}
	return holder.Fill(text, words)
}

// AsTold is the situation by the events alone.
func (r *Run) AsTold() holder.Situation {
	return holder.Situation{
		Source:      holder.QEMU{Run: holder.Finishing, Status: holder.StatusOf(r.Src.Status, true, false)},
		Destination: holder.QEMU{Status: holder.StatusOf(r.Dst.Status, false, false)},
		Tentative:   r.Tentative(),
	}
}

// done is what the recovery has done, in words.
func (c *Custody) Said() string {
	if len(c.Did) == 0 {
		return "nothing was changed"
	}
	return strings.Join(c.Did, ", ")
}
