package fit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"qmigrate/engine/facts"
	"qmigrate/engine/holder"
	"qmigrate/engine/plan"
)

// Answer is what a migration does about something that it finds in the source.
type Answer string

// The answers.
const (
	Move   Answer = "move"   // as it is
	Warn   Answer = "warn"   // move, and the record says what to see to
	Wait   Answer = "wait"   // for its end, within waitForEnd; else refuse
	Refuse Answer = "refuse" // before anything is changed
)

// Finding is a condition of the source that holds, and the answer to it.
type Finding struct {
	Answer Answer
	Mismatch
}

// condition is one line of the table: something that a source may be in, and the one answer to it.
type condition struct {
	name   string                      // for docs/compatibility.md
	state  string                      // the run state that it is about; "": any
	when   func(*combination) []string // what was found, one text for each; nil: the run state alone decides
	answer Answer
	said   string // $S, $v: the source and its version; $w: the destination's version; $x: what was found
	mend   string // what to do, or to see to
	why    string // for the docs
	save   saving // where saving the guest into a file differs
}

// saving is what differs where the guest goes into a file: the empty answer and text are the condition's own.
type saving struct {
	answer Answer
	mend   string
}

// forSave is the condition's answer and text for a save.
func (l condition) forSave() (Answer, string) {
	return cmp.Or(l.save.answer, l.answer), cmp.Or(l.save.mend, l.mend)
}

// once is a condition that holds or not.
func once(holds func(*combination) bool) func(*combination) []string {
	return func(c *combination) []string {
		if holds(c) {
			return []string{""}
		}
		return nil
	}
}

