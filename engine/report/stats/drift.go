package stats

import (
	"math"
	"slices"
)

// Drift tests whether the values rise or fall over the order in which they stand (Mann 1945, Kendall 1975). Statistic
// is Kendall's tau-b against the order: 1 where each value is larger than all before it. P is exact for up to 50 values
// without ties, else from the normal approximation with the variance corrected for ties and a continuity correction.
func Drift(values []float64) Test {
	n := len(values)
	t := Test{P: 1, Method: Equal}
	if n < 2 {
		return t
	}
	pairs := float64(n) * float64(n-1) / 2
	sorted := slices.Sorted(slices.Values(values))
	tied, correction := 0.0, 0.0 // pairs of equal values; sum of t(t-1)(2t+5)
	for i := 0; i < n; {
		j := i
		for j < n && sorted[j] == sorted[i] {
			j++
		}
		c := float64(j - i)
		tied += c * (c - 1) / 2
		correction += c * (c - 1) * (2*c + 5)
		i = j
	}
	if tied == pairs {
		return t
	}
	swaps := float64(inversions(slices.Clone(values)))
	s := pairs - tied - 2*swaps // pairs that rise less pairs that fall
	t.Statistic = s / math.Sqrt(pairs*(pairs-tied))
	if n <= exactLimit && tied == 0 {
		t.Method = Exact
		counts := inversionCounts(n)
		far, all := 0.0, 0.0
		for inv, c := range counts {
			all += c
			if math.Abs(pairs-2*float64(inv)) >= math.Abs(s) {
				far += c
			}
		}
		t.P = far / all
		return t
	}
	t.Method = Normal
	variance := (float64(n)*float64(n-1)*float64(2*n+5) - correction) / 18
	t.P = min(1, 2*normalTail(max(0, math.Abs(s)-1)/math.Sqrt(variance)))
	return t
}

// inversions counts the pairs in which the later value is the smaller one, and sorts the values.
func inversions(x []float64) int {
	if len(x) < 2 {
		return 0
	}
	left, right := slices.Clone(x[:len(x)/2]), slices.Clone(x[len(x)/2:])
	n := inversions(left) + inversions(right)
	for i, j, k := 0, 0, 0; k < len(x); k++ {
		if j == len(right) || i < len(left) && left[i] <= right[j] {
			x[k] = left[i]
			i++
		} else {
			x[k] = right[j]
			n += len(left) - i
			j++
		}
	}
	return n
}

// inversionCounts counts, for each number of inversions, the orders of n different values that have it.
func inversionCounts(n int) []float64 {
	counts := []float64{1}
	for m := 2; m <= n; m++ {
		next := make([]float64, len(counts)+m-1)
		for i, c := range counts {
			for j := range m {
				next[i+j] += c
			}
		}
		counts = next
	}
	return counts
}

// Residuals are the values less the median of their group: what is left for a drift when trials of several cells took
// turns. Group has one name a value.
func Residuals(values []float64, group []string) []float64 {
	of := map[string][]float64{}
	for i, v := range values {
		of[group[i]] = append(of[group[i]], v)
	}
	mid := map[string]float64{}
	for g, v := range of {
		slices.Sort(v)
		mid[g] = middle(v)
	}
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = v - mid[group[i]]
	}
	return out
}
