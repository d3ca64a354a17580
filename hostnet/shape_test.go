package hostnet

import (
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
)

func TestBurstAndQueue(t *testing.T) {
	const frames = 2 * (1500 + 18)
	for _, c := range []struct {
		rate         int64
		burst, queue uint32
	}{
		{125_000, frames, 64 << 10},           // 1 Mbit/s
		{1_250_000, frames, 64 << 10},         // 10 Mbit/s: 62,500 bytes in 50 ms
		{12_500_000, 25_000, 625_000},         // 100 Mbit/s
		{125_000_000, 250_000, 6_250_000},     // 1 Gbit/s
		{1_250_000_000, 2_500_000, 16 << 20},  // 10 Gbit/s
		{5_000_000_000, 10_000_000, 16 << 20}, // 40 Gbit/s: more than 32 bits of rate
	} {
		if b, q := burst(c.rate, 1500), queue(c.rate); b != c.burst || q != c.queue {
			t.Errorf("%d bytes/s: burst %d and queue %d, want %d and %d", c.rate, b, q, c.burst, c.queue)
		}
	}
}

// shapedBy reads back what holds host a's uplink to which rate, in bytes/s.
func shapedBy(t *testing.T, n *Network) (kind string, rate uint64, burstBytes uint32) {
	t.Helper()
	in(t, n, "a", func(h *netlink.Handle) error {
		l, err := h.LinkByName(uplinkName)
		if err != nil {
			return err
		}
		qdiscs, err := h.QdiscList(l)
		if err != nil {
			return err
		}
		for _, q := range qdiscs {
			switch q := q.(type) {
			case *netlink.Tbf:
				kind, rate, burstBytes = "tbf", q.Rate, netlink.Xmitsize(q.Rate, q.Buffer)
			case *netlink.Htb:
				kind = "htb"
				classes, err := h.ClassList(l, shaperHandle)
				if err != nil {
					return err
				}
				for _, c := range classes {
					if c, ok := c.(*netlink.HtbClass); ok {
						rate, burstBytes = c.Rate, netlink.Xmitsize(c.Rate, c.Buffer)
					}
				}
			}
		}
		return nil
	})
	return kind, rate, burstBytes
}

func TestRateIsSet(t *testing.T) {
	n := apply(t, Spec{})
	if kind, _, _ := shapedBy(t, n); kind != "" || n.Shaper() != "" {
		t.Errorf("shaped by %s (%q) without a rate", kind, n.Shaper())
	}
	s := n.Spec()
	for _, s.Rate = range []int64{125_000, 12_500_000, 1_250_000_000, 5_000_000_000} {
		shaped, err := s.Apply(within.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		kind, rate, size := shapedBy(t, n)
		if kind != shaped.Shaper() || rate != uint64(s.Rate) {
			t.Errorf("%s at %d bytes/s, want %s at %d", kind, rate, shaped.Shaper(), s.Rate)
		}
		// The kernel takes the burst as time, in whole microseconds here.
		if want := burst(s.Rate, 1500); size > want || size < want-uint32(s.Rate/500_000)-1 {
			t.Errorf("at %d bytes/s the burst is %d, want %d", s.Rate, size, want)
		}
	}
	s.Rate = 1_250_000
	if _, err := s.Apply(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	reach(t, n) // with super-packets far above the burst
	s.Rate = 0
	if _, err := s.Apply(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	if kind, _, _ := shapedBy(t, n); kind != "" {
		t.Errorf("still shaped by %s", kind)
	}
}

// TestHTB: the other way, whether or not this kernel has TBF.
func TestHTB(t *testing.T) {
	n := apply(t, Spec{})
	if c := Check(within.Context(t)).Get(CapHTB); !c.OK {
		t.Skip("no HTB here: ", c.Reason)
	}
	j := Join{Uplink: uplinkName, MTU: n.Spec().MTU}
	set := func(rate int64) {
		t.Helper()
		j.Rate = rate
		err := host.In(n.Host("a"), func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			ns := &nsBuilder{Handle: h, join: j}
			l, err := ns.LinkByName(uplinkName)
			if err != nil {
				return err
			}
			have, err := ns.rootQdisc(l)
			if err != nil {
				return err
			}
			return ns.htb(l, have)
		})
		if err != nil {
			t.Fatal(err)
		}
		if kind, have, _ := shapedBy(t, n); kind != "htb" || have != uint64(rate) {
			t.Errorf("%s at %d bytes/s, want htb at %d", kind, have, rate)
		}
	}
	set(1_250_000)
	reach(t, n)
	set(1_250_000)
	set(125_000_000)
	// From one to the other, and to none.
	s := n.Spec()
	s.Rate = 2_500_000
	shaped, err := s.Apply(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if kind, rate, _ := shapedBy(t, n); kind != shaped.Shaper() || rate != 2_500_000 {
		t.Errorf("%s at %d bytes/s", kind, rate)
	}
	set(1_250_000)
	if _, err := n.Spec().Apply(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	if kind, _, _ := shapedBy(t, n); kind != "" {
		t.Errorf("still shaped by %s", kind)
	}
}
