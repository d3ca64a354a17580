package run

import (
	"testing"
	"time"

	"qmigrate/engine/record"
)

// TestFirstEnd: of a migration that somebody else drives the first end counts, whatever he begins next.
func TestFirstEnd(t *testing.T) {
	for watched, want := range map[bool]string{true: "cancelled", false: "setup"} {
		r := &Run{Src: &Side{finished: true}, Dst: &Side{}, Rec: &record.Migration{}} // it has moved a guest before
		if watched {
			r.Begins(time.Now())
		}
		for _, status := range []string{"setup", "active", "cancelling", "cancelled", "setup"} {
			r.Src.Says(status, time.Now())
		}
		if r.Src.Status != want {
			t.Errorf("watched %t: %q, want %q", watched, r.Src.Status, want)
		}
	}
}
