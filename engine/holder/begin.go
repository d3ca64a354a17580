package holder

import "qmigrate/engine/record"

// Whether a new migration may begin between two QEMUs, and if not, what is in its way. Text is the problem, then,
// behind a tab, its mend.

var migrateRules = []rule{
	{
		"one QEMU", "",
		func(s Situation) bool { return s.Strangers != "" },
		doubt(record.Unknown, "source $S and destination $D are the same QEMU\tgive the monitor of another "+
			"one, started with -incoming defer"),
	},
	{
		"ends swapped", "",
		func(s Situation) bool { return s.Source.Run == InMigrate },
		doubt(record.Unknown, "source $S is itself waiting for a migration\tswap source and destination?"),
	},
	{
		"a migration is under way", "",
		func(s Situation) bool { return !s.Source.Status.Final() },
		doubt(record.Unknown, "a migration is under way on source $S ($m)\tif it was interrupted, `qmigrate "+
			"migrate --recover` with the same endpoints ends it and keeps the guest; else let it end"),
	},
	{
		"a former one has left it paused", "",
		func(s Situation) bool { return s.Source.Run == Post && s.Source.Status != Departed },
		doubt(record.Unknown, "an earlier migration from source $S has $m and left the guest "+
			"paused\t`qmigrate migrate --recover` with the same endpoints runs it"),
	},
	{
		"a former one was not ended", "",
		func(s Situation) bool {
			return s.Source.Run == Post && !(s.Destination.Run == InMigrate && s.Destination.Status == None)
		},
		doubt(record.Unknown, "an earlier migration from source $S has completed and was not ended: source is "+
			"postmigrate, destination $D is $d\t"+"`qmigrate migrate --recover` with the same endpoints "+
			"starts the guest where it is safe"),
	},
	{
		"migrated away", "",
		func(s Situation) bool { return s.Source.Run == Post },
		doubt(record.Unknown, "source $S has already been migrated away (postmigrate)\tname the QEMU that "+
			"runs the guest now; if it surely never ran anywhere else, `cont` on the source runs it"),
	},
	{
		"destination after another migration", "",
		func(s Situation) bool { return s.Destination.Run != InMigrate && s.Destination.Status != None },
		doubt(record.Unknown, "destination $D is not waiting for a migration, it is $d after one that has "+
			"$n\t`qmigrate migrate --recover` with the same endpoints keeps the guest where it is safe; else "+
			"name another destination"),
	},
	{
		"not a destination", "",
		func(s Situation) bool { return s.Destination.Run != InMigrate },
		doubt(record.Unknown, "destination $D is not waiting for a migration, it is $d\tstart it with "+
			"-incoming defer (and -S), or let `qmigrate migrate --launch` start it"),
	},
	{
		"destination in use", "",
		func(s Situation) bool { return s.Destination.Status != None },
		doubt(record.Unknown, "destination $D already listens or has been used ($n)\tif a migration was "+
			"interrupted, `qmigrate migrate --recover` with the same endpoints ends it and keeps the guest; "+
			"else start it with -incoming defer, not with an address"),
	},
	{
		"our mirrors are left", "",
		func(s Situation) bool { return s.Leftover },
		doubt(record.Source, "source $S still has $L of an interrupted migration\t`qmigrate migrate "+
			"--recover` with the same endpoints removes them, if no other qmigrate is at work"),
	},
	{
		"may begin", "",
		func(s Situation) bool { return true },
		stay(record.Source, ""),
	},
}
