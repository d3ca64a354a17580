// Package near finds what a mistyped word may have meant.
package near

import (
	"cmp"
	"slices"
	"strings"

	"github.com/xrash/smetrics"
)

// most is how many words are suggested.
const most = 3

// Hint is "did you mean a or b?" of the words of have that are near, or "have a, b, c" of all where none is.
func Hint[S ~string](word S, have []S) string {
	var all []string
	for _, h := range have {
		all = append(all, string(h))
	}
	return Or(string(word), all, "have "+strings.Join(all, ", "))
}

// Or is "did you mean a or b?" of the words of have that are near, or otherwise where none is. The nearest come first:
// few letters differ, or the one word is in the other. Hyphens before a flag's name do not count.
func Or(word string, have []string, otherwise string) string {
	type candidate struct {
		word     string
		distance int
	}
	var all []candidate
	name := strings.TrimLeft(word, "-")
	for _, h := range have {
		other := strings.TrimLeft(h, "-")
		d := smetrics.WagnerFischer(name, other, 1, 1, 1)
		within := len(name) > 3 && strings.Contains(other, name) || len(other) > 3 && strings.Contains(name, other)
		if d <= max(1, len(name)/3) || within {
			all = append(all, candidate{h, d})
		}
	}
	if len(all) == 0 {
		return otherwise
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
	var words []string
	for _, c := range all[:min(len(all), most)] {
		words = append(words, c.word)
	}
	return "did you mean " + strings.Join(words, " or ") + "?"
}
