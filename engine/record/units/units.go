// Package units reads and prints the values that people give: sizes, rates and durations, always with their unit.
//
// Sizes: B, KiB, MiB, GiB, TiB (powers of 1024) and kB, MB, GB, TB (powers of 1000). Rates: any size "/s", or bit/s,
// kbit/s, Mbit/s, Gbit/s (powers of 1000). Durations: ns, us, ms, s, m, h, as in Go.
package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

type unit struct {
	name  string
	bytes float64
}

func sizes() []unit {
	return []unit{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
		{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}}
}

func rates() []unit {
	all := []unit{{"Tbit/s", 1e12 / 8}, {"Gbit/s", 1e9 / 8}, {"Mbit/s", 1e6 / 8}, {"kbit/s", 1e3 / 8}, {"bit/s", 1.0 / 8}}
	for _, u := range sizes() {
		all = append(all, unit{u.name + "/s", u.bytes})
	}
	return all
}

// Size reads a size in bytes: "512MiB".
func Size(text string) (int64, error) {
	return parse(text, "size", "512MiB", sizes(), "B, KiB, MiB, GiB, TiB, kB, MB, GB, TB")
}

// Rate reads a rate in bytes per second: "50MiB/s", "1Gbit/s".
func Rate(text string) (int64, error) {
	return parse(text, "rate", "50MiB/s or 1Gbit/s", rates(), "B/s, KiB/s, MiB/s, GiB/s, kB/s, MB/s, GB/s, kbit/s, "+
		"Mbit/s, Gbit/s")
}

// Duration reads a duration, which may not be negative: "300ms".
func Duration(text string) (time.Duration, error) {
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		return 0, fmt.Errorf("duration %q has no unit: write it as 300ms (units: ns, us, ms, s, m, h)", text)
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration: write it as 300ms (units: ns, us, ms, s, m, h)", text)
	}
	return d, nil
}

func parse(text, what, example string, all []unit, names string) (int64, error) {
	text = strings.TrimSpace(text)
	end := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		return 0, fmt.Errorf("%s %q has no unit: write it as %s (units: %s)", what, text, example, names)
	}
	number, suffix := text[:end], strings.TrimSpace(text[end:])
	value, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a %s: write it as %s (units: %s)", text, what, example, names)
	}
	for _, u := range all {
		if suffix == u.name {
			bytes := math.Round(value * u.bytes)
			if bytes >= math.MaxInt64 {
				return 0, fmt.Errorf("%s %q is too large", what, text)
			}
			return int64(bytes), nil
		}
	}
	return 0, fmt.Errorf("%s %q: unknown unit %q: write it as %s (units: %s)", what, text, suffix, example, names)
}

// FormatSize prints bytes in the largest binary unit that leaves at least 1, with up to three significant digits; a
// value that is a whole number of the unit is exact.
func FormatSize(bytes int64) string {
	for _, u := range sizes()[:4] {
		// what would be printed as 1024 of the smaller unit is 1 of this
		if math.Round(math.Abs(float64(bytes))/(u.bytes/1024)) >= 1024 {
			return significant(float64(bytes)/u.bytes) + " " + u.name
		}
	}
	return strconv.FormatInt(bytes, 10) + " B"
}

// FormatRate prints bytes per second in binary units.
func FormatRate(bytesPerSecond float64) string {
	return FormatSize(int64(math.Round(bytesPerSecond))) + "/s"
}

// FormatDuration prints a duration with three significant digits in the unit that fits.
func FormatDuration(d time.Duration) string {
	reaches := func(unit float64) bool { return math.Round(math.Abs(float64(d))/(unit/1000)) >= 1000 }
	switch {
	case reaches(1e9):
		return significant(d.Seconds()) + " s"
	case reaches(1e6):
		return significant(float64(d)/1e6) + " ms"
	case reaches(1e3):
		return significant(float64(d)/1e3) + " us"
	default:
		return strconv.FormatInt(int64(d), 10) + " ns"
	}
}

// significant prints three significant digits, and every digit before the point.
func significant(v float64) string {
	digits := 2
	for limit := 10.0; digits > 0 && math.Abs(v) >= limit; limit *= 10 {
		digits--
	}
	text := strconv.FormatFloat(v, 'f', digits, 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}
