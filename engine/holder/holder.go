// Package holder decides who holds the guest: what an undo, `--recover` and a new `migrate` do next, from what both
// QEMUs say of themselves and from what this run has sent. It is arithmetic on values: no clock, no I/O, no QMP. The
// engine looks, asks Decide, does the one step that it names, and looks again, until a decision is final.
//
// Why each rule is safe is docs/decisions/0002-who-holds-the-guest.md; docs/who-holds-the-guest.md is the table of
// all rules, made from this code. The model in engine/internal/handover runs the same functions against both QEMUs by
// their sources' rules.
package holder

import (
	"strings"

	"qmigrate/engine/record"
)

// Asker is who wants to know.
type Asker string

// The askers.
const (
	Undo    Asker = "undo"    // a migration of this process has failed or was cancelled: it knows what it has sent
	Recover Asker = "recover" // `--recover`: somebody's migration was interrupted, and what was sent is not known
	Migrate Asker = "migrate" // a new migration: are these a source and a destination at all?
)

// Sent is how far this run had come: the last command that counts. It is Undo's alone.
type Sent int

// The commands that count, in the order in which they are sent. A command counts from before it is sent. If QEMU
// refuses it, it was not sent.
const (
	SentNothing Sent = iota
	SentIncoming
	SentMigrate
	SentSwitch // migrate-start-postcopy
	SentCont   // `cont` to the destination
)

func (s Sent) String() string {
	return [...]string{"nothing", "migrate-incoming", "migrate", "migrate-start-postcopy", "cont"}[s]
}

// Reach is whether a QEMU can be asked.
type Reach string

// How a QEMU can be reached.
const (
	Answers Reach = "answers" // it has answered just now
	Silent  Reach = "silent"  // its monitor is there and does not answer
	Lost    Reach = "lost"    // its monitor has gone, and its process is not known to have ended
	// its process has ended, or it said yes to `quit` and closed its monitor: it runs nothing any more
	Dead Reach = "dead"
)

// Run is a run state (query-status), as far as it matters who holds the guest.
type Run string

// The run states.
const (
	Running Run = "running" // and suspended: it sleeps (S3), and may wake up by itself
	// any state in which the guest stands still and `cont` would run it, none of those below
	Paused    Run = "paused"
	InMigrate Run = "inmigrate"      // waits for a guest
	Finishing Run = "finish-migrate" // stopped by its own migration, which is not at its end
	Post      Run = "postmigrate"    // stopped by its own migration, which is at its end
)

// RunOf is the Run of a run state in QEMU's word.
func RunOf(state string) Run {
	switch r := Run(state); r {
	case Running, InMigrate, Finishing, Post:
		return r
	case "suspended": // the guest sleeps (ACPI S3), and wakes by itself
		return Running
	}
	return Paused
}

// takesCont tells whether QEMU accepts `cont` in this state. In finish-migrate it refuses, and in inmigrate it only
// notes it.
func (r Run) takesCont() bool { return r == Running || r == Paused || r == Post }

// Status is what query-migrate says, as far as it matters who holds the guest.
type Status string

// The states of a migration. Where it came from is asked of `completed` alone: a guest that once arrived says
// `completed` too, without `ram`.
const (
	None       Status = "none"
	Listening  Status = "setup (incoming)" // nothing has come to it
	Setup      Status = "setup"            // a source that connects
	Active     Status = "active"           // and device, pre-switchover, wait-unplug: pre-copy, or its end
	Cancelling Status = "cancelling"       // and failing: on its way to the next two
	Cancelled  Status = "cancelled"
	Failed     Status = "failed"
	Departed   Status = "completed (sent)"
	Arrived    Status = "completed (received)"
	Device     Status = "postcopy-device" // 10.2 and newer: the source still takes its guest back when the link breaks
	Split      Status = "postcopy-active"
	SplitLost  Status = "postcopy-paused"
	SplitMend  Status = "postcopy-recover" // and postcopy-recover-setup
)

// StatusOf is the Status of query-migrate's word. Sent says whether the reply was one of a source: it has `ram`, or
// it is the status of a migration that the QEMU has sent for certain. Waiting is the run state inmigrate.
func StatusOf(word string, sent, waiting bool) Status {
	switch word {
	case "", "none":
		return None
	case "setup":
		if waiting {
			return Listening
		}
		return Setup
	case "cancelling", "failing":
		return Cancelling
	case "cancelled":
		return Cancelled
	case "failed":
		return Failed
	case "completed":
		if sent {
			return Departed
		}
		return Arrived
	case "postcopy-device":
		return Device
	case "postcopy-active":
		return Split
	case "postcopy-paused":
		return SplitLost
	}
	if strings.HasPrefix(word, "postcopy-recover") {
		return SplitMend
	}
	return Active
}

