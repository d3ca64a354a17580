package handover

import "qmigrate/engine/holder"

// run is a run state of QEMU.
type run uint8

const (
	running run = iota
	paused
	inMigrate
	finishing // finish-migrate
	post      // postmigrate
)

func (r run) String() string {
	return [...]string{"running", "paused", "inmigrate", "finish-migrate", "postmigrate"}[r]
}

func (r run) of() holder.Run {
	return [...]holder.Run{holder.Running, holder.Paused, holder.InMigrate, holder.Finishing, holder.Post}[r]
}

// mig is the state of a migration, or an event: MIGRATION with that state, STOP, RESUME.
type mig uint8

const (
	none mig = iota
	listening
	setup
	active
	device
	cancelling
	cancelled
	failed
	departed // completed, sent
	arrived  // completed, received
	splitDevice
	split
	splitPaused
	splitRecover
	stopEvent
	resumeEvent
)

func (m mig) String() string {
	return [...]string{"none", "setup(incoming)", "setup", "active", "device", "cancelling", "cancelled", "failed",
		"completed(sent)", "completed(received)", "postcopy-device", "postcopy-active", "postcopy-paused",
		"postcopy-recover", "STOP", "RESUME"}[m]
}

func (m mig) of() holder.Status {
	return [...]holder.Status{holder.None, holder.Listening, holder.Setup, holder.Active, holder.Active,
		holder.Cancelling, holder.Cancelled, holder.Failed, holder.Departed, holder.Arrived, holder.Device,
		holder.Split, holder.SplitLost, holder.SplitMend}[m]
}

// parts: the source is in post-copy.
func (m mig) parts() bool { return m >= splitDevice && m <= splitRecover }

func (m mig) final() bool { return m <= listening || m >= cancelled && m <= arrived }

// thread is where a QEMU's migration code stands: what it does next.
type thread uint8

const (
	idle thread = iota

	// Of a source.
	connecting
	iterating
	saving    // the guest is stopped; the rest is sent under the big lock
	saved     // all is sent; waits for SHUT, or says completed
	ending    // said completed; becomes postmigrate
	failing   // its migration has ended badly; takes the disks back and continues
	switching // 7.2: postcopy-active already, the guest not stopped yet
	packaging // the guest is stopped; the package is sent under the big lock
	packaged  // it is sent; errors are looked for a last time
	pages     // post-copy: memory follows
	allPages  // all memory is sent; waits for SHUT
	halted    // postcopy-paused
	reconnecting
	handshake // of a recovery
	stuck     // waits for ever

	// Of a destination.
	waiting
	loading
	loaded    // all is read; the bottom half comes
	unpacking // the package is read; devices are loaded
	unpacked  // the bottom half of POSTCOPY_RUN comes
	receiving // post-copy: memory follows
	done
)

// command is one that qmigrate, or somebody else, sends.
type command uint8

const (
	noCommand command = iota
	cmdStop
	cmdCont
	cmdMigrate
	cmdSwitch // migrate-start-postcopy
	cmdCancel
	cmdResume // migrate with resume
	cmdQuit
)

func (c command) String() string {
	return [...]string{"", "stop", "cont", "migrate", "migrate-start-postcopy", "migrate_cancel", "migrate resume",
		"quit"}[c]
}

// reply is what came of a command.
type reply uint8

const (
	noReply reply = iota
	yes
	refused
)

// qemu is one of the two.
type qemu struct {
	run  run
	mig  mig
	at   thread
	dead bool
	hung bool // takes no step and answers nothing until it wakes
	lock bool // its disks are active
	was  bool // source: it ran when its migration stopped it. destination: autostart
	err  bool // its end of the connection is broken, and its next turn sees it
	deaf bool // its monitor was cut and qmigrate has not reached it again
	sick bool // it cannot open its disk

	events uint64 // sent and not yet taken in by qmigrate, the oldest in the lowest 4 bits
	sent   command
	reply  reply // of sent, on its way
}

func (q *qemu) tell(e mig) {
	for i := 0; i < 64; i += 4 {
		if q.events>>i&15 == 0 {
			q.events |= uint64(e) << i
			return
		}
	}
	panic("more than 16 events are on their way")
}

// turn changes the state of the migration and tells it.
func (q *qemu) turn(m mig) { q.mig = m; q.tell(m) }

// net is the way between the two QEMUs.
type net uint8

const (
	netUp     net = iota
	netDown       // no connection: closed or reset
	netSilent     // packets vanish; the sockets still take what is written
	netFull       // packets vanish, and writes block
)

// What the source has written to the stream.
const (
	wroteNothing uint8 = iota
	wroteRAM
	wroteEnd
)

// State is all there is. It is comparable: two states with the same fields have the same future.
type State struct {
	s, d qemu
	net  net

	wrote     uint8
	post      bool // the package was written
	pong      bool // 0x42 was written
	shut      bool
	drains    bool // what was written before the connection broke is still delivered
	again     bool // the destination listens for a recovery
	wantsPost bool // migrate-start-postcopy was taken
	gave      bool // release-ram: the source has freed what it sent
	theirs    bool // the migration on the source is somebody else's

	ran     bool   // the destination has run the guest
	other   bool   // another QEMU has got the guest and runs it
	off     bool   // the guest has powered itself off
	excuse  excuse // two may run for a while
	killed  bool   // a QEMU was killed
	unclear bool   // a fault hides a side from qmigrate: hung, slow, or its monitor was cut
	late    bool   // the source was killed, or meddled with, after the last look at it
	moved   bool   // the guest ran when its migration stopped it
	meddled bool   // somebody else has stopped the guest

	k     mind
	wrong string // what qmigrate has done that it must not

	faults, slow, third, asks, crashes, recovers uint8 // what is left of the budgets
}

// excuse is why two may run for a while: somebody else has said `cont` where only we may.
type excuse uint8

const (
	// To the source, when it has sent everything, or when we had stopped it to switch to post-copy. It counts until
	// qmigrate has seen that the source runs; from then on qmigrate must not start the destination.
	theySource excuse = 1 << iota

	// To the destination, at any time: nobody but us may.
	theyDestination

	// Not somebody: a QEMU 10.0 or newer continues its guest by itself when the link is lost between the last page of
	// a post-copy and SHUT. It counts until qmigrate comes to its end, if it is there.
	itself
)

// sees: qmigrate sees that the source runs, while the destination was not told to.
func (s *State) sees() {
	told := s.d.run == running || s.d.sent == cmdCont || s.d.run == inMigrate && s.d.was
	if !told && !s.k.begun && s.k.at != pStopFirst {
		s.excuse &^= theySource
	}
}

// they: somebody has said `cont` where only we may.
func (s *State) they() bool { return s.excuse&^itself != 0 }

// both run the guest.
func (s *State) twice() bool {
	n := 0
	for _, runs := range []bool{!s.s.dead && s.s.run == running, !s.d.dead && s.d.run == running, s.other} {
		if runs {
			n++
		}
	}
	return n > 1
}
