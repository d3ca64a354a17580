package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"strings"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/tlscreds"
	"qmigrate/qmp"
)

// unsettable are those that "" unsets. An empty tls-authz means that nobody is let in, and null, which the schema allows, trips an assertion in 7.2
// (migrate_params_apply): so that one is touched only on a destination for which it was asked.
var unsettable = plan.TlsParameters[:2]

// checkTLS looks at the credentials before QEMU does, where their files can be read from here, and refuses in clear words what the handshake would
// refuse, or never finish. It changes nothing.
func (m *migration) checkTLS() error {
	t := m.plan.TLS
	if t == nil {
		return m.sameSecurity()
	}
	if t.NoVerify {
		m.rec.Warn("TLS without verification: the memory was encrypted for whoever answered, and taken from whoever came")
	}
	if t.Kind == plan.PSK {
		return m.checkPSK()
	}
	src, err := m.readX509(m.src, t.SourceDir, tlscreds.Client)
	if err != nil {
		return err
	}
	dst, err := m.readX509(m.dst, t.DestinationDir, tlscreds.Server)
	if err != nil || t.NoVerify {
		return err
	}
	const ours = "; or leave the folders out, and new ones are made"
	if src != nil && src.Anonymous() {
		return fmt.Errorf("source would be refused: %s has no %s, and the destination lets no client in without one: add it and its key%s", t.SourceDir, tlscreds.CertFile(tlscreds.Client), ours)
	}
	if src != nil && t.Authz != "" && src.Name() != t.Authz {
		return fmt.Errorf("source would be refused: its certificate is %s, and --tls-authz lets only %s in: give its exact name", src.Name(), t.Authz)
	}
	name := t.Hostname
	if name == "" {
		name = m.plan.Host()
	}
	if dst != nil {
		if err := dst.GoodFor(name); err != nil {
			return fmt.Errorf("destination would be refused: %w, which the source connects to: give a name that it has with --tls-hostname%s", err, ours)
		}
	}
	if src == nil || dst == nil {
		return nil
	}
	if err := src.Accepts(dst, m.now(m.src)); err != nil {
		return fmt.Errorf("destination would be refused: %w: give both sides certificates of one authority%s", err, ours)
	}
	if err := dst.Accepts(src, m.now(m.dst)); err != nil {
		return fmt.Errorf("source would be refused: %w: give both sides certificates of one authority%s", err, ours)
	}
	return nil
}

// now is the time by the side's clock.
func (m *migration) now(s *side) time.Time { return time.Now().Add(s.offset) }

// reader reads a side's credentials; nil if its files cannot be read from here.
func (s *side) reader(dir string) tlscreds.ReadFile {
	if s.ep.ReadFile == nil {
		return nil
	}
	return func(name string) ([]byte, error) { return s.ep.ReadFile(path.Join(dir, name)) }
}

// wrong puts the side and the folder before what is wrong with a file; a file that only cannot be read is left to QEMU.
func (s *side) wrong(dir string, err error) error {
	switch {
	case err == nil || errors.Is(err, tlscreds.ErrUnreadable):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s's TLS credentials in %s: %w", s.role, dir, err)
	}
	return fmt.Errorf("%s's TLS credentials in %s: %w: replace it, or leave the folders out, and new ones are made", s.role, dir, err)
}

func (m *migration) readX509(s *side, dir string, r tlscreds.Role) (*tlscreds.X509, error) {
	read := s.reader(dir)
	if read == nil {
		return nil, nil
	}
	files, err := tlscreds.ReadX509(read, r, m.now(s))
	return files, s.wrong(dir, err)
}

func (m *migration) checkPSK() error {
	t := m.plan.TLS
	keys := map[*side]string{}
	for s, dir := range map[*side]string{m.src: t.SourceDir, m.dst: t.DestinationDir} {
		read := s.reader(dir)
		if read == nil {
			continue
		}
		key, err := tlscreds.ReadPSK(read, t.User())
		if err := s.wrong(dir, err); err != nil {
			return err
		}
		if key != "" {
			keys[s] = key
		}
	}
	if len(keys) == 2 && !tlscreds.SamePSK(keys[m.src], keys[m.dst]) {
		return fmt.Errorf("source would be refused: the key of user %s in %s is not the one in the destination's %s: give both sides the same %s", t.User(), t.SourceDir, t.DestinationDir, tlscreds.PSKFile)
	}
	return nil
}

// sameSecurity refuses a pair of which one side has been told to encrypt by somebody else, and the other has not.
func (m *migration) sameSecurity() error {
	on := func(s *side) string {
		if id, set := m.plan.Parameters["tls-creds"]; set {
			return id
		}
		return former(s.facts, "tls-creds")
	}
	src, dst := on(m.src), on(m.dst)
	if (src == "") == (dst == "") {
		return nil
	}
	encrypts, not, id := m.src, m.dst, src
	if src == "" {
		encrypts, not, id = m.dst, m.src, dst
	}
	return fmt.Errorf("%s %s has been told to encrypt migrations (tls-creds %s) and %s %s has not: let qmigrate set up both with --tls, or set tls-creds alike on both", encrypts.role, encrypts.ep.Name, id, not.role, not.ep.Name)
}

