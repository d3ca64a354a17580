package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/tunnel"
	"qmigrate/hostnet/host"
)

// tunnelKind reads --tunnel; empty without it.
func tunnelKind(x *cli.Context) (plan.TunnelKind, error) {
	kind := plan.TunnelKind(x.String("tunnel"))
	if !x.IsSet("tunnel") {
		for _, flag := range []string{"tunnel-to", "tunnel-identity", "tunnel-known-hosts", "tunnel-hosts", "tunnel-address"} {
			if x.IsSet(flag) {
				return "", usagef("--%s is for --tunnel: give --tunnel tls or --tunnel ssh too, or leave it out", flag)
			}
		}
		return "", nil
	}
	switch {
	case kind != plan.TLSTunnel && kind != plan.SSHTunnel:
		return "", usagef("--tunnel %q: have %s, %s", kind, plan.TLSTunnel, plan.SSHTunnel)
	case x.IsSet("tls"):
		return "", usagef("--tls and --tunnel: each encrypts all of it: give one of them")
	case x.IsSet("connect"):
		return "", usagef("--connect and --tunnel: the source connects to the tunnel: leave --connect out")
	case x.IsSet("tunnel-to") && kind != plan.SSHTunnel:
		return "", usagef("--tunnel-to is for --tunnel ssh")
	case x.IsSet("listen") && !x.IsSet("tunnel-to"):
		return "", usagef("--listen and --tunnel: the destination listens to the tunnel: leave --listen out, unless --tunnel-to names the destination's host")
	case x.IsSet("tunnel-to") && !x.IsSet("listen"):
		return "", usagef("--tunnel-to needs --listen: where the destination is to listen on its own host, as in --listen unix:/run/qmigrate.sock or tcp:127.0.0.1:4444")
	}
	for _, flag := range []string{"tunnel-identity", "tunnel-known-hosts"} {
		if x.IsSet(flag) && !x.IsSet("tunnel-to") {
			return "", usagef("--%s is for --tunnel-to: without that both ends are in this process, and their keys too", flag)
		}
	}
	return kind, nil
}

// standing is a tunnel and the folder with its sockets; nil for none.
type standing struct {
	*connect.Tunnel
	dir string
}

// note ends the tunnel and writes into the record what it was.
func (s *standing) note(rec *record.Migration) {
	if s == nil {
		return
	}
	s.Note(rec)
	if err := os.RemoveAll(s.dir); err != nil {
		rec.Warn("the tunnel's folder could not be removed: %v", err)
	}
}

