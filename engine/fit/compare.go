package fit

import (
	"fmt"
	"slices"
	"strings"

	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
)

// Mismatch is one reason why a pair cannot migrate, and what would mend it.
type Mismatch struct {
	Problem, Mend string
	About         []string // the settings that it is about; nil: none
}

// Settings are the names of those that it is about.
func (m Mismatch) Settings() []string { return m.About }

func (m Mismatch) Error() string {
	if m.Mend == "" {
		return m.Problem
	}
	return m.Problem + ": " + m.Mend
}

// Compare says everything that keeps a guest behind src from moving to dst by this plan, and what might only matter.
func Compare(src, dst *facts.Facts, p plan.Plan) (refusals, doubts []Mismatch) {
	lacks, differences := compareMachines(src, dst)
	more, warnings := compareFor(src, dst, p)
	stops, states := SortOut(Conditions(src, dst, p))
	return slices.Concat(compareStates(src, dst), stops, lacks, more), slices.Concat(states, differences, warnings)
}

// SortOut parts the findings: those that keep a guest from moving, and those that are only said.
func SortOut(all []Finding) (refusals, doubts []Mismatch) {
	for _, f := range all {
		switch f.Answer {
		case Wait, Refuse:
			refusals = append(refusals, f.Mismatch)
		case Warn:
			doubts = append(doubts, f.Mismatch)
		}
	}
	return refusals, doubts
}

// compareMachines finds where the two machines differ: what keeps a guest from moving, and what only might matter.
func compareMachines(src, dst *facts.Facts) (refusals, doubts []Mismatch) {
	refuse := func(problem, mend string) { refusals = append(refusals, Mismatch{Problem: problem, Mend: mend}) }
	doubt := func(problem, mend string) { doubts = append(doubts, Mismatch{Problem: problem, Mend: mend}) }
	if src.Machine != dst.Machine {
		return nil, nil // that is said, and explains the rest
	}
	compareCPU(src, dst, refuse, doubt)
	compareTopology(src, dst, refuse)
	compareDevices(src, dst, refuse, doubt)
	compareMemory(src, dst, refuse)
	compareDisks(src, dst, refuse, doubt)
	compareNetwork(src, dst, doubt)
	compareUUIDs(src, dst, doubt)
	for _, side := range []struct {
		name string
		of   *facts.Facts
	}{{"source", src}, {"destination", dst}} {
		var unknown []string
		for what, missing := range map[string]bool{"devices": len(side.of.Devices) == 0,
			"memory blocks": len(side.of.RAM) == 0, "CPU features": side.of.CPU.Features == nil} {
			if missing {
				unknown = append(unknown, what)
			}
		}
		if slices.Sort(unknown); len(unknown) > 0 {
			doubt(fmt.Sprintf("%s %s does not tell its %s: they were not compared", side.name, side.of.Name,
				strings.Join(unknown, ", ")), "compare the two command lines yourself")
		}
	}
	return refusals, doubts
}

// compareFor says what keeps the guest from moving by this plan only.
func compareFor(src, dst *facts.Facts, p plan.Plan) (refusals, doubts []Mismatch) {
	refuse := func(problem, mend string) { refusals = append(refusals, Mismatch{Problem: problem, Mend: mend}) }
	doubt := func(problem, mend string) { doubts = append(doubts, Mismatch{Problem: problem, Mend: mend}) }
	if p.Capabilities["validate-uuid"] {
		compareUUIDs(src, dst, refuse)
	}
	if p.Capabilities["x-ignore-shared"] {
		compareShared(src, dst, refuse, doubt)
	}
	if p.Capabilities["postcopy-ram"] {
		comparePages(src, dst, refuse)
	}
	return refusals, doubts
}
