package engine

import (
	"cmp"
	"maps"

	"qmigrate/engine/record"
)

// CheckWords refuses the plan's capabilities and parameters that a QEMU does not know, and parameters' values that it
// cannot take.
func (p Plan) CheckWords(f *Facts) error {
	_, err := p.withDefaults().resolve(f, f)
	return err
}

// Check says what is wrong with a plan before any guest is there: what needs no QEMU to be refused and, with the facts of a pair, what that pair refuses
// by a name, by a value or by Rules. Facts of QEMUs without a guest will do, with the memory, vCPUs and accelerator of the guest that is to come; nil: the
// pair is not known. Where the credentials of TLS will lie does not matter. The guest's devices, disks and blockers are Migrate's to judge.
func (p Plan) Check(src, dst *Facts) error {
	p = p.withDefaults()
	if p.TLS != nil {
		t := *p.TLS
		t.SourceDir, t.DestinationDir = cmp.Or(t.SourceDir, "later"), cmp.Or(t.DestinationDir, "later")
		p.TLS = &t
	}
	if err := cmp.Or(p.check(), p.checkAddresses()); err != nil || src == nil || dst == nil {
		return err
	}
	parameters, err := p.resolve(src, dst)
	if err != nil {
		return err
	}
	m := &migration{plan: p, src: &side{role: record.Source, facts: src}, dst: &side{role: record.Destination, facts: dst}, parameters: maps.Clone(parameters),
		rec: &record.Migration{Plan: map[string]any{}}}
	if err := m.preparePolicy(); err != nil {
		return err
	}
	return firstMismatch(Rules(src, dst, m.plan))
}
