package lxc

import (
	"io"
	"net"
	"strings"
	"testing"

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
	for what, unprivileged := range map[string]bool{"privileged": false} {
		t.Run(what, func(t *testing.T) {
			n := apply(t, Spec{Manager: host.LibLXC, Unprivileged: unprivileged, Spec: hostnet.Spec{Rate: 12_500_000}})
			reach(t, n)
			if n.Shaper() == "" {
				t.Error("the link has no rate")
			}
			if out := run(t, n.Host("a"), "ip", "-o", "link", "show", "master", "br0"); !strings.Contains(out, "eth0") ||
				!strings.Contains(out, "tap0") {
				t.Errorf("ports of br0: %s", out)
			}
			for range 2 {
				if err := n.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
