package hosts

import (
	"strings"
	"testing"
)

const good = `# two machines
[[host]]
name = "a"
at = "ssh://lab@10.0.0.1"
link_address = "10.1.0.1"
bridge = "br0"
tap = ["tap0"]
qemu = "/usr/bin/qemu-system-x86_64"
cache = "~/.cache/qmigrate"

[[host]]
name = "b"
at = "lxc:b"
bridge = "br0"

[[pair]]
source = "a"
destination = "b"
guest_address = "10.2.0.101/24"
`

func TestParse(t *testing.T) {
	f, err := Parse("hosts.toml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	a := f.Host("a")
	if a == nil || a.TAPs[0] != "tap0" || a.LinkAddress != "10.1.0.1" || a.Cache != "~/.cache/qmigrate" {
		t.Errorf("%+v", f)
	}
	if p, err := f.Pair("a:b"); err != nil || p.Destination != "b" {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := f.Pair("b:a"); err == nil || !strings.Contains(err.Error(), "have a:b") {
		t.Error(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{"link_address =", "link_adress =", "hosts.toml:5: a host has no link_adress: did you mean link_address?"},
		{"[[pair]]", "[[pairs]]", "hosts.toml:16: a hosts file has no pairs: did you mean pair?"},
		{`destination = "b"`, `destination = "c"`, `hosts.toml:18: destination "c": no such host: did you mean a or b?`},
		{`destination = "b"`, ``, `hosts.toml:16: a pair without destination: name one of the hosts`},
		{`destination = "b"`, `destination = "a"`, `hosts.toml:18: source and destination are both a`},
		{`name = "b"`, `name = "a"`, `hosts.toml:12: there is a host a already`},
		{`name = "b"`, `name = "b b"`, `hosts.toml:12: host name "b b": use letters`},
		{`at = "lxc:b"`, ``, `hosts.toml:11: host b: at is missing: where it is, written local, netns:NAME`},
		{`at = "lxc:b"`, `at = "10.0.0.2"`, `hosts.toml:13: host b: host "10.0.0.2": not a host; hosts are written local`},
		{`tap = ["tap0"]`, `tap = "tap0"`, `hosts.toml:7: `},
		{`tap = ["tap0"]`, `tap = [""]`, `hosts.toml:7: host a: a tap without a name`},
		{`tap = ["tap0"]`, `tap = ["a-name-that-is-too-long"]`, `hosts.toml:7: host a: tap "a-name-that-is-too-long": a device's name`},
		{`bridge = "br0"`, `overlay = true`, `hosts.toml:6: host a: overlay and tap: choose one`},
		{`10.1.0.1`, `here`, `hosts.toml:5: host a: link_address "here": use an address`},
		{`/usr/bin/qemu`, `qemu`, `hosts.toml:8: host a: qemu "qemu-system-x86_64": give a whole path`},
		{`~/.cache`, `cache`, `hosts.toml:9: host a: cache "cache/qmigrate": give a whole path`},
		{`10.2.0.101/24`, `10.2.0.101`, `hosts.toml:19: guest_address "10.2.0.101": use an IPv4 address with the length`},
		{`10.2.0.101/24`, `10.2.0.0/24`, `hosts.toml:19: guest_address "10.2.0.0/24": use an IPv4 address with the length`},
		{`name = "a"`, `name = a`, `hosts.toml:3: `},
		{"bridge = \"br0\"\n\n", "overlay = true\n\n", `hosts.toml:17: overlay = true has to be`},
		{"bridge = \"br0\"\n\n", "\n\n", `hosts.toml:17: host b has neither bridge nor tap`},
		{good, "", "hosts.toml:1: no hosts: begin one with [[host]]"},
	} {
		_, err := Parse("hosts.toml", []byte(strings.Replace(good, c.old, c.new, 1)))
		if err == nil || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s:\n%v\n%s", c.new, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Fuzz(func(t *testing.T, text string) {
		if file, err := Parse("f", []byte(text)); (err == nil) != (file != nil) {
			t.Errorf("%v, %v", file, err)
		}
	})
}
