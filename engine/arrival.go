package engine

import (
	"context"
	"errors"
	"fmt"
)

// errOnTheWay is the cause of a context that ended while the destination was waited for.
var errOnTheWay = errors.New("on the way")

// arrive waits until the destination has loaded what the source has sent. A source may have sent all of it into a connection that the destination
// has refused, in a TLS handshake above all, or that leads elsewhere; then no event will ever come.
func (m *migration) arrive(ctx context.Context) error {
	for untouched := 0; ; {
		limited, cancel := context.WithTimeoutCause(ctx, answerLimit, errOnTheWay)
		err := m.until(limited, m.dst.done)
		cancel()
		if !errors.Is(err, errOnTheWay) {
			return err
		}
		if untouched++; !m.dst.untouched(ctx) {
			untouched = 0
		}
		if untouched == 2 { // not merely a connection that lies in its queue
			return fmt.Errorf("the source has sent all of it to %s, and nothing has come to the destination, which listens still: it has refused the connection, or another one is there", m.plan.Connect)
		}
	}
}
