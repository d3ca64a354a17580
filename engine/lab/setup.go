package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"

	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/hostnet"
)

// setup is what the lab makes for one migration beside the two QEMUs. All of it is undone when that has ended, however
// it ended.
type setup struct {
	lab             *Lab
	plan            plan.Plan
	options         plan.Options
	line            *guest.Agent    // to the guest's agent, on the side that the guest is not on
	tunnel          *connect.Tunnel // nil: none
	keepCredentials bool
	caps            capCounts
	undo            undo
}

// complete gives the plan what a migration in this lab needs and the plan leaves open: the link's rate, and the mirrors
// of its disks.
func (l *Lab) complete(p plan.Plan) plan.Plan {
	p.LinkRate = cmp.Or(p.LinkRate, l.spec.LinkRate)
	s := l.spec.Storage
	if s.Kind == storage.Mirror && len(p.Mirror.Nodes) == 0 {
		p.Mirror = plan.Mirror{Nodes: s.Nodes(), CopyMode: s.CopyMode, MaxBandwidth: s.MaxBandwidth,
			Listen: l.site.Address(l.hostOf(l.destination)).String()}
	}
	return p
}

// setUp completes the plan and makes what it needs. The order matters: the credentials are issued to the address that
// the plan has, and the tunnel then puts its own sockets in the place of that address. An error leaves nothing behind.
func (l *Lab) setUp(ctx context.Context, p plan.Plan, o plan.Options) (_ *setup, err error) {
	s := &setup{lab: l, plan: l.complete(p), options: o}
	defer func() {
		if err != nil {
			err = errors.Join(append([]error{err}, s.undo.pop()...)...)
		}
	}()
	if s.line, err = dialAgent(ctx, l.destination); err != nil {
		return nil, err
	}
	s.undo.push(func() error { return s.line.Close() })
	l.disks.Follow(s.line)
	l.tools.Follow(s.line)
	end, err := l.route(ctx, &s.plan, &s.options)
	if err != nil {
		return nil, err
	}
	s.undo.push(func() error { end(); return nil })
	remove, err := l.credentials(&s.plan)
	if err != nil {
		return nil, err
	}
	s.undo.push(func() error {
		if s.keepCredentials {
			return nil
		}
		if err := remove(); err != nil {
			return fmt.Errorf("the TLS credentials could not be removed: %w", err)
		}
		return nil
	})
	if s.tunnel, err = l.tunnel(ctx, &s.plan); err != nil {
		return nil, err
	}
	if s.tunnel != nil {
		s.undo.push(func() error { s.tunnel.Close(); return nil }) // what went wrong in it is in the record by then
	}
	if w, err := l.watchStream(); err == nil { // without it the link's part of the downtime is not told apart
		s.options.Passed = w.Last
		s.undo.push(func() error { w.Close(); return nil })
	} else if o.Logger != nil {
		o.Logger.Info("no look at the stream", "err", err)
	}
	s.caps, err = l.countCaps()
	return s, err
}

// watchStream looks when the stream comes out of the link, where both hosts are this machine's.
func (l *Lab) watchStream() (*hostnet.StreamWatch, error) {
	n, ok := l.site.(interface {
		WatchStream(from, to string) (*hostnet.StreamWatch, error)
	})
	if !ok {
		return nil, errors.New("it is not known where the link is")
	}
	return n.WatchStream(l.hostOf(l.source), l.hostOf(l.destination))
}

// finish notes what the migration used, takes the line to the guest where that is now, and undoes the rest.
func (s *setup) finish(rec *record.Migration) {
	s.tunnel.Note(rec)
	if t := s.plan.TLS; t != nil && rec.MayGoOn() {
		s.keepCredentials = true
		rec.Warn("the TLS credentials are kept in %s and %s until the lab is removed: a post-copy that goes on may need them",
			t.SourceDir, t.DestinationDir)
	}
	if rec.GuestOn == record.Destination {
		s.lab.agent, s.line = s.line, s.lab.agent
	}
	for _, err := range s.undo.pop() {
		rec.Warn("%v", err)
	}
}

// credentials gives both sides of the lab new ones where the plan wants TLS and names no folders; remove removes them.
func (l *Lab) credentials(p *plan.Plan) (remove func() error, err error) {
	remove = func() error { return nil }
	if p.TLS == nil || p.TLS.SourceDir != "" || p.TLS.DestinationDir != "" {
		return remove, nil
	}
	t := *p.TLS // the caller's stays as it is
	p.TLS = &t
	source, destination, err := connect.Credentials(p.TLS, p.Hosts()...)
	if err != nil {
		return nil, err
	}
	from, to := l.source, l.destination // not those of later
	t.SourceDir, t.DestinationDir = path.Join(from.Spec().Dir, "tls"), path.Join(to.Spec().Dir, "tls")
	remove = func() error {
		return errors.Join(from.Host().RemoveAll(t.SourceDir), to.Host().RemoveAll(t.DestinationDir))
	}
	if err := errors.Join(connect.WriteCredentials(from.Host(), t.SourceDir, source),
		connect.WriteCredentials(to.Host(), t.DestinationDir, destination)); err != nil {
		return nil, errors.Join(err, remove())
	}
	return remove, nil
}

// tunnel opens the tunnel that the plan wants, each half on its own host of the lab; nil if it wants none.
func (l *Lab) tunnel(ctx context.Context, p *plan.Plan) (*connect.Tunnel, error) {
	if p.Tunnel == "" {
		return nil, nil
	}
	from, to := l.source, l.destination
	s := connect.TunnelSpec{
		Kind: p.Tunnel, Source: from.Host(), Destination: to.Host(), Address: l.site.Address(l.hostOf(to)).String(),
		In: path.Join(from.Spec().Dir, "tunnel"), Out: path.Join(to.Spec().Dir, "incoming"),
	}
	p.Listen, p.Connect = "unix:"+s.Out, "unix:"+s.In
	return connect.OpenTunnel(ctx, s)
}
