package tlscreds

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
)

// ErrUnreadable is wrapped by the error of a check for which a file could not be read though it may be there: QEMU may
// be allowed to.
var ErrUnreadable = errors.New("not readable from here")

// X509 is one side's certificates as its files have them.
type X509 struct {
	role  Role
	cas   []*x509.Certificate
	chain []*x509.Certificate // the side's own first; empty: it has none
	key   any                 // nil if it has none, or one of a kind that Go does not know
}

// ReadX509 reads one side's files and says what is wrong with them by themselves at the given time of that side's
// clock. A client may have no certificate: Anonymous tells.
func ReadX509(read ReadFile, r Role, at time.Time) (*X509, error) {
	s := &X509{role: r}
	var err error
	if s.cas, err = certificates(read, CAFile); err != nil {
		return nil, err
	}
	for _, ca := range s.cas {
		if err := inTime(CAFile, ca, at); err != nil {
			return nil, err
		}
		if !ca.IsCA && ca.Version >= 3 {
			return nil, fmt.Errorf("%s: %s is not a certificate authority's: put there the certificate that the other side's "+
				"was signed with", CAFile, DN(ca))
		}
	}
	name := CertFile(r)
	s.chain, err = certificates(read, name)
	if r == Client && errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	own := s.chain[0]
	if err := inTime(name, own, at); err != nil {
		return nil, err
	}
	if len(own.ExtKeyUsage)+len(own.UnknownExtKeyUsage) > 0 && !slices.Contains(own.ExtKeyUsage, purposes[r]) &&
		!slices.Contains(own.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return nil, fmt.Errorf("%s: the certificate %s is not one for a %s: its extended key usage has another purpose", name,
			DN(own), r)
	}
	if err := s.readKey(read); err != nil {
		return nil, err
	}
	if err := s.trusts(s, at); err != nil { // QEMU insists on that (qcrypto_tls_creds_x509_sanity_check)
		return nil, fmt.Errorf("%s: the certificate %s was not signed by %s beside it: %w", name, DN(own), CAFile, err)
	}
	return s, nil
}

// Anonymous tells whether this side has no certificate of its own.
func (s *X509) Anonymous() bool { return len(s.chain) == 0 }

// Name is the distinguished name of the side's certificate, as QEMU's authorization compares it; empty if it has none.
func (s *X509) Name() string {
	if s.Anonymous() {
		return ""
	}
	return DN(s.chain[0])
}

// Accepts says why this side would refuse the peer, at the given time of this side's clock.
func (s *X509) Accepts(peer *X509, at time.Time) error {
	if peer.Anonymous() {
		return fmt.Errorf("it has no %s, and the %s lets no client in without one", CertFile(peer.role), s.role)
	}
	if err := s.trusts(peer, at); err != nil {
		return fmt.Errorf("its certificate %s was not signed by an authority in the %s's %s: %w", peer.Name(), s.role, CAFile,
			err)
	}
	return nil
}

// GoodFor says why the side's certificate is not good for a host that a client knows under this name. GnuTLS falls back
// to the common name where there are no alternative ones, and takes an address that was put among the names.
func (s *X509) GoodFor(host string) error {
	if s.Anonymous() {
		return fmt.Errorf("it has no %s", CertFile(s.role))
	}
	own := s.chain[0]
	if slices.Contains(own.DNSNames, host) || own.VerifyHostname(host) == nil {
		return nil
	}
	names := slices.Clone(own.DNSNames)
	for _, ip := range own.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		names = []string{own.Subject.CommonName}
		if strings.EqualFold(own.Subject.CommonName, host) {
			return nil
		}
	}
	return fmt.Errorf("its certificate %s is good for %s and not for %s", DN(own), strings.Join(names, ", "), host)
}

// trusts says why the peer's chain does not lead to this side's authorities. Times are looked at one by one elsewhere,
// with better words, but for those of certificates between the two.
func (s *X509) trusts(peer *X509, at time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range s.cas {
		roots.AddCert(c)
	}
	for _, c := range peer.chain[1:] {
		between.AddCert(c)
	}
	_, err := peer.chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// readKey reads the private key and holds it against the certificate.
func (s *X509) readKey(read ReadFile) error {
	name := KeyFile(s.role)
	b, err := file(read, name)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(b)
	for block != nil && !strings.HasSuffix(block.Type, "PRIVATE KEY") { // openssl writes EC PARAMETERS before
		block, b = pem.Decode(b)
	}
	switch {
	case block == nil:
		return fmt.Errorf("%s: there is no private key in PEM in it", name)
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return fmt.Errorf("%s: the key is encrypted: give one in the clear, readable by its owner alone", name)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		if key, err = x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
			if key, err = x509.ParseECPrivateKey(block.Bytes); err != nil {
				return nil // of a kind that GnuTLS may know
			}
		}
	}
	s.key = key
	public, ok := s.chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if signer, is := key.(crypto.Signer); ok && is && !public.Equal(signer.Public()) {
		return fmt.Errorf("%s: the key is not that of %s", name, CertFile(s.role))
	}
	return nil
}

