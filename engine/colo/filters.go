package colo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"qmigrate/engine/internal/run"
	"qmigrate/qmp"
)

// The filters of one network card. A frame's way, as docs/colo.md draws it:
//
//	in:  link -> primary's TAP -> mirror -> guest                        and a copy over the socket "mirror" to the secondary:
//	     heard -> rewriter -> guest; what the secondary's own TAP hears ends in deaf
//	out: primary's guest -> in -> compare -> out -> TAP -> link          the secondary's: rewriter -> held -> socket "answer" -> compare
//
// All with vnet_hdr_support, which a virtio card needs and which says length 0 for others.
type cardNames struct{ mirror, answer, in, inEnd, out, outEnd, compare, deaf, heard, held, rewriter string }

func cardNamesOf(i int) cardNames {
	n := func(word string) string { return fmt.Sprintf("qmigrate-%s-%d", word, i) }
	return cardNames{n("mirror"), n("answer"), n("in"), n("in-end"), n("out"), n("out-end"), n("compare"), n("deaf"),
		n("heard"), n("held"), n("rewriter")}
}

// compareThread is the iothread in which frames are compared.
const compareThread = "qmigrate-compare"

// netdevs are the backends of the guest's network cards, found in QEMU's object tree: every device that has a property
// netdev which is set.
func netdevs(ctx context.Context, c *qmp.Conn) ([]string, error) {
	type property struct{ Name, Type string }
	list := func(path string) (all []property, err error) {
		err = c.Execute(ctx, "qom-list", map[string]any{"path": path}, &all)
		return all, err
	}
	var found []string
	for _, container := range []string{"/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"} {
		children, err := list(container)
		if err != nil {
			return nil, err
		}
		for _, child := range children {
			if !strings.HasPrefix(child.Type, "child<") || strings.Contains(child.Type, "memory-region") ||
				strings.Contains(child.Type, "<irq>") {
				continue
			}
			path := container + "/" + child.Name
			properties, err := list(path)
			if err != nil {
				return nil, err
			}
			for _, p := range properties {
				if p.Name != "netdev" {
					continue
				}
				var backend string
				if err := c.Execute(ctx, "qom-get", map[string]any{"path": path, "property": "netdev"}, &backend); err != nil {
					return nil, err
				}
				if backend != "" {
					found = append(found, backend)
				}
			}
		}
	}
	return found, nil
}

// socketChardev adds a socket: a server that waits for nobody, or a client that has to reach one.
func socketChardev(ctx context.Context, s *run.Side, id string, server bool, address map[string]any) error {
	data := map[string]any{"addr": address, "server": server}
	if server {
		data["wait"] = false
	}
	args := map[string]any{"id": id, "backend": map[string]any{"type": "socket", "data": data}}
	if err := s.Control.Execute(ctx, "chardev-add", args, nil); err != nil {
		return fmt.Errorf("make socket %s on %s: %w", id, s.Endpoint.Name, err)
	}
	return nil
}

func inet(host, port string) map[string]any {
	return map[string]any{"type": "inet", "data": map[string]any{"host": host, "port": port}}
}

func object(ctx context.Context, s *run.Side, kind, id string, properties map[string]any) error {
	args := map[string]any{"qom-type": kind, "id": id}
	for name, value := range properties {
		args[name] = value
	}
	if err := s.Control.Execute(ctx, "object-add", args, nil); err != nil {
		return fmt.Errorf("make %s on %s: %w", kind, s.Endpoint.Name, err)
	}
	return nil
}

// mirrorPorts makes the primary listen for the secondary's two connections of each card, at ports of its choice. What
// an earlier run left is removed first.
func (c *colo) mirrorPorts(ctx context.Context) error {
	if len(c.cards[0]) == 0 {
		return nil
	}
	_ = c.releasePrimary(ctx)
	for i := range c.cards[0] {
		n := cardNamesOf(i)
		for _, id := range []string{n.mirror, n.answer} {
			if err := socketChardev(ctx, c.run.Src, id, true, inet(c.want.Mirror, "0")); err != nil {
				return err
			}
		}
	}
	return nil
}

