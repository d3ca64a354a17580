package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/tlscreds"
	"qmigrate/hostnet/host"
)

// security reads the flags of --tls; nil without it.
func security(x *cli.Context) (*plan.TLS, error) {
	kind := plan.TLSKind(x.String("tls"))
	if !x.IsSet("tls") {
		for _, flag := range []string{"tls-dir-source", "tls-dir-destination", "tls-hostname", "tls-username", "tls-authz", "tls-no-verify"} {
			if x.IsSet(flag) {
				return nil, usagef("--%s is for --tls: give --tls x509 or --tls psk too, or leave it out", flag)
			}
		}
		return nil, nil
	}
	if kind != plan.X509 && kind != plan.PSK {
		return nil, usagef("--tls %q: have %s, %s", kind, plan.PSK, plan.X509)
	}
	other := map[plan.TLSKind][]string{plan.PSK: {"tls-hostname", "tls-authz", "tls-no-verify"}, plan.X509: {"tls-username"}}
	for _, flag := range other[kind] {
		if x.IsSet(flag) {
			return nil, usagef("--%s means nothing to --tls %s: leave it out", flag, kind)
		}
	}
	t := &plan.TLS{
		Kind: kind, Hostname: x.String("tls-hostname"), Username: x.String("tls-username"), Authz: x.String("tls-authz"), NoVerify: x.Bool("tls-no-verify"),
		SourceDir: x.String("tls-dir-source"), DestinationDir: x.String("tls-dir-destination"),
	}
	if (t.SourceDir == "") != (t.DestinationDir == "") {
		return nil, usagef("--tls-dir-source and --tls-dir-destination belong together: give both, or none and new credentials are made")
	}
	for _, dir := range []*string{&t.SourceDir, &t.DestinationDir} {
		if *dir == "" {
			continue
		}
		var err error
		if *dir, err = filepath.Abs(*dir); err != nil { // QEMU runs in another folder
			return nil, err
		}
	}
	for _, flag := range []string{"tls-authz", "tls-hostname"} {
		if t.NoVerify && x.IsSet(flag) {
			return nil, usagef("--%s needs verification: leave --tls-no-verify out", flag)
		}
	}
	return t, nil
}

// credentials makes new ones for QEMUs of this machine where the plan wants TLS and names no folders. What it returns removes them.
func credentials(ctx context.Context, p *plan.Plan, src, dst *endpoint.Endpoint) (remove func() error, err error) {
	remove = func() error { return nil }
	if p.TLS == nil || p.TLS.SourceDir != "" {
		return remove, nil
	}
	source, destination, err := connect.Credentials(p.TLS, p.Hosts()...)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "qmigrate-tls-")
	if err != nil {
		return nil, fmt.Errorf("make folder for TLS credentials: %w", err)
	}
	remove = func() error { return os.RemoveAll(dir) }
	for _, side := range []struct {
		role  string
		ep    *endpoint.Endpoint
		files tlscreds.Files
		into  *string
	}{{"source", src, source, &p.TLS.SourceDir}, {"destination", dst, destination, &p.TLS.DestinationDir}} {
		*side.into = filepath.Join(dir, side.role)
		if err := give(ctx, side.ep, *side.into, side.files); err != nil {
			return nil, errors.Join(fmt.Errorf("make TLS credentials for %s %s: %w", side.role, side.ep.Name, err), remove())
		}
	}
	return remove, os.Chmod(dir, 0o711)
}

