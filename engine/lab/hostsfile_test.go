package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/sshtest"
)

// hostsFile writes a file of the hosts of a test, with a pair: root makes itself a TAP on a, the user of b has one.
func hostsFile(t testing.TB, s *sshtest.Hosts, source, destination string) string {
	t.Helper()
	text := fmt.Sprintf(`[[host]]
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
source = %q
destination = %q
observer = "watch"
guest_address = "10.78.0.101/24"
`, source, destination)
	name := filepath.Join(s.Dir, "hosts.toml")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestHostsFile migrates between two hosts behind ssh, of which one is not root's, through networks of their own: with a
// mirror and TLS, and in post-copy to and fro over a link that is lost.
func TestHostsFile(t *testing.T) {
	needRoot(t)
	guesttest.QEMU(t, "10.0")
	hosts := sshtest.Start(t)
	mirror, err := storage.Parse("mirror:rate=200/s")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, source, destination string
		storage                   storage.Spec
		plan                      plan.Plan
	}{
		{"mirror and TLS", "north", "south", mirror, plan.Plan{TLS: &plan.TLS{Kind: plan.X509}}},
		// To the host of root's: others may not have userfaultfd.
		{"post-copy over a lost link", "south", "north", storage.Spec{}, plan.Plan{Mode: record.PostCopyMode, StallLimit: time.Second,
			Parameters: map[string]string{"max-postcopy-bandwidth": fmt.Sprint(24 << 20)}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Spec{Owner: fmt.Sprintf("file-%d", os.Getpid()), Hosts: hostsFile(t, hosts, c.source, c.destination),
				SourceQEMU: "10.0", DestinationQEMU: "10.0", Accelerator: "tcg", Guest: guest.Spec{Memory: 160 << 20},
				Workload: wire.Workload{Name: "dirty"}, Storage: c.storage,
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
			a, b := hosts.Host("a"), hosts.Host("b")
			cut := false
			var o plan.Options
			if c.plan.Mode == record.PostCopyMode {
				o.Sampled = func(x record.Sample) {
					if x.Status != "postcopy-active" || cut || x.Remaining == nil || *x.Remaining > 60<<20 {
						return
					}
					cut = true // the hosts from one another: ssh comes from elsewhere
					if out, err := b.Run("ip", "route", "add", "blackhole", a.Address.String()); err != nil {
						t.Error(out)
					}
					time.AfterFunc(2*time.Second, func() {
						if out, err := b.Run("ip", "route", "del", "blackhole", a.Address.String()); err != nil {
							t.Error(out)
						}
					})
				}
			}
			rec, err := l.Migrate(ctx, c.plan, o)
			if err != nil {
				t.Fatal(err)
			}
			if rec.Outcome != record.Completed || rec.MemoryCheck == nil || rec.MemoryCheck.PagesWrong > 0 || rec.MemoryCheck.PagesChecked < 10_000 {
				t.Errorf("%s, memory %+v, warnings %q", rec.Outcome, rec.MemoryCheck, rec.Warnings)
			}
			if rec.Hosts.Source != c.source || rec.Hosts.Destination != c.destination {
				t.Errorf("%+v", rec.Hosts)
			}
			if n := rec.Network; n == nil || n.PingsSent == 0 || len(n.RARP) == 0 || n.TCPSurvived == nil || !*n.TCPSurvived {
				t.Errorf("%+v", n)
			}
			if d := rec.Downtime; d.Wire == nil || d.WireError == nil || d.Ping == nil || d.Heartbeat == nil {
				t.Errorf("%+v", d)
			}
			if c.storage.Disks > 0 && (rec.DiskCheck == nil || !rec.DiskCheck.OK() || len(rec.Mirrors) == 0) {
				t.Errorf("disks %+v, mirrors %+v, warnings %q", rec.DiskCheck, rec.Mirrors, rec.Warnings)
			}
			if r := rec.Stage(record.Recovery); cut && r == nil {
				t.Errorf("the link was lost, and nothing recovered: %+v", rec.Stages)
			}
			if (c.plan.Mode == record.PostCopyMode) != cut {
				t.Errorf("%s, link lost: %v", c.plan.Mode, cut)
			}
		})
	}
}
