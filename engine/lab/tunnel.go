package lab

import (
	"context"
	"path"

	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
)

// tunnel opens the tunnel that the plan wants, each half on its own host of the lab; nil if it wants none.
func (l *Lab) tunnel(ctx context.Context, p *plan.Plan) (*connect.Tunnel, error) {
	if p.Tunnel == "" {
		return nil, nil
	}
	from, to := l.source, l.destination
	s := connect.TunnelSpec{
		Kind: p.Tunnel, Source: from.Host(), Destination: to.Host(), Address: l.network.Address(l.hostOf(to)).String(),
		In: path.Join(from.Spec().Dir, "tunnel"), Out: path.Join(to.Spec().Dir, "incoming"),
	}
	p.Listen, p.Connect = "unix:"+s.Out, "unix:"+s.In
	return connect.OpenTunnel(ctx, s)
}
