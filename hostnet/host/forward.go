package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Forwarding is an ssh that has sockets of its host be sockets of this machine.
type Forwarding struct {
	carrier *carrier
	said    *tail
}

// Forward has unix sockets of a host behind ssh be sockets of this machine, by OpenSSH's own forwarding: nothing of
// ours is on the host, and no file there is known. sockets has a path there for each path here; the folders are there.
// They are connected to when somebody connects here, so a path there may lead nowhere. Close ends it.
func (s SSH) Forward(ctx context.Context, name string, sockets map[string]string) (_ *Forwarding, err error) {
	t, err := parseSSH(name)
	if err != nil {
		return nil, err
	}
	w := way{name: name, terminal: terminal()}
	w.explain = func(said string, err error) error { return s.explain(t, said, err) }
	w.words = s.forwarding(t, w.terminal != nil)
	at := len(w.words) - 2 // before "--" and the host
	for here, there := range sockets {
		if strings.ContainsAny(here+there, ":") {
			return nil, fmt.Errorf("reach host %s: ssh forwards no socket with a colon in its path, as in %s", name, there)
		}
		w.words = slices.Insert(w.words, at, "-L", here+":"+there)
	}
	cmd := w.command(nil)
	said := &tail{}
	cmd.Stderr = said
	cmd.WaitDelay = streamGrace
	c, err := startOn(cmd)
	if err != nil {
		return nil, fmt.Errorf("reach host %s: %w", name, w.explain("", err))
	}
	f := &Forwarding{c, said}
	limit := openLimit
	if w.terminal != nil {
		limit = askLimit
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = f.wait(limited, sockets)
	w.takeBack()
	switch {
	case err == nil:
		return f, nil
	case ctx.Err() != nil:
		err = ctx.Err()
	case limited.Err() != nil:
		err = fmt.Errorf("no answer within %s", limit)
	default:
		err = w.explain(said.String(), c.Err())
	}
	f.Close()
	return nil, fmt.Errorf("reach host %s: %w", name, err)
}

// forwarding is ssh's command line for nothing but forwarding: it asks for no command there, and shares no connection,
// which would have the forwardings outlive it.
func (s SSH) forwarding(t sshTarget, asks bool) []string {
	words := s.command(t, asks)
	at := slices.Index(words, "ClearAllForwardings=yes") // also those of the command line
	words = slices.Delete(words, at-1, at+1)
	return slices.Insert(words, 1, "-N", "-S", "none", "-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindUnlink=yes",
		"-o", "ServerAliveInterval=5")
}

// wait returns when all sockets are there, or ssh has ended.
func (f *Forwarding) wait(ctx context.Context, sockets map[string]string) error {
	for {
		missing := false
		for here := range sockets {
			_, err := os.Lstat(here)
			missing = missing || err != nil
		}
		if !missing {
			return nil
		}
		select {
		case <-f.Done():
			return errors.New("it has ended")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Done is closed when the ssh has ended.
func (f *Forwarding) Done() <-chan struct{} { return f.carrier.Done() }

// Said is the last of what ssh said.
func (f *Forwarding) Said() string { return f.said.String() }

// Close ends the forwarding. It is harmless twice.
func (f *Forwarding) Close() error {
	_ = f.carrier.Signal(syscall.SIGTERM) // it waits for nothing on its standard input
	f.carrier.end()
	return nil
}

// Address is that of a host behind ssh, as ssh's own settings have it.
func (s SSH) Address(ctx context.Context, name string) (string, error) {
	t, err := parseSSH(name)
	if err != nil {
		return "", err
	}
	words := slices.Insert(s.command(t, false), 1, "-G")
	out, err := exec.CommandContext(ctx, words[0], words[1:]...).Output()
	if err != nil {
		return "", fmt.Errorf("ask ssh for its settings: %w", plain(err))
	}
	host := t.host
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "hostname "); ok {
			host = name
		}
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", err
	}
	return found[0].Unmap().String(), nil
}
