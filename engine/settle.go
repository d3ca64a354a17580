package engine

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/holder"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// Limits of an undo and of `--recover`.
const (
	waitLimit = 5 * time.Second       // for the states to change
	lookPause = 50 * time.Millisecond // between two looks meanwhile
	mostSteps = 50                    // no situation needs more than some ten
)

// custody is one undo, or one recovery: it looks at both sides, asks holder.Decide, does the step, and looks again.
type custody struct {
	m       *migration
	s       holder.Situation
	err     error                   // why the last step failed, for the decision's words
	silent  error                   // why a side did not answer, for the same
	runs    int                     // `cont` that came to nothing
	did     []string                // what was done, in words
	ended   bool                    // the destination was ended
	tried   map[*side]bool          // its monitor was lost, and reaching it again was tried
	reaches map[*side]holder.Reach  // Recover: those that could not be opened
	regard  func(*holder.Situation) // what the caller knows better; nil: nothing
}

// continued is what was done where the guest may have been paused on purpose.
const continued = "the guest was continued on the source"

// settle brings the guest back to where it can run after a failure.
func (m *migration) settle(ctx context.Context) verdict {
	return m.settleAs(ctx, nil)
}

func (m *migration) settleAs(ctx context.Context, regard func(*holder.Situation)) verdict {
	if m.src.facts == nil {
		return verdict{guest: record.Unknown, mend: "the source was not reached, and nothing was changed"}
	}
	if v, ok := m.guestEnded(ctx); ok {
		return v
	}
	c := &custody{m: m, regard: regard, s: holder.Situation{
		Asker:     holder.Undo,
		Sent:      m.lastSent(),
		Leave:     !m.src.facts.Live() || m.held != "" || !m.issued && !m.paused,
		Yanked:    m.yanked,
		Cancelled: m.issued && m.src.finished,
		Elsewhere: m.elsewhere,
		Takes:     m.src.facts.Before(10, 0),
		Jams:      m.src.facts.Jams(),
		Locks:     m.dst.facts != nil && m.dst.facts.Before(10, 0) && !m.plan.Capabilities["late-block-activate"],
		Gives:     m.plan.Capabilities["release-ram"],
	}}
	d, ok := c.settle(ctx)
	if !ok {
		return verdict{guest: record.Unknown, mend: fmt.Sprintf("the undo did not come to its end: ask %s and %s for query-status, "+
			"then `qmigrate migrate --recover`", m.src.ep.Name, m.dst.ep.Name)}
	}
	v := verdict{guest: d.Guest, mend: c.fill(d.Text)}
	if d.Unfinished {
		v.outcome = record.Failed
	}
	return v
}

// lastSent is the last command of this run that counts.
func (m *migration) lastSent() holder.Sent {
	switch {
	case m.contSent:
		return holder.SentCont
	case m.split:
		return holder.SentSwitch
	case m.issued:
		return holder.SentMigrate
	case m.listening:
		return holder.SentIncoming
	}
	return holder.SentNothing
}

// settle does steps until a decision is final; ok is false if it came to none.
func (c *custody) settle(ctx context.Context) (d holder.Decision, ok bool) {
	for range mostSteps {
		c.look(ctx)
		if ctx.Err() != nil { // what does not answer now was not asked
			return d, false
		}
		d = holder.Decide(c.s)
		c.m.log.Info("decided", "rule", d.Rule, "step", d.Do, "source", c.s.Source, "destination", c.s.Destination, "sent", c.s.Sent, "err", c.err)
		if d.Do == holder.Stay || d.Do == holder.Mend {
			return d, true
		}
		c.do(ctx, d.Do)
	}
	return d, false
}

// do does one step and notes what became of it.
func (c *custody) do(ctx context.Context, do holder.Step) {
	m := c.m
	switch do {
	case holder.Wait:
		c.wait(ctx)
	case holder.Cancel:
		c.s.Cancelled = true
		if err := m.endSource(ctx); err != nil {
			c.err = err
			c.did = append(c.did, "migrate_cancel was tried on the source")
		} else {
			c.did = append(c.did, "the migration was cancelled")
		}
	case holder.Yank:
		c.s.Yanked = true
		m.yank(ctx, m.src)
		c.did = append(c.did, "the migration's connection was closed")
	case holder.End:
		c.end(ctx)
	case holder.RunSource:
		m.committed = false // it is the source's again
		if err := c.run(ctx, m.src); err != nil {
			c.s.Stuck = true
		} else {
			c.did = append(c.did, continued)
		}
	case holder.StopSource:
		c.s.Stopped = true
		m.stopAgain()
		c.did = append(c.did, "the source was stopped")
	case holder.RunDestination:
		before := c.s.Sent
		m.contSent, m.committed, c.s.Sent = true, true, holder.SentCont
		if err := c.run(ctx, m.dst); err != nil {
			c.s.Refused = true
			if qmp.IsRefusal(err) { // it was not done
				m.contSent, m.committed, c.s.Sent = before == holder.SentCont, before == holder.SentCont, before
			}
		} else {
			c.did = append(c.did, "the guest was started on the destination")
		}
	}
}

