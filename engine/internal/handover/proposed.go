package handover

import (
	"qmigrate/engine/holder"
	"qmigrate/engine/record"
)

// proposed are rules that the model asks for before holder has them.
func (m *model) proposed(s holder.Situation) (d holder.Decision, ok bool) {
	rule := func(name string, when bool, then holder.Decision) {
		if ok || !when || m.Without == "all" || m.Without == name {
			return
		}
		then.Rule = "proposed " + name + ": " + string(then.Do) + " " + then.Text
		d, ok = then, true
	}
	src, dst := s.Source, s.Destination
	asked, there := src.Reach == holder.Answers, dst.Reach == holder.Answers
	ended := src.Status == holder.Failed || src.Status == holder.Cancelled
	atEnd := asked && src.Run == holder.Finishing && (ended || src.Status == holder.Departed)
	still := there && dst.Run != holder.Running && s.Ran != holder.Has
	whole := still && dst.Status == holder.Arrived

	// finish-migrate after the end of a migration is there for a moment, in a switch to post-copy too.
	rule("P1", s.Asker == holder.Undo && atEnd && !s.Waited, holder.Decision{Do: holder.Wait})

	// What stays in finish-migrate may also be slow, and QEMU before 10.2 continues the guest then.
	rule("P15", atEnd && ended && s.Waited && whole, said(record.None, "the source has failed and does not end its "+
		"migration, and the destination has all of it: when $S is surely dead, `cont` on $D"))

	// A source that takes migrate_cancel in post-copy does so only while its connection lives: once that is broken, by
	// yank or by the end of the destination, it pauses, and a cancelled one that is paused stays cancelling.
	split := src.Status == holder.Split || src.Status == holder.SplitLost || src.Status == holder.SplitMend
	waits := asked && s.Takes && split && still && dst.Run == holder.InMigrate && dst.Status == holder.Active && s.Waited &&
		s.Sent != holder.SentCont
	rule("P22", waits && !s.Yanked && !s.Cancelled, holder.Decision{Do: holder.Cancel})
	rule("P22", waits, said(record.None, "the destination does not load it: let both QEMUs live"))

	// A destination that died with its host breaks no connection. A closed one makes the source say whether it can go
	// back: in postcopy-device, and after the last page, from 10.0 on, it does.
	dead := asked && dst.Reach == holder.Dead && !s.Takes && (src.Status == holder.Device || src.Status == holder.Split)
	rule("P23", dead && s.Waited && !s.Yanked, holder.Decision{Do: holder.Yank})
	rule("P23", dead && s.Yanked && !s.Waited, holder.Decision{Do: holder.Wait})
	return d, ok
}
