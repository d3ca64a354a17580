package engine_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/tlscreds"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// each runs f as a subtest with each pair of QEMUs of which one may have another idea of TLS than the other.
func eachPair(t *testing.T, f func(t *testing.T, source, destination string)) {
	for _, p := range [][2]string{{"7.2", "7.2"}, {"10.0", "10.0"}, {"11.1", "11.1"}, {"7.2", "11.1"}} {
		t.Run(p[0]+"_"+p[1], func(t *testing.T) { f(t, guesttest.QEMU(t, p[0]), guesttest.QEMU(t, p[1])) })
	}
}

// put writes files to a new private folder.
func put(t *testing.T, f tlscreds.Files) string {
	t.Helper()
	dir := guesttest.Dir(t)
	for name, content := range f {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// pki is one authority's files.
type pki struct {
	t  *testing.T
	ca *tlscreds.Authority
}

func newPKI(t *testing.T) pki {
	t.Helper()
	ca, err := tlscreds.NewAuthority(tlscreds.Certificate{Name: "test CA"})
	if err != nil {
		t.Fatal(err)
	}
	return pki{t, ca}
}

func (p pki) issue(r tlscreds.Role, c tlscreds.Certificate) tlscreds.Files {
	p.t.Helper()
	f, err := p.ca.Issue(r, c)
	if err != nil {
		p.t.Fatal(err)
	}
	return f
}

func (p pki) server() tlscreds.Files {
	return p.issue(tlscreds.Server, tlscreds.Certificate{Name: "b", Hosts: []string{"127.0.0.1", "b.lab"}})
}
func (p pki) client() tlscreds.Files {
	return p.issue(tlscreds.Client, tlscreds.Certificate{Name: "a"})
}

func x509(t *testing.T, source, destination tlscreds.Files) *plan.TLS {
	return &plan.TLS{Kind: plan.X509, SourceDir: put(t, source), DestinationDir: put(t, destination)}
}

func psk(t *testing.T, source, destination tlscreds.Files) *plan.TLS {
	return &plan.TLS{Kind: plan.PSK, SourceDir: put(t, source), DestinationDir: put(t, destination)}
}

func newPSK(t *testing.T, user string) tlscreds.Files {
	t.Helper()
	f, err := tlscreds.PSK(user)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// unsealed checks that nothing of ours is left in a QEMU that lives.
func unsealed(t *testing.T, vm *guest.VM) {
	t.Helper()
	nc, err := vm.Dial(within.Context(t), guest.Control)
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(within.Context(t), nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := c.QueryMigrateParameters(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tls-creds", "tls-hostname", "tls-authz"} {
		if v, set := p[name]; set && v != "" && v != nil {
			t.Errorf("%s is left at %v", name, v)
		}
	}
	var objects []struct{ Name, Type string }
	if err := c.Execute(within.Context(t), "qom-list", map[string]string{"path": "/objects"}, &objects); err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if strings.HasPrefix(o.Name, "qmigrate") {
			t.Errorf("object %s is left", o.Name)
		}
	}
}

// twoQEMUs is pair with a version for each side.
func twoQEMUs(t *testing.T, source, destination string) (src, dst *guest.VM) {
	return pair(t, source, func(_, d *guest.Spec) { d.QEMU = destination })
}

func TestTLS(t *testing.T) {
	eachPair(t, func(t *testing.T, source, destination string) {
		p := newPKI(t)
		for name, planned := range map[string]plan.Plan{
			"x509":          {TLS: x509(t, p.client(), p.server())},
			"x509-authz":    {TLS: func() *plan.TLS { s := x509(t, p.client(), p.server()); s.Authz = "O=qmigrate,CN=a"; return s }()},
			"x509-hostname": {Listen: "unix:" + filepath.Join(guesttest.Dir(t), "m"), TLS: func() *plan.TLS { s := x509(t, p.client(), p.server()); s.Hostname = "b.lab"; return s }()},
			"x509-multifd":  {TLS: x509(t, p.client(), p.server()), Capabilities: map[string]bool{"multifd": true}},
			"x509-open":     {TLS: func() *plan.TLS { s := x509(t, p.ca.Files(), p.server()); s.NoVerify = true; return s }()},
			"x509-postcopy": {Mode: record.PostCopyMode, MaxBandwidth: slow, TLS: x509(t, p.client(), p.server())},
			"psk":           {TLS: func() *plan.TLS { f := newPSK(t, "qemu"); return psk(t, f, f) }()},
			"psk-user":      {TLS: func() *plan.TLS { f := newPSK(t, "bob"); s := psk(t, f, f); s.Username = "bob"; return s }()},
			"psk-unix":      {Listen: "unix:" + filepath.Join(guesttest.Dir(t), "m"), TLS: func() *plan.TLS { f := newPSK(t, "qemu"); return psk(t, f, f) }()},
		} {
			t.Run(name, func(t *testing.T) {
				src, dst := twoQEMUs(t, source, destination)
				r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), planned, plan.Options{})
				if err != nil {
					t.Fatal(err)
				}
				wantRecord(t, r)
				if r.Parameters["tls-creds"] != "qmigrate-tls" || r.GuestOn != record.Destination {
					t.Errorf("tls-creds %v, guest on %s", r.Parameters["tls-creds"], r.GuestOn)
				}
				if warned := strings.Contains(strings.Join(r.Warnings, "\n"), "without verification"); warned != planned.TLS.NoVerify {
					t.Errorf("warnings %q", r.Warnings)
				}
				unsealed(t, src)
				unsealed(t, dst)
			})
		}
	})
}

// TestTLSRefusedBefore: what the files show is refused before either QEMU is touched.
func TestTLSRefusedBefore(t *testing.T) {
	qemu := guesttest.QEMU(t, "10.0")
	src, dst := pair(t, qemu, nil)
	p, other := newPKI(t), newPKI(t)
	day := 24 * time.Hour
	past := tlscreds.Certificate{Name: "old", Hosts: []string{"127.0.0.1"}, NotBefore: time.Now().Add(-2 * day),
		NotAfter: time.Now().Add(-day)}
	future := tlscreds.Certificate{Name: "new", Hosts: []string{"127.0.0.1"}, NotBefore: time.Now().Add(day),
		NotAfter: time.Now().Add(2 * day)}
	without := func(f tlscreds.Files, name string) tlscreds.Files {
		f = maps.Clone(f)
		delete(f, name)
		return f
	}
	asClient := func(f tlscreds.Files) tlscreds.Files {
		return tlscreds.Files{"ca-cert.pem": f["ca-cert.pem"], "client-cert.pem": f["server-cert.pem"],
			"client-key.pem": f["server-key.pem"]}
	}
	keys := newPSK(t, "qemu")
	change := func(s *plan.TLS, f func(*plan.TLS)) *plan.TLS { f(s); return s }
	for want, planned := range map[string]plan.Plan{
		"destination would be refused: its certificate O=qmigrate,CN=b was not signed": {TLS: x509(t, other.client(), p.server())},
		"good for c.lab and not for 127.0.0.1, which the source connects to":           {TLS: x509(t, p.client(), p.issue(tlscreds.Server, tlscreds.Certificate{Hosts: []string{"c.lab"}}))},
		"not for d.lab": {TLS: change(x509(t, p.client(), p.server()), func(s *plan.TLS) { s.Hostname = "d.lab" })},
		"destination's TLS credentials in .*server-cert.pem: the certificate O=qmigrate,CN=old has expired": {TLS: x509(t, p.client(), p.issue(tlscreds.Server, past))},
		"source's TLS credentials in .*client-cert.pem: the certificate O=qmigrate,CN=new is not good":      {TLS: x509(t, p.issue(tlscreds.Client, future), p.server())},
		"source would be refused: .* has no client-cert.pem":                                                {TLS: x509(t, p.ca.Files(), p.server())},
		"destination's TLS credentials in .*server-key.pem is missing":                                      {TLS: x509(t, p.client(), without(p.server(), "server-key.pem"))},
		"is not one for a client":                                {TLS: x509(t, asClient(p.server()), p.server())},
		"its certificate is O=qmigrate,CN=a, and tls-authz":      {TLS: change(x509(t, p.client(), p.server()), func(s *plan.TLS) { s.Authz = "CN=z" })},
		"destination's TLS credentials in .*keys.psk is missing": {TLS: psk(t, keys, nil)},
		"the key of user qemu in .* is not the one":              {TLS: psk(t, keys, newPSK(t, "qemu"))},
		"no key of user qemu, only of bob":                       {TLS: psk(t, newPSK(t, "bob"), keys)},
		"not USER:KEY":                                           {TLS: psk(t, tlscreds.Files{"keys.psk": []byte("secret\n")}, keys)},
		"unix:.* has no host's name":                             {Listen: "unix:/x", TLS: x509(t, p.client(), p.server())},
		"tls \"ssl\": have psk, x509":                            {TLS: &plan.TLS{Kind: "ssl"}},
		"tls-dir-destination: missing":                           {TLS: &plan.TLS{Kind: plan.PSK, SourceDir: "/x"}},
		"tls-authz \"CN=a\": it needs verification": {TLS: &plan.TLS{Kind: plan.X509, SourceDir: "/x",
			DestinationDir: "/x", NoVerify: true, Authz: "CN=a"}},
		"would travel beside the tunnel, in clear": {Tunnel: plan.TLSTunnel, Mirror: plan.Mirror{Nodes: []string{"disk0"}}},
		"parameter \"tls-creds=x\": tls psk sets it": {TLS: psk(t, keys, keys),
			Parameters: map[string]string{"tls-creds": "x"}},
	} {
		r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), planned, plan.Options{})
		if err == nil || !matches(want, err.Error()) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v\n   want %s", err, want)
		}
		if err == nil {
			t.FailNow() // that guest has moved
		}
		if r.Error.Stage != record.Initialization || r.GuestOn == record.Destination || state(t, src) != "running" ||
			state(t, dst) != "inmigrate" {
			t.Errorf("%s: stage %s, guest on %s, source %s, destination %s", want, r.Error.Stage, r.GuestOn, state(t, src),
				state(t, dst))
		}
	}
	unsealed(t, src)
	unsealed(t, dst)
}

