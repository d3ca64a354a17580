package clock

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

const (
	us = time.Microsecond
	ms = time.Millisecond
)

// world is a host's clock that is off, drifts, and may be stepped, behind a channel with random delays.
type world struct {
	base   time.Time // ours, at the beginning
	offset time.Duration
	ppm    float64
	step   time.Duration // after base; 0: none
	by     time.Duration
	random *rand.Rand
	delay  time.Duration // the longest of one way
}

// shows is what the host's clock shows at x after base.
func (w *world) shows(x time.Duration) time.Time {
	t := w.base.Round(0).Add(x + w.offset + time.Duration(w.ppm*1e-6*float64(x)))
	if w.step != 0 && x >= w.step {
		t = t.Add(w.by)
	}
	return t
}

// looks are those of every second, each the best of some round trips whose two ways have nothing to do with each other.
func (w *world) look(x time.Duration, trips int) (l Look) {
	for range trips {
		there, back := time.Duration(w.random.Int64N(int64(w.delay))), time.Duration(w.random.Int64N(int64(w.delay)))
		trip := there + back
		if l.At.IsZero() || trip/2 < l.Error {
			middle := w.base.Add(x + trip/2)
			l.Offset, l.Error, l.At = w.shows(x+there).Sub(middle.Round(0)), trip/2+1, middle
		}
		x += trip
	}
	return l
}

func (w *world) looks(to time.Duration) (all []Look) {
	for x := time.Duration(0); x <= to; x += time.Second {
		all = append(all, w.look(x, 4))
	}
	return all
}

// TestWithinError: whatever the delays of either way are, each instant between the first look and the last is placed
// within the stated error, and so are the offset, the drift, and what comes after the last look.
func TestWithinError(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 12))
		w := &world{base: time.Now(), offset: time.Duration(r.Int64N(2e10) - 1e10), ppm: r.Float64()*1000 - 500, random: r,
			delay: time.Duration(1e3 + r.Int64N(1e8))}
		to := time.Duration(r.Int64N(20e9))
		f := Compare(w.looks(to))
		if len(f.Steps) > 0 {
			t.Fatalf("seed %d: steps %+v", seed, f.Steps)
		}
		if off := (f.Offset() - w.offset).Abs(); off > f.Error()+time.Duration(1e-3*float64(w.delay)*8)+1 {
			t.Errorf("seed %d: offset is off by %v, error %v", seed, off, f.Error())
		}
		if ppm, e, ok := f.Drift(); ok && math.Abs(ppm-w.ppm) > e+1e-3 {
			t.Errorf("seed %d: drift %v within %v, is %v", seed, ppm, e, w.ppm)
		}
		for range 50 {
			x := time.Duration(r.Int64N(int64(to + 3*time.Second)))
			p := f.Place(w.shows(x), w.base.Add(x+time.Duration(r.Int64N(int64(w.delay)))))
			if off := p.At.Sub(w.base.Add(x)).Abs(); p.Doubtful || off > p.Error+2 {
				t.Fatalf("seed %d: %v after the first look is off by %v, %+v", seed, x, off, p)
			}
			if l, at := f.lines[0], p.At; p.Error > f.Error() && !at.Before(f.at(l.from())) && !at.After(f.at(l.to())) {
				t.Fatalf("seed %d: error %v is more than the greatest, %v", seed, p.Error, f.Error())
			}
		}
	}
}

// TestErrorIsSmall: the error is not kept by being large: about half a round trip where the delays are what they
// mostly are, and the drift is known the better the longer it lasted.
func TestErrorIsSmall(t *testing.T) {
	w := &world{base: time.Now(), offset: 5 * time.Second, ppm: 300, random: rand.New(rand.NewPCG(1, 2)), delay: 200 * us}
	f := Compare(w.looks(20 * time.Second))
	ppm, e, ok := f.Drift()
	if !ok || e > 30 || math.Abs(ppm-300) > 10 || f.Error() > 250*us || (f.Offset()-w.offset).Abs() > 100*us {
		t.Errorf("offset %v within %v, drift %v within %v", f.Offset(), f.Error(), ppm, e)
	}
	if f := Compare(w.looks(0)); len(f.lines) != 1 || f.Error() > 200*us {
		t.Errorf("one look: %+v", f)
	} else if _, _, ok := f.Drift(); ok {
		t.Error("one look tells a drift")
	}
}

