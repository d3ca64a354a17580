package tunnel

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/crypto/ssh"
)

// SSH makes a carrier of a connection to an SSH server, by forwarding to network ("unix" or "tcp") and address as that
// server's host has them: what `ssh -L` does. It owns nc, also after an error. config names the user, his keys, and how
// the host's key is checked; host is the name it is known by.
func SSH(ctx context.Context, nc net.Conn, host string, config *ssh.ClientConfig, network, address string) (Carrier,
	error) {
	limited, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	stop := context.AfterFunc(limited, func() { nc.Close() })
	c, chans, reqs, err := ssh.NewClientConn(nc, host, config)
	if !stop() && err != nil {
		err = fmt.Errorf("%w: %w", limited.Err(), err)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	s := &sshCarrier{client: ssh.NewClient(c, chans, reqs), nc: nc, done: make(chan struct{}), network: network,
		address: address}
	go func() {
		defer close(s.done)
		_ = s.client.Wait()
	}()
	return s, nil
}

type sshCarrier struct {
	client           *ssh.Client
	nc               net.Conn
	done             chan struct{}
	network, address string
}

func (s *sshCarrier) Open(ctx context.Context) (Stream, error) {
	nc, err := s.client.DialContext(ctx, s.network, s.address)
	if err != nil {
		return nil, fmt.Errorf("forward to %s %s: %w", s.network, s.address, err)
	}
	to, ok := nc.(Stream)
	if !ok {
		nc.Close()
		return nil, errors.New("forward: the SSH library's connection cannot end one direction alone")
	}
	return to, nil
}

func (s *sshCarrier) Done() <-chan struct{} { return s.done }

func (s *sshCarrier) Close() error {
	err := s.nc.Close()
	_ = s.client.Close()
	<-s.done
	return err
}

// sshUser is who the two ends of SSHKeys are to each other.
const sshUser = "qmigrate"

// SSHKeys makes the two halves' keys, each a new one: each half takes the other's and nobody else's.
func SSHKeys() (near, far Keys, err error) {
	for _, half := range []struct{ own, other *Keys }{{&near, &far}, {&far, &near}} {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return near, far, fmt.Errorf("make SSH key: %w", err)
		}
		key, err := ssh.NewPublicKey(public)
		if err != nil {
			return near, far, fmt.Errorf("make SSH key: %w", err)
		}
		half.own.SSH, half.other.Other = private, key.Marshal()
	}
	return near, far, nil
}

// signer is a half's own key.
func (k Keys) signer() (ssh.Signer, error) {
	if len(k.SSH) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("read SSH key: it has %d bytes, want %d", len(k.SSH), ed25519.PrivateKeySize)
	}
	return ssh.NewSignerFromSigner(ed25519.PrivateKey(k.SSH))
}

// SSHServer is what the far half's connections need.
func (k Keys) SSHServer() (*ssh.ServerConfig, error) {
	own, err := k.signer()
	if err != nil {
		return nil, err
	}
	c := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != sshUser || !bytes.Equal(key.Marshal(), k.Other) {
			return nil, errors.New("not the source's key")
		}
		return nil, nil
	}}
	c.AddHostKey(own)
	return c, nil
}

// SSHClient is what the near half's connections need.
func (k Keys) SSHClient() (*ssh.ClientConfig, error) {
	own, err := k.signer()
	if err != nil {
		return nil, err
	}
	other, err := ssh.ParsePublicKey(k.Other)
	if err != nil {
		return nil, fmt.Errorf("read SSH key of the other half: %w", err)
	}
	return &ssh.ClientConfig{User: sshUser, Auth: []ssh.AuthMethod{ssh.PublicKeys(own)},
		HostKeyCallback: ssh.FixedHostKey(other)}, nil
}

// ServeSSH is the far half where no sshd is: a peer that proves itself may forward to network and address, by dial, and
// do nothing else. Close closes l too.
func ServeSSH(l net.Listener, config *ssh.ServerConfig, network, address string,
	dial func(context.Context) (net.Conn, error)) *Far {
	return serve(l, func(g *group, nc net.Conn) {
		stop := context.AfterFunc(g.ctx, func() { nc.Close() })
		defer stop()
		c, chans, reqs, err := ssh.NewServerConn(nc, config)
		if err != nil {
			return
		}
		if !g.hold(c) {
			return
		}
		defer g.release(c)
		g.wait.Go(func() { ssh.DiscardRequests(reqs) })
		for ch := range chans {
			if !asks(ch, network, address) {
				_ = ch.Reject(ssh.Prohibited, "only the migration's own address may be forwarded to")
				continue
			}
			from, requests, err := ch.Accept()
			if err != nil {
				continue
			}
			g.wait.Go(func() { ssh.DiscardRequests(requests) })
			g.wait.Go(func() { g.forward(from, dial) })
		}
	})
}

// asks tells whether a channel is to be forwarded to that address. Source: RFC 4254, 7.2; OpenSSH's PROTOCOL, 2.4.
func asks(ch ssh.NewChannel, network, address string) bool {
	switch ch.ChannelType() {
	case "direct-tcpip":
		var to struct {
			Host       string
			Port       uint32
			Origin     string
			OriginPort uint32
		}
		return ssh.Unmarshal(ch.ExtraData(), &to) == nil && network == "tcp" &&
			address == net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port)))
	case "direct-streamlocal@openssh.com":
		var to struct {
			Path      string
			Reserved0 string
			Reserved1 uint32
		}
		return ssh.Unmarshal(ch.ExtraData(), &to) == nil && network == "unix" && address == to.Path
	}
	return false
}
