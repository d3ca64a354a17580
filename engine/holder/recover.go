package holder

import "qmigrate/engine/record"

// What `--recover` does. Nobody knows what was sent; the states of both sides say enough wherever both live. Nothing
// is ended or cancelled that is not known to be the other end of the same migration.

// sends: the source is at a migration that has not ended, before or beside post-copy.
func (q QEMU) sends() bool { return q.Status == Setup || q.Status == Active || q.Status == Cancelling }

// home: it has never sent this guest, or another migration has brought it here.
func (q QEMU) home() bool { return q.Status == None || q.Status == Listening || q.Status == Arrived }

// fresh: it waits for a guest, and nothing has come.
func (q QEMU) fresh() bool { return q.Run == InMigrate && q.untouched() }

// receives: a guest comes to it, or has come. Of a source that sends, only such a QEMU can be the other end.
func (q QEMU) receives() bool { return q.Status == Active || q.Status == Device || q.loaded() }

// unseen: the destination is out of reach, and not because it was ended just now.
func (s Situation) unseen() bool { return s.Destination.out() && !s.Ended }

// unshown: the source sends, and the destination was out of reach from the beginning, so nothing shows that it is the
// other end.
func (s Situation) unshown() bool {
	return s.unseen() && (s.Source.Status == Active || s.Source.Status == Setup) && !s.Destination.receives()
}

// out: it cannot be asked, or does not answer.
func (q QEMU) out() bool { return q.Reach == Lost || q.Reach == Dead }

const notTwoEnds = "they are not the two ends of one migration"

