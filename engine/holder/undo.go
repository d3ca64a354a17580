package holder

import (
	"slices"

	"qmigrate/engine/record"
)

// What a live run does after a failure, in the order in which the rules are tried. The first one whose condition
// holds decides.

// untouched: nothing of this migration has come to the destination, as far as it said last.
func (q QEMU) untouched() bool { return q.Status == None || q.Status == Listening || q.Status == "" }

// back: the source has its guest back, or never began to give it away.
func (q QEMU) back() bool {
	switch q.Status {
	case None, Listening, Cancelled, Failed, Arrived, "":
		return true
	}
	return false
}

// ended: its migration has come to an end without success.
func (q QEMU) ended() bool { return q.Status == Cancelled || q.Status == Failed }

// spent: the source has failed with release-ram, so what it sent in post-copy may be gone from it.
func (s Situation) spent() bool {
	return s.Begun && s.Gives && s.Source.Reach == Answers && s.Source.ended() && !s.Source.runs()
}

// takesBack: the source's QEMU gives its guest back when its post-copy is cancelled, and the destination has never
// had it. Before 10.0 it takes migrate_cancel then; in postcopy-paused its migration's thread would wait for ever,
// and the guest with it (7.2.22, postcopy_pause).
func (s Situation) takesBack() bool {
	return s.Takes && !s.Gives && s.Source.Reach == Answers && s.Source.Status == Split && s.Ran == Never &&
		(s.Destination.Reach == Dead || s.Destination.Run == InMigrate && s.Destination.Status == Active)
}

// blind: the destination is dead, and the source, which it had not run for, still counts on it in a post-copy that it
// cannot cancel.
func (s Situation) blind() bool {
	return !s.Takes && s.Source.Reach == Answers && s.Destination.Reach == Dead &&
		(s.Source.Status == Device || s.Source.Status == Split)
}

// jammed: the source has failed and stands still in finish-migrate, where QEMU takes no `cont`: from 10.2 on it does
// so if the destination holds the disks. An older one is only slow.
func (s Situation) jammed() bool {
	return s.Source.Reach == Answers && s.Source.Run == Finishing && s.Source.ended() && s.Waited
}

// held: the destination has everything and could be ended, and the source, which answers, would not take `cont`: the
// guest would be nowhere.
func (s Situation) held() bool {
	return s.Source.Reach == Answers && s.Destination.whole() && s.killable() && !s.Source.Run.takesCont() && !s.frees()
}

// frees: the destination holds the locks that the source needs to leave finish-migrate, and its end lets the source's
// migration fail. So it is the one case in which the fence comes before the source takes `cont`.
func (s Situation) frees() bool {
	return s.Locks && s.Waited && s.Source.Run == Finishing && s.Source.sends()
}

// handed: the source has given the guest away in post-copy and cannot take it back by itself any more.
func (s Situation) handed() bool {
	return (s.Source.Status.split() || s.Begun && s.Source.Status == Departed) && !s.Tentative
}

// told: the destination was told to run the guest, by us or by somebody else, or was seen to.
func (s Situation) told() bool { return s.Sent == SentCont || s.Ran == Has || s.Destination.runs() }

// whole: the destination has all of the guest, memory included.
func (q QEMU) whole() bool { return q.Status == Arrived }

// loaded: the destination has all that it needs to be told to run.
func (q QEMU) loaded() bool { return q.Status == Arrived || q.Status.split() }

// killable: the destination lives, and ending it was not tried in vain.
func (s Situation) killable() bool { return s.Destination.Reach != Dead && !s.Unended }

const (
	askSource = "ask $S for query-status"
	bothDied  = "it is lost: both QEMUs died"
	partThere = "it is lost: the source QEMU died while a part of its memory was still there; the destination stands " +
		"still at the first page that it misses"
	laterAgain = "`qmigrate migrate --recover` with the same endpoints goes on from there"
	laterLink  = "let both QEMUs live, mend the link, then `qmigrate migrate --recover --source $S --destination $D`"
	lookAtBoth = "with release-ram the source may have given up what it had sent: look at the memory on $S before `cont` " +
		"there, or on $D if its query-migrate says completed"
	goBack = "The source holds it as it was when it stopped; `cont` on $S goes back to then, which is safe only if " +
		"nothing outside it, a disk above all, has seen what it did since"
)

var undoRules = slices.Concat(beforeRules, toldRules, switchRules, sentRules)

