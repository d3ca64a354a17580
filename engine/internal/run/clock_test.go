package run

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// host is one whose clock is wrong, and whose words are on their way for up to a while.
type host struct {
	origin time.Time
	offset time.Duration
	ppm    float64
	step   time.Duration // after origin; 0: never
	by     time.Duration
	way    time.Duration
	random *rand.Rand
	fails  bool // no more looks
}

func (h *host) shows(t time.Duration) time.Time {
	shown := h.origin.Round(0).Add(t + h.offset + time.Duration(h.ppm*1e-6*float64(t)))
	if h.step != 0 && t >= h.step {
		shown = shown.Add(h.by)
	}
	return shown
}

func (h *host) delay() time.Duration { return time.Duration(h.random.Int64N(int64(h.way))) }

// look is one round trip that begins at t.
func (h *host) look(t time.Duration) (clock.Look, error) {
	if h.fails {
		return clock.Look{}, errors.New("the channel is closed")
	}
	there, back := h.delay(), h.delay()
	middle := h.origin.Add(t + (there+back)/2)
	return clock.Look{Offset: h.shows(t + there).Sub(middle.Round(0)), Error: (there+back)/2 + 1, At: middle}, nil
}

// moves is a migration between two such hosts of which qmigrate sees only words: STOP at 2.3 s, RESUME at 2.4 s; looks at
// 0, 1, 2 and 3 s. The looks of a follower are at other times than those that it is told here: all of them are told at once.
func moves(t *testing.T, src, dst *host, stop, resume time.Duration) *Run {
	t.Helper()
	r := &Run{Rec: &record.Migration{Origin: src.origin}, Src: &Side{Role: record.Source}, Dst: &Side{Role: record.Destination}}
	for s, h := range map[*Side]*host{r.Src: src, r.Dst: dst} {
		s.Endpoint, s.Facts = &endpoint.Endpoint{Name: "unix:" + string(s.Role)}, &facts.Facts{Running: true, Where: endpoint.Elsewhere}
		if h == nil { // it is this machine
			s.Facts.Where = endpoint.Here
			continue
		}
		at := time.Duration(0)
		f, err := clock.Follow(t.Context(), func(context.Context) (clock.Look, error) {
			defer func() { at += time.Second }()
			return h.look(at)
		})
		if err != nil {
			t.Fatal(err)
		}
		s.follower = f
		t.Cleanup(f.Close)
	}
	looks := func(n int) {
		for range n {
			for _, s := range []*Side{r.Src, r.Dst} {
				if s.follower != nil {
					s.follower.Stop(t.Context())
				}
			}
		}
	}
	tell := func(s *Side, h *host, name string, at time.Duration) {
		came, stamp := src.origin.Add(at), src.origin.Round(0).Add(at)
		if h != nil {
			came, stamp = came.Add(h.delay()), h.shows(at).Truncate(time.Microsecond)
		}
		ev := qmp.Event{Name: name, QEMUTime: stamp, Arrived: came}
		s.take(ev, s.at(ev), false)
	}
	looks(2)
	tell(r.Src, src, "STOP", stop)
	r.Rec.Stages = []record.Stage{{Name: record.PreCopy, Duration: r.Src.Stopped.Sub(src.origin)}}
	r.edge = r.Src.Stopped
	tell(r.Dst, dst, "RESUME", resume)
	r.Rec.Stages = append(r.Rec.Stages, record.Stage{Name: record.StopAndCopy, Start: r.Src.Stopped.Sub(src.origin)})
	r.Ended = false
	r.End(r.Dst.started)
	at := src.origin.Add
	r.IssuedAt, r.ContAt = at(20*ms), at(resume-time.Millisecond)
	r.Poll = &poll{src: []answer{{at(stop - 9*ms), at(stop - 8*ms), true}, {at(stop - time.Millisecond), at(stop + 90*ms), false}}}
	r.settleClocks(t.Context())
	r.wire(r.Src.Stopped, r.Dst.started)
	return r
}

