package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"path"
	"strings"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/tlscreds"
	"qmigrate/qmp"
)

// TLSKind is what the two ends prove themselves with.
type TLSKind string

// The kinds.
const (
	PSK  TLSKind = "psk"  // both know one key
	X509 TLSKind = "x509" // each has a certificate that the other's authority has signed
)

// TunnelKind is what a tunnel of ours, which package engine/tunnel makes, is.
type TunnelKind string

// The kinds.
const (
	TLSTunnel TunnelKind = "tls"
	SSHTunnel TunnelKind = "ssh"
)

// TLS is the encryption of the migration's connections by QEMU itself. Both ends are verified unless NoVerify says otherwise.
type TLS struct {
	Kind           TLSKind
	SourceDir      string // folder of the credential files, as the source's QEMU sees it: tlscreds names them
	DestinationDir string // the same on the destination
	Hostname       string // x509: what the destination's certificate has to be good for; default: the host that the source connects to
	Username       string // psk: whose key; default qemu
	Authz          string // x509: the only distinguished name that the destination lets in: O=lab,CN=a; default: any that is signed
	NoVerify       bool   // x509: neither end asks who the other is; encrypted, and open to whoever sits between
}

// DefaultUsername is the user whose key QEMU's psk client looks for, unless told another (crypto/tlscredspsk.c).
const DefaultUsername = "qemu"

// The objects that are made in both QEMUs, and the parameters that name them. An object of this name that is found was left by a run that was killed.
const (
	credsID = "qmigrate-tls"
	authzID = "qmigrate-authz"
)

var tlsParameters = []string{"tls-creds", "tls-hostname", "tls-authz"}

// unsettable are those that "" unsets. An empty tls-authz means that nobody is let in, and null, which the schema allows, trips an assertion in 7.2
// (migrate_params_apply): so that one is touched only on a destination for which it was asked.
var unsettable = tlsParameters[:2]

// check refuses what needs no QEMU to be refused.
func (t *TLS) check(p Plan) error {
	switch {
	case t.Kind != PSK && t.Kind != X509:
		return fmt.Errorf("tls %q: have %s, %s", t.Kind, PSK, X509)
	case t.SourceDir == "" || t.DestinationDir == "":
		return fmt.Errorf("tls %s: the folders of both sides' credentials are needed", t.Kind)
	case t.Kind == PSK && (t.Hostname != "" || t.Authz != "" || t.NoVerify):
		return errors.New("tls psk: a host's name, authorization and verification are for certificates: whoever has the key is let in, nobody else is")
	case t.Kind == X509 && t.Username != "":
		return errors.New("tls x509: a user's name is for psk")
	case t.NoVerify && t.Authz != "":
		return errors.New("tls x509: authorization needs verification, without which the destination does not know who comes")
	case t.NoVerify && t.Hostname != "":
		return errors.New("tls x509: a host's name needs verification, without which the source does not look at it")
	}
	for _, name := range tlsParameters {
		if _, set := p.Parameters[name]; set {
			return fmt.Errorf("parameter %s: tls %s sets it", name, t.Kind)
		}
	}
	if host := p.host(); t.Kind == X509 && t.Hostname == "" && !t.NoVerify && host == "" {
		return fmt.Errorf("tls x509: %s has no host's name that the destination's certificate could be held against: give one with --tls-hostname", p.target())
	}
	return nil
}

// target is the URI that the source will connect to, as far as it is known before the destination listens.
func (p Plan) target() string {
	if p.Connect != "" {
		return p.Connect
	}
	return p.Listen
}

// Hosts are the names or addresses by which the source will know the destination: one, or none, as with a unix socket.
func (p Plan) Hosts() []string {
	if host := p.host(); host != "" {
		return []string{host}
	}
	return nil
}

func (p Plan) host() string {
	rest, ok := strings.CutPrefix(p.withDefaults().target(), "tcp:")
	if !ok {
		return ""
	}
	host, _, err := net.SplitHostPort(rest)
	if err != nil {
		return ""
	}
	return host
}

