package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine/tlscreds"
	"qmigrate/hostnet/host"
)

// Keys are what a half proves itself by, and knows the other half by. They are data: a half may be on another host,
// and gets them through the channel to it.
type Keys struct {
	TLS   tlscreds.Files `json:"tls,omitempty"`
	SSH   []byte         `json:"ssh,omitempty"`   // its own private key, Ed25519
	Other []byte         `json:"other,omitempty"` // the other half's public key
}

// Folder is made for a half's socket, and removed when the half ends.
type Folder struct {
	Path     string `json:"path"`
	UID, GID int    // of the QEMU that uses the socket
}

// FarSpec is the far half as data. It connects to where the destination's QEMU listens.
type FarSpec struct {
	Keys   Keys    `json:"keys"`
	Listen string  `json:"listen,omitempty"` // the address on which the near half is waited for; "": any of the host's
	Socket string  `json:"socket"`           // on which the destination's QEMU will listen
	Folder *Folder `json:"folder,omitempty"` // made for the socket; nil: it is there
}

// NearSpec is the near half as data. It listens for the source's QEMU.
type NearSpec struct {
	Keys   Keys     `json:"keys"`
	To     []string `json:"to,omitempty"`     // where the far half may be reached, HOST:PORT, the best first
	Far    string   `json:"far,omitempty"`    // its Socket
	Socket string   `json:"socket"`           // made, for the source's QEMU
	Folder *Folder  `json:"folder,omitempty"` // made for the socket; nil: it is there
}

// State is what a half says of itself: when it stands, each second, and when it has ended.
type State struct {
	Addresses []string      `json:"addresses,omitempty"` // of the far half: where it listens, HOST:PORT
	Bytes     int64         `json:"bytes,omitempty"`     // of the near half: see Near.Bytes
	CPU       time.Duration `json:"cpu_ns"`              // of the whole process that it is in, since it began
	Trouble   string        `json:"trouble,omitempty"`   // of the near half: see Near.Err
}

const (
	stateEvery = time.Second
	// idleLimit is how long a half waits for another stream once nobody hears it any more. A post-copy has one all the
	// time.
	idleLimit = 5 * time.Second
	// dialLimit is how long one address of the far half is tried.
	dialLimit = 5 * time.Second
)

// made is the kind of what a half notes.
const made = "tunnel"

// Tasks are this package's, for host.Helper.
func Tasks() []host.Served { return []host.Served{FarTask(), NearTask()} }

// Undos remove what a half left whose helper was killed.
func Undos() map[string]func(context.Context, host.Host, json.RawMessage) error {
	return map[string]func(context.Context, host.Host, json.RawMessage) error{
		made: func(_ context.Context, _ host.Host, what json.RawMessage) error {
			var folder string
			if err := json.Unmarshal(what, &folder); err != nil {
				return err
			}
			return os.RemoveAll(folder)
		},
	}
}

// FarTask is the far half on a host. It goes on when the channel closes, as long as a stream is carried.
func FarTask() host.Task[FarSpec, State] {
	return host.Task[FarSpec, State]{Name: "tunnel.far", Lasting: true,
		Work: func(ctx context.Context, at host.Host, s FarSpec, give func(State) error) error {
			began := processorTime()
			remove, err := s.Folder.make(ctx)
			if err != nil {
				return err
			}
			defer remove()
			l, err := at.Listen(ctx, "tcp", net.JoinHostPort(s.Listen, "0"))
			if err != nil {
				return err
			}
			far, err := s.serve(l, func(ctx context.Context) (net.Conn, error) { return at.Dial(ctx, "unix", s.Socket) })
			if err != nil {
				return errors.Join(err, l.Close())
			}
			defer far.Close()
			all, err := addresses(l.Addr(), s.Listen)
			if err != nil {
				return err
			}
			return far.stand(ctx, func() State { return State{Addresses: all, CPU: processorTime() - began} }, give)
		}}
}

func (s FarSpec) serve(l net.Listener, dial func(context.Context) (net.Conn, error)) (*Far, error) {
	if s.Keys.TLS != nil {
		config, err := s.Keys.TLSServer()
		if err != nil {
			return nil, err
		}
		return ServeTLS(l, config, dial), nil
	}
	config, err := s.Keys.SSHServer()
	if err != nil {
		return nil, err
	}
	return ServeSSH(l, config, "unix", s.Socket, dial), nil
}

