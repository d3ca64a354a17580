package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// In post-copy the guest runs on the destination while the rest of its memory is still on the source. From
// `migrate-start-postcopy` on the migration is never cancelled, because then neither side has the whole guest; what a
// failure leaves of it is settled by settle. A link that is lost is mended: both sides pause, and go on over a new
// connection.

// Limits of post-copy.
const (
	attemptLimit = 10 * time.Second // one new connection, where it is known that the hosts reach each other
	// the same where it is not: Linux gives a TCP connection up after 127 s (tcp_syn_retries 6)
	blindLimit = 140 * time.Second
	retryPause = 500 * time.Millisecond
)

// due tells whether it is time to go over.
func (m *migration) due() bool {
	switch {
	case m.run.Split || m.run.Src.Still() || m.run.Src.Status != "active":
		return false
	case m.policy.postCopy:
		return true
	}
	s := m.run.Plan.Splits()
	return s != nil && (*s == plan.AtOnce || s.Passes > 0 && m.passesEnded() >= s.Passes || s.Time > 0 &&
		time.Since(m.run.IssuedAt) >= s.Time)
}

// passesEnded counts the bitmap syncs after the one at set-up: each ends a pass, unless they come by time.
func (m *migration) passesEnded() int {
	if m.run.TimedSyncs() && m.run.Poll != nil {
		return int(m.run.Poll.Turned.Load())
	}
	n := 0
	for _, e := range m.run.Passes {
		if e.Raw > 1 && !(m.run.Src.Still() && e.At.After(m.run.Src.Stopped)) {
			n++
		}
	}
	return n
}

// startPostCopy goes over to post-copy. Nothing is cancelled from here on.
func (m *migration) startPostCopy(ctx context.Context) error {
	m.run.Unwatch() // handOver and follow have limits of their own
	m.run.Split = true
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), run.ActivateLimit)
	defer cancel()
	if err := m.run.Src.Control.Execute(ctx, "migrate-start-postcopy", nil, nil); err != nil {
		if qmp.IsRefusal(err) {
			m.run.Split = false // it was not done
		}
		return fmt.Errorf("start post-copy: %w", err)
	}
	return nil
}

// handOver waits until what may take no time is there: the switch, or the destination's part of it. A connection that
// is stuck is closed only when there is no hope left for it: in this window neither side can run the guest without it
// (a destination that loses it before it runs dies, and of a source 7.2 lets the guest go again only sometimes, 10.0
// never), so a busy host must not be taken for a lost link.
func (m *migration) handOver(ctx context.Context, done func() bool) error {
	ctx = context.WithoutCancel(ctx)
	limit := m.run.Plan.HangLimit()
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := m.run.Until(limited, done)
	if err == nil || limited.Err() == nil {
		return err
	}
	if _, answers := m.run.Src.Asked(ctx); answers == nil && m.run.Src.HandedOver() {
		// What is on its way may still come, and without it only a source before 10.0 can go back, and not once it
		// has noticed that the link is lost.
		return fmt.Errorf("the switch to post-copy stood still for %s", limit)
	}
	// its guest would be lost by that; as long as the connection lives, what is on its way may come
	if m.run.Src.Facts.Jams() {
		return fmt.Errorf("the switch to post-copy stood still for %s", limit)
	}
	m.run.Yanked = true
	m.run.Yank(ctx, m.run.Src)
	_ = m.run.DrainFor(ctx, run.KillLimit, func() bool { return m.run.Broken() != nil || done() })
	return fmt.Errorf("the switch to post-copy stood still for %s, and its connection was closed", limit)
}

// surelyGiven waits until a source that has said post-copy can no longer take its guest back; see tentative.
func (m *migration) surelyGiven(ctx context.Context) error {
	limit := m.run.Plan.HangLimit()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	for m.run.Tentative() {
		if err := m.run.Src.Ask(ctx); err != nil {
			return fmt.Errorf("ask source whether it has begun post-copy: %w", err)
		}
		m.run.CatchUp()
		if err := m.run.Broken(); err != nil {
			return err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the source has gone over to post-copy, and has sent nothing for %s: its link is lost", limit)
		}
	}
	return nil
}

// errLink is the end of a turn of post-copy for want of a link.
var errLink = errors.New("the link was lost")

// follow is the rest of a post-copy: turns of post-copy, with a recovery between two of them. The limit of recovery
// begins anew only when something was sent since the last one, else a link that breaks again and again would be
// mended for ever.
func (m *migration) follow(ctx context.Context) error {
	for {
		err := m.followUntilLost(ctx)
		if !errors.Is(err, errLink) {
			return err
		}
		m.run.Rec.Warn("post-copy lost its link: %v", err)
		m.run.Begin(record.Recovery)
		if err := m.mendLink(ctx); err != nil {
			return err
		}
		m.run.Begin(record.PostCopy)
	}
}

