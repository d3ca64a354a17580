package load

import (
	"context"
	"net"
	"net/netip"
	"time"

	"qmigrate/engine/lab/observe"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// Client is the client of a workload that is a server in the guest; nil: it is none.
func Client(w wire.Workload, from host.Host, guest netip.Addr) observe.Observer {
	to := func(port int) string { return netip.AddrPortFrom(guest, uint16(port)).String() }
	switch w.Name {
	case "web":
		return newWebClient(from, to(wire.WebPort), w)
	case "survive":
		return newWebClient(from, to(wire.WebPort), wire.SurviveWeb())
	case "tcp":
		return newStreamer(from, to(wire.StreamPort), w)
	}
	return nil
}

const dialLimit = 5 * time.Second // TCP sends a connection's first segment again after up to some seconds

// dial connects to a server of the guest's.
func dial(ctx context.Context, from host.Host, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	return from.Dial(ctx, "tcp", address)
}
