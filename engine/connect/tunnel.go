package connect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/tunnel"
	"qmigrate/hostnet/host"
)

// TunnelSpec is a tunnel as data. Each half is on its own host, and the connection between them is the hosts': what it
// carries never comes through the channel to a helper.
type TunnelSpec struct {
	Kind        plan.TunnelKind
	Source      host.Host // where the near half listens, and connects from
	Destination host.Host // where the far half listens, and connects to the destination's QEMU

	// Address is the destination's, on which the far half listens; a port of its choice. "": on all that the host has,
	// and the near half tries them, Names first.
	Address string
	Names   []string // by which the destination's host may be reached as well

	In  string // unix socket that the source's QEMU connects to; made
	Out string // unix socket that the destination's QEMU will listen on
	// Folders that are made for In and Out, and removed with the tunnel; nil: they are there.
	InFolder, OutFolder *tunnel.Folder

	// Far makes the connection to a far half that is somebody else's, an sshd; nil: it is ours. The near half is then in
	// this process.
	Far func(ctx context.Context) (tunnel.Carrier, error)
}

// Tunnel is a tunnel that stands.
type Tunnel struct {
	kind      plan.TunnelKind
	near, far *half // far is nil where it is somebody else's
}

// half is one half at work.
type half struct {
	away   bool            // it is not in this process
	lost   <-chan struct{} // closed when it is not heard any more; nil: never
	cancel context.CancelFunc
	stands chan struct{} // closed when it has said something
	ended  chan struct{} // closed when it has ended
	mu     sync.Mutex
	state  tunnel.State // what it said last
	err    error        // set before ended is closed
}

// begin starts a half on a host.
func begin(ctx context.Context, on host.Host, work func(context.Context, func(tunnel.State) error) error) *half {
	h := &half{stands: make(chan struct{}), ended: make(chan struct{})}
	if far, ok := on.(*host.Far); ok {
		h.away, h.lost = true, far.Closed()
	}
	ctx, h.cancel = context.WithCancel(context.WithoutCancel(ctx))
	var once sync.Once
	go func() {
		defer close(h.ended)
		h.err = work(ctx, func(s tunnel.State) error {
			h.mu.Lock()
			h.state = s
			h.mu.Unlock()
			once.Do(func() { close(h.stands) })
			return nil
		})
	}()
	return h
}

// wait returns when the half stands. One that does not is ended.
func (h *half) wait(ctx context.Context) error {
	select {
	case <-h.stands:
		return nil
	case <-h.ended:
		if h.err == nil {
			return errors.New("it has ended")
		}
		return h.err
	case <-ctx.Done():
		h.end()
		return ctx.Err()
	}
}

// end ends the half and returns what it said last. gone says that it was not heard any more: it goes on as long as
// something is in it. It is harmless twice.
func (h *half) end() (s tunnel.State, gone bool, err error) {
	h.cancel()
	<-h.ended
	select {
	case <-h.lost:
		return h.last(), true, nil
	default:
	}
	if errors.Is(h.err, context.Canceled) {
		return h.last(), false, nil
	}
	return h.last(), false, h.err
}

// last is what it said last.
func (h *half) last() tunnel.State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// OpenTunnel makes the tunnel; the two ends have proved themselves to each other when it returns.
func OpenTunnel(ctx context.Context, s TunnelSpec) (_ *Tunnel, err error) {
	t := &Tunnel{kind: s.Kind}
	defer func() {
		if err != nil {
			t.Close()
			err = fmt.Errorf("open %s tunnel: %w", s.Kind, err)
		}
	}()
	near := tunnel.NearSpec{Socket: s.In, Folder: s.InFolder, Far: s.Out}
	if s.Far != nil {
		t.near = begin(ctx, s.Source, func(ctx context.Context, take func(tunnel.State) error) error {
			return near.Work(ctx, s.Source, s.Far, take)
		})
		return t, t.near.wait(ctx)
	}
	far := tunnel.FarSpec{Listen: s.Address, Socket: s.Out, Folder: s.OutFolder}
	if s.Kind == plan.TLSTunnel {
		near.Keys, far.Keys, err = tunnel.TLSKeys()
	} else {
		near.Keys, far.Keys, err = tunnel.SSHKeys()
	}
	if err != nil {
		return nil, err
	}
	t.far = begin(ctx, s.Destination, func(ctx context.Context, take func(tunnel.State) error) error {
		return tunnel.FarTask().Run(ctx, s.Destination, far, take)
	})
	if err := t.far.wait(ctx); err != nil {
		if t.far.away {
			err = fmt.Errorf("far half on %s: %w", s.Destination.Name(), err)
		}
		return nil, err
	}
	near.To = t.far.addresses(s.Names)
	t.near = begin(ctx, s.Source, func(ctx context.Context, take func(tunnel.State) error) error {
		return tunnel.NearTask().Run(ctx, s.Source, near, take)
	})
	if err := t.near.wait(ctx); err != nil {
		if t.near.away || t.far.away {
			err = fmt.Errorf("%w: name an address of the destination's host that the source's reaches with `tunnel-address`", err)
		}
		return nil, err
	}
	return t, nil
}

// addresses are where the far half may be reached: by the host's other names, and as it says itself.
func (h *half) addresses(names []string) (all []string) {
	own := h.last().Addresses
	for _, name := range names {
		for _, a := range own {
			if _, port, err := net.SplitHostPort(a); err == nil {
				all = append(all, net.JoinHostPort(name, port))
				break
			}
		}
	}
	return append(all, own...)
}

// Close ends the tunnel, nil for none, and says what it carried. What went wrong in it is a warning's text, empty if
// nothing did. It is harmless twice.
func (t *Tunnel) Close() (carried record.Tunnel, trouble string) {
	if t == nil {
		return carried, ""
	}
	carried = record.Tunnel{Kind: string(t.kind)}
	left := false
	if t.near != nil {
		s, gone, err := t.near.end()
		carried.Bytes, carried.CPU, left = s.Bytes, s.CPU, gone
		switch {
		case s.Trouble != "":
			trouble = fmt.Sprintf("the %s tunnel broke: %s", t.kind, s.Trouble)
		case err != nil:
			trouble = fmt.Sprintf("the %s tunnel broke: %v", t.kind, err)
		}
	}
	if t.far != nil {
		s, gone, err := t.far.end()
		left = left || gone
		if t.far.away || t.near == nil || t.near.away { // else both are one process
			carried.CPU += s.CPU
		}
		if err != nil && trouble == "" && t.near != nil {
			trouble = fmt.Sprintf("the %s tunnel's far half: %v", t.kind, err)
		}
	}
	if left && trouble == "" {
		trouble = fmt.Sprintf("the channel to a host of the %s tunnel has closed: the tunnel goes on by itself there as long as "+
			"something is in it", t.kind)
	}
	return carried, trouble
}

// Note closes the tunnel, nil for none, and writes into the record what it was. One whose halves are on other hosts is
// left to a post-copy that may go on: it ends by itself when nothing is in it.
func (t *Tunnel) Note(rec *record.Migration) {
	if t == nil {
		return
	}
	if t.near != nil && t.near.away && t.far != nil && t.far.away && rec.MayGoOn() {
		rec.Tunnel = &record.Tunnel{Kind: string(t.kind), Bytes: t.near.last().Bytes}
		rec.Warn("the %s tunnel goes on between the hosts as long as the post-copy has a stream in it", t.kind)
		return
	}
	carried, trouble := t.Close()
	rec.Tunnel = &carried
	if trouble != "" {
		rec.Warn("%s", trouble)
	}
}