// beforeRules are for a source that runs alone, and for what comes before `migrate`.
var beforeRules = []rule{
	{
		"the source is at its end for a moment", "finish-migrate ends by itself",
		func(s Situation) bool {
			return s.Sent >= SentMigrate && s.Source.Reach == Answers && s.Source.Run == Finishing &&
				(s.Source.ended() || s.Source.Status == Departed) && !s.Waited
		},
		step(Wait),
	},
	{
		"source runs, destination dead: end the migration",
		"a dead host breaks no connection, so it may send for long",
		func(s Situation) bool {
			return s.Source.runs() && s.Destination.Reach == Dead && s.Sent >= SentMigrate &&
				!s.Source.Status.Final() && !s.Cancelled
		},
		step(Cancel),
	},
	{
		"source runs, destination dead: wait for its end",
		"usually milliseconds; a source that connects into nothing takes minutes",
		func(s Situation) bool {
			return s.Source.runs() && s.Destination.Reach == Dead && s.Sent >= SentMigrate &&
				!s.Source.Status.Final() && !s.Waited
		},
		step(Wait),
	},
	{
		"source runs again, destination ran and died", "its QEMU, or somebody, has gone back to the switch",
		func(s Situation) bool {
			return s.Source.runs() && s.Destination.Reach == Dead && s.told() && s.Ran != Never
		},
		stay(record.Source, "it may have run on the destination, which died, and runs on the source again as it was at the "+
			"switch-over: what it did in between is lost, and a disk may have seen it"),
	},
	{
		"source runs, destination dead", "nobody else can run it",
		func(s Situation) bool { return s.Source.runs() && s.Destination.Reach == Dead },
		stay(record.Source, ""),
	},
	{
		"source refuses to run, destination runs", "two QEMUs, and perhaps two guests",
		func(s Situation) bool {
			return s.Stuck && s.Source.Reach == Answers && s.Source.Run != Running && s.Destination.runs()
		},
		stay(record.Unknown, "the source is paused and is not continued ($E), and $D runs a guest: look whether it is the same"),
	},
	{
		"source refuses to run", "the destination is dead; a person has to see why",
		func(s Situation) bool {
			return s.Stuck && s.Source.Reach == Answers && s.Source.Run != Running &&
				!s.Destination.runs()
		},
		stay(record.None, "it is paused on the source, which does not continue it ($E): `cont` on $S, the "+
			"destination is dead"),
	},

	// Nothing of ours is under way.
	{
		"end a destination that waits in vain", "nothing comes to it any more, and it can do nothing else",
		func(s Situation) bool {
			return s.Sent == SentIncoming && s.killable() && !s.told() && (s.Destination.untouched() ||
				s.Destination.Status == Failed || s.Destination.Status == Cancelled)
		},
		step(End),
	},
	{
		"source dead before `migrate`", "it had the only guest",
		func(s Situation) bool { return s.Sent < SentMigrate && s.Source.Reach == Dead },
		stay(record.None, "it is lost: the source QEMU died before any of it was sent"),
	},
	{
		"source lost before `migrate`", "nothing was sent",
		func(s Situation) bool { return s.Sent < SentMigrate && s.Source.Reach == Lost },
		stay(record.Unknown, "the source's monitor was lost and nothing was sent: if that QEMU lives, it "+
			"holds the guest: "+askSource),
	},
	{
		"source silent before `migrate`", "it holds the guest, and is not seen to run it",
		func(s Situation) bool { return s.Sent < SentMigrate && s.Source.Reach == Silent },
		stay(record.Unknown, "nothing was sent, and the source does not answer: it has the guest; "+askSource+
			", `cont` runs it if it is paused there"),
	},
	{
		"source runs, the destination waits in vain", "it could not be ended",
		func(s Situation) bool { return s.Sent == SentIncoming && s.Unended && s.Source.Run == Running },
		stay(record.Source, "the destination QEMU still waits for a migration and could not be ended ($E): end $D"),
	},
	{
		"source runs before `migrate`", "it never lost the guest",
		func(s Situation) bool { return s.Sent < SentMigrate && s.Source.Run == Running },
		stay(record.Source, ""),
	},
	{
		"guest runs elsewhere already", "the pair was not source and destination",
		func(s Situation) bool {
			return s.Sent < SentMigrate && (s.Source.Run == InMigrate || s.Source.Run == Post) &&
				s.Destination.runs()
		},
		stay(record.Destination, ""),
	},
	{
		"somebody else has moved it", "what it holds is not ours to move any more",
		func(s Situation) bool {
			return s.Sent == SentIncoming && (s.Source.Run == InMigrate || s.Source.Run == Post ||
				s.Source.Run == Finishing)
		},
		stay(record.Unknown, "somebody else's migration has taken it from the source: ask $S for "+
			"query-migrate, and look where that went"),
	},
	{
		"not the source", "what it holds was not ours to move; the error says why",
		func(s Situation) bool {
			return s.Sent < SentMigrate && (s.Source.Run == InMigrate || s.Source.Run == Post ||
				s.Source.Run == Finishing)
		},
		stay(record.Unknown, ""),
	},
	{
		"guest was paused, before `migrate`", "it stays as it was",
		func(s Situation) bool { return s.Sent < SentMigrate && s.Leave },
		stay(record.Source, ""),
	},
	{
		"continue what we paused", "nothing was sent",
		func(s Situation) bool { return s.Sent < SentMigrate },
		step(RunSource),
	},
}
