package text

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
)

// ScreenLines is how many lines a Screen has at most on a page of 80 columns: a terminal's 24, less one for the prompt.
const ScreenLines = 23

// The least that is shown of a long list where the screen has room for it.
const (
	leastPasses   = 2 // rows: how many are left out, the last
	leastWarnings = 3 // lines
	mostStages    = 9 // rows of stages, the wall time among them
)

// Screen prints the answer in one screen: a sentence, stages and downtimes, the first and the last passes, the
// warnings. Details prints what it has no room for. cause says why the migration did not complete, foot where the
// record is: both are lines that are printed as they are.
func (p Page) Screen(r *record.Migration, cause, foot []string) {
	head := append(split(Fold(Answer(r)+".", 0, p.width())), cause...)
	head = append(head, split(Fold(subject(r), 2, p.width()))...)
	figures, warnings := p.figures(r), p.warnings(r)
	var where []string // the downtime went
	if line := p.where(r); line != "" {
		where = []string{line}
	}
	room := ScreenLines - p.height(head) - p.height(foot) - 1 - len(where)
	if len(figures) > room-min(len(warnings), leastWarnings) {
		figures = nil
	}
	room -= len(figures)
	passes := p.foldedPasses(r, max(room-len(warnings), min(room-leastWarnings, leastPasses+3)))
	room -= len(passes)
	if len(warnings) > room {
		const more = "          ... --details has the rest"
		warnings = append(warnings[:max(room-1, 0)], more)
	}
	if where != nil {
		warnings = append(where, warnings...)
	}
	if last := append(warnings, foot...); len(last) > 0 {
		foot = append([]string{""}, last...)
	}
	for _, line := range slices.Concat(head, figures, passes, foot) {
		fmt.Fprintln(p.W, line)
	}
}

// height is how many lines of the page these need, a long one more than one.
func (p Page) height(lines []string) (n int) {
	for _, line := range lines {
		n += max(1, (utf8.RuneCountInString(line)+p.width()-1)/p.width())
	}
	return n
}

func split(text string) []string { return strings.Split(text, "\n") }

// Answer says in a sentence, without its full stop, what became of the guest: where it is first if it has not moved.
func Answer(r *record.Migration) string {
	var parts []string
	switch wall := units.FormatDuration(r.Total.Wall); {
	case r.COLO != nil && r.COLO.Protected != nil && r.Error == nil:
		parts = append(parts, inStep(r))
	case r.Outcome != record.Completed:
		parts = append(parts, failure(r))
	case r.Mode == record.SaveMode:
		parts = append(parts, "The guest was saved in "+wall+savedText(r))
	case r.Mode == record.RestoreMode:
		parts = append(parts, "The guest was restored in "+wall+savedText(r))
	default:
		parts = append(parts, moved(r))
	}
	parts = append(parts, checkTexts(r)...)
	return strings.Join(parts, "; ")
}

// failure is the answer where the migration did not complete.
func failure(r *record.Migration) string {
	where := map[record.Holder]string{
		record.Source:      "The guest is on the source",
		record.Destination: "The guest is on the destination",
		record.File:        "The guest is in its file",
		record.None:        "NO SIDE RUNS THE GUEST",
	}[r.GuestOn]
	if r.Outcome == record.GuestEnded {
		where = "The guest has ended by itself, and nothing was lost"
	}
	where = cmp.Or(where, "It is not known which side holds the guest")
	if r.Outcome == record.Unfinished {
		where = strings.Replace(where, " is ", " was ", 1)
	}
	what := map[record.Outcome]string{record.Cancelled: "was cancelled", record.GuestEnded: "ended",
		record.Unfinished: "was still under way"}[r.Outcome]
	text := fmt.Sprintf("%s: the migration %s", where, cmp.Or(what, "failed"))
	if r.Mode == record.SaveMode || r.Mode == record.RestoreMode {
		text = fmt.Sprintf("%s: %s %s", where, r.Mode, cmp.Or(what, "failed"))
	}
	if r.Error != nil {
		text += " in " + string(r.Error.Stage)
	}
	return text + " after " + units.FormatDuration(r.Total.Wall)
}

