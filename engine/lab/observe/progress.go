package observe

import (
	"context"
	"fmt"
	"slices"
	"time"

	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/wire"
)

// Progress is how far the guest's workload had come.
type Progress struct {
	Events          uint64
	Unit            string        // what an event is
	Asked, Answered time.Time     // this host's clock
	Clock           time.Duration // the guest's, in between
}

// WorkloadError is a workload that ended by its own error: its check of its own result, for one.
type WorkloadError struct{ Name, Text string }

func (e WorkloadError) Error() string {
	return fmt.Sprintf("the guest's workload %s failed: %s", e.Name, e.Text)
}

// Look asks the guest how far its workload has come.
func Look(ctx context.Context, agent *guest.Agent) (Progress, error) {
	p := Progress{Asked: time.Now()}
	var s wire.Status
	if err := agent.Call(ctx, wire.DoWorkloadStatus, wire.Bins{Max: -1}, &s); err != nil {
		return Progress{}, fmt.Errorf("ask the guest for its workload: %w", err)
	}
	if s.State == wire.Failed {
		return Progress{}, WorkloadError{s.Name, s.Error}
	}
	p.Answered, p.Events, p.Clock, p.Unit = time.Now(), s.Events, s.Started+s.Elapsed, s.Unit
	return p, nil
}

// NoteRates writes down the workload's events per second before and during the migration, by this host's clock, and how
// the guest's clock slipped.
func (o *Observers) NoteRates(rec *record.Migration, before [2]Progress, during Progress) {
	rec.Guest = &record.Guest{}
	rate := func(a, b Progress) float64 { return float64(b.Events-a.Events) / b.Answered.Sub(a.Answered).Seconds() }
	if during.Events > 0 && before[1].Events > before[0].Events && during.Events >= before[1].Events {
		b, d := rate(before[0], before[1]), rate(before[1], during)
		rec.Guest.EventsBefore, rec.Guest.EventsDuring = &b, &d
		rec.Guest.SlowdownPercent = record.Of(100 * (1 - d/b))
	}
	// The guest's clock against ours: the least (arrival - guest clock) before and after, so that delays on the way drop
	// out.
	begin, end := rec.Origin, rec.Origin.Add(rec.Total.Wall)
	var first, last []time.Duration
	for _, b := range o.beats.all() {
		lag := b.Arrived.Sub(begin) - b.Clock
		switch {
		case b.Arrived.Before(begin):
			first = append(first, lag)
		case b.Arrived.After(end):
			last = append(last, lag)
		}
	}
	if len(first) > 1 && len(last) > 1 {
		slices.Sort(first)
		slices.Sort(last)
		rec.Guest.ClockSlip = record.Of(last[0] - first[0])
		rec.Guest.ClockSlipError = record.Of(max(first[len(first)/2]-first[0], last[len(last)/2]-last[0]))
	}
}

// Phases are the parts of the observation.
func Phases(rec *record.Migration, began, ended time.Time) []Phase {
	begin, end := rec.Origin, rec.Origin.Add(rec.Total.Wall)
	return []Phase{{record.BeforePhase, began, begin}, {record.DuringPhase, begin, end}, {record.AfterPhase, end, ended}}
}

// Phase is one of them.
type Phase struct {
	Name     record.PhaseName
	From, To time.Time
}

// Has tells whether an instant lies in the phase.
func (p Phase) Has(at time.Time) bool { return !at.Before(p.From) && at.Before(p.To) }
