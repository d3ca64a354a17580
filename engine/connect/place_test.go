package connect

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"qmigrate/engine"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
)

// A record says where the QEMUs run, not where we do.
func TestHosts(t *testing.T) {
	if !hostnet.Check(within.Context(t)).Get(hostnet.CapRoot).OK {
		t.Skip("not root: a named network namespace cannot be made")
	}
	network, err := hostnet.Spec{Owner: fmt.Sprintf("test-%d", os.Getpid())}.Apply(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	dir, qemu := guesttest.Dir(t), guesttest.QEMU(t, "10.0")
	start := func(name string, h host.Host, incoming bool) *endpoint.Endpoint {
		vm, err := guest.Start(within.Context(t), h, guest.Spec{Name: name, QEMU: qemu, Memory: 16 << 20,
			Dir: filepath.Join(dir, name), Incoming: incoming, Paused: incoming})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		})
		e, err := Parse("unix:"+filepath.Join(dir, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	src, dst := start("a", network.Host("a"), false), start("b", host.Local(), true)
	r, err := engine.Migrate(within.Context(t), src, dst, plan.Plan{Listen: "unix:" + filepath.Join(dir, "m")},
		plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want := network.Host("a").Name(); r.Hosts.Source != want || r.Hosts.Destination != "local" {
		t.Errorf("from %s to %s, want %s and local", r.Hosts.Source, r.Hosts.Destination, want)
	}
	if e, err := Parse("tcp:192.0.2.1:4444", nil); err != nil || e.Host != "192.0.2.1" {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestMachineOf: an address of this machine proves nothing, one of another machine does.
func TestMachineOf(t *testing.T) {
	ours, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]endpoint.Where{"127.0.0.1": endpoint.Unknown, "::1": endpoint.Unknown,
		"192.0.2.1": endpoint.Elsewhere, "2001:db8::1": endpoint.Elsewhere}
	for _, a := range ours {
		if n, ok := a.(*net.IPNet); ok {
			cases[n.IP.String()] = endpoint.Unknown
		}
	}
	for ip, want := range cases {
		if got := machineOf(&net.TCPAddr{IP: net.ParseIP(ip), Port: 4444}); got != want {
			t.Errorf("%s: %q, want %q", ip, got, want)
		}
	}
	if got := machineOf(&net.UnixAddr{Name: "/run/a.qmp", Net: "unix"}); got != endpoint.Unknown {
		t.Errorf("a unix socket: %q", got)
	}
}