// split tells whether the status is one of post-copy in which neither side has the whole guest.
func (s Status) split() bool { return s == Split || s == SplitLost || s == SplitMend }

// Final tells whether the migration has ended, or none was there.
func (s Status) Final() bool {
	switch s {
	case None, Listening, Cancelled, Failed, Departed, Arrived:
		return true
	}
	return false
}

// QEMU is one side.
type QEMU struct {
	Reach  Reach
	Run    Run    // of the last answer; "" if it has never answered
	Status Status // of the last answer or event; "" if it has never answered
	Known  bool   // its process is known, and can be ended by force
}

// runs tells whether it has said just now that it runs the guest.
func (q QEMU) runs() bool { return q.Reach == Answers && q.Run == Running }

// Ran is whether the destination has run the guest.
type Ran string

// What is known of that.
const (
	Never Ran = "never" // every event up to now was seen, and none was RESUME
	Maybe Ran = "maybe" // events may have been missed
	Has   Ran = "has"   // RESUME was seen, or it was seen running
)

// Situation is all that a decision depends on.
type Situation struct {
	Asker       Asker
	Source      QEMU
	Destination QEMU
	Sent        Sent // Undo
	Ran         Ran  // Undo

	// Undo.
	Leave bool // the guest was paused before, or somebody has paused it: it is not to run
	// the source's status may still go back to failed: a post-copy on a QEMU before 10.0 of which no page was seen on its
	// way
	Tentative bool
	Elsewhere bool // where the source connects to was not told by the destination itself: it may have reached another QEMU
	Refused   bool // the destination refused a `cont` of this undo
	Begun     bool // migrate-start-postcopy was sent; Recover: it may have been, for postcopy-ram is on
	// the source's QEMU keeps its guest for ever if its connection breaks in the switch to post-copy: 9.0 to 10.1
	Jams  bool
	Takes bool // the source's QEMU takes migrate_cancel in post-copy, and its guest back: before 10.0
	// the destination's QEMU takes the image locks when it has loaded everything: before 10.0, without late-block-activate
	Locks bool
	Gives bool // release-ram: what the source has sent in post-copy is no longer there

	// Undo and Recover: what was tried already, so that each step is tried once.
	Waited    bool // the limit of waiting for the present states is over
	Cancelled bool // migrate_cancel was sent to the source, and yank if that did not help
	Yanked    bool // yank alone was sent to it
	Ended     bool // Recover has ended the destination, which did not run
	Unended   bool // the destination could not be ended
	Stuck     bool // the source refused a `cont`
	Stopped   bool // `stop` was sent to a source that ran beside the destination

	// Recover and Migrate.
	Strangers string // why they cannot be the two ends of one migration; "" if nothing speaks against it
	Leftover  bool   // the source has our mirror jobs or nodes
}

// Step is what the engine does next.
type Step string

// The steps. After each one but Stay, the engine looks again and asks again.
const (
	Stay Step = "stay" // nothing: the decision is final
	Wait Step = "wait" // until the states change, within a limit; then Waited
	// migrate_cancel on the source, and yank if that does not end it; then Cancelled
	Cancel Step = "cancel"
	// close the source's connection only, where migrate_cancel might cross the switch to post-copy; then Yanked
	Yank           Step = "yank"
	End            Step = "end destination" // quit, then SIGKILL: the fence; then it is Dead, or Unended
	RunSource      Step = "cont source"
	StopSource     Step = "stop source"
	RunDestination Step = "cont destination"
	Mend           Step = "mend link" // pause both, a new connection, and follow the post-copy to its end
)

// Decision is one step, or an end.
type Decision struct {
	Rule       string        // its name in the table
	Do         Step          //
	Guest      record.Holder // where the guest is when Do is Stay
	Nothing    bool          // Recover: there was nothing to do
	Unfinished bool          // it runs on the destination, and a part of its memory is still on the source
	Doubt      bool          // Recover: not what was asked for; Text is an error
	Text       string        // why, and what to do; "" if there is nothing to do; its $ words are Fill's
}

// Fill puts values for the words that begin with $ in a Decision's Text: $S and $D the endpoints, $E the last error,
// $X why they are strangers, $s and $d the run states, $m and $n what the source and the destination say of their
// migrations, $L what mirrors have left.
func Fill(text string, words map[string]string) string {
	var pairs []string
	for k, v := range words {
		pairs = append(pairs, "$"+k, v)
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// MayRun is the commit point of every mode: whether the destination may be told to run. The source has stopped, has
// sent everything (in post-copy: everything but memory) and can no longer take its guest back; the destination has
// loaded that.
func MayRun(s Situation) bool {
	src, dst := s.Source, s.Destination
	if src.runs() {
		return false
	}
	if src.Status == Departed {
		return dst.Status == Arrived || dst.Status.split()
	}
	return src.Status.split() && !s.Tentative && (dst.Status == Arrived || dst.Status.split())
}
