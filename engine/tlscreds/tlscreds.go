// Package tlscreds makes and checks the files that QEMU's tls-creds objects read: certificates of one authority, and
// pre-shared keys. It does no input or output of its own: files go as a map, and come through a function that reads
// one.
package tlscreds

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"strings"
	"time"
)

// Role is which end of a connection the files are for, in QEMU's word: a migration's server is the destination.
type Role string

// The roles.
const (
	Server Role = "server"
	Client Role = "client"
)

// The names that QEMU looks for in a tls-creds object's folder. Source: crypto/tlscredsx509.c and tlscredspsk.c, 7.2
// and 10.0.
const (
	CAFile  = "ca-cert.pem"
	PSKFile = "keys.psk"
)

// CertFile is the name of a role's certificate.
func CertFile(r Role) string { return string(r) + "-cert.pem" }

// KeyFile is the name of a role's private key.
func KeyFile(r Role) string { return string(r) + "-key.pem" }

// Files are a folder's files: names and contents. They hold private keys.
type Files map[string][]byte

// ReadFile reads a file of the folder that the files are in.
type ReadFile func(name string) ([]byte, error)

// Lifetime is how long a certificate is good that names no times; it begins skew before now, for clocks differ.
const (
	Lifetime = 24 * time.Hour
	skew     = time.Hour
)

// Certificate describes a certificate to be made.
type Certificate struct {
	Name      string    // the common name; with the organisation it is what authorization goes by: O=qmigrate,CN=Name
	Hosts     []string  // names and addresses that it is good for
	NotBefore time.Time // zero: an hour ago
	NotAfter  time.Time // zero: in Lifetime
}

// organization is that of every certificate made here.
const organization = "qmigrate"

// Authority signs certificates. Its key is never written anywhere.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority of its own, which nobody trusts who was not given its certificate. Only c's name and
// times count.
func NewAuthority(c Certificate) (*Authority, error) {
	template, key, err := c.template()
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	return &Authority{cert, key}, nil
}

// Files are the authority's certificate alone: what a client without a certificate has.
func (a *Authority) Files() Files { return Files{CAFile: encode("CERTIFICATE", a.cert.Raw)} }

// Issue makes a certificate and its key, and returns all files of that role.
func (a *Authority) Issue(r Role, c Certificate) (Files, error) {
	template, key, err := c.template()
	if err != nil {
		return nil, fmt.Errorf("make %s certificate: %w", r, err)
	}
	// GnuTLS's callers in QEMU want both usages, though an elliptic key enciphers nothing (crypto/tlscredsx509.c, 7.2 and
	// 10.0).
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	template.ExtKeyUsage = []x509.ExtKeyUsage{purposes[r]}
	for _, host := range c.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("make %s certificate: %w", r, err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make %s certificate: %w", r, err)
	}
	files := a.Files()
	maps.Copy(files, Files{CertFile(r): encode("CERTIFICATE", der), KeyFile(r): encode("PRIVATE KEY", private)})
	return files, nil
}

var purposes = map[Role]x509.ExtKeyUsage{Server: x509.ExtKeyUsageServerAuth, Client: x509.ExtKeyUsageClientAuth}

func (c Certificate) template() (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject:      pkix.Name{Organization: []string{organization}, CommonName: c.Name},
		NotBefore:    c.NotBefore, NotAfter: c.NotAfter,
	}
	if t.NotBefore.IsZero() {
		t.NotBefore = now.Add(-skew)
	}
	if t.NotAfter.IsZero() {
		t.NotAfter = now.Add(Lifetime)
	}
	return t, key, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// pskBytes is the length of a made key: 256 bits.
const pskBytes = 32

// PSK makes a file with one new key for one user. Both ends are given the same file.
func PSK(username string) (Files, error) {
	if username == "" || strings.ContainsAny(username, ":\n#") {
		return nil, fmt.Errorf("make pre-shared key: %q cannot be a user's name in %s", username, PSKFile)
	}
	key := make([]byte, pskBytes)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make pre-shared key: %w", err)
	}
	return Files{PSKFile: []byte(username + ":" + hex.EncodeToString(key) + "\n")}, nil
}
