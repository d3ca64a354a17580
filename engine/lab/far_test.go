package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host/hosttest"
)

// behindHelpers makes the hosts of a lab be reached through helpers that were started in their namespaces: nothing of
// them may be had in any other way.
func behindHelpers(t *testing.T, s *Spec) *hosttest.Hosts {
	t.Helper()
	machines := map[string]hosttest.Machine{}
	for _, name := range []string{sourceHost, destinationHost} {
		machines[name] = hosttest.Machine{Enter: []string{"ip", "netns", "exec", fmt.Sprintf("qmig-%s-%s", s.Owner, name)},
			Env: []string{"QMIGRATE_CACHE=" + t.TempDir()}}
	}
	hosts := hosttest.New(t, machines)
	s.Pool = hosts.Pool
	s.site = func(ctx context.Context, s Spec) (Site, error) {
		n, err := hostnet.Spec{Owner: s.Owner, Rate: s.LinkRate}.Apply(ctx)
		if err != nil {
			return nil, err
		}
		for _, name := range []string{sourceHost, destinationHost} {
			at, err := s.Pool.Find(ctx, "ssh://"+name)
			if err == nil {
				err = n.Join(ctx, name, at, "qmigbr0", "qmigup0")
			}
			if err != nil {
				n.Close()
				return nil, err
			}
		}
		return n, nil
	}
	return hosts
}

// TestFarHosts migrates between two hosts that are reached through helpers alone: everything that a lab measures is
// there.
func TestFarHosts(t *testing.T) {
	needRoot(t)
	qemu := guesttest.QEMU(t, "10.0")
	s := Spec{Owner: fmt.Sprintf("far-%d", os.Getpid()), SourceQEMU: qemu, DestinationQEMU: qemu, Accelerator: "tcg",
		Guest: guest.Spec{Memory: 128 << 20}, Workload: wire.Workload{Name: "dirty"}}
	behindHelpers(t, &s)
	ctx := within.Context(t)
	l, err := Up(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	for name, h := range l.hosts {
		if _, err := os.Stat(l.dir + "/" + name); err == nil {
			t.Errorf("host %s has its files in this machine's folder of the lab, %s", h.Name(), l.dir)
		}
	}
	rec, err := l.Migrate(ctx, plan.Plan{}, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if rec.Outcome != record.Completed || rec.MemoryCheck == nil || rec.MemoryCheck.PagesWrong > 0 ||
		rec.MemoryCheck.PagesChecked < 10_000 {
		t.Fatalf("%s, memory %+v, warnings %q", rec.Outcome, rec.MemoryCheck, rec.Warnings)
	}
	for _, w := range rec.Warnings {
		if strings.Contains(w, "seen") {
			t.Error(w)
		}
	}
	n, d := rec.Network, rec.Downtime
	if n == nil || n.PingsSent == 0 || n.TCPSurvived == nil || !*n.TCPSurvived || n.AnnounceToFirstPacket == nil ||
		len(n.RARP) == 0 || d.Ping == nil || d.Heartbeat == nil || d.TCP == nil || d.GuestClock == nil || d.Wire == nil {
		t.Errorf("network %+v, downtime %+v", n, d)
	}
	sides := map[record.Holder]bool{}
	for _, use := range rec.CPU {
		sides[use.Side] = sides[use.Side] || use.Used > 0
	}
	if !sides[record.Source] || !sides[record.Destination] {
		t.Errorf("processor time of %v alone: %+v", sides, rec.CPU)
	}
	marks := map[string]bool{}
	for _, m := range rec.Marks {
		marks[m.Name] = true
	}
	for _, name := range []string{"first_frame", "rarp", "fdb_moved", "fdb_moved_destination", "fdb_moved_source"} {
		if !marks[name] {
			t.Errorf("no mark %s in %+v", name, rec.Marks)
		}
	}
}