// run makes a side run the guest. A side that does not answer was not asked, and the next look tells what it is; the
// third time counts.
func (c *custody) run(ctx context.Context, s *side) error {
	err := resume(ctx, s)
	if err == nil {
		return nil
	}
	c.err = err
	if c.runs++; !qmp.IsRefusal(err) && s.reached() && c.runs < 3 {
		return nil
	}
	return err
}

// end ends the destination. One that may have run must be known dead, of another it is enough that it is gone as far
// as can be seen.
func (c *custody) end(ctx context.Context) {
	m := c.m
	told := c.s.Sent == holder.SentCont || c.s.Ran == holder.Has
	err := m.dst.kill(ctx)
	if err == nil && told && !m.dst.over(ctx) {
		err = fmt.Errorf("%s is not known dead", m.dst.ep.Name)
	}
	if err != nil {
		c.s.Unended, c.err = true, err
		c.did = append(c.did, "`quit` was tried on the destination")
		return
	}
	m.committed = false
	_ = m.drainFor(ctx, killLimit, func() bool { return m.dst.gone != nil || m.dst.C == nil }) // every event that it sent before it died
	c.ended = true
	c.s.Ended = c.s.Asker == holder.Recover
	c.did = append(c.did, "the destination QEMU was ended")
}

// wait waits until the states change.
func (c *custody) wait(ctx context.Context) {
	for begun := time.Now(); ; {
		_ = c.m.drainFor(ctx, lookPause, func() bool { return false })
		before := [2]holder.QEMU{c.s.Source, c.s.Destination}
		tentative := c.s.Tentative
		c.look(ctx)
		switch {
		case ctx.Err() != nil || before != [2]holder.QEMU{c.s.Source, c.s.Destination} || tentative != c.s.Tentative:
			return
		case time.Since(begun) > waitLimit:
			c.s.Waited = true
			return
		}
	}
}

// look brings the situation up to now.
func (c *custody) look(ctx context.Context) {
	m := c.m
	before := [2]holder.QEMU{c.s.Source, c.s.Destination}
	m.settled(ctx)
	m.catchUp()
	c.s.Source, c.s.Destination = c.see(ctx, m.src), c.see(ctx, m.dst)
	m.settled(ctx) // what a side said before it died may be its last word
	m.catchUp()    // and what it said before it answered
	for s, q := range map[*side]*holder.QEMU{m.src: &c.s.Source, m.dst: &c.s.Destination} {
		if s.facts != nil && q.Reach == holder.Dead {
			q.Status = s.holds()
		}
	}
	switch {
	case !m.dst.resumed.IsZero() || c.s.Destination.Reach == holder.Answers && c.s.Destination.Run == holder.Running:
		c.s.Ran = holder.Has
	case m.dst.blind || m.dst.sub != nil && m.dst.sub.Dropped() > 0 || c.s.Destination.Reach == holder.Dead && m.dst.C != nil:
		c.s.Ran = holder.Maybe
	default:
		c.s.Ran = holder.Never
	}
	c.s.Tentative = m.tentative()
	c.s.Leave = c.s.Leave || c.s.Asker == holder.Undo && unable(m.src.runState)
	if c.s.Asker == holder.Undo { // a switch that came too late was none
		c.s.Begun = m.split && (m.src.parted || !c.s.Source.Status.Final())
	}
	if c.regard != nil {
		c.regard(&c.s)
	}
	if before != [2]holder.QEMU{c.s.Source, c.s.Destination} {
		c.s.Waited, c.s.Refused = false, false
	}
}

