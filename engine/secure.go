package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/tlscreds"
	"qmigrate/qmp"
)

// security is the encryption of the migration's connections by the two QEMUs themselves.
type security struct {
	run.Plain
	run  *run.Run
	made []*run.Side // where objects of ours may be
}

// Check looks at the credentials before QEMU does, where their files can be read from here, and refuses in clear words
// what the handshake would refuse, or never finish. It changes nothing.
func (m *security) Check(context.Context) error {
	t := m.run.Plan.TLS
	if t == nil {
		return m.sameSecurity()
	}
	if t.NoVerify {
		m.run.Rec.Warn("TLS without verification: the memory was encrypted for whoever answered, and taken from whoever came")
	}
	if t.Kind == plan.PSK {
		return m.checkPSK()
	}
	src, err := m.readX509(m.run.Src, t.SourceDir, tlscreds.Client)
	if err != nil {
		return err
	}
	dst, err := m.readX509(m.run.Dst, t.DestinationDir, tlscreds.Server)
	if err != nil || t.NoVerify {
		return err
	}
	const ours = "; or leave the folders out, and new ones are made"
	if src != nil && src.Anonymous() {
		return fmt.Errorf("source would be refused: %s has no %s, and the destination lets no client in without one: add "+
			"it and its key%s", t.SourceDir, tlscreds.CertFile(tlscreds.Client), ours)
	}
	if src != nil && t.Authz != "" && src.Name() != t.Authz {
		return fmt.Errorf("source would be refused: its certificate is %s, and tls-authz lets only %s in: give its exact name", src.Name(), t.Authz)
	}
	name := t.Hostname
	if name == "" {
		name = m.run.Plan.Host()
	}
	if dst != nil {
		if err := dst.GoodFor(name); err != nil {
			return fmt.Errorf("destination would be refused: %w, which the source connects to: give a name that it has with "+
				"tls-hostname%s", err, ours)
		}
	}
	if src == nil || dst == nil {
		return nil
	}
	if err := src.Accepts(dst, m.now(m.run.Src)); err != nil {
		return fmt.Errorf("destination would be refused: %w: give both sides certificates of one authority%s", err, ours)
	}
	if err := dst.Accepts(src, m.now(m.run.Dst)); err != nil {
		return fmt.Errorf("source would be refused: %w: give both sides certificates of one authority%s", err, ours)
	}
	return nil
}

// now is the time by the side's clock.
func (m *security) now(s *run.Side) time.Time { return s.Now() }

// reader reads a side's credentials; nil if its files cannot be read from here.
func fileReader(s *run.Side, dir string) tlscreds.ReadFile {
	if s.Endpoint.ReadFile == nil {
		return nil
	}
	return func(name string) ([]byte, error) { return s.Endpoint.ReadFile(path.Join(dir, name)) }
}

// wrong puts the side and the folder before what is wrong with a file; a file that only cannot be read is left to QEMU.
func wrong(s *run.Side, dir string, err error) error {
	switch {
	case err == nil || errors.Is(err, tlscreds.ErrUnreadable):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s's TLS credentials in %s: %w", s.Role, dir, err)
	}
	return fmt.Errorf("%s's TLS credentials in %s: %w: replace it, or leave the folders out, and new ones are made",
		s.Role, dir, err)
}

func (m *security) readX509(s *run.Side, dir string, r tlscreds.Role) (*tlscreds.X509, error) {
	read := fileReader(s, dir)
	if read == nil {
		return nil, nil
	}
	files, err := tlscreds.ReadX509(read, r, m.now(s))
	return files, wrong(s, dir, err)
}

func (m *security) checkPSK() error {
	t := m.run.Plan.TLS
	keys := map[*run.Side]string{}
	for s, dir := range map[*run.Side]string{m.run.Src: t.SourceDir, m.run.Dst: t.DestinationDir} {
		read := fileReader(s, dir)
		if read == nil {
			continue
		}
		key, err := tlscreds.ReadPSK(read, t.User())
		if err := wrong(s, dir, err); err != nil {
			return err
		}
		if key != "" {
			keys[s] = key
		}
	}
	if len(keys) == 2 && !tlscreds.SamePSK(keys[m.run.Src], keys[m.run.Dst]) {
		return fmt.Errorf("source would be refused: the key of user %s in %s is not the one in the destination's %s: give "+
			"both sides the same %s", t.User(), t.SourceDir, t.DestinationDir, tlscreds.PSKFile)
	}
	return nil
}

// sameSecurity refuses a pair of which one side has been told to encrypt by somebody else, and the other has not.
func (m *security) sameSecurity() error {
	on := func(s *run.Side) string {
		if id, set := m.run.Plan.Parameters["tls-creds"]; set {
			return id
		}
		return former(s.Facts, "tls-creds")
	}
	src, dst := on(m.run.Src), on(m.run.Dst)
	if (src == "") == (dst == "") {
		return nil
	}
	encrypts, not, id := m.run.Src, m.run.Dst, src
	if src == "" {
		encrypts, not, id = m.run.Dst, m.run.Src, dst
	}
	return fmt.Errorf("%s %s has been told to encrypt migrations (tls-creds %s) and %s %s has not: let qmigrate set up "+
		"both with tls, or set tls-creds alike on both", encrypts.Role, encrypts.Endpoint.Name, id, not.Role, not.Endpoint.Name)
}

