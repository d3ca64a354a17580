package connect

import (
	"net"
	"slices"

	"qmigrate/engine/endpoint"
)

// addressOf says where a TCP endpoint is as long as nothing better is known: its monitor's address, without the port.
func addressOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// machineOf is on which machine somebody listens at an address. Behind an address of this machine a forwarder may
// stand, so nothing is known of it.
func machineOf(addr net.Addr) endpoint.Where {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || tcp.IP.IsLoopback() {
		return endpoint.Unknown
	}
	ours, err := net.InterfaceAddrs()
	if err != nil || slices.ContainsFunc(ours, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(tcp.IP)
	}) {
		return endpoint.Unknown
	}
	return endpoint.Elsewhere
}
