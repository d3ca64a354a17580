package stats

import (
	"cmp"
	"math"
	"slices"
)

// The ways in which a p-value comes about.
const (
	Exact  = "exact"  // from all ways to deal the same values, ties included
	Normal = "normal" // approximation, with the variance corrected for ties and a continuity correction of 1/2
	Equal  = "equal"  // all values are the same: there is nothing to tell apart
)

// exactLimit is the largest group for which the distribution is counted out: 50 and 50 take some 10 ms.
const exactLimit = 50

// Test is the outcome of a two-sided test.
type Test struct {
	Statistic float64 `json:"statistic"` // U of Mann-Whitney, tau of Kendall
	P         float64 `json:"p"`
	Method    string  `json:"method"` // exact, normal, equal
}

// MannWhitney tests whether values of b tend to be larger or smaller than those of a. Statistic is U, the number of
// pairs in which b's value is the larger one, ties counted as half. P is the probability, if both groups come from one
// population, of a U as far from its mean as this one. An empty group tells nothing: P is 1.
func MannWhitney(a, b []float64) Test {
	n1, n2 := len(a), len(b)
	if n1 == 0 || n2 == 0 {
		return Test{P: 1, Method: Equal}
	}
	ranks, sum, ties := doubledRanks(a, b)
	n := n1 + n2
	t := Test{Statistic: float64(sum-n2*(n2+1)) / 2, Method: Exact}
	variance := float64(n1) * float64(n2) / 12 * (float64(n+1) - ties/(float64(n)*float64(max(n-1, 1))))
	switch {
	case variance <= 0 || n < 2:
		t.P, t.Method = 1, Equal
	case n1 <= exactLimit && n2 <= exactLimit:
		mean := n2 * (n + 1) // of the doubled rank sum
		counts := subsetSums(ranks, n2)
		far, all := 0.0, 0.0
		for s, c := range counts {
			all += c
			if abs(s-mean) >= abs(sum-mean) {
				far += c
			}
		}
		t.P = far / all
	default:
		t.Method = Normal
		off := math.Abs(t.Statistic - float64(n1)*float64(n2)/2)
		t.P = min(1, 2*normalTail(max(0, off-0.5)/math.Sqrt(variance)))
	}
	return t
}

func abs(n int) int { return max(n, -n) }

// doubledRanks are twice the ranks (mid-ranks for ties, hence twice) of all values in ascending order, the sum over
// b's, and the sum of t^3 - t over the groups of t equal values.
func doubledRanks(a, b []float64) (ranks []int, sumB int, ties float64) {
	type value struct {
		v float64
		b bool
	}
	all := make([]value, 0, len(a)+len(b))
	for _, v := range a {
		all = append(all, value{v, false})
	}
	for _, v := range b {
		all = append(all, value{v, true})
	}
	slices.SortFunc(all, func(x, y value) int { return cmp.Compare(x.v, y.v) })
	ranks = make([]int, len(all))
	for i := 0; i < len(all); {
		j := i
		for j < len(all) && all[j].v == all[i].v {
			j++
		}
		for k := i; k < j; k++ {
			ranks[k] = i + 1 + j // the mean of i+1 .. j, doubled
			if all[k].b {
				sumB += ranks[k]
			}
		}
		t := float64(j - i)
		ties += t*t*t - t
		i = j
	}
	return ranks, sumB, ties
}

// subsetSums counts, for each sum, the ways to draw so many of the ranks.
func subsetSums(ranks []int, draw int) []float64 {
	total := 0
	for _, r := range ranks {
		total += r
	}
	ways := make([][]float64, draw+1)
	for i := range ways {
		ways[i] = make([]float64, total+1)
	}
	ways[0][0] = 1
	sum := 0
	for i, r := range ranks {
		for k := min(i+1, draw); k >= 1; k-- {
			from, to := ways[k-1], ways[k]
			for s := 0; s <= sum; s++ {
				if from[s] != 0 {
					to[s+r] += from[s]
				}
			}
		}
		sum += r
	}
	return ways[draw]
}

// Shift is Hodges and Lehmann's estimate of how much larger b is than a: the median of all n1 n2 differences. Its
// interval is the one that the Mann-Whitney test leaves: the differences D(k) and D(n1 n2 + 1 - k), where P(U < k) <=
// (1-level)/2 under one population without ties; for more than 50 values k comes from the normal approximation. Need is
// the least n in each of two groups of equal size.
func Shift(a, b []float64, level float64) Estimate {
	n1, n2 := len(a), len(b)
	e := Estimate{N: n1 + n2, Need: shiftNeed(level), Value: math.NaN()}
	if n1 == 0 || n2 == 0 {
		return e
	}
	d := differences{slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))}
	pairs := n1 * n2
	e.Value = d.kth((pairs + 1) / 2)
	if pairs%2 == 0 {
		e.Value += (d.kth(pairs/2+1) - e.Value) / 2
	}
	if k, reached := shiftRank(n1, n2, level); k > 0 {
		e.Interval = &Interval{Low: d.kth(k), High: d.kth(pairs + 1 - k), Level: reached}
	}
	return e
}

// shiftRank is the largest k with P(U < k) <= (1-level)/2, and 1 - 2 P(U < k); 0 where there is none.
func shiftRank(n1, n2 int, level float64) (int, float64) {
	pairs := n1 * n2
	if n1 > exactLimit || n2 > exactLimit {
		sd := math.Sqrt(float64(pairs) * float64(n1+n2+1) / 12)
		k := int(math.Floor(float64(pairs)/2 + 0.5 + normalQuantile((1-level)/2)*sd))
		if k < 1 {
			return 0, 0
		}
		return k, 1 - 2*normalTail((float64(pairs)/2-float64(k)+0.5)/sd)
	}
	ranks := make([]int, n1+n2)
	for i := range ranks {
		ranks[i] = i + 1
	}
	counts := subsetSums(ranks, n2)[n2*(n2+1)/2:] // counts[u]
	all := 0.0
	for _, c := range counts {
		all += c
	}
	k, below := 0, 0.0
	for k < pairs/2 && 2*(below+counts[k])/all <= 1-level+1e-12 {
		below += counts[k]
		k++
	}
	return k, 1 - 2*below/all
}

