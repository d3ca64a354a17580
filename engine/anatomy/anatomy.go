package anatomy

import (
	"cmp"
	"slices"
	"time"

	"qmigrate/engine/record"
)

// Instant is an instant on our clock.
type Instant struct {
	At    time.Time     // zero: it is not known, or did not come
	Error time.Duration // either way
}

// Mark is a line of a trace log, placed on our clock.
type Mark struct {
	Line
	Instant // when the line was written; zero: the log has no stamps, or its clock was set about then
}

// Status is an event MIGRATION.
type Status struct {
	Name string // its status
	Instant
}

// Side is what one QEMU tells.
type Side struct {
	Marks  []Mark   // of its trace log, in its order, those of this migration alone; none: there is no log
	Events []Status // in their order
}

// Migration is what is known of one migration.
type Migration struct {
	Origin       time.Time // the first command: each part's start is counted from it
	Stop, Resume Instant   // STOP of the source, the first RESUME of the destination
	// The wire downtime, and what is not known of it. Where it is not Resume less Stop, because a clock was set
	// meanwhile, nothing is placed, and all of it is untold.
	Wire, WireError time.Duration

	Source, Destination Side

	ReturnPath bool // the source says `completed` after the destination's last word
	PostCopy   bool // it went over to post-copy

	// Where the guest was stopped before `migrate` was sent:
	StoppedFirst bool
	Stopped      time.Time // the answer to our `stop` was here; zero: it is not known
	Issued       time.Time // `migrate` was sent

	Heard    time.Time // the last of the events that `cont` waited for was here; zero: it is not known
	ContSent time.Time // our `cont` was sent; zero: somebody else sent it

	// When bytes of the stream came out of the link at the destination, in order, the last of them at least; none:
	// nobody looked.
	Passed       []Instant
	PassedSource string // what told it, for the record: frames
}

// Take takes the downtime of a migration apart. The critical parts, in their order, follow each other from STOP to
// RESUME, and their durations sum to the wire downtime. Among them stand the parts that ran beside, by when they began;
// those of which only the duration is known come last. Nil: there was no wire downtime.
func Take(m Migration) []record.AnatomyPart {
	switch {
	case m.Wire <= 0:
		return nil
	case m.Resume.At.Sub(m.Stop.At) != m.Wire:
		start := m.Stop.At.Sub(m.Origin)
		whole := record.AnatomyPart{Side: record.OnSource, Part: record.PartUntold, Start: &start, Duration: m.Wire,
			Error: m.WireError, Source: byEvents, Critical: true}
		return slices.Concat([]record.AnatomyPart{whole}, lengths(m.Source.Marks, true), lengths(m.Destination.Marks, true))
	}
	w := walk{m: m, source: tell(m.Source, record.OnSource), destination: tell(m.Destination, record.OnDestination)}
	contradicted := w.contradicted()
	if contradicted {
		w.destination.marks = nil
	}
	w.chain = chain{origin: m.Origin, last: w.source.point(m.Stop, byEvents),
		end: w.destination.point(m.Resume, byEvents)}
	w.stoppedFirst()
	w.save()
	w.load()
	w.start()
	all := append(w.parts, w.beside()...)
	slices.SortStableFunc(all, func(a, b record.AnatomyPart) int { return cmp.Compare(*a.Start, *b.Start) })
	return slices.Concat(all, lengths(m.Source.Marks, false), lengths(m.Destination.Marks, contradicted))
}

// lengths are the sections of a log of which only the durations are known: those that are not placed, or all.
func lengths(marks []Mark, all bool) (parts []record.AnatomyPart) {
	for _, m := range marks {
		if m.Took > 0 && (all || m.At.IsZero()) {
			k := sectionOf(m.Line)
			parts = append(parts, record.AnatomyPart{Side: k.side, Part: k.part, Device: k.name, Duration: m.Took,
				Error: tick, Source: byTrace})
		}
	}
	return parts
}
