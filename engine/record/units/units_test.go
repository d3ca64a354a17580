package units

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0B": 0, "1B": 1, "512MiB": 512 << 20, "1.5GiB": 3 << 29, "2 KiB": 2048, " 1kB ": 1000, "1MB": 1e6, "3GB": 3e9, "1TB": 1e12, "7TiB": 7 << 40, "0.5KiB": 512,
	} {
		if got, err := Size(text); err != nil || got != want {
			t.Errorf("Size(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "256", "256 ", "-1MiB", "+1MiB", "1mib", "1M", "1 Mi B", "MiB", "1e3MiB", "1..5MiB", "NaNB", "InfB", "0x10B", "1MiB/s", "9999999TiB", "1٠B", "1\x00B"} {
		if got, err := Size(text); err == nil || got != 0 {
			t.Errorf("Size(%q) = %d, %v; want an error", text, got, err)
		} else if !strings.Contains(err.Error(), "512MiB") && !strings.Contains(err.Error(), "too large") {
			t.Errorf("Size(%q): %v does not show how it is written", text, err)
		}
	}
}

func TestRate(t *testing.T) {
	for text, want := range map[string]int64{
		"0B/s": 0, "50MiB/s": 50 << 20, "1Gbit/s": 125e6, "100 Mbit/s": 12.5e6, "8bit/s": 1, "8kbit/s": 1000, "1kB/s": 1000, "1Tbit/s": 125e9,
	} {
		if got, err := Rate(text); err != nil || got != want {
			t.Errorf("Rate(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "50", "50MiB", "1Gbps", "1Mb/s", "1 MiB /s", "-1B/s"} {
		if got, err := Rate(text); err == nil || got != 0 || !strings.Contains(err.Error(), "50MiB/s or 1Gbit/s") {
			t.Errorf("Rate(%q) = %d, %v; want an error that shows how it is written", text, got, err)
		}
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{"0s": 0, "300ms": 300 * time.Millisecond, "1.5s": 1500 * time.Millisecond, "1h2m": 62 * time.Minute, "10us": 10 * time.Microsecond, "7ns": 7} {
		if got, err := Duration(text); err != nil || got != want {
			t.Errorf("Duration(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "300", "1e3", "-1s", "3 s", "1d", "ms", "NaN"} {
		if got, err := Duration(text); err == nil || got != 0 || !strings.Contains(err.Error(), "300ms") {
			t.Errorf("Duration(%q) = %v, %v; want an error that shows how it is written", text, got, err)
		}
	}
}

func TestFormat(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB", 1<<20 - 1: "1 MiB", 1<<30 - 1: "1 GiB", 1 << 30: "1 GiB", 1 << 40: "1 TiB",
		268443648: "256 MiB", 5 << 49: "2560 TiB", -2048: "-2 KiB", math.MaxInt64: "8388608 TiB", math.MinInt64: "-8388608 TiB",
	} {
		if got := FormatSize(bytes); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", bytes, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0 ns", 999: "999 ns", 1000: "1 us", 118_600: "119 us", 999_999: "1 ms", 35_900_000: "35.9 ms", 999_999_999: "1 s", time.Second: "1 s", 1234 * time.Millisecond: "1.23 s",
		123 * time.Second: "123 s", -1500 * time.Microsecond: "-1.5 ms", math.MaxInt64: "9223372037 s", math.MinInt64: "-9223372037 s",
	} {
		if got := FormatDuration(d); got != want {
			t.Errorf("FormatDuration(%d) = %q, want %q", d, got, want)
		}
	}
	for f, want := range map[float64]string{0: "0 B/s", 1.4: "1 B/s", 33e6: "31.5 MiB/s", 1 << 30: "1 GiB/s"} {
		if got := FormatRate(f); got != want {
			t.Errorf("FormatRate(%v) = %q, want %q", f, got, want)
		}
	}
}

// FuzzSize: what is printed can be read, and is then within what three digits leave of it; an error comes with 0.
func FuzzSize(f *testing.F) {
	for _, s := range []string{"512MiB", "1.5GiB", "256", "0B", "9999999TiB", "1e9B", "1 KiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := Size(text)
		if err != nil {
			if n != 0 {
				t.Fatalf("Size(%q) = %d with %v", text, n, err)
			}
			return
		}
		if n < 0 {
			t.Fatalf("Size(%q) = %d", text, n)
		}
		printed := FormatSize(n)
		back, err := Size(printed)
		if err != nil && n < math.MaxInt64/2 {
			t.Fatalf("Size(%q) = %d, printed %q: %v", text, n, printed, err)
		}
		if err == nil && math.Abs(float64(back-n)) > 0.006*float64(n)+0.5 {
			t.Fatalf("Size(%q) = %d, printed %q, read %d", text, n, printed, back)
		}
		if r, err := Rate(text + "/s"); err == nil && r != n {
			t.Fatalf("Rate(%q/s) = %d, Size = %d", text, r, n)
		}
	})
}

// FuzzDuration: the same law.
func FuzzDuration(f *testing.F) {
	for _, s := range []string{"300ms", "1h2m", "5", "-1s", "1.5s", "9999999h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := Duration(text)
		if err != nil {
			if d != 0 {
				t.Fatalf("Duration(%q) = %d with %v", text, d, err)
			}
			return
		}
		back, err := Duration(strings.ReplaceAll(FormatDuration(d), " ", ""))
		if d < 0 || err == nil && math.Abs(float64(back-d)) > 0.006*float64(d)+0.5 {
			t.Fatalf("Duration(%q) = %d, printed %q, read %d, %v", text, d, FormatDuration(d), back, err)
		}
	})
}
