package lab

import (
	"context"
	"net"
	"net/netip"
	"time"

	"qmigrate/engine/record"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// load is the observer's part of a workload that needs one.
type load interface {
	// close ends it.
	close()
	// fill writes what it saw into the record, from an instant to another. The error is an answer that is not what it had to be: the
	// workload has failed its check.
	fill(rec *record.Migration, began, ended time.Time) error
}

// startLoad starts the observer's part of the lab's workload; nil if it has none.
func (l *Lab) startLoad(ctx context.Context) (load, error) {
	w := l.spec.Workload
	to := func(port int) string {
		return netip.AddrPortFrom(l.network.GuestAddress(0), uint16(port)).String()
	}
	switch w.Name {
	case "web":
		return startWebClient(ctx, l.network.Observer(), to(wire.WebPort), w)
	case "survive":
		return startWebClient(ctx, l.network.Observer(), to(wire.WebPort), wire.SurviveWeb())
	case "tcp":
		return startStreamer(ctx, l.network.Observer(), to(wire.StreamPort), w)
	}
	return nil, nil
}

// dialGuest connects to a server of the guest's.
func dialGuest(ctx context.Context, from host.Host, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, echoGrace)
	defer cancel()
	return from.Dial(ctx, "tcp", address)
}

// phases are the parts of the observation.
func phases(rec *record.Migration, began, ended time.Time) []phase {
	begin, end := rec.Origin, rec.Origin.Add(rec.Total.Wall)
	return []phase{{record.BeforePhase, began, begin}, {record.DuringPhase, begin, end}, {record.AfterPhase, end, ended}}
}

type phase struct {
	name     record.PhaseName
	from, to time.Time
}

// has tells whether an instant lies in the phase.
func (p phase) has(at time.Time) bool { return !at.Before(p.from) && at.Before(p.to) }
