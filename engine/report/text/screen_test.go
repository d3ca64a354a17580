package text

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/recordtest"
)

// foot is what a command prints below a screen.
func foot(r *record.Migration) []string {
	return []string{"record    out/records.jsonl, id " + r.ID, "details   qmigrate show out " + r.ID + " --details"}
}

// TestScreen: success, and a migration that was stopped.
func TestScreen(t *testing.T) {
	both := map[string]*record.Migration{"screen-completed.txt": sample(), "screen-cancelled.txt": cancelled()}
	for name, r := range both {
		var b bytes.Buffer
		var cause []string
		if r.Error != nil {
			cause = []string{"qmigrate: pre-copy: stopped by signal interrupt; the guest is on the source"}
		}
		Page{W: &b, Width: 80}.Screen(r, cause, foot(r))
		golden(t, name, b.String())
	}
}

// TestScreenFits: whatever a record holds, 80 columns and 23 lines have it, the answer and the record's place among
// them.
func TestScreenFits(t *testing.T) {
	long := strings.Repeat("a doubt that takes some words to be told ", 12)
	for passes := range 40 {
		for warnings := range 8 {
			for _, width := range []int{80, 100} {
				for causes := range 3 {
					r := sample()
					if passes%2 == 1 {
						r = recordtest.TakenApart(r, recordtest.Stamped)
					}
					for len(r.Passes) < passes {
						r.Passes = append(r.Passes, record.Pass{Pass: len(r.Passes) + 1})
					}
					r.Passes, r.Warnings = r.Passes[:passes], nil
					for i := range warnings {
						r.Warnings = append(r.Warnings, fmt.Sprintf("%d: %s", i, long[:len(long)*(1+i%3)/3]))
					}
					for range passes {
						r.Stages = append(r.Stages, record.Stage{Name: record.Recovery, Duration: time.Second})
					}
					var cause []string
					for range causes {
						cause = append(cause, "qmigrate: "+long)
					}
					var b bytes.Buffer
					p := Page{W: &b, Width: width}
					p.Screen(r, cause, foot(r))
					lines := split(strings.TrimSuffix(b.String(), "\n"))
					n := p.height(lines)
					if n > ScreenLines || !strings.HasPrefix(lines[0], "The guest moved in ") ||
						!strings.HasSuffix(b.String(), " --details\n") {
						t.Fatalf("%d passes, %d warnings, %d causes: %d lines of %d columns:\n%s", passes, warnings, causes,
							n, width, &b)
					}
					if causes == 0 && warnings > 0 && !strings.Contains(b.String(), "\nwarning   0: a doubt") {
						t.Fatalf("%d passes, %d warnings: none is shown:\n%s", passes, warnings, &b)
					}
					last := fmt.Sprintf("\n%d ", passes)
					if causes == 0 && warnings == 0 && passes > 0 && !strings.Contains(b.String(), last) {
						t.Fatalf("%d passes: the last is not shown:\n%s", passes, &b)
					}
				}
			}
		}
	}
}

