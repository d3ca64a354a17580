package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/sshtest"
)

// hostsFile writes a file of the hosts of a test: root makes itself a TAP on a, the user of b has one.
func hostsFile(t testing.TB, s *sshtest.Hosts) string {
	t.Helper()
	text := `[[host]]
name = "north"
at = "ssh://a"
bridge = "br0"

[[host]]
name = "south"
at = "ssh://b"
bridge = "br0"
tap = ["tap0"]

[[host]]
name = "watch"
at = "ssh://jump"

[[pair]]
source = "north"
destination = "south"
observer = "watch"
guest_address = "10.78.0.101/24"
`
	name := filepath.Join(s.Dir, "hosts.toml")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestHostsFile migrates between two hosts behind ssh, of which one is not root's, through networks of their own.
func TestHostsFile(t *testing.T) {
	needRoot(t)
	guesttest.QEMU(t, "10.0")
	hosts := sshtest.Start(t)
	s := Spec{Owner: fmt.Sprintf("file-%d", os.Getpid()), Hosts: hostsFile(t, hosts), SourceQEMU: "10.0", DestinationQEMU: "10.0",
		Accelerator: "tcg", Guest: guest.Spec{Memory: 128 << 20}, Workload: wire.Workload{Name: "dirty"},
		Pool: &host.Pool{Program: helperbin.Helper, SSH: host.SSH{Program: hosts.SSH}}}
	defer s.Pool.Close()
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
	rec, err := l.Migrate(ctx, plan.Plan{}, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if rec.Outcome != record.Completed || rec.MemoryCheck == nil || rec.MemoryCheck.PagesWrong > 0 || rec.MemoryCheck.PagesChecked < 10_000 {
		t.Errorf("%s, memory %+v", rec.Outcome, rec.MemoryCheck)
	}
	if rec.Hosts.Source != "north" || rec.Hosts.Destination != "south" {
		t.Errorf("%+v", rec.Hosts)
	}
	if n := rec.Network; n == nil || n.PingsSent == 0 || len(n.RARP) == 0 || n.TCPSurvived == nil || !*n.TCPSurvived {
		t.Errorf("%+v", n)
	}
	if d := rec.Downtime; d.Wire == nil || d.WireError == nil || d.Ping == nil || d.Heartbeat == nil {
		t.Errorf("%+v", d)
	}
}
