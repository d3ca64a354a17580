package main

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/record"
)

// TestLiveText: whatever QEMU says, the line fits into 80 columns.
func TestLiveText(t *testing.T) {
	for _, n := range []int64{-1, 0, 1, 1023, 1024, 999_999, 1 << 30, 1023 << 30, 1 << 50, math.MaxInt64, math.MinInt64} {
		for _, f := range []float64{-1, 0, 0.1, 1e3, 1 << 30, 1e15, 1e300, math.Inf(1), math.NaN()} {
			for _, status := range []string{"active", "device", "pre-switchover", "postcopy-paused", strings.Repeat("x", 200)} {
				s := record.Sample{Status: status, Transferred: record.Of(n), Remaining: record.Of(n), Throughput: record.Of(f),
					DirtyPagesRate: record.Of(n), SyncCount: record.Of(n), Throttle: record.Of(n)}
				for _, d := range []time.Duration{0, time.Second, 1000 * time.Hour, math.MaxInt64, math.MinInt64} {
					if text := liveText(s, n, d); len(text) > liveWidth || strings.ContainsAny(text, "\n\r\t") {
						t.Fatalf("%d columns: %q", len(text), text)
					}
				}
			}
		}
	}
	usual := record.Sample{Status: "active", Transferred: record.Of(int64(1)), Remaining: record.Of(int64(66_000_000)),
		Throughput: record.Of(33e6), DirtyPagesRate: record.Of(int64(0)), SyncCount: record.Of(int64(12)), Throttle: record.Of(int64(20))}
	if got, want := liveText(usual, 20_000,
		12345*time.Millisecond), "pass 12   62.9 MiB left  sent 31.5 MiB/s  dirtied 78.1 MiB/s   12.3 s  -20% CPU"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestLiveLine: a sample without figures prints nothing, one pass is printed at most every liveEvery, a narrow terminal
// is not overrun.
func TestLiveLine(t *testing.T) {
	var b bytes.Buffer
	l := &liveLine{w: &b, columns: func() int { return 20 }}
	l.sample(record.Sample{Status: "setup"})
	if b.Len() > 0 {
		t.Errorf("printed %q of nothing", &b)
	}
	s := record.Sample{Status: "active", Transferred: record.Of(int64(1)), Remaining: record.Of(int64(1)),
		Throughput: record.Of(1.0), DirtyPagesRate: record.Of(int64(0)), SyncCount: record.Of(int64(1))}
	for range 100 {
		l.sample(s)
	}
	s.SyncCount = record.Of(int64(2))
	l.sample(s)
	l.clear()
	lines := strings.Split(b.String(), "\r\x1b[K")
	if len(lines) < 4 || len(lines) > 10 || !strings.HasPrefix(lines[1], "pass 1") ||
		!strings.HasPrefix(lines[len(lines)-2], "pass 2") {
		t.Errorf("%q", lines)
	}
	for _, line := range lines {
		if len(line) > 19 {
			t.Errorf("%d columns of 20: %q", len(line), line)
		}
	}
	if b.Reset(); true {
		l.mirrored(37<<20, 64<<20)
	}
	if got := b.String(); got != "\r\x1b[Kstorage  37 MiB of " {
		t.Errorf("%q", got)
	}
	if got := mirrorText(37<<20, 64<<20, 2*time.Second); got != "storage  37 MiB of 64 MiB    2.0 s" {
		t.Errorf("%q", got)
	}
	if got := mirrorText(math.MaxInt64, math.MaxInt64, math.MaxInt64); len(got) > liveWidth {
		t.Errorf("%d columns: %q", len(got), got)
	}
	if newLiveLine(&b) != nil {
		t.Error("a live line without a terminal")
	}
}

func TestUTF8Locale(t *testing.T) {
	for _, c := range []struct {
		term, all, ctype, lang string
		want                   bool
	}{{"xterm", "", "", "en_US.UTF-8", true}, {"xterm", "C", "", "en_US.UTF-8", false}, {"xterm", "", "C.utf8", "C",
		true}, {"dumb", "C.UTF-8", "", "", false}, {"xterm", "", "", "", false}, {"", "C.UTF-8", "", "", true}} {
		t.Setenv("TERM", c.term)
		t.Setenv("LC_ALL", c.all)
		t.Setenv("LC_CTYPE", c.ctype)
		t.Setenv("LANG", c.lang)
		if got := utf8Locale(); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