// ports are where the primary's sockets listen, by the chardev's name.
func (c *colo) ports(ctx context.Context) (map[string]string, error) {
	var all []struct{ Label, Filename string }
	if err := c.run.Src.Control.Execute(ctx, "query-chardev", nil, &all); err != nil {
		return nil, fmt.Errorf("ask primary for its ports: %w", err)
	}
	ports := map[string]string{}
	for _, d := range all {
		address, _, _ := strings.Cut(strings.TrimPrefix(d.Filename, "disconnected:"), ",")
		if _, port, err := net.SplitHostPort(strings.TrimPrefix(address, "tcp:")); err == nil {
			ports[d.Label] = port
		}
	}
	return ports, nil
}

// holdSecondary cuts the secondary off from the network before it can run, and connects it to the primary.
func (c *colo) holdSecondary(ctx context.Context) error {
	if len(c.cards[1]) == 0 {
		return nil
	}
	ports, err := c.ports(ctx)
	if err != nil {
		return err
	}
	s := c.run.Dst
	for i, netdev := range c.cards[1] {
		n := cardNamesOf(i)
		if err := s.Control.Execute(ctx, "chardev-add",
			map[string]any{"id": n.deaf, "backend": map[string]any{"type": "null", "data": map[string]any{}}}, nil); err != nil {
			return fmt.Errorf("make %s on %s: %w", n.deaf, s.Endpoint.Name, err)
		}
		for _, id := range []string{n.mirror, n.answer} {
			if ports[id] == "" {
				return fmt.Errorf("the primary does not say on which port %s listens", id)
			}
			if err := socketChardev(ctx, s, id, false, inet(c.want.Mirror, ports[id])); err != nil {
				return err
			}
		}
		// In the order of frames on their way in; those on their way out meet them from the end.
		for _, f := range []struct {
			kind, id   string
			properties map[string]any
		}{
			{"filter-redirector", n.deaf, map[string]any{"queue": "tx", "outdev": n.deaf}},
			{"filter-redirector", n.heard, map[string]any{"queue": "tx", "indev": n.mirror}},
			{"filter-redirector", n.held, map[string]any{"queue": "rx", "outdev": n.answer}},
			{"filter-rewriter", n.rewriter, map[string]any{"queue": "all"}},
		} {
			f.properties["netdev"], f.properties["vnet_hdr_support"] = netdev, true
			if err := object(ctx, s, f.kind, f.id, f.properties); err != nil {
				return err
			}
		}
	}
	return nil
}

// comparePrimary makes the primary's filters, switched off, and what compares. A primary that was a secondary keeps its
// rewriter, for connections that were opened then, and the filters stand on the link's side of it.
func (c *colo) comparePrimary(ctx context.Context) error {
	if len(c.cards[0]) == 0 {
		return nil
	}
	s := c.run.Src
	var objects []struct{ Name string }
	if err := s.Control.Execute(ctx, "qom-list", map[string]any{"path": "/objects"}, &objects); err != nil {
		return fmt.Errorf("ask %s for its filters: %w", s.Endpoint.Name, err)
	}
	was := map[string]bool{}
	for _, o := range objects {
		was[o.Name] = true
	}
	if err := object(ctx, s, "iothread", compareThread, nil); err != nil {
		return err
	}
	for i, netdev := range c.cards[0] {
		n := cardNamesOf(i)
		for _, pair := range [][2]string{{n.in, n.inEnd}, {n.out, n.outEnd}} {
			// From QEMU to itself: a name that nobody else has, in the host's network namespace.
			address := map[string]any{"type": "unix",
				"data": map[string]any{"path": pair[0] + "-" + c.run.Rec.ID, "abstract": true}}
			if err := socketChardev(ctx, s, pair[0], true, address); err != nil {
				return err
			}
			if err := socketChardev(ctx, s, pair[1], false, address); err != nil {
				return err
			}
		}
		compare := map[string]any{"primary_in": n.inEnd, "secondary_in": n.answer, "outdev": n.outEnd,
			"iothread": compareThread, "vnet_hdr_support": true}
		if err := object(ctx, s, "colo-compare", n.compare, compare); err != nil {
			return err
		}
		for _, f := range []struct {
			kind, id   string
			properties map[string]any
		}{
			{"filter-mirror", n.mirror, map[string]any{"queue": "tx", "outdev": n.mirror}},
			{"filter-redirector", n.out, map[string]any{"queue": "rx", "indev": n.out}},
			{"filter-redirector", n.in, map[string]any{"queue": "rx", "outdev": n.in}},
		} {
			f.properties["netdev"], f.properties["vnet_hdr_support"], f.properties["status"] = netdev, true, "off"
			if was[n.rewriter] {
				f.properties["insert"], f.properties["position"] = "before", "id="+n.rewriter
			}
			if err := object(ctx, s, f.kind, f.id, f.properties); err != nil {
				return err
			}
		}
	}
	return nil
}

