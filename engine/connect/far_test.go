package connect

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"qmigrate/engine"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
)

// The words of endpoints with a host.
func TestParseFar(t *testing.T) {
	pool := &host.Pool{}
	for text, want := range map[string]string{
		"ssh://a/run/a.qmp":                                           "ssh://a",
		"ssh://lab@10.0.0.1:2222/run/a,/run/b":                        "ssh://lab@10.0.0.1:2222",
		"ssh://[2001:db8::1]:22/run/a":                                "ssh://[2001:db8::1]:22",
		"lxc://web/run/a.qmp,/run/b,/run/c":                           "lxc:web",
		"lxc://lxd/web/run/a.qmp":                                     "lxc:lxd/web",
		"lxc://incus/web/run/a.qmp":                                   "lxc:incus/web",
		"lxc://liblxc/" + url.PathEscape("/var/tmp/x/web") + "/run/a": "lxc:liblxc//var/tmp/x/web",
	} {
		e, err := Parse(text, pool)
		if err != nil || e.Host != want || e.Name != text || e.Files {
			t.Errorf("%s: %+v, %v", text, e, err)
		}
		if _, err := Parse(text, nil); err == nil || !strings.Contains(err.Error(), "no host is reached") {
			t.Errorf("%s without hosts: %v", text, err)
		}
	}
	for text, want := range map[string]string{
		"ssh:a/run/a":              "write it as ssh://",
		"ssh://a":                  "write it as ssh://",
		"ssh://a/":                 "write it as ssh://",
		"ssh://a:b@c/run/a":        "a password has no place here",
		"ssh:///run/a":             "write it as ssh://",
		"ssh://-x/run/a":           "cannot begin with -",
		"ssh://a/run/a,b":          `"b" is no path that begins with /`,
		"ssh://a/a,/b,/c,/d":       "at most three monitors",
		"lxc:web/run/a":            "write it as lxc://",
		"lxc://web":                "write it as lxc://",
		"lxc://lxd/web":            "write it as lxc://",
		"lxc://lxd/-web/run/a":     "write it as lxc:NAME",
		"sftp://a/run/a":           "write it as unix:",
		"lxc://liblxc/%zz/run/qmp": "invalid URL escape",
	} {
		if _, err := Parse(text, pool); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	for both, want := range map[[2]string]string{
		{"ssh://a/run/a", "ssh://a/run/b,/run/a"}: "/run/a",
		{"ssh://a/run/a", "ssh://b/run/a"}:        "",
		{"ssh://a/run/a", "lxc://a/run/a"}:        "",
		{"unix:/run/a", "ssh://a/run/a"}:          "",
		{"tcp:a:1", "tcp+tls:a:1?dir=x"}:          "a:1",
	} {
		if got := Shared(both[0], both[1]); got != want {
			t.Errorf("%v share %q, want %q", both, got, want)
		}
	}
}

// pair is two QEMUs of this machine, each behind a channel of its own.
type pair struct {
	hosts    *hosttest.Hosts
	src, dst *guest.VM
	from, to *endpoint.Endpoint
}

func farPair(t *testing.T, qemu string) *pair {
	t.Helper()
	x := &pair{hosts: hosttest.New(t, nil)}
	dir := guesttest.Dir(t)
	start := func(name string, incoming bool) (*guest.VM, *endpoint.Endpoint) {
		vm, err := guest.Start(within.Context(t), host.Local(), guest.Spec{Name: name, QEMU: qemu, Memory: 16 << 20,
			Dir: filepath.Join(dir, name), Incoming: incoming, Paused: incoming})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		})
		e, err := Parse(fmt.Sprintf("ssh://%s%s/%s", name, dir, name), x.hosts.Pool)
		if err != nil {
			t.Fatal(err)
		}
		return vm, e
	}
	x.src, x.from = start("a", false)
	x.dst, x.to = start("b", true)
	return x
}

// A guest moves between two hosts that are reached over channels. The record says which.
func TestMigrateFar(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		x := farPair(t, qemu)
		p := plan.Plan{}
		if err := Listen(within.Context(t), &p, x.from, x.to); err != nil || p.Listen != "tcp:127.0.0.1:0" {
			t.Errorf("%q, %v", p.Listen, err)
		}
		r, err := engine.Migrate(within.Context(t), x.from, x.to, p, plan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Outcome != record.Completed || r.Hosts.Source != "ssh://a" || r.Hosts.Destination != "ssh://b" {
			t.Errorf("%s from %s to %s", r.Outcome, r.Hosts.Source, r.Hosts.Destination)
		}
		t.Log("warnings:", r.Warnings, "wire", *r.Downtime.Wire, "total", r.Total.Wall)
		if a, b := runState(t, x.src), runState(t, x.dst); a != "postmigrate" || b != "running" {
			t.Errorf("the source is %s, the destination %s", a, b)
		}
		if kernel, cpu := MachineOf(within.Context(t), x.from); kernel == "" || cpu == "" {
			t.Errorf("kernel %q, processor %q", kernel, cpu)
		}
		if why := x.from.Process.(endpoint.Explainer).WhyMute(nil); why != "" {
			t.Error(why)
		}
	})
}

// What goes wrong on the way to a monitor is told as of this machine's.
func TestFarErrors(t *testing.T) {
	h := hosttest.New(t, nil)
	dir := guesttest.Dir(t)
	for path, want := range map[string]error{dir + "/none": syscall.ENOENT, "/" + strings.Repeat("x", 108): syscall.EINVAL} {
		for _, text := range []string{"ssh://a" + path, "unix:" + path} {
			e, err := Parse(text, h.Pool)
			if err != nil {
				t.Fatal(err)
			}
			_, err = e.Control(within.Context(t))
			if !errors.Is(err, want) || !strings.Contains(err.Error(), ": ") {
				t.Errorf("%s: %v, want %v", text, err, want)
			}
			t.Log(err)
		}
	}
}
