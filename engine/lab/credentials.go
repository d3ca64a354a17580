package lab

import (
	"errors"
	"path"

	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
)

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
	if err := errors.Join(connect.WriteCredentials(from.Host(), t.SourceDir, source), connect.WriteCredentials(to.Host(), t.DestinationDir, destination)); err != nil {
		return nil, errors.Join(err, remove())
	}
	return remove, nil
}
