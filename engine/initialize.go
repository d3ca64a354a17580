package engine

import (
	"cmp"
	"context"
	"qmigrate/engine/fit"
	"qmigrate/engine/record"
)

// initialize opens the monitors and learns what both sides are; it changes nothing. Everything that this pair would
// refuse later is refused here.
func (m *migration) initialize(ctx context.Context) error {
	if err := cmp.Or(m.run.Plan.Check(), m.run.Plan.CheckAddresses()); err != nil {
		return err
	}
	if err := m.run.OpenBoth(ctx); err != nil {
		return err
	}
	if err := m.run.SettleSource(ctx); err != nil {
		return err
	}
	if err := m.run.Introspect(ctx); err != nil {
		return err
	}
	m.run.Describe()
	var err error
	if m.run.Parameters, err = fit.Resolve(m.run.Plan, m.run.Src.Facts, m.run.Dst.Facts); err != nil {
		return err
	}
	if err := m.run.Compare(ctx); err != nil {
		return err
	}
	if err := m.run.CheckListen(); err != nil {
		return err
	}
	for _, f := range m.run.Features {
		if err := f.Check(ctx); err != nil {
			return err
		}
	}
	m.warnTimedSyncs()
	return fit.FirstMismatch(fit.Rules(m.run.Src.Facts, m.run.Dst.Facts, m.run.Plan))
}

// warnTimedSyncs warns of passes with such syncs under TCG: seen on 11.1.3, a page or more lost in most runs, in
// hybrid mode and in pre-copy alike.
func (m *migration) warnTimedSyncs() {
	if m.run.TimedSyncs() && m.run.Plan.Mode != record.PostCopyMode && m.run.Src.Facts.Accelerator == "tcg" {
		m.run.Rec.Warn("source QEMU %s under TCG loses pages that the guest writes while they are sent in passes with "+
			"postcopy-ram on: "+
			"the guest on the destination may be corrupt; use mode post-copy, leave postcopy-ram out, or use another QEMU",
			m.run.Src.Facts.Version)
	}
}
