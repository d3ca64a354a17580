package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/hostnet/host"
)

// Server is a storage server on the link, which both hosts reach: a process in the observer's namespace.
type Server struct {
	proc host.Process
	dir  string
	// Start starts the process anew with what it served before, after a Close.
	Start func(context.Context) error
}

// Close ends the process.
func (s *Server) Close() error {
	if s == nil {
		return nil
	}
	return endProcess(s.proc)
}

// ProcessState is how another process finds one that serves a lab.
type ProcessState struct {
	Host      string `json:"host"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
}

func stateOf(h host.Host, p host.Process) *ProcessState {
	if p == nil {
		return nil
	}
	return &ProcessState{h.Name(), p.PID(), p.StartTime()}
}

// Kill ends the process of a lab that another process made.
func (s *ProcessState) Kill(ctx context.Context, hosts *host.Pool) error {
	at := host.Local() // a namespace may have lost its name, but not its processes
	if !strings.HasPrefix(s.Host, "netns:") {
		var err error
		if at, err = hosts.Find(ctx, s.Host); err != nil {
			return err
		}
	}
	p, err := at.FindProcess(ctx, s.PID, s.StartTime)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.Kill(ctx)
}

// serverLimit is how long a server may take to serve, and to end.
const serverLimit = 20 * time.Second

func endProcess(p host.Process) error {
	if p == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), serverLimit)
	defer cancel()
	return p.Kill(ctx)
}

// lastLine is the last line of a text that is not empty.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// find finds a part that a kind of storage needs, and refuses the storage where the part is missing.
func find(w debian.What) (home string, err error) {
	if home, err = debian.Find(w); err != nil {
		return "", &plan.UnsupportedError{Feature: "storage",
			Have: fmt.Sprintf("%s is not there: `make deps` (qmigrate doctor --mend) unpacks it", w)}
	}
	return home, nil
}

// drivers refuses QEMUs that lack a block driver.
func (d *Disks) drivers(ctx context.Context, driver string) error {
	for _, qemu := range d.spec.QEMUs {
		b, err := guest.FindQEMU(ctx, qemu)
		if err != nil {
			return err
		}
		if err := debian.HasDriver(ctx, b.Path, driver); err != nil {
			return &plan.UnsupportedError{Feature: "storage " + string(d.spec.Storage.Kind), Have: err.Error()}
		}
	}
	return nil
}
