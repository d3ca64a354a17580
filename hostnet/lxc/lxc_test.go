package lxc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
)

// pool finds containers as hosts until the test ends.
func pool(t *testing.T) *host.Pool {
	t.Helper()
	p := &host.Pool{Program: helperbin.Helper}
	t.Cleanup(func() { p.Close() })
	return p
}

func apply(t *testing.T, s Spec) *Network {
	t.Helper()
	if s.Owner == "" {
		s.Owner = owner()
	}
	if s.Dir == "" {
		s.Dir = t.TempDir()
	}
	if s.Pool == nil {
		s.Pool = pool(t)
	}
	n, err := s.Apply(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// reach sends over TCP from the observer to each host, and from a to b.
func reach(t *testing.T, n *Network) {
	t.Helper()
	ctx := within.Context(t)
	for _, way := range [][2]string{{"", "a"}, {"", "b"}, {"a", "b"}} {
		from := n.Observer()
		if way[0] != "" {
			from = n.Host(way[0])
		}
		l, err := n.Host(way[1]).Listen(ctx, "tcp", net.JoinHostPort(n.Address(way[1]).String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := from.Dial(ctx, "tcp", l.Addr().String())
		if err != nil {
			t.Fatalf("from %s to %s: %v", from.Name(), way[1], err)
		}
		_, _ = io.WriteString(c, "hello")
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(in, b); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
		in.Close()
		c.Close()
		l.Close()
	}
}

func run(t *testing.T, at host.Host, words ...string) string {
	t.Helper()
	var out strings.Builder
	p, err := at.Start(within.Context(t), host.Command{Args: words, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	within.Receive(t, "the end of "+words[0], p.Done())
	if err := p.Err(); err != nil {
		t.Fatalf("%v: %v: %s", words, err, out.String())
	}
	return out.String()
}

func TestLibLXC(t *testing.T) {
	needLibLXC(t)
	for what, unprivileged := range map[string]bool{"privileged": false, "unprivileged": true} {
		t.Run(what, func(t *testing.T) {
			n := apply(t, Spec{Manager: host.LibLXC, Unprivileged: unprivileged, ReadOnly: programs(t), Spec: hostnet.Spec{Rate: 12_500_000}})
			reach(t, n)
			if n.Shaper() == "" {
				t.Error("the link has no rate")
			}
			if out := run(t, n.Host("a"), "ip", "-o", "link", "show", "master", "br0"); !strings.Contains(out, "eth0") ||
				!strings.Contains(out, "tap0") {
				t.Errorf("ports of br0: %s", out)
			}
			observed(t, n)
			shares(t, n)
			if ids := strings.Fields(run(t, n.Host("a"), "cat", "/proc/self/uid_map")); len(ids) != 3 ||
				(ids[1] == "0") == unprivileged {
				t.Errorf("users of the container: %v", ids)
			}
			for range 2 {
				if err := n.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// announce starts a QEMU of 16 MiB with nothing to boot, its network card behind the host's TAP, and has it announce
// itself: RARP frames come out of the TAP.
func announce(t *testing.T, qemu string, at host.Host, tap, mac string) {
	t.Helper()
	in, write := io.Pipe()
	var out strings.Builder
	p, err := at.Start(within.Context(t), host.Command{Args: []string{qemu, "-M", "q35", "-accel", "tcg", "-m", "16", "-display",
		"none", "-nodefaults", "-netdev", "tap,id=n,ifname=" + tap + ",script=no,downscript=no", "-device",
		"virtio-net-pci,netdev=n,romfile=,mac=" + mac, "-qmp", "stdio"}, Stdin: in, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { write.Close() })
	go func() {
		_, _ = io.WriteString(write, `{"execute":"qmp_capabilities"}`+"\n"+`{"execute":"announce-self","arguments":`+
			`{"initial":50,"max":100,"rounds":5,"step":10}}`+"\n")
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("QEMU said: ", out.String())
		}
		ctx, cancel := context.WithTimeout(context.Background(), within.Limit)
		defer cancel()
		if err := p.Kill(ctx); err != nil && !errors.As(err, new(*host.ChannelError)) { // its container has gone
			t.Error(err)
		}
	})
}

// observed has a QEMU on each host announce itself and looks whether it is seen where it should be.
func observed(t *testing.T, n *Network) {
	t.Helper()
	const mac = "52:54:00:01:02:03"
	watch, err := n.Watch(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	all, err := n.WatchAnnouncements(mac)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	first, err := n.WatchFirstFrame("b", n.TAP("b"), mac)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	other, err := n.WatchFirstFrame("a", n.TAP("a"), mac)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	began := time.Now()
	announce(t, guesttest.QEMU(t, "10.0"), n.Host("b"), n.TAP("b"), mac)
	want := map[[2]string]bool{{"link", n.Port("b")}: true, {"b", n.TAP("b")}: true, {"a", uplinkName}: true}
	for len(want) > 0 {
		c, ok := within.Receive(t, "a bridge's learning", watch.C)
		if !ok {
			t.Fatal("the watch has ended")
		}
		if c.Kind == hostnet.FDB && c.Action == hostnet.Add && c.MAC.String() == mac && c.At.After(began) {
			delete(want, [2]string{c.Host, c.Port})
		}
	}
	if got := first.Close(); len(got) != 1 || got[0].Type != hostnet.RARP || got[0].At.Before(began) || got[0].At.After(time.Now()) {
		t.Errorf("out of the TAP of b came %+v", got)
	}
	if got := all.Close(); len(got) == 0 || got[0].Type != hostnet.RARP {
		t.Errorf("on the link were %+v", got)
	}
	if got := other.Close(); len(got) != 0 {
		t.Errorf("out of the TAP of a came %+v", got)
	}
}

// programs is where the unpacked QEMUs are.
func programs(t *testing.T) []string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return []string{filepath.Join(cache, "qmigrate")}
}

// maker is a process that makes containers and can be killed.
func maker(t *testing.T, by host.LXC, owner string) (cmd *exec.Cmd, said *bufio.Reader) {
	t.Helper()
	cmd = within.Command(t, "/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", applyVariable, by, owner, t.TempDir()))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

// removes kills the maker and has Remove remove what it left.
func removes(t *testing.T, cmd *exec.Cmd, by host.LXC, owner string) []string {
	t.Helper()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	removed, err := Remove(within.Context(t), owner, by)
	if err != nil {
		t.Error(err)
	}
	if again, err := Remove(within.Context(t), owner, by); err != nil || len(again) > 0 {
		t.Errorf("a second Remove removed %v, %v", again, err)
	}
	return removed
}

// What a killed run made is removed by its owner's mark, wherever it was.
func TestLibLXCKilled(t *testing.T) {
	needLibLXC(t)
	for _, after := range []time.Duration{0, 10 * time.Millisecond, 30 * time.Millisecond, 60 * time.Millisecond} {
		owner := owner()
		cmd, _ := maker(t, host.LibLXC, owner)
		time.Sleep(after) // wherever it is by then
		t.Logf("after %s: %v", after, removes(t, cmd, host.LibLXC, owner))
	}
	owner := owner()
	cmd, said := maker(t, host.LibLXC, owner)
	if line, err := said.ReadString('\n'); line != "made\n" {
		t.Errorf("%q, %v", line, err)
	}
	if found, err := Owners(within.Context(t)); err != nil || !slices.Contains(found, owner) {
		t.Errorf("owners %v, %v", found, err)
	}
	// liblxc's own process may be killed too.
	all, err := processesOf(func(name string) bool { return name == "qmig-"+owner+"-a" })
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID())); strings.HasPrefix(string(line), "[lxc monitor]") {
			if err := p.Kill(within.Context(t)); err != nil {
				t.Error(err)
			}
		}
	}
	got := removes(t, cmd, host.LibLXC, owner)
	for _, want := range []string{"container qmig-" + owner + "-a", "container qmig-" + owner + "-b", "namespace qmig-" + owner + "-link"} {
		if !slices.Contains(got, want) {
			t.Errorf("removed %q, not %s", got, want)
		}
	}
}

// Containers that an owner has already are neither changed nor taken over.
func TestLibLXCThere(t *testing.T) {
	needLibLXC(t)
	n := apply(t, Spec{Manager: host.LibLXC})
	s := n.spec
	s.Dir = t.TempDir()
	if _, err := s.Apply(within.Context(t)); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("%v", err)
	}
	reach(t, n)
}

// needLibLXC skips a test where liblxc makes no containers.
func needLibLXC(t *testing.T) {
	t.Helper()
	if err := checkLibLXC(); err != nil {
		guesttest.Unable(t, err)
	}
}

// shares has a folder that this machine and both hosts write in.
func shares(t *testing.T, n *Network) {
	t.Helper()
	here, there := n.Shared("")
	if here == "" {
		t.Fatal("nothing is shared")
	}
	if err := os.WriteFile(filepath.Join(here, "ours"), []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.Host("a").WriteFile(filepath.Join(there, "ours"), []byte("2"), 0o600); err != nil {
		t.Error(err)
	}
	if err := n.Host("b").WriteFile(filepath.Join(there, "theirs"), []byte("3"), 0o600); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{"ours": "2", "theirs": "3"} {
		if b, err := os.ReadFile(filepath.Join(here, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if b, err := n.Host("a").ReadFile(filepath.Join(there, name)); err != nil || string(b) != want {
			t.Errorf("%s on a: %q, %v", name, b, err)
		}
	}
}

// TestForeign: somebody's container gets a TAP as a port of the bridge that is there, and loses it when the channel
// closes. The bridge stays as it was.
func TestForeign(t *testing.T) {
	needLibLXC(t)
	n := apply(t, Spec{Manager: host.LibLXC})
	at := n.Host("a")
	run(t, at, "ip", "link", "add", "theirs", "type", "bridge", "forward_delay", "900")
	run(t, at, "ip", "link", "add", "port", "address", "f6:00:00:00:00:01", "master", "theirs", "type", "veth", "peer", "other")
	bridge := func() string { // offloads are the ports'
		all, _, _ := strings.Cut(run(t, at, "ip", "-d", "-o", "link", "show", "theirs"), " gso_max_size")
		return all
	}
	before := bridge()
	p := pool(t)
	far, err := p.Find(within.Context(t), at.Name())
	if err != nil {
		t.Fatal(err)
	}
	join := hostnet.Join{Name: "x", Bridge: "theirs", TAPs: []hostnet.TAPSpec{{Name: "qmigtap7", Queues: 2}}, Foreign: true}
	made, err := hostnet.JoinTask().Ask(within.Context(t), far, join)
	if err != nil || !slices.Equal(made.Devices, []string{"qmigtap7"}) {
		t.Fatalf("%+v, %v", made, err)
	}
	if out := run(t, at, "ip", "-d", "-o", "link", "show", "master", "theirs"); !strings.Contains(out, "qmigtap7") ||
		!strings.Contains(out, " multi_queue ") {
		t.Errorf("ports of the bridge: %s", out)
	}
	if now := bridge(); now != before {
		t.Errorf("the bridge was %s and is, with a TAP, %s", before, now)
	}
	if again, err := hostnet.JoinTask().Ask(within.Context(t), far, join); err != nil || len(again.Devices) > 0 {
		t.Errorf("the same again made %v, %v", again.Devices, err)
	}
	for _, bad := range []hostnet.Join{{Bridge: "none", Foreign: true}, {Bridge: "lo", Foreign: true},
		{Bridge: "theirs", Foreign: true, TAPs: []hostnet.TAPSpec{{Name: "good"}, {Name: "a name that is too long"}}}} {
		if _, err := hostnet.JoinTask().Ask(within.Context(t), far, bad); err == nil {
			t.Errorf("joined %+v", bad)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	after := run(t, at, "ip", "-d", "-o", "link")
	if strings.Contains(after, "qmigtap7") || strings.Contains(after, "good") || !strings.Contains(after, tapName) {
		t.Errorf("left, or removed, is something else than the TAP: %s", after)
	}
	if now := bridge(); now != before {
		t.Errorf("the bridge was %s and is %s", before, now)
	}
}
