package lab

import (
	"strings"
	"testing"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
)

// TestHosts: what are no hosts, and what the hosts cannot do, is refused by the words alone.
func TestHosts(t *testing.T) {
	for hosts, want := range map[string]string{"netns": "", "lxc": "", "lxc:lxd": "", "libvirt": "", "libvirt:x": "libvirt", "lxc:docker": "liblxc", "lcx": "lxc",
		"no-such.toml": "no-such.toml"} {
		if err := checkHosts(hosts); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", hosts, err)
		}
	}
	for _, c := range []struct {
		spec Spec
		plan plan.Plan
		want string
	}{
		{Spec{Transport: FD}, plan.Plan{}, ""},
		{Spec{Transport: Exec, Hosts: Namespaces}, plan.Plan{}, ""},
		{Spec{Transport: TCP, Hosts: Containers}, plan.Plan{}, ""},
		{Spec{Transport: Unix, Hosts: Containers}, plan.Plan{Mode: record.PostCopyMode}, ""},
		{Spec{Transport: FD, Hosts: Containers}, plan.Plan{}, "none can be handed to a host that is elsewhere"},
		{Spec{Transport: FD, Hosts: Libvirt}, plan.Plan{}, "none can be handed to a host that is elsewhere"},
		{Spec{Transport: Exec, Hosts: "x.toml"}, plan.Plan{}, "hosts x.toml are elsewhere"},
	} {
		err := c.spec.CheckTransport(c.plan)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.spec, err)
		}
	}
	if err := (Spec{Hosts: "x.toml", LinkRate: 1 << 20}).CheckHardware(); err == nil ||
		!strings.Contains(err.Error(), "gets no rate here") {
		t.Errorf("a rate on somebody's link: %v", err)
	}
}

// TestEndpointOf: the QEMUs of a lab that stands are named as `qmigrate migrate` takes them.
func TestEndpointOf(t *testing.T) {
	for host, want := range map[string]string{
		"local":                   "unix:/run/l/a",
		"netns:qmig-l-a":          "unix:/run/l/a",
		"lxc:liblxc/qmig-l-a":     "lxc://liblxc/qmig-l-a/run/l/a",
		"lxc:lxd/qmig-l-a":        "lxc://lxd/qmig-l-a/run/l/a",
		"lxc:liblxc/var/x/web":    "lxc://liblxc/var%2Fx%2Fweb/run/l/a",
		"ssh://lab@10.0.0.1:2222": "ssh://lab@10.0.0.1:2222/run/l/a",
	} {
		if got := endpointOf(host, "/run/l/a"); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
}
