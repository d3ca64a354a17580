package connect

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"

	"qmigrate/engine/connect/behind"
	"qmigrate/engine/endpoint"
	"qmigrate/guest"
	"qmigrate/hostnet/host"
)

// traceLog is a log on a host.
type traceLog struct {
	name string
	// where finds the host, and the process for which that is the file's name, 0 if it is the host's
	where func(context.Context) (host.Host, int, error)
}

func (t *traceLog) Name() string { return t.name }

func (t *traceLog) Read(ctx context.Context, from int64, words ...string) (endpoint.LogLines, error) {
	h, pid, err := t.where(ctx)
	if err != nil {
		return endpoint.LogLines{}, err
	}
	return behind.Logs().Ask(ctx, h, behind.LogQuery{PID: pid, Name: t.name, From: from, Words: words})
}

// logsOf are the logs of a VM: its own, and what else its host has.
func logsOf(vm *guest.VM) func(string) endpoint.TraceLog {
	return func(name string) endpoint.TraceLog {
		if name == "" {
			name = vm.Spec().Socket(guest.TraceLog)
		}
		return &traceLog{name, func(context.Context) (host.Host, int, error) { return vm.Host(), vm.Process().PID(), nil }}
	}
}

// log is a log of the process's host. A QEMU that qmigrate started has its own one beside its monitor.
func (p *peer) log(name string) endpoint.TraceLog {
	own := name == ""
	t := &traceLog{name: name}
	t.where = func(ctx context.Context) (host.Host, int, error) {
		h, err := p.host(ctx)
		if err != nil {
			return nil, 0, err
		}
		if own && t.name == "" {
			if t.name, err = p.ownLog(ctx, h); err != nil {
				return nil, 0, err
			}
		}
		_, proc := p.process()
		if proc == nil {
			return h, 0, nil
		}
		return h, proc.PID(), nil
	}
	return t
}

// ownLog is the name of the log that a QEMU started by qmigrate has.
func (p *peer) ownLog(ctx context.Context, h host.Host) (string, error) {
	monitor, err := p.monitors(ctx, h)
	if err != nil {
		return "", err
	}
	folder, file := filepath.Split(monitor)
	if s := (guest.Spec{Dir: folder}); file != filepath.Base(s.Socket(guest.Control)) {
		return "", fmt.Errorf("its monitor %s is in no folder of qmigrate's: %w", monitor, fs.ErrNotExist)
	}
	return filepath.Abs(guest.Spec{Dir: folder}.Socket(guest.TraceLog))
}

// localLog is a file of this machine, for a QEMU of which nothing better is known.
func localLog(name string) endpoint.TraceLog {
	if name == "" {
		return nil
	}
	return &traceLog{name, func(context.Context) (host.Host, int, error) { return host.Local(), 0, nil }}
}

// Identity tells the process from all others.
func (p Process) Identity() string { return identity(p.host, p.proc) }

// Identity tells the process from all others, once it is known.
func (p *peer) Identity() string {
	h, proc := p.process()
	if proc == nil || !p.isQEMU() {
		return ""
	}
	return identity(h, proc)
}

// identity is a process's host, number and start time. All namespaces of this machine have one table of processes.
func identity(h host.Host, proc host.Process) string {
	name := local
	if far, ok := h.(*host.Far); ok {
		name = far.Name()
	}
	return fmt.Sprintf("%s %d %d", name, proc.PID(), proc.StartTime())
}
