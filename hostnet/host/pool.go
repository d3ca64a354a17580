package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// Pool finds hosts by the names that users write, and keeps one channel to each. Its zero value knows local and
// netns:NAME. Close closes the channels.
type Pool struct {
	Program func() ([]byte, error)      // the helper; nil: hosts that need one are refused
	SSH     SSH                         // for ssh://
	Said    func(host, sentence string) // is told what a helper found of others that had been killed; nil: nobody

	asking sync.Mutex // held by who has the terminal

	mu     sync.Mutex
	hosts  map[string]*reached
	broken sync.WaitGroup // channels that closed by themselves, whose programs are being ended
	caches map[string]string
}

// reached is a host that is being found, or was.
type reached struct {
	ready chan struct{}
	far   *Far
	err   error
}

// Kinds is how hosts are written, for people.
const Kinds = "local, netns:NAME, lxc:NAME or ssh://[USER@]HOST[:PORT]"

// CheckName refuses what is no host's name by its words alone.
func CheckName(name string) error {
	kind, rest, _ := strings.Cut(name, ":")
	var err error
	switch {
	case name == "local":
	case kind == "netns" && rest != "":
	case kind == "lxc":
		_, _, _, err = parseLXC(rest)
	case kind == "ssh":
		_, err = parseSSH(name)
	default:
		err = fmt.Errorf("host %q: not a host; hosts are written %s", name, Kinds)
	}
	return err
}

// Find finds a host: "local", "netns:NAME", "lxc:NAME" or "ssh://[USER@]HOST[:PORT]". A channel that has closed is
// opened anew.
func (p *Pool) Find(ctx context.Context, name string) (Host, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	kind, rest, _ := strings.Cut(name, ":")
	switch kind {
	case "local":
		return Local(), nil
	case "netns":
		return Namespace(rest)
	}
	for {
		p.mu.Lock()
		f, ok := p.hosts[name]
		if !ok {
			f = &reached{ready: make(chan struct{})}
			if p.hosts == nil {
				p.hosts = map[string]*reached{}
			}
			p.hosts[name] = f
		}
		p.mu.Unlock()
		if !ok {
			f.far, f.err = p.dial(ctx, name)
			close(f.ready)
		}
		select {
		case <-f.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if f.err == nil && !f.far.session.IsClosed() {
			return f.far, nil
		}
		p.mu.Lock()
		if p.hosts[name] == f {
			delete(p.hosts, name)
			if f.far != nil { // an ssh may wait for an end that is not there any more
				p.broken.Go(func() { f.far.Close() })
			}
		}
		p.mu.Unlock()
		// Somebody else may only not have wanted to wait any longer.
		gaveUp := errors.Is(f.err, context.Canceled) || errors.Is(f.err, context.DeadlineExceeded)
		if f.err != nil && (!ok || !gaveUp) {
			return nil, f.err
		}
	}
}

// KeepIn has what is sent to a host kept in a folder there, which may begin with ~/; "" is its user's cache. It holds
// for channels that are opened later.
func (p *Pool) KeepIn(name, folder string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.caches == nil {
		p.caches = map[string]string{}
	}
	p.caches[name] = folder
}

func (p *Pool) dial(ctx context.Context, name string) (*Far, error) {
	if p.Program == nil {
		return nil, fmt.Errorf("host %s: this program has no helper to send there", name)
	}
	program, err := p.Program()
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	kind, rest, _ := strings.Cut(name, ":")
	var w way
	if kind == "ssh" {
		w, err = p.SSH.way(name)
	} else {
		w, err = lxcWay(ctx, name, rest)
	}
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	cache := p.caches[name]
	p.mu.Unlock()
	if w.terminal != nil {
		defer w.terminal.Close()
		p.asking.Lock()
		defer p.asking.Unlock()
	}
	f, err := w.dial(ctx, program, cache)
	if err != nil {
		return nil, err
	}
	if p.Said != nil {
		for _, s := range f.Said() {
			p.Said(name, s)
		}
	}
	return f, nil
}

// Close closes all channels: what the helpers made is removed, unless it is to stand.
func (p *Pool) Close() error {
	p.mu.Lock()
	all := p.hosts
	p.hosts = nil
	p.mu.Unlock()
	var errs []error
	for _, f := range all {
		<-f.ready
		if f.far != nil {
			errs = append(errs, f.far.Close())
		}
	}
	p.broken.Wait()
	return errors.Join(errs...)
}

// Find finds a host that needs no helper: "local" or "netns:NAME".
func Find(ctx context.Context, name string) (Host, error) { return new(Pool).Find(ctx, name) }
