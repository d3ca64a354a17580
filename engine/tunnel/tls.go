package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"time"

	"github.com/hashicorp/yamux"

	"qmigrate/engine/tlscreds"
)

// handshakeLimit is how long a peer may take to prove itself.
const handshakeLimit = 10 * time.Second

// settings of the streams in a TLS connection. The window is what may be on its way in each: what it holds back from
// QEMU's own view of the link. A link that stands still is waited for as a plain connection would: TCP ends it, or we
// are told to.
func settings() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 24 * time.Hour
	c.StreamOpenTimeout = 0
	c.MaxStreamWindowSize = 1 << 20
	c.LogOutput = io.Discard
	return c
}

// serverName is what a made server certificate is good for: both ends of a tunnel are ours, wherever they listen.
const serverName = "tunnel"

// TLSKeys makes the two halves' keys with an authority of their own, whose own key is kept nowhere: nobody else can be
// either.
func TLSKeys() (near, far Keys, err error) {
	ca, err := tlscreds.NewAuthority(tlscreds.Certificate{Name: "one tunnel's"})
	if err != nil {
		return near, far, err
	}
	if near.TLS, err = ca.Issue(tlscreds.Client, tlscreds.Certificate{Name: "source"}); err != nil {
		return near, far, err
	}
	far.TLS, err = ca.Issue(tlscreds.Server, tlscreds.Certificate{Name: "destination", Hosts: []string{serverName}})
	return near, far, err
}

func (k Keys) readTLS(name string) ([]byte, error) {
	if b, ok := k.TLS[name]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}

// TLSClient is what the near half's connections need.
func (k Keys) TLSClient() (*tls.Config, error) {
	return tlscreds.ClientConfig(k.readTLS, serverName, time.Now())
}

// TLSServer is what the far half's connections need.
func (k Keys) TLSServer() (*tls.Config, error) { return tlscreds.ServerConfig(k.readTLS, time.Now()) }

// TLS makes a carrier of a connection to a far half that ServeTLS serves. It owns nc, also after an error.
func TLS(ctx context.Context, nc net.Conn, config *tls.Config) (Carrier, error) {
	limited, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	c := tls.Client(nc, config)
	if err := c.HandshakeContext(limited); err != nil {
		nc.Close()
		return nil, err
	}
	// In TLS 1.3 the server looks at the client's certificate after the client has done: its first byte says that it was
	// good.
	stop := context.AfterFunc(limited, func() { nc.Close() })
	_, err := io.ReadFull(c, make([]byte, 1))
	if !stop() {
		err = limited.Err()
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	session, err := yamux.Client(c, settings())
	if err != nil {
		nc.Close()
		return nil, err
	}
	return carrier{session, nc}, nil
}

type carrier struct {
	session *yamux.Session
	nc      net.Conn
}

func (c carrier) Open(context.Context) (Stream, error) {
	s, err := c.session.OpenStream()
	if err != nil {
		return nil, err
	}
	return stream{s}, nil
}

func (c carrier) Done() <-chan struct{} { return c.session.CloseChan() }

// Close does not wait for what a link that stands still would hold up.
func (c carrier) Close() error {
	c.nc.Close()
	return c.session.Close()
}

// stream is a yamux stream: its Close ends our direction alone.
type stream struct{ *yamux.Stream }

func (s stream) CloseWrite() error { return s.Stream.Close() }

func (s stream) Close() error {
	err := s.Stream.Close()
	_ = s.SetDeadline(time.Unix(1, 0)) // wakes who waits in it
	return err
}

func (s stream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	if errors.Is(err, yamux.ErrTimeout) {
		err = net.ErrClosed
	}
	return n, err
}

// ServeTLS is the far half: a peer that proves itself may open streams to where dial leads, and to nothing else. Close
// closes l too.
func ServeTLS(l net.Listener, config *tls.Config, dial func(context.Context) (net.Conn, error)) *Far {
	return serve(l, func(g *group, nc net.Conn) {
		limited, cancel := context.WithTimeout(g.ctx, handshakeLimit)
		c := tls.Server(nc, config)
		err := c.HandshakeContext(limited)
		cancel()
		if err == nil {
			_, err = c.Write([]byte{1})
		}
		if err != nil {
			return
		}
		session, err := yamux.Server(c, settings())
		if err != nil {
			return
		}
		both := carrier{session, nc}
		if !g.hold(both) {
			return
		}
		defer g.release(both)
		for {
			s, err := session.AcceptStream()
			if err != nil {
				return
			}
			g.wait.Go(func() { g.forward(stream{s}, dial) })
		}
	})
}
