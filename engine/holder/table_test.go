package holder

import (
	"fmt"
	"slices"
	"strings"
)

// table is docs/who-holds-the-guest.md.
func table(counts map[Asker]map[string]int) string {
	var b strings.Builder
	b.WriteString("# Who holds the guest: every rule\n\n" +
		"Written from engine/holder by `go test ./engine/holder -run TestEvery -update`; the test fails where this page is out of date. Why the rules are safe is\n" +
		"[decision 2](decisions/0002-who-holds-the-guest.md).\n\n" +
		"qmigrate asks both QEMUs for their run state and for their migration's state, finds the first rule that holds, does its step, and asks again, until a rule\n" +
		"says where the guest is. No step is done twice. A situation is a pair of states, what was sent and what was tried before.\n\n" +
		"| word | meaning |\n|---|---|\n" +
		"| sent | `completed`, and query-migrate speaks of a migration from here (it has `ram`), or the run state is postmigrate |\n" +
		"| received | `completed` without that: a guest has once arrived |\n" +
		"| silent | the monitor is there and does not answer within 2 s |\n" +
		"| lost | the monitor has gone, or the way to it, and the process is not known to have ended |\n" +
		"| dead | the process has ended, or said yes to `quit` and closed its monitor |\n" +
		"| told | the destination was sent `cont`, or was seen to run |\n" +
		"| handed over | the source is in post-copy and cannot take its guest back by itself any more |\n\n")
	titles := map[Asker]string{
		Undo:    "A failure, Ctrl-C or a time-out in a live run",
		Recover: "`migrate --recover`",
		Migrate: "A new `migrate`",
	}
	for _, asker := range []Asker{Undo, Recover, Migrate} {
		all := 0
		for _, n := range counts[asker] {
			all += n
		}
		fmt.Fprintf(&b, "## %s\n\n%d rules decide %d situations. The first that holds decides.\n\n", titles[asker], len(tables(asker)), all)
		b.WriteString("| # | situation | step, or where the guest is | why | what is said | decides |\n|---|---|---|---|---|---|\n")
		for i, r := range tables(asker) {
			fmt.Fprintf(&b, "| %d | %s | %s | %s | %s | %d |\n", i+1, r.name, does(asker, r.then), r.why, said(r.then.Text), counts[asker][r.name])
		}
		b.WriteString("\n")
		matrix(&b, asker)
	}
	b.WriteString(channels)
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// channels is the page's part about hosts that are not this machine.
const channels = `## A channel to a host that breaks

A QEMU of another host is reached through a channel: ssh, sshd and qmigrate's helper there, or lxc-attach and the helper. Neither QEMU needs it, and the
migration's stream does not go through it. So a channel that closes says nothing of the QEMU behind it. The side becomes "blind": events may have been
missed, and its silence proves nothing. It is reached again over a new channel, for up to 40 s and at most twice. Its process is found again by its number
and start time. It is dead only when the helper has seen its end, or a new helper does not find it. What was seen of the other side before that is looked
at again.

| what goes | how it is noticed |
|---|---|
| the ssh process, sshd or the helper is killed | the channel closes at once, and the monitors are free |
| the link to the host is cut; sshd or the helper hangs; the host sleeps | nothing comes for 10 to 14 s, on both ends; a helper that hangs holds the monitors until it goes on |
| a QEMU | its helper sees the end of the process |
| the link between the two QEMUs | by QEMU, and by the rules above |

| stage | when a channel breaks |
|---|---|
| initialization, reservation | the source runs the guest; a destination that listened is ended |
| storage, pre-copy | the migration is cancelled, the destination is ended, the source goes on |
| stop-and-copy | as in pre-copy; if the source is not reached and the destination has everything, it stays paused |
| activation | the destination is asked: one that runs has the guest, one that is paused is told again |
| post-copy | it goes on by itself, and is followed over the new channel |

If a host is not reached again, neither QEMU is ended or continued on a guess. The guest is where the rules above say, often "unknown". ` +
	"`qmigrate migrate --recover`" + ` with the same endpoints finds out, and ends what is left, as soon as both hosts can be reached.

Seen in 60 runs with real ssh, sshd and helpers, QEMU 7.2.22, 10.0.2 and 11.1.3, pre-copy, post-copy and mirrors in turn: one fault a run, on either
side, at a random moment of the first 2.5 s, half of them mended within 5 s (` + "`engine/faults_test.go`, seed 1796029535381552309; `make chaos`" + ` draws others).
Two guests never ran, and no guest was lost without a word. The next connection found the guest in each run, and left nothing on either host.

| what was done | runs | completed, or recovered | on the source | on the destination, a part still to come | paused or not known: ` +
	"`--recover`" + ` saw to it | lost |
|---|---|---|---|---|---|---|
| ssh killed | 6 | 2 | 4 | | | |
| ssh stopped | 7 | 4 | 3 | | | |
| sshd killed | 7 | 2 | 5 | | | |
| sshd stopped | 7 | 1 | 2 | | 4 | |
| helper killed | 7 | 4 | 3 | | | |
| helper stopped | 7 | 4 | 2 | | 1 | |
| QEMU stopped | 7 | 4 | 2 | | 1 | |
| QEMU killed | 6 | | 3 | | | 3 |
| link cut, for channel and stream | 6 | 2 | 3 | 1 | | |

The three were lost with the QEMU that held them.
`

func does(asker Asker, d Decision) string {
	switch {
	case d.Do != Stay:
		return "**" + string(d.Do) + "**"
	case asker == Migrate && d.Doubt:
		return "refused"
	case asker == Migrate:
		return "begins"
	case d.Doubt:
		return string(d.Guest) + "; an error"
	case d.Unfinished:
		return string(d.Guest) + ", not all of it"
	}
	return string(d.Guest)
}

var words = strings.NewReplacer("$S", "SOURCE", "$D", "DESTINATION", "$E", "ERROR", "$X", "WHY", "$s", "STATE", "$d", "STATE", "$m", "STATUS", "$n", "STATUS", "$L", "JOBS", "\t", ": ")

func said(text string) string { return strings.ReplaceAll(words.Replace(text), "|", "\\|") }

// states are those in which a side that answers can be found.
func states(source bool) (all []QEMU) {
	add := func(status Status, runs ...Run) {
		for _, run := range runs {
			all = append(all, QEMU{Reach: Answers, Run: run, Status: status})
		}
	}
	if source {
		add(None, Running, Paused)
		add(Setup, Running, Paused)
		add(Active, Running, Paused, Finishing)
		add(Cancelling, Running, Paused)
		add(Cancelled, Running, Paused)
		add(Failed, Running, Paused, Post)
		add(Departed, Post, Running, Paused)
		add(Arrived, Running, Paused)
		add(Device, Finishing)
		add(Split, Finishing)
		add(SplitLost, Finishing)
		add(SplitMend, Finishing)
		return all
	}
	add(None, InMigrate)
	add(Listening, InMigrate)
	add(Active, InMigrate)
	add(Failed, InMigrate)
	add(Arrived, Paused, Running)
	add(Device, InMigrate)
	add(Split, Paused, Running)
	add(SplitLost, Paused, Running)
	add(SplitMend, Paused, Running)
	return all
}

// matrix shows which rule decides first for each pair of states that can be found.
func matrix(b *strings.Builder, asker Asker) {
	sent := []Sent{SentNothing}
	if asker == Undo {
		sent = []Sent{SentMigrate, SentSwitch, SentCont}
	}
	for _, sent := range sent {
		title := "The first rule by the two states"
		if asker == Undo {
			title += fmt.Sprintf(" when `%s` was the last command that counts, no RESUME was seen", sent)
			if sent == SentCont {
				title += ", and the mode is not one of post-copy"
			}
		}
		fmt.Fprintf(b, "%s. Rows are the source, columns the destination:\n\n|  |", title)
		for _, dst := range append(states(false), QEMU{Reach: Lost}, QEMU{Reach: Dead}) {
			fmt.Fprintf(b, " %s |", name(dst))
		}
		b.WriteString("\n|---|" + strings.Repeat("---|", len(states(false))+2) + "\n")
		for _, src := range append(states(true), QEMU{Reach: Silent}, QEMU{Reach: Lost}, QEMU{Reach: Dead}) {
			fmt.Fprintf(b, "| %s |", name(src))
			for _, dst := range append(states(false), QEMU{Reach: Lost}, QEMU{Reach: Dead}) {
				d := Decide(Situation{Asker: asker, Source: src, Destination: dst, Sent: sent, Ran: Never, Begun: sent == SentSwitch})
				n := slices.IndexFunc(tables(asker), func(r rule) bool { return r.name == d.Rule })
				fmt.Fprintf(b, " %d |", n+1)
			}
			b.WriteString("\n")
		}
		b.WriteString("\n")
	}
}

func name(q QEMU) string {
	if q.Reach != Answers {
		return string(q.Reach)
	}
	return fmt.Sprintf("%s, %s", q.Run, q.Status)
}
