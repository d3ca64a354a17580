package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/qmp"
)

// OpenFile is a file or block device that a QEMU has open, as its host knows it.
type OpenFile struct {
	Path      string // where it is, without links, under the root of QEMU's process
	ID        string // two open files with one ID are one file
	Block     bool   // it is a block device
	Removed   bool   // it is in no folder any more, or another file has taken its place
	Content   string // the format that its first bytes name, such as qcow2; "": they name none, as in a raw image
	Uncertain string // the kind of file system on which one file may have two IDs, such as overlay; "": it has one
}

// Dialer opens a connection to one monitor of a QEMU.
type Dialer func(ctx context.Context) (net.Conn, error)

// Where is the machine on which a QEMU runs, seen from here.
type Where string

// The machines. A QEMU behind a socket that something else may forward is Unknown until its process is found.
const (
	Unknown   Where = ""
	Here      Where = "here"
	Elsewhere Where = "elsewhere"
)

// ThisMachine is Machine of a QEMU that runs on our own kernel.
const ThisMachine = "here"

// Domain is a domain of libvirt.
type Domain struct {
	URI  string // libvirt's, as virsh takes it
	Name string
}

// Endpoint is one QEMU as the engine sees it: up to three monitors, for a QMP socket serves one client, and a command
// on a shared one waits for the command before it.
type Endpoint struct {
	Name    string  // as the user wrote it: unix:/run/a.qmp
	Host    string  // where it runs, for the record; may become known when it is reached
	Where   Where   // on which machine, as far as is known
	Control Dialer  // every command
	Events  Dialer  // events and status polls; nil: over Control
	Sampler Dialer  // the lock-step query-migrate; nil: over Control
	Libvirt *Domain // nil: it is reached without libvirt
	Files   bool    // a path means the same file to it and to us: a guest can be saved there
	Process Process // nil: the process can only be asked to quit, and is dead when its monitor is closed

	// Machine tells the machine that Process runs on from all others, once the control monitor was connected to: two
	// endpoints of which it is the same may have the same files, and their processes' numbers mean the same. nil:
	// ThisMachine.
	Machine func() string
	// Again is how long to try to reach a monitor anew when the way to it was lost (WayError); 0: as long as one question
	// may take.
	Again time.Duration

	// ReadFile reads a file as that QEMU would see it; nil: its files cannot be read from here.
	ReadFile func(name string) ([]byte, error)

	// Opened tells what files that QEMU has open are to its host, by the names that QEMU gives them. Those that cannot be
	// told are left out. nil: none can be told from here.
	Opened func(names []string) map[string]OpenFile

	// Log is a file on that QEMU's host, by its name there, to which QEMU may write its trace lines; of "" it is the one
	// that a QEMU started by qmigrate has. nil, and a nil TraceLog: none is known, or its files cannot be read from here.
	Log func(name string) TraceLog

	// Clock looks once at that host's realtime clock. nil: it is our clock if the QEMU runs here, and else it is not
	// known.
	Clock func(ctx context.Context) (clock.Look, error)
	// Reaches tries whether that host reaches another, by its address; nil: it cannot be tried from there.
	Reaches func(ctx context.Context, host string) error
}

// Talk opens one monitor of the endpoint; role is for the error.
func (ep *Endpoint) Talk(ctx context.Context, d Dialer, role string, o qmp.Options) (conn *qmp.Conn, err error) {
	err = ep.Greet(ctx, d, role, func(ctx context.Context, nc net.Conn) error {
		conn, err = qmp.NewConn(ctx, nc, o)
		return err
	})
	return conn, err
}

// Greet dials a monitor and has greeted wait for its greeting; role is for the error.
func (ep *Endpoint) Greet(ctx context.Context, d Dialer, role string,
	greeted func(context.Context, net.Conn) error) error {
	name := strings.TrimPrefix(role+" "+ep.Name, " ")
	nc, err := d(ctx)
	if err != nil {
		return fmt.Errorf("reach %s: %w", name, err)
	}
	limit := GreetLimit
	if ep.Again > 0 {
		limit = farGreetLimit
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err = ep.Because(greeted(limited, nc), nc); err != nil {
		return fmt.Errorf("talk to %s: %w", name, err)
	}
	return nil
}

// Because puts the reason that the endpoint's host knows in the place of an answer that did not come; nc: see
// Explainer.
func (ep *Endpoint) Because(err error, nc net.Conn) error {
	if x, ok := ep.Process.(Explainer); ok && errors.Is(err, context.DeadlineExceeded) {
		if why := x.WhyMute(nc); why != "" {
			return Explain(why, err)
		}
	}
	return err
}

// WayError is an error of the way to a QEMU, such as a channel to its host, which says nothing of the QEMU: it may live
// and run.
type WayError interface {
	error
	OnTheWay()
}

// WayLost tells whether an error is, or wraps, a WayError.
func WayLost(err error) bool {
	var way WayError
	return errors.As(err, &way)
}

// explained is an error with better words than its own.
type explained struct {
	why string
	err error
}

// Explain gives an error better words.
func Explain(why string, err error) error { return &explained{why, err} }

func (e *explained) Error() string { return e.why }

func (e *explained) Unwrap() error { return e.err }

// GreetLimit is how long a monitor that was reached may take to greet: one that hangs, or serves another client, never
// does.
const GreetLimit = 5 * time.Second

// farGreetLimit is the same where a channel to the QEMU's host may have broken a moment ago: who served that holds the
// monitor until it notices, within 14 s.
const farGreetLimit = 20 * time.Second
