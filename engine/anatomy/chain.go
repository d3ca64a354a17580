package anatomy

import (
	"time"

	"qmigrate/engine/record"
)

// What told a part, as a record has it.
const (
	byTrace  = "trace"
	byEvents = "events"
	byUs     = "clock of qmigrate"
)

// seam is the longest time between two sections that counts as the later one's: the log's lines are written then, and
// the next section is looked for. What is longer has another reason.
const seam = 50 * time.Microsecond

// tick is how exact a stamp is, and a duration that QEMU has measured itself.
const tick = time.Microsecond

// point is an instant, with the clock that showed it and the source that told it.
type point struct {
	Instant
	clock record.Place
	by    string
}

func (p point) known() bool { return !p.At.IsZero() }

// to is the error of the time from p to q: what is not known of a clock is the same for both if it is one clock.
func (p point) to(q point) time.Duration {
	sum := p.Error + q.Error
	if p.clock == q.clock {
		return min(sum, 2*tick)
	}
	return sum
}

// kind is what a part is, and where.
type kind struct {
	side record.Place
	part record.PartName
	name string // of a section
}

// chain is the critical path as far as it goes: from STOP to its last point, without a gap.
type chain struct {
	origin time.Time
	end    point // RESUME: nothing goes beyond
	last   point
	parts  []record.AnatomyPart
}

// to goes on to a point, and what lies between is one part. A point that is not known, or not later than the last one,
// adds nothing: what ended there ran beside.
func (c *chain) to(p point, k kind) {
	if p.At.After(c.end.At) {
		p = c.end
	}
	if !p.known() || !p.At.After(c.last.At) {
		return
	}
	c.parts = append(c.parts, record.AnatomyPart{Side: k.side, Part: k.part, Device: k.name,
		Start: record.Of(c.last.At.Sub(c.origin)), Duration: p.At.Sub(c.last.At), Error: c.last.to(p), Source: p.by,
		Critical: true})
	c.last = p
}

// gap goes on to a point that is more than a seam away.
func (c *chain) gap(p point, k kind) {
	if p.known() && p.At.Sub(c.last.At) > seam {
		c.to(p, k)
	}
}

// through goes on through a span; what lies before it is of another kind if it is longer than a seam.
func (c *chain) through(s span, before kind) {
	if s.end.At.After(c.last.At) {
		c.gap(s.begin, before)
		c.to(s.end, s.kind)
	}
}
