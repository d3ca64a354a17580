package handover

import (
	"os"

	"qmigrate/engine/holder"
	"qmigrate/engine/record"
)

// proposed are rules that the model asks for before holder has them.
func (m *model) proposed(s holder.Situation) (holder.Decision, bool) {
	if os.Getenv("NOPROP") != "" {
		return holder.Decision{}, false
	}
	on := func(tag string) bool { return os.Getenv("SKIP") != tag }
	src, dst := s.Source, s.Destination
	do := func(what holder.Step, why string) (holder.Decision, bool) {
		return holder.Decision{Do: what, Rule: "proposed: " + why}, true
	}
	undo := s.Asker == holder.Undo && src.Reach == holder.Answers
	never := (s.Ran == holder.Never || s.Ran == holder.Maybe && s.Sent < holder.SentCont) && dst.Run != holder.Running
	switch {
	case s.Asker == holder.Undo && s.Sent < holder.SentMigrate && src.Reach == holder.Silent && (dst.Reach == holder.Dead || s.Unended):
		return said(record.Unknown, "nothing was sent, and the source does not answer: ask $S; `cont` runs it if it is paused"), true
	case on("P20") && undo && src.Run == holder.Running && dst.Reach == holder.Dead && s.Sent == holder.SentCont && s.Ran != holder.Never:
		return said(record.Source, "P20: it ran on the destination, which died, and the source's QEMU has gone back to the switch by itself"), true
	case on("P21") && undo && src.Status == holder.Split && dst.Reach == holder.Dead && s.Sent == holder.SentCont && !s.Waited:
		return do(holder.Wait, "P21: the source says in a moment whether it pauses, or fails and goes back by itself")
	case on("P18") && undo && s.Ran == holder.Maybe && dst.Reach == holder.Dead && s.Begun && src.Status == holder.Split && !s.Waited:
		return do(holder.Wait, "P18: the source says in a moment whether it fails or pauses")
	case on("P18") && undo && s.Ran == holder.Maybe && dst.Reach == holder.Dead && s.Begun &&
		(src.Status == holder.Split || src.Status == holder.SplitLost || src.Status == holder.SplitMend):
		return said(record.None, "P18: it may have run on the destination, which died"), true
	case on("P16") && s.Asker == holder.Undo && s.Elsewhere && src.Reach != holder.Answers && s.Sent >= holder.SentMigrate && s.Waited &&
		(dst.Status == holder.None || dst.Status == holder.Listening):
		return said(record.Unknown, "P16: it may have gone to another QEMU, which may run it"), true
	case on("P15") && undo && src.Run == holder.Finishing && (src.Status == holder.Failed || src.Status == holder.Cancelled) && s.Waited && never &&
		dst.Reach == holder.Answers && dst.Status == holder.Arrived:
		return said(record.None, "P15: a source that has failed and stays in finish-migrate cannot be continued (10.2 and newer): end it, `cont` on $D"), true
	case on("P15") && undo && src.Run == holder.Finishing && (src.Status == holder.Failed || src.Status == holder.Cancelled) && !s.Waited:
		return do(holder.Wait, "P15: see whether it stays so")
	case on("P11") && s.Asker == holder.Undo && src.Reach == holder.Dead && dst.Reach == holder.Answers && s.Waited && never &&
		(dst.Status == holder.Listening || dst.Status == holder.Active || dst.Status == holder.Device || dst.Status == holder.Split):
		return said(record.None, "P11: the source QEMU died, and the destination does not say whether it has all of it"), true
	case on("P12") && s.Asker == holder.Undo && s.Begun && src.Reach == holder.Silent && s.Sent < holder.SentCont && never && dst.Reach == holder.Answers:
		loaded := dst.Status == holder.Arrived || dst.Status == holder.Device || dst.Status == holder.Split || dst.Status == holder.SplitLost
		switch {
		case !s.Waited && !s.Cancelled:
			return do(holder.Wait, "P12: the switch usually ends by itself")
		case !loaded && !s.Cancelled:
			return do(holder.Yank, "P12: it may hang in a write")
		case !s.Waited:
			return do(holder.Wait, "P12: it may need a moment")
		}
		return said(record.Unknown, "P12: the source does not answer in the switch: end neither QEMU; --recover once it answers"), true
	case on("P13") && undo && s.Gives && s.Begun && (src.Status == holder.Failed || src.Status == holder.Cancelled) && src.Run != holder.Running && never &&
		(src.Run != holder.Finishing || s.Waited):
		switch {
		case dst.Reach == holder.Answers && dst.Status == holder.Arrived && !s.Refused:
			return do(holder.RunDestination, "P13: release-ram, and all memory is there")
		case dst.Reach != holder.Dead && !s.Waited:
			return do(holder.Wait, "P13: release-ram: the rest may be on its way")
		}
		return said(record.None, "P13: with release-ram the source may have given its memory away: look at both"), true
	case on("P1") && undo && s.Begun && src.Run == holder.Finishing && !s.Waited &&
		(src.Status == holder.Failed || src.Status == holder.Cancelled || src.Status == holder.Departed):
		return do(holder.Wait, "P1: a source that has failed, or completed, is in finish-migrate for a moment")
	case on("P2") && undo && s.Begun && src.Status == holder.Split && dst.Reach == holder.Dead && s.Cancelled && !s.Waited:
		return do(holder.Wait, "P2: a source whose destination is dead says in a moment whether it fails or pauses")
	case on("P3") && undo && s.Begun && (src.Status == holder.Active || src.Status == holder.Device || src.Status == holder.Split) && !s.Waited && !s.Cancelled && dst.Reach != holder.Dead && never && s.Sent < holder.SentCont:
		return do(holder.Wait, "P3: the switch usually ends by itself; closing its connection may cost the guest")
	case on("P7") && s.Asker == holder.Undo && s.Sent == holder.SentCont && dst.Reach == holder.Answers && dst.Run == holder.InMigrate && !s.Refused:
		if !s.Waited {
			return do(holder.Wait, "P7: it was told, and loads still")
		}
		return said(record.None, "$D was told to run it, and has not loaded it: let both QEMUs live"), true
	case on("P8") && undo && s.Begun && src.Status == holder.Departed && dst.Reach == holder.Answers && !s.Unended && s.Waited && never &&
		(dst.Status == holder.None || dst.Status == holder.Listening || dst.Status == holder.Active):
		return do(holder.End, "P8: the switch came too late, it completed as a pre-copy, and not all of it has come")
	case on("P9") && undo && s.Sent == holder.SentCont && never && dst.Reach == holder.Answers && dst.Status == holder.Arrived &&
		(src.Status == holder.Split || src.Status == holder.SplitLost || src.Status == holder.SplitMend):
		if !s.Refused {
			return do(holder.RunDestination, "P9: the destination has all of it, and the source cannot go back")
		}
		return said(record.Destination, "it is there, paused, and does not start: `cont` on $D runs it"), true
	case on("P4") && s.Asker == holder.Undo && src.Reach == holder.Dead && dst.Reach == holder.Answers && dst.Run == holder.Running &&
		dst.Status == holder.Split && !s.Waited:
		return do(holder.Wait, "P4: the last of the memory may be on its way")
	case on("P6") && undo && dst.Reach == holder.Answers && dst.Run == holder.Running && (src.Status == holder.Failed || src.Status == holder.Cancelled):
		switch {
		case dst.Status == holder.Split && !s.Waited:
			return do(holder.Wait, "P6: the last of the memory may be on its way")
		case dst.Status == holder.Split || dst.Status == holder.SplitLost || dst.Status == holder.SplitMend:
			return said(record.None, "it is lost: the source has ended its migration, and what the destination misses will not come"), true
		}
	}
	if s.Asker != holder.Recover {
		return holder.Decision{}, false
	}
	d := holder.Decide(s)
	switch {
	case on("R8") && d.Do == holder.Cancel && m.Mode == postCopy && src.Status == holder.Active:
		return do(holder.Yank, "R8: postcopy-ram is on, so migrate_cancel might cross the switch")
	case on("R7") && d.Do == holder.RunDestination && dst.Run == holder.InMigrate && !s.Waited:
		return do(holder.Wait, "R7: the destination loads; `cont` would only be noted")
	case d.Do == holder.RunDestination && dst.Run == holder.InMigrate:
		return said(record.Unknown, "the destination does not load the guest: let both QEMUs live, and try again"), true
	}
	if on("R11") && s.Sent == holder.SentCont && src.Reach == holder.Answers && src.Status == holder.Split && !s.Waited &&
		(dst.Reach == holder.Dead || dst.Reach == holder.Lost) {
		return do(holder.Wait, "R11: as P21")
	}
	if on("R11") && s.Sent == holder.SentCont && src.Run != holder.Running && (dst.Reach == holder.Dead || dst.Reach == holder.Lost) {
		return said(record.None, "R11: this --recover has told the destination to run, and it died"), true
	}
	if on("R13") && src.Reach == holder.Answers && src.Status == holder.Failed && s.Begun && m.Source >= v10 && src.Run == holder.Running &&
		(dst.Reach == holder.Dead || dst.Reach == holder.Lost) && !s.Ended {
		return said(record.Source, "R13: the destination may have run it, and the source's QEMU has gone back to the switch by itself"), true
	}
	if on("R12") && src.Reach == holder.Answers && src.Status == holder.Failed && s.Begun && m.Source >= v10 && src.Run != holder.Running &&
		(dst.Reach == holder.Dead || dst.Reach == holder.Lost) && !s.Ended {
		return said(record.None, "R12: from 10.0 on `failed` may be the end of a post-copy: the destination may have run it"), true
	}
	gone := src.Reach == holder.Dead || src.Reach == holder.Lost
	switch {
	case on("R2") && src.Reach == holder.Answers && src.Run == holder.Finishing && !s.Waited &&
		(src.Status == holder.Failed || src.Status == holder.Cancelled || src.Status == holder.Departed):
		return do(holder.Wait, "R2: as P1")
	case on("R10") && src.Reach == holder.Answers && src.Run == holder.Finishing && dst.Reach == holder.Answers && dst.Status == holder.Arrived &&
		(src.Status == holder.Failed || src.Status == holder.Cancelled) && dst.Run != holder.Running:
		return said(record.None, "R10: as P15"), true
	case on("R1") && gone && dst.Reach == holder.Answers && !s.Waited &&
		(dst.Status == holder.Listening || dst.Status == holder.Active || dst.Status == holder.Device || dst.Status == holder.Split):
		return do(holder.Wait, "R1: the last of it may be on its way to the destination")
	}
	return holder.Decision{}, false
}
