package observe

import (
	"math"
	"time"

	"qmigrate/engine/record"
)

// Span is a time in which something was counted, on this process's clock.
type Span struct {
	From, To time.Time
	N        float64
}

// Bins is what was counted a second in each bin from an instant to the last span's end; a span counts into each of its
// bins by its share in it. A bin that is not wholly covered by spans was not observed.
func Bins(spans []Span, from time.Time, bin time.Duration) []*float64 {
	var end time.Duration
	for _, s := range spans {
		end = max(end, s.To.Sub(from))
	}
	n := int(end / bin)
	sums, covered := make([]float64, n), make([]time.Duration, n)
	for _, s := range spans {
		length := s.To.Sub(s.From)
		if length <= 0 { // nothing can be shared out over it
			continue
		}
		a, b := s.From.Sub(from), s.To.Sub(from)
		for i := max(int(math.Floor(float64(a)/float64(bin))), 0); i < n && time.Duration(i)*bin < b; i++ {
			in := min(b, time.Duration(i+1)*bin) - max(a, time.Duration(i)*bin)
			sums[i] += s.N * float64(in) / float64(length)
			covered[i] += in
		}
	}
	values := make([]*float64, n)
	for i := range values {
		if covered[i] >= bin { // more where two observers counted at once
			values[i] = record.Of(math.Round(sums[i]/bin.Seconds()*1000) / 1000) // nothing here is known better
		}
	}
	return values
}

// Rate is what was counted a second between two instants; nil where that was not wholly observed.
func Rate(counted []Span, from, to time.Time) *float64 {
	var sum float64
	var covered time.Duration
	for _, s := range counted {
		a, b := s.From, s.To
		if a.Before(from) {
			a = from
		}
		if b.After(to) {
			b = to
		}
		if in := b.Sub(a); in > 0 {
			sum += s.N * float64(in) / float64(s.To.Sub(s.From))
			covered += in
		}
	}
	// At the ends a bin of the agent's may be missing.
	if covered <= 0 || to.Sub(from)-covered > 3*agentBin {
		return nil
	}
	return record.Of(sum / covered.Seconds())
}