func wrong(seed uint64) (src, dst *host) {
	r := rand.New(rand.NewPCG(seed, 1))
	origin := time.Now()
	return &host{origin: origin, offset: 5 * time.Second, ppm: 300, way: time.Duration(1e4 + r.Int64N(1e6)), random: r},
		&host{origin: origin, offset: -time.Hour, ppm: -200, way: time.Duration(1e4 + r.Int64N(1e6)), random: r}
}

const stopAt, resumeAt = 2300 * ms, 2400 * ms

// TestWire: with two clocks that are wrong, and with one, the wire downtime and its second witness are within their
// errors, the stages are those of the events, and nothing is warned of.
func TestWire(t *testing.T) {
	for seed := range uint64(200) {
		src, dst := wrong(seed)
		if seed%2 == 0 {
			dst = nil
		}
		r := moves(t, src, dst, stopAt, resumeAt)
		d, c := r.Rec.Downtime, r.Rec.Clocks
		if len(r.Rec.Warnings) > 0 || d.Wire == nil || d.WireError == nil || d.Arrival == nil || d.ArrivalError == nil ||
			c == nil || c.Source == nil || c.Source.Samples != 4 || c.Source.Drift == nil || (c.Destination == nil) != (dst == nil) {
			t.Fatalf("seed %d: %v, %+v, %+v", seed, r.Rec.Warnings, d, c)
		}
		if off := (*d.Wire - 100*ms).Abs(); off > *d.WireError {
			t.Errorf("seed %d: %v within %v", seed, *d.Wire, *d.WireError)
		}
		if off := (*d.Arrival - 100*ms).Abs(); off > *d.ArrivalError {
			t.Errorf("seed %d: arrival %v within %v", seed, *d.Arrival, *d.ArrivalError)
		}
		if *d.ArrivalError < 9*ms || *d.ArrivalError > 9*ms+src.way {
			t.Errorf("seed %d: arrival within %v", seed, *d.ArrivalError)
		}
		if off := (c.Source.Offset - src.offset).Abs(); off > c.Source.Error+10*time.Microsecond {
			t.Errorf("seed %d: %v within %v", seed, c.Source.Offset, c.Source.Error)
		}
		a, b := r.Rec.Stages[0], r.Rec.Stages[1]
		if a.Duration != r.Src.Stopped.Sub(src.origin) || b.Start != a.Duration || b.Duration != *d.Wire ||
			!r.edge.Equal(r.Dst.started) {
			t.Errorf("seed %d: %+v, wire %v", seed, r.Rec.Stages, *d.Wire)
		}
	}
}

// TestWireStep: a step is warned of. Far from STOP and RESUME it does no harm; about one of them the second witness counts.
func TestWireStep(t *testing.T) {
	for _, by := range []time.Duration{time.Second, -time.Second} {
		for seed := range uint64(20) {
			for name, c := range map[string]struct {
				step   time.Duration
				stamps bool
			}{"early": {500 * ms, true}, "before STOP": {2200 * ms, false}, "between": {2350 * ms, false}, "after": {2700 * ms, false}} {
				src, dst := wrong(seed)
				dst.step, dst.by = c.step, by
				r := moves(t, src, dst, stopAt, resumeAt)
				d, said := r.Rec.Downtime, strings.Join(r.Rec.Warnings, "\n")
				if !strings.Contains(said, "the clock of the destination's host was set") || len(r.Rec.Clocks.Destination.Steps) != 1 {
					t.Fatalf("%s: warns %q", name, said)
				}
				if c.stamps == strings.Contains(said, "by when both were here") || c.stamps == (*d.Wire == *d.Arrival) {
					t.Errorf("%s: %v: warns %q", name, by, said)
				}
				if off := (*d.Wire - 100*ms).Abs(); off > *d.WireError {
					t.Errorf("%s: %v: %v within %v", name, by, *d.Wire, *d.WireError)
				}
			}
		}
	}
}

