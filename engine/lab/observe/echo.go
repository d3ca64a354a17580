package observe

import (
	"context"
	"net/netip"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/lab/observe/on"
	"qmigrate/engine/record"
	"qmigrate/hostnet/host"
)

// echoes is one TCP connection from the observer to the guest's echo server, and what came back on it.
type echoes struct {
	from  host.Host
	clock *clock.Follower // of from
	to    netip.AddrPort
	every time.Duration // not positive: none

	task        *task // nil: not started
	sent        uint64
	came        []time.Time // by from's clock
	broken      string      // why not every number came back in order
	retransmits *int64
}

// Start connects and begins to send, unless the interval is none.
func (e *echoes) Start(ctx context.Context) (err error) {
	if e.every <= 0 {
		return nil
	}
	e.task, err = begin(ctx, "TCP echoes", on.Echoes(), e.from, on.EchoSpec{To: e.to, Every: e.every}, func(o on.Echoed) {
		e.sent, e.broken = o.Sent, o.Broken
		e.came = append(e.came, o.Echoes...)
		if o.Counts != nil {
			e.retransmits = &o.Counts.Retransmits
		}
	})
	return err
}

// Stop waits for the echoes under way.
func (e *echoes) Stop() { e.task.end() }

// arrivals are when the echoes came.
func (e *echoes) arrivals() []time.Time { return e.clock.Each(e.came) }

// Note writes down whether the connection survived, and its longest silence.
func (e *echoes) Note(rec *record.Migration, _, _ time.Time) error {
	e.task.doubt(rec)
	if rec.Network == nil {
		return nil
	}
	e.count(rec.Network)
	noteSilence(rec, "tcp", e.arrivals(), &rec.Downtime.TCP, &rec.Downtime.TCPError)
	return nil
}

// survived tells whether every number came back in order.
func (e *echoes) survived() bool {
	return e.broken == "" && e.sent > 0 && uint64(len(e.came)) == e.sent
}

// count writes down what became of the connection.
func (e *echoes) count(n *record.Network) {
	n.Retransmits = e.retransmits
	if e.every > 0 {
		n.TCPSurvived = record.Of(e.survived())
	}
}
