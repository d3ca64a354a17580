package observe

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/wire"
)

const (
	agentBin     = 10 * time.Millisecond // in which the agent counts
	timelineBin  = 100 * time.Millisecond
	slow         = 0.95 // of the median before the migration: what is less is a brownout
	leastCounted = 20   // events in a bin, below which one event more or less is 5 % of them
	stillSlow    = 3    // slow bins at the end that make one doubt that the brownout was over
)

// NoteEvents fills in what became of the workload's own events: the timeline, the rates before, during and after,
// blackout and brownout. It asks the guest for the bins that its agent counted since the first of the two looks before
// the migration, and needs the beats to place them. report is how often a program in the guest reports; 0: the agent
// counts its events itself.
func (o *Observers) NoteEvents(ctx context.Context, agent *guest.Agent, rec *record.Migration, before [2]Progress,
	report time.Duration) {
	var stop time.Time
	// in that mode it stopped before, and the beats tell when
	if s := rec.Stage(record.StopAndCopy); s != nil && rec.Mode != record.StopAndCopyMode {
		stop = rec.Origin.Add(s.Start)
	}
	clock := newGuestClock(o.beats.all(), rec.Origin, stop)
	if clock == nil || before[0].Unit == "none" {
		return
	}
	events, err := counted(ctx, agent, clock, before[0].Clock, o.ended)
	if err != nil {
		rec.Warn("no timeline of the guest's events: %v", err)
		return
	}
	if len(events) == 0 {
		return
	}
	var now []Progress
	for range 3 {
		p, err := Look(ctx, agent)
		if err != nil {
			rec.Warn("no timeline of the guest's events: %v", err)
			return
		}
		now = append(now, p)
	}
	uncertain := max(placing(clock, before[:]), placing(clock, now))
	begin, end := rec.Origin, rec.Origin.Add(rec.Total.Wall)
	began := before[0].Answered
	grain, widths := agentBin, []time.Duration{timelineBin, time.Second}
	if report > 0 { // a program's: what lies between two of its reports was shared by time
		grain, widths = report, []time.Duration{report}
	}
	s := eventSeries(events, began, begin, o.ended, widths[0])
	s.Source = fmt.Sprintf("the agent's count (%s), in bins of 10 ms of the guest's clock, placed by its heartbeats",
		before[0].Unit)
	s.EdgeError = &uncertain
	rec.Timeline = append(rec.Timeline, s)
	g := rec.Guest
	if events[0].From.After(begin) {
		rec.Warn("the guest's agent keeps its bins for a time only, and this migration took longer: " +
			"its timeline begins after the first command, the rates before and during are those between two looks, " +
			"and there is no blackout or brownout")
		g.EventsAfter = Rate(events, end, o.ended)
		return
	}
	g.EventsBefore, g.EventsDuring, g.EventsAfter = Rate(events, began, begin), Rate(events, begin, end),
		Rate(events, end, o.ended)
	g.SlowdownPercent = nil
	if b, d := g.EventsBefore, g.EventsDuring; b != nil && d != nil && *b > 0 {
		g.SlowdownPercent = record.Of(100 * (1 - *d / *b))
	}
	if rec.Outcome != record.Completed {
		return
	}
	dark, usual, ok := silence(events, began, begin, end)
	if !ok {
		rec.Warn("the workload was not seen working to the end of the observation: there is no blackout or brownout")
		return
	}
	g.Blackout, g.BlackoutError = record.Of(dark.To.Sub(dark.From)), record.Of(max(2*grain, usual)+uncertain)
	for _, width := range widths {
		if bins := eventSeries(events, began, begin, o.ended, width); brownout(rec, bins, dark) {
			break
		}
	}
}

// counted is what the workload counted from a reading of the guest's clock on, placed on our clock without a hole:
// while the guest was stopped, nothing. It ends with the first bin that is not whole yet, or lies after ended.
func counted(ctx context.Context, agent *guest.Agent, clock *guestClock, from time.Duration, ended time.Time) ([]Span,
	error) {
	var all []Span
	for next, first := int64(0), true; ; first = false {
		var s wire.Status
		ask := wire.Bins{From: next, Max: map[bool]int{true: -1}[first]}
		if err := agent.Call(ctx, wire.DoWorkloadStatus, ask, &s); err != nil {
			return nil, fmt.Errorf("ask the guest for its workload: %w", err)
		}
		if first {
			next = max(int64((from-s.Started)/s.Bin)+1, 0)
			continue
		}
		if s.First > next && len(all) > 0 {
			return nil, fmt.Errorf("the agent has forgotten its bins from %d to %d", next, s.First)
		}
		for i, n := range s.Bins {
			a := s.Started + time.Duration(s.First+int64(i))*s.Bin
			all = append(all, placed(clock, a, a+s.Bin, float64(n))...)
		}
		if next = s.Next; len(s.Bins) == 0 || all[len(all)-1].To.After(ended) {
			return all, nil
		}
	}
}