// followUntilLost waits until all of the memory has come. It ends with errLink when either side pauses, or when the
// source makes no progress: a link that is merely down raises nothing for a long while.
func (m *migration) followUntilLost(ctx context.Context) error {
	asked := ctx
	ctx = context.WithoutCancel(ctx)
	defer func() {
		if asked.Err() != nil {
			m.run.Rec.Warn("asked to stop in post-copy, which cannot be cancelled: its memory was on both sides (%v)",
				context.Cause(asked))
		}
	}()
	var sent int64
	moved := time.Now()
	for {
		limited, cancel := context.WithTimeout(ctx, run.WatchInterval)
		err := m.run.Until(limited, func() bool { return m.run.Arrived() || m.linkLost() })
		broken := err != nil && limited.Err() == nil
		cancel()
		if broken && m.run.Src.Broke() { // at its end: the destination may have everything
			_ = m.run.DrainFor(ctx, run.WaitLimit, m.run.Dst.Ended)
		}
		switch {
		case m.run.Arrived(), m.run.Dst.Done() && m.run.Src.Broke():
			m.run.End(run.Later(m.run.Src.Completed, m.run.Dst.Completed))
			readFaultTimes(ctx, m.run)
			return nil
		case broken && m.run.ReachAgain(ctx):
			moved = time.Now()
		case broken:
			return err
		case m.linkLost():
			return fmt.Errorf("%w: source %s, destination %s", errLink, m.run.Src.Status, m.run.Dst.Status)
		}
		now, answered := m.sent(ctx, sent)
		limit := m.run.Plan.StallLimit
		if !answered && m.run.Src.Endpoint.Again > 0 { // it may be the way to it that stands still
			limit = m.run.Plan.HangLimit()
		}
		if now != sent {
			if sent > 0 {
				m.mendBy = time.Time{}
			}
			sent, moved = now, time.Now()
		} else if time.Since(moved) > limit && m.run.Dst.Done() {
			m.leaveBehind(ctx)
			m.run.End(m.run.Dst.Completed)
			readFaultTimes(ctx, m.run)
			return nil
		} else if time.Since(moved) > limit {
			return fmt.Errorf("%w: nothing was sent for %s", errLink, limit)
		}
	}
}

// leaveBehind is for a source that waits for the last word of a destination that has everything, on a link that was
// lost. It is ended: QEMU 10.0 and newer would run the guest when the connection is given up, minutes later.
func (m *migration) leaveBehind(ctx context.Context) {
	if err := m.run.Src.Kill(ctx); err != nil {
		m.run.Rec.Warn("the destination has everything, and the source QEMU still waits for its last word on a link that "+
			"was lost (%v): "+
			"end %s at once: it may run the guest too when its connection is given up", err, m.run.Src.Endpoint.Name)
		return
	}
	m.run.Rec.Warn("the link was lost when the destination had everything: the source QEMU, which waited for its last " +
		"word, was ended")
}

// sent is how much the source has sent so far; before, if it does not say so.
func (m *migration) sent(ctx context.Context, before int64) (sent int64, answered bool) {
	ctx, cancel := context.WithTimeout(ctx, run.AnswerLimit)
	defer cancel()
	info, err := m.run.Src.Control.QueryMigrate(ctx)
	if err != nil || !info.Has.Contains(qmp.FieldTransferred) {
		return before, err == nil
	}
	return info.Transferred, true
}

func (m *migration) linkLost() bool { return m.run.Src.Linkless() || m.run.Dst.Linkless() }

// mendLink makes both sides go on over a new connection. It may be given up: then both stay paused, and nothing is
// lost.
func (m *migration) mendLink(ctx context.Context) error {
	again := !m.mendBy.IsZero()
	if !again {
		m.mendBy = time.Now().Add(m.run.Plan.RecoverLimit)
	}
	ctx, cancel := context.WithDeadline(ctx, m.mendBy)
	defer cancel()
	if again { // it has just been mended, in vain
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
	}
	m.run.Rec.PostCopy.Pauses++
	for attempt := 0; ; attempt++ {
		err := m.pauseBoth(ctx)
		if err == nil {
			err = m.reachable(ctx)
		}
		if err == nil {
			err = m.reconnect(ctx, attempt)
		}
		if err == nil {
			return nil
		}
		m.run.Log.Info("post-copy recovery", "attempt", attempt, "err", err)
		m.run.CatchUp()
		if broken := m.run.Broken(); broken != nil {
			return broken
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return fmt.Errorf("post-copy lost its link and could not go on within %s: %w", m.run.Plan.RecoverLimit, err)
		}
	}
}

// errAtTheEnd is why a source is not paused that has sent everything and waits for the destination's last word: QEMU
// 10.0 and newer would take the closed connection for a failure, and run the guest that runs on the destination.
var errAtTheEnd = errors.New("the link was lost when the source had sent everything, and it waits for the " +
	"destination's last word: it cannot be paused there")

