package on

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// BeatSpec is where the guest's heartbeats arrive.
type BeatSpec struct {
	At netip.AddrPort `json:"at"`
}

// Beaten are heartbeats since the last output.
type Beaten struct {
	At    netip.AddrPort `json:"at"` // where they arrive
	Beats []Beat         `json:"beats,omitempty"`
}

// Beat is one heartbeat, and when it was there.
type Beat struct {
	wire.Beat
	Arrived time.Time
}

// Beats receives the guest's heartbeats by UDP and stamps them, until ctx ends.
func Beats() host.Task[BeatSpec, Beaten] {
	return host.Task[BeatSpec, Beaten]{Name: "observe.beats",
		Work: func(ctx context.Context, at host.Host, s BeatSpec, give func(Beaten) error) error {
			conn, err := at.ListenPacket(ctx, "udp", s.At.String())
			if err != nil {
				return fmt.Errorf("listen for heartbeats: %w", err)
			}
			var mu sync.Mutex
			var got []Beat
			var all sync.WaitGroup
			defer all.Wait()
			defer conn.Close()
			out := Beaten{}
			if out.At, err = netip.ParseAddrPort(conn.LocalAddr().String()); err == nil {
				err = give(out)
			}
			if err != nil {
				return last(ctx, err)
			}
			all.Go(func() {
				datagram := make([]byte, 1500)
				for {
					n, _, err := conn.ReadFrom(datagram)
					now := at.Now()
					if err != nil {
						return
					}
					if t, ok := wire.ParseBeat(datagram[:n]); ok {
						mu.Lock()
						got = append(got, Beat{t, now})
						mu.Unlock()
					}
				}
			})
			flush := func() error {
				mu.Lock()
				out.Beats, got = got, nil
				mu.Unlock()
				return give(out)
			}
			err = batches(ctx, flush)
			conn.Close()
			all.Wait()
			return last(ctx, errors.Join(err, flush()))
		}}
}
