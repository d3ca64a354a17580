package report

import "qmigrate/engine/report/stats"

// intervalWords says what an interval is, wherever one is shown.
const intervalWords = "Interval: order statistics, holding the median of such trials with at least 95 %; it needs n " +
	">= 6. Without one there were fewer."

// estimateOf is the median of the values with its interval.
func estimateOf(values []float64) stats.Estimate { return stats.Median(values, stats.Level) }
