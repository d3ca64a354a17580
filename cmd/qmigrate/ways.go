package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/hostnet/host"
)

// ways is how a migration's endpoints are reached: through helpers, or by ssh's forwarding alone.
type ways struct {
	hosts     *host.Pool
	forwarded *connect.Forwarded // nil: through helpers
	words     []string           // of the endpoints, the source's first
}

func noHelperFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-helper", Category: aboutHosts,
		Usage: "reach ssh:// endpoints by OpenSSH's forwarding of their sockets alone; what only a helper knows is left out"}
}

func newWays(hosts *host.Pool, noHelper bool) *ways {
	w := &ways{hosts: hosts}
	if noHelper {
		w.forwarded = &connect.Forwarded{SSH: hosts.SSH}
	}
	return w
}

func (w *ways) close() {
	if w.forwarded != nil {
		w.forwarded.Close()
	}
}

// parse finds the endpoint that is written so.
func (w *ways) parse(ctx context.Context, text string) (*endpoint.Endpoint, error) {
	w.words = append(w.words, text)
	ep, err := connect.Parse(text, w.hosts)
	if err != nil {
		return nil, usageError{err}
	}
	if w.forwarded != nil {
		return w.forwarded.Endpoint(ctx, text)
	}
	return ep, nil
}

// listen sees to where the destination is to listen.
func (w *ways) listen(ctx context.Context, p *plan.Plan, src, dst *endpoint.Endpoint) error {
	if w.forwarded != nil {
		return w.forwarded.Listen(ctx, p, w.words[0], w.words[1])
	}
	return connect.Listen(ctx, p, src, dst)
}

// note says what the record lacks.
func (w *ways) note(rec *record.Migration) {
	if w.forwarded != nil {
		rec.Warn("%s", connect.WithoutHelper)
	}
}
