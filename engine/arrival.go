package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"qmigrate/engine/internal/run"
)

// errOnTheWay is the cause of a context that ended while the destination was waited for.
var errOnTheWay = errors.New("on the way")

// arrive waits until the destination has loaded what the source has sent. A source may have sent all of it into a
// connection that the destination has refused, in a TLS handshake above all, or that leads elsewhere; then no event
// will ever come.
//
// Nor will one come when the link is lost with the last bytes on their way: only a source notices that its writes fail.
// What the source has written is in the sockets at most, so a destination that has not all of it when the limit of
// hanging is over will not have it.
func (m *migration) arrive(ctx context.Context) error {
	sent := time.Now()
	for untouched := 0; ; {
		limited, cancel := context.WithTimeoutCause(ctx, run.AnswerLimit, errOnTheWay)
		err := m.run.Until(limited, m.run.Dst.Done)
		cancel()
		if !errors.Is(err, errOnTheWay) {
			return err
		}
		limit := m.run.Plan.HangLimit()
		late := time.Since(sent) > limit
		if untouched++; !m.run.Dst.Untouched(ctx) {
			untouched = 0
		}
		switch {
		case late && untouched == 0:
			return fmt.Errorf("the source has sent all of it, and the destination has not all of it after %s: its link is "+
				"lost, or slower than recover-limit allows for", limit)
		case late || untouched == 2: // not merely a connection that lies in its queue
			return fmt.Errorf("the source has sent all of it to %s, and nothing has come to the destination, which listens "+
				"still: it has refused the connection, or another one is there", m.run.Plan.Connect)
		}
	}
}
