package text

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
)

// Details prints one migration for people: stages, downtimes each with what it is, passes, checks, and doubts as
// footnotes.
func (p Page) Details(r *record.Migration) {
	if r.Saved != nil {
		p.saved(r)
	} else {
		fmt.Fprintf(p.W, "\n%s: %s; %s\n", way(r), r.Outcome, place(r))
		fmt.Fprintf(p.W, "QEMU %s, %s, %s, %s, %s\n", versions(r), r.QEMU.Machine,
			r.QEMU.Accelerator, units.FormatSize(r.QEMU.MemoryBytes), Plural(int64(r.QEMU.VCPUs), "vCPU", "vCPUs"))
	}
	p.hardware(r)
	if r.Workload != "" {
		fmt.Fprintf(p.W, "%s\n", Fold("workload "+strings.ReplaceAll(r.Workload, ",", ", "), 2, p.width()))
	}

	fmt.Fprintln(p.W)
	t := Table{Align: "lrr"}
	t.Row("stage", "start", "duration")
	for _, s := range r.Stages {
		t.Row(string(s.Name), units.FormatDuration(s.Start), units.FormatDuration(s.Duration))
	}
	t.Row("wall time", "", units.FormatDuration(r.Total.Wall))
	t.Print(p.W, p.width())

	p.colo(r)
	p.downtimes(&r.Downtime)
	p.anatomy(r)
	p.clocks(r.Clocks)
	p.passes(r)
	p.mirrors(r.Mirrors)
	p.decisions(r)
	p.checks(r)
	p.phases(r)
	p.timeline(r)

	if len(r.Warnings) > 0 {
		fmt.Fprintf(p.W, "\nwarnings\n")
		for i, text := range r.Warnings {
			fmt.Fprintf(p.W, "%3d. %s\n", i+1, Fold(text, 5, p.width()))
		}
	}
}

// place is where the guest is after a migration.
func place(r *record.Migration) string {
	if r.Outcome == record.GuestEnded {
		return "the guest has ended by itself, and nothing was lost"
	}
	return Holder(r.GuestOn)
}