// TestTLSHandshake: where the files cannot be read from here the handshake refuses, the guest stays safe on the source,
// the text says why, and the next attempt with a fresh destination works.
func TestTLSHandshake(t *testing.T) {
	eachPair(t, func(t *testing.T, source, destination string) {
		p, other := newPKI(t), newPKI(t)
		past := tlscreds.Certificate{Name: "old", Hosts: []string{"127.0.0.1"}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(3 * time.Second)}
		expired := x509(t, p.client(), p.issue(tlscreds.Server, past))
		keys := newPSK(t, "qemu")
		cases := []struct {
			name, want string
			issued     bool
			tls        *plan.TLS
		}{
			{"wrong CA", "not signed by an authority", true, x509(t, other.client(), p.server())},
			{"wrong name", "good for another name: .*tls-hostname", true, x509(t, p.client(), p.issue(tlscreds.Server, tlscreds.Certificate{Hosts: []string{"c.lab"}}))},
			{"expired", "has expired", false, expired},
			{"anonymous", "destination refused the source: it was shown no certificate", true, x509(t, p.ca.Files(), p.server())},
			{"not authorized", "destination refused the source: .*tls-authz", true, func() *plan.TLS { s := x509(t, p.client(), p.server()); s.Authz = "CN=z"; return s }()},
			{"wrong key", "destination refused the source: it has no key of user qemu, another one", true, psk(t, keys, newPSK(t, "qemu"))},
			{"missing key", "keys.psk", false, psk(t, keys, nil)},
		}
		time.Sleep(time.Until(past.NotAfter.Add(time.Second)))
		src, dst := twoQEMUs(t, source, destination)
		next := func() *guest.VM { // the same, unless it was ended
			if state(t, dst) == "dead" {
				dst = fresh(t, dst.Spec())
			}
			return dst
		}
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				to := next()
				a, b := connect.Endpoint(src), connect.Endpoint(to)
				a.ReadFile, b.ReadFile = nil, nil
				ctx, cancel := context.WithTimeout(within.Context(t), time.Minute)
				defer cancel()
				r, err := engine.Migrate(ctx, a, b, plan.Plan{TLS: c.tls, MaxBandwidth: 128 << 10}, plan.Options{})
				t.Logf("%v", err)
				if err == nil || !matches(c.want, err.Error()) || ctx.Err() != nil {
					t.Errorf("%v, want %q", err, c.want)
				}
				var stage *record.StageError
				if !errors.As(err, &stage) || stage.Issued != c.issued || stage.Guest != record.Source {
					t.Errorf("%+v", stage)
				}
				wantRecord(t, r)
				if got := state(t, src); got != "running" {
					t.Errorf("source is %s", got)
				}
				unsealed(t, src)
				if state(t, to) != "dead" {
					unsealed(t, to)
				}
			})
		}
		// Plain text against TLS, and TLS against plain text: the two sides were set up by somebody else.
		for _, c := range []struct {
			name string
			side string
		}{{"plain text against TLS", "destination"}, {"TLS against plain text", "source"}} {
			t.Run(c.name, func(t *testing.T) {
				to := next()
				vm, role, files := to, tlscreds.Server, p.server()
				if c.side == "source" {
					vm, role, files = src, tlscreds.Client, p.client()
				}
				setUp(t, vm, role, put(t, files))
				_, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(to), plan.Plan{},
					plan.Options{})
				if err == nil || !strings.Contains(err.Error(), c.side) ||
					!strings.Contains(err.Error(), "has been told to encrypt migrations (tls-creds theirs)") {
					t.Errorf("%v", err)
				}
				if a, b := state(t, src), state(t, to); a != "running" || b != "inmigrate" {
					t.Errorf("source %s, destination %s", a, b)
				}
				setUp(t, vm, role, "")
			})
		}
		to := next()
		r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(to),
			plan.Plan{TLS: x509(t, p.client(), p.server())}, plan.Options{})
		if err != nil || r.GuestOn != record.Destination {
			t.Errorf("the next attempt: %v", err)
		}
	})
}

