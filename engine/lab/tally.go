package lab

import (
	"math"
	"sync"
	"time"

	"qmigrate/engine/record"
)

// A Tally is what one observer counts while a guest is migrated: Lab.Tally makes one, Add fills it, and Lab.Migrate makes it a Series of
// the record's timeline. Its bins begin where the first Add did, so that a tool's own intervals are the bins if it keeps to them.
type Tally struct {
	name, unit, source string
	bin                time.Duration

	mu    sync.Mutex
	spans []span
}

// span is a time in which something was counted, on this process's clock.
type span struct {
	from, to time.Time
	n        float64
}

// Tally registers a row of the timeline of each migration to come: its values are what is counted a second, in unit (events/s, bytes/s), in bins of
// that width. Source says who counts, by which clock. An observer of a tool that prints once a second calls Add with the arrivals of two
// lines and what the later one counted.
func (l *Lab) Tally(name, unit, source string, bin time.Duration) *Tally {
	t := &Tally{name: name, unit: unit, source: source, bin: bin}
	l.tallies = append(l.tallies, t)
	return t
}

// Add counts n between two instants, spread evenly. For a value that held, such as a percentage, n is the value times the seconds. It may be
// called at any time, from any goroutine.
func (t *Tally) Add(from, to time.Time, n float64) {
	if !to.After(from) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spans = append(t.spans, span{from, to, n})
}

// take returns what was counted and forgets it.
func (t *Tally) take() []span {
	t.mu.Lock()
	defer t.mu.Unlock()
	spans := t.spans
	t.spans = nil
	return spans
}

// addTallies puts what was counted into the record, from an instant on.
func (l *Lab) addTallies(rec *record.Migration, from time.Time) {
	for _, t := range l.tallies {
		var spans []span
		for _, s := range t.take() {
			if s.to.After(from) {
				spans = append(spans, s)
			}
		}
		if len(spans) > 0 {
			rec.Timeline = append(rec.Timeline, record.Series{Name: t.name, Unit: t.unit, Source: t.source, Bin: t.bin,
				Start: spans[0].from.Sub(rec.Origin), Values: binned(spans, spans[0].from, t.bin)})
		}
	}
}

// binned is what was counted a second in each bin from an instant to the last span's end; a span counts into each of its bins by its share in
// it. A bin that is not wholly covered by spans was not observed.
func binned(spans []span, from time.Time, bin time.Duration) []*float64 {
	var end time.Duration
	for _, s := range spans {
		end = max(end, s.to.Sub(from))
	}
	n := int(end / bin)
	sums, covered := make([]float64, n), make([]time.Duration, n)
	for _, s := range spans {
		length := s.to.Sub(s.from)
		if length <= 0 { // nothing can be shared out over it
			continue
		}
		a, b := s.from.Sub(from), s.to.Sub(from)
		for i := max(int(math.Floor(float64(a)/float64(bin))), 0); i < n && time.Duration(i)*bin < b; i++ {
			in := min(b, time.Duration(i+1)*bin) - max(a, time.Duration(i)*bin)
			sums[i] += s.n * float64(in) / float64(length)
			covered[i] += in
		}
	}
	values := make([]*float64, n)
	for i := range values {
		if covered[i] >= bin { // more where two observers counted at once
			values[i] = record.Of(math.Round(sums[i]/bin.Seconds()*1000) / 1000) // nothing here is known better
		}
	}
	return values
}
