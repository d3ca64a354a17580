// Package clock places the instants of another host's realtime clock on this program's steady clock, and says how far
// off they may be.
//
// What is known of the other clock are looks: round trips in each of which it was read once. Compare makes of them the
// line offset(t) = a + b t, with an error at each t, and finds where the clock was stepped. It is arithmetic on values.
// Follow looks each second for as long as something goes on.
//
// The steady clock is this machine's realtime clock at the first look, and from there on its monotonic clock. So a step
// of our own realtime clock does no harm.
package clock

import (
	"math"
	"time"

	"qmigrate/engine/record"
)

// Look is one comparison of a host's realtime clock with ours. The host's clock was read between a question and its
// answer; of several round trips the shortest counts.
type Look struct {
	Offset time.Duration // their clock less our realtime clock, at At
	Error  time.Duration // half of the shortest round trip: Offset is right within it, whatever each way took
	At     time.Time     // the middle of that round trip, by our clock; zero: their clock is ours
}

// Ours tells whether the host's clock was found to be this machine's own: there is nothing to compare.
func (l Look) Ours() bool { return l.At.IsZero() }

// maxDrift is more than clocks differ in rate: Linux sets the rate of its own by at most 500 ppm, and two hosts may do
// so in opposite directions. It is a limit for what the looks do not tell: how far the clock may have gone since the
// last one, and what is surely a step.
const maxDrift = 1000e-6

// stepFactor is how many times the errors of two looks a jump between them must be to be called a step. A smaller one
// is left to the residual, and so to the error.
const stepFactor = 2

// Fit is what a host's looks tell of its clock.
type Fit struct {
	base  time.Time     // the steady clock's zero: the first look
	ahead time.Duration // their clock less ours then, as it was read; the lines are on top of it
	lines []line
	Steps []Step
	Looks int
}

// Step is a jump of the host's clock between two looks.
type Step struct {
	From, To time.Time     // the looks, by our clock
	By       time.Duration // how far it jumped, within Error either way; > 0: forwards
	Error    time.Duration
}

// line is the clock between two steps: at x ns after base it shows
// ahead + a + b x more than the steady clock.
type line struct {
	looks []point
	a     float64 // ns
	b     float64 // ns per ns; 0 where the looks do not tell it
	told  bool    // they do
	bound float64 // how far the true rate may be from b
}

// point is a look on the steady clock.
type point struct {
	x, y float64 // ns after base; their clock less the steady one and ahead, in ns
	e    float64 // half of its round trip
	miss float64 // |y - (a + b x)|, its distance from the line
}

// Compare fits a line to looks in the order of time; nil if there are none, or the clock is ours. A jump between two
// looks that is more than twice the sum of their errors and what a drift of 1000 ppm would make of the time between
// them is a step: before and after it the clock has a line of its own.
func Compare(looks []Look) *Fit {
	if len(looks) == 0 || looks[0].Ours() {
		return nil
	}
	f := &Fit{base: looks[0].At, ahead: looks[0].Offset, Looks: len(looks)}
	var run []point
	for _, l := range looks {
		x := l.At.Sub(f.base)
		theirs := l.At.Round(0).Add(l.Offset - f.ahead)
		p := point{x: float64(x), y: float64(theirs.Sub(f.base.Round(0)) - x), e: math.Max(float64(l.Error), 1)}
		if n := len(run); n > 0 {
			last := run[n-1]
			jump, errors := p.y-last.y, p.e+last.e
			if math.Abs(jump) > stepFactor*errors+maxDrift*(p.x-last.x) {
				f.lines = append(f.lines, fit(run))
				f.Steps = append(f.Steps, Step{From: f.at(last.x), To: f.at(p.x), By: time.Duration(jump),
					Error: time.Duration(errors + maxDrift*(p.x-last.x))})
				run = nil
			}
		}
		run = append(run, p)
	}
	f.lines = append(f.lines, fit(run))
	return f
}

// fit is the line of least squares, each look weighted by 1/error². Where the looks are so close together that their
// errors alone could make more than maxDrift of a constant offset, it is a constant.
func fit(looks []point) line {
	l := line{looks: looks}
	var w, wx, wy float64
	for _, p := range looks {
		k := 1 / (p.e * p.e)
		w, wx, wy = w+k, wx+k*p.x, wy+k*p.y
	}
	mx, my := wx/w, wy/w
	first, last := looks[0], looks[len(looks)-1]
	span := last.x - first.x
	if l.told = span > 0 && (first.e+last.e)/span <= maxDrift; l.told {
		var xx, xy float64
		for _, p := range looks {
			k := 1 / (p.e * p.e)
			xx, xy = xx+k*(p.x-mx)*(p.x-mx), xy+k*(p.x-mx)*(p.y-my)
		}
		l.b = xy / xx
	}
	l.a = my - l.b*mx
	for i := range looks {
		looks[i].miss = math.Abs(looks[i].y - l.a - l.b*looks[i].x)
	}
	l.bound = maxDrift
	if l.told {
		first, last = looks[0], looks[len(looks)-1]
		l.bound = (first.e + first.miss + last.e + last.miss) / span
	}
	return l
}

