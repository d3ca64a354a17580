package tlscreds_test

import (
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/tlscreds"
)

// of reads from a map as from a folder.
func of(f tlscreds.Files) tlscreds.ReadFile {
	return func(name string) ([]byte, error) {
		if b, ok := f[name]; ok {
			return b, nil
		}
		return nil, fs.ErrNotExist
	}
}

func authority(t *testing.T) *tlscreds.Authority {
	t.Helper()
	a, err := tlscreds.NewAuthority(tlscreds.Certificate{Name: "CA"})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t *testing.T, a *tlscreds.Authority, r tlscreds.Role, c tlscreds.Certificate) tlscreds.Files {
	t.Helper()
	f, err := a.Issue(r, c)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestGoodPair(t *testing.T) {
	a := authority(t)
	now := time.Now()
	server, err := tlscreds.ReadX509(of(issue(t, a, tlscreds.Server, tlscreds.Certificate{Name: "b", Hosts: []string{"10.0.0.2", "b.lab"}})), tlscreds.Server, now)
	if err != nil {
		t.Fatal(err)
	}
	client, err := tlscreds.ReadX509(of(issue(t, a, tlscreds.Client, tlscreds.Certificate{Name: "a"})), tlscreds.Client, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(server.Accepts(client, now), client.Accepts(server, now), server.GoodFor("10.0.0.2"), server.GoodFor("b.lab")); err != nil {
		t.Error(err)
	}
	if got := client.Name(); got != "O=qmigrate,CN=a" {
		t.Errorf("client's name is %q", got)
	}
	for _, host := range []string{"10.0.0.3", "a.lab", "b"} {
		if err := server.GoodFor(host); err == nil || !strings.Contains(err.Error(), "is good for b.lab, 10.0.0.2 and not for "+host) {
			t.Errorf("%s: %v", host, err)
		}
	}
	// Another authority's certificates are refused both ways, and one without a certificate too.
	other, err := tlscreds.ReadX509(of(issue(t, authority(t), tlscreds.Client, tlscreds.Certificate{Name: "a"})), tlscreds.Client, now)
	if err != nil {
		t.Fatal(err)
	}
	anonymous, err := tlscreds.ReadX509(of(a.Files()), tlscreds.Client, now)
	if err != nil || !anonymous.Anonymous() || anonymous.Name() != "" {
		t.Fatalf("%+v, %v", anonymous, err)
	}
	for what, err := range map[string]error{
		"not signed by an authority in the server's ca-cert.pem": server.Accepts(other, now),
		"not signed by an authority in the client's ca-cert.pem": other.Accepts(server, now),
		"has no client-cert.pem":                                 server.Accepts(anonymous, now),
	} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %s", err, what)
		}
	}
}

