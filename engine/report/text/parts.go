package text

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
)

// What the lab gives a guest unless it is told.
const (
	usualNIC = "virtio-net"
	usualBus = "virtio-blk"
)

// hardware says what of the guest's hardware is not the usual, and what a CPU cap did.
func (p Page) hardware(r *record.Migration) {
	var parts []string
	if r.QEMU.NIC != "" && r.QEMU.NIC != usualNIC {
		parts = append(parts, "network card "+r.QEMU.NIC)
	}
	if r.QEMU.DiskBus != "" && r.QEMU.DiskBus != usualBus {
		parts = append(parts, "disks by "+r.QEMU.DiskBus)
	}
	if len(parts) > 0 {
		fmt.Fprintf(p.W, "hardware %s\n", strings.Join(parts, ", "))
	}
	c := r.CPUCap
	if c == nil {
		return
	}
	text := fmt.Sprintf("CPU cap  %d %% of one processor for the vCPUs, in periods of %s (cgroup %s)", c.Percent,
		units.FormatDuration(c.Period), c.Cgroup)
	for _, side := range []struct {
		name string
		use  *record.CapUse
	}{{"source", c.Source}, {"destination", c.Destination}} {
		if side.use != nil {
			text += fmt.Sprintf("; %s: held back in %s of %s, used %s", side.name, Count(side.use.Throttled),
				Plural(side.use.Periods, "period", "periods"), units.FormatDuration(side.use.Used))
		}
	}
	fmt.Fprintln(p.W, Fold(text, 9, p.width()))
}

// saved is the head of a record of save or restore: what is where, and what state the guest was left in.
func (p Page) saved(r *record.Migration) {
	where := place(r)
	switch r.Saved.RunState {
	case "":
	case "running":
		where += ", running"
	case "postmigrate":
		where += ", paused (postmigrate): `cont` runs it on, if it has not been restored elsewhere"
	default:
		where += ", " + r.Saved.RunState
	}
	fmt.Fprintf(p.W, "\n%s\n", Fold(fmt.Sprintf("%s: %s; %s", r.Mode, r.Outcome, where), 2, p.width()))
	version := cmp.Or(r.QEMU.SourceVersion, r.QEMU.DestinationVersion)
	fmt.Fprintf(p.W, "QEMU %s, %s, %s, %s, %s\n", Version(version), r.QEMU.Machine, r.QEMU.Accelerator,
		units.FormatSize(r.QEMU.MemoryBytes), Plural(int64(r.QEMU.VCPUs), "vCPU", "vCPUs"))
	text := "file " + r.Saved.Path + ", " + r.Saved.Format
	if r.Saved.Size != nil && r.Saved.Allocated != nil {
		text += fmt.Sprintf(", %s, %s on the disk", units.FormatSize(*r.Saved.Size), units.FormatSize(*r.Saved.Allocated))
	}
	fmt.Fprintln(p.W, Fold(text, 2, p.width()))
	if x := r.Snapshot; x != nil {
		text := "snapshot in " + units.FormatDuration(x.Duration)
		if x.Stopped != nil {
			text += ", the guest stopped for " + units.FormatDuration(*x.Stopped)
		}
		if x.Stall != nil && x.StallError != nil {
			text += fmt.Sprintf(", its longest silence %s +/- %s", units.FormatDuration(*x.Stall),
				units.FormatDuration(*x.StallError))
		}
		fmt.Fprintln(p.W, Fold(text, 2, p.width()))
	}
}

// colo says what keeping a secondary in step was and cost. docs/colo.md has the whole definitions.
func (p Page) colo(r *record.Migration) {
	f := r.COLO
	if f == nil || f.Protected == nil {
		return
	}
	t := Table{Align: "lrl"}
	t.Row("in step", "value", "what it is")
	row := func(name string, v *time.Duration, text string) {
		if v != nil {
			t.Row(name, units.FormatDuration(*v), text)
		}
	}
	row("protected", f.Protected, "from the first command to the end of the first whole checkpoint")
	t.Row("checkpoints", Count(int64(f.Checkpoints)), "whole ones")
	row("checkpoint p50", f.CheckpointP50, "the guest stood still for one: STOP to RESUME on the primary")
	row("checkpoint p99", f.CheckpointP99, "")
	row("between p50", f.IntervalP50, "it ran between two")
	if f.StoppedPercent != nil {
		t.Row("stood still", fmt.Sprintf("%.1f %%", *f.StoppedPercent), "of the time from the first checkpoint to the last")
	}
	row("noticed", f.Noticed, "from the kill to the first sign of it")
	row("failover", f.Failover, "from the first sign until the side that is left runs the guest alone, heard")
	row("protected again", f.Reprotection, "with a new secondary, from its first command to the end of its first checkpoint")
	fmt.Fprintln(p.W)
	t.Print(p.W, p.width())
}

