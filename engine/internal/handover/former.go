package handover

import (
	"qmigrate/engine/holder"
	"qmigrate/engine/record"
)

// former is a set of rules that are put back to what they were, or that are broken on purpose.
type former uint32

const (
	deviceIsHanded     former = 1 << iota // 1: postcopy-device counts as handed over
	recoversSplit                         // 2: --recover continues any paused postcopy-* destination
	noAllLimit                            // 3: no limit while the source waits for SHUT
	cancelsFirst                          // 3: migrate_cancel before the fence
	arrivalIsDeparture                    // 4: `completed` without ram is a departure
	givesUpCancelling                     // 5: a source that stays cancelling is not continued
	freshLimit                            // 6: each attempt to mend gets a fresh limit
	killsLoaded                           // 7: a loaded destination that only lost a monitor is ended
	refusedIsSent                         // 8: a refused `migrate` counts as sent
	elsewhereGoesBack                     // 9: the undo continues the source of a guest that went to another QEMU
	recoverIsActive                       // 11: postcopy-recover is not paused to be mended
	givenIsThere                          // 12: release-ram is forgotten where the destination has all memory
	staleAnswer                           // 13: an answer counts after the state that it told of is over
	noHangLimit                           // 14: a source that hangs before the last stage is waited for

	earlyCont         // `cont` before the source has completed
	contBeforeArrival // `cont` before the destination has everything
	noFence           // the source is continued while the destination lives
	trustsSilence     // no RESUME was seen counts where events were missed
	cutsReply         // Ctrl-C does not wait for the reply to `migrate`
	waitsOn           // a source that has completed and runs again is waited for
	offIsLost         // 15: a guest that powers itself off is lost
	looksBeside       // an undo asks on another monitor than the one on which events come
	runsIntoSwitch    // post-copy begins while the guest runs, so QEMU continues it when the link is lost before SHUT
	noTentative       // postcopy-active of a 7.2 counts at once
)

func (f former) has(g former) bool { return f&g != 0 }

// moved: the commit point is not holder.MayRun's.
func (f former) moved() bool { return f&(deviceIsHanded|earlyCont|contBeforeArrival|noTentative) != 0 }

// decide is holder.Decide with the former rules put back.
func (m *model) decision(s holder.Situation) holder.Decision {
	f := m.Former
	split := func(g holder.Status) bool { return g == holder.Split || g == holder.SplitLost || g == holder.SplitMend }
	src, dst := s.Source, s.Destination
	both := src.Reach == holder.Answers && dst.Reach == holder.Answers
	undo := s.Asker == holder.Undo
	switch {
	case f.has(noTentative):
		s.Tentative = false
	case f.has(givenIsThere) && dst.Status == holder.Arrived:
		s.Gives = false
	case f.has(deviceIsHanded) && undo && src.Status == holder.Device && dst.Reach == holder.Dead:
		return said(record.None, "it is lost: this source lets nobody go back")
	case f.has(recoversSplit) && !undo && both && split(dst.Status) && dst.Run != holder.Running && !s.Refused:
		return holder.Decision{Do: holder.RunDestination, Rule: "former: continue what is in post-copy"}
	case f.has(arrivalIsDeparture) && !undo && src.Status == holder.Departed && src.Run == holder.Running &&
		dst.Status == holder.Arrived && dst.Run == holder.Paused && !s.Unended:
		return holder.Decision{Do: holder.End, Rule: "former: the source runs it"}
	case f.has(givesUpCancelling) && src.Status == holder.Cancelling && s.Cancelled:
		return said(record.Unknown, "the source does not end its migration: the guest is its own")
	case f.has(killsLoaded) && undo && s.Begun && split(src.Status) && s.Ran != holder.Has &&
		dst.Run != holder.Running && dst.Reach != holder.Dead && !s.Unended:
		return holder.Decision{Do: holder.End, Rule: "former: never ran it, so it is ended"}
	case f.has(elsewhereGoesBack) && s.Elsewhere:
		s.Elsewhere = false
	}
	d := holder.Decide(s)
	switch {
	case f.has(cancelsFirst) && d.Do == holder.End && !s.Cancelled && dst.Status == holder.Arrived &&
		src.Status == holder.Active:
		return holder.Decision{Do: holder.Cancel, Rule: "former: cancel, then end the destination"}
	}
	return d
}

func said(g record.Holder, text string) holder.Decision {
	return holder.Decision{Do: holder.Stay, Guest: g, Text: text, Rule: "former"}
}
