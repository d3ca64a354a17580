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
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
)

// Recover ends what an interrupted run left behind two QEMUs, and returns which side has the guest now and, in one
// sentence, what was done and why. It decides from what both say of themselves (holder.Recover): the source goes on
// unless the migration completed, for only then can the destination have been told to run; if it completed and the
// source has not run since, the destination goes on. It may be called again after an error, and when there is nothing
// to recover.
//
// A post-copy that is paused goes on over a new connection, for which p says where to listen and to connect; p is not used otherwise.
func Recover(ctx context.Context, src, dst *endpoint.Endpoint, p plan.Plan, o plan.Options) (record.Holder, string, error) {
	m := newMigration(src, dst, plan.Plan{Listen: p.Listen, Connect: cmp.Or(p.Connect, p.Listen), StallLimit: p.StallLimit, RecoverLimit: p.RecoverLimit}, o)
	defer m.close()
	c := &custody{m: m, s: holder.Situation{Asker: holder.Recover}, reaches: map[*side]holder.Reach{}}
	for _, s := range []*side{m.src, m.dst} {
		if err := s.open(ctx, m.opts); err != nil {
			var other monitorError
			if errors.As(err, &other) { // the first one has answered, so this tells nothing of the QEMU
				return record.Unknown, "", fmt.Errorf("%w; nothing was changed", err)
			}
			if c.reaches[s] = reach(err); c.err != nil {
				err = fmt.Errorf("%w; %w", c.err, err) // in one line
			}
			c.err = err
		}
	}
	if len(c.reaches) == 0 {
		c.s.Strangers = m.strangers(ctx)
	}
	if c.reaches[m.src] == "" {
		c.s.Leftover = m.leftovers(ctx)
	}
	if m.src.facts != nil {
		c.s.Takes, c.s.Jams = m.src.facts.Before(10, 0), m.src.facts.Jams()
		c.s.Begun, c.s.Gives = m.src.facts.Capabilities["postcopy-ram"], m.src.facts.Capabilities["release-ram"]
	}
	if m.dst.facts != nil {
		c.s.Locks = m.dst.facts.Before(10, 0) && !m.dst.facts.Capabilities["late-block-activate"]
	}
	d, ok := c.settle(ctx)
	if !ok {
		return record.Unknown, "", fmt.Errorf("recovery did not come to its end: %w: try again; %s",
			cmp.Or(context.Cause(ctx), c.err), c.done())
	}
	if d.Do == holder.Mend {
		guest, text, err := m.recoverPostCopy(ctx)
		if len(c.did) > 0 && err != nil {
			err = fmt.Errorf("%w; %s", err, c.done())
		} else if len(c.did) > 0 {
			text = c.done() + ": " + text
		}
		return guest, text, err
	}
	text := c.fill(d.Text)
	if d.Doubt {
		return d.Guest, "", endpoint.Explain(text+"; "+c.done(), c.err)
	}
	if d.Nothing && len(c.did) == 0 {
		text = "there is nothing to recover: " + text
	}
	if len(c.did) > 0 {
		text = c.done() + ": " + text
	}
	if slices.Contains(c.did, continued) {
		text += "; if it had been paused on purpose, `stop` it again"
	}
	if c.s.Leftover && d.Guest == record.Source {
		if err := m.dropMirrors(ctx); err != nil {
			return d.Guest, "", fmt.Errorf("%s; %w: try again", text, err)
		}
		text += "; what an interrupted mirror had left on the source was removed"
	}
	return d.Guest, text, nil
}

// done is what the recovery has done, in words.
func (c *custody) done() string {
	if len(c.did) == 0 {
		return "nothing was changed"
	}
	return strings.Join(c.did, ", ")
}

// reach is what an endpoint that could not be opened tells. Nobody listens on a unix socket whose QEMU is dead;
// behind an address of another machine, or where there is no socket, that nobody listens means nothing. Any other
// error is a QEMU that is there and does not answer as it should.
func reach(err error) holder.Reach {
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Net == "unix" && errors.Is(err, syscall.ECONNREFUSED):
		return holder.Dead
	case refused(err):
		return holder.Lost
	}
	return holder.Silent
}

// recoverPostCopy goes on with a post-copy that nobody attends, whose destination runs: nothing is cancelled, for
// both sides have a part of the guest.
func (m *migration) recoverPostCopy(ctx context.Context) (record.Holder, string, error) {
	m.rec.PostCopy = &record.PostCopyFigures{}
	m.split, m.contSent, m.committed = true, true, true
	m.rec.Stages = append(m.rec.Stages, record.Stage{Name: record.PostCopy}) // what follow ends
	if m.linkLost() {
		if m.plan.Connect == "" {
			return record.Destination, "", fmt.Errorf("post-copy is paused for want of a link (source %s, destination %s): give --listen URI, where the destination is to listen anew, and --connect URI if the source reaches that under another address", m.src.status, m.dst.status)
		}
		if err := m.mendLink(ctx); err != nil {
			return record.Destination, "", err
		}
	}
	if err := m.follow(ctx); err != nil {
		return record.Destination, "", fmt.Errorf("post-copy was interrupted again: %w: try again", err)
	}
	return record.Destination, "post-copy has ended: the guest runs on the destination, the source QEMU can be ended", nil
}

// strangers is why two QEMUs cannot be the ends of one migration; "" if nothing speaks against it.
func (m *migration) strangers(ctx context.Context) string {
	a, b := m.src.facts, m.dst.facts
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
		x, asked := m.src.uuid(ctx)
		if y, err := m.dst.uuid(ctx); asked == nil && err == nil && x != y {
			differ = fmt.Sprintf("UUIDs (%s, %s)", cmp.Or(x, "none"), cmp.Or(y, "none"))
		}
	}
	if differ == "" {
		return ""
	}
	return fmt.Sprintf("source %s and destination %s have different %s: they are not the two ends of one migration", a.Name, b.Name, differ)
}

// uuid is the guest's; "" if it has none.
func (s *side) uuid(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	return facts.ReadUUID(ctx, s.control)
}

// leftovers tells whether the source has jobs or nodes of mirrors of ours. One that does not say has none that would
// matter now.
func (m *migration) leftovers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if jobs, err := mirrorJobs(ctx, m.src.control); err != nil || len(jobs) > 0 {
		return err == nil
	}
	nodes, err := blockNodes(ctx, m.src.control)
	ours := func(n blockNode) bool { return strings.HasPrefix(n.Name, facts.MirrorPrefix) }
	return err == nil && slices.ContainsFunc(nodes, ours)
}
