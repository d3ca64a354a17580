// Package passthrough is a QEMU's monitor behind libvirt: commands go through libvirt's monitor passthrough, events
// come as libvirt passes them on. What Dial gives speaks QMP, so package qmp takes it for a monitor of QEMU's own.
//
// It differs from one in this:
//
//   - There is one, which libvirt itself uses too. Commands wait for each other, and for libvirt's own.
//   - A command costs two round trips to libvirt. libvirt may pass an event on after an answer that QEMU sent later. So
//     libvirt is asked for its version after each command: its answer has all earlier events before it.
//   - Descriptors are not passed.
//   - Nothing goes out of band: such commands are sent in band, and wait like all others.
//
// go-qemu's LibvirtRPCMonitor is not used: it loses the class of QEMU's errors and the order of events and answers, and
// opens qemu:///system only. go-libvirt, which it is made of, is used directly.
//
// It knows no hosts: whoever dials gives it a connection to libvirt's socket. Package engine/connect does.
package passthrough

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
)

// oldest is the first libvirt whose lifecycle events can be asked for one domain, as all that is used here can: 1.2.3,
// in libvirt's own form. 9.0 is what it was tried with.
const oldest = 1_002_003

// Target is a domain of a libvirt.
type Target struct {
	URI    string // as virsh takes it, for messages: qemu+ssh://host/system
	Open   string // what the daemon itself opens: qemu:///system
	Domain string // its name
}

// LostError says that libvirt is not reached, or not any more. It says nothing of the domain's QEMU, which may live and
// run.
type LostError struct{ Reason string }

func (e *LostError) Error() string { return "libvirt is not reached: " + e.Reason }

// OnTheWay says that what was lost is the way to something: see endpoint.WayError.
func (e *LostError) OnTheWay() {}

// Dial opens the monitor of a domain that runs, over a connection to libvirt's socket, which it takes over. ctx bounds
// the opening only.
func Dial(ctx context.Context, nc net.Conn, t Target) (_ net.Conn, err error) {
	m := newMonitor(t)
	m.below = nc
	m.virt = libvirt.NewWithDialer(dialers.NewAlreadyConnected(&tap{Conn: nc, event: m.event}))
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			m.Close()
		}
	}()
	if err := m.virt.ConnectToURI(libvirt.ConnectURI(t.Open)); err != nil {
		return nil, fmt.Errorf("open libvirt: %w", said(ctx, err))
	}
	version, err := m.virt.ConnectGetLibVersion()
	if err != nil {
		return nil, fmt.Errorf("open libvirt: %w", said(ctx, err))
	}
	if err := checkVersion(version); err != nil {
		return nil, fmt.Errorf("open libvirt: %w", err)
	}
	if m.domain, err = m.virt.DomainLookupByName(t.Domain); err != nil {
		if libvirt.IsNotFound(err) {
			return nil, fmt.Errorf("libvirt knows no domain %s: `virsh -c %s list --all` lists them", t.Domain, Quoted(t.URI))
		}
		return nil, fmt.Errorf("find domain %s: %w", t.Domain, said(ctx, err))
	}
	if runs, err := m.runs(); err != nil {
		return nil, fmt.Errorf("find domain %s: %w", t.Domain, said(ctx, err))
	} else if !runs {
		return nil, fmt.Errorf("domain %s is shut off: `virsh -c %s start %s` starts a source; a destination is started paused with "+
			"-incoming defer: docs/libvirt.md", t.Domain, Quoted(t.URI), t.Domain)
	}
	if err := m.subscribe(); err != nil {
		return nil, fmt.Errorf("ask for events of domain %s: %w", t.Domain, refused(said(ctx, err)))
	}
	greeting, err := m.greet()
	if err == nil {
		err = m.learn()
	}
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fmt.Errorf("domain %s: its QEMU does not answer libvirt: is it stopped, or stuck? %w", t.Domain, ctx.Err())
		}
		return nil, fmt.Errorf("use the monitor of domain %s: %w", t.Domain, refused(said(ctx, err)))
	}
	m.event(message{line: append(greeting, '\n')})
	go m.serve()
	go m.watch()
	return m, nil
}

// checkVersion refuses a libvirt that is too old; version is in libvirt's own form.
func checkVersion(version uint64) error {
	if version >= oldest {
		return nil
	}
	text := func(v uint64) string { return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1000%1000, v%1000) }
	return fmt.Errorf("libvirt %s is too old: its monitor passthrough is used from %s on", text(version), text(oldest))
}

// refused is libvirt's refusal of a passthrough, with what to try.
func refused(err error) error {
	var e libvirt.Error
	switch {
	case errors.Is(err, libvirt.ErrUnsupported):
		return fmt.Errorf("%w: its driver has no monitor passthrough: give a domain of qemu:///system", err)
	case !errors.As(err, &e):
		return err
	}
	switch libvirt.ErrorNumber(e.Code) {
	case libvirt.ErrOperationDenied:
		return fmt.Errorf("%w: the connection is read-only: give the socket for writing, libvirt-sock, not libvirt-sock-ro", err)
	case libvirt.ErrAccessDenied:
		return fmt.Errorf("%w: libvirt's access rules deny it: allow domain.write to this user, or use another one", err)
	case libvirt.ErrNoSupport:
		return fmt.Errorf("%w: its driver has no monitor passthrough: give a domain of qemu:///system", err)
	}
	return err
}

// said is an error of libvirt's in one line, or the context's where that ended the call.
func said(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var e libvirt.Error
	if errors.As(err, &e) {
		e.Message = strings.Join(strings.Fields(e.Message), " ")
		return e
	}
	if errors.Is(err, libvirt.ErrInterrupted) {
		return &LostError{"the daemon closed the connection"}
	}
	return err
}

// Quoted is a word for a shell, if it has to be.
func Quoted(word string) string {
	if strings.ContainsAny(word, "?&") {
		return "'" + word + "'"
	}
	return word
}