// moved is the answer where the guest runs on the destination.
func moved(r *record.Migration) string {
	with := ""
	if n := len(r.Mirrors); n > 0 {
		with = " with " + Plural(int64(n), "disk", "disks")
	}
	wall := units.FormatDuration(r.Total.Wall)
	if r.Watched != nil && r.Watched.Midway {
		wall += " that were watched"
	}
	still := stoodStill(r)
	if s := r.Stage(record.PostCopy); s != nil {
		return fmt.Sprintf("The guest%s ran on the destination after %s%s; all of its memory was there after %s", with,
			units.FormatDuration(s.Start), still, wall)
	}
	return fmt.Sprintf("The guest moved%s in %s%s", with, wall, still)
}

// stoodStill is the downtime that is nearest to what the guest's vCPUs stood still for.
func stoodStill(r *record.Migration) string {
	for _, d := range []*time.Duration{r.Downtime.Wire, r.Downtime.Status, r.Downtime.QEMU} {
		if d != nil {
			return " and stood still for " + units.FormatDuration(*d)
		}
	}
	return ""
}

// savedText is what a guest does that was saved, or restored.
func savedText(r *record.Migration) string {
	text := ""
	if x := r.Snapshot; x != nil && x.Stopped != nil {
		text += " and stood still for " + units.FormatDuration(*x.Stopped)
	}
	if r.Saved == nil {
		return text
	}
	if r.Saved.Size != nil {
		text += ", into " + units.FormatSize(*r.Saved.Size)
	}
	switch state := r.Saved.RunState; {
	case state == "":
	case state == "running" && r.Mode == record.SaveMode:
		text += "; it runs on"
	case state == "running":
		text += "; it runs"
	case state == "postmigrate":
		text += "; its QEMU is paused (postmigrate): `cont` runs it on, if it has not been restored elsewhere"
	default:
		text += "; it is " + state
	}
	return text
}

// inStep is the answer of mode colo where a secondary has followed.
func inStep(r *record.Migration) string {
	f := r.COLO
	text := fmt.Sprintf("The guest was protected after %s, with %s", units.FormatDuration(*f.Protected),
		Plural(int64(f.Checkpoints), "checkpoint", "checkpoints"))
	side := map[record.Holder]string{record.Source: "primary", record.Destination: "secondary"}
	switch {
	case f.Lost == "":
		text += ", until the secondary was let go"
	case f.Failover != nil:
		text += fmt.Sprintf("; the %s was lost, and the other side ran it alone after %s", side[f.Lost],
			units.FormatDuration(*f.Failover))
	default:
		text += fmt.Sprintf("; the %s was lost", side[f.Lost])
	}
	if f.Reprotected != nil {
		text += map[bool]string{true: "; it is protected again", false: "; it could NOT be protected again"}[*f.Reprotected]
	}
	return text
}

// checkTexts say whether what was watched is as it was: memory, disks, programs, network.
func checkTexts(r *record.Migration) (parts []string) {
	bad := func(n int64, what string) string {
		if n == 0 {
			return "none " + what
		}
		return Count(n) + " " + strings.ToUpper(what)
	}
	if m := r.MemoryCheck; m != nil {
		parts = append(parts, Plural(m.PagesChecked, "page", "pages")+" checked, "+bad(m.PagesWrong, "wrong"))
	}
	if d := r.DiskCheck; d != nil {
		text := Plural(d.WritesAcknowledged, "disk write", "disk writes") + ", " + bad(d.WritesLost, "lost")
		if !d.OK() && d.WritesLost == 0 {
			text += ", and the disks are WRONG"
		}
		parts = append(parts, text)
	}
	if r.Tools != nil {
		passed := len(r.ToolFailures()) == 0
		parts = append(parts, map[bool]string{true: "its programs' checks passed", false: "a program's check FAILED"}[passed])
	}
	if n := r.Network; n != nil {
		var network []string
		if n.TCPSurvived != nil {
			tcp := map[bool]string{true: "TCP stayed alive", false: "TCP was LOST"}
			network = append(network, tcp[*n.TCPSurvived])
		}
		if n.PingsSent > 0 {
			sent := Plural(int64(n.PingsSent), "ping", "pings")
			network = append(network, fmt.Sprintf("%s of %s lost", Count(int64(n.PingsLost)), sent))
		}
		if len(network) > 0 {
			parts = append(parts, strings.Join(network, ", "))
		}
	}
	return parts
}