// Holder says where the guest is.
func Holder(h record.Holder) string {
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

// Version is QEMU's own version without the package's, which the record keeps.
func Version(version string) string {
	short, _, _ := strings.Cut(version, " ")
	return short
}

// downtime is one row of the table of downtimes.
type downtime struct{ name, value, margin, text string }

// downtimes are those that were measured, each with what it is in one line. docs/measurements.md has the whole
// definitions.
func downtimes(d *record.Downtime) (all []downtime) {
	add := func(name string, value, margin *time.Duration, text string) {
		if value == nil {
			return
		}
		row := downtime{name: name, value: units.FormatDuration(*value), text: text}
		if margin != nil {
			row.margin = "+/- " + units.FormatDuration(*margin)
		}
		all = append(all, row)
	}
	add("qemu", d.QEMU, d.QEMUError, "query-migrate's own figure, in whole ms")
	add("wire", d.Wire, d.WireError, "STOP on the source to RESUME on the destination, by QEMU's stamps")
	add("arrival", d.Arrival, d.ArrivalError, "the same by when both were at qmigrate, which needs no clock of the hosts")
	add("status", d.Status, d.StatusError, "query-status polled on both sides: middle of the bracket")
	add("ping", d.Ping, d.PingError, "longest gap between echo replies at the observer")
	add("heartbeat", d.Heartbeat, d.HeartbeatError, "longest gap between the guest's beats, stamped by the observer")
	add("guest clock", d.GuestClock, d.GuestClockError, "longest gap the guest saw on its own clock, which stands still")
	add("tcp", d.TCP, d.TCPError, "longest gap in one established TCP connection")
	return all
}

func (p Page) downtimes(d *record.Downtime) {
	t := Table{Align: "lrll"}
	t.Row("downtime", "value", "error", "what it is")
	for _, row := range downtimes(d) {
		t.Row(row.name, row.value, row.margin, row.text)
	}
	if len(t.Rows) > 1 {
		fmt.Fprintln(p.W)
		t.Print(p.W, p.width())
	}
}

// clocks are those of the hosts, where they are not ours.
func (p Page) clocks(c *record.Clocks) {
	if c == nil {
		return
	}
	t := Table{Align: "lrlrrl"}
	t.Row("clock", "ahead", "error", "drift", "looks", "set meanwhile")
	for _, row := range []struct {
		host string
		*record.Clock
	}{{"source", c.Source}, {"destination", c.Destination}, {"observer", c.Observer}} {
		if row.Clock == nil {
			continue
		}
		drift, set := "", "no"
		if row.Drift != nil && row.DriftError != nil {
			drift = fmt.Sprintf("%.1f ppm +/- %.1f", *row.Drift, *row.DriftError)
		}
		for i, x := range row.Steps {
			if i == 0 {
				set = ""
			} else {
				set += ", "
			}
			set += fmt.Sprintf("by %+.3f s before %s", x.By.Seconds(), units.FormatDuration(x.To))
		}
		t.Row(row.host, fmt.Sprintf("%+.6f s", row.Offset.Seconds()), "+/- "+units.FormatDuration(row.Error), drift,
			strconv.Itoa(row.Samples), set)
	}
	if len(t.Rows) > 1 {
		fmt.Fprintln(p.W)
		t.Print(p.W, p.width())
	}
}

// A long list is shown by its beginning and its end: the rest is in the record.
const (
	firstPasses = 12
	lastPasses  = 8
)

func (p Page) passes(r *record.Migration) {
	if len(r.Passes) > 0 {
		t := passTable(r, firstPasses, lastPasses)
		fmt.Fprintln(p.W)
		t.Print(p.W, p.width())
	}
}

// passTable has the first and the last passes, and how many are left out between them.
func passTable(r *record.Migration, first, last int) Table {
	bytes := func(n *int64) string {
		if n == nil {
			return "-"
		}
		return units.FormatSize(*n)
	}
	t := Table{Align: "lrrrrrr"}
	t.Row("pass", "start", "duration", "dirty pages", "sent", "rate", "left")
	for i, p := range r.Passes {
		if hidden := len(r.Passes) - first - last; hidden > 1 && i >= first && i < first+hidden {
			if i == first {
				t.Row("...", "", "", "", Count(int64(hidden))+" more", "", "")
			}
			continue
		}
		pages, rate, name := "-", "-", fmt.Sprint(p.Pass)
		if p.DirtyPages != nil {
			pages = Count(*p.DirtyPages)
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
		t.Row(name, units.FormatDuration(p.Start), units.FormatDuration(p.Duration), pages, bytes(p.Transferred), rate,
			bytes(p.Remaining))
	}
	return t
}

// decisions prints what the policy did, the first and the last of a long list.
func (p Page) decisions(r *record.Migration) {
	if len(r.Decisions) == 0 {
		return
	}
	fmt.Fprintf(p.W, "\ndecisions of the policy\n")
	for i, d := range r.Decisions {
		if hidden := len(r.Decisions) - firstPasses - lastPasses; hidden > 1 && i >= firstPasses && i < firstPasses+hidden {
			if i == firstPasses {
				fmt.Fprintf(p.W, "  ... %s more\n", Count(int64(hidden)))
			}
			continue
		}
		at := units.FormatDuration(d.At)
		fmt.Fprintf(p.W, "  %8s  %s\n", at, Fold(d.Text, 12, p.width()))
	}
}

// checks prints what was sent, and what the checks found. It is one function because it is a list: a line for each.
func (p Page) checks(r *record.Migration) {
	blank := "\n"
	line := func(name string, parts ...string) {
		if len(parts) > 0 {
			fmt.Fprintf(p.W, "%s%-10s%s\n", blank, name, Fold(strings.Join(parts, "; "), 10, p.width()))
			blank = ""
		}
	}
	if x := r.Total; x.Transferred != nil {
		line("sent", fmt.Sprintf("%s: %s with data, %s of zeros", units.FormatSize(*x.Transferred),
			Plural(*x.Normal, "page", "pages"), Count(*x.Duplicate)))
	}
	if p := r.PostCopy; p != nil && r.Stage(record.PostCopy) != nil {
		var parts []string
		if r.Total.Postcopy != nil {
			parts = append(parts, units.FormatSize(*r.Total.Postcopy)+" followed the guest")
		}
		if p.Requests != nil {
			parts = append(parts, Plural(*p.Requests, "page was asked for", "pages were asked for"))
		}
		if p.Blocktime != nil {
			parts = append(parts, fmt.Sprintf("all vCPUs waited for pages for %s", units.FormatDuration(*p.Blocktime)))
		}
		if p.Pauses > 0 {
			parts = append(parts, Plural(int64(p.Pauses), "lost link", "lost links"))
		}
		line("post-copy", parts...)
		line("latency", latencies(p)...)
	}
	if m := r.MemoryCheck; m != nil {
		line("memory", fmt.Sprintf("%s checked in the guest, %s wrong", Plural(m.PagesChecked, "page", "pages"),
			Count(m.PagesWrong)))
	}
	if t := r.Tunnel; t != nil {
		line("tunnel", fmt.Sprintf("%s, %s carried", t.Kind, units.FormatSize(t.Bytes)),
			fmt.Sprintf("%s of CPU by what held it", units.FormatDuration(t.CPU)))
	}
	line("disk", DiskCheck(r.DiskCheck)...)
	for _, t := range toolParts(r.Tools) {
		line(t.name, t.parts...)
	}
	if n := r.Network; n != nil {
		var parts []string
		if n.PingsSent > 0 {
			parts = append(parts, fmt.Sprintf("%s sent, %s lost", Plural(int64(n.PingsSent), "ping", "pings"),
				Count(int64(n.PingsLost))))
		}
		if n.TCPSurvived != nil {
			tcp := "TCP connection " + map[bool]string{true: "alive", false: "LOST"}[*n.TCPSurvived]
			if n.Retransmits != nil {
				tcp += fmt.Sprintf(", %s sent again", Plural(*n.Retransmits, "segment", "segments"))
			}
			parts = append(parts, tcp)
		}
		if n := len(n.RARP); n > 0 {
			parts = append(parts, Plural(int64(n), "announcement", "announcements")+" (RARP) seen on the link")
		}
		if n.AnnounceToFirstPacket != nil {
			parts = append(parts, fmt.Sprintf("first frame from the destination %s after RESUME",
				units.FormatDuration(*n.AnnounceToFirstPacket)))
		}
		line("network", parts...)
		parts = nil
		for _, g := range n.Gaps {
			text := fmt.Sprintf("%s %s + %s + %s", g.Observer, units.FormatDuration(g.Before), units.FormatDuration(g.During),
				units.FormatDuration(g.After))
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
		parts := []string{fmt.Sprintf("%s reset, %s made anew, %s wrong",
			Plural(int64(x.Resets), "connection", "connections"), Count(int64(x.Reconnects)), Plural(int64(x.Wrong), "response",
				"responses"))}
		if x.Unanswered > 0 {
			parts = append(parts, Plural(int64(x.Unanswered), "request", "requests")+
				" without an answer when the observation ended")
		}
		line("web", parts...)
	}
	if x := r.Stream; x != nil {
		text := fmt.Sprintf("%s from the guest, %s to it; the connection is ", units.FormatSize(x.Received),
			units.FormatSize(x.Acked)) + map[bool]string{true: "alive", false: "LOST (" + x.Broken + ")"}[x.Survived]
		if x.Retransmits != nil {
			text += fmt.Sprintf(", %s sent again", Plural(*x.Retransmits, "segment", "segments"))
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
			parts = append(parts, fmt.Sprintf("%.1f %% %s during the migration than before", math.Abs(*g.SlowdownPercent),
				change))
		}
		if g.Score != nil {
			parts = append(parts, fmt.Sprintf("%.4g %s over the whole run, checked", g.Score.Value, g.Score.Unit))
		}
		if g.ClockSlip != nil && g.ClockSlipError != nil {
			parts = append(parts, fmt.Sprintf("its clock lost %s +/- %s", units.FormatDuration(*g.ClockSlip),
				units.FormatDuration(*g.ClockSlipError)))
		}
		line("guest", parts...)
	}
	if s := r.Sampling; s != nil {
		text := fmt.Sprintf("%s, every %s (p99 %s), slowest reply %s", Plural(int64(s.Samples), "sample", "samples"),
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
