// Package on is what the lab's observers do on a host: pings, echoes and heartbeats on the observer, the processor time
// of QEMU's threads on the host that runs it. Each is a task: on this machine it runs in this process, elsewhere in the
// host's helper. What was seen, and what it means, is package observe's.
//
// Everything has the instant of the host that it was seen on, by that host's clock. A task's first output says that it
// has begun. What it sees follows in batches, and what it has at its end comes last.
//
// It is linked into the helper, and so imports nothing but hostnet/host, guest/wire and the reader of /proc.
package on

import (
	"context"
	"time"

	"qmigrate/hostnet/host"
)

// Tasks are all of them, for the helper.
func Tasks() []host.Served { return []host.Served{Pings(), Echoes(), Beats(), CPU()} }

// batch is how often what was seen is handed over.
const batch = 250 * time.Millisecond

// turn is between two looks whether what was under way at the end has come.
const turn = 5 * time.Millisecond

// last is the error of handing over. It is none where the work was told to end.
func last(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// batches hands over, by flush, what was seen, until ctx ends. The error is that of flush: nobody takes it any more.
func batches(ctx context.Context, flush func() error) error {
	tick := time.NewTicker(batch)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := flush(); err != nil {
				return last(ctx, err)
			}
		}
	}
}
