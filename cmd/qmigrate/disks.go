package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/plan"
	"qmigrate/guest/launch"
)

// media are the files that the source's drives hold now. The destination's command line is made with them.
func media(f *facts.Facts, p plan.Plan) (all []launch.Medium) {
	for _, d := range f.Disks {
		m := launch.Medium{Drive: d.Name, Device: d.QOM, Empty: d.Node == "", ReadOnly: d.ReadOnly}
		m.Mirrored = !m.Empty && slices.Contains(p.Mirror.Nodes, d.Node)
		if len(d.Layers) > 0 {
			l := d.Layers[0]
			m.Told, m.File, m.Format = cmp.Or(l.File, l.Name), l.File, l.ImageFormat()
			if o := l.Opened; o != nil {
				m.Known, m.Removed, m.Block = true, o.Removed, o.Block
				if !filepath.IsAbs(m.File) {
					m.File = o.Path
				}
			}
		}
		all = append(all, m)
	}
	return all
}

// launchedDisks gives a destination that was launched what the source was told while it ran, and compares the disks of
// both. Notes are for the record.
func launchedDisks(x *cli.Context, src, dst *endpoint.Endpoint, p plan.Plan) (notes []string, err error) {
	said, notes, err := engine.CarryOver(x.Context, src, dst, plan.Options{})
	if err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	if !x.Bool("quiet") {
		for _, s := range said {
			fmt.Fprintf(x.App.ErrWriter, "launch: as the source was told while it ran: %s\n", s)
		}
	}
	a, err := facts.Inspect(x.Context, src, plan.Options{})
	if err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	b, err := facts.Inspect(x.Context, dst, plan.Options{})
	if err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	var chosen []string
	for _, text := range x.StringSlice("path") {
		_, to, _ := strings.Cut(text, "=")
		chosen = append(chosen, to)
	}
	refusals, doubts := fit.LaunchedDisks(a, b, p, chosen)
	for _, d := range doubts {
		notes = append(notes, d.Error())
	}
	switch len(refusals) {
	case 0:
		return notes, nil
	case 1:
		return nil, fmt.Errorf("launch destination: %w", refusals[0])
	}
	return nil, fmt.Errorf("launch destination: %w (and %d more)", refusals[0], len(refusals)-1)
}
