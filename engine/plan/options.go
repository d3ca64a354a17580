package plan

import (
	"context"
	"log/slog"
	"os"
	"time"

	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// Options is what a caller may want beside the record.
type Options struct {
	Logger  *slog.Logger    // info: stage edges; debug: wire lines; nil is silent
	Schemas qmp.SchemaCache // where the introspection of known QEMU binaries is kept; zero: asked each time
	// Traces is a folder of this user's in which is noted what of a QEMU's trace events was off before a migration
	// switched it on, so that the next command switches it off if this one dies; "": nothing is noted.
	Traces string
	// EventsAlone has the downtime taken apart by the events alone where the plan does not say how: then no trace lines
	// are written, and nothing is paid for them.
	EventsAlone bool
	Stream      Stream              // the descriptors of listen fd:NAME; nil: a socket pair of this machine
	Sampled     func(record.Sample) // each sample as it comes, from the sampling goroutine; nil: none
	// Passed are the instants at which bytes of the migration stream came out of the link at the destination, the last of
	// them at least, in order, by this machine's clock. nil: nobody looks.
	Passed func() []time.Time
	// Mirrored is told twice a second of stage storage, from a goroutine of its own, how many bytes of how many the
	// mirrors have copied. The whole grows with what the guest writes again. nil: nobody asks.
	Mirrored func(copied, all int64)
	// Watching is told when a migration that somebody else drives is watched for: every event is taken in from then on.
	// nil: nobody asks.
	Watching func()
}

// Stream makes the connected pair of descriptors that a plan with fd:NAME hands to the source and to the destination.
type Stream func(ctx context.Context) (src, dst *os.File, err error)
