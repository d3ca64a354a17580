package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
)

// liveLine is the one line that a terminal shows while a migration runs.
type liveLine struct {
	w       io.Writer
	mu      sync.Mutex
	begin   time.Time
	printed time.Time
	pass    int64
	dirty   int64
	columns func() int // the terminal's width now
}

// liveEvery is how often the line changes: faster is not read.
const liveEvery = 100 * time.Millisecond

// newLiveLine is nil unless w is a terminal.
func newLiveLine(w io.Writer) *liveLine {
	if columns(w) == 0 || os.Getenv("TERM") == "dumb" {
		return nil
	}
	return &liveLine{w: w, columns: func() int { return columns(w) }}
}

// columns is the width of the terminal behind w; 0 if there is none.
func columns(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	switch {
	case err != nil:
		return 0
	case size.Col == 0: // a terminal that does not know
		return liveWidth + 1
	}
	return int(size.Col)
}

// sample prints what the sample says, at most every liveEvery.
func (l *liveLine) sample(s record.Sample) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.begin.IsZero() {
		l.begin = now
	}
	if s.Transferred == nil || now.Sub(l.printed) < liveEvery && l.pass == *s.SyncCount {
		return
	}
	l.printed, l.pass = now, *s.SyncCount
	if *s.DirtyPagesRate > 0 { // QEMU measures it only at a sync more than 1 s after the last
		l.dirty = *s.DirtyPagesRate
	}
	text := liveText(s, l.dirty, now.Sub(l.begin))
	fmt.Fprintf(l.w, "\r\x1b[K%s", text[:min(len(text), max(l.columns()-1, 0))])
}

// mirrored prints how far the disks' copies are, before there are samples.
func (l *liveLine) mirrored(copied, all int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.begin.IsZero() {
		l.begin = now
	}
	text := mirrorText(copied, all, now.Sub(l.begin))
	fmt.Fprintf(l.w, "\r\x1b[K%s", text[:min(len(text), max(l.columns()-1, 0))])
}

// mirrorText is at most liveWidth columns of ASCII.
func mirrorText(copied, all int64, elapsed time.Duration) string {
	text := fmt.Sprintf("storage  %s of %s  %7s", units.FormatSize(copied), units.FormatSize(all), fmt.Sprintf("%.1f s", elapsed.Seconds()))
	return text[:min(len(text), liveWidth)]
}

// liveWidth is the widest that a live line may be: a terminal of 80 columns less the one for the cursor.
const liveWidth = 79

// liveText is at most liveWidth columns of ASCII. dirty is in pages a second; 0 means that QEMU has not measured it yet.
func liveText(s record.Sample, dirty int64, elapsed time.Duration) string {
	dirtied := "-"
	if dirty > 0 {
		dirtied = units.FormatRate(float64(dirty) * 4096) // to be compared with what is sent
	}
	text := fmt.Sprintf("pass %-3d %9s left  sent %10s  dirtied %10s  %7s", max(*s.SyncCount, 1), units.FormatSize(*s.Remaining),
		units.FormatRate(*s.Throughput), dirtied, fmt.Sprintf("%.1f s", elapsed.Seconds()))
	switch {
	case s.Status != "active":
		text += "  " + s.Status
	case s.Throttle != nil && *s.Throttle > 0:
		text += fmt.Sprintf("  -%d%% CPU", *s.Throttle)
	}
	return text[:min(len(text), liveWidth)]
}

func (l *liveLine) clear() { fmt.Fprint(l.w, "\r\x1b[K") }

// pageWidth is the widest that a line for people is.
const pageWidth = 100

// page is how wide a line for people may be on w: a terminal's width, if that is less than pageWidth.
func page(w io.Writer) int {
	if c := columns(w); c > 0 {
		return min(max(c, 40), pageWidth)
	}
	return pageWidth
}

