package holder

import "qmigrate/engine/record"

// What a live run does after a failure, in the order in which the rules are tried. The first one whose condition holds decides.

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
	askSource  = "ask $S for query-status"
	bothDied   = "it is lost: both QEMUs died"
	partThere  = "it is lost: the source QEMU died while a part of its memory was still there; the destination stands still at the first page that it misses"
	laterAgain = "`qmigrate migrate --recover` with the same endpoints goes on from there"
	laterLink  = "let both QEMUs live, mend the link, then `qmigrate migrate --recover --source $S --destination $D`"
	goBack     = "The source holds it as it was when it stopped; `cont` on $S goes back to then, which is safe only if nothing outside it, a disk above all, has seen what it did since"
)

var undoRules = []rule{
	{"source runs, destination dead: end the migration", "a dead host breaks no connection, so it may send for long", func(s Situation) bool {
		return s.Source.runs() && s.Destination.Reach == Dead && s.Sent >= SentMigrate && !s.Source.Status.Final() && !s.Cancelled
	}, step(Cancel)},
	{"source runs, destination dead: wait for its end", "usually milliseconds; a source that connects into nothing takes minutes", func(s Situation) bool {
		return s.Source.runs() && s.Destination.Reach == Dead && s.Sent >= SentMigrate && !s.Source.Status.Final() && !s.Waited
	}, step(Wait)},
	{"source runs, destination dead", "nobody else can run it", func(s Situation) bool {
		return s.Source.runs() && s.Destination.Reach == Dead
	}, stay(record.Source, "")},
	{"source refuses to run", "the destination is dead; a person has to see why", func(s Situation) bool {
		return s.Stuck && s.Source.Reach == Answers && s.Source.Run != Running
	}, stay(record.None, "it is paused on the source, which does not continue it ($E): `cont` on $S, the destination is dead")},

	// Nothing of ours is under way.
	{"end a destination that waits in vain", "nothing of ours comes any more, and it can do nothing else", func(s Situation) bool {
		return s.Sent == SentIncoming && s.killable() && !s.told() &&
			(s.Destination.untouched() || s.Destination.Status == Failed || s.Destination.Status == Cancelled)
	}, step(End)},
	{"source dead before `migrate`", "it had the only guest", func(s Situation) bool {
		return s.Sent < SentMigrate && s.Source.Reach == Dead
	}, stay(record.None, "it is lost: the source QEMU died before any of it was sent")},
	{"source lost before `migrate`", "nothing was sent", func(s Situation) bool {
		return s.Sent < SentMigrate && s.Source.Reach == Lost
	}, stay(record.Unknown, "the source's monitor was lost and nothing was sent: if that QEMU lives, it holds the guest: "+askSource)},
	{"source runs before `migrate`", "it never lost the guest", func(s Situation) bool {
		return s.Sent < SentMigrate && s.Source.Run == Running
	}, stay(record.Source, "")},
	{"guest runs elsewhere already", "the pair was not source and destination", func(s Situation) bool {
		return s.Sent < SentMigrate && (s.Source.Run == InMigrate || s.Source.Run == Post) && s.Destination.runs()
	}, stay(record.Destination, "")},
	{"somebody else has moved it", "what it holds is not ours to move any more", func(s Situation) bool {
		return s.Sent == SentIncoming && (s.Source.Run == InMigrate || s.Source.Run == Post || s.Source.Run == Finishing)
	}, stay(record.Unknown, "somebody else's migration has taken it from the source: ask $S for query-migrate, and look where that went")},
	{"not the source", "what it holds was not ours to move; the error says why", func(s Situation) bool {
		return s.Sent < SentMigrate && (s.Source.Run == InMigrate || s.Source.Run == Post || s.Source.Run == Finishing)
	}, stay(record.Unknown, "")},
	{"guest was paused, before `migrate`", "it stays as it was", func(s Situation) bool {
		return s.Sent < SentMigrate && s.Leave
	}, stay(record.Source, "")},
	{"paused source silent before `migrate`", "it holds the guest", func(s Situation) bool {
		return s.Sent < SentMigrate && s.Source.Reach == Silent
	}, stay(record.Unknown, "nothing was sent, and the source, which we had paused, does not answer: `cont` on $S runs it")},
	{"continue what we paused", "nothing was sent", func(s Situation) bool {
		return s.Sent < SentMigrate
	}, step(RunSource)},

	// The destination was told to run.
	{"both run, all is there: stop the source", "the destination has the guest since our `cont`; somebody has continued the source", func(s Situation) bool {
		return s.told() && s.Source.runs() && s.Destination.runs() && s.Destination.whole() && s.Sent == SentCont && !s.Stopped
	}, step(StopSource)},
	{"both run", "a person has to choose, for both have changed", func(s Situation) bool {
		return s.told() && s.Source.runs() && s.Destination.runs()
	}, stay(record.Unknown, "THE GUEST RUNS TWICE, on $S and on $D: `stop` on both, end the one whose guest is the older")},
	{"destination runs, source dead, memory missing", "what it misses died with the source", func(s Situation) bool {
		return s.told() && s.Destination.runs() && s.Destination.Status.split() && s.Source.Reach == Dead
	}, stay(record.None, partThere)},
	{"destination runs, source out of reach, memory missing", "post-copy needs no one who watches", func(s Situation) bool {
		return s.told() && s.Destination.runs() && s.Destination.Status.split() && s.Source.Reach != Answers
	}, stay(record.Unknown, "a monitor was lost in post-copy; if both QEMUs live it goes on by itself: ask $D for query-migrate, and if that is postcopy-paused `qmigrate migrate --recover` goes on")},
	{"destination runs, link lost", "both sides are needed until all memory has come", func(s Situation) bool {
		return s.told() && s.Destination.runs() && s.Destination.Status.split() && (s.Source.Status == SplitLost || s.Source.Status == SplitMend || s.Destination.Status != Split)
	}, unfinished("a part of its memory is still on the source, and it stands still at the first page that it misses: " + laterLink)},
	{"destination runs, memory missing", "both sides are needed until all memory has come", func(s Situation) bool {
		return s.told() && s.Destination.runs() && s.Destination.Status.split()
	}, unfinished("a part of its memory is still on the source: let both QEMUs live until query-migrate on $D says completed; if that is postcopy-paused, `qmigrate migrate --recover --source $S --destination $D`")},
	{"destination runs", "it has the guest", func(s Situation) bool {
		return s.told() && s.Destination.runs()
	}, stay(record.Destination, "")},
	{"destination has run and is paused", "somebody stopped it there, or its disk did", func(s Situation) bool {
		return s.told() && s.Destination.Reach == Answers && s.Ran == Has
	}, stay(record.Destination, "it is there, paused: `cont` on $D")},
	{"destination may have run, source runs", "neither may be ended by us", func(s Situation) bool {
		return s.told() && s.Destination.Reach == Answers && s.Ran == Maybe && s.Source.runs()
	}, stay(record.Unknown, "the destination was told to run it and is paused, and somebody has continued the source: end the one whose guest is the older: $S or $D")},
	{"`cont` lost with a monitor", "it is the destination's since the first `cont`", func(s Situation) bool {
		return s.told() && s.Destination.Reach == Answers && s.Ran == Maybe && !s.Refused
	}, step(RunDestination)},
	{"`cont` lost and refused", "it may have run before", func(s Situation) bool {
		return s.told() && s.Destination.Reach == Answers && s.Ran == Maybe
	}, stay(record.Destination, "it is there, paused, and does not start ($E): `cont` on $D")},
	{"told, never ran, source has it back", "the source has not given it away", func(s Situation) bool {
		return s.told() && s.Destination.Reach == Answers && s.Source.Reach == Answers && !s.Unended && (s.Source.back() || s.Source.runs())
	}, step(End)},
	{"told, never ran, nobody can go back", "the source has given it away, or what it had is freed", func(s Situation) bool {
		return s.told() && s.Destination.Reach == Answers && s.handed() && (s.Gives || !s.Destination.whole() || s.Source.Status != Departed)
	}, stay(record.Destination, "it is there, paused, and does not start: `cont` on $D runs it")},
	{"told, never ran, source out of reach", "the destination has the only guest for certain", func(s Situation) bool {
		return s.told() && s.Destination.Reach == Answers && s.Source.Reach != Answers
	}, stay(record.Destination, "it is there, paused, and does not start: `cont` on $D runs it once the source QEMU is surely dead")},
	{"told, never ran: end it", "the source answers, has it whole and stopped; the fence comes first", func(s Situation) bool {
		return s.told() && s.Destination.Reach == Answers && !s.Unended
	}, step(End)},
	{"told, never ran, cannot be ended", "the fence does not hold", func(s Situation) bool {
		return s.told() && s.Destination.Reach == Answers
	}, stay(record.None, "it is paused on both sides, and the destination could not be ended ($E): end $D, then `cont` on $S")},
	{"ran, silent since", "it was started there", func(s Situation) bool {
		return s.told() && s.Destination.Reach == Silent && s.Ran == Has
	}, stay(record.Destination, "it was started there, and $D does not answer since")},
	{"told, silent, its process is known", "it can be ended by force, and its last events say whether it ran", func(s Situation) bool {
		return s.told() && s.Destination.Reach != Dead && s.Destination.Known && s.Ran == Never && s.Source.Reach == Answers && !s.Unended && !s.handed()
	}, step(End)},
	{"told, not known dead", "it may run", func(s Situation) bool {
		return s.told() && s.Destination.Reach != Dead
	}, stay(record.Unknown, "the destination was told to run it, cannot be asked any more, and is not known dead: ask $D for query-status; if that QEMU is surely dead, `cont` on $S goes back to when the source stopped")},
	{"told, both dead", "nobody is left", func(s Situation) bool {
		return s.told() && s.Source.Reach == Dead
	}, stay(record.None, bothDied)},
	{"ran and died in post-copy", "what it had changed died with it", func(s Situation) bool {
		return s.told() && s.Ran != Never && s.Source.Status.split()
	}, stay(record.None, "it is lost: the destination QEMU, which ran it, died in post-copy, and what it had changed died with it; $S still has the memory as it was at the switch and can be examined")},
	{"ran and died", "what it did since is lost; a person decides whether to go back", func(s Situation) bool {
		return s.told() && s.Ran == Has
	}, stay(record.None, "it ran on the destination, which died. "+goBack)},
	{"may have run and died", "the same, for its last events were not seen", func(s Situation) bool {
		return s.told() && s.Ran == Maybe
	}, stay(record.None, "it may have run on the destination, which died. "+goBack)},

	// Post-copy: the source has given it away, and the destination has not run it.
	{"switched, both dead", "nobody is left", func(s Situation) bool {
		return s.handed() && s.Source.Reach == Dead && s.Destination.Reach == Dead
	}, stay(record.None, bothDied)},
	{"switched, destination dead, memory given up", "the source has freed what it had sent", func(s Situation) bool {
		return s.handed() && s.Destination.Reach == Dead && s.Gives
	}, stay(record.None, "it is lost: the destination QEMU died before it ran, and with release-ram the source has already given up what it had sent")},
	{"switched, destination dead: take it back", "nothing has changed since the source stopped; QEMU before 10.0 lets it go", func(s Situation) bool {
		return s.handed() && s.Destination.Reach == Dead && s.Source.Reach == Answers && s.Source.Status != Departed && !s.Cancelled
	}, step(Cancel)},
	{"switched, destination dead, no way back", "QEMU 10.0 and newer refuse", func(s Situation) bool {
		return s.handed() && s.Destination.Reach == Dead && s.Source.Reach == Answers && s.Source.Status != Departed
	}, stay(record.None, "it is lost: the destination QEMU died before it ran, and this source QEMU lets nobody go back from post-copy ($E); its memory can be read there with dump-guest-memory")},
	{"switched, source dead, all is there", "the destination has everything", func(s Situation) bool {
		return s.handed() && s.Source.Reach == Dead && s.Destination.Reach == Answers && s.Destination.whole() && !s.Refused && !s.Leave
	}, step(RunDestination)},
	{"switched, source dead, wait for the rest", "the last of it may be on the way", func(s Situation) bool {
		return s.handed() && s.Source.Reach == Dead && s.Destination.Reach == Answers && !s.Destination.whole() && !s.Waited
	}, step(Wait)},
	{"switched, source dead", "what is missing died with it", func(s Situation) bool {
		return s.handed() && s.Source.Reach == Dead && s.Destination.Reach == Answers && !s.Destination.whole()
	}, stay(record.None, partThere)},
	{"switched: the destination runs it", "the source cannot any more, and the destination has all that it needs", func(s Situation) bool {
		return s.handed() && s.Destination.Reach == Answers && s.Destination.loaded() && MayRun(s) && !s.Refused && !s.Leave
	}, step(RunDestination)},
	{"switched, destination does not start", "only it can run it", func(s Situation) bool {
		return s.handed() && s.Destination.Reach == Answers && s.Destination.loaded() && s.Refused
	}, stay(record.Destination, "it is there, paused, and does not start ($E): `cont` on $D runs it")},
	{"switched, guest was paused", "it stays as it was; its memory follows", func(s Situation) bool {
		return s.handed() && s.Destination.Reach == Answers && s.Destination.loaded() && s.Leave
	}, stay(record.Destination, "it is there, paused as it was: let both QEMUs live until query-migrate on $D says completed")},
	{"switched, destination still loads", "a busy host must not be taken for a lost link", func(s Situation) bool {
		return s.handed() && s.Destination.Reach == Answers && !s.Waited
	}, step(Wait)},
	{"switched, and nobody runs it", "the destination could not be told, or is not known to be whole", func(s Situation) bool {
		return s.handed() && s.Destination.Reach != Dead
	}, stay(record.None, "it is paused on both sides, and only the destination can run it: let both QEMUs live; "+laterAgain)},

	// Post-copy was asked for, and the source has not given it away yet.
	{"switch under way: cut the connection", "safe before the switch and after it; migrate_cancel could cross it", func(s Situation) bool {
		return s.Begun && s.Source.Reach == Answers && !s.Source.Status.Final() && s.Destination.Reach != Dead && !s.Cancelled
	}, step(Yank)},
	{"switch under way: wait", "the source says by itself which side has it", func(s Situation) bool {
		return s.Begun && s.Source.Reach == Answers && !s.Source.Status.Final() && !s.Waited
	}, step(Wait)},
	{"switch under way for too long", "whose it is is not known", func(s Situation) bool {
		return s.Begun && s.Source.Reach == Answers && (s.Source.Status.split() || s.Source.Status == Device || s.Source.Run == Finishing)
	}, stay(record.None, "it stands still on the source, whose QEMU does not end the switch to post-copy: "+laterAgain)},

	// `migrate` was sent, and the destination was never told to run.
	{"both dead, all was there", "nobody is left", func(s Situation) bool {
		return s.Source.Reach == Dead && s.Destination.Reach == Dead && s.Destination.whole()
	}, stay(record.None, bothDied)},
	{"both dead", "nobody is left", func(s Situation) bool {
		return s.Source.Reach == Dead && s.Destination.Reach == Dead
	}, stay(record.None, "it is lost: the source QEMU died before the destination had all of it")},
	{"source dead, all is there, guest was paused", "it stays as it was", func(s Situation) bool {
		return s.Source.Reach == Dead && s.Destination.Reach == Answers && s.Destination.whole() && s.Leave
	}, stay(record.Destination, "")},
	{"source dead, all is there", "the destination has the only guest", func(s Situation) bool {
		return s.Source.Reach == Dead && s.Destination.Reach == Answers && s.Destination.whole() && !s.Refused
	}, step(RunDestination)},
	{"source dead, destination does not start", "it has the only guest", func(s Situation) bool {
		return s.Source.Reach == Dead && s.Destination.Reach == Answers && s.Destination.whole()
	}, stay(record.None, "the source is dead and the destination does not start ($E): `cont` on $D")},
	{"source dead: wait for the rest", "the last of it may be on the way", func(s Situation) bool {
		return s.Source.Reach == Dead && s.Destination.Reach == Answers && !s.Waited
	}, step(Wait)},
	{"source dead, destination is not whole", "what is missing died with the source", func(s Situation) bool {
		return s.Source.Reach == Dead && s.Destination.Reach == Answers && s.Destination.Status.Final() && s.killable()
	}, step(End)},
	{"source dead, destination cannot be ended", "what is missing died with the source", func(s Situation) bool {
		return s.Source.Reach == Dead && s.Destination.Reach == Answers && s.Destination.Status.Final()
	}, stay(record.None, "it is lost: the source QEMU died before the destination had all of it")},
	{"source dead, destination does not say", "it may have everything", func(s Situation) bool {
		return s.Source.Reach == Dead
	}, stay(record.None, "the source QEMU died, and the destination does not say whether it has all of it: when query-migrate on $D says completed, `qmigrate migrate --recover` runs it")},
	{"source lost, it had completed", "a source that has completed does not run", func(s Situation) bool {
		return s.Source.Reach == Lost && s.Source.Status == Departed && s.Destination.Reach == Answers && s.Destination.whole() && !s.Refused && !s.Leave
	}, step(RunDestination)},
	{"source lost, it had completed, guest was paused", "it stays as it was", func(s Situation) bool {
		return s.Source.Reach == Lost && s.Source.Status == Departed && s.Destination.Reach == Answers && s.Destination.whole() && s.Leave
	}, stay(record.Destination, "")},
	{"source lost, all is there", "the source may take it back", func(s Situation) bool {
		return s.Source.Reach == Lost && s.Destination.whole() && s.Destination.Reach != Dead
	}, stay(record.None, "the destination holds all of it, paused, but the source's monitor was lost and its process is not known dead: make sure that it is, then `cont` on $D")},
	{"source lost: wait for the rest", "the last of it may be on the way", func(s Situation) bool {
		return s.Source.Reach == Lost && s.Destination.Reach == Answers && !s.Waited
	}, step(Wait)},
	{"source lost, destination dead", "the destination never ran it", func(s Situation) bool {
		return s.Source.Reach == Lost && s.Destination.Reach == Dead
	}, stay(record.Unknown, "the destination is dead and never ran it, and the source's monitor was lost: if that QEMU lives, it holds the guest: "+askSource+", `cont` runs it")},
	{"source lost", "it holds the guest if it lives", func(s Situation) bool {
		return s.Source.Reach == Lost
	}, stay(record.Unknown, "the source's monitor was lost and the destination has not all of it: if that QEMU lives, it holds the guest: "+askSource)},
	{"source silent, all is there: wait", "it may be at its last write", func(s Situation) bool {
		return s.Source.Reach == Silent && s.Destination.whole() && s.Destination.Reach != Dead && !s.Waited
	}, step(Wait)},
	{"source silent, all is there", "the source may be dead with its host, and then the destination has the only guest", func(s Situation) bool {
		return s.Source.Reach == Silent && s.Destination.whole() && s.Destination.Reach != Dead
	}, stay(record.Unknown, "the source does not answer, and the destination holds all of it, paused: `qmigrate migrate --recover` runs it where that is safe once the source answers; if the source QEMU is surely dead, `cont` on $D")},
	{"source silent: free it", "it may hang in a write; yank is taken out of band", func(s Situation) bool {
		return s.Source.Reach == Silent && !s.Cancelled
	}, step(Cancel)},
	{"source silent: end the destination", "it is not whole, and its end frees a source that hangs in a write to it", func(s Situation) bool {
		return s.Source.Reach == Silent && s.killable()
	}, step(End)},
	{"source silent: wait", "it may need a moment", func(s Situation) bool {
		return s.Source.Reach == Silent && !s.Waited
	}, step(Wait)},
	{"source silent", "the guest is its own", func(s Situation) bool {
		return s.Source.Reach == Silent
	}, stay(record.Unknown, "the source does not answer: the guest is its own; "+askSource+"; `cont` on $S runs it if it is paused there")},

	// The source answers.
	{"sent, and nothing has come: wait", "a connection may lie in the destination's queue", func(s Situation) bool {
		return s.Elsewhere && s.Source.Status == Departed && s.Destination.untouched() && !s.Waited
	}, step(Wait)},
	{"sent elsewhere", "the QEMU that all was sent to may run it", func(s Situation) bool {
		return s.Elsewhere && s.Source.Status == Departed && s.Destination.untouched() && !s.Source.runs()
	}, stay(record.Unknown, "the source has sent all of it, and nothing has come to $D: it may have gone to another QEMU, which may run it: look there; if it surely runs nowhere, `cont` on $S runs it")},
	{"all is there: the fence first", "the destination may hold the locks that the source needs to go on; the source has just answered", func(s Situation) bool {
		return s.Destination.whole() && s.killable()
	}, step(End)},
	{"end the migration", "the source keeps its guest", func(s Situation) bool {
		return !s.Source.Status.Final() && !s.Cancelled && !(s.Destination.whole() && s.Unended)
	}, step(Cancel)},
	{"end the destination", "the fence: before the source goes on, the destination is known dead", func(s Situation) bool {
		return s.killable()
	}, step(End)},
	{"destination cannot be ended, source runs", "the destination was never told to run", func(s Situation) bool {
		return s.Unended && s.Source.Run == Running
	}, stay(record.Source, "the destination QEMU is paused and could not be ended ($E): end $D")},
	{"destination cannot be ended", "the fence does not hold", func(s Situation) bool {
		return s.Unended
	}, stay(record.None, "it is paused on both sides, and the destination could not be ended ($E): end the destination QEMU, then `cont` on $S")},
	{"guest was paused", "it stays as it was", func(s Situation) bool {
		return s.Leave
	}, stay(record.Source, "")},
	{"give the source a moment", "it ends its migration, and most QEMUs then continue by themselves", func(s Situation) bool {
		return !s.Source.Status.Final() && s.Source.Run != Paused && !s.Waited
	}, step(Wait)},
	{"continue the source", "the destination is dead; a source that still connects into nothing (cancelling) may go on meanwhile", func(s Situation) bool {
		return true
	}, step(RunSource)},
}
