package handover

import (
	"qmigrate/engine/holder"
	"qmigrate/engine/record"
)

// proposal is what a proposed rule looks at.
type proposal struct {
	holder.Situation
	off   string // Config.Without
	late  bool   // the source is a QEMU 10.0 or newer
	found holder.Decision
	ok    bool
}

// rule decides if no rule before it has, and it is not switched off.
func (p *proposal) rule(name string, when bool, then holder.Decision) {
	if p.ok || !when || p.off == "all" || p.off == name {
		return
	}
	then.Rule = "proposed: " + name
	if then.Text == "" {
		then.Rule += " " + string(then.Do)
	} else {
		then.Rule += ": " + then.Text
	}
	p.found, p.ok = then, true
}

// proposed are rules that the model asks for before holder has them.
func (m *model) proposed(s holder.Situation) (holder.Decision, bool) {
	p := &proposal{Situation: s, off: m.Without, late: m.Source >= v10}
	if s.Asker == holder.Recover {
		p.recover()
	} else {
		p.undo()
	}
	return p.found, p.ok
}

var wait = holder.Decision{Do: holder.Wait}

const (
	wentBack = "the destination may have run it and died, and the source's QEMU has gone back to the switch by itself"
	mayRun   = "it may have run on the destination, which died"
	stays    = "the source has failed and stays in finish-migrate, as 10.2 and newer do if the destination holds the " +
		"disks: end it, then `cont` on $D"
	given = "with release-ram the source may have given its memory away: look at both"
)

func (p *proposal) asked() bool { return p.Source.Reach == holder.Answers }

func (p *proposal) ended() bool {
	return p.Source.Status == holder.Failed || p.Source.Status == holder.Cancelled
}

// atEnd: finish-migrate after the end of a migration, which is there for a moment.
func (p *proposal) atEnd() bool {
	return p.asked() && p.Source.Run == holder.Finishing && (p.ended() || p.Source.Status == holder.Departed)
}

func (p *proposal) told() bool { return p.Sent == holder.SentCont }

// whole: the destination has everything and does not run.
func (p *proposal) whole() bool {
	return p.Destination.Reach == holder.Answers && p.Destination.Status == holder.Arrived &&
		p.Destination.Run != holder.Running
}

func (p *proposal) undo() {
	src, dst := p.Source, p.Destination
	asked, there := p.asked(), dst.Reach == holder.Answers
	never := dst.Run != holder.Running && (p.Ran == holder.Never || p.Ran == holder.Maybe && !p.told())
	given0 := p.told() && p.Gives && p.Begun && asked && p.ended() && src.Run != holder.Running && never &&
		dst.Reach != holder.Dead
	// A source that ends its migration as failed after release-ram: the destination may have the only guest.
	p.rule("P13", given0 && !p.Waited, wait)
	p.rule("P13", given0 && p.whole() && !p.Refused, holder.Decision{Do: holder.RunDestination})
	p.rule("P13", given0, said(record.None, given))
	// `cont` in inmigrate is noted only, so it is not sent again.
	p.rule("P7", p.told() && there && dst.Run == holder.InMigrate && !p.Waited, wait)
	p.rule("P7", p.told() && there && dst.Run == holder.InMigrate && p.Ran == holder.Maybe,
		said(record.None, "it was told, and does not load: let both QEMUs live"))
	// A QEMU 10.0 or newer whose destination died may fail, and go back by itself, whatever the destination has done.
	dead := asked && dst.Reach == holder.Dead
	p.rule("P20", dead && src.Run == holder.Running && p.told() && p.Ran != holder.Never, said(record.Source, wentBack))
	p.rule("P21", dead && src.Status == holder.Split && p.told() && !p.Waited, wait)
	p.rule("P18", dead && src.Status == holder.Split && p.Ran == holder.Maybe && p.Begun && !p.Waited, wait)
	p.rule("P18", dead && inPostCopy(src) && p.Ran == holder.Maybe && p.Begun, said(record.None, mayRun))
	p.rule("P16", p.Elsewhere && !asked && p.Sent >= holder.SentMigrate && p.Waited &&
		(dst.Status == holder.None || dst.Status == holder.Listening),
		said(record.Unknown, "it may have gone to another QEMU, which may run it"))
	p.rule("P15", p.atEnd() && p.ended() && p.Waited && never && p.whole(), said(record.None, stays))
	p.takesBack(never && !p.told())
	p.rule("P1", p.atEnd() && !p.Waited, wait)
	p.rule("P11", src.Reach == holder.Dead && there && p.Waited && never && loads(dst),
		said(record.None, "the source QEMU died, and the destination does not say whether it has all of it"))
}

func (p *proposal) recover() {
	src, dst := p.Source, p.Destination
	gone := dst.Reach == holder.Dead || dst.Reach == holder.Lost
	p.rule("R1", !p.asked() && src.Reach != holder.Silent && dst.Reach == holder.Answers && !p.Waited &&
		dst.Status == holder.Listening, wait) // a connection may lie in its queue
	p.takesBack(dst.Run != holder.Running)
	p.rule("R10", p.atEnd() && p.ended() && p.whole() && p.Waited, said(record.None, stays))
	// This --recover has told it to run.
	p.rule("R11", p.told() && gone && p.asked() && src.Status == holder.Split && !p.Waited, wait)
	p.rule("R11", p.told() && gone && src.Run != holder.Running, said(record.None, mayRun))
	// From 10.0 on `failed` may be the end of a post-copy.
	after := p.asked() && src.Status == holder.Failed && p.Begun && p.late && gone && !p.Ended
	p.rule("R13", after && src.Run == holder.Running, said(record.Source, wentBack))
	p.rule("R12", after && src.Run != holder.Running, said(record.None, mayRun))
}

// takesBack is for a source that takes migrate_cancel in post-copy. It does so only while its connection lives: once that
// is broken, by yank or by the end of the destination, it pauses, and a cancelled one that is paused stays cancelling.
func (p *proposal) takesBack(never bool) {
	waits := p.asked() && p.Takes && inPostCopy(p.Source) && p.Destination.Reach == holder.Answers &&
		p.Destination.Run == holder.InMigrate && p.Destination.Status == holder.Active && p.Waited && never
	p.rule("P22", waits && !p.Yanked && !p.Cancelled, holder.Decision{Do: holder.Cancel})
	p.rule("P22", waits, said(record.None, "the destination does not load it: let both QEMUs live"))
}

func inPostCopy(q holder.QEMU) bool {
	return q.Status == holder.Split || q.Status == holder.SplitLost || q.Status == holder.SplitMend
}

// loads: it has not everything, and is not known not to get it.
func loads(q holder.QEMU) bool {
	switch q.Status {
	case holder.Listening, holder.Active, holder.Device, holder.Split:
		return true
	}
	return false
}