// TestSteps: a step is found, with how far it went. An instant that was surely before it or after it is placed as well
// as ever; one between the looks around it is doubtful, and is when its word came.
func TestSteps(t *testing.T) {
	for _, by := range []time.Duration{time.Second, -time.Second, 20 * ms, -20 * ms, time.Hour, -time.Hour} {
		for seed := range uint64(20) {
			r := rand.New(rand.NewPCG(seed, 3))
			w := &world{base: time.Now(), offset: 5 * time.Second, ppm: 300, step: 5500 * ms, by: by, random: r, delay: 500 * us}
			f := Compare(w.looks(10 * time.Second))
			if len(f.Steps) != 1 || (f.Steps[0].By-by).Abs() > f.Steps[0].Error {
				t.Fatalf("%v: steps %+v", by, f.Steps)
			}
			if s := f.Steps[0]; s.From.After(w.base.Add(w.step)) || s.To.Before(w.base.Add(w.step)) {
				t.Errorf("%v: between %v and %v", by, s.From.Sub(w.base), s.To.Sub(w.base))
			}
			for range 200 {
				x := time.Duration(r.Int64N(9e9))
				came := w.base.Add(x + 200*us)
				p := f.Place(w.shows(x), came)
				near := x > 4990*ms && x < 6010*ms
				if p.Doubtful && (!near || !p.At.Equal(came)) || x > 5010*ms && x < 5990*ms && !p.Doubtful {
					t.Fatalf("%v: %v: %+v", by, x, p)
				}
				if off := p.At.Sub(w.base.Add(x)).Abs(); !p.Doubtful && off > p.Error+2 {
					t.Fatalf("%v: %v is off by %v: %+v", by, x, off, p)
				}
				p = f.Place(w.shows(x), time.Time{}) // it is not known when word of it came
				if off := p.At.Sub(w.base.Add(x)).Abs(); off > p.Error+2 {
					t.Fatalf("%v: %v is off by %v, unknown when it came: %+v", by, x, off, p)
				}
			}
		}
	}
}

// TestSmallStep: what is too small to be told from a bad look makes the error larger.
func TestSmallStep(t *testing.T) {
	w := &world{base: time.Now(), step: 5500 * ms, by: 1100 * us, random: rand.New(rand.NewPCG(1, 2)), delay: 400 * us}
	f := Compare(w.looks(10 * time.Second))
	if len(f.Steps) != 0 || f.Error() < 300*us {
		t.Errorf("%v, error %v", f.Steps, f.Error())
	}
}

// TestOurClock: looks at our own clock give no fit, and nobody follows it.
func TestOurClock(t *testing.T) {
	if Compare(nil) != nil || Compare([]Look{{}, {}}) != nil {
		t.Error("there is nothing to compare")
	}
	n := 0
	f, err := Follow(t.Context(), func(context.Context) (Look, error) { n++; return Look{}, nil })
	if err != nil || f.Fit() != nil {
		t.Errorf("%v, %v", f.Fit(), err)
	}
	f.Stop(t.Context())
	f.Close()
	if n != 1 {
		t.Errorf("%d looks", n)
	}
}

// TestFollow: the first look must succeed, a later one need not, and Stop takes the last one.
func TestFollow(t *testing.T) {
	bad := errors.New("bad")
	if _, err := Follow(t.Context(), func(context.Context) (Look, error) { return Look{}, bad }); !errors.Is(err, bad) {
		t.Error(err)
	}
	w := &world{base: time.Now(), random: rand.New(rand.NewPCG(1, 2)), delay: 400 * us}
	n := 0
	f, err := Follow(t.Context(), func(context.Context) (Look, error) {
		if n++; n == 3 {
			return Look{}, bad
		}
		return w.look(time.Since(w.base), 4), nil
	})
	if err != nil || f.Fit().Looks != 1 {
		t.Fatal(err)
	}
	f.Stop(t.Context())
	if f.Fit().Looks != 2 || f.Err() != nil {
		t.Errorf("%d looks, %v", f.Fit().Looks, f.Err())
	}
	f.Stop(t.Context())
	if f.Fit().Looks != 2 || !errors.Is(f.Err(), bad) {
		t.Errorf("%d looks, %v", f.Fit().Looks, f.Err())
	}
}

// TestPause: no look falls into a pause.
func TestPause(t *testing.T) {
	w := &world{base: time.Now(), random: rand.New(rand.NewPCG(1, 2)), delay: 400 * us}
	f, err := Follow(t.Context(), func(context.Context) (Look, error) { return w.look(time.Since(w.base), 4), nil })
	if err != nil {
		t.Fatal(err)
	}
	f.Pause(time.Hour)
	time.Sleep(Every * 3 / 2)
	f.Close()
	if f.Fit().Looks != 1 {
		t.Errorf("%d looks", f.Fit().Looks)
	}
}

// FuzzPlace: whatever the looks are, nothing is placed after its word came.
func FuzzPlace(f *testing.F) {
	f.Add(int64(0), int64(5e9), int64(1e5), int64(1e9), int64(6e9), int64(1e5), int64(5e8))
	f.Fuzz(func(t *testing.T, x1, o1, e1, x2, o2, e2, at int64) {
		const most = int64(1e15)
		for _, v := range []int64{x1, o1, e1, x2, o2, e2, at} {
			if v > most || v < -most {
				t.Skip("more than eleven days: sums of such do not fit")
			}
		}
		base := time.Now()
		look := func(x, o, e int64) Look {
			return Look{At: base.Add(time.Duration(x)), Offset: time.Duration(o), Error: time.Duration(max(e, -e))}
		}
		if x2 < x1 {
			x1, x2 = x2, x1
		}
		fit := Compare([]Look{look(x1, o1, e1), look(x2, o2, e2)})
		came := base.Add(time.Duration(at))
		p := fit.Place(came.Add(time.Duration(o1)), came)
		if p.At.After(came.Add(1)) || p.Error < 0 {
			t.Errorf("%+v, came %v", p, came)
		}
	})
}
