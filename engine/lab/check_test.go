package lab_test

import (
	"strings"
	"testing"

	"qmigrate/engine/lab"
	"qmigrate/engine/plan"
	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/qmp"
)

// TestCheck: what a lab's QEMUs would refuse is refused before there is a lab, and nothing else is.
func TestCheck(t *testing.T) {
	t.Parallel()
	old, young := guesttest.QEMU(t, "7.2"), guesttest.QEMU(t, "10.0")
	cache := qmp.SchemaCache{Dir: t.TempDir()}
	named := func(name string) policy.Spec {
		p, err := policy.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	on := func(names ...string) map[string]bool {
		all := map[string]bool{}
		for _, name := range names {
			all[name] = true
		}
		return all
	}
	x509 := &plan.TLS{Kind: plan.X509}
	for _, c := range []struct {
		name   string
		plan   plan.Plan
		source string
		want   string // in the error; "" is none
	}{
		{"usual", plan.Plan{}, young, ""},
		{"stop first", plan.Plan{Mode: record.StopAndCopyMode}, young, ""},
		{"post-copy", plan.Plan{Mode: record.PostCopyMode}, young, ""},
		{"hybrid, older source", plan.Plan{Mode: record.HybridMode}, old, ""},
		{"colo", plan.Plan{Mode: record.COLOMode}, old, ""},
		{"compressed", plan.Plan{Capabilities: on("multifd"), Parameters: map[string]string{"multifd-compression": "zstd"}}, old, ""},
		{"encrypted", plan.Plan{TLS: x509, Capabilities: on("multifd")}, young, ""},
		{"switchover", plan.Plan{Policy: named("switchover")}, young, ""},
		{"auto-converge", plan.Plan{Policy: named("auto-converge")}, young, ""},
		{"post-copy-on-stall", plan.Plan{Policy: named("post-copy-on-stall")}, young, ""},
		{"quick-finish", plan.Plan{Policy: named("quick-finish")}, old, ""},
		{"only KVM can, which is found out later", plan.Plan{Capabilities: on("dirty-limit")}, young, ""},

		{"no such capability", plan.Plan{Capabilities: on("postcpy-ram")}, young, "capability postcpy-ram on source"},
		{"not on that side", plan.Plan{Capabilities: on("dirty-limit")}, old, "capability dirty-limit on source (QEMU 7.2"},
		{"no such parameter", plan.Plan{Parameters: map[string]string{"multifd-chanels": "2"}}, young, "did you mean multifd-channels?"},
		{"no such value", plan.Plan{Parameters: map[string]string{"multifd-channels": "two"}}, young, `"two" is not a whole number`},
		{"a rule", plan.Plan{Mode: record.PostCopyMode, Capabilities: on("multifd")}, old, "post-copy with multifd needs QEMU 10.1"},
		{"colo, no such capability", plan.Plan{Mode: record.COLOMode, Capabilities: on("xbzlre")}, old, "did you mean xbzrle?"},
		{"no such folder", plan.Plan{TLS: &plan.TLS{Kind: plan.X509, SourceDir: "/nowhere", DestinationDir: "/nowhere"}}, young, "no folder /nowhere"},
	} {
		s := lab.Spec{SourceQEMU: c.source, DestinationQEMU: young, Guest: guest.Spec{Memory: 256 << 20, VCPUs: 1}}
		err := s.Check(t.Context(), c.plan, cache)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
