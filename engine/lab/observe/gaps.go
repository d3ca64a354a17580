package observe

import (
	"slices"
	"time"

	"qmigrate/engine/record"
)

// gap is the longest silence between two arrivals at an observer.
type gap struct {
	from, to time.Time
	// the 99th percentile of the gaps that end before the migration: what is seen without any downtime
	usual time.Duration
}

// longestGap finds the longest silence that overlaps [begin, end]. ok is false if arrivals do not reach around it: a
// stream that broke off has no measured gap.
func longestGap(arrivals []time.Time, begin, end time.Time) (g gap, ok bool) {
	var before []time.Duration
	for i := 1; i < len(arrivals); i++ {
		from, to := arrivals[i-1], arrivals[i]
		switch {
		case to.Before(begin):
			before = append(before, to.Sub(from))
		case from.After(end):
		case to.Sub(from) > g.to.Sub(g.from):
			g.from, g.to = from, to
		}
	}
	if g.to.IsZero() || len(before) == 0 || !arrivals[len(arrivals)-1].After(end) {
		return gap{}, false
	}
	slices.Sort(before)
	g.usual = before[len(before)*99/100]
	return g, true
}

// around takes the longest silence that reaches over the stop apart at STOP and RESUME; ok is false if none was seen
// there.
func around(observer string, arrivals []time.Time, begin, stop, resume time.Time) (x record.Gap, ok bool) {
	x.Observer = observer
	var longest time.Duration
	for i := 1; i < len(arrivals); i++ {
		from, to := arrivals[i-1], arrivals[i]
		switch {
		case to.Before(begin) || from.After(resume):
		case to.Before(stop):
			if d := to.Sub(from); x.BeforeStop == nil || d > *x.BeforeStop {
				x.BeforeStop = record.Of(d)
			}
		case to.Sub(from) > longest:
			longest, ok = to.Sub(from), true
			x.Before = max(stop.Sub(from), 0)
			x.After = max(to.Sub(resume), 0)
			x.During = longest - x.Before - x.After
		}
	}
	return x, ok
}

// noteSilence writes down the longest silence of one observer's arrivals in a migration that has completed.
func noteSilence(rec *record.Migration, observer string, arrivals []time.Time, value, uncertainty **time.Duration) {
	if rec.Outcome != record.Completed {
		return
	}
	begin, stop, end := rec.Origin, rec.End(record.PreCopy), rec.End(record.Activation)
	if g, ok := longestGap(arrivals, begin, end); ok {
		g.put(rec, observer, value, uncertainty)
	}
	if rec.Downtime.Wire == nil {
		return
	}
	if x, ok := around(observer, arrivals, begin, stop, end); ok {
		rec.Network.Gaps = append(rec.Network.Gaps, x)
	}
}

func (g gap) length() time.Duration { return g.to.Sub(g.from) }

// put writes the gap into a downtime and its error. A longest gap that lies elsewhere than around the stop is a doubt.
func (g gap) put(rec *record.Migration, what string, value, uncertainty **time.Duration) {
	*value, *uncertainty = record.Of(g.length()), record.Of(g.usual)
	stop, resume := rec.End(record.PreCopy), rec.End(record.Activation)
	if !stop.IsZero() && (g.to.Before(stop) || g.from.After(resume)) {
		rec.Warn("%s: the longest gap was not around the stop: it began %s after the first command", what,
			g.from.Sub(rec.Origin).Round(time.Millisecond))
	}
}

// NoteStall writes down how long a guest sent no heartbeat while it was being saved.
func (o *Observers) NoteStall(rec *record.Migration, stall, uncertainty **time.Duration) {
	if o == nil {
		return
	}
	stage := rec.Stage(record.Snapshot)
	if g, ok := longestGap(o.beats.arrivals(), rec.Origin.Add(stage.Start), rec.End(record.Snapshot)); ok {
		g.put(rec, "heartbeat", stall, uncertainty)
	}
}

// NoteFailover writes down what was counted on the link, and the longest silences between two instants around a
// failover; zero: there was none.
func (o *Observers) NoteFailover(rec *record.Migration, begin, end time.Time) {
	rec.Network = &record.Network{}
	o.pings.count(rec.Network)
	o.echoes.count(rec.Network)
	if end.IsZero() {
		return
	}
	if g, ok := longestGap(o.pings.arrivals(), begin, end); ok {
		rec.Downtime.Ping, rec.Downtime.PingError = record.Of(g.length()), record.Of(g.usual)
	}
	if g, ok := longestGap(o.echoes.arrivals(), begin, end); ok {
		rec.Downtime.TCP, rec.Downtime.TCPError = record.Of(g.length()), record.Of(g.usual)
	}
}