// addresses are where a listener may be reached, the best first: by the address that was asked for, or by the host's.
func addresses(at net.Addr, asked string) (all []string, err error) {
	_, port, err := net.SplitHostPort(at.String())
	if err != nil {
		return nil, err
	}
	if asked != "" {
		return []string{net.JoinHostPort(asked, port)}, nil
	}
	ours, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var six []string
	for _, a := range ours {
		n, ok := a.(*net.IPNet)
		switch {
		case !ok || !n.IP.IsGlobalUnicast():
		case n.IP.To4() != nil:
			all = append(all, net.JoinHostPort(n.IP.String(), port))
		default:
			six = append(six, net.JoinHostPort(n.IP.String(), port))
		}
	}
	return append(all, six...), nil
}

// NearTask is the near half on a host. It goes on when the channel closes, as long as a stream is carried.
func NearTask() host.Task[NearSpec, State] {
	return host.Task[NearSpec, State]{Name: "tunnel.near", Lasting: true,
		Work: func(ctx context.Context, at host.Host, s NearSpec, give func(State) error) error {
			return s.Work(ctx, at, func(ctx context.Context) (Carrier, error) { return s.connect(ctx, at) }, give)
		}}
}

// Work is the near half on at, with another way to the far half than its Keys and To.
func (s NearSpec) Work(ctx context.Context, at host.Host, connect func(context.Context) (Carrier, error),
	give func(State) error) error {
	began := processorTime()
	remove, err := s.Folder.make(ctx)
	if err != nil {
		return err
	}
	defer remove()
	l, err := at.Listen(ctx, "unix", s.Socket)
	if err != nil {
		return err
	}
	if s.Folder != nil {
		if err := os.Chown(s.Socket, s.Folder.UID, s.Folder.GID); err != nil {
			return errors.Join(err, l.Close())
		}
	}
	near, err := Start(ctx, l, connect)
	if err != nil {
		return err
	}
	defer near.Close()
	return near.stand(ctx, func() State {
		state := State{Bytes: near.Bytes(), CPU: processorTime() - began}
		if err := near.Err(); err != nil {
			state.Trouble = err.Error()
		}
		return state
	}, give)
}

// connect comes to the far half by the first of its addresses at which it is found.
func (s NearSpec) connect(ctx context.Context, at host.Host) (Carrier, error) {
	var errs []error
	for _, to := range s.To {
		c, err := s.connectTo(ctx, at, to)
		if err == nil {
			return c, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", to, err))
	}
	if errs == nil {
		return nil, errors.New("its host has no address but loopback's")
	}
	return nil, errors.Join(errs...)
}

func (s NearSpec) connectTo(ctx context.Context, at host.Host, to string) (Carrier, error) {
	limited, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	nc, err := at.Dial(limited, "tcp", to)
	if err != nil {
		return nil, err
	}
	if s.Keys.TLS != nil {
		config, err := s.Keys.TLSClient()
		if err != nil {
			return nil, errors.Join(err, nc.Close())
		}
		return TLS(ctx, nc, config)
	}
	config, err := s.Keys.SSHClient()
	if err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	return SSH(ctx, nc, to, config, "unix", s.Far)
}

// make makes the folder; what it returns removes it. nil is none.
func (f *Folder) make(ctx context.Context) (remove func(), err error) {
	if f == nil {
		return func() {}, nil
	}
	removed, err := host.Note(ctx, made, f.Path, f.Path, false)
	if err != nil {
		return nil, err
	}
	remove = func() {
		if os.RemoveAll(f.Path) == nil {
			removed()
		}
	}
	if err := os.Mkdir(f.Path, 0o700); err != nil {
		removed()
		return nil, fmt.Errorf("make a folder for the tunnel's socket: %w", err)
	}
	if err := os.Chown(f.Path, f.UID, f.GID); err != nil {
		remove()
		return nil, fmt.Errorf("give the folder %s of the tunnel's socket to its QEMU's user: %w", filepath.Base(f.Path), err)
	}
	return remove, nil
}

// stand says how a half does until ctx ends, or until nobody hears it and it carries nothing. It ends with the half
// closed.
func (g *group) stand(ctx context.Context, state func() State, give func(State) error) error {
	if err := give(state()); err != nil {
		return err
	}
	every := time.NewTicker(stateEvery)
	defer every.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			g.close()
			_ = give(state()) // the last word, if there is somebody for it
			return nil
		case <-every.C:
		}
		heard := give(state()) == nil
		switch {
		case heard, g.streams.Load() > 0:
			last = time.Now()
		case time.Since(last) >= idleLimit:
			return nil
		}
	}
}

// processorTime is what this process has used so far, in user and system mode. Source: getrusage(2).
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
