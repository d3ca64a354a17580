package handover

import (
	"os"

	"qmigrate/engine/holder"
	"qmigrate/engine/record"
)

// proposed are rules that the model asks for before holder has them.
func (m *model) proposed(s holder.Situation) (holder.Decision, bool) {
	skip := os.Getenv("SKIP")
	on := func(tag string) bool { return skip != "all" && skip != tag }
	do := func(what holder.Step, why string) (holder.Decision, bool) {
		return holder.Decision{Do: what, Rule: "proposed: " + why}, true
	}
	src, dst := s.Source, s.Destination
	asked := src.Reach == holder.Answers
	ended := src.Status == holder.Failed || src.Status == holder.Cancelled
	atEnd := asked && src.Run == holder.Finishing && (ended || src.Status == holder.Departed) // for a moment
	split := src.Status == holder.Split || src.Status == holder.SplitLost || src.Status == holder.SplitMend
	never := (s.Ran == holder.Never || s.Ran == holder.Maybe && s.Sent < holder.SentCont) && dst.Run != holder.Running
	gone := dst.Reach == holder.Dead || dst.Reach == holder.Lost
	told := s.Sent == holder.SentCont
	if s.Asker == holder.Recover {
		switch {
		case on("R1") && (src.Reach == holder.Dead || src.Reach == holder.Lost) && dst.Reach == holder.Answers && !s.Waited &&
			dst.Status == holder.Listening:
			return do(holder.Wait, "R1: a connection may lie in the destination's queue")
		case on("R2") && atEnd && !s.Waited:
			return do(holder.Wait, "R2: a source that has failed, or completed, is in finish-migrate for a moment")
		case on("R10") && atEnd && ended && dst.Reach == holder.Answers && dst.Status == holder.Arrived && dst.Run != holder.Running:
			return said(record.None, "R10: as P15"), true
		case on("R11") && told && asked && src.Status == holder.Split && gone && !s.Waited:
			return do(holder.Wait, "R11: as P21")
		case on("R11") && told && gone && src.Run != holder.Running:
			return said(record.None, "R11: this --recover has told the destination to run, and it died"), true
		case on("R13") && asked && src.Status == holder.Failed && s.Begun && m.Source >= v10 && src.Run == holder.Running && gone && !s.Ended:
			return said(record.Source, "R13: the destination may have run it, and the source's QEMU has gone back to the switch by itself"), true
		case on("R12") && asked && src.Status == holder.Failed && s.Begun && m.Source >= v10 && src.Run != holder.Running && gone && !s.Ended:
			return said(record.None, "R12: from 10.0 on `failed` may be the end of a post-copy: the destination may have run it"), true
		}
		return holder.Decision{}, false
	}
	switch {
	case on("P13") && told && s.Gives && s.Begun && asked && ended && src.Run != holder.Running && never && dst.Reach != holder.Dead && !s.Waited:
		return do(holder.Wait, "P13: release-ram: the source may have given its memory away, and the rest may be on its way")
	case on("P13") && told && s.Gives && s.Begun && asked && ended && src.Run != holder.Running && never && dst.Status != holder.Arrived:
		return said(record.None, "P13: with release-ram the source may have given its memory away: look at both"), true
	case on("P13") && told && s.Gives && s.Begun && asked && ended && src.Run != holder.Running && never && dst.Reach == holder.Answers && dst.Status == holder.Arrived && !s.Refused:
		return do(holder.RunDestination, "P13: release-ram, and all memory is there")
	case on("P13") && told && s.Gives && s.Begun && asked && ended && src.Run != holder.Running && never && dst.Reach != holder.Dead && dst.Status == holder.Arrived:
		return said(record.Destination, "P13: it is there, paused, and does not start"), true
	case on("P7") && told && dst.Reach == holder.Answers && dst.Run == holder.InMigrate && !s.Waited:
		return do(holder.Wait, "P7: it was told, and loads still")
	case on("P7") && told && dst.Reach == holder.Answers && dst.Run == holder.InMigrate && s.Ran == holder.Maybe:
		return said(record.None, "P7: it was told, and does not load: let both QEMUs live"), true
	case on("P20") && asked && src.Run == holder.Running && dst.Reach == holder.Dead && told && s.Ran != holder.Never:
		return said(record.Source, "P20: it ran on the destination, which died, and the source's QEMU has gone back to the switch by itself"), true
	case on("P21") && asked && src.Status == holder.Split && dst.Reach == holder.Dead && told && !s.Waited:
		return do(holder.Wait, "P21: the source says in a moment whether it pauses, or fails and goes back by itself")
	case on("P18") && asked && s.Ran == holder.Maybe && dst.Reach == holder.Dead && s.Begun && src.Status == holder.Split && !s.Waited:
		return do(holder.Wait, "P18: as P21")
	case on("P18") && asked && s.Ran == holder.Maybe && dst.Reach == holder.Dead && s.Begun && split:
		return said(record.None, "P18: it may have run on the destination, which died"), true
	case on("P16") && s.Elsewhere && !asked && s.Sent >= holder.SentMigrate && s.Waited &&
		(dst.Status == holder.None || dst.Status == holder.Listening):
		return said(record.Unknown, "P16: it may have gone to another QEMU, which may run it"), true
	case on("P15") && atEnd && ended && s.Waited && never && dst.Reach == holder.Answers && dst.Status == holder.Arrived:
		return said(record.None, "P15: 10.2 and newer stay in finish-migrate if the destination holds the disks: end it, `cont` on $D"), true
	case on("P1") && atEnd && !s.Waited:
		return do(holder.Wait, "P1: a source that has failed, or completed, is in finish-migrate for a moment")
	case on("P11") && src.Reach == holder.Dead && dst.Reach == holder.Answers && s.Waited && never &&
		(dst.Status == holder.Listening || dst.Status == holder.Active || dst.Status == holder.Device || dst.Status == holder.Split):
		return said(record.None, "P11: the source QEMU died, and the destination does not say whether it has all of it"), true
	}
	return holder.Decision{}, false
}
