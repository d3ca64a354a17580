package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/guest/debian"
	"qmigrate/guest/wire"
)

// workloadNames are the names of all workloads; those that need another guest than the default say so.
func workloadNames() (names []string) {
	for _, t := range wire.WorkloadTypes() {
		name := t.Name
		if t.Guest != "" {
			name += " (" + t.Guest + ")"
		}
		names = append(names, name)
	}
	return names
}

// guestFinding says whether the Debian guest is there.
func guestFinding(mend string) finding {
	path, err := debian.Find(debian.Guest)
	f := finding{name: "Debian guest", ok: err == nil, optional: true, text: path, mend: mend}
	if err != nil {
		f.text = "not in the cache: --guest debian makes it once"
	}
	return f
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
		amount := func(n float64) string { return count(int64(n)) + " events" }
		if p.OtherEnd != nil {
			amount = func(n float64) string { return units.FormatSize(int64(n)) }
		}
		parts := []string{fmt.Sprintf("%s: %s of it, %s in all", p.Version, plural(int64(p.Reports), "report", "reports"), amount(p.Events))}
		if p.OtherEnd != nil {
			parts = append(parts, amount(float64(*p.OtherEnd))+" at the observer")
		}
		if p.Retransmits != nil {
			parts = append(parts, plural(*p.Retransmits, "segment", "segments")+" sent again")
		}
		all = append(all, toolPart{p.Name, append(parts, verdict(p.Error))})
	}
	if s := t.SSH; s != nil {
		all = append(all, toolPart{"ssh", []string{fmt.Sprintf("%s received, %s lost, %s", plural(s.Lines, "line", "lines"), count(s.LinesLost), plural(int64(s.Resets), "reset", "resets")) +
			longest("longest between two", s.Longest), verdict(s.Error)}})
	}
	if w := t.Redis; w != nil {
		all = append(all, toolPart{"redis", []string{fmt.Sprintf("%s acknowledged, %s lost, %s wrong, %s", plural(w.Acknowledged, "write", "writes"), count(w.Lost), count(w.Wrong), plural(int64(w.Resets), "reset", "resets")) +
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

// wrongTools is the error of a run whose guest's tools are not content.
func wrongTools(r *record.Migration) error {
	if r == nil {
		return nil
	}
	if all := r.ToolFailures(); len(all) > 0 {
		return errors.New(strings.Join(all, "; "))
	}
	return nil
}