// fresh is a new destination in the place of one that has been used.
func fresh(t *testing.T, s guest.Spec) *guest.VM {
	t.Helper()
	s.Dir = filepath.Join(guesttest.Dir(t), "b")
	vm, err := guest.Start(within.Context(t), host.Local(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

// setUp gives a QEMU credentials as somebody else would; an empty folder takes them away again.
func setUp(t *testing.T, vm *guest.VM, r tlscreds.Role, dir string) {
	t.Helper()
	nc, err := vm.Dial(within.Context(t), guest.Control)
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(within.Context(t), nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if dir == "" {
		err = errors.Join(c.SetMigrateParameters(within.Context(t), map[string]any{"tls-creds": ""}),
			c.Execute(within.Context(t), "object-del", map[string]string{"id": "theirs"}, nil))
	} else {
		err = errors.Join(c.Execute(within.Context(t), "object-add",
			map[string]any{"id": "theirs", "qom-type": "tls-creds-x509", "endpoint": r, "dir": dir}, nil),
			c.SetMigrateParameters(within.Context(t), map[string]any{"tls-creds": "theirs"}))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestTLSLeftover: what a run of ours that was killed left in a QEMU is no obstacle, neither to TLS nor to plain text.
func TestTLSLeftover(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		p := newPKI(t)
		for _, s := range []*plan.TLS{nil, x509(t, p.client(), p.server())} {
			src, dst := pair(t, qemu, nil)
			nc, err := src.Dial(within.Context(t), guest.Control)
			if err != nil {
				t.Fatal(err)
			}
			c, err := qmp.NewConn(within.Context(t), nc, qmp.Options{})
			if err != nil {
				t.Fatal(err)
			}
			left := map[string]any{"id": "qmigrate-tls", "qom-type": "tls-creds-x509", "endpoint": "client",
				"dir": put(t, p.client())}
			err = errors.Join(c.Execute(within.Context(t), "object-add", left, nil),
				c.SetMigrateParameters(within.Context(t), map[string]any{"tls-creds": "qmigrate-tls"}), c.Close())
			if err != nil {
				t.Fatal(err)
			}
			r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), plan.Plan{TLS: s},
				plan.Options{})
			if err != nil || r.GuestOn != record.Destination {
				t.Errorf("%v", err)
			}
			if used := r.Parameters["tls-creds"] == "qmigrate-tls"; used != (s != nil) {
				t.Errorf("tls-creds was %v", r.Parameters["tls-creds"])
			}
		}
	})
}

// TestSentElsewhere: a source that has sent everything to an address that the user gave, and of which nothing has
// come to our destination, does not leave the guest waiting for ever. But the guest may run where it was sent to: the
// source is not continued, and what may be is said.
func TestSentElsewhere(t *testing.T) {
	src, dst := pair(t, guesttest.QEMU(t, "10.0"), nil)
	l, err := host.Local().Listen(within.Context(t), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		for b := make([]byte, 64<<10); err == nil; {
			_, err = nc.Read(b)
		}
	}()
	elsewhere := "tcp:" + l.Addr().String()
	r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst),
		plan.Plan{Connect: elsewhere}, plan.Options{})
	if err == nil || !strings.Contains(err.Error(), "nothing has come to the destination") || r.GuestOn != record.Unknown {
		t.Errorf("%v; guest on %s", err, r.GuestOn)
	}
	if a, b := state(t, src), state(t, dst); a != "postmigrate" || b != "inmigrate" {
		t.Errorf("source %s, destination %s", a, b)
	}
	if !strings.Contains(err.Error(), elsewhere) ||
		!strings.Contains(err.Error(), "`cont` on unix:"+src.Spec().Socket(guest.Control)) {
		t.Errorf("does not name both possibilities: %v", err)
	}
	within.Receive(t, "the end of what was sent elsewhere", done)
}

