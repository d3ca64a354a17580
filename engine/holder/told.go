package holder

import "qmigrate/engine/record"

// toldRules are for a destination that was told to run the guest.
var toldRules = []rule{
	{
		"both run, by our `cont`: stop the source",
		"the destination has the guest since then; somebody has continued the source, or its QEMU has",
		func(s Situation) bool {
			return s.Sent == SentCont && s.Source.runs() && s.Destination.runs() && !s.Stopped
		},
		step(StopSource),
	},
	{
		"both run", "a person has to choose, for both have changed",
		func(s Situation) bool { return s.told() && s.Source.runs() && s.Destination.runs() },
		stay(record.Unknown, "THE GUEST RUNS TWICE, on $S and on $D: `stop` on both, end the one whose guest "+
			"is the older"),
	},
	{
		"switch asked for, the source runs what it has given up: stop it", "the destination has all of it, and the source may not",
		func(s Situation) bool {
			return s.Begun && s.Gives && s.Source.runs() && s.Source.ended() && s.Destination.Reach == Answers &&
				!s.Destination.runs() && s.Ran == Never && s.Destination.whole() && !s.Stopped && !s.Refused
		},
		step(StopSource),
	},
	{
		"switch asked for, the source runs what it may have given up: wait", "the rest may be on its way",
		func(s Situation) bool {
			return s.Begun && s.Gives && s.Source.runs() && s.Source.ended() && s.Destination.Reach == Answers &&
				!s.Destination.whole() && !s.Waited
		},
		step(Wait),
	},
	{
		"the source has failed, memory may be given up, all is there", "neither may be ended by us",
		func(s Situation) bool {
			return s.Begun && s.Gives && s.Source.Reach == Answers && s.Source.ended() && s.Source.runs() &&
				s.Destination.Reach != Dead && s.Destination.whole()
		},
		stay(record.Unknown, lookAtBoth),
	},
	{
		"destination runs, source dead: wait for the rest", "the last of the memory may be on its way",
		func(s Situation) bool {
			return s.told() && s.Destination.runs() && s.Destination.Status == Split && !s.Waited &&
				(s.Source.Reach == Dead || s.Source.Reach == Answers && s.Source.ended())
		},
		step(Wait),
	},
	{
		"destination runs, source dead, memory missing", "what it misses died with the source",
		func(s Situation) bool {
			return s.told() && s.Destination.runs() && s.Destination.Status.split() && s.Source.Reach == Dead
		},
		stay(record.None, partThere),
	},
	{
		"destination runs, memory missing, the source has ended its migration", "what is missing will not come",
		func(s Situation) bool {
			return s.told() && s.Destination.runs() && s.Destination.Status.split() &&
				s.Source.Reach == Answers && s.Source.ended()
		},
		stay(record.None, "it is lost: the source has ended its migration, and what the destination misses will "+
			"not come; $S still has the memory as it was at the switch and can be examined"),
	},
	{
		"destination runs, source out of reach, memory missing", "post-copy needs no one who watches",
		func(s Situation) bool {
			return s.told() && s.Destination.runs() && s.Destination.Status.split() && s.Source.Reach != Answers
		},
		stay(record.Unknown, "a monitor was lost in post-copy; if both QEMUs live it goes on by itself: ask "+
			"$D for query-migrate, and if that is postcopy-paused `qmigrate migrate --recover` goes on"),
	},
	{
		"destination runs, link lost", "both sides are needed until all memory has come",
		func(s Situation) bool {
			return s.told() && s.Destination.runs() && s.Destination.Status.split() &&
				(s.Source.Status == SplitLost || s.Source.Status == SplitMend || s.Destination.Status != Split)
		},
		unfinished("a part of its memory is still on the source, and it stands still at the first page that " +
			"it misses: " + laterLink),
	},
	{
		"destination runs, memory missing", "both sides are needed until all memory has come",
		func(s Situation) bool { return s.told() && s.Destination.runs() && s.Destination.Status.split() },
		unfinished("a part of its memory is still on the source: let both QEMUs live until query-migrate on " +
			"$D says completed; if that is postcopy-paused, `qmigrate migrate --recover --source $S " +
			"--destination $D`"),
	},
	{
		"destination runs", "it has the guest",
		func(s Situation) bool { return s.told() && s.Destination.runs() },
		stay(record.Destination, ""),
	},
	{
		"destination may have run, source runs", "neither may be ended by us",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Answers && s.Ran != Never && s.Source.runs()
		},
		stay(record.Unknown, "the destination was told to run it and is paused, and somebody has continued "+
			"the source: end the one whose guest is the older: $S or $D"),
	},
	{
		"destination has run and is paused", "somebody stopped it there, or its disk did",
		func(s Situation) bool { return s.told() && s.Destination.Reach == Answers && s.Ran == Has },
		stay(record.Destination, "it is there, paused: `cont` on $D"),
	},
	{
		"told, and loads still: wait", "it starts by itself when it has loaded everything",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Answers && s.Destination.Run == InMigrate && !s.Waited
		},
		step(Wait),
	},
	{
		"told, and does not load", "it starts by itself if it ever has everything",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Answers && s.Destination.Run == InMigrate && !s.Source.runs() &&
				(s.handed() || s.Ran == Maybe)
		},
		stay(record.None, "$D was told to run it and has not loaded it: let both QEMUs live; "+laterAgain),
	},
	{
		"`cont` lost with a monitor", "it is the destination's since the first `cont`",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Answers && s.Ran == Maybe && !s.Refused
		},
		step(RunDestination),
	},
	{
		"`cont` lost and refused", "it may have run before",
		func(s Situation) bool { return s.told() && s.Destination.Reach == Answers && s.Ran == Maybe },
		stay(record.Destination, "it is there, paused, and does not start ($E): `cont` on $D"),
	},
	{
		"told, never ran, memory may be given up: wait", "the rest may be on its way",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Answers && s.spent() && !s.Destination.whole() && !s.Waited
		},
		step(Wait),
	},
	{
		"told, never ran, memory may be given up", "release-ram frees it before the last check",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Answers && s.spent() && !s.Destination.whole()
		},
		stay(record.None, lookAtBoth),
	},
	{
		"told, never ran, memory may be given up, all is there: again", "the destination alone has it for certain",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Answers && s.spent() && !s.Refused
		},
		step(RunDestination),
	},
	{
		"told, never ran, memory may be given up, all is there", "the destination alone has it for certain",
		func(s Situation) bool { return s.told() && s.Destination.Reach == Answers && s.spent() },
		stay(record.Destination, "it is there, paused, and does not start ($E): `cont` on $D runs it"),
	},
	{
		"told, never ran, source has it back", "the source has not given it away",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Answers && s.Source.Reach == Answers && !s.Unended && !s.held() &&
				(s.Source.back() || s.Source.runs())
		},
		step(End),
	},
	{
		"told, never ran, nobody else can run it: again",
		"its disks may just not be free yet",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Answers && s.Destination.loaded() && !s.Refused &&
				!s.Source.runs() && (s.handed() && s.Source.Status != Departed || s.handed() && s.Gives || s.Source.Reach == Dead)
		},
		step(RunDestination),
	},
	{
		"told, never ran, nobody can go back", "the source has given it away, or what it had is freed",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Answers && s.handed() && (s.Gives ||
				!s.Destination.whole() || s.Source.Status != Departed)
		},
		stay(record.Destination, "it is there, paused, and does not start: `cont` on $D runs it"),
	},
	{
		"told, never ran, source out of reach", "the destination has the only guest for certain",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Answers && s.Source.Reach != Answers
		},
		stay(record.Destination, "it is there, paused, and does not start: `cont` on $D runs it once the "+
			"source QEMU is surely dead"),
	},
	{
		"told, never ran, the source takes no `cont`: wait", "it may complete, or fail, by itself",
		func(s Situation) bool { return s.told() && s.Destination.Reach == Answers && s.held() && !s.Waited },
		step(Wait),
	},
	{
		"told, never ran, the source takes no `cont`", "the destination may have the only guest that can go on",
		func(s Situation) bool { return s.told() && s.Destination.Reach == Answers && s.held() },
		stay(record.Destination, "it is there, paused, and does not start ($E), and the source takes no `cont`: `cont` on "+
			"$D runs it once "+
			"the source QEMU is surely dead"),
	},
	{
		"told, never ran: end it", "the source answers, has it whole and stopped; the fence comes first",
		func(s Situation) bool { return s.told() && s.Destination.Reach == Answers && !s.Unended },
		step(End),
	},
	{
		"told, never ran, cannot be ended, source runs", "the destination was seen not to run",
		func(s Situation) bool { return s.told() && s.Destination.Reach == Answers && s.Source.runs() },
		stay(record.Source, "the destination QEMU was told to run it, does not, and could not be ended ($E): end $D at once"),
	},
	{
		"told, never ran, cannot be ended", "the fence does not hold",
		func(s Situation) bool { return s.told() && s.Destination.Reach == Answers },
		stay(record.None, "it is paused on both sides, and the destination could not be ended ($E): end $D, "+
			"then `cont` on $S"),
	},
	{
		"ran, silent, source dead, memory missing: wait", "the last of the memory may be on its way",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Silent && s.Ran == Has && s.Destination.Status.split() &&
				s.Source.Reach == Dead && !s.Waited
		},
		step(Wait),
	},
	{
		"ran, silent, source dead, memory missing", "it stands still at a page that died with the source",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach == Silent && s.Ran == Has && s.Destination.Status.split() &&
				s.Source.Reach == Dead
		},
		stay(record.None, partThere),
	},
	{
		"ran, silent since", "it was started there",
		func(s Situation) bool { return s.told() && s.Destination.Reach == Silent && s.Ran == Has },
		stay(record.Destination, "it was started there, and $D does not answer since"),
	},
	{
		"told, silent, its process is known",
		"it can be ended by force, and its last events say whether it ran",
		func(s Situation) bool {
			return s.told() && s.Destination.Reach != Dead && s.Destination.Known && s.Ran == Never &&
				s.Source.Reach == Answers && !s.Unended && !s.handed() && !s.held()
		},
		step(End),
	},
	{
		"told, not known dead", "it may run",
		func(s Situation) bool { return s.told() && s.Destination.Reach != Dead },
		stay(record.Unknown, "the destination was told to run it, cannot be asked any more, and is not known "+
			"dead: ask $D for query-status, or try `qmigrate migrate --recover` once it can be reached; if that QEMU is "+
			"surely dead, `cont` on $S goes back to when the source stopped"),
	},
	{
		"told, both dead", "nobody is left",
		func(s Situation) bool { return s.told() && s.Source.Reach == Dead },
		stay(record.None, bothDied),
	},
	{
		"told, destination dead, source in post-copy: wait", "the source says in a moment whether it pauses or fails",
		func(s Situation) bool {
			return s.told() && s.Source.Reach == Answers && s.Source.Status == Split && !s.Waited
		},
		step(Wait),
	},
	{
		"ran and died in post-copy", "what it had changed died with it",
		func(s Situation) bool { return s.told() && s.Ran != Never && s.Source.Status.split() },
		stay(record.None, "it is lost: the destination QEMU, which ran it, died in post-copy, and what it had "+
			"changed died with it; $S still has the memory as it was at the switch and can be examined"),
	},
	{
		"ran and died", "what it did since is lost; a person decides whether to go back",
		func(s Situation) bool { return s.told() && s.Ran == Has },
		stay(record.None, "it ran on the destination, which died. "+goBack),
	},
	{
		"may have run and died", "its last events were not seen",
		func(s Situation) bool { return s.told() && s.Ran == Maybe },
		stay(record.None, "it may have run on the destination, which died. "+goBack),
	},
}