// conditions is the table. Of the lines about the run state the first that holds decides. Of the others each one that
// holds counts.
//
// A destination takes over the run state of a guest that did not run (process_incoming_migration_bh in
// migration/migration.c, and migration/global_state.c; 7.2 and 10.0). It aborts on one that may not follow inmigrate:
// debug, save-vm, restore-vm (runstate_transitions_def). So does a source of 9.0 and newer when the migration fails.
//
// It is one function because it is a table.
func conditions() []condition {
	const (
		arrives = "it arrives so on the destination"
		fresh   = "it is restored so: with paused, after which `system_reset` and `cont` start it anew"
		stopJob = "let it end (query-block-jobs), or cancel it (block-job-cancel), then migrate"
	)
	return []condition{
		{name: "`running`", state: "running", answer: Move, said: "the guest runs", why: "it runs on"},
		{
			name: "`suspended` (ACPI S3), a destination before 9.0 and a source that is not", state: "suspended",
			when:   once(func(c *combination) bool { return !c.src.Wakes() && c.dst != nil && c.dst.Wakes() }),
			answer: Refuse,
			said: "the guest sleeps (S3): on the destination, QEMU $w, its clock would stand still when it wakes up " +
				"(mended in 9.0)",
			mend: "wake it up first (`system_wakeup`), or use QEMU >= 9.0 there",
			why:  "seen on 7.2.22: the clock runs on only after `stop` and `cont`",
		},
		{
			name:   "`suspended`, a source before 9.0",
			state:  "suspended",
			when:   once(func(c *combination) bool { return c.src.Wakes() }),
			answer: Warn,
			said:   "the guest sleeps (S3), and source QEMU $v wakes it up at the switch-over (until 9.0)",
			mend:   "it runs on the destination",
			why:    "seen on 7.2.22, to 7.2.22 and 10.0.2",
			save:   saving{mend: "it runs when it is restored"},
		},
		{
			name:   "`suspended`",
			state:  "suspended",
			answer: Warn,
			said:   "the guest sleeps (S3)",
			mend:   "it arrives asleep, and wakes up there as it would here",
			why:    "the destination is sent `cont`, without which nothing can wake it up (seen on 10.0.2, 11.1.3)",
			save:   saving{mend: "it is restored asleep, and wakes up there as it would here"},
		},
		{
			name: "`paused`", state: "paused", answer: Warn, said: "the guest was paused when the migration began",
			mend: "it is left paused on the destination, where `cont` runs it, and no downtime is measured",
			why:  "somebody paused it on purpose",
			save: saving{mend: "it is in the file as it is: `restore` runs it, and with paused does not"},
		},
		{
			name:   "`prelaunch`",
			state:  "prelaunch",
			answer: Warn,
			said:   "the guest has never been started (prelaunch)",
			mend:   arrives + ", where `cont` starts it",
			why:    "the source was started with -S",
			save:   saving{mend: "it is in the file as it is: `restore` starts it, and with paused does not"},
		},
		{
			name:   "`io-error`",
			state:  "io-error",
			answer: Warn,
			said:   "the guest was stopped by an error of its disk (io-error)",
			mend:   arrives + ", where `cont` repeats the request that failed: run it when its disk works there",
			why:    "a bad disk is a reason to move; QEMU fails, and the guest stays, if the disk refuses a flush too",
			save:   saving{mend: "it is in the file as it is: `restore` repeats the request that failed, and with paused does not"},
		},
		{
			name:   "`watchdog`",
			state:  "watchdog",
			answer: Warn,
			said:   "the guest was stopped by its watchdog",
			mend:   arrives + ", where `cont` runs it on",
			why:    "the guest may hang: `system_reset` starts it anew",
			save:   saving{mend: "it is in the file as it is: `restore` runs it on, and with paused does not"},
		},
		{
			name:   "`guest-panicked`",
			state:  "guest-panicked",
			answer: Warn,
			said:   "the guest has panicked",
			mend:   arrives + ", where `system_reset` and `cont` start it anew",
			why:    "its memory can be looked at there",
			save:   saving{mend: fresh},
		},
		{
			name:   "`internal-error`",
			state:  "internal-error",
			answer: Warn,
			said:   "the guest was stopped by an internal error of QEMU or KVM",
			mend:   arrives + ", where only `system_reset` and `cont` start it anew",
			why:    "QEMU refuses `cont` before a reset",
			save:   saving{mend: fresh},
		},
		{
			name:   "`shutdown`",
			state:  "shutdown",
			answer: Warn,
			said:   "the guest has shut down, and -no-shutdown keeps its QEMU",
			mend:   arrives + ", where only `system_reset` and `cont` start it anew",
			why:    "QEMU refuses `cont` before a reset",
			save:   saving{mend: fresh},
		},
		{
			name: "`debug`", state: "debug", answer: Refuse, said: "the guest stands at a breakpoint of a debugger (-gdb)",
			mend: "let the debugger run it on, or detach it and send `cont`",
			why:  "both QEMUs would abort: the guest would be lost",
		},
		{
			name:   "`save-vm`",
			state:  "save-vm",
			answer: Wait,
			said:   "source $S saves its guest, or its memory is dumped (save-vm)",
			mend:   "migrate when that has ended",
			why:    "the guest runs on by itself at its end",
			save:   saving{mend: "save when that has ended"},
		},
		{
			name:   "`restore-vm`",
			state:  "restore-vm",
			answer: Wait,
			said:   "source $S loads a snapshot of its guest (restore-vm)",
			mend:   "migrate when that has ended",
			why:    "the guest runs on by itself at its end",
			save:   saving{mend: "save when that has ended"},
		},
		{
			name:   "`finish-migrate`",
			state:  "finish-migrate",
			answer: Wait,
			said:   "source $S is at the end of a migration (finish-migrate)",
			mend:   "migrate when it has ended; `qmigrate migrate --recover` ends one that was interrupted",
			why:    "the run state follows the migration's end in a moment; while the migration goes on, see below",
			save:   saving{mend: "save when it has ended; `qmigrate migrate --recover` ends one that was interrupted"},
		},
		{
			name:   "`colo`",
			state:  "colo",
			answer: Refuse,
			said:   "the guest is kept in step with a secondary by COLO",
			mend:   "end that first (`x-colo-lost-heartbeat` on both QEMUs)",
			why:    "QEMU can do one migration at a time",
		},
		{
			name:   "`inmigrate`",
			state:  "inmigrate",
			answer: Refuse,
			why:    "it waits for a guest and has none: the two ends may be swapped",
		},
		{
			name: "`postmigrate`", state: "postmigrate", answer: Refuse,
			why: "the guest has been sent away: `--recover` says where it is ([who holds the guest](who-holds-the-guest.md))",
		},

		{
			name:   "parameter `mode` is not `normal` (8.2 and newer)",
			when:   (*combination).odd,
			answer: Warn,
			said:   "parameter mode was $x, with which `migrate` does not move the guest from one QEMU to another",
			mend:   "the migration sets it to normal, and leaves it so",
			why:    "cpr-reboot stops the guest before the first pass; cpr-transfer needs a second channel",
			save:   saving{mend: "the save sets it to normal, and leaves it so"},
		},
		{
			name:   "a memory dump is under way",
			when:   once(func(c *combination) bool { return c.src.Dumps }),
			answer: Wait,
			said:   "the memory of source $S is being dumped (dump-guest-memory)",
			mend:   "migrate when query-dump says completed",
			why:    "QEMU refuses `migrate` until then",
			save:   saving{mend: "save when query-dump says completed"},
		},
		{
			name:   "a block job that writes to an image of the guest: commit, stream, amend",
			when:   jobs("commit", "stream", "amend"),
			answer: Refuse,
			said:   "$x is at work on the source",
			mend:   stopJob,
			why:    "QEMU fails at the switch-over (commit), or goes on writing to an image that the destination uses (stream)",
			save: saving{mend: "let it end (query-block-jobs), or cancel it (block-job-cancel), then save; a background save may " +
				"save beside it"},
		},
		{
			name:   "a block job `backup`",
			when:   jobs("backup"),
			answer: Refuse,
			said:   "$x is at work on the source",
			mend:   stopJob,
			why:    "QEMU fails at the switch-over",
			save: saving{mend: "let it end (query-block-jobs), or cancel it (block-job-cancel), then save; a background save may " +
				"save beside it"},
		},
		{
			name:   "a block job `mirror` that is not ready, a source before 10.0",
			when:   unfinishedMirrors,
			answer: Refuse,
			said:   "$x is at work on the source, and is not ready",
			mend:   stopJob,
			why:    "QEMU aborts at the switch-over (seen on 7.2.22)",
			save: saving{mend: "let it end (query-block-jobs), or cancel it (block-job-cancel), then save; a background save may " +
				"save beside it"},
		},
		{
			name:   "a block job `mirror`, or another one",
			when:   otherJobs,
			answer: Warn,
			said:   "$x is at work on the source, and stays there",
			mend:   "its copy lacks what the guest writes on the destination; if the copy is wanted, let the job end first",
			why:    "whoever migrates the disks himself has such a job",
			save:   saving{mend: "the file has no disks, and says nothing of the job: a guest that is restored has none"},
		},
		{
			name:   "a dirty bitmap that is kept in memory only, without the capability dirty-bitmaps",
			when:   bitmaps,
			answer: Warn,
			said:   "$x stays on the source",
			mend: "the next backup has to be a full one; capability dirty-bitmaps=on moves bitmaps where drives or " +
				"nodes have the same names on both sides",
			why:  "a persistent bitmap goes with its image",
			save: saving{mend: "it is not in the file: the next backup of a guest that is restored has to be a full one"},
		},
		{
			name:   "a TPM (swtpm)",
			when:   devices("tpm-"),
			answer: Warn,
			said:   "the state of $x is in a process beside QEMU (swtpm)",
			mend:   "QEMU sends it to the destination's own swtpm; the two must not use one folder at the same time",
			why:    "QEMU sends the TPM's state",
			save:   saving{mend: "QEMU puts it into the file, and restores it into the swtpm of the QEMU there"},
		},
		{
			name:   "vhost-user: virtiofsd, vhost-user-blk and others",
			when:   vhostUser,
			answer: Warn,
			said:   "the state of $x is in a process beside QEMU (vhost-user, virtiofsd)",
			mend:   "QEMU does not move it: the destination's process must find the same files or device",
			why:    "QEMU knows only the rings",
			save: saving{mend: "it is not in the file: a QEMU that restores the guest needs such a process with the same " +
				"files or device"},
		},
		{
			name:   "UEFI variables in a flash file that can be written",
			when:   flash,
			answer: Warn,
			said:   "the guest's firmware keeps its variables in $x",
			mend: "the destination's QEMU writes them into its own file when the guest runs there; it must be one " +
				"that it may write",
			why:  "hw/block/pflash_cfi01.c, postload_update_cb",
			save: saving{mend: "the QEMU that restores the guest writes them into its own file; it must be one that it may write"},
		},
		{
			name:   "a TAP with a script",
			when:   scripts,
			answer: Warn,
			said:   "the network backend $x was set up by a script on the source's host",
			mend:   "see that the destination's host has done the same (bridge, addresses, filters)",
			why:    "QEMU runs it when it starts, and another one when it ends",
			save:   saving{answer: Move},
		},
		{
			name: "a migration of somebody else", when: func(*combination) []string { return nil }, answer: Refuse,
			why: "its state is in [who holds the guest](who-holds-the-guest.md), A new `migrate`, with what to do",
		},
		{
			name:   "`-preconfig`",
			when:   func(*combination) []string { return nil },
			answer: Refuse,
			said:   "this QEMU was started with -preconfig and has no machine yet",
			mend:   "send it x-exit-preconfig",
			why:    "QEMU answers few questions until then",
		},
	}
}

