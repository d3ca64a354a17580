package observe

import (
	"testing"
	"time"
)

// TestUsedAt: between two looks a straight line, and nothing outside of them.
func TestUsedAt(t *testing.T) {
	origin := time.Now()
	at := func(ms int) time.Time { return origin.Add(time.Duration(ms) * time.Millisecond) }
	looks := []reading{{at(0), 0}, {at(100), 50 * time.Millisecond}, {at(200), 50 * time.Millisecond}}
	for ms, want := range map[int]time.Duration{-1: -1, 0: 0, 50: 25 * time.Millisecond, 100: 50 * time.Millisecond,
		150: 50 * time.Millisecond, 200: 50 * time.Millisecond, 201: -1} {
		if got, ok := usedAt(looks, at(ms)); ok != (want >= 0) || ok && got != want {
			t.Errorf("at %d ms: %v %t, want %v", ms, got, ok, want)
		}
	}
	if _, ok := usedAt(nil, origin); ok {
		t.Error("of nothing")
	}
}
