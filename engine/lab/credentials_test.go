package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
)

// TestSecureLab moves a real guest by each way of encrypting and checks its memory; a second move goes back over a fresh QEMU.
func TestSecureLab(t *testing.T) {
	needRoot(t)
	workload, err := wire.ParseWorkload("dirty:rate=5000/s,working-set=16MiB")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		source, destination string
		plan                plan.Plan
	}{
		{"10.0", "10.0", plan.Plan{TLS: &plan.TLS{Kind: plan.X509}}},
		{"11.1", "11.1", plan.Plan{TLS: &plan.TLS{Kind: plan.X509}, Capabilities: map[string]bool{"multifd": true}}},
		{"7.2", "7.2", plan.Plan{TLS: &plan.TLS{Kind: plan.X509, Authz: "O=qmigrate,CN=source"}}},
		{"7.2", "10.0", plan.Plan{TLS: &plan.TLS{Kind: plan.PSK}, Capabilities: map[string]bool{"multifd": true}}},
	} {
		t.Run(fmt.Sprintf("%s_%s_%s", c.plan.TLS.Kind, c.source, c.destination), func(t *testing.T) {
			l, err := Up(within.Context(t), Spec{
				Owner: fmt.Sprintf("test-%d", os.Getpid()), Accelerator: "tcg", Workload: workload, Fill: enough,
				SourceQEMU: guesttest.QEMU(t, c.source), DestinationQEMU: guesttest.QEMU(t, c.destination),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.Close(); err != nil {
					t.Errorf("remove the lab: %v", err)
				}
			}()
			before := *c.plan.TLS
			rec, err := l.Migrate(within.Context(t), c.plan, plan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if rec.GuestOn != record.Destination || rec.Parameters["tls-creds"] != "qmigrate-tls" {
				t.Errorf("guest on %s, parameters %v", rec.GuestOn, rec.Parameters)
			}
			if m := rec.MemoryCheck; m == nil || m.PagesChecked <= 10000 || m.PagesWrong != 0 {
				t.Errorf("memory check %+v; warnings %q", m, rec.Warnings)
			}
			if *c.plan.TLS != before {
				t.Errorf("the plan was changed: %+v", *c.plan.TLS)
			}
			for _, vm := range []string{l.source.Spec().Dir, l.destination.Spec().Dir} {
				if _, err := os.Stat(filepath.Join(vm, "tls")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("credentials are left in %s: %v", vm, err)
				}
			}
			t.Logf("%s; wall %v, wire downtime %v", rec.Name, rec.Total.Wall, *rec.Downtime.Wire)
		})
	}
}
