package plan

import (
	"qmigrate/engine/record"
	"qmigrate/engine/setting"
	"qmigrate/engine/tlscreds"
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

// TLS is the encryption of the migration's connections by QEMU itself. Both ends are verified unless NoVerify says
// otherwise.
type TLS struct {
	Kind           TLSKind
	SourceDir      string // folder of the credential files, as the source's QEMU sees it: tlscreds names them
	DestinationDir string // the same on the destination
	// x509: what the destination's certificate has to be good for; default: the host that the source connects to
	Hostname string
	Username string // psk: whose key; default qemu
	// x509: the only distinguished name that the destination lets in: O=lab,CN=a; default: any that is signed
	Authz    string
	NoVerify bool // x509: neither end asks who the other is; encrypted, and open to whoever sits between
}

// DefaultUsername is the user whose key QEMU's psk client looks for, unless told another (crypto/tlscredspsk.c).
const DefaultUsername = "qemu"

// The objects that are made in both QEMUs, and the parameters that name them. An object of this name that is found was
// left by a run that was killed.
const (
	CredsID = "qmigrate-tls"
	AuthzID = "qmigrate-authz"
)

var TlsParameters = []string{"tls-creds", "tls-hostname", "tls-authz"}

// check refuses what needs no QEMU to be refused.
func (t *TLS) check(p Plan) error {
	const forCertificates = "it means nothing to tls psk: leave it out"
	switch {
	case t.Kind != PSK && t.Kind != X509:
		return setting.Errorf("tls", string(t.Kind), "have %s, %s", PSK, X509)
	case t.SourceDir == "":
		return setting.Errorf("tls-dir-source", "", "missing, it belongs to tls-dir-destination: give both, or neither")
	case t.DestinationDir == "":
		return setting.Errorf("tls-dir-destination", "", "missing, it belongs to tls-dir-source: give both, or neither")
	case t.Kind == PSK && t.Hostname != "":
		return setting.Errorf("tls-hostname", t.Hostname, forCertificates)
	case t.Kind == PSK && t.Authz != "":
		return setting.Errorf("tls-authz", t.Authz, forCertificates)
	case t.Kind == PSK && t.NoVerify:
		return setting.Errorf("tls-no-verify", "", forCertificates)
	case t.Kind == X509 && t.Username != "":
		return setting.Errorf("tls-username", t.Username, "it means nothing to tls x509: leave it out")
	case t.NoVerify && t.Authz != "":
		return setting.Errorf("tls-authz", t.Authz, "it needs verification: leave tls-no-verify out")
	case t.NoVerify && t.Hostname != "":
		return setting.Errorf("tls-hostname", t.Hostname, "it needs verification: leave tls-no-verify out")
	}
	for _, name := range TlsParameters {
		if value, set := p.Parameters[name]; set {
			return setting.Errorf("parameter", name+"="+value, "tls %s sets it", t.Kind)
		}
	}
	if host := p.Host(); t.Kind == X509 && t.Hostname == "" && !t.NoVerify && host == "" {
		return setting.Errorf("tls-hostname", "", "missing, and %s has no host's name that the destination's certificate "+
			"could be checked against", p.target())
	}
	return nil
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

func (t *TLS) User() string {
	if t.Username == "" {
		return DefaultUsername
	}
	return t.Username
}

// Objects are what object-add makes on one side.
func (t *TLS) Objects(role record.Holder) (all []map[string]any) {
	creds := map[string]any{"id": CredsID, "qom-type": "tls-creds-" + string(t.Kind)}
	if role == record.Source {
		creds["endpoint"], creds["dir"] = tlscreds.Client, t.SourceDir
	} else {
		creds["endpoint"], creds["dir"] = tlscreds.Server, t.DestinationDir
	}
	switch {
	case t.Kind == X509:
		creds["verify-peer"] = !t.NoVerify
	case role == record.Source: // the server takes each user whose key is in its file
		creds["username"] = t.User()
	}
	all = append(all, creds)
	if t.Authz != "" && role == record.Destination {
		all = append(all, map[string]any{"id": AuthzID, "qom-type": "authz-simple", "identity": t.Authz})
	}
	return all
}

func (t *TLS) Parameters(role record.Holder) map[string]any {
	p := map[string]any{"tls-creds": CredsID, "tls-hostname": ""}
	if role == record.Source {
		p["tls-hostname"] = t.Hostname
	} else if t.Authz != "" {
		p["tls-authz"] = AuthzID
	}
	return p
}

// NBD names the same credentials for a connection that carries a disk from the source to the destination's NBD server,
// between secure and unsecure: server are further members of nbd-server-start's argument, client of blockdev-add's for
// driver nbd. Without TLS, t being nil, both are empty.
func (t *TLS) NBD() (server, client map[string]any) {
	if t == nil {
		return nil, nil
	}
	server, client = map[string]any{"tls-creds": CredsID}, map[string]any{"tls-creds": CredsID}
	if t.Authz != "" {
		server["tls-authz"] = AuthzID
	}
	if t.Hostname != "" {
		client["tls-hostname"] = t.Hostname
	}
	return server, client
}
