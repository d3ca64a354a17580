package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
)

// TestTunnelLab moves a real guest through each kind of tunnel and checks its memory, in pre-copy with several streams and in post-copy.
func TestTunnelLab(t *testing.T) {
	needRoot(t)
	workload, err := wire.ParseWorkload("dirty:rate=5000/s,working-set=16MiB")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		qemu string
		plan plan.Plan
	}{
		{"11.1", plan.Plan{Tunnel: plan.TLSTunnel, Capabilities: map[string]bool{"multifd": true}}},
		{"7.2", plan.Plan{Tunnel: plan.SSHTunnel}},
		{"10.0", plan.Plan{Tunnel: plan.TLSTunnel, Mode: record.PostCopyMode}},
	} {
		t.Run(fmt.Sprintf("%s_%s_%s", c.plan.Tunnel, c.plan.Mode, c.qemu), func(t *testing.T) {
			qemu := guesttest.QEMU(t, c.qemu)
			l, err := Up(within.Context(t), Spec{Owner: fmt.Sprintf("test-%d", os.Getpid()), Accelerator: "tcg", Workload: workload, SourceQEMU: qemu, DestinationQEMU: qemu})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.Close(); err != nil {
					t.Errorf("remove the lab: %v", err)
				}
			}()
			rec, err := l.Migrate(within.Context(t), c.plan, plan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if m := rec.MemoryCheck; m == nil || m.PagesChecked <= 10000 || m.PagesWrong != 0 || rec.GuestOn != record.Destination {
				t.Errorf("memory check %+v; guest on %s; warnings %q", m, rec.GuestOn, rec.Warnings)
			}
			if rec.Tunnel == nil || rec.Tunnel.Kind != string(c.plan.Tunnel) || rec.Tunnel.Bytes < 10<<20 || rec.Tunnel.CPU <= 0 || strings.Contains(strings.Join(rec.Warnings, "\n"), "tunnel") {
				t.Fatalf("tunnel %+v; warnings %q", rec.Tunnel, rec.Warnings)
			}
			t.Logf("%s; wall %v, %d MiB, cpu %v", rec.Name, rec.Total.Wall, rec.Tunnel.Bytes>>20, rec.Tunnel.CPU)
		})
	}
}

// TestLinkDownSecure takes the destination's host off the link in post-copy: the guest goes on over a new connection, which is as well protected as the first.
func TestLinkDownSecure(t *testing.T) {
	for i, p := range []plan.Plan{{TLS: &plan.TLS{Kind: plan.X509}}, {Tunnel: plan.TLSTunnel}, {Tunnel: plan.SSHTunnel}} {
		p.Mode, p.StallLimit, p.Parameters = record.PostCopyMode, time.Second, map[string]string{"max-postcopy-bandwidth": fmt.Sprint(24 << 20)}
		name := "x509"
		if p.TLS == nil {
			name = string(p.Tunnel) + "-tunnel"
		}
		t.Run(name, func(t *testing.T) {
			l := up(t, guesttest.QEMU(t, []string{"11.1", "10.0"}[i%2]), "dirty:rate=1000/s,working-set=8MiB")
			var back *time.Timer
			rec, err := l.Migrate(within.Context(t), p, plan.Options{Sampled: func(x record.Sample) {
				if back == nil && x.Status == "postcopy-active" && x.Remaining != nil && *x.Remaining < 100<<20 {
					if err := l.site.SetLink(destinationHost, false); err != nil {
						t.Error(err)
					}
					back = time.AfterFunc(2*time.Second, func() {
						if err := l.site.SetLink(destinationHost, true); err != nil {
							t.Error(err)
						}
					})
				}
			}})
			if back != nil {
				back.Stop()
			}
			if err != nil {
				t.Fatalf("%v; warnings %q", err, rec.Warnings)
			}
			if m := rec.MemoryCheck; m == nil || m.PagesChecked <= 10000 || m.PagesWrong != 0 || rec.PostCopy == nil || rec.PostCopy.Pauses < 1 {
				t.Errorf("memory check %+v, post-copy %+v, warnings %q", m, rec.PostCopy, rec.Warnings)
			}
			t.Logf("pauses %d, stages %v", rec.PostCopy.Pauses, rec.Stages)
		})
	}
}
