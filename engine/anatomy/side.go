package anatomy

import (
	"slices"

	"qmigrate/engine/record"
)

// told is a side as its log and its events tell it.
type told struct {
	place  record.Place
	marks  []Mark // those that are placed, in the log's order
	events []Status
}

func tell(s Side, place record.Place) told {
	t := told{place: place, events: s.Events}
	for _, m := range s.Marks {
		if !m.At.IsZero() {
			t.marks = append(t.marks, m)
		}
	}
	return t
}

func (t told) point(i Instant, by string) point { return point{Instant: i, clock: t.place, by: by} }

// checkpoint is when the log says that a step was reached: the last time, if there are several.
func (t told) checkpoint(name string) point {
	for _, m := range slices.Backward(t.marks) {
		if m.Event == Checkpoint && m.Name == name {
			return t.point(m.Instant, byTrace)
		}
	}
	return point{}
}

// said is the first event after a point with one of these statuses.
func (t told) said(after point, statuses ...string) point {
	for _, e := range t.events {
		if slices.Contains(statuses, e.Name) && !e.At.Before(after.At) {
			return t.point(e.Instant, byEvents)
		}
	}
	return point{}
}

// span is a section, or the source's look for dirty pages.
type span struct {
	begin, end point
	kind
	section  bool
	iterable bool
}

// spans are the sections that the log has, and the looks for dirty pages, by their beginnings.
func (t told) spans() (all []span) {
	var look point
	for _, m := range t.marks {
		end := t.point(m.Instant, byTrace)
		begin := end
		switch m.Event {
		case SyncStart:
			look = end
		case SyncEnd:
			if look.known() {
				all = append(all, span{look, end, kind{t.place, record.PartRAMSave, memory}, false, false})
			}
			look = point{}
		case Save, Load:
			begin.At = end.At.Add(-m.Took)
			all = append(all, span{begin, end, sectionOf(m.Line), true, m.Iterable})
		}
	}
	slices.SortStableFunc(all, func(a, b span) int { return a.begin.At.Compare(b.begin.At) })
	return all
}

// memory is QEMU's idstr of the guest's memory.
const memory = "ram"

// sectionOf is which part a section is.
func sectionOf(l Line) kind {
	k := kind{record.OnSource, record.PartDeviceSave, l.Section()}
	ram := l.Iterable && l.Name == memory
	switch {
	case l.Event == Load && ram:
		k.side, k.part = record.OnDestination, record.PartRAMLoad
	case l.Event == Load:
		k.side, k.part = record.OnDestination, record.PartDeviceLoad
	case ram:
		k.part = record.PartRAMSave
	}
	return k
}
