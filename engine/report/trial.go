package report

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/record"
)

// trial is one migration in its place among the others.
type trial struct {
	*record.Migration
	dir    string
	levels map[string]level // of each factor
}

func (t *trial) completed() bool { return t.Outcome == record.Completed }

// set is trials, in their order, and what varies between them.
type set struct {
	name    string // of the sweep, where there are several
	trials  []*trial
	factors []factor
	doubled int // records that stood in more than one folder, and count once
}

// sweeps are the parts of the set that are designs of their own: a factor that one of them varies is none of another's.
// Without any the set itself is the one part.
func (s *set) sweeps() []*set {
	f, ok := find(s.factors, sweepFactor)
	if !ok {
		return []*set{s}
	}
	names := make([]string, len(s.factors))
	for i, f := range s.factors {
		names[i] = f.name
	}
	var parts []*set
	for _, g := range groupBy(s.trials, []factor{f}) {
		parts = append(parts, &set{name: g.levels[0].text, trials: g.trials, factors: varying(g.trials, names)})
	}
	return parts
}

// load reads the records of all folders.
func load(dirs []string) (*set, error) {
	s := &set{}
	seen := map[string]bool{}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("read records: %w", err)
		}
		all, err := record.Read(dir)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		if len(all) == 0 {
			return nil, fmt.Errorf("%s: no records in it: `qmigrate demo --out %s` makes one, `qmigrate run FILE.toml --out %s` many", dir, dir, dir)
		}
		for _, m := range all {
			if seen[m.ID] {
				s.doubled++
				continue
			}
			seen[m.ID] = true
			s.trials = append(s.trials, &trial{Migration: m, dir: dir})
		}
	}
	slices.SortStableFunc(s.trials, func(a, b *trial) int { return a.StartedAt.Compare(b.StartedAt) })
	s.factors = factorsOf(s.trials)
	return s, nil
}

// samples reads the trial's time series; nil if there is none. Half a line at the end is passed over.
func (t *trial) samples() ([]record.Sample, error) {
	if t.ID != filepath.Base(t.ID) {
		return nil, fmt.Errorf("read samples: %q is no record's id", t.ID)
	}
	file, err := os.Open(filepath.Join(t.dir, "samples", t.ID+".jsonl"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read samples: %w", err)
	}
	defer file.Close()
	var all []record.Sample
	for d := json.NewDecoder(bufio.NewReader(file)); d.More(); {
		var s record.Sample
		if err := d.Decode(&s); errors.Is(err, io.ErrUnexpectedEOF) {
			return all, nil
		} else if err != nil {
			return all, fmt.Errorf("read samples of %s: %w", t.ID, err)
		}
		all = append(all, s)
	}
	return all, nil
}

// at is when the stage of that name began; absent if it never did.
func (t *trial) at(name record.StageName) (time.Duration, bool) {
	if s := t.Stage(name); s != nil {
		return s.Start, true
	}
	return 0, false
}

// group is trials that agree in some factors.
type group struct {
	name   string // the values, in the factors' order
	levels []level
	trials []*trial
}

// groupBy splits the trials by the values of the factors, in the order of those values.
func groupBy(trials []*trial, factors []factor) []group {
	if len(factors) == 0 {
		return []group{{name: "all trials", trials: trials}}
	}
	index := map[string]int{}
	var groups []group
	for _, t := range trials {
		var key strings.Builder
		levels := make([]level, len(factors))
		for i, f := range factors {
			levels[i] = t.levels[f.name]
			fmt.Fprintf(&key, "%q", levels[i].text)
		}
		i, ok := index[key.String()]
		if !ok {
			i = len(groups)
			index[key.String()] = i
			groups = append(groups, group{name: nameOf(factors, levels), levels: levels})
		}
		groups[i].trials = append(groups[i].trials, t)
	}
	slices.SortStableFunc(groups, func(a, b group) int { return slices.CompareFunc(a.levels, b.levels, level.compare) })
	return groups
}

// nameOf is the values in words. A value that does not speak for itself is preceded by its factor's name.
func nameOf(factors []factor, levels []level) string {
	var parts []string
	for i, l := range levels {
		switch text := l.String(); {
		case text == "":
			parts = append(parts, "no "+factors[i].name)
		case l.isNumber() && (l.kind == none || l.kind == perSecond || l.kind == percent) || l.isSwitch() ||
			factors[i].ambiguous:
			parts = append(parts, factors[i].name+" "+text)
		default:
			parts = append(parts, text)
		}
	}
	return strings.Join(parts, ", ")
}

// coarse splits by as many of the factors, first ones first, as leave at most limit groups.
func coarse(trials []*trial, factors []factor, limit int) ([]group, []factor) {
	var by []factor
	groups := groupBy(trials, nil)
	for _, f := range factors {
		finer := groupBy(trials, append(slices.Clone(by), f))
		if len(finer) > limit {
			continue
		}
		if len(finer) > len(groups) {
			by, groups = append(by, f), finer
		}
	}
	for i := range groups { // a value that follows from the ones before it need not be said
		var factors []factor
		var levels []level
		for j, f := range by {
			others := false
			for k := range groups {
				others = others || slices.EqualFunc(groups[k].levels[:j], groups[i].levels[:j], level.equal) &&
					!groups[k].levels[j].equal(groups[i].levels[j])
			}
			if others {
				factors, levels = append(factors, f), append(levels, groups[i].levels[j])
			}
		}
		if len(levels) > 0 {
			groups[i].name = nameOf(factors, levels)
		}
	}
	return groups, by
}
