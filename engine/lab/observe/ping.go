package observe

import (
	"context"
	"net/netip"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/lab/observe/on"
	"qmigrate/engine/record"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// pings are ICMP echo requests from the observer to the guest, and the replies.
type pings struct {
	from  host.Host
	clock *clock.Follower // of from
	to    netip.Addr
	every time.Duration // not positive: none

	task     *task // nil: not started
	sent     int
	answered map[uint16]bool // by sequence number, which wraps after 65536 pings, over 5 minutes
	replies  []time.Time     // when they came, by from's clock
}

// Start begins to send, unless the interval is none.
func (p *pings) Start(ctx context.Context) (err error) {
	if p.every <= 0 {
		return nil
	}
	p.answered = map[uint16]bool{}
	p.task, err = begin(ctx, "pings", on.Pings(), p.from, on.PingSpec{To: p.to, Every: p.every}, func(o on.Pinged) {
		p.sent = o.Sent
		for _, r := range o.Replies {
			p.answered[r.Seq] = true
			p.replies = append(p.replies, r.At)
		}
	})
	return err
}

// Stop stops sending and waits for replies that may be under way.
func (p *pings) Stop() { p.task.end() }

// arrivals are when the replies came.
func (p *pings) arrivals() []time.Time { return p.clock.Each(p.replies) }

// Note writes down how many replies came, and the longest silence among them.
func (p *pings) Note(rec *record.Migration, _, _ time.Time) error {
	p.task.doubt(rec)
	if rec.Network == nil {
		return nil
	}
	p.count(rec.Network)
	noteSilence(rec, "ping", p.arrivals(), &rec.Downtime.Ping, &rec.Downtime.PingError)
	return nil
}

// count writes down how many pings there were. A reply that came twice is not a reply to another ping.
func (p *pings) count(n *record.Network) {
	answered := len(p.answered)
	if p.sent > 1<<16 { // the numbers wrapped: count replies
		answered = len(p.replies)
	}
	n.PingsSent, n.PingsLost = p.sent, max(p.sent-answered, 0)
	if p.every > 0 {
		n.PingInterval = &p.every
	}
}

// Pings sends pings and TCP echoes to a guest, as Observers do, until stop, which returns the number of pings.
func Pings(ctx context.Context, from host.Host, guest netip.Addr, every time.Duration) (stop func() int, err error) {
	p := &pings{from: from, to: guest, every: every}
	if err := p.Start(ctx); err != nil {
		return nil, err
	}
	e := &echoes{from: from, to: netip.AddrPortFrom(guest, wire.DefaultEchoPort), every: every}
	if err := e.Start(ctx); err != nil {
		p.Stop()
		return nil, err
	}
	return func() int {
		e.Stop()
		p.Stop()
		return p.sent
	}, nil
}
