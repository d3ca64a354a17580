package anatomy

import (
	"slices"
	"time"

	"qmigrate/engine/record"
)

// walk goes from STOP to RESUME.
type walk struct {
	chain
	m                   Migration
	source, destination told
	handedOver          point // the source has no byte left; not known: nothing tells it
}

func ours(at time.Time) point {
	return point{Instant: Instant{At: at}, clock: record.OnQmigrate, by: byUs}
}

// contradicted tells whether the two clocks are off by more than their errors: the destination had read everything
// before the source had written it.
func (w *walk) contradicted() bool {
	written := w.source.checkpoint("src-non-iterable-saved")
	read := w.destination.checkpoint("dst-precopy-loadvm-completed")
	return written.known() && read.known() && written.At.Sub(read.At) > written.to(read)
}

// stoppedFirst is what comes before the passes of a guest that was stopped first.
func (w *walk) stoppedFirst() {
	if !w.m.StoppedFirst {
		return
	}
	w.to(ours(w.m.Stopped), kind{record.OnSource, record.PartDisks, ""})
	w.to(ours(w.m.Issued), kind{record.OnQmigrate, record.PartDecision, ""})
	w.to(w.source.said(w.last, "active"), kind{record.OnSource, record.PartSetup, ""})
}

// save goes to where the source has handed over its last byte.
func (w *walk) save() {
	s := w.source
	disks, untold := kind{record.OnSource, record.PartDisks, ""}, kind{record.OnSource, record.PartUntold, ""}
	device := disks // what comes before the event: the disks are drained, or all passes are done
	if w.m.StoppedFirst {
		device = kind{record.OnSource, record.PartRAMSave, memory}
		w.to(s.checkpoint("src-downtime-start"), device)
	}
	w.to(s.checkpoint("src-vm-stopped"), disks)
	if pause := s.said(w.last, "pre-switchover"); pause.known() {
		w.to(pause, device)
		w.to(s.said(w.last, "device"), kind{record.OnQmigrate, record.PartPause, ""})
	} else {
		w.to(s.said(w.last, "device"), device)
	}
	if w.sections(); w.handedOver.known() || w.m.ReturnPath && !w.m.PostCopy {
		return
	}
	w.handedOver = s.said(w.last, "completed", "postcopy-device", "postcopy-active")
	w.to(w.handedOver, untold)
}

// sections goes through the source's last pages and its devices.
func (w *walk) sections() {
	s := w.source
	iterable, saved := s.checkpoint("src-iterable-saved"), s.checkpoint("src-non-iterable-saved")
	disks, untold := kind{record.OnSource, record.PartDisks, ""}, kind{record.OnSource, record.PartUntold, ""}
	ram, devices := kind{record.OnSource, record.PartRAMSave, memory}, kind{record.OnSource, record.PartDeviceSave, ""}

	before := disks // before the last pages the disks are given up
	var rest []span
	for _, x := range s.spans() {
		switch {
		case x.section && !x.iterable, iterable.known() && x.begin.At.After(iterable.At):
			rest = append(rest, x)
		case x.section:
			w.through(x, before)
			before = ram
		default:
			w.through(x, before)
		}
	}
	if before == disks && !w.m.PostCopy { // the line of the last pages is missing
		before = untold
	}
	w.gap(iterable, before)

	if before = devices; w.m.PostCopy {
		before = ram // the destination is told which pages it does not have
	}
	for _, x := range rest {
		w.through(x, before)
		if x.section {
			before = devices
		}
	}
	w.to(saved, devices)
	w.handedOver = saved
	if end := s.checkpoint("src-downtime-end"); end.known() && (w.m.PostCopy || !w.m.ReturnPath) {
		w.to(end, devices)
		w.handedOver = end
	} else if w.m.PostCopy {
		w.handedOver = point{}
	}
}

// load goes to where the destination has everything that the guest needs to run.
func (w *walk) load() {
	d := w.destination
	untold := kind{record.OnDestination, record.PartUntold, ""}
	if !w.handedOver.known() {
		untold.side = record.OnSource
	}
	loaded := w.loaded()
	switch {
	case !loaded.known():
		if w.m.PostCopy {
			w.arrive(untold)
		} else {
			w.to(d.said(point{}, "completed"), untold)
		}
		return
	case w.handedOver.known():
		w.read(loaded)
	default:
		w.to(loaded, untold)
	}
	half := kind{record.OnDestination, record.PartBottomHalf, ""}
	for _, way := range ways() {
		w.to(d.checkpoint(way+"enter"), half)
		w.to(d.checkpoint(way+"cpu-synced"), half)
		w.to(d.checkpoint(way+"announced"), kind{record.OnDestination, record.PartAnnounce, ""})
		w.to(d.checkpoint(way+"cache-invalidated"), half)
		if started := d.checkpoint(way + "vm-started"); !started.At.After(w.end.At) { // else RESUME is within it
			w.to(started, half)
		}
	}
	if !w.m.PostCopy {
		w.to(d.said(point{}, "completed"), half)
	}
}

