package holder

import "qmigrate/engine/record"

// switchRules are for a post-copy whose destination was not told to run yet.
var switchRules = []rule{
	{
		"switched, destination dead, the source does not notice: wait", "it usually does in a moment",
		func(s Situation) bool { return s.Begun && s.blind() && !s.Waited },
		step(Wait),
	},
	{
		"switched, destination dead, the source does not notice",
		"a host that dies breaks no connection; a closed one makes the source say whether it can go back",
		func(s Situation) bool { return s.Begun && s.blind() && !s.Yanked },
		step(Yank),
	},
	{
		"switched, the destination does not load, the source can go back",
		"QEMU before 10.0 takes migrate_cancel, but not once it has noticed that the link is lost",
		func(s Situation) bool {
			return s.Begun && s.takesBack() && s.Destination.Reach == Answers && s.Waited && !s.Cancelled
		},
		step(Cancel),
	},
	// Post-copy: the source has given it away, and the destination has not run it.
	{
		"switched, both dead", "nobody is left",
		func(s Situation) bool { return s.handed() && s.Source.Reach == Dead && s.Destination.Reach == Dead },
		stay(record.None, bothDied),
	},
	{
		"switched, destination may have run, dead: wait", "the source says in a moment whether it pauses or fails",
		func(s Situation) bool {
			return s.Begun && s.Source.Reach == Answers && s.Destination.Reach == Dead && s.Ran == Maybe &&
				s.Source.Status == Split && !s.Waited
		},
		step(Wait),
	},
	{
		"switched, destination may have run, dead", "its last events were not seen",
		func(s Situation) bool {
			return s.Begun && s.Destination.Reach == Dead && s.Ran == Maybe && s.Source.Status.split()
		},
		stay(record.None, "it may have run on the destination, which died. "+goBack),
	},
	{
		"switched, destination dead, memory given up", "the source has freed what it had sent",
		func(s Situation) bool { return s.handed() && s.Destination.Reach == Dead && s.Gives },
		stay(record.None, "it is lost: the destination QEMU died before it ran, and with release-ram the "+
			"source has already given up what it had sent"),
	},
	{
		"switched, destination dead: take it back", "nothing has changed since the source stopped; QEMU before 10.0 lets it go",
		func(s Situation) bool {
			return s.Begun && s.takesBack() && s.Destination.Reach == Dead && !s.Cancelled
		},
		step(Cancel),
	},
	{
		"switched, destination dead: wait", "a source says in a moment whether it fails or pauses",
		func(s Situation) bool {
			return s.handed() && s.Destination.Reach == Dead && s.Source.Reach == Answers &&
				s.Source.Status != Departed && !s.Waited
		},
		step(Wait),
	},
	{
		"switched, destination dead, no way back", "QEMU 10.0 and newer refuse, and older ones hang once they have noticed",
		func(s Situation) bool {
			return s.handed() && s.Destination.Reach == Dead && s.Source.Reach == Answers &&
				s.Source.Status != Departed
		},
		stay(record.None, "it is lost: the destination QEMU died before it ran, and this source QEMU lets "+
			"nobody go back from post-copy; its memory can be read there with dump-guest-memory"),
	},
	{
		"switched, source dead, all is there", "the destination has everything",
		func(s Situation) bool {
			return s.handed() && s.Source.Reach == Dead && s.Destination.Reach == Answers &&
				s.Destination.whole() && !s.Refused && !s.Leave
		},
		step(RunDestination),
	},
	{
		"switched, source dead, wait for the rest", "the last of it may be on the way",
		func(s Situation) bool {
			return s.handed() && s.Source.Reach == Dead && s.Destination.Reach == Answers &&
				!s.Destination.whole() && !s.Waited
		},
		step(Wait),
	},
	{
		"switched, source dead", "what is missing died with it",
		func(s Situation) bool {
			return s.handed() && s.Source.Reach == Dead && s.Destination.Reach == Answers &&
				!s.Destination.whole()
		},
		stay(record.None, partThere),
	},
	{
		"switched: the destination runs it",
		"the source cannot any more, and the destination has all that it needs",
		func(s Situation) bool {
			return s.handed() && s.Destination.Reach == Answers && s.Destination.loaded() && MayRun(s) &&
				!s.Refused && !s.Leave
		},
		step(RunDestination),
	},
	{
		"switched, destination does not start", "only it can run it",
		func(s Situation) bool {
			return s.handed() && s.Destination.Reach == Answers && s.Destination.loaded() && s.Refused
		},
		stay(record.Destination, "it is there, paused, and does not start ($E): `cont` on $D runs it"),
	},
	{
		"switched, guest was paused", "it stays as it was; its memory follows",
		func(s Situation) bool {
			return s.handed() && s.Destination.Reach == Answers && s.Destination.loaded() && s.Leave
		},
		stay(record.Destination, "it is there, paused as it was: let both QEMUs live until query-migrate on "+
			"$D says completed"),
	},
	{
		"switched, destination still loads", "a busy host must not be taken for a lost link",
		func(s Situation) bool { return s.handed() && s.Destination.Reach == Answers && !s.Waited },
		step(Wait),
	},
	{
		"switched too late", "the source completed as after a pre-copy, and not all of it has come",
		func(s Situation) bool {
			return s.handed() && s.Source.Status == Departed && s.Source.Reach == Answers &&
				s.Destination.Reach == Answers && !s.Unended && (s.Destination.untouched() || s.Destination.Status == Active)
		},
		step(End),
	},
	{
		"switched, and somebody has continued the source", "it had given the guest away",
		func(s Situation) bool { return s.handed() && s.Source.runs() && s.Destination.Reach != Dead },
		stay(record.Unknown, "somebody has continued the source, which had given the guest away: the destination was not told "+
			"to run it: end the one of $S and $D whose guest is the older"),
	},
	{
		"switched, and nothing has come", "the QEMU that it went to may run it",
		func(s Situation) bool { return s.handed() && s.Destination.Reach != Dead && s.Destination.untouched() },
		stay(record.Unknown, "the source has gone over to post-copy, and nothing has come to $D: it may have gone to another "+
			"QEMU, which may run it: look there, and let $S live"),
	},
	{
		"switched, and nobody runs it", "the destination could not be told, or is not known to be whole",
		func(s Situation) bool { return s.handed() && s.Destination.Reach != Dead },
		stay(record.None, "it is paused on both sides, and only the destination can run it: `cont` on $D where "+
			"that answers; let both QEMUs live; "+laterAgain),
	},

	// Post-copy was asked for, and the source has not given it away yet, as far as is known.
	{
		"switch asked for, memory may be given up, all is there", "release-ram frees it before the last check",
		func(s Situation) bool {
			return s.spent() && s.Destination.Reach == Answers && s.Destination.whole() && !s.Refused && !s.Leave
		},
		step(RunDestination),
	},
	{
		"switch asked for, memory may be given up: wait", "the rest may be on its way",
		func(s Situation) bool { return s.spent() && s.Destination.Reach != Dead && !s.Waited },
		step(Wait),
	},
	{
		"switch asked for, memory may be given up", "release-ram frees it before the last check",
		func(s Situation) bool { return s.spent() },
		stay(record.None, lookAtBoth),
	},
	{
		"switch under way, source silent: wait", "it usually ends by itself",
		func(s Situation) bool {
			return s.Begun && s.Source.Reach == Silent && s.Destination.Reach != Dead && !s.Waited
		},
		step(Wait),
	},
	{
		"switch under way, source silent: free it", "it may hang in a write to a destination that is not loaded",
		func(s Situation) bool {
			return s.Begun && !s.Jams && s.Source.Reach == Silent && s.Destination.Reach == Answers &&
				!s.Destination.loaded() && s.Destination.Status != Device && !s.Yanked
		},
		step(Yank),
	},
	{
		"switch under way, source silent", "it may have given the guest away",
		func(s Situation) bool { return s.Begun && s.Source.Reach == Silent && s.Destination.Reach != Dead },
		stay(record.Unknown, "the source does not answer in the switch to post-copy: end neither QEMU; "+
			"`qmigrate migrate --recover` once it answers"),
	},
	{
		"switch under way", "it usually ends by itself, and closing its connection may cost the guest",
		func(s Situation) bool {
			return s.Begun && s.Source.Reach == Answers && !s.Source.Status.Final() &&
				s.Destination.Reach != Dead && !s.Yanked && !s.Waited
		},
		step(Wait),
	},
	{
		"switch under way: cancel", "migrate_cancel comes before the switch or is refused after it; a closed connection " +
			"jams this QEMU",
		func(s Situation) bool {
			return s.Begun && s.Jams && !s.Destination.whole() && s.Source.Reach == Answers && s.Source.Status == Active &&
				s.Destination.Reach != Dead && !s.Cancelled
		},
		step(Cancel),
	},
	{
		"switch under way: cut the connection",
		"safe before the switch and after it; migrate_cancel could cross it",
		func(s Situation) bool {
			return s.Begun && !s.Jams && s.Source.Reach == Answers && !s.Source.Status.Final() &&
				s.Destination.Reach != Dead && !s.Yanked &&
				(!s.Source.Status.split() || s.Destination.loaded())
		},
		step(Yank),
	},
	{
		"switch under way: wait", "the source says by itself which side has it",
		func(s Situation) bool {
			return s.Begun && s.Source.Reach == Answers && !s.Source.Status.Final() && !s.Waited
		},
		step(Wait),
	},
	{
		"switch under way for too long", "whose it is is not known",
		func(s Situation) bool {
			return s.Begun && s.Source.Reach == Answers && !s.Source.runs() && (s.Source.Status.split() ||
				s.Source.Status == Device || s.Source.Run == Finishing)
		},
		stay(record.None, "it stands still on the source, whose QEMU does not end the switch to post-copy: "+laterAgain),
	},
}
