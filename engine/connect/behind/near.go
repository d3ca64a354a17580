package behind

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"qmigrate/hostnet/host"
)

// Near is how others reach a host, as it knows itself.
type Near struct {
	Login string         // the address at which our ssh login came in, as this host has it; "": it was none
	From  string         // whence that came: an address of ours
	Own   []netip.Prefix // its addresses, those of the default route's interface first; no loopback, no link-local ones
}

// Nears says how others reach a host.
func Nears() host.Task[struct{}, Near] {
	return one("behind.near", func(context.Context, struct{}) (n Near, err error) {
		// Source: ssh(1), ENVIRONMENT: the client's address and port, the server's address and port.
		if words := strings.Fields(os.Getenv("SSH_CONNECTION")); len(words) == 4 {
			n.From, n.Login = words[0], words[2]
		}
		n.Own, err = ownAddresses()
		return n, err
	})
}

func ownAddresses() (own []netip.Prefix, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	routes, _ := os.ReadFile("/proc/net/route")
	main := defaultInterface(routes)
	slices.SortStableFunc(all, func(a, b net.Interface) int {
		switch {
		case a.Name == main && b.Name != main:
			return -1
		case b.Name == main && a.Name != main:
			return 1
		}
		return a.Index - b.Index
	})
	for _, i := range all {
		addresses, err := i.Addrs()
		if err != nil || i.Flags&net.FlagUp == 0 {
			continue
		}
		for _, a := range addresses {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
				own = append(own, p)
			}
		}
	}
	return own, nil
}

// defaultInterface is the interface of the default route in /proc/net/route; "" if there is none.
func defaultInterface(routes []byte) string {
	for lines := bufio.NewScanner(bytes.NewReader(routes)); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			return f[0]
		}
	}
	return ""
}
