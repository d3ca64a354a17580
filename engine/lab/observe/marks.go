package observe

import (
	"fmt"
	"slices"
	"time"

	"qmigrate/engine/record"
	"qmigrate/hostnet"
)

// stamp is the error of an instant by a stamp of QEMU's or the kernel's: both have a microsecond's grain or less, and
// their age is read from one clock.
const stamp = time.Microsecond

// mark puts the instants that were seen into the record, in the order of time: docs/timeline.md says what each is.
func (o *Observers) mark(rec *record.Migration) {
	add := func(name string, at time.Time, uncertain *time.Duration, source string) {
		rec.Marks = append(rec.Marks, record.Mark{Name: name, At: at.Sub(rec.Origin), AtError: uncertain, Source: source})
	}
	if s := rec.Stage(record.PreCopy); s != nil {
		add("migrate", rec.Origin.Add(s.Start), nil, "qmigrate, just before the command")
	}
	resume := rec.End(record.Activation)
	if d := rec.Downtime.Wire; d != nil && !resume.IsZero() {
		add("stop", resume.Add(-*d), rec.Downtime.WireError, "STOP, by the source QEMU's stamp")
		uncertain := record.Of(stamp)
		if rec.Clocks != nil && rec.Clocks.Destination != nil {
			uncertain = rec.Downtime.WireError // which has that of this clock in it
		}
		add("resume", resume, uncertain, "RESUME, by the destination QEMU's stamp")
	} else {
		resume = rec.Origin.Add(rec.Total.Wall)
	}
	from, to := o.spec.From, o.spec.To
	for _, f := range o.first.frames {
		add("first_frame", o.first.clock.Ours(f.At), seenAt(o.first.clock, f.At),
			fmt.Sprintf("the kernel of the destination's host: %s out of the guest's TAP", etherName(f.Type)))
	}
	for _, f := range o.announcements.frames {
		at := o.announcements.clock.Ours(f.At)
		if at.Before(rec.Origin) {
			continue
		}
		add(map[uint16]string{hostnet.RARP: "rarp", hostnet.ARP: "arp"}[f.Type], at,
			seenAt(o.announcements.clock, f.At),
			"the kernel of the link, on its bridge")
	}
	for _, c := range o.bridges.ours() {
		moved := o.bridges.learnt(c, rec.Origin)
		switch {
		case moved && c.Host == "link" && c.Port == o.bridges.port:
			add("fdb_moved", c.At, nil, "netlink, when it was read: the link's bridge")
		case moved && c.Host == to && c.Port == o.first.tap:
			add("fdb_moved_destination", c.At, nil, "netlink, when it was read: the destination's bridge")
		case moved && c.Host == from && c.Port != o.spec.Network.TAP(from):
			add("fdb_moved_source", c.At, nil, "netlink, when it was read: the source's bridge")
		}
	}
	for _, x := range []struct {
		name     string
		arrivals []time.Time
	}{{"ping", o.pings.arrivals()}, {"beat", o.beats.arrivals()}, {"echo", o.echoes.arrivals()}} {
		i := slices.IndexFunc(x.arrivals, func(at time.Time) bool { return !at.Before(resume) })
		if i >= 0 && rec.Outcome == record.Completed {
			add("first_"+x.name, x.arrivals[i], nil, "the observer, when it was read: the first after RESUME")
		}
	}
	slices.SortStableFunc(rec.Marks, func(a, b record.Mark) int { return int(a.At - b.At) })
}

// etherName names what a guest may send first.
func etherName(t uint16) string {
	switch t {
	case hostnet.RARP:
		return "RARP"
	case hostnet.ARP:
		return "ARP"
	case 0x0800:
		return "IPv4"
	}
	return fmt.Sprintf("EtherType %04x", t)
}