// TestAnswer: the sentence of each way in which a migration ends.
func TestAnswer(t *testing.T) {
	const ms = time.Millisecond
	wire := record.Downtime{Wire: record.Of(22 * ms), QEMU: record.Of(9 * ms)}
	total := record.Total{Wall: 1600 * ms}
	done := func(mode record.Mode, more record.Migration) *record.Migration {
		more.Mode, more.Outcome, more.GuestOn, more.Total = mode, record.Completed, record.Destination, total
		return &more
	}
	failed := func(outcome record.Outcome, on record.Holder, stage record.StageName) *record.Migration {
		return &record.Migration{Outcome: outcome, GuestOn: on, Total: total,
			Error: &record.Error{Stage: stage, Message: "no"}}
	}
	save := failed(record.Failed, record.Source, record.PreCopy)
	save.Mode = record.SaveMode
	for want, r := range map[string]*record.Migration{
		"The guest moved in 1.6 s and stood still for 22 ms; 27,954 pages checked, none wrong; " +
			"TCP stayed alive, 1 of 195 pings lost": done(record.PreCopyMode, record.Migration{Downtime: wire,
			MemoryCheck: &record.MemoryCheck{PagesChecked: 27954},
			Network:     &record.Network{PingsSent: 195, PingsLost: 1, TCPSurvived: record.Of(true)}}),
		"The guest moved in 1.6 s and stood still for 9 ms": done(record.StopAndCopyMode, record.Migration{
			Downtime: record.Downtime{QEMU: record.Of(9 * ms)}}),
		"The guest moved in 1.6 s; 1 page checked, 1 WRONG; TCP was LOST, 0 of 1 ping lost": done(record.PreCopyMode,
			record.Migration{MemoryCheck: &record.MemoryCheck{PagesChecked: 1, PagesWrong: 1},
				Network: &record.Network{PingsSent: 1, TCPSurvived: record.Of(false)}}),
		"The guest moved with 2 disks in 1.6 s and stood still for 22 ms; 40 disk writes, none lost": done(record.PreCopyMode,
			record.Migration{Downtime: wire, Mirrors: make([]record.Mirror, 2),
				DiskCheck: &record.DiskCheck{WritesAcknowledged: 40}}),
		"The guest moved in 1.6 s; 40 disk writes, 3 LOST": done(record.PreCopyMode, record.Migration{
			DiskCheck: &record.DiskCheck{WritesAcknowledged: 40, WritesLost: 3}}),
		"The guest moved in 1.6 s; 40 disk writes, none lost, and the disks are WRONG": done(record.PreCopyMode,
			record.Migration{
				DiskCheck: &record.DiskCheck{WritesAcknowledged: 40, BlocksWrong: 1}}),
		"The guest moved in 1.6 s; its programs' checks passed": done(record.PreCopyMode,
			record.Migration{Tools: &record.Tools{}}),
		"The guest ran on the destination after 60 ms and stood still for 22 ms; all of its memory was there after 1.6 s": done(
			record.PostCopyMode, record.Migration{Downtime: wire,
				Stages: []record.Stage{{Name: record.PostCopy, Start: 60 * ms}}}),
		"The guest is on the source: the migration was cancelled in pre-copy after 1.6 s": failed(record.Cancelled,
			record.Source,
			record.PreCopy),
		"The guest is on the destination: the migration failed in activation after 1.6 s": failed(record.Recovered,
			record.Destination, record.Activation),
		"It is not known which side holds the guest: the migration failed in commitment after 1.6 s": failed(record.Failed,
			record.Unknown, record.Commitment),
		"NO SIDE RUNS THE GUEST: the migration failed in post-copy after 1.6 s": failed(record.Failed, record.None,
			record.PostCopy),
		"The guest has ended by itself, and nothing was lost: the migration ended in pre-copy after 1.6 s": failed(
			record.GuestEnded, record.None, record.PreCopy),
		"The guest is on the source: save failed in pre-copy after 1.6 s": save,
		"The guest was saved in 1.6 s, into 2 MiB; its QEMU is paused (postmigrate): `cont` runs it on, " +
			"if it has not been restored elsewhere": done(record.SaveMode, record.Migration{
			Saved: &record.Saved{Size: record.Of(int64(2 << 20)), RunState: "postmigrate"}}),
		"The guest was saved in 1.6 s and stood still for 22 ms; it runs on": done(record.SaveMode, record.Migration{
			Saved: &record.Saved{RunState: "running"}, Snapshot: &record.SnapshotFigures{Stopped: record.Of(22 * ms)}}),
		"The guest was restored in 1.6 s; it is paused": done(record.RestoreMode, record.Migration{
			Saved: &record.Saved{RunState: "paused"}}),
		"The guest was protected after 60 ms, with 7 checkpoints; the primary was lost, and the other side ran it alone " +
			"after 22 ms; it is protected again": done(record.COLOMode, record.Migration{COLO: &record.COLOFigures{
			Protected: record.Of(60 * ms), Checkpoints: 7, Lost: record.Source, Failover: record.Of(22 * ms), Reprotected: record.Of(true)}}),
		"The guest was protected after 60 ms, with 1 checkpoint, until the secondary was let go": done(record.COLOMode,
			record.Migration{COLO: &record.COLOFigures{Protected: record.Of(60 * ms), Checkpoints: 1}}),
	} {
		if got := Answer(r); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