// filterPrimary switches the primary's filters: first what lets frames out, last what takes them away.
func (c *colo) filterPrimary(ctx context.Context, status string) error {
	for i := range c.cards[0] {
		n := cardNamesOf(i)
		for _, id := range []string{n.out, n.mirror, n.in} {
			if err := c.run.Src.Control.Execute(ctx, "qom-set",
				map[string]any{"path": "/objects/" + id, "property": "status", "value": status}, nil); err != nil {
				return fmt.Errorf("switch filter %s of the primary %s: %w", id, status, err)
			}
		}
	}
	return nil
}

// releasePrimary removes everything of ours from the primary's cards. First frames go past the comparison, then what it
// holds flows out.
func (c *colo) releasePrimary(ctx context.Context) error {
	if len(c.cards[0]) == 0 {
		return nil
	}
	r := remover{s: c.run.Src, warn: c.run.Rec.Warn}
	for i := range c.cards[0] {
		n := cardNamesOf(i)
		r.objects(ctx, n.in, n.compare, n.mirror, n.out)
		r.chardevs(ctx, n.inEnd, n.in, n.outEnd, n.out, n.answer, n.mirror)
	}
	r.objects(ctx, compareThread)
	return errors.Join(r.errs...)
}

// releaseSecondary lets the secondary hear and be heard: what it says first. The rewriter stays: connections opened
// since the last checkpoint have numbers of its own in the guest.
func (c *colo) releaseSecondary(ctx context.Context) error {
	r := remover{s: c.run.Dst, warn: c.run.Rec.Warn}
	for i := range c.cards[1] {
		n := cardNamesOf(i)
		r.objects(ctx, n.held, n.deaf, n.heard)
		r.chardevs(ctx, n.answer, n.mirror, n.deaf)
	}
	return errors.Join(r.errs...)
}

// remover removes what is there; what is not there is none of its errors. A socket that stays harms nobody, and is
// warned of.
type remover struct {
	s    *run.Side
	warn func(format string, args ...any)
	errs []error
}

func (r *remover) objects(ctx context.Context, ids ...string) {
	for _, id := range ids {
		if err := r.remove(ctx, "object-del", id); err != nil {
			r.errs = append(r.errs, err)
		}
	}
}

func (r *remover) chardevs(ctx context.Context, ids ...string) {
	for _, id := range ids {
		if err := r.remove(ctx, "chardev-remove", id); err != nil && r.s.Control.Err() == nil {
			r.warn("%v", err)
		}
	}
}

func (r *remover) remove(ctx context.Context, command, id string) error {
	err := r.s.Control.Execute(ctx, command, map[string]any{"id": id}, nil)
	if err != nil && !strings.Contains(err.Error(), "not found") {
		return fmt.Errorf("remove %s from %s: %w", id, r.s.Endpoint.Name, err)
	}
	return nil
}
