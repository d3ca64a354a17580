package compare

import (
	"cmp"
	"strconv"
	"strings"

	"qmigrate/engine/record/units"
)

// order puts the values of a factor in the order in which people would: by size where both have one, else by letters.
func order(a, b string) int {
	x, unitX, okX := size(a)
	y, unitY, okY := size(b)
	if okX && okY && unitX == unitY {
		if c := cmp.Compare(x, y); c != 0 {
			return c
		}
	}
	return cmp.Compare(a, b)
}

// size is a value's size in the base unit of what it measures.
func size(text string) (float64, string, bool) {
	if n, err := units.Size(text); err == nil {
		return float64(n), "B", true
	}
	if n, err := units.Rate(text); err == nil {
		return float64(n), "B/s", true
	}
	if d, err := units.Duration(text); err == nil {
		return float64(d), "ns", true
	}
	end := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' && r != '-' })
	if end < 0 {
		end = len(text)
	}
	v, err := strconv.ParseFloat(text[:end], 64)
	return v, text[end:], err == nil
}
