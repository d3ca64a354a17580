package connect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/setting"
	"qmigrate/engine/tunnel"
	"qmigrate/hostnet/host"
)

// TunnelPlace is where a tunnel between two endpoints has its halves.
type TunnelPlace struct {
	Hosts       *host.Pool // finds the hosts that are named here
	Source      string     // the near half's host; "": where the source's QEMU is
	Destination string     // the far half's host; "": where the destination's QEMU is
	// Address is the destination's host's, on which the far half listens. "": 127.0.0.1 where both halves are on one
	// machine, and else all that the host has.
	Address string
	SSHD    *SSHD // is the far half, and Destination and Address do not matter; nil: the far half is ours
}

// TunnelBetween opens the tunnel that the plan wants, and has the plan go through it; nil if the plan wants none. What
// closes the tunnel removes its sockets.
func TunnelBetween(ctx context.Context, p *plan.Plan, src, dst *endpoint.Endpoint, at TunnelPlace) (_ *Tunnel,
	err error) {
	if p.Tunnel == "" {
		return nil, nil
	}
	s := TunnelSpec{Kind: p.Tunnel, Address: at.Address}
	if s.Source, err = at.host(ctx, at.Source, src); err != nil {
		return nil, err
	}
	if s.Destination, err = at.host(ctx, at.Destination, dst); err != nil {
		return nil, err
	}
	_, near := s.Source.(*host.Far)
	_, far := s.Destination.(*host.Far)
	switch {
	case s.Address != "" && net.ParseIP(s.Address) == nil && !near && !far:
		return nil, setting.Errorf("tunnel-address", s.Address, "no address, such as 127.0.0.1")
	case s.Address == "" && (!near && !far || s.Source.Name() == s.Destination.Name()):
		s.Address = "127.0.0.1"
	case s.Address == "" && far:
		if u, err := url.Parse(s.Destination.Name()); err == nil && u.Scheme == "ssh" {
			s.Names = []string{u.Hostname()}
		}
	}
	if s.InFolder, err = socketFolder(ctx, src, s.Source); err != nil {
		return nil, fmt.Errorf("make a socket for source %s: %w", src.Name, err)
	}
	s.In = path.Join(s.InFolder.Path, "s")
	p.Connect = "unix:" + s.In
	if at.SSHD != nil {
		if near {
			return nil, setting.Errorf("tunnel-to", at.SSHD.Address, "the source is on another host, %s, and your key would have "+
				"to go there: leave tunnel-to out, and both halves are qmigrate's", s.Source.Name())
		}
		if s.Far, err = at.SSHD.far(s.Source, p.Listen); err != nil {
			return nil, err
		}
		return OpenTunnel(ctx, s)
	}
	if s.OutFolder, err = socketFolder(ctx, dst, s.Destination); err != nil {
		return nil, setting.About(fmt.Errorf("make a socket for destination %s: %w: with tunnel ssh and `tunnel-to` it may be on "+
			"another host", dst.Name, err), "tunnel-to")
	}
	s.Out = path.Join(s.OutFolder.Path, "s")
	p.Listen = "unix:" + s.Out
	return OpenTunnel(ctx, s)
}

// host is where a half is to be: the host that is named, or else that of the endpoint's QEMU.
func (at TunnelPlace) host(ctx context.Context, name string, e *endpoint.Endpoint) (host.Host, error) {
	if name == "" {
		h, err := HostOf(ctx, e)
		if errors.Is(err, ErrElsewhere) {
			return host.Local(), nil
		}
		return h, err
	}
	hosts := at.Hosts
	if hosts == nil {
		hosts = new(host.Pool)
	}
	h, err := hosts.Find(ctx, name)
	if err != nil {
		return nil, setting.Errorf("tunnel-hosts", "", "%w", err)
	}
	return h, nil
}

// socketFolder is a new folder for a socket of the endpoint's QEMU, which a half on h is to make.
func socketFolder(ctx context.Context, e *endpoint.Endpoint, h host.Host) (*tunnel.Folder, error) {
	q, err := qemuOf(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("%w: a tunnel's socket has to be where its half is", err)
	}
	if _, far := h.(*host.Far); far && h.Name() != q.host.Name() {
		return nil, fmt.Errorf("the QEMU is on %s, and the tunnel's half on %s: they have no socket in common", q.host.Name(),
			h.Name())
	}
	if q.uid != q.ours && q.ours != 0 {
		return nil, fmt.Errorf("its QEMU is another user's, %d: %w", q.uid, os.ErrPermission)
	}
	return &tunnel.Folder{Path: temporary(h, "qmigrate-tunnel-"), UID: q.uid, GID: q.gid}, nil
}

var errNoFiles = errors.New("its files cannot be written from here")