func inTime(name string, c *x509.Certificate, at time.Time) error {
	const layout = "2006-01-02 15:04:05 MST"
	switch {
	case at.After(c.NotAfter):
		return fmt.Errorf("%s: the certificate %s has expired at %s", name, DN(c), c.NotAfter.UTC().Format(layout))
	case at.Before(c.NotBefore):
		return fmt.Errorf("%s: the certificate %s is not good before %s, and it is %s there", name, DN(c),
			c.NotBefore.UTC().Format(layout), at.UTC().Format(layout))
	}
	return nil
}

func file(read ReadFile, name string) ([]byte, error) {
	b, err := read(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s is missing: %w", name, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %w", name, ErrUnreadable, err)
	}
	return b, nil
}

func certificates(read ReadFile, name string) (all []*x509.Certificate, err error) {
	b, err := file(read, name)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: not a certificate: %w", name, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: there is no certificate in PEM in it", name)
	}
	return all, nil
}

// DN is a certificate's distinguished name, in the order of the certificate and with the short words of RFC 4514 as
// GnuTLS writes it.
func DN(c *x509.Certificate) string {
	words := map[string]string{"2.5.4.3": "CN", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.9": "STREET",
		"2.5.4.10": "O", "2.5.4.11": "OU",
		"0.9.2342.19200300.100.1.25": "DC", "0.9.2342.19200300.100.1.1": "UID"}
	var sets [][]struct {
		Type  asn1.ObjectIdentifier
		Value any
	}
	type attribute = struct {
		Type  asn1.ObjectIdentifier
		Value any
	}
	var outer asn1.RawValue
	if _, err := asn1.Unmarshal(c.RawSubject, &outer); err != nil {
		return c.Subject.String()
	}
	for rest := outer.Bytes; len(rest) > 0; {
		var set []attribute
		var err error
		if rest, err = asn1.UnmarshalWithParams(rest, &set, "set"); err != nil {
			return c.Subject.String()
		}
		sets = append(sets, set)
	}
	var parts []string
	for _, set := range sets {
		for _, a := range set {
			word := words[a.Type.String()]
			if word == "" {
				word = a.Type.String()
			}
			parts = append(parts, fmt.Sprintf("%s=%v", word, a.Value))
		}
	}
	return strings.Join(parts, ",")
}

// ClientConfig is for a TLS client of ours that shows the folder's client certificate and takes only a server which the
// folder's authority has signed and which is good for host.
func ClientConfig(read ReadFile, host string, at time.Time) (*tls.Config, error) {
	s, err := ReadX509(read, Client, at)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: host, MinVersion: tls.VersionTLS12}
	for _, ca := range s.cas {
		c.RootCAs.AddCert(ca)
	}
	if !s.Anonymous() {
		c.Certificates = []tls.Certificate{s.certificate()}
	}
	return c, nil
}

// ServerConfig is for a TLS server of ours that takes only clients which the folder's authority has signed.
func ServerConfig(read ReadFile, at time.Time) (*tls.Config, error) {
	s, err := ReadX509(read, Server, at)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{ClientCAs: x509.NewCertPool(), ClientAuth: tls.RequireAndVerifyClientCert,
		Certificates: []tls.Certificate{s.certificate()}, MinVersion: tls.VersionTLS13}
	for _, ca := range s.cas {
		c.ClientCAs.AddCert(ca)
	}
	return c, nil
}

func (s *X509) certificate() tls.Certificate {
	c := tls.Certificate{PrivateKey: s.key, Leaf: s.chain[0]}
	for _, link := range s.chain {
		c.Certificate = append(c.Certificate, link.Raw)
	}
	return c
}

// ReadPSK is the key of a user, in hexadecimal, and says what is wrong with the file. QEMU takes the first line that
// begins with the user's name and a colon.
func ReadPSK(read ReadFile, username string) (string, error) {
	b, err := file(read, PSKFile)
	if err != nil {
		return "", err
	}
	var users []string
	for line := range bytes.Lines(b) {
		text := strings.TrimRight(string(line), "\r\n")
		if text == "" {
			continue
		}
		user, key, ok := strings.Cut(text, ":")
		if !ok || user == "" || key == "" {
			return "", fmt.Errorf("%s: a line is not USER:KEY, as psktool writes it", PSKFile)
		}
		if user != username {
			users = append(users, user)
			continue
		}
		if _, err := hex.DecodeString(key); err != nil {
			return "", fmt.Errorf("%s: the key of user %s is not in hexadecimal digits, two for each byte", PSKFile, user)
		}
		return key, nil
	}
	if len(users) == 0 {
		return "", fmt.Errorf("%s: there is no key in it", PSKFile)
	}
	return "", fmt.Errorf("%s: there is no key of user %s, only of %s", PSKFile, username, strings.Join(users, ", "))
}

// SamePSK says whether two keys are the same, however their digits are written.
func SamePSK(a, b string) bool { return strings.EqualFold(a, b) }
