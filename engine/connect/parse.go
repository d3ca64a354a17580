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
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/connect/behind"
	"qmigrate/engine/endpoint"
	"qmigrate/hostnet/host"
)

// local is the name of this machine as a host.
const local = "local"

// again is how long a monitor is tried anew whose host's channel has closed. A link that is lost is noticed within
// 14 s. ssh takes up to 15 s to connect. The helper before holds the monitor for as long as it does not notice.
const again = 40 * time.Second

// Parse reads how people name a QEMU:
//
//	unix:PATH[,PATH[,PATH]]   its control monitor and, if it has them, one for events and one for the sampler
//	unix:FOLDER               a folder with control.qmp, and events.qmp and sampler.qmp if there are such
//	lxc://NAME/PATH[,...]     the same in a container; lxc://lxd/NAME/PATH says whose it is: liblxc, lxd or incus
//	ssh://[USER@]HOST[:PORT]/PATH[,...]   the same on a machine behind ssh
//	libvirt:URI?domain=NAME   the monitor of a libvirt's domain; URI as libvirt has it: see libvirtWords
//	tcp:HOST:PORT[,HOST:PORT[,HOST:PORT]]
//	tcp+tls:HOST:PORT?dir=FOLDER[&hostname=NAME]   the same where QEMU's chardev has tls-creds; FOLDER has our certificate
//
// Nothing is opened yet. Where it runs is known when its control monitor has been connected to. Hosts finds the hosts
// of lxc:// and ssh:// when they are first needed, and has to stay open as long as the endpoint is used; nil: such
// endpoints are refused.
func Parse(text string, hosts *host.Pool) (*endpoint.Endpoint, error) {
	w, err := read(text)
	if err != nil {
		return nil, err
	}
	switch {
	case w.host == "":
		return tcpEndpoint(text, w)
	case w.kind == libvirtKind:
		return libvirtEndpoint(text, w, hosts)
	case w.host == local:
		here := func(context.Context) (host.Host, error) { return host.Local(), nil }
		e := unixEndpoint(text, w.monitors, &peer{name: local, reach: here})
		e.Host, e.Files = "unix:"+w.monitors[0], true
		return e, nil
	case hosts == nil:
		return nil, fmt.Errorf("endpoint %q: a unix: endpoint is wanted here, and no host is reached", text)
	}
	return farEndpoint(text, w, hosts), nil
}

// words are what an endpoint names.
type words struct {
	kind     string   // unix, tcp, tcp+tls
	host     string   // of a unix socket, as host.Pool finds it; "": it is no unix socket
	monitors []string // at most three addresses; the one path may be that of a folder
	libvirt  libvirtWords
}

// read reads an endpoint.
func read(text string) (w words, err error) {
	wrong := func(format string, args ...any) (words, error) {
		return words{}, fmt.Errorf("endpoint %q: %w", text, fmt.Errorf(format, args...))
	}
	kind, rest, _ := strings.Cut(text, ":")
	switch w.kind = kind; {
	case rest == "" || kind != "unix" && kind != "tcp" && kind != "tcp+tls" && kind != "ssh" && kind != "lxc" &&
		kind != libvirtKind:
		return wrong("write it as unix:/run/a.qmp (or a folder with control.qmp), lxc://NAME/run/a.qmp, " +
			"ssh://[USER@]HOST[:PORT]/run/a.qmp, tcp:HOST:PORT, tcp+tls:HOST:PORT?dir=FOLDER or " +
			"libvirt:qemu:///system?domain=NAME")
	case kind == libvirtKind:
		if w.libvirt, err = readLibvirt(rest); err != nil {
			return wrong("%w", err)
		}
		w.host, w.monitors = w.libvirt.host, []string{w.libvirt.session + w.libvirt.socket + "?" + w.libvirt.domain}
		return w, nil
	case kind == "unix":
		w.host = local
	case kind == "tcp+tls":
		rest, _, _ = strings.Cut(rest, "?")
	case kind == "ssh", kind == "lxc":
		w.kind = "unix"
		if w.host, rest, err = hostAndPath(kind, rest); err != nil {
			return wrong("%w", err)
		}
	}
	if w.monitors = strings.Split(rest, ","); len(w.monitors) > 3 {
		return wrong("at most three monitors: control, events, sampler")
	}
	for _, address := range w.monitors {
		if _, _, err := net.SplitHostPort(address); w.kind != "unix" && err != nil {
			return wrong("%w: write it as %s:HOST:PORT", err, kind)
		}
		if w.host != "" && w.host != local && !filepath.IsAbs(address) {
			return wrong("%q is no path that begins with /", address)
		}
	}
	if w.host == local && len(w.monitors) == 1 {
		w.monitors = behind.MonitorsAt(rest)
	}
	return w, nil
}

// hostAndPath splits what follows ssh: or lxc: into the host, as host.Pool finds it, and the path there.
func hostAndPath(kind, rest string) (name, path string, err error) {
	rest, ok := strings.CutPrefix(rest, "//")
	name, path, found := strings.Cut(rest, "/")
	if kind == "ssh" {
		if !ok || !found || path == "" {
			return "", "", errors.New("write it as ssh://[USER@]HOST[:PORT]/PATH of a QMP socket there")
		}
		name = "ssh://" + name
		return name, "/" + path, host.CheckName(name)
	}
	for _, owner := range []host.LXC{host.LibLXC, host.LXD, host.Incus} {
		if name == string(owner) {
			name, path, found = strings.Cut(path, "/")
			// a folder of liblxc's own has slashes in it
			if name, err = url.PathUnescape(name); err != nil {
				return "", "", err
			}
			name = string(owner) + "/" + name
			break
		}
	}
	if !ok || !found || path == "" {
		return "", "", errors.New("write it as lxc://NAME/PATH of a QMP socket in there, or lxc://KIND/NAME/PATH with KIND liblxc, " +
			"lxd or incus")
	}
	name = "lxc:" + name
	return name, "/" + path, host.CheckName(name)
}

