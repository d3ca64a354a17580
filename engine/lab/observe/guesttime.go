package observe

import (
	"context"
	"fmt"

	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/wire"
)

// ResetClock makes the guest count its looks at its own clock anew.
func ResetClock(ctx context.Context, agent *guest.Agent) error {
	if err := agent.Call(ctx, wire.DoClockReset, nil, nil); err != nil {
		return fmt.Errorf("count the guest's looks at its clock: %w", err)
	}
	return nil
}

// NoteClock ends the count, and writes down the longest time between two of the guest's looks.
func NoteClock(ctx context.Context, agent *guest.Agent, rec *record.Migration) {
	var report wire.ClockReport
	if err := agent.Call(ctx, wire.DoClockStop, nil, &report); err != nil {
		rec.Warn("the guest's heartbeat does not answer: %v", err)
	} else if rec.Outcome == record.Completed && report.Turns > 0 {
		rec.Downtime.GuestClock, rec.Downtime.GuestClockError = record.Of(report.Longest), record.Of(report.Resolution)
	}
}
