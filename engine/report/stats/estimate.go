// Package stats is what qmigrate says about repeated measurements: a median with its interval, whether two groups
// differ and by how much, and whether values drift with the order of the trials. Nothing here supposes a normal
// distribution: times and downtimes have none.
//
// It is arithmetic on numbers: no clock, no file, no chance. What cannot be had from so few values is absent (a nil
// Interval), and Need says how many it takes. No value is ever dropped: Outliers points them out. Each formula with its
// source is in docs/statistics.md.
package stats

import (
	"fmt"
	"math"
	"slices"
)

// Level is the confidence of the intervals in tables and figures; 1 - Level is the level of the tests.
const Level = 0.95

// Sample is the values of one quantity, in the order in which they were measured.
type Sample struct {
	Name   string    `json:"name"` // of the group or of the quantity
	Unit   string    `json:"unit"` // ns, bytes, percent, ...
	Values []float64 `json:"values"`
}

// N is how many values there are.
func (s Sample) N() int { return len(s.Values) }

// Interval holds the true value with probability Level, which is at least what was asked for: with few values it is
// more.
type Interval struct {
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
	Level float64 `json:"level"`
}

// Estimate is a value with an interval and the number of values it comes from.
type Estimate struct {
	N        int       `json:"n"`
	Value    float64   `json:"value"`
	Interval *Interval `json:"interval,omitempty"` // nil: it takes at least Need values
	// the least n (in each group, where there are two) that can have an interval of the level asked for
	Need int `json:"need"`
}

// Note is "" or what to say in the interval's place.
func (e Estimate) Note() string {
	if e.Interval == nil {
		return fmt.Sprintf("needs n >= %d", e.Need)
	}
	return ""
}

// middle is the median of sorted values; NaN of none.
func middle(sorted []float64) float64 {
	n := len(sorted)
	switch {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return sorted[n/2]
	}
	return sorted[n/2-1] + (sorted[n/2]-sorted[n/2-1])/2
}

// Median is the middle value (of an even number, the mean of the two in the middle; NaN of none) with the narrowest
// interval [x(k), x(n+1-k)] of order statistics that holds the true median with at least that level: for independent
// values of any distribution that happens with 1 - 2 P(B < k), B ~ Binomial(n, 1/2). At 0.95 that takes n >= 6.
func Median(values []float64, level float64) Estimate {
	x := slices.Sorted(slices.Values(values))
	e := Estimate{N: len(x), Value: middle(x), Need: medianNeed(level)}
	if e.N < e.Need {
		return e
	}
	k, tail := medianRank(e.N, level)
	e.Interval = &Interval{Low: x[k-1], High: x[e.N-k], Level: 1 - 2*tail}
	return e
}

// medianNeed is the least n with 1 - 2 P(B < 1) >= level, which is 1 - 2^(1-n).
func medianNeed(level float64) int {
	n := 2
	for 1-math.Exp2(float64(1-n)) < level && n < 1000 {
		n++
	}
	return n
}

// medianRank is the largest k with 1 - 2 P(B < k) >= level, and that P(B < k). The probabilities are summed from the
// left as they are, in logarithms, so that no n is too large.
func medianRank(n int, level float64) (int, float64) {
	tail := 0.0
	top, _ := math.Lgamma(float64(n + 1))
	for k := 0; k <= n/2; k++ {
		left, _ := math.Lgamma(float64(k + 1))
		right, _ := math.Lgamma(float64(n - k + 1))
		p := math.Exp(top - left - right - float64(n)*math.Ln2) // P(B = k)
		if k > 0 && 1-2*(tail+p) < level {
			return k, tail
		}
		tail += p
	}
	return max(n/2, 1), tail // not reached for a level above 0
}

// Quantile is that of R's type 7 and of most programs: linear between the two order statistics around 1 + (n-1)q; NaN
// of no values.
func Quantile(values []float64, q float64) float64 {
	return quantile(slices.Sorted(slices.Values(values)), q)
}

func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	i := min(max(int(math.Floor(at)), 0), len(sorted)-1)
	j := min(i+1, len(sorted)-1)
	return sorted[i] + (at-float64(i))*(sorted[j]-sorted[i])
}

// Outliers are the indices of values more than 1.5 times the interquartile range outside of the quartiles (Tukey's
// fences), in their order. They are to be shown; they stay in every estimate and every test.
func Outliers(values []float64) []int {
	x := slices.Sorted(slices.Values(values))
	low, high := quantile(x, 0.25), quantile(x, 0.75)
	reach := 1.5 * (high - low)
	var out []int
	for i, v := range values {
		if v < low-reach || v > high+reach {
			out = append(out, i)
		}
	}
	return out
}

// normalTail is P(Z > z) of the standard normal distribution.
func normalTail(z float64) float64 { return math.Erfc(z/math.Sqrt2) / 2 }

// normalQuantile is the z with P(Z < z) = p.
func normalQuantile(p float64) float64 { return math.Sqrt2 * math.Erfinv(2*p-1) }
