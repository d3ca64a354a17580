package observe

import (
	"sync"
	"time"

	"qmigrate/engine/record"
)

// A Tally is what one observer counts while a guest is migrated: Tallies.Row makes one, Add fills it, and Tallies.Note
// makes it a Series of the record's timeline. Its bins begin where the first Add did, so that a tool's own intervals
// are the bins if it keeps to them.
type Tally struct {
	name, unit, source string
	bin                time.Duration

	mu    sync.Mutex
	spans []Span
}

// Tallies are the rows that the timeline of every migration of one guest has. The zero value has none.
type Tallies struct {
	all []*Tally
}

// Row is the tally of that name, made if there is none: its values are what is counted a second, in unit (events/s,
// bytes/s), in bins of that width. Source says who counts, by which clock. An observer of a tool that prints once a
// second calls Add with the arrivals of two lines and what the later one counted.
func (t *Tallies) Row(name, unit, source string, bin time.Duration) *Tally {
	for _, row := range t.all {
		if row.name == name {
			return row
		}
	}
	row := &Tally{name: name, unit: unit, source: source, bin: bin}
	t.all = append(t.all, row)
	return row
}

// Note puts what was counted into the record, from an instant on, and forgets it.
func (t *Tallies) Note(rec *record.Migration, from time.Time) {
	for _, row := range t.all {
		var spans []Span
		for _, s := range row.Take() {
			if s.To.After(from) {
				spans = append(spans, s)
			}
		}
		if len(spans) > 0 {
			rec.Timeline = append(rec.Timeline, record.Series{Name: row.name, Unit: row.unit, Source: row.source, Bin: row.bin,
				Start: spans[0].From.Sub(rec.Origin), Values: Bins(spans, spans[0].From, row.bin)})
		}
	}
}

// Add counts n between two instants, spread evenly. For a value that held, such as a percentage, n is the value times
// the seconds. It may be called at any time, from any goroutine.
func (t *Tally) Add(from, to time.Time, n float64) {
	if !to.After(from) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spans = append(t.spans, Span{from, to, n})
}

// Take returns what was counted and forgets it.
func (t *Tally) Take() []Span {
	t.mu.Lock()
	defer t.mu.Unlock()
	spans := t.spans
	t.spans = nil
	return spans
}