// TestWitnesses: a clock that was set and set back between two looks is not seen by them; the second witness disagrees.
func TestWitnesses(t *testing.T) {
	src, dst := wrong(1)
	r := moves(t, src, dst, stopAt, resumeAt)
	r.Dst.placed[0].theirs = r.Dst.placed[0].theirs.Add(-time.Second)
	r.Rec.Clocks, r.Rec.Downtime = nil, record.Downtime{}
	r.settleClocks(t.Context())
	r.wire(r.Src.Stopped, r.Dst.started)
	if said := strings.Join(r.Rec.Warnings, "\n"); !strings.Contains(said, "wrong by more than its error") {
		t.Errorf("warns %q", said)
	}
}

// TestUnknownClocks: of a clock that nobody can look at, the stamps count as long as the second witness does not
// contradict them.
func TestUnknownClocks(t *testing.T) {
	for _, off := range []time.Duration{0, 20 * ms, -20 * ms, time.Second} {
		src, dst := wrong(1)
		src.offset, src.ppm, dst.offset, dst.ppm = 0, 0, -off, 0
		r := moves(t, src, dst, stopAt, resumeAt)
		for _, s := range []*Side{r.Src, r.Dst} {
			s.follower = nil
			s.placed[0].Placed = s.place(s.placed[0].theirs, s.placed[0].came)
		}
		r.Rec.Downtime, r.Rec.Warnings = record.Downtime{}, nil
		r.wire(r.Src.placed[0].At, r.Dst.placed[0].At)
		d, said := r.Rec.Downtime, strings.Join(r.Rec.Warnings, "\n")
		if d.Wire == nil || d.Arrival == nil || d.ArrivalError == nil || (d.WireError == nil) != (off == 0 || off < 0) ||
			(d.WireError != nil) != strings.Contains(said, "contradicts") || !strings.Contains(said, "was not measured") {
			t.Errorf("%v: %+v, warns %q", off, d, said)
		}
		if (*d.Wire - 100*ms).Abs() > *d.ArrivalError {
			t.Errorf("%v: wire %v", off, *d.Wire)
		}
	}
}

// TestOrderOfEvents: what a clock does never puts an event before the one that came before it: a source that runs again
// after its STOP runs again.
func TestOrderOfEvents(t *testing.T) {
	s := &Side{Endpoint: &endpoint.Endpoint{}, Facts: &facts.Facts{Where: endpoint.Here}}
	came := time.Now()
	for i, name := range []string{"STOP", "RESUME"} {
		ev := qmp.Event{Name: name, Arrived: came.Add(time.Duration(i) * ms)}
		ev.QEMUTime = ev.Arrived.Round(0).Add(-time.Duration(i) * time.Second) // it was set back, and is no more
		s.take(ev, s.at(ev), false)
	}
	if !s.Again() {
		t.Errorf("STOP at %v, RESUME at %v", s.Stopped, s.Resumed)
	}
}

// TestLookFails: a channel that breaks leaves an error that grows, and a word of it.
func TestLookFails(t *testing.T) {
	src, dst := wrong(2)
	looks := 0
	r := &Run{Rec: &record.Migration{Origin: src.origin}, Src: &Side{Role: record.Source}, Dst: &Side{Role: record.Destination}}
	var err error
	r.Src.follower, err = clock.Follow(t.Context(), func(context.Context) (clock.Look, error) {
		looks++
		dst.fails = looks > 1
		return dst.look(0)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.settleClocks(t.Context())
	if said := strings.Join(r.Rec.Warnings, "\n"); !strings.Contains(said, "the channel is closed") || r.Rec.Clocks.Source.Samples != 1 {
		t.Errorf("warns %q", said)
	}
	near, far := r.Src.place(dst.shows(ms), src.origin.Add(10*ms)), r.Src.place(dst.shows(time.Minute), src.origin.Add(61*time.Second))
	if far.Error < near.Error+50*ms {
		t.Errorf("error %v, and %v a minute later", near.Error, far.Error)
	}
}