// placed is one bin of the guest's clock on ours: several spans where it stood still meanwhile. What was counted is
// shared by the guest's time, and the stop itself has none of it.
func placed(clock *guestClock, a, b time.Duration, n float64) []Span {
	var spans []Span
	var ran time.Duration
	at := clock.at(a)
	stops, lengths := clock.stops(a, b)
	for i, s := range append(stops, b) {
		to := at.Add(max(s-a, 0))
		if i == len(stops) {
			if to = clock.at(b); !to.After(at) { // the clocks' difference is known to some noise only
				to = at.Add(1)
			}
		}
		if to.After(at) {
			spans = append(spans, Span{at, to, 1}) // a share, until all are known
			ran += to.Sub(at)
		}
		if at = to; i < len(stops) {
			spans = append(spans, Span{at, at.Add(lengths[i]), 0})
			at = at.Add(lengths[i])
		}
		a = s
	}
	for i := range spans {
		spans[i].N *= n * float64(spans[i].To.Sub(spans[i].From)) / float64(ran)
	}
	return spans
}

// placing is the most by which a reading of the guest's clock may be placed too late: the least that some looks allow.
func placing(clock *guestClock, looks []Progress) time.Duration {
	least := time.Duration(math.MaxInt64)
	for _, p := range looks {
		least = min(least, clock.uncertainty(p.Asked, p.Clock))
	}
	return least
}

// eventSeries is the workload's row of the timeline, with an edge of its bins at the first command.
func eventSeries(counted []Span, began, origin, ended time.Time, bin time.Duration) record.Series {
	from := origin.Add(-origin.Sub(began) / bin * bin)
	return record.Series{Name: "guest_events", Unit: "events/s", Start: from.Sub(origin), Bin: bin,
		Values: Bins(until(counted, ended), from, bin)}
}

// until is what was counted up to an instant.
func until(counted []Span, end time.Time) []Span {
	n := len(counted)
	for n > 0 && counted[n-1].To.After(end) {
		n--
	}
	return counted[:n]
}

// silence is the longest time without an event that overlaps the migration, and the 99th percentile of those before it.
// It is false where what was counted ends before the migration, and where the silence lasts as long as that: how long
// it was is not known then.
func silence(counted []Span, began, begin, end time.Time) (longest Span, usual time.Duration, ok bool) {
	var before []time.Duration
	var run Span
	for _, s := range counted {
		if s.N > 0 {
			run = Span{}
			continue
		}
		if run.From.IsZero() {
			run.From = s.From
		}
		if run.To = s.To; run.To.Before(begin) {
			if s.From == run.From {
				before = append(before, 0)
			}
			before[len(before)-1] = run.To.Sub(run.From)
		}
		if !run.To.Before(begin) && run.From.Before(end) && run.To.Sub(run.From) > longest.To.Sub(longest.From) {
			longest, ok = run, true
		}
	}
	if n := len(counted); n == 0 || counted[n-1].To.Before(end) || ok && !longest.To.Before(counted[n-1].To) {
		return Span{}, 0, false
	}
	if !ok { // a stop shorter than the noise of the clocks
		longest, ok = Span{end, end, 0}, true
	}
	if len(before) > 0 {
		slices.Sort(before)
		usual = before[len(before)*99/100]
	}
	return longest, usual, ok
}

// brownout counts the bins, from the first command on, that have less than 95 % of the median before; those that the
// blackout touches are not among them. Its error is what the same rule would find without a migration: the share of
// slow bins before. It is false where the bins have too few events for the rule.
func brownout(rec *record.Migration, bins record.Series, dark Span) bool {
	var before []float64
	origin := rec.Origin
	for i, v := range bins.Values {
		if bins.Start+time.Duration(i+1)*bins.Bin <= 0 && v != nil {
			before = append(before, *v)
		}
	}
	if len(before) == 0 {
		return false
	}
	slices.Sort(before)
	median := (before[(len(before)-1)/2] + before[len(before)/2]) / 2
	if median*bins.Bin.Seconds() < leastCounted {
		return false
	}
	var found, looked, last int
	for i, v := range bins.Values {
		from := origin.Add(bins.Start + time.Duration(i)*bins.Bin)
		darkened := dark.To.After(dark.From) && dark.From.Before(from.Add(bins.Bin)) && dark.To.After(from)
		if v == nil || from.Before(origin) || darkened {
			continue
		}
		looked++
		if last++; *v < slow*median {
			found++
		} else {
			last = 0
		}
	}
	noise := 0
	for _, v := range before {
		if v < slow*median {
			noise++
		}
	}
	g := rec.Guest
	g.Brownout = record.Of(time.Duration(found) * bins.Bin)
	noisy := float64(looked) * float64(noise) / float64(len(before)) // bins
	g.BrownoutError = record.Of(bins.Bin + time.Duration(noisy*float64(bins.Bin)))
	if last >= stillSlow {
		rec.Warn("the workload was still below 95 %% of its former rate when it was last looked at: " +
			"the brownout may be longer")
	}
	return true
}