// versions are those of both QEMUs, or of the one that is known.
func versions(r *record.Migration) string {
	if r.QEMU.SourceVersion == "" || r.QEMU.DestinationVersion == "" {
		return cmp.Or(Version(r.QEMU.SourceVersion), Version(r.QEMU.DestinationVersion), "?")
	}
	return Version(r.QEMU.SourceVersion) + " -> " + Version(r.QEMU.DestinationVersion)
}

// way is the mode, and whether somebody else drove.
func way(r *record.Migration) string {
	if r.Watched != nil {
		return string(r.Mode) + ", watched"
	}
	return string(r.Mode)
}

// subject is what was migrated, and how.
func subject(r *record.Migration) string {
	words := []string{way(r), "QEMU " + versions(r)}
	for _, word := range []string{r.QEMU.Machine, r.QEMU.Accelerator} {
		if word != "" {
			words = append(words, word)
		}
	}
	if r.QEMU.MemoryBytes > 0 {
		words = append(words, units.FormatSize(r.QEMU.MemoryBytes), Plural(int64(r.QEMU.VCPUs), "vCPU", "vCPUs"))
	}
	return strings.Join(words, ", ")
}

// figures are the stages and, beside them, the downtimes.
func (p Page) figures(r *record.Migration) []string {
	stages := Table{Align: "lr"}
	for i, s := range r.Stages {
		if hidden := len(r.Stages) + 1 - mostStages; hidden > 0 && i >= mostStages-3 && i < len(r.Stages)-1 {
			if i == mostStages-3 {
				stages.Row(fmt.Sprintf("... %d more", hidden+1), "")
			}
			continue
		}
		stages.Row(string(s.Name), units.FormatDuration(s.Duration))
	}
	stages.Row("wall time", units.FormatDuration(r.Total.Wall))
	t := Table{Align: "lr lrl"}
	t.Row("stage", "duration", "", "", "", "")
	for _, row := range stages.Rows {
		t.Row(row[0], row[1], "", "", "", "")
	}
	times := downtimes(&r.Downtime)
	if len(times) > 0 {
		copy(t.Rows[0][3:], []string{"downtime", "value", "error"})
	}
	for i, d := range times {
		if i+1 == len(t.Rows) {
			t.Row("", "", "", "", "", "")
		}
		copy(t.Rows[i+1][3:], []string{d.name, d.value, d.margin})
	}
	return append([]string{""}, p.rows(&t)...)
}

// rows are the lines of a table.
func (p Page) rows(t *Table) []string {
	var b strings.Builder
	t.Print(&b, p.width())
	return split(strings.TrimSuffix(b.String(), "\n"))
}

// foldedPasses is the table of passes in so many lines, or nothing where there is no room for the least of it.
func (p Page) foldedPasses(r *record.Migration, room int) []string {
	rows := min(len(r.Passes), room-2)
	if len(r.Passes) == 0 || rows < min(leastPasses, len(r.Passes)) {
		return nil
	}
	t := passTable(r, len(r.Passes), 0)
	if rows < len(r.Passes) {
		first := (rows - 1) / 2
		t = passTable(r, first, rows-1-first)
	}
	for i, row := range t.Rows { // when each began is a detail
		t.Rows[i] = slices.Delete(row, 1, 2)
	}
	t.Align = "lrrrrr"
	return append([]string{""}, p.rows(&t)...)
}

// warnings are the doubts, each folded.
func (p Page) warnings(r *record.Migration) (lines []string) {
	for _, text := range r.Warnings {
		lines = append(lines, split("warning   "+Fold(text, 10, p.width()))...)
	}
	return lines
}
