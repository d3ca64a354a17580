package hosts

import (
	"fmt"
	"strings"
	"testing"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/sshtest"
)

func pool(t *testing.T, s *sshtest.Hosts) *host.Pool {
	p := &host.Pool{Program: helperbin.Helper, SSH: host.SSH{Program: s.SSH}}
	t.Cleanup(func() { p.Close() })
	return p
}

// devices are those of ours on a host.
func devices(t *testing.T, h *sshtest.Host) string {
	t.Helper()
	out, err := h.Run("sh", "-c", "ip -br link | grep -o '^qmig[^ @]*' | cut -c 11- | sort | tr '\\n' ' '")
	if err != nil {
		t.Fatal(out)
	}
	return strings.TrimSpace(out)
}

const pairs = `
[[pair]]
source = "a"
destination = "b"
observer = "c"
`

// TestNetwork: on a host with a TAP of its administrator's nothing is made, on another one a TAP is, and all goes again.
func TestNetwork(t *testing.T) {
	s := sshtest.Start(t)
	f, err := Parse("hosts.toml", []byte(`
[[host]]
name = "a"
at = "ssh://a"
bridge = "br0"
[[host]]
name = "b"
at = "ssh://b"
bridge = "br0"
tap = ["tap0"]
[[host]]
name = "c"
at = "ssh://jump"
`+pairs+`guest_address = "10.78.0.101/24"
`))
	if err != nil {
		t.Fatal(err)
	}
	p := pool(t, s)
	n, err := Spec{File: f, Owner: "test", Pool: p}.Apply(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	a, b := s.Host("a"), s.Host("b")
	if n.Address("a") != a.Address || n.Address("b") != b.Address || n.Gateway() != s.Jump.Address || n.TAP("b") != "tap0" {
		t.Errorf("%v %v %v %s", n.Address("a"), n.Address("b"), n.Gateway(), n.TAP("b"))
	}
	if got := devices(t, a) + "|" + devices(t, b); got != "tapa|" {
		t.Errorf("made: %s", got)
	}
	if out, err := a.Run("ip", "link", "show", "master", "br0", "dev", n.TAP("a")); err != nil || !strings.Contains(out, "master br0") {
		t.Errorf("%v: %s", err, out)
	}
	w, err := n.Watch(within.Context(t))
	if err != nil {
		t.Error(err)
	} else {
		w.Close()
	}
	for name, want := range map[string]bool{"a": true, "b": false} { // who is not root sees no frames
		w, err := n.WatchFirstFrame(name, n.TAP(name), "02:00:00:00:00:01")
		if err != nil || (w != nil) != want {
			t.Errorf("%s: %v, %v", name, w, err)
		}
		if w != nil {
			w.Close()
		}
	}
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := devices(t, a) + "|" + devices(t, b); got != "|" {
		t.Errorf("left: %s", got)
	}
	for _, c := range []struct{ do, undo, want string }{
		{"ip link del tap0", "", "host b: there is no tap0: as root there run `ip tuntap add tap0 mode tap user lab && ip link set tap0 up master br0`"},
		{"ip tuntap add tap0 mode tap", "ip link del tap0", "host b: tap0 is down: as root there run `ip link set tap0 up`"},
		{"ip tuntap add tap0 mode tap; ip link set tap0 up", "ip link del tap0", "host b: tap0 is a port of no bridge"},
		{"ip tuntap add tap0 mode tap user 1; ip link set tap0 up master br0", "ip link del tap0", "host b: tap0 is not lab's: as root there run `ip tuntap del tap0 mode tap`, then `ip tuntap add"},
		{"ip link add tap0 type bridge", "ip link del tap0", "host b: tap0 is no TAP"},
		{"ip tuntap add tap0 mode tap user lab; ip link set tap0 up master br0; ip link set br0 name br1", "ip link set br1 name br0", "host b: there is no br0: as root there run"},
		{"", "", "c is to watch the guest and has no address in 10.77.0.0/24, where the guest is: as root there run `ip addr add 10.77.0.1/24 dev br0`"},
	} {
		if out, err := b.Run("sh", "-ec", c.do); err != nil {
			t.Fatal(out)
		}
		spec := Spec{File: f, Owner: "test", Pool: p}
		if c.do == "" {
			f.Pairs[0].GuestAddress = ""
		}
		_, err := spec.Apply(within.Context(t))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v\nwant %s", c.do, err, c.want)
		}
		if out, err := b.Run("sh", "-ec", c.undo); err != nil {
			t.Fatal(out)
		}
	}
	if got := devices(t, a); got != "" {
		t.Errorf("left: %s", got)
	}
}

// TestOverlay: hosts that share no bridge are on one Ethernet; all of it goes with the channel, too.
func TestOverlay(t *testing.T) {
	s := sshtest.Start(t, sshtest.HostSpec{Name: "a", Root: true}, sshtest.HostSpec{Name: "b", Root: true})
	text := ""
	for name, at := range map[string]string{"a": "a", "b": "b", "c": "jump"} {
		text += fmt.Sprintf("[[host]]\nname = %q\nat = \"ssh://%s\"\noverlay = true\n", name, at)
	}
	text = strings.Replace(text, `name = "c"`, "name = \"c\"\nlink_address = \"10.78.0.1\"", 1)
	f, err := Parse("hosts.toml", []byte(text+pairs))
	if err != nil {
		t.Fatal(err)
	}
	p := pool(t, s)
	n, err := Spec{File: f, Owner: "test", Pool: p}.Apply(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	a, b := s.Host("a"), s.Host("b")
	if got := devices(t, a) + "|" + devices(t, b) + "|" + devices(t, s.Jump); got != "br tapa vx|br tapb vx|br vx" {
		t.Errorf("made: %s", got)
	}
	for _, h := range []*sshtest.Host{a, b, s.Jump} { // a frame of full size, too
		for _, to := range []string{"10.77.0.1", "10.77.0.11", "10.77.0.12"} {
			if out, err := h.Run("bash", "-c", "ping -c 1 -W 10 -s 1472 "+to+" || exec 3<>/dev/tcp/"+to+"/22"); err != nil {
				t.Errorf("%s to %s: %s", h.Name, to, out)
			}
		}
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if n, err = (Spec{File: f, Owner: "test", Pool: p}).Apply(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	within.Until(t, "the overlay to go with its channels", func() bool {
		return devices(t, a)+devices(t, b)+devices(t, s.Jump) == ""
	})
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}
