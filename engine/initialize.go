package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/qmp"
)

// settleSource waits for what ends by itself on the source. What the source said before that is asked again.
func (m *migration) settleSource(ctx context.Context) error {
	return m.awaitEnd(ctx, func() []fit.Finding {
		if _, may := fit.MayBegin(m.src.facts, m.dst.facts); !may {
			return nil
		}
		return fit.Conditions(m.src.facts, m.dst.facts, m.plan)
	})
}

// awaitEnd waits for the end of what is found and ends by itself.
func (m *migration) awaitEnd(ctx context.Context, found func() []fit.Finding) error {
	waits := func() bool {
		return slices.ContainsFunc(found(), func(f fit.Finding) bool { return f.Answer == fit.Wait })
	}
	for begun := time.Now(); waits() && time.Since(begun) < waitForEnd; {
		select {
		case <-time.After(lookPause):
		case <-ctx.Done():
			return m.cause(ctx)
		}
		f, err := facts.Read(ctx, m.src.control, m.src.ep.Name)
		if err != nil {
			return fmt.Errorf("inspect source %s: %w", m.src.ep.Name, err)
		}
		f.Schema, f.SchemaKnown = m.src.facts.Schema, m.src.facts.SchemaKnown
		m.src.learn(f)
	}
	return nil
}

// compare refuses a pair that will not do, by this plan, and notes what only might matter. What few plans and pairs need is asked for here.
func (m *migration) compare(ctx context.Context) error {
	src, dst := m.src.facts, m.dst.facts
	m.rec.Hosts.Source, m.rec.Hosts.Destination = m.src.ep.Host, m.dst.ep.Host // known since they were reached
	both := func(read func(context.Context, *qmp.Conn, *facts.Facts) error) error {
		return facts.Together(ctx, func(ctx context.Context) error { return read(ctx, m.src.control, src) }, func(ctx context.Context) error { return read(ctx, m.dst.control, dst) })
	}
	if m.plan.Capabilities["x-ignore-shared"] {
		if err := both(facts.ReadBackends); err != nil {
			return fmt.Errorf("ask for memory backends: %w", err)
		}
	}
	if src.Machine != dst.Machine {
		if err := both(facts.ReadMachineTypes); err != nil {
			return fmt.Errorf("ask for machine types: %w", err)
		}
	}
	if !fit.SameModel(src.CPU, dst.CPU) {
		if err := both(facts.ReadIdentity); err != nil {
			return fmt.Errorf("ask for CPU models: %w", err)
		}
	}
	for i, d := range src.Disks {
		src.Disks[i].Mirrored = slices.Contains(m.plan.Mirror.Nodes, d.Node)
	}
	exports, err := facts.ReadExports(ctx, m.src.control)
	if err != nil {
		return fmt.Errorf("ask source %s for its exports: %w", m.src.ep.Name, err)
	}
	refusals, doubts := fit.Compare(src, dst, m.plan)
	switch len(refusals) {
	case 0:
	case 1:
		return refusals[0]
	default:
		return fmt.Errorf("%w (and %d more: see `qmigrate caps`)", refusals[0], len(refusals)-1)
	}
	for _, d := range doubts {
		m.rec.Warn("%s", d)
	}
	if len(exports) > 0 {
		m.rec.Warn("the source exports disks, and exports do not move with the guest: %s: start them on the destination "+
			"(nbd-server-start, block-export-add) and let their clients connect there", strings.Join(exports, ", "))
	}
	return nil
}

// doubts warns of parameters that QEMU took and did not keep (7.2 with multifd's levels), and of figures that do not mean what they say.
func (m *migration) doubts() {
	for _, name := range slices.Sorted(maps.Keys(m.parameters)) {
		if got, ok := m.rec.Parameters[name]; ok && fmt.Sprint(got) != fmt.Sprint(m.parameters[name]) {
			m.rec.Warn("parameter %s was set to %v and is %v: QEMU %s took it and did not keep it", name, m.parameters[name], got, m.src.facts.Version)
		}
	}
	// migration/multifd.c, multifd_send_pages, of 7.2; 10.0 counts what is written.
	if method := m.rec.Parameters["multifd-compression"]; m.rec.Capabilities["multifd"] && method != "none" && m.src.facts.Before(8, 0) {
		m.rec.Warn("source QEMU %s counts multifd's pages before it compresses them: the bytes and rates are not those on the wire, and max-bandwidth bounds the former", m.src.facts.Version)
	}
}
