package connect

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"qmigrate/engine/setting"
	"qmigrate/engine/tunnel"
	"qmigrate/hostnet/host"
)

// SSHD is the SSH server of a destination's host.
type SSHD struct {
	Address    string // ssh://USER@HOST[:PORT]
	Identity   string // file of the private key for it, not encrypted; "": ~/.ssh/id_ed25519
	KnownHosts string // file that says which key the host has; "": ~/.ssh/known_hosts
}

// far is how the near half comes to the sshd, and by that to where the destination listens.
func (d SSHD) far(from host.Host, listen string) (func(context.Context) (tunnel.Carrier, error), error) {
	u, err := url.Parse(d.Address)
	if err != nil || u.Scheme != "ssh" || u.User.Username() == "" || u.Hostname() == "" ||
		strings.Trim(u.Path, "/") != "" {
		return nil, setting.Errorf("tunnel-to", d.Address, "write it as ssh://USER@HOST[:PORT]")
	}
	host := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "22"))
	network, address, _ := strings.Cut(listen, ":")
	_, port, err := net.SplitHostPort(address)
	if network != "unix" && (network != "tcp" || err != nil || port == "0") || address == "" {
		return nil, setting.Errorf("listen", listen,
			"with tunnel-to it is unix:PATH or tcp:HOST:PORT, with a port that is known "+
				"beforehand")
	}
	home, err := os.UserHomeDir()
	if err != nil && (d.Identity == "" || d.KnownHosts == "") {
		return nil, setting.About(fmt.Errorf("find SSH keys: %w: give `tunnel-identity` and `tunnel-known-hosts`", err),
			"tunnel-identity", "tunnel-known-hosts")
	}
	identity := cmp.Or(d.Identity, filepath.Join(home, ".ssh", "id_ed25519"))
	pem, err := os.ReadFile(identity)
	if err != nil {
		return nil, setting.About(fmt.Errorf("read SSH key: %w: give another with `tunnel-identity` FILE", err),
			"tunnel-identity")
	}
	key, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return nil, setting.About(fmt.Errorf("read SSH key %s: %w: give one in the clear with `tunnel-identity` FILE",
			identity, err),
			"tunnel-identity")
	}
	known := cmp.Or(d.KnownHosts, filepath.Join(home, ".ssh", "known_hosts"))
	check, err := knownhosts.New(known)
	if err != nil {
		return nil, setting.About(fmt.Errorf("read known hosts: %w: give another with `tunnel-known-hosts` FILE", err),
			"tunnel-known-hosts")
	}
	config := &ssh.ClientConfig{User: u.User.Username(), Auth: []ssh.AuthMethod{ssh.PublicKeys(key)},
		HostKeyCallback: check, HostKeyAlgorithms: algorithms(check, host)}
	return func(ctx context.Context) (tunnel.Carrier, error) {
		nc, err := from.Dial(ctx, "tcp", host)
		if err != nil {
			return nil, err
		}
		c, err := tunnel.SSH(ctx, nc, host, config, network, address)
		var unknown *knownhosts.KeyError
		switch {
		case errors.As(err, &unknown) && len(unknown.Want) == 0:
			return nil, fmt.Errorf("%w: %s is not in %s: `ssh-keyscan` shows its key, which you should compare before you "+
				"add it", err, host, known)
		case errors.As(err, &unknown):
			return nil, fmt.Errorf("%w: %s has another key than %s says: is it another machine, or was it set up anew?", err,
				host, known)
		case err != nil && strings.Contains(err.Error(), "unable to authenticate"):
			return nil, fmt.Errorf("%w: %s does not let %s in with the key in %s: add its public key to authorized_keys there",
				err, host, config.User, identity)
		}
		return c, err
	}, nil
}

// algorithms are those of the host's keys that are known, because a host may have others too, which the check would
// refuse; nil: any.
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
