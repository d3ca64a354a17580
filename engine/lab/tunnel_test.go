package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet"
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

// TestTunnelKilled: a tunnel that goes in pre-copy leaves the guest on the source.
func TestTunnelKilled(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, kind := range []plan.TunnelKind{plan.TLSTunnel, plan.SSHTunnel} {
			t.Run(string(kind), func(t *testing.T) {
				dir := guesttest.Dir(t)
				start := func(name string, incoming bool) *guest.VM {
					vm, err := guest.Start(within.Context(t), hostnet.Local(), guest.Spec{Name: name, QEMU: qemu, Memory: 64 << 20, Dir: filepath.Join(dir, name), Incoming: incoming, Paused: incoming})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() {
						if err := vm.Close(); err != nil {
							t.Error(err)
						}
					})
					return vm
				}
				src, dst := start("a", false), start("b", true)
				tun, err := OpenTunnel(within.Context(t), TunnelSpec{Kind: kind, Source: hostnet.Local(), Destination: hostnet.Local(), Address: "127.0.0.1", In: filepath.Join(dir, "in"), Out: filepath.Join(dir, "out")})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(within.Context(t), time.Minute)
				defer cancel()
				killed := false
				r, err := engine.Migrate(ctx, Endpoint(src), Endpoint(dst), plan.Plan{
					Tunnel: kind, Listen: "unix:" + filepath.Join(dir, "out"), Connect: "unix:" + filepath.Join(dir, "in"), MaxBandwidth: 32 << 10,
				}, plan.Options{Sampled: func(s record.Sample) {
					if !killed && s.Transferred != nil && *s.Transferred > 16<<10 {
						killed = true
						tun.Close()
					}
				}})
				tun.Close()
				var stage *record.StageError
				if !killed || !errors.As(err, &stage) || stage.Guest != record.Source || ctx.Err() != nil {
					t.Fatalf("killed %v: %v", killed, err)
				}
				if r.GuestOn != record.Source {
					t.Errorf("guest on %s", r.GuestOn)
				}
				status, err := runState(within.Context(t), &vmState{Host: "local", PID: src.Process().PID(), Spec: src.Spec()})
				if status != "running" {
					t.Errorf("source is %s, %v", status, err)
				}
			})
		}
	})
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
					if err := l.network.SetLink(destinationHost, false); err != nil {
						t.Error(err)
					}
					back = time.AfterFunc(2*time.Second, func() {
						if err := l.network.SetLink(destinationHost, true); err != nil {
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