func (f *Fit) at(x float64) time.Time { return f.base.Add(time.Duration(math.Round(x))) }

// from and to are the first and the last look.
func (l *line) from() float64 { return l.looks[0].x }
func (l *line) to() float64   { return l.looks[len(l.looks)-1].x }

// error is how far the line may be from the clock at x, in ns. The clock is within e of each look, and so within
// e + miss of the line there. Both being straight between two looks, in between they are no farther apart than at the
// worse of the two. Beyond the outer looks the error grows with the time.
func (l *line) error(x float64) float64 {
	sum := func(p point) float64 { return p.e + p.miss }
	first, last := l.looks[0], l.looks[len(l.looks)-1]
	switch {
	case x < first.x:
		return sum(first) + l.bound*(first.x-x)
	case x > last.x:
		return sum(last) + l.bound*(x-last.x)
	}
	before, after := around(l.looks, x)
	return math.Max(sum(before), sum(after))
}

// around are the looks on either side of x.
func around(looks []point, x float64) (before, after point) {
	before, after = looks[0], looks[len(looks)-1]
	for _, p := range looks {
		if p.x <= x {
			before = p
		}
		if p.x >= x {
			return before, p
		}
	}
	return before, after
}

// Placed is an instant of the other clock on ours.
type Placed struct {
	At    time.Time
	Error time.Duration // either way
	// Doubtful: the clock was stepped between the looks before and after it, so that the instant is not known by it. At is
	// then when its word came to us, and Error is 0. Where that is not known either, Error is the largest step, and an
	// instant that was shown twice is doubtful too.
	Doubtful bool
}

// Place places an instant that the other clock showed, and of which we had word at came; the zero time: it is not known
// when. A step may make the clock show an instant twice: then the later one that lies before came counts.
func (f *Fit) Place(theirs, came time.Time) Placed {
	t := float64(theirs.Round(0).Add(-f.ahead).Sub(f.base.Round(0))) // on their clock
	arrived := math.Inf(1)
	if !came.IsZero() {
		arrived = float64(came.Sub(f.base))
	}
	best, found := 0.0, false
	p := Placed{}
	for i := range f.lines {
		l := &f.lines[i]
		x := (t - l.a) / (1 + l.b)
		if i > 0 && x <= f.lines[i-1].to() || i+1 < len(f.lines) && x >= f.lines[i+1].from() {
			continue // then it had another line
		}
		e := l.error(x)
		if x > arrived+e || found && x < best {
			continue
		}
		p.Error = time.Duration(math.Ceil(e))
		p.Doubtful = found && came.IsZero() || i > 0 && x < l.from() || i+1 < len(f.lines) && x > l.to()
		best, found = x, true
	}
	if !found { // it was never shown: a step left it out, or it is of another clock
		best, p.Doubtful = t, true
	}
	switch p.At = f.at(math.Min(best, arrived)); {
	case p.Doubtful && came.IsZero():
		for _, s := range f.Steps {
			p.Error = max(p.Error, s.By.Abs()+s.Error)
		}
	case p.Doubtful:
		p.At, p.Error = came, 0
	}
	return p
}

// Offset is their clock less ours at the first look.
func (f *Fit) Offset() time.Duration { return f.ahead + time.Duration(math.Round(f.lines[0].a)) }

// Error is the greatest error of an instant between the first look and the last that is not doubtful: of all looks the
// greatest sum of half the shortest round trip and the distance from the line.
func (f *Fit) Error() time.Duration {
	most := 0.0
	for i := range f.lines {
		for _, p := range f.lines[i].looks {
			most = math.Max(most, p.e+p.miss)
		}
	}
	return time.Duration(math.Ceil(most))
}

// Drift is by how many millionths their clock is faster than ours, within uncertainty either way, in the longest time
// without a step. ok is false where the looks are too close together to tell.
func (f *Fit) Drift() (ppm, uncertainty float64, ok bool) {
	longest := &f.lines[0]
	for i := range f.lines {
		if l := &f.lines[i]; l.to()-l.from() > longest.to()-longest.from() {
			longest = l
		}
	}
	return longest.b * 1e6, longest.bound * 1e6, longest.told
}

// Record is what a record keeps of it; origin is its first command.
func (f *Fit) Record(origin time.Time) *record.Clock {
	c := &record.Clock{Offset: f.Offset(), Error: f.Error(), Samples: f.Looks}
	if ppm, e, ok := f.Drift(); ok {
		c.Drift, c.DriftError = record.Of(ppm), record.Of(e)
	}
	for _, s := range f.Steps {
		c.Steps = append(c.Steps, record.ClockStep{From: s.From.Sub(origin), To: s.To.Sub(origin), By: s.By, Error: s.Error})
	}
	return c
}
