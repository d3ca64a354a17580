package lab

import (
	"errors"
	"fmt"
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

// TestUndo: what was made last is taken back first, every error is kept, and nothing is taken back twice.
func TestUndo(t *testing.T) {
	var u undo
	var taken []string
	for _, name := range []string{"line", "relay", "credentials", "tunnel"} {
		u.push(func() error {
			taken = append(taken, name)
			if name == "tunnel" || name == "relay" {
				return errors.New(name)
			}
			return nil
		})
	}
	errs := u.pop()
	if fmt.Sprint(errs) != "[tunnel relay]" || fmt.Sprint(taken) != "[tunnel credentials relay line]" {
		t.Errorf("taken back: %v, errors %v", taken, errs)
	}
	if errs := u.pop(); len(errs) > 0 || len(taken) != 4 {
		t.Errorf("taken back again: %v, errors %v", taken, errs)
	}
}
