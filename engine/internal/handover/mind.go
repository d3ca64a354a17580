package handover

// pc is what qmigrate waits for.
type pc uint8

const (
	pStop         pc = iota // the reply to `stop`, stop-and-copy
	pStopped                // STOP
	pMigrate                // the reply to `migrate`
	pPre                    // the switch-over, or that it is time for post-copy
	pStopFirst              // the reply to `stop`, just before post-copy
	pSwitch                 // the reply to migrate-start-postcopy
	pAll                    // the source has sent all (post-copy: has switched), the destination has the package
	pArrive                 // the destination has loaded all
	pCont                   // the reply to `cont`
	pResume                 // RESUME
	pFollow                 // post-copy: all memory
	pPaused                 // both sides have paused post-copy
	pMigrateAgain           // the reply to `migrate` with resume
	pGoesOn                 // both sides go on
	pConfirm                // the source's run state, at the end
	pStopAgain              // the reply to `stop`, to a source that somebody continued

	uLookSource // an undo or a `--recover`: the source's answers
	uLook       // the destination's
	uWait       // that a state changes
	uCancel     // the reply to migrate_cancel
	uCancelled  // that it had an effect
	uYanked     // that yank had one
	uEnd        // the reply to quit
	uRunSource
	uRetry // the source refused `cont`: that its state changes
	uStopSource
	uRunDestination

	pEnd  // it has ended and has said where the guest is
	pGone // it was killed
)

func (p pc) undoes() bool { return p >= uLookSource && p < pEnd }

// reach is holder.Reach.
type reach uint8

const (
	answers reach = iota
	silent
	lost
	dead
)

// mind is what qmigrate knows and how far it has come.
type mind struct {
	at       pc
	recovers bool // this is a `--recover`

	source, dest struct {
		run   run
		mig   mig
		reach reach
	}
	sent      holderSent
	before    holderSent // the `cont` that was sent last, if that is refused
	ran       uint8      // 0 never, 1 maybe, 2 has
	stopped   bool       // STOP was seen
	again     bool       // and RESUME after it
	leave     bool
	ask       uint8 // the question what stopped the source: 1 sent; on its way: 2 "not held", 3 "held"; 4, 5: come
	pages     bool  // the source was seen sending memory in post-copy
	begun     bool
	refused   bool
	waited    bool
	cancelled bool
	yanked    bool
	unended   bool
	stuck     bool
	halted    bool // `stop` was sent to a source that ran beside the destination
	blind     bool // events of the destination may have been missed
	fenced    bool // the destination is known dead, because we ended it
	failed    bool // an event of the source said so
	parted    bool // the source has said postcopy-*, or may have
	left      bool // the source has left postcopy-paused
	ended     bool // the destination was ended by us

	steps, mends uint8

	guest                   guest
	told, unfinished, doubt bool
	saysLost, saysTwice     bool
	saysBack                bool // the source runs the guest as it was at the switch
}

type holderSent uint8

// guest is where qmigrate says that the guest is.
type guest uint8

const (
	unsaid guest = iota
	onSource
	onDestination
	nowhere // record.None
	unknown
)