// former is what a TLS parameter was before us; what a killed run of ours left counts as nothing.
func former(f *facts.Facts, name string) string {
	value, _ := f.Parameters[name].(string)
	if value == plan.CredsID || value == plan.AuthzID {
		return ""
	}
	return value
}

// secure makes the credentials' objects in both QEMUs, before anything else is changed: a QEMU that does not take its files refuses here.
func (m *migration) secure(ctx context.Context) error {
	if m.plan.TLS == nil {
		return nil
	}
	for _, s := range []*side{m.dst, m.src} {
		s.secured = true
		s.removeObjects(ctx)
		for _, object := range m.plan.TLS.Objects(s.role) {
			if err := s.control.Execute(ctx, "object-add", object, nil); err != nil {
				return fmt.Errorf("give %s its TLS credentials: %w", s.role, err)
			}
		}
	}
	return nil
}

// parametersOf are the plan's parameters and those that name one side's credentials. What a killed run of ours left is
// unset, and so is a mode in which `migrate` is something else than a move.
func (m *migration) parametersOf(s *side) map[string]any {
	all := maps.Clone(m.parameters)
	if mode := s.facts.Parameters["mode"]; mode != nil && mode != "normal" && all["mode"] == nil {
		all["mode"] = "normal"
	}
	switch {
	case m.plan.TLS != nil:
		maps.Copy(all, m.plan.TLS.Parameters(s.role))
	case s.facts.Parameters["tls-creds"] == plan.CredsID:
		if _, set := all["tls-creds"]; !set {
			for _, name := range unsettable {
				all[name] = ""
			}
		}
	}
	return all
}

// unsecure takes the credentials out of both QEMUs again, as far as they can be reached, so that a later migration finds them as we did. A session under
// way keeps what it has. A post-copy that is paused needs them for its next connection and keeps them. It is harmless twice.
func (m *migration) unsecure(ctx context.Context) {
	if strings.HasPrefix(m.src.status, "postcopy-") || strings.HasPrefix(m.dst.status, "postcopy-") {
		return
	}
	for _, s := range []*side{m.src, m.dst} {
		if !s.secured || s.control.Err() != nil {
			continue
		}
		s.secured = false
		limited, cancel := context.WithTimeout(ctx, answerLimit)
		before := map[string]any{}
		for _, name := range unsettable {
			before[name] = former(s.facts, name)
		}
		if m.plan.TLS.Authz != "" && s == m.dst {
			before["tls-authz"] = former(s.facts, "tls-authz")
		}
		err := s.control.SetMigrateParameters(limited, before)
		if err == nil {
			err = s.removeObjects(limited)
		}
		cancel()
		if err != nil && s.control.Err() == nil {
			m.rec.Warn("the TLS credentials could not be taken out of the %s QEMU again: %v; `object-del` of %s does it", s.role, err, plan.CredsID)
		}
	}
}

// removeObjects removes our objects; one that is not there is none to remove.
func (s *side) removeObjects(ctx context.Context) error {
	for _, id := range []string{plan.CredsID, plan.AuthzID} {
		err := s.control.Execute(ctx, "object-del", map[string]string{"id": id}, nil)
		var refusal *qmp.CommandError
		if err != nil && !(errors.As(err, &refusal) && strings.Contains(refusal.Desc, "not found")) {
			return err
		}
	}
	return nil
}

// refusals are what the source's QEMU says when it refuses the destination, and what that means. Seen on 7.2.22 and 10.0.2.
var refusals = []struct{ said, means string }{
	{"hasn't got a known issuer", "the destination's certificate was not signed by an authority that the source knows: give both sides certificates of one authority"},
	{"does not match the hostname", "the destination's certificate is good for another name: give the one that it has with --tls-hostname"},
	{"certificate has expired", "the destination's certificate has expired: make a new one"},
	{"certificate is not yet activated", "the destination's certificate is not good yet: look at the clocks of both hosts"},
	{"certificate has been revoked", "the destination's certificate is on the list of revoked ones"},
}

// explain adds to a failure what it means where a handshake was refused. A destination that refuses says so on its standard error alone, neither in an
// event nor in query-migrate (migration_tls_incoming_handshake; 7.2 and 10.0): all that is seen is that the source's connection broke
// and nothing has come to the destination.
func (m *migration) explain(ctx context.Context, cause error) error {
	t := m.plan.TLS
	refused := func(text string) string {
		for _, r := range refusals {
			if strings.Contains(text, r.said) {
				return r.means
			}
		}
		return ""
	}
	if means := refused(cause.Error()); means != "" {
		return fmt.Errorf("%w: %s", cause, means)
	}
	if t != nil && m.issued {
		if said := m.src.failure(ctx); refused(said) != "" { // the destination's failure may have been told first
			return fmt.Errorf("%w; source QEMU: %s: %s", cause, said, refused(said))
		}
	}
	if t == nil || !m.issued || m.src.status == "" || m.dst.gone != nil || !m.dst.untouched(ctx) {
		return cause
	}
	if t.Kind == plan.PSK {
		return fmt.Errorf("%w: the destination refused the source: it has no key of user %s, another one, or no TLS; its QEMU's standard error may say more", cause, t.User())
	}
	return fmt.Errorf("%w: the destination refused the source: it was shown no certificate, one of an authority that it does not know, or one whose name --tls-authz does not let in; its QEMU's standard error says which", cause)
}
