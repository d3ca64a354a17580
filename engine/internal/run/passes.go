package run

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

func (r *Run) TimedSyncs() bool { return fit.TimedSyncs(r.Plan, r.Src.Facts) }

// turned leaves of the edges those that end a pass by the samples (policy.Turns).
func turned(edges []PassEdge, samples []record.Sample) (kept []PassEdge) {
	var turns policy.Turns
	for i := range samples {
		if !turns.Ends(&samples[i]) {
			continue
		}
		n := slices.IndexFunc(edges, func(e PassEdge) bool { return int64(e.Raw) == *samples[i].SyncCount })
		if n >= 0 {
			kept = append(kept, edges[n])
		}
	}
	return kept
}

// PassEdge is one MIGRATION_PASS: the instant of a bitmap sync.
type PassEdge struct {
	Raw int // QEMU's own number
	At  time.Time
}

// passes derives the passes from the edges and the samples.
//
// A pass is the sending of the pages that one bitmap sync found. QEMU 7.2 to 10.2 announce every sync, the one at
// set-up and the one after STOP included; 11.1 announces neither of these two. So the rule, which holds for both: a
// pass begins at `migrate` (the set-up's copy of all RAM; an edge with the raw number 1 only confirms it), at each edge
// after that, and at STOP (an edge after STOP only confirms it). The sync on which QEMU decides to stop opens no pass,
// for nothing is sent between it and STOP. It is told from others by time: had QEMU gone on, it would have had more to
// send than fits into downtime-limit, so the last edge before STOP is that decision if it came less than half a
// downtime-limit before.
//
// A pass's bytes are the difference of `transferred` between its first sample and the next pass's first sample; they
// are off by what was sent between an edge and the sample that the edge asked for. During the last pass QEMU does not
// answer, so that pass counts from the last sample before STOP.
func passes(begin, stop, end time.Time, limit time.Duration, edges []PassEdge, samples []record.Sample,
	last *qmp.MigrationInfo, origin time.Time) []record.Pass {
	if begin.IsZero() || end.Before(begin) {
		return nil
	}
	type span struct {
		at      time.Time
		stopped bool
	}
	spans := []span{{at: begin, stopped: !stop.IsZero() && !stop.After(begin)}}
	for _, e := range edges {
		if e.Raw > 1 && e.At.After(begin) && (stop.IsZero() || e.At.Before(stop)) {
			spans = append(spans, span{at: e.At})
		}
	}
	if stop.After(begin) {
		if n := len(spans) - 1; n > 0 && stop.Sub(spans[n].at) < limit/2 {
			spans = spans[:n]
		}
		spans = append(spans, span{at: stop, stopped: true})
	}

	out := make([]record.Pass, 0, len(spans))
	firsts := make([]*record.Sample, 0, len(spans)) // first sample of each pass
	next := 0
	for i, s := range spans {
		until := end
		if i+1 < len(spans) {
			until = spans[i+1].at
		}
		p := record.Pass{Pass: len(out) + 1, Start: s.at.Sub(origin), Duration: until.Sub(s.at), Stopped: s.stopped}
		var first *record.Sample
		for ; next < len(samples) && samples[next].Asked < until.Sub(origin); next++ {
			x := &samples[next]
			// one answered in the next pass tells of that
			if x.Asked < p.Start || x.T > until.Sub(origin) || x.Transferred == nil {
				continue
			}
			if first == nil {
				first, p.DirtyPages = x, record.Of(*x.Remaining/facts.PageSize)
			}
			p.Remaining, p.Throttle = x.Remaining, x.Throttle
			p.Samples++
		}
		out, firsts = append(out, p), append(firsts, first)
	}
	edge := func(i int) *int64 { // `transferred` when pass i began
		switch {
		case i == 0:
			return record.Of(int64(0))
		case i == len(out):
			if last == nil || !last.Has.Contains(qmp.FieldTransferred) {
				return nil
			}
			return record.Of(last.Transferred)
		case firsts[i] != nil && !out[i].Stopped:
			return firsts[i].Transferred
		}
		return before(samples, out[i].Start, transferred)
	}
	for i := range out {
		p := &out[i]
		from, to := edge(i), edge(i+1)
		if from == nil || to == nil || *to < *from {
			continue
		}
		p.Transferred = record.Of(*to - *from)
		if p.Duration > 0 {
			p.Throughput = record.Of(float64(*p.Transferred) / p.Duration.Seconds())
		}
	}
	if n := len(out) - 1; last != nil && last.Has.Contains(qmp.FieldTransferred) && last.Status == "completed" {
		out[n].Remaining = record.Of(int64(0))
		if sent := before(samples, out[n].Start, func(x *record.Sample) *int64 { return x.Pages }); sent != nil {
			out[n].DirtyPages = record.Of(last.Normal + last.Duplicate - *sent) // what the last pass sent is what it found
		}
	}
	return out
}

