package fit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/setting"
	"qmigrate/internal/near"
	"qmigrate/qmp"
)

// CheckWords refuses the plan's capabilities and parameters that a QEMU does not know, and parameters' values that it
// cannot take.
func CheckWords(p plan.Plan, f *facts.Facts) error {
	_, err := Resolve(p.WithDefaults(), f, f)
	return err
}

// Check says what is wrong with a plan before any guest is there: what needs no QEMU to be refused and, with the facts
// of a pair, what that pair refuses by a name, by a value or by Rules. Facts of QEMUs without a guest will do, with the
// memory, vCPUs and accelerator of the guest that is to come; nil: the pair is not known. Where the credentials of TLS
// will lie does not matter. The guest's devices, disks and blockers are Migrate's to judge.
func Check(p plan.Plan, src, dst *facts.Facts) error {
	p = p.WithDefaults()
	if p.TLS != nil {
		t := *p.TLS
		if t.SourceDir+t.DestinationDir == "" {
			t.SourceDir, t.DestinationDir = "later", "later"
		}
		p.TLS = &t
	}
	if err := cmp.Or(p.Check(), p.CheckAddresses()); err != nil || src == nil || dst == nil {
		return err
	}
	if _, err := Resolve(p, src, dst); err != nil {
		return err
	}
	_, _, capabilities, err := Converging(p, src, dst)
	if err != nil {
		return err
	}
	for _, name := range capabilities {
		p.Capabilities[name] = true
	}
	return FirstMismatch(Rules(src, dst, p))
}

// Resolve checks the plan's capabilities and parameters against what both sides have, and turns the parameters' words
// into the types that QEMU's introspection names; without parameters no schema is needed.
func Resolve(p plan.Plan, src, dst *facts.Facts) (map[string]any, error) {
	out := map[string]any{
		"max-bandwidth":  p.MaxBandwidth,
		"downtime-limit": p.DowntimeLimit.Milliseconds(),
	}
	for _, f := range []*facts.Facts{src, dst} {
		for _, name := range slices.Sorted(maps.Keys(p.Capabilities)) {
			if _, ok := f.Capabilities[name]; !ok {
				return nil, setting.About(&plan.UnsupportedError{
					Feature: fmt.Sprintf("capability %s on %s (QEMU %s)", name, f.Name, f.Version),
					Have:    near.Hint(name, slices.Sorted(maps.Keys(f.Capabilities)))}, capability()...)
			}
		}
		if len(p.Parameters) == 0 {
			continue
		}
		members := map[string]qmp.Member{}
		for _, member := range f.Schema.MigrationParameters() {
			members[member.Name] = member
		}
		for _, name := range slices.Sorted(maps.Keys(p.Parameters)) {
			member, ok := members[name]
			if !ok {
				return nil, setting.About(&plan.UnsupportedError{
					Feature: fmt.Sprintf("parameter %s on %s (QEMU %s)", name, f.Name, f.Version),
					Have:    near.Hint(name, slices.Sorted(maps.Keys(members)))}, "parameter")
			}
			value, err := typed(member, p.Parameters[name])
			if err != nil {
				return nil, setting.About(fmt.Errorf("parameter %s on %s: %w", name, f.Name, err), "parameter")
			}
			out[name] = value
		}
	}
	return out, nil
}

// typed reads a parameter's value as the introspection says it is.
func typed(m qmp.Member, text string) (any, error) {
	switch {
	case len(m.Enum) > 0:
		if !slices.Contains(m.Enum, text) {
			return nil, fmt.Errorf("%q is not one of %s", text, strings.Join(m.Enum, ", "))
		}
		return text, nil
	case m.Type == "boolean" || m.Type == "bool":
		switch text {
		case "on", "true":
			return true, nil
		case "off", "false":
			return false, nil
		}
		return nil, fmt.Errorf("%q is neither on nor off", text)
	case m.Type == "int" || m.Type == "number":
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number in QEMU's unit", text)
		}
		return n, nil
	}
	return text, nil
}
