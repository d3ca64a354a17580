package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"qmigrate/engine/connect"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/qmp"
)

// Check refuses a plan that this lab's QEMUs refuse by a name, by a value or by fit.Rules, in some tenths of a
// second and before anything of the lab is there. Where the plan has such words, QEMUs without a guest are started and
// asked.
func (s Spec) Check(ctx context.Context, p plan.Plan, schemas qmp.SchemaCache) error {
	if err := s.CheckTransport(p); err != nil {
		return err
	}
	p.LinkRate = cmp.Or(p.LinkRate, s.LinkRate)
	if t := p.TLS; t != nil {
		for _, dir := range []string{t.SourceDir, t.DestinationDir} {
			if info, err := os.Stat(dir); dir != "" && (err != nil || !info.IsDir()) {
				return fmt.Errorf("TLS credentials: no folder %s: leave the folders out, and new ones are made", dir)
			}
		}
	}
	if p.Mode == record.COLOMode { // its own capabilities are tried by Up
		p.Mode = record.PreCopyMode
	}
	if p.Mode == record.PreCopyMode && len(p.Capabilities)+len(p.Parameters) == 0 && p.Policy.String() == "none" {
		return fit.Check(p, nil, nil)
	}
	l := &Lab{spec: s}
	source, destination, err := l.binaries(ctx)
	if err != nil {
		return err
	}
	var found [2]*facts.Facts
	var errs [2]error
	var both sync.WaitGroup
	for i, b := range []guest.Binary{source, destination} {
		both.Go(func() { found[i], errs[i] = connect.Facts(ctx, b.Path, "tcg", schemas) })
	}
	both.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	for i, name := range []string{"source", "destination"} {
		f := found[i]
		f.Name, f.MemoryBytes, f.VCPUs = name, s.Guest.Memory, max(s.Guest.VCPUs, 1)
		if s.Accelerator != "tcg" { // what it will be is found out later, and what only KVM can do is refused then
			f.Accelerator = "kvm"
		}
	}
	return fit.Check(p, found[0], found[1])
}
