package connect

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// TestTunnelKilled: a tunnel that goes in pre-copy leaves the guest on the source.
func TestTunnelKilled(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, kind := range []plan.TunnelKind{plan.TLSTunnel, plan.SSHTunnel} {
			t.Run(string(kind), func(t *testing.T) {
				dir := guesttest.Dir(t)
				start := func(name string, incoming bool) *guest.VM {
					vm, err := guest.Start(within.Context(t), host.Local(),
						guest.Spec{Name: name, QEMU: qemu, Memory: 64 << 20, Dir: filepath.Join(dir, name), Incoming: incoming,
							Paused: incoming})
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
				tun, err := OpenTunnel(within.Context(t),
					TunnelSpec{Kind: kind, Source: host.Local(), Destination: host.Local(), Address: "127.0.0.1",
						In: filepath.Join(dir, "in"), Out: filepath.Join(dir, "out")})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(within.Context(t), time.Minute)
				defer cancel()
				killed := false
				r, err := engine.Migrate(ctx, Endpoint(src), Endpoint(dst), plan.Plan{
					Tunnel: kind, Listen: "unix:" + filepath.Join(dir, "out"), Connect: "unix:" +
						filepath.Join(dir, "in"), MaxBandwidth: 32 << 10,
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
				if status := runState(t, src); status != "running" {
					t.Errorf("source is %s", status)
				}
			})
		}
	})
}

// runState asks a QEMU.
func runState(t *testing.T, vm *guest.VM) string {
	t.Helper()
	e := Endpoint(vm)
	c, err := e.Talk(within.Context(t), e.Control, "", qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var status struct {
		Status string `json:"status"`
	}
	if err := c.Execute(within.Context(t), "query-status", nil, &status); err != nil {
		t.Fatal(err)
	}
	return status.Status
}
