package colo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"strings"
	"time"
)

// check refuses what needs no QEMU to be refused.
func (c *colo) check() error {
	if c.run.Plan.TLS != nil || c.run.Plan.Tunnel != "" {
		return &plan.UnsupportedError{Feature: "encryption in mode colo",
			Have: "checkpoints go over a plain stream; leave tls and tunnel out"}
	}
	for name, on := range c.want.Capabilities {
		if on && name != "events" && name != "auto-converge" && name != "x-colo" {
			return &plan.UnsupportedError{Feature: "capability " + name + " in mode colo",
				Have: "have auto-converge: checkpoints go over the plain stream"}
		}
	}
	if on, set := c.want.Capabilities["x-colo"]; set && !on {
		return errors.New("capability x-colo=off: mode colo is this capability: leave it out")
	}
	if _, set := c.want.Parameters["x-checkpoint-delay"]; set {
		return errors.New("parameter x-checkpoint-delay: give it as checkpoint-delay, with its unit")
	}
	if d := c.want.CheckpointDelay; d < time.Millisecond || d%time.Millisecond != 0 || d > time.Hour {
		return fmt.Errorf("checkpoint delay %s: QEMU takes whole milliseconds from 1ms, and no more than 1h is sensible", d)
	}
	plain := c.run.Plan
	plain.Mode, plain.Capabilities = record.PreCopyMode, maps.Clone(plain.Capabilities)
	delete(plain.Capabilities, "x-colo")
	if err := plain.Check(); err != nil {
		return err
	}
	c.run.Plan.Capabilities = map[string]bool{"x-colo": true}
	if c.want.Capabilities["auto-converge"] {
		c.run.Plan.Capabilities["auto-converge"] = true
	}
	return nil
}

// inStep refuses a QEMU that is known not to stay in step.
func inStep(s *run.Side) error {
	f := s.Facts
	if _, ok := f.Parameters["x-checkpoint-delay"]; !ok {
		return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO on %s (QEMU %s)", f.Name, f.Version),
			Have: "this build has no x-checkpoint-delay"}
	}
	if strings.Contains(f.Machine, "q35") {
		return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO with machine %s on %s", f.Machine, f.Name),
			Have: "its secondary aborts at the first checkpoint: ich9_lpc_post_load (hw/isa/lpc_ich9.c; read and seen in " +
				"7.2.22 and 10.0.2) maps the chipset's registers each time that device state is loaded, and they are mapped " +
				"already: use machine pc, as in pc-i440fx-7.2"}
	}
	if f.Accelerator == "tcg" && f.Before(9, 0) && f.MemoryBytes%(256<<10) == 0 {
		return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO on %s (QEMU %s, TCG) with RAM a multiple of 256 KiB", f.Name,
			f.Version),
			Have: fmt.Sprintf("it loses dirty pages (fixed upstream in 9.0, commit 03bfc2188f), and checkpoints are made of "+
				"them: use RAM such as %dk", f.MemoryBytes>>10+8)}
	}
	return nil
}

// diskless refuses a guest with a disk that it may write to: the two sides would both write it.
func diskless(ctx context.Context, s *run.Side) error {
	disks, err := facts.Writable(ctx, s.Control)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Endpoint.Name, err)
	}
	if len(disks) > 0 {
		d := disks[0]
		return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO with the disk %s of %s",
			strings.TrimSpace(d.Device+" "+d.Path), s.Endpoint.Name),
			Have: "memory, devices and network are kept in step here, disks are not, and both sides would write this one: " +
				"detach it, or make it read-only"}
	}
	return nil
}

// neverEnters says why a primary has gone past COLO: there, every migration goes through `device`, and COLO is begun
// from `active` only.
func neverEnters(f *facts.Facts) error {
	return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO on %s (QEMU %s) as the primary", f.Name, f.Version),
		Have: "its migration completed instead: migration_switchover_prepare always goes to `device`, and " +
			"migration_completion begins COLO only from `active` (migration/migration.c; read and seen in 10.0.2): use a " +
			"primary such as QEMU 7.2; this one can be the secondary"}
}

// mayYield tries yielding on a thread that is there.
func mayYield(process endpoint.Process) error {
	p, ok := process.(endpoint.Scheduler)
	if !ok {
		return errors.New("its process is not known: give an endpoint on a host that qmigrate manages")
	}
	threads, err := p.Threads()
	if err != nil {
		return err
	}
	undo, err := p.Yield(threads[:1])
	if err != nil {
		return err
	}
	return undo()
}
