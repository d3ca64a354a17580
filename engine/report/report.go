package report

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/record"
)

// Options of a report.
type Options struct {
	Command string   // that makes it, as a person would type it: it stands under every figure
	Trials  []string // ids or names of the trials that are drawn one by one; nil: of each mode a typical one
}

// Report is tables and figures from records.
type Report struct {
	Title    string
	Summary  string
	Command  string
	Warnings []Warning
	Tables   []Table // results first
	Figures  []*Figure
}

// Build reads the folders' records and makes the report of them.
func Build(dirs []string, o Options) (*Report, error) {
	s, err := load(dirs)
	if err != nil {
		return nil, err
	}
	r := &Report{Title: "Live migrations", Command: o.Command, Warnings: warnings(s)}
	experiments := map[string]bool{}
	for _, t := range s.trials {
		experiments[t.Experiment] = true
	}
	if name := s.trials[0].Experiment; name != "" && len(experiments) == 1 {
		r.Title = "Experiment " + name
	}
	first, last := s.trials[0].StartedAt, s.trials[len(s.trials)-1].StartedAt
	r.Summary = fmt.Sprintf("%s, %s to %s (UTC): %s; %s.", plural(len(s.trials), "migration"), first.UTC().Format(time.DateTime), last.UTC().Format(time.DateTime),
		outcomes(s.trials), plural(len(groupBy(s.trials, s.factors)), "cell"))
	if s.doubled > 0 {
		r.Warnings = append([]Warning{{Text: "records that stand in more than one of the folders: each counts once", Count: s.doubled}}, r.Warnings...)
	}
	r.Tables = append(r.Tables, results(s))
	if f := failures(s); len(f.Rows) > 0 {
		r.Tables = append(r.Tables, f)
	}
	studies, figures := studied(s)
	r.Tables = append(r.Tables, studies...)
	r.Tables = append(r.Tables, environment(s))
	rest, err := general(s, figures, o.Trials)
	if err != nil {
		return nil, err
	}
	r.Figures = append(figures, rest...)
	keys := map[string]int{}
	for _, f := range r.Figures {
		if keys[f.Key]++; keys[f.Key] > 1 {
			f.Key = fmt.Sprintf("%s-%d", f.Key, keys[f.Key])
		}
		f.Caption.Command = o.Command
		f.frame()
	}
	return r, nil
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// factorFigures is how many figures against factors there are at most; a page with more is not read.
const factorFigures = 30

// general makes the figures that every set of records has, but for those against factors that are there already.
func general(s *set, have []*Figure, ids []string) ([]*Figure, error) {
	var all []*Figure
	add := func(f *Figure) {
		if f != nil && f.drawn() {
			all = append(all, f)
		}
	}
	metrics := []metric{totalTime(), downtime(), sentBytes()}
	left := 0
	for _, f := range s.factors {
		others := without(s.factors, f.name)
		trials := s.trials
		if f.numeric { // modes are too different for one scale; they are set beside each other by the factor mode
			for _, g := range groupBy(trials, []factor{{name: modeFactor}}) {
				for _, part := range splitFor(f, g.trials, others, curveLimit) {
					if len(all) >= factorFigures {
						left++
						continue
					}
					name := join(slices.DeleteFunc([]string{g.name, part.name}, func(s string) bool { return s == "" }))
					add(againstFactor(name, part, f, metrics, have))
				}
			}
			continue
		}
		for _, part := range splitFor(f, trials, others, curveLimit) {
			if len(all) >= factorFigures {
				left++
				continue
			}
			add(againstFactor(part.name, part, f, metrics, have))
		}
	}
	if left > 0 && len(all) > 0 {
		last := all[len(all)-1]
		last.Caption.Notes = append(last.Caption.Notes, fmt.Sprintf("%s more against factors would follow; the table of results has every cell.", plural(left, "figure")))
	}
	for _, f := range rates(s, have) {
		add(f)
	}
	examples, err := s.examples(ids)
	if err != nil {
		return nil, err
	}
	for _, t := range examples {
		f, err := waterfall(t)
		if err != nil {
			return nil, err
		}
		add(f)
	}
	add(stages(s))
	add(downtimes(s))
	for _, t := range examples {
		add(timeline(t))
	}
	add(processors(s))
	add(predicted(s))
	for _, m := range metrics {
		if len(completed(s.trials)) > 1 {
			add(distribution(s, m))
		}
	}
	return all, nil
}

// againstFactor shows those of the metrics that no figure has yet; nil if there are none left.
func againstFactor(name string, part split, f factor, metrics []metric, have []*Figure) *Figure {
	var fresh []metric
	var names []string
	for _, m := range metrics {
		if !slices.ContainsFunc(have, func(h *Figure) bool { return slices.Contains(h.shows, shown(m, f, part.trials)) }) {
			fresh = append(fresh, m)
			names = append(names, m.name)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	key, title := "by "+f.name, sentence(join(names))+" against "+f.name
	if name != "" {
		key, title = key+" "+name, title+" ("+name+")"
	}
	if len(fresh) < 3 {
		for _, m := range fresh {
			key += " " + m.key
		}
	}
	return against(slug(key), title, part.trials, f, part.by, fresh)
}

// rates are the figures against the rate at which memory is dirtied: passes, and whether the load generator did what it claims.
func rates(s *set, have []*Figure) []*Figure {
	var out []*Figure
	trials := slices.DeleteFunc(slices.Clone(s.trials), func(t *trial) bool { return t.Mode != record.PreCopyMode && t.Mode != record.HybridMode })
	f, ok := firstOf(s, dirtyRate())
	if !ok {
		if fig := scatter(trials, s.factors, seenRate(), []metric{passes()}, "passes-by-dirty-rate", "Passes against the dirty rate that QEMU saw"); fig.drawn() {
			out = append(out, fig)
		}
		return out
	}
	for _, part := range splitFor(f, trials, without(s.factors, f.name), curveLimit) {
		out = append(out, againstFactor(part.name, part, f, []metric{passes()}, have))
	}
	if !slices.ContainsFunc(have, func(h *Figure) bool { return slices.Contains(h.shows, proofShown) }) {
		out = append(out, proof(s, f)...)
	}
	return out
}

// Write writes report.html into dir, and the files of figures and tables into dir/figures. What an earlier report left there and this one does not have is removed.
func (r *Report) Write(dir string) error {
	figures := filepath.Join(dir, "figures")
	if err := os.MkdirAll(figures, 0o755); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	files := map[string]func() ([]byte, error){}
	for _, f := range r.Figures {
		files[f.Key+".svg"] = f.SVG
		files[f.Key+".csv"] = func() ([]byte, error) {
			var b strings.Builder
			err := f.WriteCSV(&b)
			return []byte(b.String()), err
		}
	}
	for i := range r.Tables {
		t := &r.Tables[i]
		files[t.Key+".csv"] = func() ([]byte, error) {
			var b strings.Builder
			err := t.WriteCSV(&b)
			return []byte(b.String()), err
		}
	}
	index := Table{Head: []string{"file", "title", "caption"}}
	for _, f := range r.Figures {
		for _, suffix := range []string{".svg", ".csv"} {
			index.Rows = append(index.Rows, []string{f.Key + suffix, f.Title, f.Caption.text()})
		}
	}
	for _, t := range r.Tables {
		index.Rows = append(index.Rows, []string{t.Key + ".csv", t.Title, t.Text})
	}
	old := readIndex(filepath.Join(figures, indexFile))
	for name, make := range files {
		b, err := make()
		if err != nil {
			return fmt.Errorf("draw %s: %w", name, err)
		}
		if err := writeWhole(filepath.Join(figures, name), b); err != nil {
			return err
		}
	}
	var b strings.Builder
	if err := errors.Join(index.WriteCSV(&b), writeWhole(filepath.Join(figures, indexFile), []byte(b.String()))); err != nil {
		return err
	}
	page, err := r.HTML()
	if err != nil {
		return err
	}
	if err := writeWhole(filepath.Join(dir, "report.html"), page); err != nil {
		return err
	}
	for _, name := range old {
		if files[name] == nil {
			_ = os.Remove(filepath.Join(figures, name)) // it may be gone already
		}
	}
	return nil
}