// tcpEndpoint is one whose monitors listen on TCP.
func tcpEndpoint(text string, w words) (*endpoint.Endpoint, error) {
	wrap := func(d endpoint.Dialer, _ string) endpoint.Dialer { return d }
	if w.kind == "tcp+tls" {
		var err error
		if wrap, err = tlsOptions(text); err != nil {
			return nil, err
		}
	}
	e := &endpoint.Endpoint{Name: text, Host: addressOf(w.monitors[0]), Log: localLog}
	for i, into := range []*endpoint.Dialer{&e.Control, &e.Events, &e.Sampler} {
		if i < len(w.monitors) {
			*into = wrap(func(ctx context.Context) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", w.monitors[i])
				return conn, refused(err, "tcp", w.monitors[i])
			}, w.monitors[i])
		}
	}
	if w.kind == "tcp" {
		reach := e.Control
		e.Control = func(ctx context.Context) (net.Conn, error) {
			nc, err := reach(ctx)
			if err == nil {
				e.Where = machineOf(nc.RemoteAddr())
			}
			return nc, err
		}
	}
	return e, nil
}

// unixEndpoint is one whose monitors are unix sockets of the peer's host.
func unixEndpoint(text string, monitors []string, p *peer) *endpoint.Endpoint {
	e := &endpoint.Endpoint{Name: text, Process: p, ReadFile: p.readFile, Opened: p.opened, Log: p.log}
	p.found = func(place string) { e.Host = place }
	p.owner = func(_ context.Context, _ host.Host, conn net.Conn) int { return host.Listener(conn) }
	p.monitors = func(ctx context.Context, h host.Host) (string, error) { return monitors[0], nil }
	e.Control = p.dial(func(ctx context.Context, h host.Host) (net.Conn, error) {
		path, err := p.monitors(ctx, h)
		if err != nil {
			return nil, err
		}
		return dial(ctx, h, path)
	})
	others(e, monitors, p)
	return e
}

// others has the endpoint have the monitors beside the first one.
func others(e *endpoint.Endpoint, monitors []string, p *peer) {
	for i, into := range []*endpoint.Dialer{&e.Events, &e.Sampler} {
		if i+1 < len(monitors) {
			*into = p.sameAs(func(ctx context.Context, h host.Host) (net.Conn, error) { return dial(ctx, h, monitors[i+1]) })
		}
	}
}

// farEndpoint is one whose monitors are unix sockets of another host.
func farEndpoint(text string, w words, hosts *host.Pool) *endpoint.Endpoint {
	p := &peer{name: w.host, reach: func(ctx context.Context) (host.Host, error) { return hosts.Find(ctx, w.host) }}
	e := unixEndpoint(text, w.monitors, p)
	e.Host, e.Machine, e.Again = w.host, p.machine, again
	e.Clock = func(ctx context.Context) (clock.Look, error) {
		h, _ := p.process()
		if h == nil {
			var err error
			if h, err = p.host(ctx); err != nil {
				return clock.Look{}, err
			}
		}
		return clockOf(h)(ctx) // over a channel that has closed there is none: a look opens no new one
	}
	e.Reaches = func(ctx context.Context, address string) error {
		h, err := p.host(ctx)
		if err != nil {
			return err
		}
		return reaches(ctx, h, address)
	}
	if len(w.monitors) == 1 { // the path may be a folder's, which only its host knows
		known := ""
		p.monitors = func(ctx context.Context, h host.Host) (string, error) {
			if known != "" {
				return known, nil
			}
			found, err := behind.Monitors().Ask(ctx, h, w.monitors[0])
			if err != nil {
				return "", err
			}
			known = found[0]
			others(e, found, p)
			return known, nil
		}
	}
	return e
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
	x, errX := read(a)
	y, errY := read(b)
	if errX != nil || errY != nil || x.host != y.host || strings.TrimSuffix(x.kind, "+tls") != strings.TrimSuffix(y.kind, "+tls") {
		return ""
	}
	for _, one := range x.monitors {
		for _, other := range y.monitors {
			if one == other || x.host == local && sameFile(one, other) {
				return other
			}
		}
	}
	return ""
}

func sameFile(a, b string) bool {
	one, errA := os.Stat(a)
	other, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(one, other)
}

// dial connects to a monitor of a host.
func dial(ctx context.Context, h host.Host, path string) (net.Conn, error) {
	conn, err := h.Dial(ctx, "unix", path)
	return conn, refused(err, "unix", path)
}

// refused is an error of connecting to a monitor, with what to try.
func refused(err error, network, address string) error {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%w: start QEMU with -qmp %s:%s,server=on,wait=off", err, network, address)
	case errors.Is(err, syscall.EINVAL) && network == "unix":
		return fmt.Errorf("%w: a socket's path may have 107 bytes, this one has %d: use a shorter folder", err,
			len(address))
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: no QEMU listens there, or the one that did is gone", err)
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("%w: another client holds this monitor and others wait for it", err)
	}
	return err
}
