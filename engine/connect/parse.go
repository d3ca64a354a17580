package connect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"qmigrate/engine/endpoint"
	"qmigrate/guest"
)

// Parse reads how people name a QEMU:
//
//	unix:PATH[,PATH[,PATH]]   its control monitor and, if it has them, one for events and one for the sampler
//	unix:FOLDER               a folder with control.qmp, and events.qmp and sampler.qmp if there are such
//	tcp:HOST:PORT[,HOST:PORT[,HOST:PORT]]
//	tcp+tls:HOST:PORT[,...]?dir=FOLDER[&hostname=NAME]   the same where QEMU's chardev has tls-creds; FOLDER has our certificate
//
// Nothing is opened yet. Where it runs is known when its control monitor has been connected to.
func Parse(text string) (*endpoint.Endpoint, error) {
	kind, addresses, err := monitors(text)
	if err != nil {
		return nil, err
	}
	wrap := func(d endpoint.Dialer, _ string) endpoint.Dialer { return d }
	if kind == "tcp+tls" {
		if wrap, err = tlsOptions(text); err != nil {
			return nil, err
		}
		kind = "tcp"
	}
	e := &endpoint.Endpoint{Name: text, Host: addressOf(kind, addresses[0])}
	for i, into := range []*endpoint.Dialer{&e.Control, &e.Events, &e.Sampler} {
		if i < len(addresses) {
			*into = wrap(dialer(kind, addresses[i]), addresses[i])
		}
	}
	if kind == "tcp" {
		dial := e.Control
		e.Control = func(ctx context.Context) (net.Conn, error) {
			nc, err := dial(ctx)
			if err == nil {
				e.Where = machineOf(nc.RemoteAddr())
			}
			return nc, err
		}
	}
	if kind == "unix" {
		p := &peer{found: func(place string) { e.Host = place }}
		e.Control, e.Process, e.ReadFile, e.Opened, e.Files = p.dial(e.Control), p, p.readFile, p.opened, true
		for _, other := range []*endpoint.Dialer{&e.Events, &e.Sampler} {
			if *other != nil {
				*other = p.sameAs(*other)
			}
		}
	}
	return e, nil
}

// monitors are the monitors that an endpoint names, at most three.
func monitors(text string) (kind string, addresses []string, err error) {
	kind, rest, _ := strings.Cut(text, ":")
	if kind != "unix" && kind != "tcp" && kind != "tcp+tls" || rest == "" {
		return "", nil, fmt.Errorf("endpoint %q: write it as unix:/run/a.qmp (or a folder with control.qmp), tcp:HOST:PORT "+
			"or tcp+tls:HOST:PORT?dir=FOLDER", text)
	}
	if kind == "tcp+tls" {
		rest, _, _ = strings.Cut(rest, "?")
	}
	addresses = strings.Split(rest, ",")
	if len(addresses) > 3 {
		return "", nil, fmt.Errorf("endpoint %q: at most three monitors: control, events, sampler", text)
	}
	for _, address := range addresses {
		if _, _, err := net.SplitHostPort(address); kind != "unix" && err != nil {
			return "", nil, fmt.Errorf("endpoint %q: %w: write it as %s:HOST:PORT", text, err, kind)
		}
	}
	if info, err := os.Stat(rest); kind == "unix" && err == nil && info.IsDir() {
		addresses = nil
		for _, role := range []string{guest.Control, guest.Events, guest.Sampler} {
			path := filepath.Join(rest, role+".qmp")
			if _, err := os.Stat(path); err == nil || role == guest.Control {
				addresses = append(addresses, path)
			}
		}
	}
	return kind, addresses, nil
}

// tlsOptions reads what follows the ? of a tcp+tls endpoint; what it returns encrypts the connection to an address.
func tlsOptions(text string) (func(endpoint.Dialer, string) endpoint.Dialer, error) {
	_, query, _ := strings.Cut(text, "?")
	options, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", text, err)
	}
	for name := range options {
		if name != "dir" && name != "hostname" {
			return nil, fmt.Errorf("endpoint %q: unknown option %s: have dir, hostname", text, name)
		}
	}
	if options.Get("dir") == "" {
		return nil, fmt.Errorf("endpoint %q: the folder of our certificate is missing: write it as "+
			"tcp+tls:HOST:PORT?dir=FOLDER, with ca-cert.pem, client-cert.pem and client-key.pem in it", text)
	}
	return func(d endpoint.Dialer, address string) endpoint.Dialer {
		host, _, _ := net.SplitHostPort(address)
		return tlsDialer(d, options.Get("dir"), cmp.Or(options.Get("hostname"), host))
	}, nil
}

// Shared is a monitor that both endpoints name; empty if there is none. One monitor serves one client, so we would wait
// for ourselves.
func Shared(a, b string) string {
	kindA, as, errA := monitors(a)
	kindB, bs, errB := monitors(b)
	if errA != nil || errB != nil || strings.TrimSuffix(kindA, "+tls") != strings.TrimSuffix(kindB, "+tls") {
		return ""
	}
	for _, x := range as {
		for _, y := range bs {
			one, errX := os.Stat(x)
			other, errY := os.Stat(y)
			if x == y || kindA == "unix" && errX == nil && errY == nil && os.SameFile(one, other) {
				return y
			}
		}
	}
	return ""
}

func dialer(network, address string) endpoint.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		switch {
		case errors.Is(err, syscall.ENOENT):
			return nil, fmt.Errorf("%w: start QEMU with -qmp %s:%s,server=on,wait=off", err, network, address)
		case errors.Is(err, syscall.EINVAL) && network == "unix":
			return nil, fmt.Errorf("%w: a socket's path may have 107 bytes, this one has %d: use a shorter folder", err,
				len(address))
		case errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("%w: no QEMU listens there, or the one that did is gone", err)
		case errors.Is(err, syscall.EAGAIN):
			return nil, fmt.Errorf("%w: another client holds this monitor and others wait for it", err)
		}
		return conn, err
	}
}