// matches tells whether text has the pieces of the pattern, which .* parts, in that order.
func matches(pattern, text string) bool {
	for _, piece := range slices.Collect(strings.SplitSeq(pattern, ".*")) {
		_, rest, ok := strings.Cut(text, piece)
		if !ok {
			return false
		}
		text = rest
	}
	return true
}

// TestTLSNBD: the names that a disk's connection is given are those that QEMU takes, and its handshake holds.
func TestTLSNBD(t *testing.T) {
	eachPair(t, func(t *testing.T, source, destination string) {
		p := newPKI(t)
		s := x509(t, p.client(), p.server())
		s.Authz, s.Hostname = "O=qmigrate,CN=a", "b.lab"
		src, dst := pair(t, source, func(_, d *guest.Spec) {
			d.QEMU = destination
			d.Extra = append(d.Extra, "-blockdev", "null-co,node-name=disk,size=1048576,read-zeroes=on")
		})
		open := func(vm *guest.VM) func(command string, args any) {
			nc, err := vm.Dial(within.Context(t), guest.Control)
			if err != nil {
				t.Fatal(err)
			}
			c, err := qmp.NewConn(within.Context(t), nc, qmp.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return func(command string, args any) {
				t.Helper()
				if err := c.Execute(within.Context(t), command, args, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		onSource, onDestination := open(src), open(dst)
		onSource("object-add", map[string]any{"id": "qmigrate-tls", "qom-type": "tls-creds-x509", "endpoint": "client",
			"dir": s.SourceDir})
		onDestination("object-add", map[string]any{"id": "qmigrate-tls", "qom-type": "tls-creds-x509", "endpoint": "server",
			"dir": s.DestinationDir})
		onDestination("object-add", map[string]any{"id": "qmigrate-authz", "qom-type": "authz-simple", "identity": s.Authz})
		socket := filepath.Join(guesttest.Dir(t), "n")
		server, client := s.NBD()
		start := map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]string{"path": socket}}}
		maps.Copy(start, server)
		onDestination("nbd-server-start", start)
		onDestination("block-export-add", map[string]any{"id": "disk", "type": "nbd", "node-name": "disk", "name": "disk",
			"writable": true})
		add := map[string]any{"driver": "nbd", "node-name": "far", "export": "disk",
			"server": map[string]any{"type": "unix", "path": socket}}
		maps.Copy(add, client)
		onSource("blockdev-add", add)
		onSource("blockdev-del", map[string]string{"node-name": "far"})
		onDestination("nbd-server-stop", nil)
		if a, b := (*plan.TLS)(nil).NBD(); len(a)+len(b) > 0 {
			t.Errorf("%v, %v", a, b)
		}
	})
}