// table is rows of cells in columns; align has one letter a column: l or r.
type table struct {
	align string
	rows  [][]string
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// leastText is the room that a text in the last column has at least, if another text can make it.
const leastText = 34

// print prints the table with two blanks between columns and none at the ends of lines. A text in the last column is folded; where that leaves it
// next to no room, so is the widest other text.
func (t *table) print(w io.Writer) {
	width, last := make([]int, len(t.align)), len(t.align)-1
	for _, row := range t.rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	room, widest := page(w), -1
	for i := range last {
		room -= width[i] + 2
		if t.align[i] == 'l' && (widest < 0 || width[i] > width[widest]) {
			widest = i
		}
	}
	if need := min(leastText, width[last]); t.align[last] == 'l' && widest >= 0 && room < need {
		width[widest] -= min(need-room, max(width[widest]-leastText, 0))
	}
	for _, row := range t.rows {
		cells, height, at := make([][]string, len(row)), 1, 0
		for i, cell := range row {
			cells[i] = []string{cell}
			switch {
			case i == last && t.align[i] == 'l':
				cells[i] = strings.Split(fold(cell, 0, page(w)-at), "\n")
			case i == widest:
				cells[i] = strings.Split(fold(cell, 0, width[i]), "\n")
			}
			height, at = max(height, len(cells[i])), at+width[i]+2
		}
		for n := range height {
			var line strings.Builder
			for i := range cells {
				cell := ""
				if n < len(cells[i]) {
					cell = cells[i][n]
				}
				pad := strings.Repeat(" ", max(width[i]-len(cell), 0))
				if t.align[i] == 'r' {
					cell, pad = pad+cell, ""
				}
				line.WriteString(cell + pad + "  ")
			}
			fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
		}
	}
}

// printRecord prints one migration for people: stages, downtimes each with what it is, passes, checks, and doubts as footnotes.
func printRecord(w io.Writer, r *record.Migration) {
	if r.Saved != nil {
		printSaved(w, r)
	} else {
		fmt.Fprintf(w, "\n%s: %s; %s\n", r.Mode, r.Outcome, holderText(r.GuestOn))
		fmt.Fprintf(w, "QEMU %s -> %s, %s, %s, %s, %s\n", shortVersion(r.QEMU.SourceVersion), shortVersion(r.QEMU.DestinationVersion), r.QEMU.Machine,
			r.QEMU.Accelerator, units.FormatSize(r.QEMU.MemoryBytes), plural(int64(r.QEMU.VCPUs), "vCPU", "vCPUs"))
	}
	printHardware(w, r)
	if r.Workload != "" {
		fmt.Fprintf(w, "%s\n", fold("workload "+strings.ReplaceAll(r.Workload, ",", ", "), 2, page(w)))
	}

	fmt.Fprintln(w)
	t := table{align: "lrr"}
	t.row("stage", "start", "duration")
	for _, s := range r.Stages {
		t.row(string(s.Name), units.FormatDuration(s.Start), units.FormatDuration(s.Duration))
	}
	t.row("wall time", "", units.FormatDuration(r.Total.Wall))
	t.print(w)

	printCOLO(w, r)
	printDowntimes(w, &r.Downtime)
	printPasses(w, r)
	printMirrors(w, r.Mirrors)
	printDecisions(w, r)
	printChecks(w, r)
	printPhases(w, r)
	printTimeline(w, r)

	if len(r.Warnings) > 0 {
		fmt.Fprintf(w, "\nwarnings\n")
		for i, text := range r.Warnings {
			fmt.Fprintf(w, "%3d. %s\n", i+1, fold(text, 5, page(w)))
		}
	}
}

func holderText(h record.Holder) string {
	switch h {
	case record.Source:
		return "the guest is on the source"
	case record.Destination:
		return "the guest runs on the destination"
	case record.File:
		return "the guest is in its file, and nothing runs it"
	case record.None:
		return "NO SIDE RUNS THE GUEST"
	}
	return "it is not known which side holds the guest"
}

// shortVersion is QEMU's own version without the package's, which the record keeps.
func shortVersion(version string) string {
	short, _, _ := strings.Cut(version, " ")
	return short
}

// printDowntimes says in one line what each downtime is. docs/measurements.md has the whole definitions.
func printDowntimes(w io.Writer, d *record.Downtime) {
	rows := []struct {
		name          string
		value, margin *time.Duration
		text          string
	}{
		{"qemu", d.QEMU, d.QEMUError, "query-migrate's own figure, in whole ms"},
		{"wire", d.Wire, d.WireError, "STOP on the source to RESUME on the destination, by QEMU's stamps"},
		{"status", d.Status, d.StatusError, "query-status polled on both sides: middle of the bracket"},
		{"ping", d.Ping, d.PingError, "longest gap between echo replies at the observer"},
		{"heartbeat", d.Heartbeat, d.HeartbeatError, "longest gap between the guest's beats, stamped by the observer"},
		{"guest clock", d.GuestClock, d.GuestClockError, "longest gap the guest saw on its own clock, which stands still"},
		{"tcp", d.TCP, d.TCPError, "longest gap in one established TCP connection"},
	}
	t := table{align: "lrll"}
	t.row("downtime", "value", "error", "what it is")
	for _, row := range rows {
		if row.value == nil {
			continue
		}
		margin := ""
		if row.margin != nil {
			margin = "+/- " + units.FormatDuration(*row.margin)
		}
		t.row(row.name, units.FormatDuration(*row.value), margin, row.text)
	}
	if len(t.rows) > 1 {
		fmt.Fprintln(w)
		t.print(w)
	}
}

// A long list of passes is shown by its beginning and its end: the rest is in the record.
const (
	firstPasses = 12
	lastPasses  = 8
)

func printPasses(w io.Writer, r *record.Migration) {
	if len(r.Passes) == 0 {
		return
	}
	bytes := func(n *int64) string {
		if n == nil {
			return "-"
		}
		return units.FormatSize(*n)
	}
	t := table{align: "lrrrrrr"}
	t.row("pass", "start", "duration", "dirty pages", "sent", "rate", "left")
	for i, p := range r.Passes {
		if hidden := len(r.Passes) - firstPasses - lastPasses; hidden > 1 && i >= firstPasses && i < firstPasses+hidden {
			if i == firstPasses {
				t.row("...", "", "", "", count(int64(hidden))+" more", "", "")
			}
			continue
		}
		pages, rate, name := "-", "-", fmt.Sprint(p.Pass)
		if p.DirtyPages != nil {
			pages = count(*p.DirtyPages)
		}
		if p.Throughput != nil {
			rate = units.FormatRate(*p.Throughput)
		}
		if p.Stopped {
			name += " (stopped)"
		}
		if p.PostCopy {
			name += " (post-copy)"
		}
		t.row(name, units.FormatDuration(p.Start), units.FormatDuration(p.Duration), pages, bytes(p.Transferred), rate, bytes(p.Remaining))
	}
	fmt.Fprintln(w)
	t.print(w)
}

// printDecisions prints what the policy did, the first and the last of a long list.
func printDecisions(w io.Writer, r *record.Migration) {
	if len(r.Decisions) == 0 {
		return
	}
	fmt.Fprintf(w, "\ndecisions of the policy\n")
	for i, d := range r.Decisions {
		if hidden := len(r.Decisions) - firstPasses - lastPasses; hidden > 1 && i >= firstPasses && i < firstPasses+hidden {
			if i == firstPasses {
				fmt.Fprintf(w, "  ... %s more\n", count(int64(hidden)))
			}
			continue
		}
		at := units.FormatDuration(d.At)
		fmt.Fprintf(w, "  %8s  %s\n", at, fold(d.Text, 12, page(w)))
	}
}

func printChecks(w io.Writer, r *record.Migration) {
	blank := "\n"
	line := func(name string, parts ...string) {
		if len(parts) > 0 {
			fmt.Fprintf(w, "%s%-10s%s\n", blank, name, fold(strings.Join(parts, "; "), 10, page(w)))
			blank = ""
		}
	}
	if x := r.Total; x.Transferred != nil {
		line("sent", fmt.Sprintf("%s: %s with data, %s of zeros", units.FormatSize(*x.Transferred), plural(*x.Normal, "page", "pages"), count(*x.Duplicate)))
	}
	if p := r.PostCopy; p != nil && r.Stage(record.PostCopy) != nil {
		var parts []string
		if r.Total.Postcopy != nil {
			parts = append(parts, units.FormatSize(*r.Total.Postcopy)+" followed the guest")
		}
		if p.Requests != nil {
			parts = append(parts, plural(*p.Requests, "page was asked for", "pages were asked for"))
		}
		if p.Blocktime != nil {
			parts = append(parts, fmt.Sprintf("all vCPUs waited for pages for %s", units.FormatDuration(*p.Blocktime)))
		}
		if p.Pauses > 0 {
			parts = append(parts, plural(int64(p.Pauses), "lost link", "lost links"))
		}
		line("post-copy", parts...)
	}
	if m := r.MemoryCheck; m != nil {
		line("memory", fmt.Sprintf("%s checked in the guest, %s wrong", plural(m.PagesChecked, "page", "pages"), count(m.PagesWrong)))
	}
	if t := r.Tunnel; t != nil {
		line("tunnel", fmt.Sprintf("%s, %s carried", t.Kind, units.FormatSize(t.Bytes)), fmt.Sprintf("%s of this program's CPU while it stood", units.FormatDuration(t.CPU)))
	}
	line("disk", diskParts(r.DiskCheck)...)
	for _, t := range toolParts(r.Tools) {
		line(t.name, t.parts...)
	}
	if n := r.Network; n != nil {
		var parts []string
		if n.PingsSent > 0 {
			parts = append(parts, fmt.Sprintf("%s sent, %s lost", plural(int64(n.PingsSent), "ping", "pings"), count(int64(n.PingsLost))))
		}
		if n.TCPSurvived != nil {
			tcp := "TCP connection " + map[bool]string{true: "alive", false: "LOST"}[*n.TCPSurvived]
			if n.Retransmits != nil {
				tcp += fmt.Sprintf(", %s sent again", plural(*n.Retransmits, "segment", "segments"))
			}
			parts = append(parts, tcp)
		}
		if n := len(n.RARP); n > 0 {
			parts = append(parts, plural(int64(n), "announcement", "announcements")+" (RARP) seen on the link")
		}
		if n.AnnounceToFirstPacket != nil {
			parts = append(parts, fmt.Sprintf("first frame from the destination %s after RESUME", units.FormatDuration(*n.AnnounceToFirstPacket)))
		}
		line("network", parts...)
		parts = nil
		for _, g := range n.Gaps {
			text := fmt.Sprintf("%s %s + %s + %s", g.Observer, units.FormatDuration(g.Before), units.FormatDuration(g.During), units.FormatDuration(g.After))
			if g.BeforeStop != nil {
				text += fmt.Sprintf(" (longest before STOP %s)", units.FormatDuration(*g.BeforeStop))
			}
			parts = append(parts, text)
		}
		if len(parts) > 0 {
			line("gaps", "before STOP + stopped + after RESUME: "+parts[0])
			for _, p := range parts[1:] {
				line("", p)
			}
		}
	}
	if x := r.Web; x != nil {
		parts := []string{fmt.Sprintf("%s reset, %s made anew, %s wrong", plural(int64(x.Resets), "connection", "connections"), count(int64(x.Reconnects)), plural(int64(x.Wrong), "response", "responses"))}
		if x.Unanswered > 0 {
			parts = append(parts, plural(int64(x.Unanswered), "request", "requests")+" without an answer when the observation ended")
		}
		line("web", parts...)
	}
	if x := r.Stream; x != nil {
		text := fmt.Sprintf("%s from the guest, %s to it; the connection is ", units.FormatSize(x.Received), units.FormatSize(x.Acked)) + map[bool]string{true: "alive", false: "LOST (" + x.Broken + ")"}[x.Survived]
		if x.Retransmits != nil {
			text += fmt.Sprintf(", %s sent again", plural(*x.Retransmits, "segment", "segments"))
		}
		line("tcp", text)
	}
	if g := r.Guest; g != nil {
		var parts []string
		if g.EventsBefore != nil && g.EventsDuring != nil && g.SlowdownPercent != nil {
			change := "slower"
			if *g.SlowdownPercent < 0 {
				change = "faster"
			}
			parts = append(parts, fmt.Sprintf("%.1f %% %s during the migration than before", math.Abs(*g.SlowdownPercent), change))
		}
		if g.Score != nil {
			parts = append(parts, fmt.Sprintf("%.4g %s over the whole run, checked", g.Score.Value, g.Score.Unit))
		}
		if g.ClockSlip != nil && g.ClockSlipError != nil {
			parts = append(parts, fmt.Sprintf("its clock lost %s +/- %s", units.FormatDuration(*g.ClockSlip), units.FormatDuration(*g.ClockSlipError)))
		}
		line("guest", parts...)
	}
	if s := r.Sampling; s != nil {
		text := fmt.Sprintf("%s, every %s (p99 %s), slowest reply %s", plural(int64(s.Samples), "sample", "samples"),
			units.FormatDuration(s.PeriodP50), units.FormatDuration(s.PeriodP99), units.FormatDuration(s.LongestUnanswered))
		if s.Observer != nil {
			text += fmt.Sprintf(", %s of ours to read its threads' CPU", units.FormatDuration(*s.Observer))
		}
		if s.QEMUCPU != nil {
			text += fmt.Sprintf(", %s of QEMU's CPU", units.FormatDuration(*s.QEMUCPU))
		}
		line("sampling", text)
	}
}