// ways are how QEMU's names of the bottom half's checkpoints begin.
func ways() []string { return []string{"dst-precopy-bh-", "dst-postcopy-bh-"} }

// loaded is when the destination had read everything that it needs before its bottom half.
func (w *walk) loaded() point {
	p := w.destination.checkpoint("dst-precopy-loadvm-completed") // in post-copy too
	for _, way := range ways() {
		if !p.known() {
			p = w.destination.checkpoint(way + "enter")
		}
	}
	return p
}

// started is the end of the destination's bottom half.
func (w *walk) started() (p point) {
	for _, way := range ways() {
		if !p.known() {
			p = w.destination.checkpoint(way + "vm-started")
		}
	}
	return p
}

// arrive is what the destination's events tell of a post-copy without its log.
func (w *walk) arrive(untold kind) {
	first := untold
	if w.handedOver.known() && w.handedOver.by == byTrace {
		first = kind{record.OnLink, record.PartWire, ""}
	}
	w.to(w.destination.said(point{}, "postcopy-device", "postcopy-active"), first)
	w.to(w.destination.said(w.last, "postcopy-active"), untold)
}

// read goes through the destination's sections from when the source has handed over its last byte.
func (w *walk) read(loaded point) {
	wire, devices := kind{record.OnLink, record.PartWire, ""}, kind{record.OnDestination, record.PartDeviceLoad, ""}
	ram := wire // before the last pages: it waits for bytes, or is at earlier pages
	before := wire
	switch last := w.lastByte(loaded); {
	case w.m.PostCopy: // it has the devices in one piece, and says so
		w.to(w.destination.said(point{}, "postcopy-device", "postcopy-active"), wire)
		ram, before = devices, devices
	case last.known():
		w.to(last, wire)
		ram, before = kind{record.OnDestination, record.PartRAMLoad, memory}, devices
	}
	for _, x := range w.destination.spans() {
		switch {
		case !x.section || x.end.At.After(loaded.At) || w.m.PostCopy && x.iterable:
		case x.part == record.PartRAMLoad:
			w.through(x, ram)
		default:
			w.through(x, before)
		}
	}
	w.to(loaded, devices)
}

// lastByte is when the last byte came out of the link that the destination had read by then.
func (w *walk) lastByte(loaded point) point {
	for _, p := range slices.Backward(w.m.Passed) {
		if !p.At.After(loaded.At) {
			return point{p, record.OnLink, w.m.PassedSource}
		}
	}
	return point{}
}

// start goes from there to RESUME.
func (w *walk) start() {
	word := "completed"
	if w.m.PostCopy {
		word = "postcopy-active"
	}
	w.to(w.source.said(point{}, word), kind{record.OnSource, record.PartLastWord, ""})
	loaded := w.loaded().known()
	device := w.destination.said(point{}, "postcopy-device").known() // then it says postcopy-active when it has all
	rest := kind{record.OnDestination, record.PartStart, ""}
	switch cont := ours(w.m.ContSent); {
	case w.m.PostCopy && !loaded && !device: // it loads yet
		rest.part = record.PartUntold
	case cont.known():
		w.to(ours(w.m.Heard), kind{record.OnQmigrate, record.PartNotice, ""})
		w.to(cont, kind{record.OnQmigrate, record.PartDecision, ""})
	case !loaded || !w.started().At.After(w.end.At): // somebody else sent it; QEMU itself would do it in its bottom half
		rest.part = record.PartUntold
	}
	w.to(w.end, rest)
}

// beside are the sections, and what is of them, that ran while the guest waited for something else; and how long the
// vCPUs took to stop.
func (w *walk) beside() (parts []record.AnatomyPart) {
	stop := w.source.point(w.m.Stop, byEvents)
	add := func(begin, end point, k kind) {
		if end.At.Sub(begin.At) > 0 {
			parts = append(parts, record.AnatomyPart{Side: k.side, Part: k.part, Device: k.name,
				Start: record.Of(begin.At.Sub(w.origin)), Duration: end.At.Sub(begin.At), Error: begin.to(end), Source: end.by})
		}
	}
	if begin := w.source.checkpoint("src-downtime-start"); begin.known() && !w.m.StoppedFirst {
		add(begin, stop, kind{record.OnSource, record.PartStopVCPUs, ""})
	}
	for _, x := range append(w.source.spans(), w.destination.spans()...) {
		if !x.section || !x.end.At.After(stop.At) || !x.begin.At.Before(w.end.At) {
			continue
		}
		critical, found := w.critical(x)
		switch {
		case !found:
			add(x.begin, x.end, x.kind)
		case critical.At.Sub(x.begin.At) > seam:
			add(x.begin, critical, x.kind)
		}
	}
	return parts
}

// critical is where a section begins to be waited for.
func (w *walk) critical(x span) (point, bool) {
	for _, p := range w.parts {
		begin := w.origin.Add(*p.Start)
		if (kind{p.Side, p.Part, p.Device}) == x.kind && begin.Before(x.end.At) && begin.Add(p.Duration).After(x.begin.At) {
			at := x.begin
			at.At = begin
			return at, true
		}
	}
	return point{}, false
}