// former is what a TLS parameter was before us; what a killed run of ours left counts as nothing.
func former(f *facts.Facts, name string) string {
	value, _ := f.Parameters[name].(string)
	if value == plan.CredsID || value == plan.AuthzID {
		return ""
	}
	return value
}

// Reserve makes the credentials' objects in both QEMUs, before anything else is changed: a QEMU that does not take its
// files refuses here.
func (m *security) Reserve(ctx context.Context) error {
	if m.run.Plan.TLS == nil {
		return nil
	}
	for _, s := range []*run.Side{m.run.Dst, m.run.Src} {
		m.made = append(m.made, s)
		removeObjects(ctx, s)
		for _, object := range m.run.Plan.TLS.Objects(s.Role) {
			if err := s.Control.Execute(ctx, "object-add", object, nil); err != nil {
				return fmt.Errorf("give %s its TLS credentials: %w", s.Role, err)
			}
		}
	}
	return nil
}

// End takes the credentials out of both QEMUs again, as far as they can be reached, so that a later migration finds
// them as we did. A session under way keeps what it has. A post-copy that is paused needs them for its next connection
// and keeps them. It is harmless twice.
func (m *security) End(ctx context.Context) {
	if strings.HasPrefix(m.run.Src.Status, "postcopy-") || strings.HasPrefix(m.run.Dst.Status, "postcopy-") {
		return
	}
	made := m.made
	m.made = nil
	for _, s := range made {
		if s.Control.Err() != nil {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, run.AnswerLimit)
		before := map[string]any{}
		for _, name := range run.Unsettable {
			before[name] = former(s.Facts, name)
		}
		if m.run.Plan.TLS.Authz != "" && s == m.run.Dst {
			before["tls-authz"] = former(s.Facts, "tls-authz")
		}
		err := s.Control.SetMigrateParameters(limited, before)
		if err == nil {
			err = removeObjects(limited, s)
		}
		cancel()
		if err != nil && s.Control.Err() == nil {
			m.run.Rec.Warn("the TLS credentials could not be taken out of the %s QEMU again: %v; `object-del` of %s does it",
				s.Role, err, plan.CredsID)
		}
	}
}

// removeObjects removes our objects; one that is not there is none to remove.
func removeObjects(ctx context.Context, s *run.Side) error {
	for _, id := range []string{plan.CredsID, plan.AuthzID} {
		err := s.Control.Execute(ctx, "object-del", map[string]string{"id": id}, nil)
		var refusal *qmp.CommandError
		if err != nil && !(errors.As(err, &refusal) && strings.Contains(refusal.Desc, "not found")) {
			return err
		}
	}
	return nil
}

// refusals are what the source's QEMU says when it refuses the destination, and what that means. Seen on 7.2.22 and
// 10.0.2.
var refusals = []struct{ said, means string }{
	{"hasn't got a known issuer", "the destination's certificate was not signed by an authority that the source knows: " +
		"give both sides certificates of one authority"},
	{"does not match the hostname", "the destination's certificate is good for another name: give the one that it has " +
		"with tls-hostname"},
	{"certificate has expired", "the destination's certificate has expired: make a new one"},
	{"certificate is not yet activated", "the destination's certificate is not good yet: look at the clocks of both hosts"},
	{"certificate has been revoked", "the destination's certificate is on the list of revoked ones"},
}

// Explain adds to a failure what it means where a handshake was refused. A destination that refuses says so on its
// standard error alone, neither in an event nor in query-migrate (migration_tls_incoming_handshake; 7.2 and 10.0): all
// that is seen is that the source's connection broke and nothing has come to the destination.
func (m *security) Explain(ctx context.Context, cause error) error {
	t := m.run.Plan.TLS
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
	if t != nil && m.run.Issued {
		if said := m.run.Src.Failure(ctx); refused(said) != "" { // the destination's failure may have been told first
			return fmt.Errorf("%w; source QEMU: %s: %s", cause, said, refused(said))
		}
	}
	if t == nil || !m.run.Issued || m.run.Src.Status == "" || m.run.Dst.Gone != nil || !m.run.Dst.Untouched(ctx) {
		return cause
	}
	if t.Kind == plan.PSK {
		return fmt.Errorf("%w: the destination refused the source: it has no key of user %s, another one, or no TLS; its "+
			"QEMU's standard error may say more", cause, t.User())
	}
	return fmt.Errorf("%w: the destination refused the source: it was shown no certificate, one of an authority that it "+
		"does not know, or one whose name tls-authz does not let in; its QEMU's standard error says which", cause)
}