// Conditions says in what state a source is and what else is going on there, each with the answer of a migration by
// this plan. The first is about the run state, except where who holds the guest decides: then Compare says it. dst is
// nil where it is not known.
func Conditions(src, dst *facts.Facts, p plan.Plan) []Finding {
	version := ""
	if dst != nil {
		version = dst.Version
	}
	return findings(&combination{p.WithDefaults(), src, dst}, version, func(l condition) (Answer, string) {
		return l.answer, l.mend
	})
}

// SaveConditions is Conditions where the guest goes into a file. A background save leaves the disks to QEMU, as no
// other save and no migration does, so that block jobs go on beside it.
func SaveConditions(src *facts.Facts, p plan.Plan, background bool) []Finding {
	return findings(&combination{p.WithDefaults(), src, nil}, "", func(l condition) (Answer, string) {
		answer, mend := l.forSave()
		if background && answer == Refuse && strings.HasPrefix(l.name, "a block job") {
			return Warn, "it goes on beside the save; the file has no disks"
		}
		return answer, mend
	})
}

func findings(c *combination, version string, of func(condition) (Answer, string)) (all []Finding) {
	add := func(l condition, found string) {
		fill := func(text string) string {
			return holder.Fill(text, map[string]string{"S": c.src.Name, "v": c.src.Version, "w": version, "x": found})
		}
		if l.said != "" {
			answer, mend := of(l)
			all = append(all, Finding{answer, Mismatch{Problem: fill(l.said), Mend: fill(mend)}})
		}
	}
	add(runState(c), "")
	for _, l := range conditions() {
		if l.state != "" {
			continue
		}
		for _, found := range l.when(c) {
			add(l, found)
		}
	}
	return all
}