// shiftNeed is the least n with 2 / C(2n, n) <= 1 - level.
func shiftNeed(level float64) int {
	ways := 2.0
	n := 1
	for 2/ways > 1-level+1e-12 && n < 500 {
		n++
		ways *= 2 * float64(2*n-1) / float64(n)
	}
	return n
}

// differences are all b - a, of sorted groups; never laid out, for there are n1 n2 of them.
type differences struct{ a, b []float64 }

// kth is the k-th smallest, from 1: the least t with at least k differences <= t, found by halving the ordered
// floating-point numbers.
func (d differences) kth(k int) float64 {
	low := ordered(d.b[0] - d.a[len(d.a)-1])
	high := ordered(d.b[len(d.b)-1] - d.a[0])
	for low < high {
		at := low + int64(uint64(high-low)/2)
		if d.upTo(number(at)) >= k {
			high = at
		} else {
			low = at + 1
		}
	}
	return number(low)
}

// upTo counts the differences that are at most t.
func (d differences) upTo(t float64) int {
	n, j := 0, 0
	for _, a := range d.a {
		for j < len(d.b) && d.b[j]-a <= t {
			j++
		}
		n += j
	}
	return n
}

// ordered maps a finite number to an integer that sorts as it does; number is the way back.
func ordered(f float64) int64 {
	if i := int64(math.Float64bits(f)); i >= 0 {
		return i
	}
	return -int64(math.Float64bits(-f))
}

func number(i int64) float64 {
	if i >= 0 {
		return math.Float64frombits(uint64(i))
	}
	return -math.Float64frombits(uint64(-i))
}

// Cliff is Cliff's delta, 2 U / (n1 n2) - 1: the share of pairs in which b is the larger less the share in which it is
// the smaller one. 1: all of b lies above all of a; 0: neither tends to be larger; NaN without values.
func Cliff(a, b []float64) float64 {
	if len(a) == 0 || len(b) == 0 {
		return math.NaN()
	}
	_, sum, _ := doubledRanks(a, b)
	u := float64(sum-len(b)*(len(b)+1)) / 2
	return 2*u/(float64(len(a))*float64(len(b))) - 1
}

// Holm corrects the p-values of one family of tests so that, at level alpha, the chance of a single false alarm among
// all of them is at most alpha: the i-th smallest of m is multiplied by m+1-i, and none is smaller than one before it.
// They come back in their order.
func Holm(p []float64) []float64 {
	by := make([]int, len(p))
	for i := range by {
		by[i] = i
	}
	slices.SortStableFunc(by, func(i, j int) int { return cmp.Compare(p[i], p[j]) })
	out, least := make([]float64, len(p)), 0.0
	for rank, i := range by {
		least = max(least, min(1, float64(len(p)-rank)*p[i]))
		out[i] = least
	}
	return out
}

// Comparison is one group against another: b against a.
type Comparison struct {
	A        Estimate `json:"a"` // medians
	B        Estimate `json:"b"`
	Shift    Estimate `json:"shift"`                    // how much larger b is: Hodges and Lehmann
	Relative *float64 `json:"change_percent,omitempty"` // 100 x shift / a's median; nil where that is 0
	Cliff    float64  `json:"cliff_delta"`
	Test     Test     `json:"test"`
	Holm     float64  `json:"p_holm"` // over the family; Family sets it
	Need     int      `json:"need"`   // the least n in each group at which the test, uncorrected, can fall below 1 - level
}

// Compare compares b with a; neither may be empty. Holm is the uncorrected p until Family is called with all
// comparisons of the table.
func Compare(a, b []float64, level float64) Comparison {
	c := Comparison{A: Median(a, level), B: Median(b, level), Shift: Shift(a, b, level), Cliff: Cliff(a, b),
		Test: MannWhitney(a, b), Need: shiftNeed(level)}
	c.Holm = c.Test.P
	if c.A.Value != 0 {
		r := 100 * c.Shift.Value / math.Abs(c.A.Value)
		c.Relative = &r
	}
	return c
}

// Family sets each comparison's Holm: together they are one family.
func Family(all []*Comparison) {
	p := make([]float64, len(all))
	for i, c := range all {
		p[i] = c.Test.P
	}
	for i, h := range Holm(p) {
		all[i].Holm = h
	}
}

// FamilyNeed tells whether the groups are too small for any difference in the family to be called at level alpha,
// however far apart they lie: then it is the least n in each group that would do, else 0. The smallest p that groups of
// n1 and n2 different values can have is 2 / C(n1+n2, n1).
func FamilyNeed(all []*Comparison, alpha float64) int {
	if len(all) == 0 {
		return 0
	}
	level := 1 - alpha/float64(len(all)) // Holm's for the smallest p
	for _, c := range all {
		least := 2 * math.Exp(-lnChoose(c.A.N+c.B.N, c.A.N))
		if least <= 1-level+1e-12 {
			return 0
		}
	}
	return shiftNeed(level)
}

func lnChoose(n, k int) float64 {
	a, _ := math.Lgamma(float64(n + 1))
	b, _ := math.Lgamma(float64(k + 1))
	c, _ := math.Lgamma(float64(n - k + 1))
	return a - b - c
}
