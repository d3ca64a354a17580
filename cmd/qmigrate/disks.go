package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine"
	"qmigrate/guest/launch"
)

// media are the files that the source's drives hold now. The destination's command line is made with them.
func media(f *engine.Facts, p engine.Plan) (all []launch.Medium) {
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
func launchedDisks(x *cli.Context, src, dst *engine.Endpoint, p engine.Plan) (notes []string, err error) {
	said, notes, err := engine.CarryOver(x.Context, src, dst, engine.Options{})
	if err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	if !x.Bool("quiet") {
		for _, s := range said {
			fmt.Fprintf(x.App.ErrWriter, "launch: as the source was told while it ran: %s\n", s)
		}
	}
	a, err := engine.Inspect(x.Context, src, engine.Options{})
	if err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	b, err := engine.Inspect(x.Context, dst, engine.Options{})
	if err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	var chosen []string
	for _, text := range x.StringSlice("path") {
		_, to, _ := strings.Cut(text, "=")
		chosen = append(chosen, to)
	}
	refusals, doubts := engine.LaunchedDisks(a, b, p, chosen)
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