// give writes files to a folder of this machine that the endpoint's QEMU, and nobody else, can read.
func give(ctx context.Context, e *endpoint.Endpoint, dir string, files tlscreds.Files) error {
	mend := "put some there yourself and give --tls-dir-source and --tls-dir-destination"
	if len(files) == 0 {
		mend = "a tunnel's socket has to be on this machine"
	}
	p, ok := e.Process.(*peer)
	if !ok {
		return errors.New("its files cannot be written from here: " + mend)
	}
	nc, err := e.Control(ctx)
	if err != nil {
		return err
	}
	if err := nc.Close(); err != nil {
		return err
	}
	if err := connect.WriteCredentials(host.Local(), dir, files); err != nil {
		return err
	}
	if p.proc == nil {
		return errors.New("which process listens there is not known: " + mend)
	}
	uid, gid, err := p.owner()
	if err != nil {
		return err
	}
	if uid != os.Geteuid() {
		for _, name := range append([]string{""}, slices.Sorted(maps.Keys(files))...) {
			if err := os.Chown(filepath.Join(dir, name), uid, gid); err != nil {
				return fmt.Errorf("its QEMU is another user's: %w: %s", err, mend)
			}
		}
	}
	for name := range files {
		if _, err := p.readFile(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("its QEMU does not see this machine's files: %w: %s", err, mend)
		}
	}
	return nil
}

// owner is the user and group that the process runs as.
func (p *peer) owner() (uid, gid int, err error) {
	info, err := os.Stat(fmt.Sprintf("/proc/%d", p.proc.PID()))
	if err != nil {
		return 0, 0, err
	}
	owner := info.Sys().(*syscall.Stat_t)
	return int(owner.Uid), int(owner.Gid), nil
}

// tlsDialer reaches a monitor that QEMU's chardev encrypts (tls-creds). The folder is ours: ca-cert.pem, and client-cert.pem and client-key.pem unless QEMU lets
// anybody in. The monitor has to have a certificate that is good for host.
func tlsDialer(dial endpoint.Dialer, dir, host string) endpoint.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		read := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) }
		config, err := tlscreds.ClientConfig(read, host, time.Now())
		if err != nil {
			return nil, fmt.Errorf("read our TLS credentials in %s: %w", dir, err)
		}
		nc, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		wire := &gathered{Conn: nc}
		c := tls.Client(wire, config)
		if err := c.HandshakeContext(ctx); err != nil {
			nc.Close()
			if errors.As(err, new(tls.RecordHeaderError)) {
				err = fmt.Errorf("%w: that monitor speaks plain text: write it as tcp:HOST:PORT, or give QEMU's chardev tls-creds", err)
			}
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
		return &tlsConn{Conn: c, wire: wire}, nil
	}
}

// tlsConn puts each byte that we write in a record of its own: QEMU before 8.0 reads a monitor byte by byte, and does not look for what it has decrypted
// already, so that it would wait for ever for the rest of a longer record (seen on 7.2.22; mended by ffda5db65a). A command is short.
//
// It also says what an end means that comes instead of the first byte: QEMU looks at the client's certificate only after the handshake.
type tlsConn struct {
	*tls.Conn
	wire    *gathered
	greeted bool
	mu      sync.Mutex
}

func (c *tlsConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wire.begin()
	for i := range b {
		if n, err := c.Conn.Write(b[i : i+1]); err != nil {
			return i + n, errors.Join(err, c.wire.flush())
		}
	}
	return len(b), c.wire.flush() // after an error nothing more can be sent: the records are numbered
}

// gathered is a connection whose writes between begin and flush leave as one.
type gathered struct {
	net.Conn
	mu     sync.Mutex
	gather bool
	buf    []byte
}

func (g *gathered) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gather = true
}

func (g *gathered) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gather {
		g.buf = append(g.buf, b...)
		return len(b), nil
	}
	return g.Conn.Write(b)
}

func (g *gathered) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := g.Conn.Write(g.buf)
	g.gather, g.buf = false, g.buf[:0]
	return err
}

func (c *tlsConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.greeted && n == 0 && err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, fmt.Errorf("the monitor let us in and closed at once: it wants a client certificate that its authority has signed and its tls-authz allows: %w", unexpected(err))
	}
	c.greeted = c.greeted || n > 0
	return n, err
}

// unexpected makes an end one that was not.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
