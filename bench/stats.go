package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// estimate is a median and an interval for it.
type estimate struct {
	n                 int
	median, low, high float64
	level             float64
	method            string
	values            []float64
}

const (
	level     = 0.95
	resamples = 4000
)

// median is the middle value, or the mean of the two in the middle; NaN of none.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	switch {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// ofMedian is the median with the narrowest pair of order statistics, the same distance from both ends, that holds the
// true one with at least 95 %: for independent values of any distribution P = 1 - 2 P(Binomial(n, 1/2) < k). With n < 6
// no pair does, and the extremes stand with the level that they have.
func ofMedian(values []float64) estimate {
	e := estimate{n: len(values), median: median(values), method: "order statistics", values: values}
	if e.n == 0 {
		return e
	}
	s := slices.Sorted(slices.Values(values))
	tail, p := 0.0, math.Pow(0.5, float64(e.n)) // p is P(Binomial = k), tail P(Binomial < k)
	k := 0
	for ; k < e.n/2; k++ {
		if next := tail + p; k > 0 && 1-2*next < level {
			break
		}
		tail += p
		p *= float64(e.n-k) / float64(k+1)
	}
	k = max(k, 1)
	e.low, e.high, e.level = s[k-1], s[e.n-k], max(0, 1-2*tail)
	if e.n == 1 {
		e.level = 0
	}
	return e
}

// exactly is a count that has no uncertainty, made over n calls.
func exactly(v float64, n int) estimate {
	return estimate{n: n, median: v, low: v, high: v, level: 1, method: "count", values: []float64{v}}
}

// ofDifference is median(a) - median(b) of two independent groups, with a percentile bootstrap interval. The draws are
// the same in each run.
func ofDifference(a, b []float64) estimate {
	e := estimate{n: len(a) + len(b), median: median(a) - median(b), level: level, method: "bootstrap",
		values: append(slices.Clone(a), b...)}
	if len(a) == 0 || len(b) == 0 {
		return estimate{}
	}
	random := rand.New(rand.NewPCG(1, 2))
	draw := func(from []float64) float64 {
		to := make([]float64, len(from))
		for i := range to {
			to[i] = from[random.IntN(len(from))]
		}
		return median(to)
	}
	all := make([]float64, resamples)
	for i := range all {
		all[i] = draw(a) - draw(b)
	}
	slices.Sort(all)
	e.low, e.high = all[int(resamples*(1-level)/2)], all[int(resamples*(1+level)/2)]
	return e
}

// in converts to a unit.
func in(unit time.Duration, d ...time.Duration) []float64 {
	out := make([]float64, len(d))
	for i := range d {
		out[i] = float64(d[i]) / float64(unit)
	}
	return out
}
