package beside

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/record/units"
	"qmigrate/engine/setting"
	"qmigrate/guest"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
)

// Spec is how a destination is started from its source's command line.
type Spec struct {
	Folder string            // made for its sockets and logs, of this machine
	Host   string            // where to start it, as host.Find takes it; "": on this machine, in the network that fits
	QEMU   string            // a path or a version; "": the one that the source runs
	Paths  map[string]string // the destination's file for one of the source's
	TAPs   map[string]string // its TAP for one of the source's
	Ports  map[string]string // its TCP or UDP port for one of the source's

	// Before is told what is about to be started; nil: nobody.
	Before func(*Launched)
}

// Launched is a destination that Launch has started. A nil one was there before, and all its methods do nothing.
type Launched struct {
	*guest.VM
	Changes  []launch.Change  // how its command line differs from the source's
	Notes    []string         // how else it is started
	Doubts   []string         // for the record
	Forwards []launch.Forward // ports that the source holds until its guest has gone
	paths    map[string]string
}

// Close ends it.
func (l *Launched) Close() error {
	if l == nil {
		return nil
	}
	return l.VM.Close()
}

// Launch starts the destination from the command line of the process behind the source's monitor. Until it runs nothing
// has changed; if it fails nothing is left of it. p.Listen is filled in where the default cannot be reached.
func Launch(ctx context.Context, src *endpoint.Endpoint, p *plan.Plan, s Spec) (_ *Launched, err error) {
	at, err := s.place(ctx)
	if err != nil {
		return nil, err
	}
	found, proc, err := processOf(ctx, src)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("launch destination: %w", err)
		}
	}()
	l := &Launched{paths: s.Paths}
	change := launch.Options{Dir: s.Folder, Machine: found.Machine, ReadFile: proc.ReadFile,
		AskCID: launch.AskCID, Media: media(found, *p), Paths: s.Paths, TAPs: s.TAPs, Ports: s.Ports}
	if at, err = s.beside(at, connect.Handle(src), proc, &change, l); err != nil {
		return nil, err
	}
	if change.OtherNetwork {
		if err := listenAcross(p, change.Dir, s.Host); err != nil {
			return nil, err
		}
	}
	env := proc.Env
	if s.QEMU != "" {
		b, err := guest.FindQEMU(ctx, s.QEMU)
		if err != nil {
			return nil, err
		}
		change.QEMU, env = b.Path, proc.EnvFor()
	}
	if proc.Changed && change.QEMU == "" {
		now, err := versionOf(ctx, at, proc)
		if err != nil {
			return nil, setting.About(fmt.Errorf("%s has been replaced since the source was started from it: %w: "+
				"name another with `destination-qemu`", proc.Program, err), "destination-qemu")
		}
		l.Doubts = append(l.Doubts, fmt.Sprintf("%s has been replaced since the source, QEMU %s, was started from it: "+
			"the destination is QEMU %s", proc.Program, found.Version, now))
	}
	if err := launch.Room(memoryOf(found)); err != nil {
		return nil, err
	}
	if change.Held, err = launch.ReadHeld(proc.PID); err != nil {
		return nil, err
	}
	machine := ""
	if change.QEMU != "" {
		machine = found.Machine
	}
	if change.Plugged, err = pluggedIn(ctx, src, machine); err != nil {
		return nil, err
	}
	line, err := launch.Destination(proc.Args, change)
	if err != nil {
		return nil, launchError(err)
	}
	l.Changes, l.Forwards = line.Changes, line.Forwards
	l.Doubts = append(l.Doubts, line.Doubts...)
	l.Doubts = append(l.Doubts, proc.Less()...)
	if m := proc.Manager(); m != "" {
		l.Doubts = append(l.Doubts, m+" owns the source: when the source ends it may be started again, on the disks that "+
			"the destination has by then; disable it there first")
	}
	if s.Before != nil {
		s.Before(l)
	}
	command := host.Command{Args: line.Args, Env: env, Only: true, Dir: proc.Dir}
	if l.VM, err = guest.StartIncoming(ctx, at, command, s.Folder); err != nil {
		return nil, pluggedError(err, change.Plugged)
	}
	if err := l.noteForwards(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// place is where the destination is to be, and its folder is not there yet.
func (s Spec) place(ctx context.Context) (host.Host, error) {
	at, err := host.Find(ctx, cmp.Or(s.Host, "local"))
	if err != nil {
		return nil, setting.Errorf("destination-host", "", "%w", err)
	}
	if _, err := at.Stat(filepath.Join(s.Folder, guest.Control+".qmp")); err == nil {
		return nil, setting.About(fmt.Errorf("launch destination: %s exists and has a monitor: if an interrupted migration left it, "+
			"`recover` with the same endpoints keeps the guest; then remove that folder, or give another one", s.Folder),
			"recover")
	}
	if _, err := at.Stat(s.Folder); err == nil {
		return nil, fmt.Errorf("launch destination: %s exists: give a folder that does not, "+
			"it is made for the destination's sockets and logs", s.Folder)
	}
	return at, nil
}

// beside fits the host and the change to what the source's process is: whose it is, in which container, in which
// network.
func (s Spec) beside(at host.Host, source host.Process, proc *launch.Process, change *launch.Options,
	l *Launched) (host.Host, error) {
	network, err := networkOf(s.Host)
	if err != nil {
		return nil, err
	}
	whole := *proc
	if s.QEMU != "" {
		whole.Changed = false // another program takes its place
	}
	like, among, err := whole.Beside()
	if err != nil {
		return nil, err
	}
	if among {
		if s.QEMU != "" {
			return nil, setting.Errorf("destination-qemu", "",
				"the source has another root than we, so its destination can only be "+
					"the QEMU that it runs: leave it out, or start the destination yourself")
		}
		if change.Dir, err = proc.Folder(s.Folder); err != nil {
			return nil, err
		}
		like.Among = source
		if s.Host == "" {
			like.Network, network = true, proc.Network
		}
	}
	if like != nil {
		l.Notes = append(l.Notes, fmt.Sprintf("it is started as user %d, group %d, as the source is", like.UID, like.GID))
		if at, err = host.As(at, *like); err != nil {
			return nil, err
		}
	}
	if among {
		l.Notes = append(l.Notes, fmt.Sprintf("it is started among the files of process %d, which has %s as %s", proc.PID,
			s.Folder, change.Dir))
	}
	change.OtherNetwork = network != proc.Network
	return at, nil
}

// processOf is the process behind a monitor, and the facts that this monitor tells. The machine type is in the facts,
// because the command line may have an alias.
func processOf(ctx context.Context, e *endpoint.Endpoint) (*facts.Facts, *launch.Process, error) {
	if _, err := connect.Behind(e); errors.Is(err, connect.ErrElsewhere) {
		return nil, nil, setting.Errorf("source", "",
			"a destination like it needs its process: give it as a unix socket of this machine")
	}
	found, err := facts.Inspect(ctx, e, plan.Options{})
	if err != nil {
		return nil, nil, err
	}
	proc, err := connect.Behind(e)
	if err != nil {
		return nil, nil, fmt.Errorf("launch destination: %w", err)
	}
	if !proc.IsQEMU() {
		return nil, nil, fmt.Errorf("launch destination: process %d behind %s is no QEMU but %s: start the destination yourself",
			proc.PID, e.Name, cmp.Or(proc.Program, "not to be looked at"))
	}
	return found, proc, nil
}

// pluggedIn is what the source's monitor plugged in and out; machine is as readPlugged takes it.
func pluggedIn(ctx context.Context, src *endpoint.Endpoint, machine string) (launch.Plugged, error) {
	all, err := readPlugged(ctx, src, machine, plan.Options{})
	if err != nil {
		return launch.Plugged{}, err
	}
	p := launch.Plugged{Devices: all.Devices, Backends: all.Backends}
	for _, w := range all.Added {
		p.Added = append(p.Added, launch.Added(w))
	}
	return p, nil
}

// pluggedError names the device that was plugged in and that the destination does not take.
func pluggedError(err error, p launch.Plugged) error {
	for _, a := range p.Added {
		if strings.Contains(err.Error(), a.Option+" "+a.Value) {
			return fmt.Errorf("%w: unplug %s first (device_del), or start the destination yourself", err,
				a.Device)
		}
	}
	return err
}

// versionOf asks the program that is there now.
func versionOf(ctx context.Context, at host.Host, p *launch.Process) (string, error) {
	var out bytes.Buffer
	proc, err := at.Start(ctx, host.Command{Args: append(p.Command(), "--version"), Env: p.Env, Only: true,
		Stdout: &out})
	if err == nil {
		select {
		case <-proc.Done():
			err = proc.Err()
		case <-ctx.Done():
			err = errors.Join(ctx.Err(), proc.Kill(context.WithoutCancel(ctx)))
		}
	}
	if err != nil {
		return "", fmt.Errorf("ask it for its version: %w", err)
	}
	_, v, _ := strings.Cut(out.String(), "version ")
	v, _, _ = strings.Cut(v, "\n")
	return v, nil
}

// networkOf is the network namespace of a host, as Spec names it.
func networkOf(host string) (uint64, error) {
	file := "/proc/self/ns/net"
	if name, ok := strings.CutPrefix(host, "netns:"); ok {
		file = "/run/netns/" + name
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return 0, fmt.Errorf("find the network of %s: %w", host, err)
	}
	return st.Ino, nil
}

// listenAcross sees to it that a source in another network can reach the destination: a socket in the new folder can be
// reached from any, 127.0.0.1 from none.
func listenAcross(p *plan.Plan, dir, to string) error {
	host, _, _ := net.SplitHostPort(strings.TrimPrefix(p.Listen, "tcp:"))
	ip := net.ParseIP(host)
	switch local := p.Listen == "" || host == "localhost" || ip.IsLoopback(); {
	case !local || p.Tunnel != "" || p.Connect != "":
	case p.Listen == "" && p.TLS == nil:
		p.Listen = "unix:" + filepath.Join(dir, "migration.sock")
	default:
		return setting.Errorf("listen", p.Listen, "the source is in another network namespace than the destination: give "+
			"tcp:ADDRESS:0 with an address of %s that the source can reach", cmp.Or(to, "this machine"))
	}
	return nil
}

// memoryOf is what a second guest needs of this host.
func memoryOf(f *facts.Facts) launch.Memory {
	need := launch.Memory{Huge: map[int64]int64{}}
	for _, b := range f.RAM {
		if size, err := units.Size(strings.ReplaceAll(b.PageSize, " ", "")); err == nil && size > 64<<10 {
			need.Huge[size] += b.Bytes
			continue
		}
		need.Ordinary += b.Bytes
	}
	if len(f.RAM) == 0 {
		need.Ordinary = f.MemoryBytes
	}
	return need
}

// launchError says which settings give what an option lacks.
func launchError(err error) error {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	var names []string
	for _, err := range all {
		refused := (*launch.ArgumentError)(nil)
		if !errors.As(err, &refused) || refused.Setting == "" {
			continue
		}
		name := map[string]string{"Paths": "path", "Ports": "port", "TAPs": "tap"}[refused.Setting]
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return err
	}
	slices.Sort(names)
	return setting.About(fmt.Errorf("%w; `%s` OLD=NEW", err, strings.Join(names, "` OLD=NEW, `")), names...)
}