var recoverRules = []rule{
	{
		"strangers", "their machines differ, or they are one QEMU",
		func(s Situation) bool { return s.Strangers != "" },
		doubt(record.Unknown, "$X"),
	},
	{
		"neither can be reached", "nothing can be asked",
		func(s Situation) bool { return s.Source.out() && s.unseen() },
		doubt(record.None, "neither QEMU can be reached: $E"),
	},
	{
		"source out of reach, destination ended", "the destination did not have it",
		func(s Situation) bool { return s.Source.out() && s.Ended },
		doubt(record.Unknown, "$E; the destination never ran it and was ended: if the source QEMU lives, it "+
			"holds the guest: ask $S for query-status"),
	},
	{
		"a side hangs in post-copy", "the memory is on both sides",
		func(s Situation) bool {
			return s.Destination.Reach == Silent && s.Source.Reach == Answers && (s.Source.Status.split() ||
				s.Source.Status == Device)
		},
		doubt(record.Destination, "$E; the source is in post-copy, so its memory is on both sides: end "+
			"neither QEMU. A paused destination may take no new client (seen on 7.2): the one that drove the "+
			"migration has to go on with it"),
	},
	{
		"source silent, destination ended", "the destination never ran it",
		func(s Situation) bool { return s.Source.Reach == Silent && s.Ended },
		doubt(record.Unknown, "$E; the destination never ran it and was ended: $S has the only guest: when it answers again, "+
			"`cont` there runs it if it is paused"),
	},
	{
		"source silent", "it may have the only guest, or the destination may",
		func(s Situation) bool { return s.Source.Reach == Silent },
		doubt(record.Unknown, "$E; do not end that QEMU while it may have the guest: if it hangs in its migration, `yank` frees "+
			"it, or the end of the destination where that has not all of it; if its host is surely dead and query-migrate "+
			"on $D says completed, `cont` on $D"),
	},
	{
		"destination silent, all was sent", "it may have run the guest",
		func(s Situation) bool {
			return s.Destination.Reach == Silent && s.Source.Status == Departed && !s.Source.runs()
		},
		doubt(record.Unknown, "$E; the migration had completed, so $D has the guest: do not end it, try again when it answers"),
	},
	{
		"destination silent", "it was not told to run",
		func(s Situation) bool { return s.Destination.Reach == Silent },
		doubt(record.Unknown, "$E; if that QEMU hangs, end it, then try again"),
	},

	// The source is out of reach. Behind a unix socket of this machine on which nobody listens it is dead.
	{
		"source out of reach: wait for the rest", "the last of it may be on its way",
		func(s Situation) bool {
			return s.Source.out() && s.Destination.Reach == Answers && !s.Waited &&
				(s.Destination.Status == Active || s.Destination.Status == Device ||
					s.Destination.Status == Split || s.Destination.Status == Listening)
		},
		step(Wait),
	},
	{
		"source out of reach, post-copy", "a part of its memory is still there",
		func(s Situation) bool {
			return s.Source.out() && (s.Destination.Status.split() || s.Destination.Status == Device)
		},
		doubt(record.Unknown, "$E; the destination is in post-copy, so a part of its memory is still on the "+
			"source: if that QEMU is surely dead, the guest is lost"),
	},
	{
		"source out of reach, destination runs", "it has the guest",
		func(s Situation) bool { return s.Source.out() && s.Destination.Run == Running && s.Destination.whole() },
		stay(record.Destination, "the guest runs on the destination already; the source QEMU cannot be reached"),
	},
	{
		"source out of reach, destination runs another guest", "no migration has brought it there",
		func(s Situation) bool { return s.Source.out() && s.Destination.Run == Running },
		doubt(record.Unknown, "$E; $D runs a guest that no migration has brought there: give the QEMU that waited for this one "+
			"as the destination"),
	},
	{
		"source out of reach, destination is not whole", "only the source has it all",
		func(s Situation) bool { return s.Source.out() && !s.Destination.whole() },
		doubt(record.None, "$E; the destination does not hold the whole guest: if the source QEMU is dead, it "+
			"is lost"),
	},
	{
		"source out of reach, all is there", "the source may live, and run it",
		func(s Situation) bool { return s.Source.Reach == Lost },
		doubt(record.None, "$E; the destination holds the whole guest, paused: if the source QEMU is surely "+
			"dead, `cont` on $D runs it"),
	},
	{
		"source dead, destination does not start", "it has the only guest",
		func(s Situation) bool { return s.Source.Reach == Dead && s.Refused },
		doubt(record.None, "the source QEMU is dead, and the destination does not start ($E): `cont` on $D"),
	},
	{
		"source dead, all is there", "the destination has the only guest",
		func(s Situation) bool { return s.Source.Reach == Dead },
		step(RunDestination),
	},

	{
		"ends swapped", "the source waits for a guest",
		func(s Situation) bool { return s.Source.Run == InMigrate },
		doubt(record.Unknown, "source $S is itself waiting for a migration: swap source and destination?"),
	},
	{
		"source refuses to run", "a person has to see why",
		func(s Situation) bool { return s.Stuck && s.Source.Run != Running && !s.Destination.runs() },
		doubt(record.None, "it is paused on the source, which does not continue it ($E): `cont` on $S"),
	},

	// The destination was ended.
	{
		"destination ended: end the migration", "the source keeps its guest",
		func(s Situation) bool { return s.Ended && !s.Source.Status.Final() && !s.Cancelled },
		step(Cancel),
	},
	{
		"destination ended: wait for the source",
		"it ends its migration, and most QEMUs then continue by themselves",
		func(s Situation) bool {
			return s.Ended && !s.Source.Status.Final() && s.Source.Run != Paused && !s.Waited
		},
		step(Wait),
	},
	{
		"destination ended, source runs", "the destination never ran it",
		func(s Situation) bool { return s.Ended && s.Source.runs() },
		stay(record.Source, "the guest runs on the source"),
	},
	{
		"destination ended: continue the source", "the destination never ran it",
		func(s Situation) bool { return s.Ended },
		step(RunSource),
	},

	{
		"post-copy, destination does not start", "both sides stay paused, and nothing is lost",
		func(s Situation) bool { return s.Refused && s.Source.Status.split() },
		doubt(record.Destination, "the destination has the guest and does not start ($E): its memory is on "+
			"both sides, and only it can run: `cont` on $D"),
	},
	{
		"the source is at its end for a moment", "finish-migrate ends by itself",
		func(s Situation) bool {
			return s.Source.Run == Finishing && (s.Source.ended() || s.Source.Status == Departed) && !s.Waited
		},
		step(Wait),
	},
	{
		"both run", "a person has to choose, for both have changed",
		func(s Situation) bool {
			return s.Source.runs() && s.Destination.runs() && (s.Source.Status == Departed ||
				s.Source.Status.split()) && s.Destination.loaded()
		},
		doubt(record.Unknown, "THE GUEST RUNS TWICE: its migration from $S to $D has completed, and both run "+
			"it: `stop` on both, end the one whose guest is the older"),
	},
	{
		"both run, the source after a failure",
		"a link that is lost at the very end makes the source's QEMU run its guest, 10.0 and newer",
		func(s Situation) bool {
			return s.Source.runs() && s.Destination.runs() && s.Source.ended() && s.Destination.loaded()
		},
		doubt(record.Unknown, "$S and $D both run a guest, and the last migration from $S has failed: if that was to $D, "+
			"THE GUEST RUNS TWICE: `stop` on $S at once, and end it when query-migrate on $D says completed"),
	},
	{
		"both run a guest", "two guests",
		func(s Situation) bool { return s.Source.runs() && s.Destination.runs() },
		doubt(record.Unknown, "$S and $D both run a guest: "+notTwoEnds),
	},

	// The destination is out of reach. It has not run the guest unless the migration completed or went over to
	// post-copy.
	{
		"the destination was told, and died: wait", "the source says in a moment whether it pauses or fails",
		func(s Situation) bool {
			return s.Sent == SentCont && s.unseen() && s.Source.Status == Split && !s.Waited
		},
		step(Wait),
	},
	{
		"the destination was told, and died", "what it did since is lost",
		func(s Situation) bool { return s.Sent == SentCont && s.unseen() && !s.Source.runs() },
		doubt(record.None, "this recovery has told the destination to run it, and the destination died ($E): the source holds it "+
			"as it was when it stopped; `cont` on $S goes back to then where its QEMU lets it, which is safe only if "+
			"nothing outside it has seen what it did since"),
	},
	{
		"destination out of reach, a failed post-copy, source runs", "a link lost at the very end makes the source's QEMU run it",
		func(s Situation) bool { return s.unseen() && s.Begun && s.Source.Status == Failed && s.Source.runs() },
		stay(record.Source, "the guest runs on the source, whose migration has failed; if it had gone over to post-copy, the "+
			"destination may have run it too, and must not run any more: end $D"),
	},
	{
		"destination out of reach, a failed post-copy", "`failed` may be the end of a post-copy",
		func(s Situation) bool { return s.unseen() && s.Begun && s.Source.Status == Failed },
		doubt(record.None, "$E; the migration has failed, perhaps in post-copy, so the destination may have run the guest: if "+
			"that QEMU is surely dead, `cont` on $S goes back to the switch, which is safe only if nothing outside the "+
			"guest has seen what it did since"),
	},
	{
		"destination out of reach, source in post-copy", "the destination may have run it",
		func(s Situation) bool {
			return s.unseen() && (s.Source.Status.split() || s.Source.Status == Device && s.Waited)
		},
		doubt(record.Unknown, "$E; the source is in post-copy, so the destination may have run the guest: if "+
			"that QEMU is surely dead, what the guest did since the switch is lost"),
	},
	{
		"destination out of reach, switch under way", "the source says by itself which side has it",
		func(s Situation) bool { return s.unseen() && s.Source.Status == Device },
		step(Wait),
	},
	{
		"destination out of reach, never seen: wait", "the migration breaks by itself if it went there",
		func(s Situation) bool { return s.unshown() && !s.Waited },
		step(Wait),
	},
	{
		"destination out of reach, never seen", "the migration may go to another QEMU",
		func(s Situation) bool { return s.unshown() },
		doubt(record.Unknown, "$E; a migration is under way from $S, and whether it goes there is not known: if nobody "+
			"drives it, "+
			"`migrate_cancel` on $S ends it, and the guest stays there"),
	},
	{
		"destination dead: end the migration, which may go over to post-copy", "migrate_cancel might cross the switch",
		func(s Situation) bool {
			return s.unseen() && s.Begun && !s.Jams && s.Source.Status == Active && !s.Yanked
		},
		step(Yank),
	},
	{
		"destination dead: end the migration", "the source keeps its guest",
		func(s Situation) bool { return s.unseen() && !s.Source.Status.Final() && !s.Cancelled && !s.Yanked },
		step(Cancel),
	},
	{
		"destination out of reach: wait for its end", "usually milliseconds",
		func(s Situation) bool { return s.unseen() && !s.Source.Status.Final() && !s.Waited },
		step(Wait),
	},
	{
		"destination out of reach, all was sent, source runs", "the destination may have run it before, or run it still",
		func(s Situation) bool { return s.unseen() && s.Source.Status == Departed && s.Source.runs() },
		doubt(record.Unknown, "$E; the migration had completed, and somebody has continued $S, which runs the guest: make sure "+
			"that the destination QEMU does not run it too"),
	},
	{
		"destination out of reach, source runs", "it has the guest",
		func(s Situation) bool { return s.unseen() && s.Source.runs() },
		stay(record.Source, "the destination QEMU cannot be reached and never ran it: the guest runs on the "+
			"source"),
	},
	{
		"destination out of reach, source does not end", "it may be at its last write",
		func(s Situation) bool { return s.unseen() && !s.Source.Status.Final() && s.Source.Run == Finishing },
		doubt(record.Unknown, "$E; source $S does not end its migration: the guest is its own; end the "+
			"destination QEMU, then try again"),
	},
	{
		"destination out of reach, all was sent", "it may have run there",
		func(s Situation) bool { return s.unseen() && s.Source.Status == Departed && s.Source.Run == Post },
		doubt(record.None, "$E; the migration had completed: whether the destination ran the guest is not "+
			"known. If that QEMU is surely dead, `cont` on $S goes back to the switch-over, which is safe "+
			"only if nothing outside the guest has seen what it did since"),
	},
	{
		"destination out of reach, all was sent, source has run since",
		"which of the two is the newer is not known",
		func(s Situation) bool { return s.unseen() && s.Source.Status == Departed },
		doubt(record.Unknown, "$E; the migration had completed, and somebody has run $S since, where it is "+
			"paused now: `cont` there once the destination QEMU is surely dead"),
	},
	{
		"destination out of reach: continue the source", "the destination never ran it",
		func(s Situation) bool { return s.unseen() },
		step(RunSource),
	},

	// Post-copy.
	{
		"switch under way", "the source still takes its guest back if the link breaks",
		func(s Situation) bool { return s.Source.Status == Device && !s.Waited },
		step(Wait),
	},
	{
		"switch under way for too long", "whose it is is not known",
		func(s Situation) bool { return s.Source.Status == Device },
		doubt(record.Unknown, "the source stands still in postcopy-device, between its own guest and the "+
			"destination's: `yank` of its migration makes it say which; try again"),
	},
	{
		"post-copy, another destination", "nothing has come to this one",
		func(s Situation) bool { return s.Source.Status.split() && s.Destination.fresh() },
		doubt(record.Unknown, "the source is in post-copy with another QEMU, and nothing has come to $D: give "+
			"the one that has the guest as the destination"),
	},
	{
		"post-copy, the destination does not load, the source can go back",
		"QEMU before 10.0 takes migrate_cancel, but not once it has noticed that the link is lost",
		func(s Situation) bool {
			return s.takesBack() && s.Sent != SentCont && s.Destination.Reach == Answers && s.Waited && !s.Cancelled
		},
		step(Cancel),
	},
	{
		"post-copy, not its other end", "what it holds is of another migration",
		func(s Situation) bool {
			return s.Source.Status.split() && !s.Destination.loaded() && s.Destination.Status != Device &&
				s.Destination.Status != Active
		},
		doubt(record.Unknown, "the source is in post-copy, and $D is not its other end: "+notTwoEnds),
	},
	{
		"post-copy, the destination has not loaded it", "a link that was lost delivers the rest when TCP tries it again",
		func(s Situation) bool {
			return s.Source.Status.split() && !s.Destination.loaded() && s.Destination.Status == Active && s.Waited
		},
		doubt(record.Unknown, "the source has given the guest away, and $D has not loaded all of it: let both QEMUs live, and "+
			"try again: a link that was lost and is back may need a minute"),
	},
	{
		"post-copy, the source runs", "QEMU before 10.0 says post-copy before it stops the guest",
		func(s Situation) bool { return s.Source.Status.split() && s.Source.Run == Running && !s.Waited },
		step(Wait),
	},
	{
		"post-copy, the source runs on", "it says both",
		func(s Situation) bool { return s.Source.Status.split() && s.Source.Run == Running },
		doubt(record.Unknown, "the source says that it is in post-copy and that it runs the guest: try again"),
	},
	{
		"post-copy, the source may still go back", "QEMU before 10.0: no page was seen on its way yet",
		func(s Situation) bool { return s.Source.Status.split() && s.Tentative && !s.Waited },
		step(Wait),
	},
	{
		"post-copy, the source does not say", "a closed connection makes it say which side has it",
		func(s Situation) bool { return s.Source.Status.split() && s.Tentative && !s.Yanked },
		step(Yank),
	},
	{
		"post-copy, the source never says", "whose it is is not known",
		func(s Situation) bool { return s.Source.Status.split() && s.Tentative },
		doubt(record.Unknown, "the source stands still between its own guest and the destination's: try again"),
	},
	{
		"post-copy, the destination loads", "it cannot be told to run yet",
		func(s Situation) bool { return s.Source.Status.split() && !s.Destination.loaded() && !s.Waited },
		step(Wait),
	},
	{
		"post-copy, the destination does not load", "it cannot be told to run",
		func(s Situation) bool { return s.Source.Status.split() && !s.Destination.loaded() },
		doubt(record.Unknown, "the source has given the guest away, and $D does not load it: let both QEMUs "+
			"live, and try again"),
	},
	{
		"post-copy lost its link, another guest is there",
		"the destination has a whole guest, the source has sent a part of one",
		func(s Situation) bool {
			return (s.Source.Status == SplitLost || s.Source.Status == SplitMend) && s.Destination.whole()
		},
		doubt(record.Unknown, "the source waits for a link, and $D has all of a guest: "+notTwoEnds),
	},
	{
		"post-copy, the destination still loads: wait", "`cont` would only be noted",
		func(s Situation) bool { return s.Source.Status.split() && s.Destination.Run == InMigrate && !s.Waited },
		step(Wait),
	},
	{
		"post-copy, the destination still loads", "`cont` would only be noted",
		func(s Situation) bool { return s.Source.Status.split() && s.Destination.Run == InMigrate },
		doubt(record.Unknown, "the source has given the guest away, and $D does not load it: let both QEMUs live, "+
			"and try again"),
	},
	{
		"post-copy: the destination runs it", "only it can",
		func(s Situation) bool { return s.Source.Status.split() && s.Destination.Run != Running && MayRun(s) },
		step(RunDestination),
	},
	{
		"post-copy goes on", "over a new connection where the link was lost",
		func(s Situation) bool { return s.Source.Status.split() },
		step(Mend),
	},
	{
		"the destination waits for memory, the source sends", "the two are at odds for a moment",
		func(s Situation) bool {
			return (s.Destination.Status.split() || s.Destination.Status == Device) && (s.Source.sends() ||
				s.Source.Status == Departed) && !s.Waited
		},
		step(Wait),
	},
	{
		"the destination waits for memory, the source never sent", "its guest came from elsewhere",
		func(s Situation) bool {
			return (s.Destination.Status.split() || s.Destination.Status == Device) && (s.Source.home() ||
				s.Source.sends() || s.Source.Status == Departed)
		},
		doubt(record.Unknown, "$D waits for the memory of a guest that $S does not send: "+notTwoEnds),
	},
	{
		"the destination ran it, the source took it back", "both have changed",
		func(s Situation) bool {
			return (s.Destination.Status.split() || s.Destination.Status == Device) &&
				s.Destination.Run == Running
		},
		doubt(record.Unknown, "the source has its guest back, and $D runs it without its memory: `stop` on "+
			"$D, look which of the two is wanted, and end the other"),
	},
	{
		"the source took its guest back, and may have given its memory up", "release-ram frees what was sent",
		func(s Situation) bool {
			return (s.Destination.Status.split() || s.Destination.Status == Device || s.Destination.whole()) && s.Begun &&
				s.Gives && s.Source.ended()
		},
		doubt(record.Unknown, lookAtBoth),
	},
	{
		"the source took its guest back", "what the destination waits for will not come",
		func(s Situation) bool {
			return (s.Destination.Status.split() || s.Destination.Status == Device) && !s.Unended
		},
		step(End),
	},

	// The destination runs a guest.
	{
		"destination runs it", "the migration is over",
		func(s Situation) bool {
			return s.Destination.Run == Running && s.Destination.loaded() && s.Source.Status == Departed && s.Source.Run == Post
		},
		stay(record.Destination, "the guest runs on the destination already; the source QEMU can be ended"),
	},
	{
		"destination runs it, the source has run since", "which of the two is the newer is not known",
		func(s Situation) bool {
			return s.Destination.Run == Running && s.Destination.loaded() && s.Source.Status == Departed
		},
		doubt(record.Unknown, "the migration had completed, $D runs its guest, and somebody has run $S since, "+
			"where it is paused now: end the one whose guest is the older"),
	},
	{
		"destination runs a guest: wait", "somebody may have started it early",
		func(s Situation) bool {
			return s.Destination.Run == Running && s.Source.sends() && s.Source.Run == Finishing && !s.Waited
		},
		step(Wait),
	},
	{
		"destination runs another guest", "the source has not sent it",
		func(s Situation) bool { return s.Destination.Run == Running },
		doubt(record.Unknown, "$D runs a guest that $S has not sent: "+notTwoEnds),
	},
	{
		"destination has sent a guest away", "it is a source itself",
		func(s Situation) bool { return s.Destination.Status == Departed || s.Destination.Status == Setup },
		doubt(record.Unknown, "$D has sent a guest away itself: "+notTwoEnds),
	},

	// The source is at a migration.
	{
		"not its other end", "it does not wait for a guest, and has got none",
		func(s Situation) bool {
			return s.Destination.Reach == Answers && s.Destination.Run != InMigrate && !s.Destination.loaded() &&
				s.Destination.Status != Device
		},
		doubt(record.Unknown, "$D does not wait for a migration, and none has come to it: "+notTwoEnds),
	},
	{
		"to another destination", "nothing has come to this one",
		func(s Situation) bool { return s.Source.sends() && s.Destination.Status == None },
		doubt(record.Unknown, "a migration is under way from $S, and $D is not its other end: it does not "+
			"even listen: give the one that it goes to as the destination"),
	},
	{
		"the two are at odds for a moment",
		"the connection may lie in the destination's queue, or the source be at its last message",
		func(s Situation) bool {
			return s.Source.sends() && s.Source.Status != Cancelling && (s.Destination.whole() || !s.Destination.receives()) &&
				!s.Waited
		},
		step(Wait),
	},
	{
		"to another destination, which listens", "nothing has come to this one",
		func(s Situation) bool {
			return (s.Source.Status == Active || s.Source.Status == Setup) && s.Destination.Status == Listening
		},
		doubt(record.Unknown, "a migration is under way from $S, and nothing has come to $D, which listens: "+
			"give the one that it goes to as the destination, or, if nobody drives it, `migrate_cancel` on $S"),
	},
	{
		"to another destination, this one has ended its own", "its query-migrate speaks of another migration",
		func(s Situation) bool {
			return (s.Source.Status == Active || s.Source.Status == Setup) && !s.Destination.receives()
		},
		doubt(record.Unknown, "a migration is under way from $S, and that of $D has ended: give the QEMU that it goes to as "+
			"the destination, or, if nobody drives it, `migrate_cancel` on $S"),
	},
	{
		"another guest is there", "the source still sends, and runs, or has sent nothing yet",
		func(s Situation) bool {
			return s.Destination.whole() && (s.Source.Status == Setup || s.Source.Status == Active && s.Source.runs())
		},
		doubt(record.Unknown, "a migration is under way from $S, and $D has all of a guest already: "+notTwoEnds),
	},
	{
		"the source has failed and does not end, all is there",
		"from 10.2 on it stays so if the destination holds the disks; an older one may be slow, and runs its guest then",
		func(s Situation) bool { return s.jammed() && s.Destination.whole() },
		doubt(record.None, "the source has failed and does not end its migration, and the destination has all of it, "+
			"paused: end "+
			"$S, then `qmigrate migrate --recover` again"),
	},
	{
		"all is there, not completed, the source takes no `cont`: end its migration",
		"it goes back to its guest, which the destination's end would not give it",
		func(s Situation) bool {
			return s.Source.sends() && s.held() && !s.Cancelled
		},
		step(Cancel),
	},
	{
		"all is there, not completed, the source takes no `cont`", "the destination may have the only guest that can go on",
		func(s Situation) bool { return s.held() },
		doubt(record.None, "$D has all of it, paused, and $S does not leave its migration, where it takes no `cont`: try "+
			"again; once $S is "+
			"surely dead, `cont` on $D"),
	},
	{
		"all is there, not completed: the fence first",
		"the destination was not told to run; it may hold the locks that the source needs",
		func(s Situation) bool { return s.Source.sends() && s.Destination.whole() && !s.Unended },
		step(End),
	},
	{
		"end the migration, which may go over to post-copy", "migrate_cancel might cross the switch",
		func(s Situation) bool {
			return s.Begun && !s.Jams && s.Source.Status == Active && !s.Yanked && !(s.Destination.whole() && s.Unended)
		},
		step(Yank),
	},
	{
		"end the migration", "the source keeps its guest",
		func(s Situation) bool {
			return s.Source.sends() && !s.Cancelled && !s.Yanked && !(s.Destination.whole() && s.Unended)
		},
		step(Cancel),
	},

	// The source has sent everything, and the destination does not run.
	{
		"all was sent: wait", "the destination may still be at loading it",
		func(s Situation) bool {
			return s.Source.Status == Departed && s.Source.Run == Post && !s.Destination.whole() && !s.Waited
		},
		step(Wait),
	},
	{
		"all was sent elsewhere", "the QEMU that it went to may run it",
		func(s Situation) bool {
			return s.Source.Status == Departed && s.Source.Run == Post && s.Destination.untouched()
		},
		doubt(record.Unknown, "the migration from $S had completed, and nothing of it has come to $D: it may "+
			"have gone to another destination, and the guest may run there: give that one as the destination; "+
			"if the guest surely ran nowhere else, `cont` on $S runs it"),
	},
	{
		"all is there, and does not start", "the destination has the guest",
		func(s Situation) bool {
			return s.Source.Status == Departed && s.Source.Run == Post && s.Destination.whole() && s.Refused
		},
		doubt(record.None, "the migration had completed, and the destination does not start ($E): `cont` on "+
			"$D"),
	},
	{
		"all is there",
		"the source has completed and was not continued since: if anybody was told to run it, it is the " +
			"destination",
		func(s Situation) bool {
			return s.Source.Status == Departed && s.Source.Run == Post && s.Destination.whole()
		},
		step(RunDestination),
	},
	{
		"all was sent, the source has run since", "which of the two is the newer is not known",
		func(s Situation) bool {
			return s.Source.Status == Departed && s.Source.Run != Post && s.Source.Run != Running
		},
		doubt(record.Unknown, "the migration had completed, and somebody has run $S since, where it is paused "+
			"now: `cont` the one that ran last, $S or $D, and end the other"),
	},

	// The source has its guest, and the destination does not run.
	{
		"a guest from elsewhere", "the source has never sent one",
		func(s Situation) bool {
			return s.Source.home() && (s.Destination.whole() || s.Destination.Status == Active)
		},
		doubt(record.Unknown, "$D has a guest that has come from elsewhere, for $S has never sent one: "+notTwoEnds+
			"; give the QEMU that the guest came from as the source"),
	},
	{
		"all is there, and the source runs since", "which of the two is the newer is not known",
		func(s Situation) bool { return s.Source.Status == Departed && s.Source.runs() && s.Destination.whole() },
		doubt(record.Unknown, "the migration had completed, and somebody has continued $S, which runs the guest; $D has it too, "+
			"paused: if it never ran there, end $D"),
	},
	{
		"nothing happened", "the source runs and the destination waits",
		func(s Situation) bool { return s.Source.runs() && s.Destination.Status == None && !s.Leftover },
		stay(record.Source, "there is nothing to recover: the guest runs on the source, and the destination "+
			"waits"),
	},
	{
		"only the mirrors are left", "the guest runs, and its disks are its own",
		func(s Situation) bool { return s.Source.runs() && s.Destination.Status == None },
		stay(record.Source, "the guest runs on the source, and the destination waits"),
	},
	{
		"nothing happened, the guest is paused",
		"a migration would have made the destination listen before it stopped the guest",
		func(s Situation) bool { return s.Source.home() && s.Destination.Status == None },
		nothing("the guest is paused on the source, where `cont` runs it, and the destination waits"),
	},
	{
		"end the destination", "the fence: before the source goes on, the destination is known dead",
		func(s Situation) bool {
			return s.Destination.Reach != Dead && s.Destination.Status != None && !s.Unended
		},
		step(End),
	},
	{
		"destination cannot be ended", "the fence does not hold",
		func(s Situation) bool { return s.Unended },
		doubt(record.Unknown, "end destination: $E: end that QEMU, then try again"),
	},
	{
		"continue the source", "the migration had not completed, so the destination was never told to run",
		func(s Situation) bool { return true },
		step(RunSource),
	},
}