// words is the plan's part that concerns TLS, for the record.
func (t *TLS) words() map[string]any {
	w := map[string]any{"kind": t.Kind, "verify": !t.NoVerify}
	for name, value := range map[string]string{"hostname": t.Hostname, "username": t.Username, "authz": t.Authz} {
		if value != "" {
			w[name] = value
		}
	}
	return w
}

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
	if t.Kind == PSK {
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
		name = m.plan.host()
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
		key, err := tlscreds.ReadPSK(read, t.user())
		if err := s.wrong(dir, err); err != nil {
			return err
		}
		if key != "" {
			keys[s] = key
		}
	}
	if len(keys) == 2 && !tlscreds.SamePSK(keys[m.src], keys[m.dst]) {
		return fmt.Errorf("source would be refused: the key of user %s in %s is not the one in the destination's %s: give both sides the same %s", t.user(), t.SourceDir, t.DestinationDir, tlscreds.PSKFile)
	}
	return nil
}

func (t *TLS) user() string {
	if t.Username == "" {
		return DefaultUsername
	}
	return t.Username
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
func former(f *Facts, name string) string {
	value, _ := f.Parameters[name].(string)
	if value == credsID || value == authzID {
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
		for _, object := range m.plan.TLS.objects(s.role) {
			if err := s.control.Execute(ctx, "object-add", object, nil); err != nil {
				return fmt.Errorf("give %s its TLS credentials: %w", s.role, err)
			}
		}
	}
	return nil
}

// objects are what object-add makes on one side.
func (t *TLS) objects(role record.Holder) (all []map[string]any) {
	creds := map[string]any{"id": credsID, "qom-type": "tls-creds-" + string(t.Kind)}
	if role == record.Source {
		creds["endpoint"], creds["dir"] = tlscreds.Client, t.SourceDir
	} else {
		creds["endpoint"], creds["dir"] = tlscreds.Server, t.DestinationDir
	}
	switch {
	case t.Kind == X509:
		creds["verify-peer"] = !t.NoVerify
	case role == record.Source: // the server takes each user whose key is in its file
		creds["username"] = t.user()
	}
	all = append(all, creds)
	if t.Authz != "" && role == record.Destination {
		all = append(all, map[string]any{"id": authzID, "qom-type": "authz-simple", "identity": t.Authz})
	}
	return all
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
		maps.Copy(all, m.plan.TLS.parameters(s.role))
	case s.facts.Parameters["tls-creds"] == credsID:
		if _, set := all["tls-creds"]; !set {
			for _, name := range unsettable {
				all[name] = ""
			}
		}
	}
	return all
}

func (t *TLS) parameters(role record.Holder) map[string]any {
	p := map[string]any{"tls-creds": credsID, "tls-hostname": ""}
	if role == record.Source {
		p["tls-hostname"] = t.Hostname
	} else if t.Authz != "" {
		p["tls-authz"] = authzID
	}
	return p
}

// NBD names the same credentials for a connection that carries a disk from the source to the destination's NBD server, between secure and unsecure: server
// are further members of nbd-server-start's argument, client of blockdev-add's for driver nbd. Without TLS, t being nil, both are empty.
func (t *TLS) NBD() (server, client map[string]any) {
	if t == nil {
		return nil, nil
	}
	server, client = map[string]any{"tls-creds": credsID}, map[string]any{"tls-creds": credsID}
	if t.Authz != "" {
		server["tls-authz"] = authzID
	}
	if t.Hostname != "" {
		client["tls-hostname"] = t.Hostname
	}
	return server, client
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
			m.rec.Warn("the TLS credentials could not be taken out of the %s QEMU again: %v; `object-del` of %s does it", s.role, err, credsID)
		}
	}
}

// removeObjects removes our objects; one that is not there is none to remove.
func (s *side) removeObjects(ctx context.Context) error {
	for _, id := range []string{credsID, authzID} {
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
	if t.Kind == PSK {
		return fmt.Errorf("%w: the destination refused the source: it has no key of user %s, another one, or no TLS; its QEMU's standard error may say more", cause, t.user())
	}
	return fmt.Errorf("%w: the destination refused the source: it was shown no certificate, one of an authority that it does not know, or one whose name --tls-authz does not let in; its QEMU's standard error says which", cause)
}
