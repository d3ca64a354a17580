package connect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/setting"
	"qmigrate/hostnet/host"
)

// TunnelPlace is where a tunnel between two endpoints of this machine has its halves.
type TunnelPlace struct {
	Source      string // the near half's host, as host.Find takes it; "": local
	Destination string // the far half's
	Address     string // of the destination's host, on which the far half listens; "": 127.0.0.1
	SSHD        *SSHD  // is the far half, and Destination and Address do not matter; nil: the far half is in this process
}

// TunnelBetween opens the tunnel that the plan wants, and has the plan go through it; nil if the plan wants none. What
// closes the tunnel removes its sockets.
func TunnelBetween(ctx context.Context, p *plan.Plan, src, dst *endpoint.Endpoint, at TunnelPlace) (_ *Tunnel,
	err error) {
	if p.Tunnel == "" {
		return nil, nil
	}
	s := TunnelSpec{Kind: p.Tunnel, Address: cmp.Or(at.Address, "127.0.0.1")}
	if s.Source, err = host.Find(ctx, cmp.Or(at.Source, "local")); err != nil {
		return nil, setting.Errorf("tunnel-hosts", "", "%w", err)
	}
	if s.Destination, err = host.Find(ctx, cmp.Or(at.Destination, "local")); err != nil {
		return nil, setting.Errorf("tunnel-hosts", "", "%w", err)
	}
	if net.ParseIP(s.Address) == nil {
		return nil, setting.Errorf("tunnel-address", s.Address, "no address, such as 127.0.0.1")
	}
	if s.Folder, err = os.MkdirTemp("", "qmigrate-tunnel-"); err != nil {
		return nil, fmt.Errorf("make folder for the tunnel's sockets: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(s.Folder))
		}
	}()
	if err := os.Chmod(s.Folder, 0o711); err != nil { // the folders in it are each QEMU's own
		return nil, err
	}
	s.In, s.Out = filepath.Join(s.Folder, "source", "s"), filepath.Join(s.Folder, "destination", "s")
	if err := give(ctx, src, filepath.Dir(s.In), nil); err != nil {
		return nil, fmt.Errorf("make a socket for source %s: %w", src.Name, err)
	}
	p.Connect = "unix:" + s.In
	if at.SSHD != nil {
		if s.Far, err = at.SSHD.far(s.Source, p.Listen); err != nil {
			return nil, err
		}
	} else {
		if err := give(ctx, dst, filepath.Dir(s.Out), nil); err != nil {
			return nil, setting.About(fmt.Errorf("make a socket for destination %s: %w: with tunnel ssh and `tunnel-to` it may be on "+
				"another host", dst.Name, err), "tunnel-to")
		}
		p.Listen = "unix:" + s.Out
	}
	t, err := OpenTunnel(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := own(src, s.In); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}
