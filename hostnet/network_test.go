package hostnet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/cpucap"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/mark"
	"qmigrate/hostnet/internal/netns"
)

// in runs f with a handle in one of the network's namespaces.
func in(t *testing.T, n *Network, host string, f func(h *netlink.Handle) error) {
	t.Helper()
	err := netns.In(n.spec.namespace(host), func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// picture describes every device of a network, its kernel numbers included: a device that was made anew shows.
func picture(t *testing.T, n *Network) map[string]string {
	t.Helper()
	p := map[string]string{}
	for _, host := range []string{"link", "a", "b"} {
		in(t, n, host, func(h *netlink.Handle) error {
			links, err := h.LinkList()
			if err != nil {
				return err
			}
			for _, l := range links {
				a := l.Attrs()
				addresses, err := h.AddrList(l, netlink.FAMILY_ALL)
				if err != nil {
					return err
				}
				qdiscs, err := h.QdiscList(l)
				if err != nil {
					return err
				}
				var shaped string
				for _, q := range qdiscs {
					if tbf, ok := q.(*netlink.Tbf); ok {
						shaped = fmt.Sprintf("tbf %d %d %d", tbf.Rate, tbf.Buffer, tbf.Limit)
					}
				}
				p[host+"/"+a.Name] = fmt.Sprintf("#%d %s mac %s mtu %d master %d up %v %v %s", a.Index, l.Type(), a.HardwareAddr,
					a.MTU, a.MasterIndex, a.Flags&net.FlagUp != 0, addresses, shaped)
			}
			return nil
		})
	}
	return p
}

func TestApplyIsIdempotent(t *testing.T) {
	n := apply(t, Spec{Rate: 12_500_000})
	before := picture(t, n)
	want := []string{"a/lo", "a/qmigbr0", "a/qmigtap0", "a/qmigup0", "b/lo", "b/qmigbr0", "b/qmigtap0", "b/qmigup0",
		"link/lo", "link/qmigbr0", "link/qmigup-a", "link/qmigup-b"}
	if have := slices.Sorted(maps.Keys(before)); !slices.Equal(have, want) {
		t.Fatalf("devices\n%v, want\n%v", have, want)
	}
	if _, err := n.Spec().Apply(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	if after := picture(t, n); !maps.Equal(before, after) {
		t.Errorf("a second Apply changed\n%v to\n%v", before, after)
	}
}

func TestApplyMends(t *testing.T) {
	n := apply(t, Spec{Rate: 12_500_000})
	before := picture(t, n)
	in(t, n, "a", func(h *netlink.Handle) error {
		tap, err := h.LinkByName("qmigtap0")
		if err != nil {
			return err
		}
		up, err := h.LinkByName("qmigup0")
		if err != nil {
			return err
		}
		br, err := h.LinkByName("qmigbr0")
		if err != nil {
			return err
		}
		wrong, err := netlink.ParseAddr("192.0.2.1/24")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "qmigtap0"
		return errors.Join(h.LinkDel(tap), h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}), h.LinkSetMTU(up, 1400),
			h.LinkSetNoMaster(up),
			h.LinkSetDown(br), h.AddrAdd(br, wrong))
	})
	in(t, n, "b", func(h *netlink.Handle) error {
		up, err := h.LinkByName("qmigup0")
		if err != nil {
			return err
		}
		return h.LinkDel(up)
	})
	if _, err := n.Spec().Apply(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	after := picture(t, n)
	for name, was := range before {
		// What was destroyed is back with another number and, but for the bridges, another address.
		_, wasRest, _ := strings.Cut(was, " mtu")
		_, isRest, _ := strings.Cut(after[name], " mtu")
		if wasRest != isRest {
			t.Errorf("%s was %s, is %s", name, was, after[name])
		}
	}
	if before["a/qmigbr0"] != after["a/qmigbr0"] {
		t.Errorf("the bridge was %s, is %s", before["a/qmigbr0"], after["a/qmigbr0"])
	}
	reach(t, n)
}

// A file of the namespace's name on which no namespace is mounted is what a run leaves that is killed between the two.
func TestApplyOverDebris(t *testing.T) {
	needNetwork(t)
	s := Spec{Owner: owner()}
	if err := os.MkdirAll(netns.Folder, 0o755); err != nil {
		t.Fatal(err)
	}
	debris := netns.Path(s.namespace("a"))
	if err := os.WriteFile(debris, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if owners, err := Owners(within.Context(t)); err != nil || !slices.Contains(owners, s.Owner) {
		t.Errorf("Owners is %v, %v and lacks %s", owners, err, s.Owner)
	}
	if _, err := host.Namespace(s.namespace("a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Namespace of debris: %v", err)
	}
	n := apply(t, s)
	reach(t, n)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(debris, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	removed, err := Remove(within.Context(t), s.Owner)
	if err != nil || len(removed) != 1 {
		t.Errorf("Remove of debris: %v, %v", removed, err)
	}
}

func TestFailingApplyUndoes(t *testing.T) {
	n := apply(t, Spec{})
	before := picture(t, n)
	// A folder in the place of the third host's namespace is what Apply cannot mend.
	s := n.Spec()
	s.Hosts = []HostSpec{{Name: "a", TAPs: []TAPSpec{{Name: "qmigtap0"}, {Name: "qmigtap1"}}}, {Name: "b"}, {Name: "c"},
		{Name: "d"}}
	block := netns.Path(s.namespace("d"))
	if err := os.Mkdir(block, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(block)
	if _, err := s.Apply(within.Context(t)); err == nil {
		t.Error("Apply took a folder for a namespace")
	}
	if after := picture(t, n); !maps.Equal(before, after) {
		t.Errorf("an Apply that failed changed\n%v to\n%v", before, after)
	}
	if _, err := os.Stat(netns.Path(s.namespace("c"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the third host is left: %v", err)
	}

	ctx, cancel := context.WithCancel(within.Context(t))
	cancel()
	gone := Spec{Owner: owner()}
	if _, err := gone.Apply(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply with a context that has ended: %v", err)
	}
	if names, _ := netns.Names(mark.Prefix + gone.Owner); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}

func TestValidate(t *testing.T) {
	for what, s := range map[string]Spec{
		"owner":        {Owner: "a/b"},
		"no owner":     {},
		"host":         {Owner: "x", Hosts: []HostSpec{{Name: "a-b"}}},
		"host twice":   {Owner: "x", Hosts: []HostSpec{{Name: "a"}, {Name: "a"}}},
		"link":         {Owner: "x", Hosts: []HostSpec{{Name: "link"}}},
		"long host":    {Owner: "x", Hosts: []HostSpec{{Name: "ninechars"}}},
		"TAP":          {Owner: "x", Hosts: []HostSpec{{Name: "a", TAPs: []TAPSpec{{Name: "qmigup0"}}}}},
		"TAP pattern":  {Owner: "x", Hosts: []HostSpec{{Name: "a", TAPs: []TAPSpec{{Name: "tap%d"}}}}},
		"small subnet": {Owner: "x", Subnet: netip.MustParsePrefix("10.0.0.0/26")},
		"IPv6":         {Owner: "x", Subnet: netip.MustParsePrefix("fd00::/64")},
		"rate":         {Owner: "x", Rate: 10},
		"MTU":          {Owner: "x", MTU: 65535},
	} {
		if err := s.Validate(); err == nil {
			t.Errorf("%s: no error for %+v", what, s)
		}
		if n, err := s.Apply(within.Context(t)); err == nil || n != nil {
			t.Errorf("%s: applied", what)
		}
	}
	if err := (Spec{Owner: "x"}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestAddresses(t *testing.T) {
	n := newNetwork(Spec{Owner: "x", Subnet: netip.MustParsePrefix("10.1.2.3/24")}.withDefaults())
	for want, have := range map[string]netip.Addr{
		"10.1.2.1": n.Gateway(), "10.1.2.11": n.Address("a"), "10.1.2.12": n.Address("b"), "10.1.2.101": n.GuestAddress(0), "10.1.2.103": n.GuestAddress(2),
		"invalid IP": n.GuestAddress(200),
	} {
		if have.String() != want {
			t.Errorf("address %s, want %s", have, want)
		}
	}
	if n.Address("c").IsValid() || n.Host("c") != nil {
		t.Error("a host that is not in the spec has an address or is there")
	}
	if name := n.Host("a").Name(); name != "netns:qmig-x-a" {
		t.Error("host a is named ", name)
	}
}

// reach sends over TCP and UDP from host a to host b, and from the observer to host a. The sockets are used on
// other threads than they were made on.
func reach(t *testing.T, n *Network) {
	t.Helper()
	ctx := within.Context(t)
	pairs := [][2]host.Host{{n.Host("a"), n.Host("b")}, {n.Observer(), n.Host("a")}}
	addresses := []netip.Addr{n.Address("b"), n.Address("a")}
	for i, p := range pairs {
		l, err := p[1].Listen(ctx, "tcp", net.JoinHostPort(addresses[i].String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer l.Close()
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
		c, err := p[0].Dial(ctx, "tcp", l.Addr().String())
		if err != nil {
			l.Close()
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(within.Limit))
		line := strings.Repeat("x", 200_000) + "\n" // more than a super-packet
		go func() { _, _ = io.WriteString(c, line) }()
		if back, err := bufio.NewReader(c).ReadString('\n'); back != line || err != nil {
			t.Errorf("TCP echo of %d bytes: %d bytes, %v", len(line), len(back), err)
		}
		c.Close()

		server, err := p[1].ListenPacket(ctx, "udp", net.JoinHostPort(addresses[i].String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		client, err := p[0].Dial(ctx, "udp", server.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("beat")); err != nil {
			t.Error(err)
		}
		buf := make([]byte, 16)
		if k, _, err := server.ReadFrom(buf); err != nil || string(buf[:k]) != "beat" {
			t.Errorf("UDP: %q, %v", buf[:k], err)
		}
		client.Close()
		server.Close()
	}
}

func TestHostsReachEachOther(t *testing.T) {
	n := apply(t, Spec{})
	reach(t, n)
	// Not from here: the hosts' network is their own.
	here, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range here {
		if ip, _, _ := strings.Cut(one.String(), "/"); ip == n.Address("a").String() {
			t.Error("this program's own namespace has a host's address")
		}
	}
	// Names are looked up outside.
	l, err := n.Host("a").Listen(within.Context(t), "tcp4", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := n.Host("a").Dial(within.Context(t), "tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	// A unix socket is the host's file.
	path := t.TempDir() + "/s"
	u, err := n.Host("a").Listen(within.Context(t), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	c, err = n.Host("a").Dial(within.Context(t), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestObserverPings(t *testing.T) {
	n := apply(t, Spec{})
	p, err := n.Observer().ListenPacket(within.Context(t), "ip4:icmp", n.Gateway().String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	echo := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 77, Seq: 1, Data: []byte("qmigrate")}}
	data, err := echo.Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WriteTo(data, &net.IPAddr{IP: n.Address("b").AsSlice()}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	k, from, err := p.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	m, err := icmp.ParseMessage(1, buf[:k])
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := m.Body.(*icmp.Echo); m.Type != ipv4.ICMPTypeEchoReply || !ok || e.ID != 77 ||
		from.String() != n.Address("b").String() {
		t.Errorf("%v from %v", m, from)
	}
}

func TestNoIPv6Noise(t *testing.T) {
	n := apply(t, Spec{})
	for name, what := range picture(t, n) {
		if strings.Contains(what, "fe80") {
			t.Errorf("%s has an address of its own: %s", name, what)
		}
	}
}

func TestStartInNamespace(t *testing.T) {
	n := apply(t, Spec{})
	var out bytes.Buffer
	p, err := n.Host("a").Start(within.Context(t),
		host.Command{Args: []string{"readlink", "/proc/self/ns/net"}, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	within.Receive(t, "the process's end", p.Done())
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil || p.Err() != nil {
		t.Fatal(err, p.Err())
	}
	if strings.TrimSpace(out.String()) == ours {
		t.Error("a process on a host is in our namespace")
	}
	if st, err := os.Stat(netns.Path(n.spec.namespace("a"))); err != nil || fmt.Sprintf("net:[%d]", st.Sys().(*syscall.Stat_t).Ino) != strings.TrimSpace(out.String()) {
		t.Errorf("a process on host a is in %s", out.String())
	}
	if again, err := host.Find(within.Context(t), n.Host("a").Name()); err != nil || again.Name() != n.Host("a").Name() {
		t.Errorf("Find: %v, %v", again, err)
	}
}

func TestCloseTwice(t *testing.T) {
	n := apply(t, Spec{})
	p, err := n.Host("a").Start(within.Context(t), host.Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	within.Receive(t, "the process's end", p.Done()) // a process on the host goes with it
	if names, err := netns.Names(mark.Prefix + n.spec.Owner + "-"); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	if _, err := n.Host("a").Dial(within.Context(t), "tcp", "127.0.0.1:1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dial on a host that is gone: %v", err)
	}
	if _, err := n.Watch(within.Context(t)); err == nil {
		t.Error("watch of a network that is gone: no error")
	}
}

func TestTwoLabsSideBySide(t *testing.T) {
	one, two := apply(t, Spec{}), apply(t, Spec{}) // the same subnet
	reach(t, one)
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	reach(t, two)
}

// TestRemoveAfterKill: a run is killed with SIGKILL while a process of its own runs on a host.
func TestRemoveAfterKill(t *testing.T) {
	needNetwork(t)
	whose := owner()
	cmd := self("apply", "OWNER="+whose)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer killHard(cmd)
	var pid int
	var start uint64
	if _, err := fmt.Fscan(out, &pid, &start); err != nil {
		t.Fatal(err)
	}
	neighbour := apply(t, Spec{Owner: whose + "-x"}) // the same beginning, another owner
	foreign := mark.Prefix + whose + ".txt"          // the same beginning, nobody's
	if _, err := netns.Create(foreign); err != nil {
		t.Fatal(err)
	}
	defer deleteNamespace(context.Background(), foreign)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("qmigt%d", os.Getpid())
	bridge := &netlink.Bridge{LinkAttrs: attrs} // the user's, where the user is
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(bridge)

	killHard(cmd)
	p, err := host.Local().FindProcess(within.Context(t), pid, start)
	if err != nil {
		t.Fatal("the process did not outlive the run that started it: ", err)
	}
	owners, err := Owners(within.Context(t))
	if err != nil || !slices.Contains(owners, whose) || !slices.Contains(owners, whose+"-x") {
		t.Errorf("Owners is %v, %v", owners, err)
	}

	removed, err := Remove(within.Context(t), whose)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"namespace qmig-" + whose + "-b", fmt.Sprintf("process %d (sleep) in qmig-%s-a", pid, whose),
		"namespace qmig-" + whose + "-a", "namespace qmig-" + whose + "-link"}
	if !slices.Equal(removed, want) {
		t.Errorf("removed\n%q, want\n%q", removed, want)
	}
	within.Receive(t, "the process's end", p.Done())
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to a process that is gone: %v", err)
	}
	if again, err := Remove(within.Context(t), whose); err != nil || len(again) > 0 {
		t.Errorf("a second Remove: %v, %v", again, err)
	}
	reach(t, neighbour)
	if _, err := host.Namespace(foreign); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName(attrs.Name); err != nil {
		t.Errorf("the user's bridge: %v", err)
	}
	if _, err := Remove(within.Context(t), "a/b"); err == nil {
		t.Error("Remove took a/b for an owner")
	}
}

func TestTAPOpensByName(t *testing.T) {
	n := apply(t, Spec{Hosts: []HostSpec{{Name: "a", TAPs: []TAPSpec{{Name: "qmigtap0"}, {Name: "qmigtap1", Queues: 4}}},
		{Name: "b"}}})
	for name, multi := range map[string]string{"qmigtap0": "", "qmigtap1": "multi"} {
		var out, errs strings.Builder
		p, err := n.Host("a").Start(within.Context(t),
			host.Command{Args: []string{"/proc/self/exe"}, Env: []string{helper + "=tap", "TAP=" + name, "MULTI=" + multi},
				Stdout: &out, Stderr: &errs})
		if err != nil {
			t.Fatal(err)
		}
		within.Receive(t, "the process's end", p.Done())
		if p.Err() != nil || out.String() != "opened "+name+"\n" {
			t.Errorf("%s: %v: %q %q", name, p.Err(), out.String(), errs.String())
		}
	}
	before := picture(t, n)
	if _, err := n.Spec().Apply(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	if after := picture(t, n); !maps.Equal(before, after) {
		t.Errorf("a second Apply changed\n%v to\n%v", before, after)
	}
}

// TestRemoveTakesCaps: what an owner's mark names of processor caps goes with his network.
func TestRemoveTakesCaps(t *testing.T) {
	whose := owner()
	c, err := cpucap.Spec{Owner: whose, Host: "a", PID: os.Getpid(), Percent: 50}.Apply(within.Context(t), host.Local())
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("no control group for processor time may be written here, so there is no cap to remove: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	removed, err := Remove(within.Context(t), whose)
	if err != nil || len(removed) != 1 || !strings.HasPrefix(removed[0], "CPU cap ") {
		t.Errorf("removed %q, %v", removed, err)
	}
}

func FuzzOwnerOf(f *testing.F) {
	for _, s := range []string{"qmig-demo-a", "qmig-a-b-link", "qmig-", "qmig--a", "qmig-x", "other", "qmig-../x-a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		o, ok := mark.Owner(name)
		if !ok {
			return
		}
		if !strings.HasPrefix(name, mark.Prefix+o+"-") && !strings.Contains(name, "/") || strings.ContainsAny(o, "/.") {
			t.Errorf("%q is %q's", name, o)
		}
	})
}

// TestTrySpeed: what TCP does between two hosts is found, and a way that leads nowhere is told.
func TestTrySpeed(t *testing.T) {
	n := apply(t, Spec{})
	s, err := TrySpeed(within.Context(t), n.Host("a"), n.Host("b"), n.Address("b"))
	if err != nil || s.BytesPerSecond < 1<<20 || s.RoundTrip <= 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if err := n.SetLink("b", false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("long enough"))
	defer cancel()
	if _, err := TrySpeed(ctx, n.Host("a"), n.Host("b"), n.Address("b")); err == nil || !strings.HasPrefix(err.Error(), "connect from netns:") {
		t.Error(err)
	}
	if _, err := TrySpeed(within.Context(t), n.Host("a"), n.Host("b"), n.Address("a")); err == nil || !strings.HasPrefix(err.Error(), "listen at 10.77.0.11 of netns:") {
		t.Error(err)
	}
}