// see asks one side how it is. One whose monitor was lost is reached again once.
func (c *custody) see(ctx context.Context, s *side) holder.QEMU {
	if reach, closed := c.reaches[s]; closed {
		return holder.QEMU{Reach: reach}
	}
	if s == c.m.dst && c.ended {
		return holder.QEMU{Reach: holder.Dead, Run: holder.RunOf(s.runState), Status: s.holds(), Known: s.ep.Process != nil}
	}
	if s.facts == nil { // it was never reached, and nothing was sent to it
		return holder.QEMU{Reach: holder.Lost, Status: holder.None}
	}
	q := holder.QEMU{Reach: holder.Answers, Known: s.ep.Process != nil}
	err := s.ask(ctx)
	if !s.reached() {
		c.silent = fmt.Errorf("%s %s: %w", s.role, s.ep.Name, cmp.Or(s.gone, s.control.Err(), s.events.Err()))
		switch {
		case s.quit || s.dead(ctx) || s == c.m.dst && s.status == "failed": // a failed destination exits by itself, and holds nothing that it could run
			q.Reach = holder.Dead
		case c.tried[s]:
			q.Reach = holder.Lost
		default:
			if c.tried == nil {
				c.tried = map[*side]bool{}
			}
			c.tried[s] = true
			limited, cancel := context.WithTimeout(ctx, answerLimit)
			c.m.stopPolling(limited) // it uses the monitors
			cancel()
			s.regain(ctx)
			c.m.log.Info("monitor was lost", "side", s.role, "regained", s.gone == nil)
			return c.see(ctx, s)
		}
	} else if err != nil {
		q.Reach, c.silent = holder.Silent, fmt.Errorf("%s %s: %w", s.role, s.ep.Name, err)
	}
	s.mute = q.Reach == holder.Silent
	q.Run, q.Status = holder.RunOf(s.runState), s.holds()
	return q
}

// ask asks for the run state and the state of the migration, with a limit of its own. It asks on the monitor on which
// the events come: what an answer tells has its events before it there. On another one an answer "paused" could
// overtake the RESUME before it.
func (s *side) ask(ctx context.Context) error {
	if s.events == nil || s.gone != nil {
		return s.gone
	}
	limited, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	status, info, err := s.says(limited)
	if err != nil {
		return err
	}
	s.runState, s.status = status.Status, info.Status
	s.parted = s.parted || strings.HasPrefix(info.Status, "postcopy-")
	if facts.Idle(info.Status) && len(info.SocketAddress) > 0 {
		s.status = "setup" // it listens, for which 7.2 has no status
	}
	s.outgoing = info.Has.Contains(qmp.FieldTransferred)
	s.look(info)
	return nil
}

// says is what both of its monitors say: `cont` would go over the first one, so its answer counts too. An answer that
// comes a moment later may be another one, so they are asked again; monitors of two QEMUs never agree, and then neither
// is believed.
func (s *side) says(ctx context.Context) (qmp.Status, *qmp.MigrationInfo, error) {
	ask := func(conn *qmp.Conn) (status qmp.Status, info *qmp.MigrationInfo, err error) {
		if status, err = conn.QueryStatus(ctx); err == nil {
			info, err = conn.QueryMigrate(ctx)
		}
		return status, info, err
	}
	var differ error
	for range agreeTries {
		status, info, err := ask(s.events)
		if err != nil || s.events == s.control {
			return status, info, err
		}
		first, at, err := ask(s.control)
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
func (s *side) holds() holder.Status {
	sent := s.outgoing || s.runState == string(holder.Post) || s.role == record.Source && !s.completed.IsZero()
	return holder.StatusOf(s.status, sent, s.runState == string(holder.InMigrate))
}

// look notes whether a source in post-copy has sent a page since it was asked first.
func (s *side) look(info *qmp.MigrationInfo) {
	switch {
	case info.Status != "postcopy-active" || s.runState != string(holder.Finishing) || !info.Has.Contains(qmp.FieldTransferred):
		s.since = nil
	case s.since == nil:
		s.since = record.Of(info.Transferred)
	case info.Transferred != *s.since:
		s.given = true
	}
}

// tentative tells whether a source that says post-copy may still take its guest back. QEMU before 10.0 says so before
// it stops the guest, and fails and continues when the connection breaks up to just after the device state was sent
// (migration/migration.c, postcopy_start; read in 7.2.22). A page that is sent after the guest was stopped shows that
// this is behind it.
func (m *migration) tentative() bool {
	return m.src.facts != nil && m.src.facts.Before(10, 0) && m.src.status == "postcopy-active" && !m.src.given && !m.dst.done()
}

// look finds out who is left: of a side whose monitor has ended, whether it is dead, and if not, what it says when it
// is reached again.
func (m *migration) look(ctx context.Context) { (&custody{m: m}).look(ctx) }

// settled takes in every event of a side that has died: the socket still holds what QEMU sent.
func (m *migration) settled(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	_ = m.drain(ctx, func() bool {
		for _, s := range []*side{m.src, m.dst} {
			if s.C != nil && !s.reached() {
				return false
			}
		}
		return true
	})
}

// fill puts the values into a decision's words.
func (c *custody) fill(text string) string {
	words := map[string]string{"S": c.m.src.ep.Name, "D": c.m.dst.ep.Name, "X": c.s.Strangers, "E": "no answer"}
	if err := cmp.Or(c.err, c.silent); err != nil {
		words["E"] = err.Error()
	}
	return holder.Fill(text, words)
}
