package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// TestAgain moves one guest there, back and there again: each time the whole of it is checked, and what is seen of it is seen on the right host.
func TestAgain(t *testing.T) {
	needRoot(t)
	s := Spec{Owner: fmt.Sprintf("test-%d", os.Getpid()), SourceQEMU: guesttest.QEMU(t, "10.0"), Accelerator: "tcg", Fill: 48 << 20,
		Workload: wire.Workload{Name: "dirty", Params: map[string]string{"rate": "2000/s", "working-set": "8MiB"}}, Guest: guest.Spec{Memory: 128 << 20}}
	s.DestinationQEMU = s.SourceQEMU
	l, err := Up(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	from, to := "a", "b"
	for i, transport := range []string{TCP, FD, Exec} {
		if i > 0 {
			if err := l.Again(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		l.spec.Transport = transport
		rec, err := l.Migrate(t.Context(), plan.Plan{MaxBandwidth: -1}, plan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if rec.Outcome != record.Completed || rec.MemoryCheck == nil || rec.MemoryCheck.PagesWrong > 0 || rec.MemoryCheck.PagesChecked < 10000 {
			t.Errorf("migration %d: %s, memory check %+v, warnings %q", i+1, rec.Outcome, rec.MemoryCheck, rec.Warnings)
		}
		if rec.Network == nil || rec.Network.AnnounceToFirstPacket == nil || rec.Downtime.Ping == nil || rec.Guest.EventsDuring == nil {
			t.Errorf("migration %d was not observed: network %+v, downtime %+v", i+1, rec.Network, rec.Downtime)
		}
		if !strings.HasSuffix(rec.Hosts.Source, "-"+from) || !strings.HasSuffix(rec.Hosts.Destination, "-"+to) {
			t.Errorf("migration %d went from %s to %s, want %s to %s", i+1, rec.Hosts.Source, rec.Hosts.Destination, from, to)
		}
		from, to = to, from
	}
}

// TestSweepAfterAgain: a run that is killed while a new destination starts is known by what it noted before.
func TestSweepAfterAgain(t *testing.T) {
	dir := t.TempDir()
	vm := func(host string) *vmState {
		return &vmState{"netns:qmig-x-" + host, 1, guest.Spec{Dir: filepath.Join(dir, host)}}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o700), os.WriteFile(guest.Spec{Dir: filepath.Join(dir, "a")}.Socket("pid"), []byte("42\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	places := map[string]place{"a": {"netns:qmig-x-a", dir}, "b": {"netns:qmig-x-b", dir}}
	source, destination := state{Owner: "x", Source: vm("b"), Places: places}.sides(within.Context(t), new(host.Pool))
	if source.PID != 1 || destination == nil || destination.PID != 42 || destination.Host != "netns:qmig-x-a" {
		t.Errorf("the guest is on b, and a new QEMU of process 42 is on a: found %+v, %+v", source, destination)
	}
}