// runState is the line about the source's run state; one that this program does not know arrives as QEMU takes it.
func runState(c *combination) condition {
	for _, l := range conditions() {
		if l.state == c.src.RunState && (l.when == nil || len(l.when(c)) > 0) {
			return l
		}
	}
	return condition{
		state: c.src.RunState, answer: Warn, mend: "it is left so on the destination", save: saving{mend: "it is in the file so"},
		said: fmt.Sprintf("the guest is in a run state that is not known here (%s)", c.src.RunState),
	}
}

// odd are the sides whose `migrate` would be something else.
func (c *combination) odd() (all []string) {
	for _, side := range []struct {
		name string
		of   *facts.Facts
	}{{"source", c.src}, {"destination", c.dst}} {
		if mode := c.param(side.of, "mode"); mode != "" && mode != "normal" {
			all = append(all, mode+" on the "+side.name)
		}
	}
	return all
}

// jobs are the block jobs of these types.
func jobs(types ...string) func(*combination) []string {
	return func(c *combination) []string {
		return c.jobs(func(j facts.Job) bool { return slices.Contains(types, j.Type) })
	}
}

// unfinishedMirrors are those that make an old source abort, for they write to what it has closed.
func unfinishedMirrors(c *combination) []string {
	return c.jobs(func(j facts.Job) bool { return j.Type == "mirror" && !j.Ready && c.src.Before(10, 0) })
}

// otherJobs are those of which no other line speaks.
func otherJobs(c *combination) []string {
	return c.jobs(func(j facts.Job) bool {
		known := []string{"commit", "stream", "amend", "backup"}
		return !slices.Contains(known, j.Type) && !(j.Type == "mirror" && !j.Ready && c.src.Before(10, 0))
	})
}

// jobs are those of the source's block jobs that the function picks, in words.
func (c *combination) jobs(picks func(facts.Job) bool) (all []string) {
	for _, j := range c.src.Jobs {
		if picks(j) {
			all = append(all, fmt.Sprintf("block job %s (%s)", j.ID, j.Type))
		}
	}
	return all
}

func bitmaps(c *combination) (all []string) {
	for _, d := range c.src.Disks {
		for _, b := range d.Bitmaps {
			if b.Name != "" && !b.Persistent && !c.on("dirty-bitmaps") { // 7.2 lists a mirror's own, without a name
				all = append(all, fmt.Sprintf("dirty bitmap %s of disk %s", b.Name, d.Name))
			}
		}
	}
	return all
}

// devices are those whose type begins so.
func devices(prefix string) func(*combination) []string {
	return func(c *combination) (all []string) {
		for _, d := range c.src.Devices {
			inner := strings.HasPrefix(d.Bus, "virtio-") // the half of a virtio device that its transport holds
			if strings.HasPrefix(d.Type, prefix) && !inner {
				all = append(all, "device "+d.String())
			}
		}
		return all
	}
}

func vhostUser(c *combination) []string {
	all := devices("vhost-user-")(c)
	for _, name := range slices.Sorted(maps.Keys(c.src.Netdevs)) {
		if c.src.Netdevs[name] == "vhost-user" {
			all = append(all, "network backend "+name)
		}
	}
	return all
}

func flash(c *combination) (all []string) {
	for _, d := range c.src.Disks {
		if d.Flash && !d.ReadOnly && d.Node != "" {
			all = append(all, d.File)
		}
	}
	return all
}

func scripts(c *combination) (all []string) {
	for _, name := range slices.Sorted(maps.Keys(c.src.Scripts)) {
		all = append(all, fmt.Sprintf("%s (%s)", name, c.src.Scripts[name]))
	}
	return all
}