// before is a value of the last sample, answered before t, that has it: one that waited over an edge tells of what came
// after.
func before(samples []record.Sample, t time.Duration, value func(*record.Sample) *int64) (v *int64) {
	for i := range samples {
		if samples[i].T > t {
			break
		}
		if x := value(&samples[i]); x != nil {
			v = x
		}
	}
	return v
}

func transferred(x *record.Sample) *int64 { return x.Transferred }

// figures fills in the totals, passes and downtimes from what was collected.
func (r *Run) figures(last *qmp.MigrationInfo) {
	rec, p := r.Rec, r.Poll
	if p != nil {
		rec.Samples, rec.Sampling = p.samples, p.sampling()
	}
	if !r.Issued {
		return // what the source tells is of an earlier migration
	}
	if r.TimedSyncs() && p != nil {
		r.Passes = turned(r.Passes, p.samples)
	}
	if r.Split && !r.ranThere().IsZero() {
		r.splitPasses(last)
	} else {
		rec.Passes = passes(r.IssuedAt, r.Src.Stopped, r.lastPassEnd(), r.Plan.DowntimeLimit, r.Passes, rec.Samples, last,
			rec.Origin)
	}
	if r.Midway {
		r.halvePass()
	}
	if last != nil && last.Has.Contains(qmp.FieldTransferred) {
		t := &rec.Total
		t.Transferred, t.Normal, t.Duplicate = record.Of(last.Transferred), record.Of(last.Normal), record.Of(last.Duplicate)
		t.DirtySyncs = record.Of(last.DirtySyncCount)
		if last.PostcopyBytes > 0 {
			t.Postcopy = record.Of(last.PostcopyBytes)
		}
		if rec.PostCopy != nil && last.Has.Contains(qmp.FieldPostcopyRequests) {
			rec.PostCopy.Requests = record.Of(last.PostcopyRequests)
		}
		if last.MultifdBytes > 0 {
			t.Multifd = record.Of(last.MultifdBytes)
		}
	}
	switch {
	case last != nil && last.Status == "completed" && last.TotalTime > 0:
		rec.Total.QEMUTotal, rec.Total.QEMUSetup = record.Of(last.TotalTime), record.Of(last.SetupTime)
	case r.Watched && (r.Src.Done() || r.Dst.Done()): // the source was gone before it could be asked
		last = &qmp.MigrationInfo{}
	default:
		return
	}
	r.downtimes(last)
	if r.Src.sub.Dropped()+r.Dst.sub.Dropped() > 0 {
		rec.Warn("%d events of the source's monitor and %d of the destination's were lost: the passes may be incomplete",
			r.Src.sub.Dropped(), r.Dst.sub.Dropped())
	}
}

// downtimes fills in what the two QEMUs tell of the downtime: from the last STOP before the switch-over to the first
// RESUME after it. A guest that did not run before or does not run after has none.
func (r *Run) downtimes(last *qmp.MigrationInfo) {
	rec, d := r.Rec, &r.Rec.Downtime
	switch {
	case rec.Mode == record.COLOMode, r.Dst.Facts == nil && !r.Watched, !r.Src.Facts.Running: // many stops; a file; none
		return
	}
	if r.Held != "" || !r.Src.Asleep.IsZero() {
		rec.Warn("the guest stood still when the switch-over came: no downtime is measured")
		return
	}
	if !r.Src.Stopped.IsZero() && !r.Dst.started.IsZero() {
		r.wire(r.Src.Stopped, r.Dst.started)
	}
	// QEMU's ends before the destination runs, in post-copy. 7.2 tells hours there (seen on 7.2.22), and 10.0 the time
	// until all had come, if it was below 1 ms (migration_downtime_end; seen on 10.0.2).
	longest := rec.Total.Wall
	if r.Split && d.Wire != nil {
		longest = *d.Wire + r.Src.StampError(r.Src.Stopped) + r.Dst.StampError(r.Dst.started) + time.Millisecond
	}
	if last.Has.Contains(qmp.FieldDowntime) && last.Downtime > longest {
		rec.Warn("query-migrate says that the downtime was %s, and it was no longer than %s: not kept", last.Downtime,
			longest)
	} else if last.Has.Contains(qmp.FieldDowntime) {
		d.QEMU, d.QEMUError = record.Of(last.Downtime), record.Of(time.Millisecond) // the wire's unit
	}
	if p := r.Poll; p != nil && r.Dst.Facts != nil && !r.Midway {
		if down, e, ok := bracket(p.src, p.dst, r.Src.ran, r.Dst.halted); ok {
			d.Status, d.StatusError = record.Of(down), record.Of(e)
		} else if !r.Src.ran.IsZero() || !r.Dst.halted.IsZero() {
			rec.Warn("the guest was stopped more than once, and query-status does not tell these stops apart: its downtime is left out")
		}
	}
}