// allSent tells whether the source has nothing left to send.
func (m *migration) allSent(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, run.AnswerLimit)
	defer cancel()
	info, err := m.run.Src.Control.QueryMigrate(ctx)
	return err == nil && info.Status == "postcopy-active" && info.Has.Contains(qmp.FieldRemaining) && info.Remaining == 0
}

// pauseBoth sees to it that both sides know that the link is lost. The one that has not noticed is told, past
// whatever holds its main loop. QEMU before 8.2 refuses that in the recovery's handshake; there its connection is
// closed.
func (m *migration) pauseBoth(ctx context.Context) error {
	for _, s := range []*run.Side{m.run.Src, m.run.Dst} {
		if s.Status == "postcopy-paused" || !strings.HasPrefix(s.Status, "postcopy-") {
			continue
		}
		if s == m.run.Src && m.allSent(ctx) {
			return errAtTheEnd
		}
		limited, cancel := context.WithTimeout(ctx, run.AnswerLimit)
		err := s.Control.ExecuteOOB(limited, "migrate-pause", nil, nil)
		cancel()
		if qmp.IsRefusal(err) {
			m.run.Yank(ctx, s)
		} else if err != nil {
			return fmt.Errorf("pause post-copy on %s: %w", s.Role, err)
		}
	}
	limited, cancel := context.WithTimeout(ctx, run.KillLimit)
	defer cancel()
	return m.run.Until(limited, func() bool {
		return m.run.Src.Status == "postcopy-paused" && m.run.Dst.Status == "postcopy-paused"
	})
}

// reachable waits until the source's host reaches the destination's, where that can be tried.
func (m *migration) reachable(ctx context.Context) error {
	host, ok := m.tcpHost()
	if !ok || m.run.Src.Endpoint.Reaches == nil {
		return nil
	}
	for {
		err := m.run.Src.Endpoint.Reaches(ctx, host)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return fmt.Errorf("the source's host does not reach %s: %w", host, err)
		}
	}
}

// tcpHost is the host that the source connects to, if it does so by TCP.
func (m *migration) tcpHost() (string, bool) {
	rest, ok := strings.CutPrefix(m.run.Plan.Connect, "tcp:")
	if !ok {
		return "", false
	}
	host, _, err := net.SplitHostPort(rest)
	return host, err == nil
}

// reconnect gives both sides a new connection. The destination's monitor is spoken to out of band: a paused one may not
// answer in band any more (seen on 7.2.22).
func (m *migration) reconnect(ctx context.Context, attempt int) error {
	listen, connect := m.recoverURIs(attempt)
	limited, cancel := context.WithTimeout(ctx, run.AnswerLimit)
	defer cancel()
	if err := m.run.Dst.Control.ExecuteOOB(limited, "migrate-recover", map[string]string{"uri": listen}, nil); err != nil {
		return fmt.Errorf("listen again on %s: %w", listen, err)
	}
	if err := m.run.Src.Control.Execute(limited, "migrate", map[string]any{"uri": connect, "resume": true}, nil); err != nil {
		return fmt.Errorf("connect again to %s: %w", connect, err)
	}
	limit := blindLimit
	if _, tcp := m.tcpHost(); !tcp || m.run.Src.Endpoint.Reaches != nil {
		limit = attemptLimit
	}
	// A second attempt while QEMU still tries to connect could end it (7.2: an assertion in migrate_fd_error), so this one
	// is waited for.
	limited, cancel = context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	left := false
	again := func() bool { // it fell back
		left = left || m.run.Src.Status != "postcopy-paused"
		return left && m.run.Src.Status == "postcopy-paused"
	}
	if err := m.run.Until(limited, func() bool {
		return m.run.Src.Status == "postcopy-active" && m.run.Dst.Status == "postcopy-active" || m.run.Arrived() || again()
	}); err != nil {
		return err
	}
	if m.run.Src.Status == "postcopy-paused" {
		return errors.New("the new connection broke at once")
	}
	return nil
}

// recoverURIs are where the destination listens anew and where the source connects to. A port that QEMU had chosen is
// chosen by us now, because a paused destination cannot be asked for it.
func (m *migration) recoverURIs(attempt int) (listen, connect string) {
	listen, connect = m.run.Plan.Listen, m.run.Plan.Connect
	rest, ok := strings.CutPrefix(listen, "tcp:")
	host, port, err := net.SplitHostPort(rest)
	if !ok || err != nil || port != "0" {
		return listen, connect
	}
	to, ok := m.tcpHost()
	if !ok {
		return listen, connect
	}
	port = fmt.Sprint(20000 + rand.IntN(40000))
	return "tcp:" + net.JoinHostPort(host, port), "tcp:" + net.JoinHostPort(to, port)
}
