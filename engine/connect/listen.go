package connect

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strings"

	"qmigrate/engine/connect/behind"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/setting"
	"qmigrate/hostnet/host"
)

// Listen sees to where the destination is to listen, if the two are not both on this machine: the migration's stream
// goes from QEMU to QEMU. If the plan does not say, it is the address by which the destination's host was reached, or a
// container's own. A unix socket that the plan names is looked for there, because QEMU removes what has its name.
func Listen(ctx context.Context, p *plan.Plan, src, dst *endpoint.Endpoint) error {
	from, to := nameOf(src), nameOf(dst)
	if name, ok := strings.CutPrefix(p.Listen, "unix:"); ok && to != "" && to != local {
		h, err := HostOf(ctx, dst)
		if err != nil {
			return err
		}
		return freeSocket(ctx, h, p.Listen, name)
	}
	if p.Listen != "" || p.Tunnel != "" || from == to || from == "" || to == "" {
		return nil
	}
	address, err := meeting(ctx, src, dst)
	if err != nil {
		return setting.About(fmt.Errorf("find the address where %s is to listen for %s: %w: give it with `listen`, as in "+
			"tcp:ADDRESS:0", dst.Name, src.Name, err), "listen")
	}
	p.Listen = "tcp:" + net.JoinHostPort(address, "0")
	return nil
}

// freeSocket refuses a unix socket's path that something else has on a host.
func freeSocket(ctx context.Context, h host.Host, uri, name string) error {
	if info, err := h.Stat(name); err == nil && info.Mode().Type() != fs.ModeSocket {
		return setting.Errorf("listen", uri, "%s exists on %s and is no socket, and QEMU would remove it: give another path",
			name, h.Name())
	}
	taken, err := behind.Listens().Ask(ctx, h, []string{name})
	if err == nil && taken {
		err = setting.Errorf("listen", uri, "somebody listens there already on %s, and QEMU would take it away: give another "+
			"path", h.Name())
	}
	return err
}

// Listens tells whether somebody on this machine listens on a unix socket that has one of these names.
func Listens(ctx context.Context, names ...string) bool {
	listens, _ := behind.Listens().Ask(ctx, host.Local(), names)
	return listens
}

// nameOf is the host of an endpoint with a path; "" if it has none.
func nameOf(e *endpoint.Endpoint) string {
	if p, ok := e.Process.(*peer); ok {
		return p.name
	}
	return ""
}

// meeting is an address of the destination's host at which the source's host reaches it, as far as the two know
// themselves.
func meeting(ctx context.Context, src, dst *endpoint.Endpoint) (string, error) {
	near := func(e *endpoint.Endpoint) (n behind.Near, err error) {
		h, err := HostOf(ctx, e)
		if err == nil {
			n, err = behind.Nears().Ask(ctx, h, struct{}{})
		}
		if nameOf(e) == local { // a login to this machine has nothing to do with the other host
			n.Login, n.From = "", ""
		}
		return n, err
	}
	a, err := near(src)
	if err != nil {
		return "", err
	}
	b, err := near(dst)
	switch {
	case err != nil:
		return "", err
	case b.Login != "":
		return b.Login, nil
	case a.From != "" && nameOf(dst) == local: // as the source's host has our address
		return a.From, nil
	}
	if found, ok := shared(a.Own, b.Own); ok {
		return found.String(), nil
	}
	if len(b.Own) == 0 {
		return "", fmt.Errorf("%s has no address", nameOf(dst))
	}
	return b.Own[0].Addr().String(), nil
}

// shared is the first of the addresses in b that is in a subnet of one in a.
func shared(a, b []netip.Prefix) (netip.Addr, bool) {
	for _, there := range b {
		for _, here := range a {
			if here.Addr() != there.Addr() && here.Masked() == there.Masked() {
				return there.Addr(), true
			}
		}
	}
	return netip.Addr{}, false
}
