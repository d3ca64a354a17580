package tunnel_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"qmigrate/engine/tunnel"
	"qmigrate/guest/guesttest/within"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// way is a tunnel under test.
type way struct {
	near *tunnel.Near
	far  *tunnel.Far
	in   string         // where the near half listens
	out  net.Listener   // where the far half connects to
	link func(net.Conn) // told of each connection between the halves

	accepted chan net.Conn // the far half's end of the first of them
}

// recorder keeps the first connection that it accepts.
type recorder struct {
	net.Listener
	accepted chan net.Conn
}

func (r recorder) Accept() (net.Conn, error) {
	nc, err := r.Listener.Accept()
	if err == nil {
		select {
		case r.accepted <- nc:
		default:
		}
	}
	return nc, err
}

func tlsConfigs(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	near, far, err := tunnel.TLSKeys()
	if err != nil {
		t.Fatal(err)
	}
	if server, err = far.TLSServer(); err != nil {
		t.Fatal(err)
	}
	if client, err = near.TLSClient(); err != nil {
		t.Fatal(err)
	}
	return server, client
}

func sshConfigs(t *testing.T) (server *ssh.ServerConfig, client *ssh.ClientConfig) {
	t.Helper()
	near, far, err := tunnel.SSHKeys()
	if err != nil {
		t.Fatal(err)
	}
	if server, err = far.SSHServer(); err != nil {
		t.Fatal(err)
	}
	if client, err = near.SSHClient(); err != nil {
		t.Fatal(err)
	}
	return server, client
}

// each runs f with a TLS tunnel and an SSH tunnel; all of it is closed when f returns.
func each(t *testing.T, f func(t *testing.T, w *way)) {
	for _, kind := range []string{"tls", "ssh"} {
		t.Run(kind, func(t *testing.T) {
			w := &way{accepted: make(chan net.Conn, 1)}
			listen := func(network, address string) net.Listener {
				l, err := net.Listen(network, address)
				if err != nil {
					t.Fatal(err)
				}
				return l
			}
			dir := t.TempDir()
			w.out = listen("unix", filepath.Join(dir, "o"))
			defer w.out.Close()
			_ = w.out.(*net.UnixListener).SetDeadline(time.Now().Add(within.Limit))
			l := recorder{listen("tcp", "127.0.0.1:0"), w.accepted}
			dial := func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", w.out.Addr().String())
			}
			var connect func(ctx context.Context, nc net.Conn) (tunnel.Carrier, error)
			if kind == "tls" {
				server, client := tlsConfigs(t)
				w.far = tunnel.ServeTLS(l, server, dial)
				connect = func(ctx context.Context, nc net.Conn) (tunnel.Carrier, error) { return tunnel.TLS(ctx, nc, client) }
			} else {
				server, client := sshConfigs(t)
				w.far = tunnel.ServeSSH(l, server, "unix", w.out.Addr().String(), dial)
				connect = func(ctx context.Context, nc net.Conn) (tunnel.Carrier, error) {
					return tunnel.SSH(ctx, nc, "far", client, "unix", w.out.Addr().String())
				}
			}
			defer w.far.Close()
			in := listen("unix", filepath.Join(dir, "i"))
			w.in = in.Addr().String()
			var err error
			w.near, err = tunnel.Start(within.Context(t), in, func(ctx context.Context) (tunnel.Carrier, error) {
				nc, err := net.Dial("tcp", w.far.Addr().String())
				if err != nil {
					return nil, err
				}
				if w.link != nil {
					w.link(nc)
				}
				return connect(ctx, nc)
			})
			if err != nil {
				t.Fatal(err)
			}
			defer w.near.Close()
			f(t, w)
		})
	}
}

func (w *way) open(t *testing.T) *net.UnixConn {
	t.Helper()
	nc, err := net.Dial("unix", w.in)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(within.Limit))
	return nc.(*net.UnixConn)
}

