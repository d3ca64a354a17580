package observe

import (
	"context"
	"net/netip"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
)

// Observer is one look at the guest or at its hosts.
type Observer interface {
	// Start begins it. After an error it has ended.
	Start(ctx context.Context) error
	// Stop ends it. It is harmless where it was not started. Only then is what was collected read.
	Stop()
	// Note writes into the record what was seen between the two instants. rec.Network is nil where the guest could not be
	// asked afterwards: then nobody knows how a silence on the link ended. The error is a workload that has failed its
	// check.
	Note(rec *record.Migration, began, ended time.Time) error
}

// Network is what the hosts' network tells of itself: a lab's site, or a *hostnet.Network.
type Network interface {
	TAP(host string) string
	Port(host string) string // of the link's bridge
	Watch(ctx context.Context) (*hostnet.Watch, error)
	WatchAnnouncements(mac string) (*hostnet.FrameWatch, error)
	WatchFirstFrame(host, tap, mac string) (*hostnet.FrameWatch, error)
}

// Spec is what is observed, as data.
type Spec struct {
	Network             Network
	Observer            host.Host // on the link, and neither side's
	Source, Destination *guest.VM
	From, To            string         // their hosts' names in Network
	Ping                netip.Addr     // the guest's
	Echo                netip.AddrPort // of the guest's echo server
	Beats               netip.AddrPort // the observer's, to which the guest sends its heartbeats
	PingInterval        time.Duration  // of the pings and the TCP echoes; not positive: none
	BeatInterval        time.Duration  // of the guest's heartbeats; not positive: it sends none
	Load                Observer       // the part of the guest's workload that is outside; nil: it has none
}

// Observers are those of one migration.
type Observers struct {
	spec          Spec
	began, ended  time.Time
	clocks        clocks
	cpu           cpu
	pings         pings
	beats         beats
	echoes        echoes
	announcements announcements
	first         firstFrame
	bridges       bridges
}

// Start starts all of them. An error leaves none behind.
func Start(ctx context.Context, s Spec) (*Observers, error) {
	nic := s.Destination.Spec().NIC // the same on both sides
	o := &Observers{spec: s, clocks: clocks{}}
	if err := o.clocks.start(ctx, s.Observer, s.Source.Host(), s.Destination.Host()); err != nil {
		return nil, err
	}
	here, from, to := o.clocks.of(s.Observer), o.clocks.of(s.Source.Host()), o.clocks.of(s.Destination.Host())
	o.cpu = cpu{source: s.Source, destination: s.Destination, clocks: o.clocks}
	o.pings = pings{from: s.Observer, clock: here, to: s.Ping, every: s.PingInterval}
	o.beats = beats{on: s.Observer, clock: here, at: s.Beats, every: s.BeatInterval}
	o.echoes = echoes{from: s.Observer, clock: here, to: s.Echo, every: s.PingInterval}
	o.announcements = announcements{network: s.Network, clock: here, mac: nic.MAC}
	o.first = firstFrame{network: s.Network, clock: to, host: s.To, tap: s.Network.TAP(s.To), mac: nic.MAC}
	o.bridges = bridges{network: s.Network, mac: nic.MAC, port: s.Network.Port(s.To),
		clocks: map[string]*clock.Follower{"link": here, s.From: from, s.To: to}}
	for _, x := range o.all() {
		if err := x.Start(ctx); err != nil {
			o.Stop()
			return nil, err
		}
	}
	o.began = time.Now()
	return o, nil
}

// all are the observers in the order in which they start and note. They stop in reverse.
func (o *Observers) all() []Observer {
	all := []Observer{&o.cpu, &o.pings, &o.beats, &o.echoes, &o.announcements, &o.first, &o.bridges}
	if o.spec.Load != nil {
		all = append(all, o.spec.Load)
	}
	return all
}

// Stop ends all of them. It is harmless twice.
func (o *Observers) Stop() {
	if o == nil || !o.ended.IsZero() {
		return
	}
	o.ended = time.Now()
	all := o.all()
	for i := len(all) - 1; i >= 0; i-- {
		all[i].Stop()
	}
	o.clocks.stop()
}

// Began is when all of them had begun.
func (o *Observers) Began() time.Time { return o.began }

// Note writes what they saw into the record. answers tells whether the guest could be asked afterwards.
func (o *Observers) Note(rec *record.Migration, answers bool) (err error) {
	if answers {
		rec.Network = &record.Network{}
	}
	for _, x := range o.all() {
		if noteErr := x.Note(rec, o.began, o.ended); noteErr != nil {
			err = noteErr // one alone has a check that can fail
		}
	}
	o.mark(rec)
	o.clocks.note(rec, o.spec.Observer)
	return err
}
