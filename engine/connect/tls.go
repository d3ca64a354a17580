package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/tlscreds"
)

// tlsDialer reaches a monitor that QEMU's chardev encrypts (tls-creds). The folder is ours: ca-cert.pem, and
// client-cert.pem and client-key.pem unless QEMU lets anybody in. The monitor has to have a certificate that is good
// for host.
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
				err = fmt.Errorf("%w: that monitor speaks plain text: write it as tcp:HOST:PORT, or give QEMU's chardev tls-creds",
					err)
			}
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
		return &tlsConn{Conn: c, wire: wire}, nil
	}
}

// tlsConn puts each byte that we write in a record of its own: QEMU before 8.0 reads a monitor byte by byte, and does
// not look for what it has decrypted already, so that it would wait for ever for the rest of a longer record (seen on
// 7.2.22; mended by ffda5db65a). A command is short.
//
// It also says what an end means that comes instead of the first byte: QEMU looks at the client's certificate only
// after the handshake.
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
		return n, fmt.Errorf("the monitor let us in and closed at once: it wants a client certificate that its authority "+
			"has signed and its tls-authz allows: %w", unexpected(err))
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
