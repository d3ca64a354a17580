// Package report turns records into tables and figures: it reads records.jsonl and samples/ID.jsonl and nothing else,
// so that it may be run again for ever. What a figure is, and how it is drawn, is package figure's; which ones there
// are is decided here.
//
// It runs nothing and measures nothing. Commands may import it; what makes records does not.
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
	"qmigrate/engine/report/figure"
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
	Made     string   // the command that made the records, where an experiment says it
	Without  []string // what the experiment says that it does without
	Warnings []Warning
	Tables   []Table // results first
	Figures  []*figure.Figure
}

// Build reads the folders' records and makes the report of them.
func Build(dirs []string, o Options) (*Report, error) {
	s, err := load(dirs)
	if err != nil {
		return nil, err
	}
	var experiments []*experiment
	for _, dir := range dirs {
		e, err := experimentOf(dir)
		if err != nil {
			return nil, err
		}
		if e != nil {
			experiments = append(experiments, e)
		}
	}
	return build(s, experiments, o)
}

func build(s *set, described []*experiment, o Options) (*Report, error) {
	r := &Report{Title: "Live migrations", Command: o.Command, Warnings: warnings(s)}
	experiments := map[string]bool{}
	for _, t := range s.trials {
		experiments[t.Experiment] = true
	}
	if name := s.trials[0].Experiment; name != "" && len(experiments) == 1 {
		r.Title = "Experiment " + name
	}
	first, last := s.trials[0].StartedAt, s.trials[len(s.trials)-1].StartedAt
	if s.doubled > 0 {
		r.Warnings = append([]Warning{{Text: "records that stand in more than one of the folders: each counts once",
			Count: s.doubled}}, r.Warnings...)
	}
	parts := s.sweeps()
	cells := 0
	for _, p := range parts {
		cells += len(groupBy(p.trials, p.factors))
		r.Tables = append(r.Tables, results(p))
	}
	r.Summary = fmt.Sprintf("%s, %s to %s (UTC): %s; %s.", plural(len(s.trials), "migration"),
		first.UTC().Format(time.DateTime), last.UTC().Format(time.DateTime),
		outcomes(s.trials), plural(cells, "cell"))
	if f := failures(s); len(f.Rows) > 0 {
		r.Tables = append(r.Tables, f)
	}
	if c := checks(parts); len(c.Rows) > 0 {
		r.Tables = append(r.Tables, c)
	}
	for _, e := range described {
		if len(described) == 1 && len(experiments) == 1 && e.Title != "" {
			r.Title = e.Title
		}
		if r.Made == "" {
			r.Made = e.Command
		}
		for _, text := range e.Without {
			if !slices.Contains(r.Without, text) {
				r.Without = append(r.Without, text)
			}
		}
		if len(r.Figures) == 0 && len(e.Figures) > 0 { // several folders of one experiment name the same ones
			figures, table, err := e.asked(s, parts, o.Trials)
			if err != nil {
				return nil, err
			}
			r.Figures, r.Tables = figures, append(r.Tables, table)
		}
	}
	if len(experiments) == 1 {
		if t, ok := beside(s.trials[0].Experiment, parts); ok {
			r.Tables = append(r.Tables, t)
		}
	}
	r.Tables = append(r.Tables, environment(s))
	rest, err := general(s, parts, r.Figures, o.Trials)
	if err != nil {
		return nil, err
	}
	r.Figures = append(r.Figures, rest...)
	keys := map[string]int{}
	for _, f := range r.Figures {
		if keys[f.Key]++; keys[f.Key] > 1 {
			f.Key = fmt.Sprintf("%s-%d", f.Key, keys[f.Key])
		}
		f.Caption.Command = o.Command
		f.Frame()
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

// general makes the figures that every set of records has, but for those that are there already.
func general(s *set, parts []*set, have []*figure.Figure, ids []string) ([]*figure.Figure, error) {
	var out []*figure.Figure
	add := func(f *figure.Figure, shows string) {
		if f != nil && f.Drawn() && !has(have, shows) {
			out = append(out, f)
		}
	}
	left := 0
	for _, p := range parts {
		for _, f := range p.against(have) {
			if len(out) >= factorFigures {
				left++
				continue
			}
			add(f, "")
		}
	}
	if left > 0 {
		last := out[len(out)-1]
		last.Caption.Notes = append(last.Caption.Notes,
			fmt.Sprintf("%s more against factors would follow; the table of results has every cell.", plural(left, "figure")))
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
		add(f, "passes of "+t.ID)
	}
	add(stages(s), "")
	add(downtimes(s), "")
	for _, t := range examples {
		add(downtimeParts(t), "downtime of "+t.ID)
	}
	add(anatomies(s), "")
	add(requests(s), "")
	for _, t := range examples {
		add(timeline(t, ""), "timeline of "+t.ID)
	}
	add(processors(s), "")
	add(predicted(s), "")
	for _, m := range []metric{totalTime(), downtime(), sentBytes()} {
		if len(completed(s.trials)) > 1 {
			add(distribution(s, m, s.factors), "ecdf "+m.key)
		}
	}
	return out, nil
}

// has tells whether a figure shows that, of all trials or of a sweep's.
func has(figures []*figure.Figure, shows string) bool {
	return shows != "" && slices.ContainsFunc(figures, func(f *figure.Figure) bool {
		return slices.ContainsFunc(f.Shows, func(s string) bool { _, what, _ := strings.Cut(s, ": "); return what == shows })
	})
}

// against makes the figures against each factor of a sweep that no figure has yet.
func (s *set) against(have []*figure.Figure) []*figure.Figure {
	var out []*figure.Figure
	metrics := []metric{totalTime(), downtime(), sentBytes()}
	add := func(name string, part split, f factor, metrics []metric) {
		if fig := s.againstFactor(name, part, f, metrics, have); fig != nil && fig.Drawn() {
			out = append(out, fig)
		}
	}
	for i, f := range s.factors {
		if slices.ContainsFunc(s.factors[:i], func(g factor) bool {
			return follows(f, g, s.trials) &&
				follows(g, f, s.trials)
		}) {
			continue // the same trials would stand in the same places under another name
		}
		others := without(s.factors, f.name)
		if !f.numeric {
			for _, part := range splitFor(f, s.trials, others, curveLimit) {
				add(part.name, part, f, metrics)
			}
			continue
		}
		// modes are too different for one scale; the factor mode sets them beside each other
		for _, g := range groupBy(s.trials, []factor{{name: modeFactor}}) {
			for _, part := range splitFor(f, g.trials, others, curveLimit) {
				add(join(slices.DeleteFunc([]string{g.name, part.name}, func(s string) bool { return s == "" })), part, f, metrics)
			}
		}
	}
	moving := slices.DeleteFunc(slices.Clone(s.trials),
		func(t *trial) bool { return t.Mode != record.PreCopyMode && t.Mode != record.HybridMode })
	f, ok := find(s.factors, paramFactor("rate"))
	if !ok || !f.numeric {
		if fig := scatter(moving, s.factors, seenRate(), []metric{passes()}, s.key("passes-by-dirty-rate"),
			s.title("Passes against the dirty rate that QEMU saw")); fig.Drawn() {
			out = append(out, fig)
		}
		if fig := scatter(moving, s.factors, seenPages(), []metric{totalTime(), downtime()}, s.key("by-dirty-pages"),
			s.title("Time and downtime against dirty pages")); fig.Drawn() {
			out = append(out, fig)
		}
		return out
	}
	for _, part := range splitFor(f, moving, without(s.factors, f.name), curveLimit) {
		add(part.name, part, f, []metric{passes()})
	}
	if fig := proof(s, f); fig.Drawn() {
		fig.Key, fig.Title = s.key(fig.Key), s.title(fig.Title)
		out = append(out, fig)
	}
	return out
}

// key and title tell the figures of one sweep from those of another.
func (s *set) key(key string) string {
	if s.name == "" {
		return key
	}
	return slug(s.name + " " + key)
}

func (s *set) title(title string) string {
	if s.name == "" {
		return title
	}
	return title + ", sweep " + s.name
}

// againstFactor shows those of the metrics that no figure has yet; nil if there are none left.
func (s *set) againstFactor(name string, part split, f factor, metrics []metric, have []*figure.Figure) *figure.Figure {
	var fresh []metric
	var names []string
	for _, m := range metrics {
		if !slices.ContainsFunc(have, func(h *figure.Figure) bool {
			return slices.Contains(h.Shows,
				s.name+": "+shown(m, f))
		}) {
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
	fig := against(slug(s.key(key)), s.title(title), part.trials, f, part.by, fresh)
	fig.Caption.Notes = append(fig.Caption.Notes, part.notes(f)...)
	return fig
}

// Write writes report.html into dir, and the files of figures and tables into dir/figures. What an earlier report left
// there and this one does not have is removed.
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
			index.Rows = append(index.Rows, []string{f.Key + suffix, f.Title, f.Caption.Text()})
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
		if err := saveFile(filepath.Join(figures, name), b); err != nil {
			return err
		}
	}
	var b strings.Builder
	if err := errors.Join(index.WriteCSV(&b), saveFile(filepath.Join(figures, indexFile),
		[]byte(b.String()))); err != nil {
		return err
	}
	page, err := r.HTML()
	if err != nil {
		return err
	}
	if err := saveFile(filepath.Join(dir, "report.html"), page); err != nil {
		return err
	}
	for _, name := range old {
		if files[name] == nil {
			_ = os.Remove(filepath.Join(figures, name)) // it may be gone already
		}
	}
	return nil
}