func TestBadFiles(t *testing.T) {
	a := authority(t)
	day := 24 * time.Hour
	good := issue(t, a, tlscreds.Server, tlscreds.Certificate{Name: "b", Hosts: []string{"b"}})
	with := func(name string, content []byte) tlscreds.Files {
		f := maps.Clone(good)
		if content == nil {
			delete(f, name)
		} else {
			f[name] = content
		}
		return f
	}
	for want, f := range map[string]tlscreds.Files{
		"ca-cert.pem is missing":           with("ca-cert.pem", nil),
		"server-cert.pem is missing":       with("server-cert.pem", nil),
		"server-key.pem is missing":        with("server-key.pem", nil),
		"server-cert.pem: there is no cer": with("server-cert.pem", []byte("hello\n")),
		"ca-cert.pem: not a certificate":   with("ca-cert.pem", []byte("-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n")),
		"no private key in PEM":            with("server-key.pem", good["server-cert.pem"]),
		"the key is encrypted":             with("server-key.pem", []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\naGVsbG8=\n-----END ENCRYPTED PRIVATE KEY-----\n")),
		"not that of server-cert.pem":      with("server-key.pem", issue(t, a, tlscreds.Server, tlscreds.Certificate{})["server-key.pem"]),
		"not signed by ca-cert.pem beside": with("ca-cert.pem", authority(t).Files()["ca-cert.pem"]),
		"not a certificate authority's":    with("ca-cert.pem", good["server-cert.pem"]),
		"has expired at":                   issue(t, a, tlscreds.Server, tlscreds.Certificate{NotBefore: time.Now().Add(-2 * day), NotAfter: time.Now().Add(-day)}),
		"is not good before":               issue(t, a, tlscreds.Server, tlscreds.Certificate{NotBefore: time.Now().Add(day), NotAfter: time.Now().Add(2 * day)}),
		"is not one for a server": func() tlscreds.Files {
			f := issue(t, a, tlscreds.Client, tlscreds.Certificate{Name: "c"})
			f["server-cert.pem"], f["server-key.pem"] = f["client-cert.pem"], f["client-key.pem"]
			return f
		}(),
	} {
		_, err := tlscreds.ReadX509(of(f), tlscreds.Server, time.Now())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := tlscreds.ReadX509(func(string) ([]byte, error) { return nil, fs.ErrPermission }, tlscreds.Server, time.Now()); !errors.Is(err, tlscreds.ErrUnreadable) {
		t.Errorf("a file that may not be read: %v", err)
	}
}

func TestPSK(t *testing.T) {
	f, err := tlscreds.PSK("qemu")
	if err != nil {
		t.Fatal(err)
	}
	key, err := tlscreds.ReadPSK(of(f), "qemu")
	if err != nil || len(key) != 64 {
		t.Errorf("key of %d digits, %v", len(key), err)
	}
	if g, err := tlscreds.PSK("qemu"); err != nil || string(g["keys.psk"]) == string(f["keys.psk"]) {
		t.Errorf("twice the same key, or %v", err)
	}
	if _, err := tlscreds.PSK("a:b"); err == nil {
		t.Error("a user's name with a colon was taken")
	}
	for content, want := range map[string]string{
		"":                "there is no key in it",
		"qemu\n":          "not USER:KEY",
		":abcd\n":         "not USER:KEY",
		"qemu:xyz\n":      "not in hexadecimal",
		"qemu:abc\n":      "not in hexadecimal",
		"bob:ab\nal:cd\n": "no key of user qemu, only of bob, al",
	} {
		if _, err := tlscreds.ReadPSK(of(tlscreds.Files{"keys.psk": []byte(content)}), "qemu"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
	if _, err := tlscreds.ReadPSK(of(nil), "qemu"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestConfigs: a client and a server of ours meet with the files, and not with another authority's.
func TestConfigs(t *testing.T) {
	a, now := authority(t), time.Now()
	server, err := tlscreds.ServerConfig(of(issue(t, a, tlscreds.Server, tlscreds.Certificate{Hosts: []string{"b"}})), now)
	if err != nil {
		t.Fatal(err)
	}
	meet := func(f tlscreds.Files, host string) error {
		config, err := tlscreds.ClientConfig(of(f), host, now)
		if err != nil {
			t.Fatal(err)
		}
		x, y := net.Pipe()
		defer x.Close()
		defer y.Close()
		done := make(chan error, 1)
		go func() {
			s := tls.Server(y, server)
			err := s.Handshake()
			if err == nil {
				_, err = s.Write([]byte("x"))
			}
			y.Close()
			done <- err
		}()
		c := tls.Client(x, config)
		err = c.Handshake()
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		x.Close()
		return errors.Join(err, <-done)
	}
	if err := meet(issue(t, a, tlscreds.Client, tlscreds.Certificate{Name: "a"}), "b"); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"another name":      meet(issue(t, a, tlscreds.Client, tlscreds.Certificate{Name: "a"}), "c"),
		"another authority": meet(issue(t, authority(t), tlscreds.Client, tlscreds.Certificate{Name: "a"}), "b"),
		"no certificate":    meet(a.Files(), "b"),
	} {
		if err == nil {
			t.Errorf("%s was let in", what)
		}
	}
}
