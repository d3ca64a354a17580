package anatomy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/record"
)

// TestLeft: lines of a real 11.1.3 become what was left to send; what is none is left out, and of many a record keeps
// the first, the last and some between.
func TestLeft(t *testing.T) {
	t.Parallel()
	origin := time.Date(2026, 11, 30, 12, 4, 55, 0, time.UTC)
	left := func(text string) []record.Pending {
		var marks []Mark
		for _, l := range Parse([]byte(text)) {
			marks = append(marks, Mark{Line: l, Instant: Instant{At: l.Stamp}})
		}
		return Left(marks, origin)
	}
	const line = "2026-11-30T12:04:%02d.%06dZ qemu_savevm_query_pending exact=%d, final=0, precopy=%d, stopcopy=2, " +
		"postcopy=3, total=%d, collected switchover ack pending=0, total switchover ack pending=1\n"
	got := left(fmt.Sprintf(line, 55, 506367, 0, 67444736, 67444741) +
		"2026-11-30T12:04:55.600000Z vmstate_downtime_checkpoint src-downtime-start\n" +
		"2026-11-30T12:04:55.700000Z qemu_savevm_query_pending exact=0, final=0, precopy=x, stopcopy=0, postcopy=0\n" +
		"2026-11-30T12:04:55.700000Z qemu_savevm_query_pending exact=0, final=0, precopy=1, stopcopy=0\n" +
		strings.TrimLeft(fmt.Sprintf(line, 56, 0, 1, 1, 6), " "))
	want := []record.Pending{{T: 506367 * time.Microsecond, PreCopy: 67444736, StopCopy: 2, PostCopy: 3},
		{T: time.Second, PreCopy: 1, StopCopy: 2, PostCopy: 3, Exact: true}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var many strings.Builder
	for i := range 10 * mostPending {
		fmt.Fprintf(&many, line, 55, i, 0, i, i)
	}
	if got := left(many.String()); len(got) != mostPending || got[0].PreCopy != 0 ||
		got[mostPending-1].PreCopy != 10*mostPending-1 {
		t.Errorf("%d kept", len(got))
	}
}
