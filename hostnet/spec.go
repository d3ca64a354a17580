package hostnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"qmigrate/hostnet/internal/mark"
)

// TAPSpec is a TAP that a QEMU opens by its name. It is persistent, a port of the host's bridge, up, and made with
// IFF_NO_PI and IFF_VNET_HDR as QEMU opens it.
type TAPSpec struct {
	Name   string // at most 15 bytes
	Queues int    // above 1: multi-queue, which QEMU's queues= must then be as well; default 1
}

// HostSpec is one host.
type HostSpec struct {
	Name string    // letters, digits and _; at most 8 bytes; not "link"
	TAPs []TAPSpec // default: one, qmigtap0
}

// Spec is a network of hosts around one link, as data.
type Spec struct {
	Owner  string       // mark in all names: letters, digits, _ and -
	Hosts  []HostSpec   // default a and b
	Subnet netip.Prefix // IPv4, /25 or wider: observer .1, hosts from .11, guests from .101; default 10.77.0.0/24
	// bytes/s, Ethernet headers included, that each host may send to the link, by TBF, else HTB; 0 is unshaped
	Rate int64
	MTU  int // bytes, of every device; default 1500
}

func (s Spec) withDefaults() Spec {
	if len(s.Hosts) == 0 {
		s.Hosts = []HostSpec{{Name: "a"}, {Name: "b"}}
	}
	s.Hosts = slices.Clone(s.Hosts)
	for i, h := range s.Hosts {
		if len(h.TAPs) == 0 {
			s.Hosts[i].TAPs = []TAPSpec{{Name: defaultTAP}}
		}
	}
	if !s.Subnet.IsValid() {
		s.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, 0}), 24)
	}
	s.Subnet = s.Subnet.Masked()
	if s.MTU == 0 {
		s.MTU = 1500
	}
	return s
}

// Validate says what is wrong with the spec, touching nothing.
func (s Spec) Validate() error {
	s = s.withDefaults()
	switch {
	case !mark.IsOwner(s.Owner):
		return fmt.Errorf("network owner %q: use up to 64 letters, digits, _ and -, and no - in front", s.Owner)
	case !s.Subnet.Addr().Is4() || s.Subnet.Bits() > 25:
		return fmt.Errorf("subnet %s: need an IPv4 subnet of at least /25, for hosts begin at .%d and guests at .%d",
			s.Subnet, firstHost, firstGuest)
	case len(s.Hosts) > firstGuest-firstHost:
		return fmt.Errorf("network of %d hosts: at most %d", len(s.Hosts), firstGuest-firstHost)
	case s.Rate < 0:
		return fmt.Errorf("rate of %d bytes/s: must not be negative", s.Rate)
	case s.Rate > 0 && s.Rate < minRate:
		return fmt.Errorf("rate of %d bytes/s: at least %d", s.Rate, minRate)
	case s.MTU < 576 || s.MTU > maxMTU:
		return fmt.Errorf("MTU %d: use 576 to %d bytes", s.MTU, maxMTU)
	}
	names := map[string]bool{linkHost: true}
	for _, h := range s.Hosts {
		if !mark.IsHost(h.Name) || names[h.Name] {
			return fmt.Errorf("host name %q: use up to 8 letters, digits and _, each name once, and not %q", h.Name, linkHost)
		}
		names[h.Name] = true
		taps := map[string]bool{bridgeName: true, uplinkName: true, "lo": true}
		for _, t := range h.TAPs {
			if t.Name == "" || len(t.Name) > 15 || strings.ContainsAny(t.Name, "/%: \t\n") || taps[t.Name] || t.Name[0] == '.' {
				return fmt.Errorf("TAP name %q of host %s: use up to 15 bytes without / %% : and blanks, each name once", t.Name,
					h.Name)
			}
			if t.Queues < 0 || t.Queues > 256 {
				return fmt.Errorf("TAP %s of host %s: %d queues: use 1 to 256", t.Name, h.Name, t.Queues)
			}
			taps[t.Name] = true
		}
	}
	return nil
}

func (s Spec) namespace(host string) string { return mark.Prefix + s.Owner + "-" + host }

func (s Spec) address(n int) netip.Addr {
	a := s.Subnet.Addr()
	for range n {
		a = a.Next()
	}
	if !s.Subnet.Contains(a) {
		return netip.Addr{}
	}
	return a
}
