package holder

import "qmigrate/engine/record"

// sentRules are for what was sent by `migrate`, to a destination that was never told to run.
var sentRules = []rule{
	{
		"both dead, all was there", "nobody is left",
		func(s Situation) bool {
			return s.Source.Reach == Dead && s.Destination.Reach == Dead && s.Destination.whole()
		},
		stay(record.None, bothDied),
	},
	{
		"both dead", "nobody is left",
		func(s Situation) bool { return s.Source.Reach == Dead && s.Destination.Reach == Dead },
		stay(record.None, "it is lost: the source QEMU died before the destination had all of it"),
	},
	{
		"source dead, all is there, guest was paused", "it stays as it was",
		func(s Situation) bool {
			return s.Source.Reach == Dead && s.Destination.Reach == Answers && s.Destination.whole() && s.Leave
		},
		stay(record.Destination, ""),
	},
	{
		"source dead, all is there", "the destination has the only guest",
		func(s Situation) bool {
			return s.Source.Reach == Dead && s.Destination.Reach == Answers && s.Destination.whole() &&
				!s.Refused
		},
		step(RunDestination),
	},
	{
		"source dead, destination does not start", "it has the only guest",
		func(s Situation) bool {
			return s.Source.Reach == Dead && s.Destination.Reach == Answers && s.Destination.whole()
		},
		stay(record.None, "the source is dead and the destination does not start ($E): `cont` on $D"),
	},
	{
		"source out of reach, nothing has come: wait", "a connection may lie in the destination's queue",
		func(s Situation) bool {
			return s.Elsewhere && s.Source.Reach != Answers && s.Destination.untouched() && !s.Waited
		},
		step(Wait),
	},
	{
		"source out of reach, perhaps sent elsewhere", "the QEMU that it went to may run it",
		func(s Situation) bool { return s.Elsewhere && s.Source.Reach != Answers && s.Destination.untouched() },
		stay(record.Unknown, "the source cannot be asked, and nothing has come to $D: if it lives, $S has the guest; if it had "+
			"sent all of it, another QEMU may run it"),
	},
	{
		"source dead: wait for the rest", "the last of it may be on the way",
		func(s Situation) bool { return s.Source.Reach == Dead && s.Destination.Reach == Answers && !s.Waited },
		step(Wait),
	},
	{
		"source dead, destination is not whole", "what is missing died with the source",
		func(s Situation) bool {
			return s.Source.Reach == Dead && s.Destination.Reach == Answers && s.Destination.Status.Final() &&
				s.killable()
		},
		step(End),
	},
	{
		"source dead, destination cannot be ended", "what is missing died with the source",
		func(s Situation) bool {
			return s.Source.Reach == Dead && s.Destination.Reach == Answers && s.Destination.Status.Final()
		},
		stay(record.None, "it is lost: the source QEMU died before the destination had all of it"),
	},
	{
		"source dead, destination does not say", "it may have everything",
		func(s Situation) bool { return s.Source.Reach == Dead },
		stay(record.None, "the source QEMU died, and the destination does not say whether it has all of it: "+
			"when query-migrate on $D says completed, `qmigrate migrate --recover` runs it"),
	},
	{
		"source lost, it had completed", "a source that has completed does not run",
		func(s Situation) bool {
			return s.Source.Reach == Lost && s.Source.Status == Departed && s.Destination.Reach == Answers &&
				s.Destination.whole() && !s.Refused && !s.Leave
		},
		step(RunDestination),
	},
	{
		"source lost, it had completed, guest was paused", "it stays as it was",
		func(s Situation) bool {
			return s.Source.Reach == Lost && s.Source.Status == Departed && s.Destination.Reach == Answers &&
				s.Destination.whole() && s.Leave
		},
		stay(record.Destination, ""),
	},
	{
		"source lost, all is there", "the source may take it back",
		func(s Situation) bool {
			return s.Source.Reach == Lost && s.Destination.whole() && s.Destination.Reach != Dead
		},
		stay(record.None, "the destination holds all of it, paused, but the source's monitor was lost and its "+
			"process is not known dead: `qmigrate migrate --recover` runs it where that is safe once the source can be "+
			"reached; if the source QEMU is surely dead, `cont` on $D"),
	},
	{
		"source lost: wait for the rest", "the last of it may be on the way",
		func(s Situation) bool { return s.Source.Reach == Lost && s.Destination.Reach == Answers && !s.Waited },
		step(Wait),
	},
	{
		"source lost, destination dead", "the destination never ran it",
		func(s Situation) bool { return s.Source.Reach == Lost && s.Destination.Reach == Dead },
		stay(record.Unknown, "the destination is dead and never ran it, and the source's monitor has gone: if "+
			"that QEMU lives, it holds the guest: "+askSource+", `cont` runs it"),
	},
	{
		"source lost", "it holds the guest if it lives",
		func(s Situation) bool { return s.Source.Reach == Lost },
		stay(record.Unknown, "the source's monitor was lost and the destination has not all of it: if that "+
			"QEMU lives, it holds the guest: `qmigrate migrate --recover` sees to it once the source can be reached"),
	},
	{
		"source silent, all is there: wait", "it may be at its last write",
		func(s Situation) bool {
			return s.Source.Reach == Silent && s.Destination.whole() && s.Destination.Reach != Dead && !s.Waited
		},
		step(Wait),
	},
	{
		"source silent, all is there",
		"the source may be dead with its host, and then the destination has the only guest",
		func(s Situation) bool {
			return s.Source.Reach == Silent && s.Destination.whole() && s.Destination.Reach != Dead
		},
		stay(record.Unknown, "the source does not answer, and the destination holds all of it, paused: "+
			"`qmigrate migrate --recover` runs it where that is safe once the source answers; if the source "+
			"QEMU is surely dead, `cont` on $D"),
	},
	{
		"source silent: free it", "it may hang in a write; yank is taken out of band",
		func(s Situation) bool { return s.Source.Reach == Silent && !s.Cancelled },
		step(Cancel),
	},
	{
		"source silent: end the destination", "it is not whole, and its end frees a source that hangs in a write to it",
		func(s Situation) bool {
			return s.Source.Reach == Silent && s.killable() && (s.Destination.Reach == Answers || s.Source.Known)
		},
		step(End),
	},
	{
		"both silent", "the source's host may be dead, and the destination whole by now",
		func(s Situation) bool {
			return s.Source.Reach == Silent && s.Destination.Reach != Dead && !s.Unended
		},
		stay(record.Unknown, "neither QEMU answers: the guest is the source's unless query-migrate on $D says completed: "+
			"`qmigrate migrate --recover` once they answer"),
	},
	{
		"source silent: wait", "the destination's end may have freed it",
		func(s Situation) bool { return s.Source.Reach == Silent && !s.Waited },
		step(Wait),
	},
	{
		"source silent", "the guest is its own",
		func(s Situation) bool { return s.Source.Reach == Silent },
		stay(record.Unknown, "the source does not answer: the guest is its own; "+askSource+"; `cont` on $S "+
			"runs it if it is paused there"),
	},

	// The source answers.
	{
		"sent, and nothing has come: wait", "a connection may lie in the destination's queue",
		func(s Situation) bool {
			return s.Elsewhere && s.Source.Status == Departed && s.Destination.untouched() && !s.Waited
		},
		step(Wait),
	},
	{
		"sent elsewhere", "the QEMU that all was sent to may run it",
		func(s Situation) bool {
			return s.Elsewhere && s.Source.Status == Departed && s.Destination.untouched() && !s.Source.runs()
		},
		stay(record.Unknown, "the source has sent all of it, and nothing has come to $D: it may have gone to "+
			"another QEMU, which may run it: look there; if it surely runs nowhere, `cont` on $S runs it"),
	},
	{
		"the source has failed and does not end, all is there",
		"from 10.2 on it stays so if the destination holds the disks; an older one may be slow, and runs its guest then",
		func(s Situation) bool { return s.jammed() && s.Destination.Reach != Dead && s.Destination.whole() },
		stay(record.None, "the source has failed and does not end its migration, and the destination has all of it, "+
			"paused: once "+
			"$S is surely dead, `cont` on $D"),
	},
	{
		"all is there, the source takes no `cont`: wait", "it may complete, or fail, by itself",
		func(s Situation) bool { return s.held() && !s.Waited },
		step(Wait),
	},
	{
		"all is there, the source takes no `cont`: end its migration", "it goes back to its guest, which the destination's " +
			"end would not give it",
		func(s Situation) bool {
			return s.held() && s.Source.sends() && !s.Cancelled
		},
		step(Cancel),
	},
	{
		"all is there, the source takes no `cont`", "the destination may have the only guest that can go on",
		func(s Situation) bool { return s.held() },
		stay(record.None, "the destination has all of it, paused, and the source does not leave its migration, where it "+
			"takes no `cont`: "+
			laterAgain+"; once $S is surely dead, `cont` on $D"),
	},
	{
		"all is there: the fence first",
		"the destination may hold the locks that the source needs to go on; the source has just said that it can be continued",
		func(s Situation) bool { return s.Destination.whole() && s.killable() },
		step(End),
	},
	{
		"end the migration", "the source keeps its guest",
		func(s Situation) bool {
			return !s.Source.Status.Final() && !(s.Begun && s.Destination.Reach != Dead) && !s.Cancelled &&
				!(s.Destination.whole() && s.Unended)
		},
		step(Cancel),
	},
	{
		"end the destination", "the fence: before the source goes on, the destination is known dead",
		func(s Situation) bool { return s.killable() },
		step(End),
	},
	{
		"destination cannot be ended, source runs", "the destination was never told to run",
		func(s Situation) bool { return s.Unended && s.Source.Run == Running },
		stay(record.Source, "the destination QEMU is paused and could not be ended ($E): end $D"),
	},
	{
		"destination cannot be ended", "the fence does not hold",
		func(s Situation) bool { return s.Unended },
		stay(record.None, "it is paused on both sides, and the destination could not be ended ($E): end the "+
			"destination QEMU, then `cont` on $S"),
	},
	{
		"guest was paused", "it stays as it was",
		func(s Situation) bool { return s.Leave },
		stay(record.Source, ""),
	},
	{
		"give the source a moment", "it ends its migration, and most QEMUs then continue by themselves",
		func(s Situation) bool { return !s.Source.Status.Final() && s.Source.Run != Paused && !s.Waited },
		step(Wait),
	},
	{
		"continue the source",
		"the destination is dead; a source that still connects into nothing (cancelling) may go on meanwhile",
		func(s Situation) bool { return true },
		step(RunSource),
	},
}
