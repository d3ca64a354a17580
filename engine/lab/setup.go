package lab

import (
	"context"
	"errors"
	"fmt"

	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
)

// setup is what the lab makes for one migration beside the two QEMUs. All of it is undone when that has ended, however it ended.
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

// setUp completes the plan and makes what it needs. The order matters: the credentials are issued to the address that the plan has, and the
// tunnel then puts its own sockets in the place of that address. An error leaves nothing behind.
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
	l.ledger.follow(s.line)
	l.tools.follow(s.line)
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
	s.caps, err = l.countCaps()
	return s, err
}

// finish notes what the migration used, takes the line to the guest where that is now, and undoes the rest.
func (s *setup) finish(rec *record.Migration, failed bool) {
	s.tunnel.Note(rec)
	if t := s.plan.TLS; failed && rec.PostCopy != nil && rec.GuestOn != record.Source && t != nil {
		s.keepCredentials = true
		rec.Warn("the TLS credentials are kept in %s and %s until the lab is removed: a post-copy that goes on may need them", t.SourceDir, t.DestinationDir)
	}
	if rec.GuestOn == record.Destination {
		s.lab.agent, s.line = s.line, s.lab.agent
	}
	for _, err := range s.undo.pop() {
		rec.Warn("%v", err)
	}
}
