package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/engine/record"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host/sshtest"
	"qmigrate/hostnet/hosts"
)

const twoHosts = `[[host]]
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

// TestHostsFile: what a hosts file needs is checked, and the demo runs on its hosts.
func TestHostsFile(t *testing.T) {
	guesttest.QEMU(t, "10.0")
	s := sshtest.Start(t)
	file := filepath.Join(s.Dir, "hosts.toml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	call := func(args ...string) (status int, out, errs string) {
		var stdout, stderr bytes.Buffer
		status = run(within.Context(t), append([]string{"qmigrate"}, args...), nil, &stdout, &stderr)
		return status, stdout.String(), stderr.String()
	}
	write(twoHosts)
	status, out, errs := call("hosts", "check", file, "--ssh", s.SSH)
	if status != 0 {
		t.Fatalf("%d: %s\n%s", status, out, errs)
	}
	for _, want := range []string{"host ", "reached ", "10.0.", "north to south ", "10.78.0.101/24 ", " watch ", " ready\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for line := range strings.Lines(out) {
		if len(line) > 81 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
	var r hosts.Report
	if status, out, errs = call("hosts", "check", file, "--ssh", s.SSH, "--json"); status != 0 || json.Unmarshal([]byte(out), &r) != nil ||
		len(r.Hosts) != 3 || r.Hosts[1].User != "lab" || r.Hosts[1].Root || r.Hosts[0].QEMU == "" || r.Pairs[0].Throughput == 0 {
		t.Errorf("%d: %s\n%s", status, out, errs)
	}
	status, out, errs = call("doctor", "--host", "ssh://b", "--ssh", s.SSH)
	for _, want := range []string{"as lab; Linux ", "without  root ", "ok       TUN", "ok       QEMU "} {
		if status != 0 || !strings.Contains(out, want) {
			t.Errorf("%d, no %q in\n%s%s", status, want, out, errs)
		}
	}
	status, out, errs = call("demo", "--hosts", file, "--ssh", s.SSH, "--memory", "128MiB", "--out", filepath.Join(s.Dir, "out"), "--json", "--quiet")
	var rec record.Migration
	if err := json.Unmarshal([]byte(out), &rec); err != nil || status != 0 {
		t.Fatalf("%d: %v: %s", status, err, errs)
	}
	if rec.Outcome != record.Completed || rec.Hosts.Source != "north" || rec.Hosts.Destination != "south" || rec.MemoryCheck == nil ||
		rec.MemoryCheck.PagesWrong > 0 {
		t.Errorf("%s", out)
	}
	exp := filepath.Join(s.Dir, "study.toml")
	if err := os.WriteFile(exp, []byte("name = \"x\"\nrepeats = 1\nwarm-up = 0\n[[sweep]]\nmemory = \"128MiB\"\nmode = [\"stop-and-copy\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	status, out, errs = call("run", exp, "--hosts", file, "--ssh", s.SSH, "--out", filepath.Join(s.Dir, "out"), "--json", "--quiet")
	if json.Unmarshal([]byte(out), &rec) != nil || status != 0 || rec.Experiment != "x" || rec.Hosts.Destination != "south" || rec.Outcome != record.Completed {
		t.Errorf("%d: %s%s", status, out, errs)
	}
	// A lab that stands has its QEMUs on the hosts; by its endpoints anybody can migrate them.
	name := fmt.Sprint("ssh-", os.Getpid())
	status, out, errs = call("lab", "up", "--hosts", file, "--ssh", s.SSH, "--memory", "128MiB", "--quiet", name)
	if status != 0 {
		t.Fatalf("%d: %s", status, errs)
	}
	words := strings.Fields(out[strings.Index(out, "qmigrate migrate"):])
	if !strings.Contains(out, "ssh://a/run/qmigrate/") || !strings.Contains(out, "ssh://b/tmp/qmigrate-") {
		t.Errorf("%s", out)
	}
	status, out, errs = call(append(words[1:], "--tls", "x509", "--ssh", s.SSH, "--out", filepath.Join(s.Dir, "out"), "--json", "--quiet")...)
	if json.Unmarshal([]byte(out), &rec) != nil || status != 0 || rec.Hosts.Source != "ssh://a" || rec.GuestOn != record.Destination ||
		rec.Parameters["tls-creds"] == "" {
		t.Errorf("%q: %d: %s%s", words, status, out, errs)
	}
	if status, out, errs = call("lab", "down", "--ssh", s.SSH, name); status != 0 || !strings.Contains(out, "on ssh://a") {
		t.Errorf("%d: %s%s", status, out, errs)
	}
	b := s.Host("b")
	for _, h := range s.All {
		if pids := h.PIDs("qemu-system"); len(pids) > 0 {
			t.Errorf("QEMUs left on %s: %v", h.Name, pids)
		}
		if left, err := h.Run("sh", "-c", "ip -br link | grep qmig; find /run/qmigrate /tmp -mindepth 1 2>/dev/null | grep -v '^/tmp/qmigrate-[0-9]*$'"); left != "" {
			t.Errorf("left on %s: %s%v", h.Name, left, err)
		}
	}
	for _, c := range []struct {
		text   string
		admit  bool
		args   []string
		status int
		want   string
	}{
		{strings.Replace(twoHosts, "tap0", "tap1", 1), true, []string{"hosts", "check", file}, 1, "south: there is no tap1: as root there run `ip tuntap add"},
		{strings.Replace(twoHosts, "tap0", "tap1", 1), true, []string{"demo", "--quiet", "--hosts", file}, 1, "qmigrate: host south: there is no tap1: as root there"},
		{strings.Replace(twoHosts, "10.78.0.101", "10.79.0.101", 1), true, []string{"hosts", "check", file}, 1, "north to south: watch is to watch the guest and has no address in 10.79.0.0/24"},
		{strings.Replace(twoHosts, `tap = ["tap0"]`, "tap = [\"tap0\"]\nqemu = \"/no/qemu\"", 1), true, []string{"hosts", "check", file}, 1, "find QEMU on host ssh://b: start /no/qemu"},
		{twoHosts, false, []string{"hosts", "check", file}, 1, `south: reach host ssh://b: ssh says "lab@10.78.0.12: Permission denied`},
		{twoHosts, false, []string{"demo", "--quiet", "--hosts", file}, 1, `qmigrate: host south: reach host ssh://b: ssh says "lab@10.78.0.12: Permission denied`},
		{strings.Replace(twoHosts, "bridge", "brige", 1), true, []string{"demo", "--hosts", file}, 2, "hosts.toml:4: a host has no brige: did you mean bridge?"},
		{"[[host]]\nname = \"a\"\nat = \"local\"\n", true, []string{"demo", "--hosts", file}, 2, "hosts.toml:1: no pairs"},
		{twoHosts, true, []string{"demo", "--hosts", file, "--link-rate", "1Gbit/s"}, 2, "--link-rate: the link of a hosts file is its administrator's"},
	} {
		write(c.text)
		b.Admit(c.admit)
		status, out, errs := call(append(c.args, "--ssh", s.SSH)...)
		if all := strings.Join(strings.Fields(out+errs), " "); status != c.status || !strings.Contains(all, c.want) {
			t.Errorf("%q: status %d\n%s%s\nwant %s", c.args, status, out, errs, c.want)
		}
		if c.args[0] == "demo" && strings.Count(errs, "\n") != 1 {
			t.Errorf("want one line: %s", errs)
		}
	}
}