// TestStreams: several streams at once carry different data both ways, with ends that are passed on one by one, and all of it is counted.
func TestStreams(t *testing.T) {
	each(t, func(t *testing.T, w *way) {
		const streams, size = 4, 5 << 20
		var all sync.WaitGroup
		defer within.Wait(t, "the far ends", &all)
		all.Go(func() { // answers with the sum of what came, once its end has come
			for range streams {
				nc, err := w.out.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				_ = nc.SetDeadline(time.Now().Add(within.Limit))
				all.Go(func() {
					defer nc.Close()
					sum := sha256.New()
					if _, err := io.Copy(sum, nc); err != nil {
						t.Error(err)
					}
					if _, err := nc.Write(sum.Sum(nil)); err != nil {
						t.Error(err)
					}
				})
			}
		})
		var mine sync.WaitGroup
		for range streams {
			nc := w.open(t)
			mine.Go(func() {
				data := make([]byte, size)
				_, _ = rand.Read(data)
				if _, err := nc.Write(data); err != nil {
					t.Error(err)
				}
				if err := nc.CloseWrite(); err != nil {
					t.Error(err)
				}
				got, err := io.ReadAll(nc)
				if want := sha256.Sum256(data); err != nil || !bytes.Equal(got, want[:]) {
					t.Errorf("%x, %v", got, err)
				}
			})
		}
		within.Wait(t, "the near ends", &mine)
		if err := w.near.Close(); err != nil {
			t.Error(err)
		}
		if got := w.near.Bytes(); got != streams*(size+sha256.Size) {
			t.Errorf("%d bytes were counted", got)
		}
	})
}

// TestBreaks: when the connection between the halves breaks, both ends see it, and the next one that comes gets a new connection.
func TestBreaks(t *testing.T) {
	each(t, func(t *testing.T, w *way) {
		var mu sync.Mutex
		var links []net.Conn
		w.link = func(nc net.Conn) { mu.Lock(); defer mu.Unlock(); links = append(links, nc) }
		for i := range 3 {
			near := w.open(t)
			if _, err := near.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			far, err := w.out.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_ = far.SetDeadline(time.Now().Add(within.Limit))
			if _, err := io.ReadFull(far, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			switch i {
			case 0: // the far half goes, and with it every connection; the listener cannot come back, so only the stream's end is looked at
				far.Close()
			case 1:
				near.Close()
			case 2:
				w.far.Close()
			}
			for _, end := range []net.Conn{near, far} {
				_ = end.SetReadDeadline(time.Now().Add(10 * time.Second))
				if _, err := end.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("break %d: an end has not seen it: %v", i, err)
				} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
					t.Errorf("break %d: an end has not seen it: %v", i, err)
				}
			}
			far.Close()
			near.Close()
		}
		// Nobody is there any more: who comes is let go, and the reason is kept.
		for limit := time.Now().Add(within.Limit); w.near.Err() == nil; {
			late := w.open(t)
			_ = late.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, err := late.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d, %v", n, err)
			}
			late.Close()
			if time.Now().After(limit) {
				t.Fatal("nothing was said about the break")
			}
		}
	})
}

// TestCut: a connection between the halves that is cut is no orderly end of its streams: the near half says so.
func TestCut(t *testing.T) {
	each(t, func(t *testing.T, w *way) {
		near := w.open(t)
		far, err := w.out.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		between, _ := within.Receive(t, "the connection between the halves", w.accepted)
		between.Close()
		_ = near.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := near.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d, %v", n, err)
		}
		near.Close()
		for limit := time.Now().Add(within.Limit); w.near.Err() == nil; time.Sleep(time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatal("nothing was said about the break")
			}
		}
	})
}

// TestStrangers: neither half takes a peer that does not prove itself, in either direction.
func TestStrangers(t *testing.T) {
	each(t, func(t *testing.T, w *way) {
		_, stranger := tlsConfigs(t)
		_, sshStranger := sshConfigs(t)
		open := stranger.Clone()
		open.InsecureSkipVerify = true // it would talk to anybody: it is the far half that has to refuse
		for name, connect := range map[string]func(nc net.Conn) (tunnel.Carrier, error){
			"another authority": func(nc net.Conn) (tunnel.Carrier, error) { return tunnel.TLS(within.Context(t), nc, stranger) },
			"its certificate":   func(nc net.Conn) (tunnel.Carrier, error) { return tunnel.TLS(within.Context(t), nc, open) },
			"another key": func(nc net.Conn) (tunnel.Carrier, error) {
				return tunnel.SSH(within.Context(t), nc, "far", sshStranger, "unix", w.out.Addr().String())
			},
		} {
			nc, err := net.Dial("tcp", w.far.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
			c, err := connect(nc)
			if err == nil {
				c.Close()
				t.Errorf("%s: a stranger was let in", name)
			} else if strings.Contains(err.Error(), "i/o timeout") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
