package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
)

// behindHelpers makes the hosts of a lab be reached through helpers that were started in their namespaces: nothing of
// them may be had in any other way. Their clocks are wrong by seconds, each by others, and drift: what is not placed by
// them is seen.
func behindHelpers(t *testing.T, s *Spec) *hosttest.Hosts {
	t.Helper()
	machines := map[string]hosttest.Machine{}
	for _, name := range []string{sourceHost, destinationHost} {
		machines[name] = hosttest.Machine{Enter: []string{"ip", "netns", "exec", fmt.Sprintf("qmig-%s-%s", s.Owner, name)},
			Env: append([]string{"QMIGRATE_CACHE=" + t.TempDir()}, hosttest.WrongClock(t, wrongClocks()[name])...)}
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

func wrongClocks() map[string]host.Drift {
	now := time.Now().Round(0)
	return map[string]host.Drift{sourceHost: {Offset: 5 * time.Second, PPM: 300, From: now},
		destinationHost: {Offset: -3 * time.Second, PPM: -200, From: now}}
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
	resume := rec.End(record.Activation).Sub(rec.Origin)
	for _, m := range rec.Marks {
		marks[m.Name] = true
		if m.At < -time.Second || m.At > resume+2*time.Second {
			t.Errorf("mark %s at %v, RESUME at %v: it is by another clock", m.Name, m.At, resume)
		}
		if (m.Name == "first_frame" || m.Name == "rarp") && (m.AtError == nil || m.At < resume-*m.AtError-*d.WireError) {
			t.Errorf("mark %s at %v +/- %v before RESUME at %v", m.Name, m.At, m.AtError, resume)
		}
	}
	for _, s := range rec.Timeline {
		if s.Start < -5*time.Second || s.Start > resume || s.Start+time.Duration(len(s.Values))*s.Bin > resume+5*time.Second {
			t.Errorf("%s from %v to %v, RESUME at %v: it is by another clock", s.Name, s.Start,
				s.Start+time.Duration(len(s.Values))*s.Bin, resume)
		}
	}
	for name, want := range wrongClocks() {
		c := rec.Clocks.Source
		if name == destinationHost {
			c = rec.Clocks.Destination
		}
		if c == nil || (c.Offset-want.Offset).Abs() > c.Error+50*time.Millisecond { // it drifts by 18 ms a minute
			t.Errorf("clock of %s: %+v, want %v", name, c, want.Offset)
		}
	}
	if d.Arrival == nil || d.ArrivalError == nil || d.WireError == nil || (*d.Wire-*d.Arrival).Abs() > *d.WireError+*d.ArrivalError {
		t.Errorf("wire %v, arrival %v", d.Wire, d.Arrival)
	}
	for _, name := range []string{"first_frame", "rarp", "fdb_moved", "fdb_moved_destination", "fdb_moved_source"} {
		if !marks[name] {
			t.Errorf("no mark %s in %+v", name, rec.Marks)
		}
	}
}

// TestFarHostsLost: a lab whose channel to a host has closed is removed all the same, and says nothing.
func TestFarHostsLost(t *testing.T) {
	needRoot(t)
	qemu := guesttest.QEMU(t, "10.0")
	s := Spec{Owner: fmt.Sprintf("lost-%d", os.Getpid()), SourceQEMU: qemu, DestinationQEMU: qemu, Accelerator: "tcg",
		Guest: guest.Spec{Memory: 128 << 20}}
	behindHelpers(t, &s)
	l, err := Up(within.Context(t), s)
	if err != nil {
		t.Fatal(err)
	}
	source, dir, folder := l.source.Process(), l.dir, l.hosts[sourceHost].folder
	defer os.RemoveAll(folder) // that of a host which goes with its site goes with it, but this one's is this machine's
	l.hosts[sourceHost].Host.(*host.Far).Close()
	if _, err := l.hosts[sourceHost].Stat("/"); !errors.As(err, new(*host.ChannelError)) {
		t.Fatalf("the channel is closed: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if p, err := host.FindProcess(source.PID(), source.StartTime()); err == nil {
		t.Errorf("QEMU %d runs on", p.PID())
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is left", dir)
	}
}
