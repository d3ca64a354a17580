package observe

import (
	"context"
	"slices"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/record"
	"qmigrate/hostnet"
)

// announcements are the frames by which the guest, or QEMU for it, says on the link where it is now.
type announcements struct {
	network Network
	clock   *clock.Follower // of the observer
	mac     string

	watch  *hostnet.FrameWatch // nil: none
	frames []hostnet.Frame
}

// Start begins to watch.
func (a *announcements) Start(context.Context) (err error) {
	a.watch, err = a.network.WatchAnnouncements(a.mac)
	return err
}

// Stop ends it.
func (a *announcements) Stop() {
	if a.watch != nil {
		a.frames, a.watch = a.watch.Close(), nil
	}
}

// Note writes down how long after RESUME each RARP of QEMU's came.
func (a *announcements) Note(rec *record.Migration, _, _ time.Time) error {
	if rec.Network == nil || rec.Outcome != record.Completed {
		return nil
	}
	end := rec.End(record.Activation)
	for _, f := range a.frames {
		if at := a.clock.Ours(f.At); f.Type == hostnet.RARP && at.After(end) {
			rec.Network.RARP = append(rec.Network.RARP, at.Sub(end))
		}
	}
	return nil
}

// firstFrame is the first frame of the guest out of the destination's TAP.
type firstFrame struct {
	network        Network
	clock          *clock.Follower // of the host
	host, tap, mac string

	watch  *hostnet.FrameWatch // nil: none
	frames []hostnet.Frame     // one, or none
}

// Start begins to watch.
func (f *firstFrame) Start(context.Context) (err error) {
	f.watch, err = f.network.WatchFirstFrame(f.host, f.tap, f.mac)
	return err
}

// Stop ends it.
func (f *firstFrame) Stop() {
	if f.watch != nil {
		f.frames, f.watch = f.watch.Close(), nil
	}
}

// Note has nothing to say but a mark.
func (f *firstFrame) Note(*record.Migration, time.Time, time.Time) error { return nil }

// bridges are the bridges of the link and of both hosts, which learn where the guest is.
type bridges struct {
	network Network
	clocks  map[string]*clock.Follower // by the hosts' names in the network
	mac     string
	port    string // of the link's bridge to the destination

	watch   *hostnet.Watch // nil: none
	changes []hostnet.Change
}

// Start begins to watch.
func (b *bridges) Start(ctx context.Context) (err error) {
	b.watch, err = b.network.Watch(context.WithoutCancel(ctx))
	return err
}

// Stop ends it.
func (b *bridges) Stop() {
	if b.watch == nil {
		return
	}
	b.watch.Close()
	for c := range b.watch.C {
		b.changes = append(b.changes, c)
	}
	b.watch = nil
}

// ours are the changes at our instants, in their order.
func (b *bridges) ours() []hostnet.Change {
	all := slices.Clone(b.changes)
	for i := range all {
		all[i].At = b.clocks[all[i].Host].Ours(all[i].At)
	}
	slices.SortStableFunc(all, func(x, y hostnet.Change) int { return x.At.Compare(y.At) })
	return all
}

// learnt tells whether a bridge learnt the guest's address after an instant.
func (b *bridges) learnt(c hostnet.Change, after time.Time) bool {
	return c.Kind == hostnet.FDB && c.Action == hostnet.Add && !c.Local && c.MAC.String() == b.mac && c.At.After(after)
}

// Note writes down when the link's bridge had learnt where the guest is now.
func (b *bridges) Note(rec *record.Migration, _, _ time.Time) error {
	if rec.Network == nil || rec.Outcome != record.Completed {
		return nil
	}
	for _, c := range b.ours() {
		if b.learnt(c, rec.End(record.PreCopy)) && c.Host == "link" && c.Port == b.port {
			rec.Network.AnnounceToFirstPacket = record.Of(c.At.Sub(rec.End(record.Activation)))
			break
		}
	}
	return nil
}
