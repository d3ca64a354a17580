package connect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/connect/behind"
	"qmigrate/engine/connect/passthrough"
	"qmigrate/engine/endpoint"
	"qmigrate/hostnet/host"
)

// libvirtKind begins an endpoint that is a domain of libvirt.
const libvirtKind = "libvirt"

// libvirtLimit is how long libvirt and a domain's QEMU together may take until the monitor is open. Either may hang.
const libvirtLimit = 10 * time.Second

// libvirtSockets are where a system's libvirt listens: the one daemon, or QEMU's own.
var libvirtSockets = [...]string{"/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"}

// libvirtWords are what a libvirt: endpoint names: URI?domain=NAME, with one of these as URI.
//
//	qemu:///system                              libvirt of this machine
//	qemu+unix:///system?socket=PATH             the same by its socket
//	qemu+ssh://[USER@]HOST[:PORT]/system        that of a machine behind ssh; ?socket=PATH names its socket there
//
// session in the place of system is a user's own libvirt, and needs a socket.
type libvirtWords struct {
	host    string // as host.Pool finds it
	uri     string // libvirt's, for people and virsh
	session string // what the daemon opens
	socket  string // "": the first of libvirtSockets
	domain  string
}

func readLibvirt(text string) (w libvirtWords, err error) {
	u, err := url.Parse(text)
	if err != nil {
		return w, err
	}
	options := u.Query()
	for name := range options {
		if name != "domain" && name != "socket" {
			return w, fmt.Errorf("unknown option %s: have domain, socket; ssh's own settings are in ~/.ssh/config and --ssh-option", name)
		}
	}
	w.domain, w.socket = options.Get("domain"), options.Get("socket")
	switch {
	case w.domain == "":
		return w, errors.New("the domain is missing: write it as libvirt:qemu:///system?domain=NAME")
	case u.Path != "/system" && u.Path != "/session":
		return w, fmt.Errorf("%q is no libvirt of QEMU's: have /system, /session", u.Path)
	case u.Path == "/session" && w.socket == "":
		return w, errors.New("a user's own libvirt is found by its socket: write it as " +
			"qemu+unix:///session?socket=/run/user/UID/libvirt/libvirt-sock&domain=NAME")
	case w.socket != "" && !filepath.IsAbs(w.socket):
		return w, fmt.Errorf("socket %q is no path that begins with /", w.socket)
	}
	w.session = "qemu://" + u.Path
	switch here := u.Host == "" && u.User == nil; {
	case u.Scheme == "qemu" && here && w.socket == "", u.Scheme == "qemu+unix" && here:
		w.host = local
	case u.Scheme == "qemu+ssh" && u.Host != "":
		w.host = "ssh://" + u.Host
		if u.User != nil {
			w.host = "ssh://" + u.User.String() + "@" + u.Host
		}
		if err := host.CheckName(w.host); err != nil {
			return w, err
		}
	default:
		return w, fmt.Errorf("libvirt %s://%s: have qemu:///system, qemu+unix:///system?socket=PATH, "+
			"qemu+ssh://[USER@]HOST[:PORT]/system", u.Scheme, u.Host)
	}
	u.RawQuery = ""
	if w.socket != "" {
		u.RawQuery = "socket=" + w.socket
	}
	w.uri = u.String()
	return w, nil
}

// libvirtEndpoint is the monitor of a domain. It is the only one: libvirt has one too, and all clients share it.
func libvirtEndpoint(text string, w words, hosts *host.Pool) (*endpoint.Endpoint, error) {
	v := w.libvirt
	p := &peer{name: v.host}
	p.reach = func(ctx context.Context) (host.Host, error) {
		if v.host == local {
			return host.Local(), nil
		}
		return hosts.Find(ctx, v.host)
	}
	if v.host != local && hosts == nil {
		return nil, fmt.Errorf("endpoint %q: a domain of this machine is wanted here, and no host is reached", text)
	}
	e := unixEndpoint(text, nil, p)
	e.Host, e.Again, e.Libvirt = v.uri, again, &endpoint.Domain{URI: v.uri, Name: v.domain}
	p.monitors = func(context.Context, host.Host) (string, error) { return v.socket, nil }
	e.Log = func(name string) endpoint.TraceLog { // libvirt's own QEMUs have -msg timestamp=on
		if name == "" && v.session == "qemu:///system" {
			name = "/var/log/libvirt/qemu/" + v.domain + ".log"
		}
		return p.log(name)
	}
	var daemon atomic.Int64 // the process that listens on libvirt's socket; 0: it is not known
	p.threadOf = func(ctx context.Context, h host.Host, id int) int {
		if daemon.Load() == 0 || id == 0 {
			return 0
		}
		pid, _ := behind.Threads().Ask(ctx, h, behind.Thread{ID: id, Beside: int(daemon.Load())})
		return pid
	}
	p.owner = func(ctx context.Context, h host.Host, conn net.Conn) int {
		if asked, ok := conn.(interface{ Thread() int }); ok {
			return p.threadOf(ctx, h, asked.Thread())
		}
		return 0
	}
	e.Control = p.dial(func(ctx context.Context, h host.Host) (net.Conn, error) {
		nc, err := dialLibvirt(ctx, h, v)
		if err != nil {
			return nil, err
		}
		daemon.Store(int64(host.Listener(nc)))
		ctx, cancel := context.WithTimeout(ctx, libvirtLimit)
		defer cancel()
		return passthrough.Dial(ctx, nc, passthrough.Target{URI: v.uri, Open: v.session, Domain: v.domain})
	})
	if v.host != local {
		e.Machine = p.machine
		e.Clock = func(ctx context.Context) (clock.Look, error) {
			h, err := p.host(ctx)
			if err != nil {
				return clock.Look{}, err
			}
			return clockOf(h)(ctx)
		}
		e.Reaches = func(ctx context.Context, address string) error {
			h, err := p.host(ctx)
			if err != nil {
				return err
			}
			return reaches(ctx, h, address)
		}
	}
	return e, nil
}

// dialLibvirt connects to libvirt's socket. That nobody listens there says nothing of a domain's QEMU, so the error is
// none of the kernel's.
func dialLibvirt(ctx context.Context, h host.Host, v libvirtWords) (nc net.Conn, err error) {
	sockets := libvirtSockets[:]
	if v.socket != "" {
		sockets = []string{v.socket}
	}
	for _, socket := range sockets {
		if nc, err = h.Dial(ctx, "unix", socket); err == nil {
			return nc, nil
		}
		if !errors.Is(err, syscall.ENOENT) {
			break
		}
	}
	switch {
	case endpoint.WayLost(err), ctx.Err() != nil:
		return nil, err
	case errors.Is(err, syscall.EACCES):
		return nil, &passthrough.LostError{Reason: err.Error() + ": run as root, or as a member of group libvirt"}
	}
	return nil, &passthrough.LostError{Reason: err.Error() + ": does libvirtd run there?"}
}

// LeftInLibvirt says what libvirt does not know once the guest of a source has left; "" if the source is no domain.
func LeftInLibvirt(src *endpoint.Endpoint) string {
	d := src.Libvirt
	if d == nil {
		return ""
	}
	uri := passthrough.Quoted(d.URI)
	return fmt.Sprintf("libvirt does not know that the guest of domain %s has left, and shows it as paused: `virsh -c %s destroy "+
		"%s` ends the empty QEMU; `virsh -c %s resume %s` would have the guest run twice", d.Name, uri, d.Name, uri, d.Name)
}