// DiskCheck says what became of the guest's acknowledged writes.
func DiskCheck(d *record.DiskCheck) []string {
	if d == nil {
		return nil
	}
	parts := []string{fmt.Sprintf("%s acknowledged, %s lost, %s wrong of %s",
		Plural(d.WritesAcknowledged, "write", "writes"), Count(d.WritesLost), Count(d.BlocksWrong), Plural(d.BlocksChecked,
			"block", "blocks"))}
	if d.WriteErrors > 0 {
		parts = append(parts, Plural(d.WriteErrors, "write", "writes")+" refused")
	}
	if d.WriteLongest != nil {
		parts = append(parts, "slowest write "+units.FormatDuration(*d.WriteLongest)+" on the guest's clock")
	}
	if d.ImagesIdentical != nil {
		same := "images identical"
		if !*d.ImagesIdentical {
			same = "images DIFFER"
			if d.BlocksDifferent != nil {
				same += " in " + Plural(*d.BlocksDifferent, "block", "blocks")
			}
		}
		parts = append(parts, same)
	}
	return parts
}

// mirrors prints how each disk was copied.
func (p Page) mirrors(all []record.Mirror) {
	if len(all) == 0 {
		return
	}
	t := Table{Align: "llrrrr"}
	t.Row("mirror", "copy mode", "size", "sent", "in step after", "ended in")
	for _, m := range all {
		sent, ready, finish := "-", "-", "-"
		if m.Transferred != nil {
			sent = units.FormatSize(*m.Transferred)
		}
		if m.Ready != nil {
			ready = units.FormatDuration(*m.Ready)
		}
		if m.Finish != nil {
			finish = units.FormatDuration(*m.Finish)
		}
		t.Row(m.Node, m.CopyMode, units.FormatSize(m.Bytes), sent, ready, finish)
	}
	fmt.Fprintln(p.W)
	t.Print(p.W, p.width())
}

// toolPart is one line about a tool.
type toolPart struct {
	name  string
	parts []string
}

// toolParts says what the guest's tools did and whether they are content.
func toolParts(t *record.Tools) (all []toolPart) {
	if t == nil {
		return nil
	}
	longest := func(what string, d *time.Duration) string {
		if d == nil {
			return ""
		}
		return ", " + what + " " + units.FormatDuration(*d)
	}
	if p := t.Program; p != nil {
		amount := func(n float64) string { return Count(int64(n)) + " events" }
		if p.OtherEnd != nil {
			amount = func(n float64) string { return units.FormatSize(int64(n)) }
		}
		parts := []string{fmt.Sprintf("%s: %s of it, %s in all", p.Version, Plural(int64(p.Reports), "report", "reports"),
			amount(p.Events))}
		if p.OtherEnd != nil {
			parts = append(parts, amount(float64(*p.OtherEnd))+" at the observer")
		}
		if p.Retransmits != nil {
			parts = append(parts, Plural(*p.Retransmits, "segment", "segments")+" sent again")
		}
		all = append(all, toolPart{p.Name, append(parts, verdict(p.Error))})
	}
	if s := t.SSH; s != nil {
		all = append(all, toolPart{"ssh", []string{fmt.Sprintf("%s received, %s lost, %s", Plural(s.Lines, "line", "lines"),
			Count(s.LinesLost), Plural(int64(s.Resets), "reset", "resets")) +
			longest("longest between two", s.Longest), verdict(s.Error)}})
	}
	if w := t.Redis; w != nil {
		all = append(all, toolPart{"redis", []string{fmt.Sprintf("%s acknowledged, %s lost, %s wrong, %s",
			Plural(w.Acknowledged, "write", "writes"), Count(w.Lost), Count(w.Wrong), Plural(int64(w.Resets), "reset",
				"resets")) +
			longest("slowest", w.Longest), verdict(w.Error)}})
	}
	return all
}

func verdict(text string) string {
	if text == "" {
		return "its check passed"
	}
	return "its check FAILED"
}
