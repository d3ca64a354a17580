package lab

import (
	"path"
	"testing"

	"qmigrate/engine/plan"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
)

// TestTunnelEndsWithoutCap: a migration that is given up because the CPU caps cannot be read leaves no tunnel behind.
func TestTunnelEndsWithoutCap(t *testing.T) {
	l := withCap(t, 40, 1, wire.Workload{Name: "idle"})
	if err := l.cap(sourceHost).Close(); err != nil { // its group goes: its counts cannot be read any more
		t.Fatal(err)
	}
	rec, err := l.Migrate(within.Context(t), plan.Plan{Tunnel: plan.TLSTunnel}, plan.Options{})
	if err == nil {
		t.Fatalf("migrated under a cap that is gone: %+v", rec.CPUCap)
	}
	nc, err := l.source.Host().Dial(within.Context(t), "unix", path.Join(l.source.Spec().Dir, "tunnel"))
	if err == nil {
		nc.Close()
		t.Error("the tunnel still takes connections")
	}
}
