package report

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"qmigrate/engine/report/figure"
)

// experiment is what experiment.json, beside the records, says of itself: which figures its file names, and what it
// does without. A report needs none of it.
type experiment struct {
	Schema  string   `json:"schema"`
	Name    string   `json:"name"`
	Title   string   `json:"title"`
	Scale   string   `json:"scale"`
	Command string   `json:"command"`
	Figures []named  `json:"figures"`
	Without []string `json:"without"`
}

// named is a figure that the experiment's file asks for.
type named struct {
	Title   string `json:"title"`
	Kind    string `json:"kind"`    // against, passes, stages, observers, timeline, cpu, prediction, ecdf, table
	Show    string `json:"show"`    // key of the record
	Against string `json:"against"` // factor of the x axis
	By      string `json:"by"`      // factor with a curve each
	Sweep   string `json:"sweep"`   // whose trials; "": all
}

const experimentSchema = "qmigrate/experiment/1"

// experimentOf reads the folder's experiment.json; nil if there is none, or one of a newer qmigrate.
func experimentOf(dir string) (*experiment, error) {
	b, err := os.ReadFile(filepath.Join(dir, "experiment.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read experiment: %w", err)
	}
	e := new(experiment)
	if err := json.Unmarshal(b, e); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, "experiment.json"), err)
	}
	if e.Schema != experimentSchema {
		return nil, nil
	}
	return e, nil
}

// asked makes the figures that the experiment names, and a table that says where each is, or what it lacks.
func (e *experiment) asked(s *set, parts []*set, ids []string) ([]*figure.Figure, Table, error) {
	t := Table{Key: "named", Title: "Figures that the experiment names", Align: "ll",
		Head: []string{"of the experiment", "here"}}
	var all []*figure.Figure
	for _, n := range e.Figures {
		of := s
		if i := slices.IndexFunc(parts, func(p *set) bool { return p.name == n.Sweep }); i >= 0 {
			of = parts[i]
		} else if n.Sweep != "" && len(parts) > 1 {
			t.Rows = append(t.Rows, []string{n.Title, "not in these records: no trial of sweep " + n.Sweep})
			continue
		}
		figures, why, err := n.figures(of, ids)
		if err != nil {
			return nil, t, err
		}
		figures = slices.DeleteFunc(figures, func(f *figure.Figure) bool { return !f.Drawn() })
		for _, f := range figures {
			f.Title = n.Title + strings.TrimPrefix(f.Title, generalTitle)
			if len(f.Panels) > 0 && f.Key == "" {
				f.Key = slug(n.Title)
			}
			for i := range f.Shows {
				f.Shows[i] = of.name + ": " + f.Shows[i]
			}
		}
		all = append(all, figures...)
		switch len(figures) {
		case 0:
			t.Rows = append(t.Rows, []string{n.Title, "not in these records: " + why})
		case 1:
			t.Rows = append(t.Rows, []string{n.Title, fmt.Sprintf("figure %d", len(all))})
		default:
			why := "in one, medians would be taken over trials that differ"
			if n.Kind == "passes" || n.Kind == "timeline" {
				why = "one migration of each mode"
			}
			t.Rows = append(t.Rows, []string{n.Title,
				fmt.Sprintf("figures %d to %d: %s", len(all)-len(figures)+1, len(all), why)})
		}
	}
	return all, t, nil
}

// generalTitle stands for the title that a named figure gets from the experiment; what follows it tells one part from
// another.
const generalTitle = "\x00"

// figures makes the figure, in as many parts as it takes, or says why it cannot be.
func (n named) figures(s *set, ids []string) ([]*figure.Figure, string, error) {
	part := func(f *figure.Figure) ([]*figure.Figure, string, error) {
		f.Key, f.Title = slug(n.Title), generalTitle
		return []*figure.Figure{f}, "none of the trials has what it shows", nil
	}
	switch n.Kind {
	case "against", "", "cpu":
		if n.Kind == "cpu" && n.Against == "" {
			return part(processors(s))
		}
		f, ok := find(s.factors, n.Against)
		if !ok && n.Against == workloadFactor { // one workload and a guest that idles are one axis
			f, ok = find(s.factors, paramFactor("rate"))
		}
		if !ok {
			return nil, fmt.Sprintf("%s has one value in them", n.Against), nil
		}
		metrics := []metric{metricOf(n.Show)}
		if n.Kind == "cpu" {
			metrics = []metric{hostCPU(), vcpuCPU()}
		}
		if !slices.ContainsFunc(metrics, func(m metric) bool { return m.measured(s.trials) }) {
			return nil, cmp.Or(n.Show, "the use of processors") + " was not measured", nil
		}
		others := without(s.factors, f.name)
		if by, ok := find(others, n.By); ok { // what is split off is the other factors first
			others = append(without(others, n.By), by)
		}
		var out []*figure.Figure
		for _, p := range splitFor(f, s.trials, others, curveLimit) {
			title, key := generalTitle, n.Title
			if p.name != "" {
				title, key = title+" ("+p.name+")", key+" "+p.name
			}
			fig := against(slug(key), title, p.trials, f, p.by, metrics)
			fig.Caption.Notes = append(fig.Caption.Notes, p.notes(f)...)
			out = append(out, fig)
		}
		return out, "no two cells differ in " + n.Against + " alone", nil
	case "ecdf":
		factors := s.factors
		if by, ok := find(s.factors, n.By); ok {
			factors = []factor{by}
		}
		f := distribution(s, metricOf(n.Show), factors)
		f.Shows = []string{"ecdf " + metricOf(n.Show).key}
		return part(f)
	case "stages":
		return part(stages(s))
	case "observers":
		return part(downtimes(s))
	case "prediction":
		return part(predicted(s))
	case "passes", "timeline":
		examples, err := s.examples(ids)
		if err != nil {
			return nil, "", err
		}
		var out []*figure.Figure
		for _, t := range examples {
			f := timeline(t, n.Show)
			if n.Kind == "passes" {
				if f, err = waterfall(t); err != nil {
					return nil, "", err
				}
			}
			f.Title = generalTitle + " (" + t.Name + ")"
			f.Shows = []string{n.Kind + " of " + t.ID}
			if n.Kind == "timeline" && n.Show != "" {
				f.Shows = nil // one series alone
			}
			out = append(out, f)
		}
		return out, "no record of them has a timeline or passes", nil
	case "table":
		return nil, "tables stand above: the results have every cell", nil
	}
	return nil, fmt.Sprintf("this qmigrate has no figures of kind %q", n.Kind), nil
}
