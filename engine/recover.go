package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/holder"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
)

// Recover ends what an interrupted run left behind two QEMUs, and returns which side has the guest now and, in one
// sentence, what was done and why. It decides from what both say of themselves (holder.Recover): the source goes on
// unless the migration completed, for only then can the destination have been told to run; if it completed and the
// source has not run since, the destination goes on. It may be called again after an error, and when there is nothing
// to recover.
//
// A post-copy that is paused goes on over a new connection, for which p says where to listen and to connect; p is not
// used otherwise.
func Recover(ctx context.Context, src, dst *endpoint.Endpoint, p plan.Plan, o plan.Options) (record.Holder, string,
	error) {
	m := newMigration(src, dst, plan.Plan{Listen: p.Listen, Connect: cmp.Or(p.Connect, p.Listen), StallLimit: p.StallLimit,
		RecoverLimit: p.RecoverLimit}, o)
	defer m.run.Close()
	c := &run.Custody{Run: m.run, Situation: holder.Situation{Asker: holder.Recover},
		Reaches: map[*run.Side]holder.Reach{}}
	for _, s := range []*run.Side{m.run.Src, m.run.Dst} {
		if err := s.Open(ctx, m.run.Opts); err != nil {
			var other run.MonitorError
			if errors.As(err, &other) { // the first one has answered, so this tells nothing of the QEMU
				return record.Unknown, "", fmt.Errorf("%w; nothing was changed", err)
			}
			if c.Reaches[s] = reach(err); c.Err != nil {
				err = fmt.Errorf("%w; %w", c.Err, err) // in one line
			}
			c.Err = err
		}
	}
	if len(c.Reaches) == 0 {
		c.Situation.Strangers = strangers(ctx, m.run)
	}
	if c.Reaches[m.run.Src] == "" {
		c.Situation.Leftover = m.leftovers(ctx)
	}
	if m.run.Src.Facts != nil {
		c.Situation.Takes, c.Situation.Jams = m.run.Src.Facts.Before(10, 0), m.run.Src.Facts.Jams()
		c.Situation.Begun, c.Situation.Gives = m.run.Src.Facts.Capabilities["postcopy-ram"],
			m.run.Src.Facts.Capabilities["release-ram"]
	}
	if m.run.Dst.Facts != nil {
		c.Situation.Locks = m.run.Dst.Facts.Before(10, 0) && !m.run.Dst.Facts.Capabilities["late-block-activate"]
	}
	d, ok := c.Settle(ctx)
	if !ok {
		return record.Unknown, "", fmt.Errorf("recovery did not come to its end: %w: try again; %s",
			cmp.Or(context.Cause(ctx), c.Err), c.Said())
	}
	if d.Do == holder.Mend {
		guest, text, err := m.recoverPostCopy(ctx)
		if len(c.Did) > 0 && err != nil {
			err = fmt.Errorf("%w; %s", err, c.Said())
		} else if len(c.Did) > 0 {
			text = c.Said() + ": " + text
		}
		return guest, text, err
	}
	text := c.Fill(d.Text)
	if d.Doubt {
		return d.Guest, "", endpoint.Explain(text+"; "+c.Said(), c.Err)
	}
	if d.Nothing && len(c.Did) == 0 {
		text = "there is nothing to recover: " + text
	}
	if len(c.Did) > 0 {
		text = c.Said() + ": " + text
	}
	if slices.Contains(c.Did, run.Continued) {
		text += "; if it had been paused on purpose, `stop` it again"
	}
	if c.Situation.Leftover && d.Guest == record.Source {
		if err := m.mirrors.drop(ctx); err != nil {
			return d.Guest, "", fmt.Errorf("%s; %w: try again", text, err)
		}
		text += "; what an interrupted mirror had left on the source was removed"
	}
	return d.Guest, text, nil
}

// reach is what an endpoint that could not be opened tells. Nobody listens on a unix socket whose QEMU is dead;
// behind an address of another machine, or where there is no socket, that nobody listens means nothing. Any other
// error is a QEMU that is there and does not answer as it should.
func reach(err error) holder.Reach {
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Net == "unix" && errors.Is(err, syscall.ECONNREFUSED):
		return holder.Dead
	case run.Refused(err):
		return holder.Lost
	}
	return holder.Silent
}

// recoverPostCopy goes on with a post-copy that nobody attends, whose destination runs: nothing is cancelled, for
// both sides have a part of the guest.
func (m *migration) recoverPostCopy(ctx context.Context) (record.Holder, string, error) {
	m.run.Rec.PostCopy = &record.PostCopyFigures{}
	m.run.Split, m.run.ContSent, m.run.Committed = true, true, true
	m.run.Rec.Stages = append(m.run.Rec.Stages, record.Stage{Name: record.PostCopy}) // what follow ends
	if m.linkLost() {
		if m.run.Plan.Connect == "" {
			return record.Destination, "", fmt.Errorf("post-copy is paused for want of a link (source %s, destination %s): "+
				"give listen, the URI where the destination is to listen anew, and connect if the source reaches that under "+
				"another address", m.run.Src.Status, m.run.Dst.Status)
		}
		if err := m.mendLink(ctx); err != nil {
			return record.Destination, "", err
		}
	}
	if err := m.followUntilLost(ctx); err != nil {
		return record.Destination, "", fmt.Errorf("post-copy was interrupted again: %w: try again", err)
	}
	return record.Destination, "post-copy has ended: the guest runs on the destination, the source QEMU can be ended", nil
}

// strangers is why two QEMUs cannot be the ends of one migration; "" if nothing speaks against it.
func strangers(ctx context.Context, r *run.Run) string {
	a, b := r.Src.Facts, r.Dst.Facts
	if a.Same(b) {
		return fmt.Sprintf("source %s and destination %s are the same QEMU", a.Name, b.Name)
	}
	differ := ""
	switch {
	case a.Machine != b.Machine:
		differ = fmt.Sprintf("machines (%s, %s)", a.Machine, b.Machine)
	case a.MemoryBytes != b.MemoryBytes:
		differ = fmt.Sprintf("memory (%d KiB, %d KiB)", a.MemoryBytes>>10, b.MemoryBytes>>10)
	case a.VCPUs != b.VCPUs:
		differ = fmt.Sprintf("numbers of vCPUs (%d, %d)", a.VCPUs, b.VCPUs)
	default:
		x, asked := r.Src.Uuid(ctx)
		if y, err := r.Dst.Uuid(ctx); asked == nil && err == nil && x != y {
			differ = fmt.Sprintf("UUIDs (%s, %s)", cmp.Or(x, "none"), cmp.Or(y, "none"))
		}
	}
	if differ == "" {
		return ""
	}
	return fmt.Sprintf("source %s and destination %s have different %s: they are not the two ends of one migration",
		a.Name, b.Name, differ)
}

// leftovers tells whether the source has jobs or nodes of mirrors of ours. One that does not say has none that would
// matter now.
func (m *migration) leftovers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, run.AnswerLimit)
	defer cancel()
	if jobs, err := mirrorJobs(ctx, m.run.Src.Control); err != nil || len(jobs) > 0 {
		return err == nil
	}
	nodes, err := blockNodes(ctx, m.run.Src.Control)
	ours := func(n blockNode) bool { return strings.HasPrefix(n.Name, facts.MirrorPrefix) }
	return err == nil && slices.ContainsFunc(nodes, ours)
}
