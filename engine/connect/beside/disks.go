package beside

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"

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

// CarryOver gives the destination what the source was told while it ran, and compares the disks of both. said is what
// it was told; what it cannot be told is a doubt.
func (l *Launched) CarryOver(ctx context.Context, src, dst *endpoint.Endpoint, p plan.Plan) (said []string, err error) {
	if l == nil {
		return nil, nil
	}
	said, missing, err := carryOver(ctx, src, dst, plan.Options{})
	if err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	l.Doubts = append(l.Doubts, missing...)
	a, err := facts.Inspect(ctx, src, plan.Options{})
	if err != nil {
		return said, fmt.Errorf("launch destination: %w", err)
	}
	b, err := facts.Inspect(ctx, dst, plan.Options{})
	if err != nil {
		return said, fmt.Errorf("launch destination: %w", err)
	}
	refusals, doubts := fit.LaunchedDisks(a, b, p, l.judged)
	for _, d := range doubts {
		l.Doubts = append(l.Doubts, d.Error())
	}
	switch len(refusals) {
	case 0:
		return said, nil
	case 1:
		return said, fmt.Errorf("launch destination: %w", refusals[0])
	}
	return said, fmt.Errorf("launch destination: %w (and %d more)", refusals[0], len(refusals)-1)
}
