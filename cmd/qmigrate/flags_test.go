package main

import (
	"io"
	"reflect"
	"slices"
	"testing"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/experiment"
	"qmigrate/engine/lab"
	"qmigrate/engine/plan"
	"qmigrate/engine/policy"
	"qmigrate/engine/setting"
	"qmigrate/guest/wire"
)

// TestSettings: each setting is written down once. Of the commands that take settings every flag is made from a table
// or is none of a table's names, every setting of the place is a flag, and so it is with the factors of an experiment.
func TestSettings(t *testing.T) {
	type one struct {
		where setting.Place
		help  string
	}
	tables := map[string][]one{}
	for _, s := range plan.Settings() {
		tables[s.Name] = append(tables[s.Name], one{s.Where, s.Help})
	}
	for _, s := range lab.Settings() {
		tables[s.Name] = append(tables[s.Name], one{s.Where, s.Help})
	}
	app := newApp(&commands{stdout: io.Discard, stderr: io.Discard})
	for name, place := range map[string]setting.Place{"demo": setting.Demo, "migrate": setting.Migrate,
		"save":    setting.Save,
		"restore": setting.Restore, "lab": setting.Lab, "watch": setting.Watch} {
		command := app.Command(name)
		if name == "lab" {
			command = command.Subcommands[slices.IndexFunc(command.Subcommands,
				func(c *cli.Command) bool { return c.Name == "up" })]
		}
		for setting, all := range tables {
			for _, s := range all {
				i := slices.IndexFunc(command.Flags, func(f cli.Flag) bool { return f.Names()[0] == setting })
				if s.where&place == 0 {
					continue
				}
				if i < 0 {
					t.Errorf("%s has no --%s", name, setting)
					continue
				}
				if _, text, _ := flagText(command.Flags[i]); len(text) < len(s.help) || text[:len(s.help)] != s.help {
					t.Errorf("%s --%s says %q, and its setting %q", name, setting, text, s.help)
				}
			}
		}
		for _, f := range command.Flags {
			flag := f.Names()[0]
			here := slices.ContainsFunc(tables[flag], func(s one) bool { return s.where&place != 0 })
			// of migrate --launch, and no setting of a lab's there
			if len(tables[flag]) > 0 && !here && flag != "destination-qemu" {
				t.Errorf("%s --%s is a setting that cannot be given there", name, flag)
			}
		}
	}
	for _, factor := range experiment.Factors() {
		here := slices.ContainsFunc(tables[factor], func(s one) bool { return s.where&setting.Run != 0 })
		if !here && factor != "case" {
			t.Errorf("factor %s is no setting", factor)
		}
	}
}

// TestDefaults: what help calls a default is what holds if nothing is given; and each example is taken.
func TestDefaults(t *testing.T) {
	var given plan.Plan
	for _, s := range plan.Settings() {
		if s.Default != "" {
			if err := s.Set(&given, s.Default); err != nil {
				t.Errorf("the default: %v", err)
			}
		}
		p := plan.Plan{Mirror: plan.Mirror{Nodes: []string{"disk0"}}}
		if s.Name != "tunnel" {
			p.TLS = &plan.TLS{Kind: plan.X509}
		}
		if err := s.Set(&p, s.Example); err != nil {
			t.Errorf("the example: %v", err)
		}
	}
	if given.Policy.String() != "none" {
		t.Errorf("policy %s by default", given.Policy)
	}
	given.Policy = policy.Spec{}
	if got, want := given.WithDefaults(), (plan.Plan{}).WithDefaults(); !reflect.DeepEqual(got, want) {
		t.Errorf("the defaults that help names make %+v, no settings %+v", got, want)
	}
	for _, s := range lab.Settings() {
		if s.Default != "" {
			if err := s.Set(&lab.Spec{}, s.Default); err != nil {
				t.Errorf("the default: %v", err)
			}
		}
		// of some workload, if it is a parameter of one
		if !slices.ContainsFunc(wire.WorkloadTypes(), func(w wire.WorkloadType) bool {
			return s.Set(&lab.Spec{CPUCap: 100, Workload: wire.Workload{Name: w.Name}}, s.Example) == nil
		}) {
			t.Errorf("the example of %s, %s, is not taken", s.Name, s.Example)
		}
	}
}