// openTunnel opens the tunnel that the plan wants and has the plan go through it.
func openTunnel(x *cli.Context, p *plan.Plan, src, dst *endpoint.Endpoint) (_ *standing, err error) {
	if p.Tunnel == "" {
		return nil, nil
	}
	dir, err := os.MkdirTemp("", "qmigrate-tunnel-")
	if err != nil {
		return nil, fmt.Errorf("make folder for the tunnel's sockets: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := os.Chmod(dir, 0o711); err != nil { // the folders in it are each QEMU's own
		return nil, err
	}
	s := connect.TunnelSpec{Kind: p.Tunnel, Address: x.String("tunnel-address"), In: filepath.Join(dir, "source", "s"), Out: filepath.Join(dir, "destination", "s")}
	from, to, ok := strings.Cut(x.String("tunnel-hosts"), ",")
	if !ok {
		return nil, usagef("--tunnel-hosts %s: write it as SOURCE,DESTINATION, as in netns:a,netns:b", x.String("tunnel-hosts"))
	}
	if s.Source, err = host.Find(x.Context, from); err != nil {
		return nil, usageError{err}
	}
	if s.Destination, err = host.Find(x.Context, to); err != nil {
		return nil, usageError{err}
	}
	if net.ParseIP(s.Address) == nil {
		return nil, usagef("--tunnel-address %s: not an address, such as 127.0.0.1", s.Address)
	}
	if err := give(x.Context, src, filepath.Dir(s.In), nil); err != nil {
		return nil, fmt.Errorf("make a socket for source %s: %w", src.Name, err)
	}
	p.Connect = "unix:" + s.In
	if x.IsSet("tunnel-to") {
		if s.Far, err = sshd(x, s.Source, p.Listen); err != nil {
			return nil, err
		}
	} else {
		if err := give(x.Context, dst, filepath.Dir(s.Out), nil); err != nil {
			return nil, fmt.Errorf("make a socket for destination %s: %w: with --tunnel ssh --tunnel-to it may be on another host", dst.Name, err)
		}
		p.Listen = "unix:" + s.Out
	}
	t, err := connect.OpenTunnel(x.Context, s)
	if err != nil {
		return nil, err
	}
	if err := own(src, s.In); err != nil {
		t.Close()
		return nil, err
	}
	return &standing{t, dir}, nil
}

// sshd is how the near half comes to the sshd of the destination's host, and by that to where the destination listens.
func sshd(x *cli.Context, from host.Host, listen string) (func(context.Context) (tunnel.Carrier, error), error) {
	text := x.String("tunnel-to")
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "ssh" || u.User.Username() == "" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" {
		return nil, usagef("--tunnel-to %s: write it as ssh://USER@HOST[:PORT]", text)
	}
	host := net.JoinHostPort(u.Hostname(), first(u.Port(), "22"))
	network, address, _ := strings.Cut(listen, ":")
	if _, port, err := net.SplitHostPort(address); network != "unix" && (network != "tcp" || err != nil || port == "0") || address == "" {
		return nil, usagef("--listen %s: with --tunnel-to it is unix:PATH or tcp:HOST:PORT, with a port that is known beforehand", listen)
	}
	home, err := os.UserHomeDir()
	if err != nil && (!x.IsSet("tunnel-identity") || !x.IsSet("tunnel-known-hosts")) {
		return nil, fmt.Errorf("find SSH keys: %w: give --tunnel-identity and --tunnel-known-hosts", err)
	}
	identity := first(x.String("tunnel-identity"), filepath.Join(home, ".ssh", "id_ed25519"))
	pem, err := os.ReadFile(identity)
	if err != nil {
		return nil, fmt.Errorf("read SSH key: %w: give another with --tunnel-identity FILE", err)
	}
	key, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return nil, fmt.Errorf("read SSH key %s: %w: give one in the clear with --tunnel-identity FILE", identity, err)
	}
	known := first(x.String("tunnel-known-hosts"), filepath.Join(home, ".ssh", "known_hosts"))
	check, err := knownhosts.New(known)
	if err != nil {
		return nil, fmt.Errorf("read known hosts: %w: give another with --tunnel-known-hosts FILE", err)
	}
	config := &ssh.ClientConfig{User: u.User.Username(), Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: check, HostKeyAlgorithms: algorithms(check, host)}
	return func(ctx context.Context) (tunnel.Carrier, error) {
		nc, err := from.Dial(ctx, "tcp", host)
		if err != nil {
			return nil, err
		}
		c, err := tunnel.SSH(ctx, nc, host, config, network, address)
		var unknown *knownhosts.KeyError
		switch {
		case errors.As(err, &unknown) && len(unknown.Want) == 0:
			return nil, fmt.Errorf("%w: %s is not in %s: `ssh-keyscan` shows its key, which you should compare before you add it", err, host, known)
		case errors.As(err, &unknown):
			return nil, fmt.Errorf("%w: %s has another key than %s says: is it another machine, or was it set up anew?", err, host, known)
		case err != nil && strings.Contains(err.Error(), "unable to authenticate"):
			return nil, fmt.Errorf("%w: %s does not let %s in with the key in %s: add its public key to authorized_keys there", err, host, config.User, identity)
		}
		return c, err
	}, nil
}

// algorithms are those of the host's keys that are known, for a host may have others too, which the check would refuse; nil: any.
func algorithms(check ssh.HostKeyCallback, host string) (names []string) {
	probe, err := ssh.NewPublicKey(ed25519.PublicKey(make([]byte, ed25519.PublicKeySize))) // nobody's
	if err != nil {
		return nil
	}
	var known *knownhosts.KeyError
	if errors.As(check(host, &net.TCPAddr{IP: net.IPv4zero}, probe), &known) {
		for _, k := range known.Want {
			if k.Key.Type() == ssh.KeyAlgoRSA {
				names = append(names, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
				continue
			}
			names = append(names, k.Key.Type())
		}
	}
	return names
}

// own gives a socket to the endpoint's QEMU, whose user may be another than ours.
func own(e *endpoint.Endpoint, name string) error {
	p, ok := e.Process.(*peer)
	if !ok {
		return nil
	}
	uid, gid, err := p.owner()
	if err != nil || uid == os.Geteuid() {
		return err
	}
	return os.Chown(name, uid, gid)
}
