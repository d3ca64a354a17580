package connect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/setting"
	"qmigrate/guest"
	"qmigrate/hostnet/host"
)

// Forwarded finds endpoints behind ssh without a helper there: by OpenSSH's forwarding of their monitors' sockets, and
// by nothing else. The QEMU's process, its files, its host's clock and all that is read of /proc are not known. Its
// zero value but for SSH is ready; Close ends the forwardings.
type Forwarded struct {
	SSH host.SSH

	dir string // of the sockets here
	all []*host.Forwarding
}

// WithoutHelper is what a record of such endpoints lacks.
const WithoutHelper = "no helper on the hosts: their QEMUs' processes, open files and processor time, their clocks and what they are " +
	"are not known, so that what needs these was neither checked nor measured"

// Close ends the forwardings. It is harmless twice.
func (f *Forwarded) Close() error {
	for _, one := range f.all {
		one.Close()
	}
	f.all = nil
	if f.dir == "" {
		return nil
	}
	return os.RemoveAll(f.dir)
}

// Endpoint is Parse without a helper. A path may be that of a folder with control.qmp, as for Parse.
func (f *Forwarded) Endpoint(ctx context.Context, text string) (_ *endpoint.Endpoint, err error) {
	w, err := read(text)
	switch {
	case err != nil:
		return nil, err
	case w.host == "" || w.host == local:
		return Parse(text, nil)
	case w.kind == libvirtKind:
		return nil, setting.About(fmt.Errorf("endpoint %q: libvirt on another host is reached by a helper there: leave "+
			"`no-helper` out", text), "no-helper")
	case !strings.HasPrefix(w.host, "ssh:"):
		return nil, setting.About(fmt.Errorf("endpoint %q: a container is reached by a helper in it: leave `no-helper` out", text),
			"no-helper")
	}
	if f.dir == "" {
		if f.dir, err = os.MkdirTemp("", "qmig-ssh-"); err != nil {
			return nil, fmt.Errorf("make folder for the forwarded sockets: %w", err)
		}
	}
	there := w.monitors
	if len(there) == 1 { // only their host knows which of these are
		for _, role := range []string{guest.Control, guest.Events, guest.Sampler} {
			there = append(there, path.Join(w.monitors[0], role+".qmp"))
		}
	}
	sockets := map[string]string{}
	var here []string
	for i, name := range there {
		socket := filepath.Join(f.dir, fmt.Sprintf("%d-%d", len(f.all), i))
		here = append(here, socket)
		sockets[socket] = name
	}
	one, err := f.SSH.Forward(ctx, w.host, sockets)
	if err != nil {
		return nil, err
	}
	f.all = append(f.all, one)
	if len(w.monitors) == 1 {
		folder := here[1:]
		if here = here[:1]; !greets(ctx, here[0]) {
			if !greets(ctx, folder[0]) {
				return nil, fmt.Errorf("endpoint %q: no monitor answers at %s of %s, nor at control.qmp in a folder of that name: "+
					"start QEMU with -qmp unix:%s,server=on,wait=off", text, w.monitors[0], w.host, w.monitors[0])
			}
			here = folder[:1]
			for _, socket := range folder[1:] {
				if greets(ctx, socket) {
					here = append(here, socket)
				}
			}
		}
	}
	e, err := Parse("unix:"+strings.Join(here, ","), nil)
	if err != nil {
		return nil, err
	}
	e.Name, e.Host, e.Files, e.ReadFile, e.Opened, e.Log = text, w.host, false, nil, nil, nil
	if p, ok := e.Process.(*peer); ok {
		p.found = func(string) {} // the forwarder's place says nothing
	}
	return e, nil
}

// greets tells whether a monitor is behind a forwarded socket: ssh accepts for it and closes again where nobody
// listens. One that does not greet serves another client.
func greets(ctx context.Context, socket string) bool {
	nc, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	defer nc.Close()
	_ = nc.SetReadDeadline(time.Now().Add(endpoint.GreetLimit))
	n, err := nc.Read(make([]byte, 1))
	return n == 1 || errors.Is(err, os.ErrDeadlineExceeded)
}

// Listen sees to where the destination is to listen: at the address by which its host was reached. Both endpoints are
// as they were given in words.
func (f *Forwarded) Listen(ctx context.Context, p *plan.Plan, source, destination string) error {
	a, errA := read(source)
	b, errB := read(destination)
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	if p.Listen != "" || p.Tunnel != "" || a.host == b.host || a.host == "" || b.host == "" {
		return nil
	}
	mend := "give the address where the destination is to listen with `listen`, as in tcp:ADDRESS:0"
	if b.host == local {
		return setting.About(fmt.Errorf("without a helper it is not known by which address %s reaches this machine: %s", a.host, mend),
			"listen")
	}
	address, err := f.SSH.Address(ctx, b.host)
	if err != nil {
		return setting.About(fmt.Errorf("find the address of %s: %w: %s", b.host, err, mend), "listen")
	}
	p.Listen = "tcp:" + net.JoinHostPort(address, "0")
	return nil
}