// ranThere is when the destination began to run a guest whose memory followed it. If the destination is not watched it
// is not known; then it is when the source stopped, or when we came.
func (r *Run) ranThere() time.Time {
	if r.Dst.started.IsZero() && r.Watched && (r.Dst.Facts == nil || r.Midway) {
		return Later(r.Src.Stopped, r.Rec.Origin)
	}
	return r.Dst.started
}

// halvePass leaves out of the first pass what is of its part that was not seen: its bytes count from the first sample,
// and how many pages it found is not known.
func (r *Run) halvePass() {
	if len(r.Rec.Passes) == 0 {
		return
	}
	p := &r.Rec.Passes[0]
	p.DirtyPages = nil
	i := slices.IndexFunc(r.Rec.Samples, func(x record.Sample) bool { return x.Transferred != nil })
	if p.PostCopy { // splitPasses counts from that sample
		return
	}
	if i < 0 || p.Transferred == nil || *p.Transferred < *r.Rec.Samples[i].Transferred || p.Duration <= 0 {
		p.Transferred, p.Throughput = nil, nil
		return
	}
	p.Transferred = record.Of(*p.Transferred - *r.Rec.Samples[i].Transferred)
	p.Throughput = record.Of(float64(*p.Transferred) / p.Duration.Seconds())
}

// splitPasses derives the passes of a post-copy: those until the guest ran on the destination, and one for all that
// followed it. QEMU answers in post-copy, so the first sample after RESUME tells how much had been sent by then.
func (r *Run) splitPasses(last *qmp.MigrationInfo) {
	rec, ran, stop := r.Rec, r.ranThere(), r.Src.Stopped
	if stop.Equal(ran) { // the pass between them is not known
		stop = time.Time{}
	}
	resumed := ran.Sub(rec.Origin)
	i := slices.IndexFunc(rec.Samples, func(x record.Sample) bool { return x.Asked >= resumed && x.Transferred != nil })
	var then *qmp.MigrationInfo
	if i >= 0 {
		then = &qmp.MigrationInfo{Has: qmp.FieldTransferred, Transferred: *rec.Samples[i].Transferred}
	}
	if ran.After(r.IssuedAt) {
		rec.Passes = passes(r.IssuedAt, stop, ran, r.Plan.DowntimeLimit, r.Passes, rec.Samples, then, rec.Origin)
	}
	end := Later(Later(r.Src.Completed, r.Dst.Completed), ran)
	if !r.Arrived() {
		end = Later(r.edge, end)
	}
	p := record.Pass{Pass: len(rec.Passes) + 1, Start: resumed, Duration: end.Sub(ran), PostCopy: true}
	for _, x := range rec.Samples {
		if x.Asked >= resumed && x.Transferred != nil && x.T <= end.Sub(rec.Origin) {
			p.Remaining = x.Remaining
			p.Samples++
		}
	}
	if i >= 0 {
		p.DirtyPages = record.Of(*rec.Samples[i].Remaining / facts.PageSize)
		if last != nil && last.Has.Contains(qmp.FieldTransferred) {
			p.Transferred = record.Of(last.Transferred - then.Transferred)
			if p.Duration > 0 {
				p.Throughput = record.Of(float64(*p.Transferred) / p.Duration.Seconds())
			}
		}
	}
	if r.Arrived() {
		p.Remaining = record.Of(int64(0))
	}
	rec.Passes = append(rec.Passes, p)
}

// lastPassEnd is when the last pass's bytes were all there: both sides had completed, or else the end of what we know.
func (r *Run) lastPassEnd() time.Time {
	if r.Src.Completed.IsZero() {
		return r.edge
	}
	return r.Src.Completed
}

// warnUntimed says of which sides the clock is not ours and was not measured.
func (r *Run) warnUntimed(src, dst bool) {
	var names []string
	for _, s := range []struct {
		untimed bool
		side    *Side
	}{{src, r.Src}, {dst, r.Dst}} {
		if s.untimed {
			names = append(names, fmt.Sprintf("%s %s", s.side.Role, s.side.Endpoint.Name))
		}
	}
	text := "has no error figure"
	if r.Rec.Downtime.WireError != nil {
		text = "is by when STOP and RESUME were here, which contradicts QEMU's stamps"
	}
	r.Rec.Warn("the wire downtime %s: the clock of %s is not known to be this machine's, and was not measured", text,
		strings.Join(names, " and of "))
}
