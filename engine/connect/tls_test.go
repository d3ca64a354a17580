package connect

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/engine"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/tlscreds"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
)

// TestTLSMonitor drives two QEMUs over monitors that their chardevs encrypt, and is refused by one of them with other certificates.
func TestTLSMonitor(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		dir := guesttest.Dir(t)
		ca, err := tlscreds.NewAuthority(tlscreds.Certificate{Name: "CA"})
		if err != nil {
			t.Fatal(err)
		}
		stranger, err := tlscreds.NewAuthority(tlscreds.Certificate{Name: "stranger"})
		if err != nil {
			t.Fatal(err)
		}
		folder := func(name string, f tlscreds.Files, err error) string {
			d := filepath.Join(dir, name)
			if err != nil || os.Mkdir(d, 0o700) != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for file, content := range f {
				if err := os.WriteFile(filepath.Join(d, file), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			return d
		}
		issue := func(a *tlscreds.Authority, r tlscreds.Role, hosts ...string) (tlscreds.Files, error) {
			return a.Issue(r, tlscreds.Certificate{Name: string(r), Hosts: hosts})
		}
		f, err := issue(ca, tlscreds.Server, "127.0.0.1")
		server := folder("server", f, err)
		f, err = issue(ca, tlscreds.Client)
		client := folder("client", f, err)
		f, err = issue(stranger, tlscreds.Client)
		other := folder("other", f, err)
		anonymous := folder("anonymous", ca.Files(), nil)

		start := func(name string, incoming bool) (*guest.VM, string) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			port := l.Addr().(*net.TCPAddr).Port
			l.Close()
			vm, err := guest.Start(within.Context(t), host.Local(), guest.Spec{
				Name: name, QEMU: qemu, Memory: 16 << 20, Dir: filepath.Join(dir, name), Incoming: incoming, Paused: incoming,
				Extra: []string{"-object", "tls-creds-x509,id=mon,endpoint=server,dir=" + server + ",verify-peer=on",
					"-chardev", fmt.Sprintf("socket,id=far,host=127.0.0.1,port=%d,server=on,wait=off,tls-creds=mon", port), "-mon", "chardev=far,mode=control"},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := vm.Close(); err != nil {
					t.Error(err)
				}
			})
			return vm, fmt.Sprintf("tcp+tls:127.0.0.1:%d", port)
		}
		_, from := start("a", false)
		_, to := start("b", true)
		for dir, want := range map[string]string{
			other:                        "certificate signed by unknown authority",
			anonymous:                    "it wants a client certificate",
			client + "&hostname=far.lab": "far.lab",
			filepath.Join(dir, "none"):   "ca-cert.pem is missing",
		} {
			e, err := Parse(from+"?dir="+dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = facts.Inspect(within.Context(t), e, plan.Options{}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
		src, err := Parse(from+"?dir="+client, nil)
		if err != nil {
			t.Fatal(err)
		}
		dst, err := Parse(to+"?dir="+client, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := engine.Migrate(within.Context(t), src, dst, plan.Plan{TLS: &plan.TLS{Kind: plan.X509, SourceDir: client, DestinationDir: server}}, plan.Options{})
		if err != nil || r.GuestOn != record.Destination {
			t.Errorf("migrate over encrypted monitors: %v", err)
		}
	})
}
