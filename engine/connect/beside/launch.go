package beside

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"

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
	Hosts  *host.Pool        // finds Host; nil: one that needs no helper
	Host   string            // where to start it, as Hosts finds it; "": on this machine, in the network that fits
	Folder string            // made there for its sockets and logs
	QEMU   string            // a path there, or a version, as guest.FindQEMUOn takes it; "": the one that the source runs
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
	judged   []string         // files of its disks that the user chose, or that were compared with the source's
}

// Close ends it.
func (l *Launched) Close() error {
	if l == nil {
		return nil
	}
	return l.VM.Close()
}

// Leave has it stay when the channel to its host closes, and nobody remember that we started it: the guest is there.
func (l *Launched) Leave(ctx context.Context) error {
	if l == nil {
		return nil
	}
	if far, ok := l.Host().(*host.Far); ok {
		return far.Leave(ctx)
	}
	return nil
}

// source is the QEMU that a destination is to be like.
type source struct {
	*launch.Process
	host  host.Host
	proc  host.Process
	facts *facts.Facts
}

// Launch starts the destination from the command line of the process behind the source's monitor. Until it runs nothing
// has changed; if it fails nothing is left of it. p.Listen is filled in where the default cannot be reached.
func Launch(ctx context.Context, src *endpoint.Endpoint, p *plan.Plan, s Spec) (_ *Launched, err error) {
	at, err := s.place(ctx)
	if err != nil {
		return nil, err
	}
	from, err := sourceOf(ctx, src)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("launch destination: %w", err)
		}
	}()
	l := &Launched{judged: slices.Collect(maps.Values(s.Paths))}
	change := launch.Options{Dir: s.Folder, Machine: from.facts.Machine,
		ReadFile: func(name string) ([]byte, error) { return from.ReadFile(from.host, name) },
		AskCID:   launch.AskCID(ctx, at), Media: media(from.facts, *p), Paths: s.Paths, TAPs: s.TAPs, Ports: s.Ports}
	command := host.Command{Env: from.Env, Only: true, Dir: from.Dir}
	if change.QEMU, err = s.findQEMU(ctx, at); err != nil {
		return nil, err
	}
	if change.QEMU != "" {
		command.Env = from.EnvFor()
	}
	ours, err := launch.AskOurs(ctx, at)
	if err != nil {
		return nil, err
	}
	apart := otherHost(from.host, at)
	if apart {
		err = s.apart(ctx, at, from, ours, &change, &command, l)
	} else {
		at, err = s.beside(ctx, at, from, ours, &change, l)
	}
	if err != nil {
		return nil, err
	}
	if change.OtherNetwork {
		if err := listenAcross(p, change, s.Host); err != nil {
			return nil, err
		}
	}
	if from.Changed && change.QEMU == "" && !apart {
		now, err := versionOf(ctx, at, host.Command{Args: from.Command(), Env: from.Env, Only: true})
		if err != nil {
			return nil, setting.About(fmt.Errorf("%s has been replaced since the source was started from it: %w: "+
				"name another with `destination-qemu`", from.Program, err), "destination-qemu")
		}
		l.Doubts = append(l.Doubts, fmt.Sprintf("%s has been replaced since the source, QEMU %s, was started from it: "+
			"the destination is QEMU %s", from.Program, from.facts.Version, now))
	}
	if err := launch.Room(ctx, at, memoryOf(from.facts)); err != nil {
		return nil, err
	}
	machine := ""
	if change.QEMU != "" {
		machine = from.facts.Machine
	}
	if change.Plugged, err = pluggedIn(ctx, src, machine); err != nil {
		return nil, err
	}
	line, err := launch.Destination(from.Args, change)
	if err != nil {
		return nil, launchError(err)
	}
	if err := launch.Lacks(ctx, at, line.Needs); err != nil {
		return nil, launchError(err)
	}
	if apart {
		if err := l.compareDisks(ctx, at, from, *p, s); err != nil {
			return nil, launchError(err)
		}
	}
	l.Changes, l.Forwards = line.Changes, line.Forwards
	l.Doubts = append(l.Doubts, line.Doubts...)
	l.Doubts = append(l.Doubts, from.Less(ours.Limits)...)
	if m := from.Manager(); m != "" {
		l.Doubts = append(l.Doubts, m+" owns the source: when the source ends it may be started again, on the disks that "+
			"the destination has by then; disable it there first")
	}
	if s.Before != nil {
		s.Before(l)
	}
	command.Args = line.Args
	if l.VM, err = guest.StartIncoming(ctx, at, command, s.Folder); err != nil {
		return nil, pluggedError(err, change.Plugged)
	}
	if err := l.noteForwards(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// otherHost tells whether two hosts have not the same files, ports and processes, as far as their names say.
func otherHost(a, b host.Host) bool {
	_, farA := a.(*host.Far)
	_, farB := b.(*host.Far)
	return (farA || farB) && a.Name() != b.Name()
}

// place is where the destination is to be, and its folder is not there yet.
func (s Spec) place(ctx context.Context) (host.Host, error) {
	hosts := s.Hosts
	if hosts == nil {
		hosts = new(host.Pool)
	}
	at, err := hosts.Find(ctx, cmp.Or(s.Host, "local"))
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

// findQEMU is the QEMU that was asked for; "" if none was.
func (s Spec) findQEMU(ctx context.Context, at host.Host) (string, error) {
	if s.QEMU == "" {
		return "", nil
	}
	b, err := guest.FindQEMUOn(ctx, at, s.QEMU, "")
	return b.Path, err
}

// beside fits the host and the change to what the source's process is: whose it is, in which container, in which
// network.
func (s Spec) beside(ctx context.Context, at host.Host, from *source, ours launch.Ours, change *launch.Options,
	l *Launched) (host.Host, error) {
	network := ours.Network
	like, among, err := launch.Beside(ctx, from.host, from.PID, s.QEMU != "")
	if err != nil {
		return nil, err
	}
	if among {
		if s.QEMU != "" {
			return nil, setting.Errorf("destination-qemu", "",
				"the source has another root than we, so its destination can only be "+
					"the QEMU that it runs: leave it out, or start the destination yourself")
		}
		if change.Dir, err = launch.FolderOf(ctx, from.host, from.PID, s.Folder); err != nil {
			return nil, err
		}
		like.Among = from.proc
		if _, far := at.(*host.Far); far || s.Host == "" {
			like.Network, network = true, from.Network
		}
	}
	if like != nil {
		l.Notes = append(l.Notes, fmt.Sprintf("it is started as user %d, group %d, as the source is", like.UID, like.GID))
		if at, err = host.As(at, *like); err != nil {
			return nil, err
		}
	}
	if among {
		l.Notes = append(l.Notes, fmt.Sprintf("it is started among the files of process %d, which has %s as %s", from.PID,
			s.Folder, change.Dir))
	}
	change.OtherNetwork = network != from.Network
	change.Held, err = launch.HeldBy(ctx, from.host, from.PID)
	return at, err
}

// sourceOf is the QEMU behind a monitor: its process, and the facts that this monitor tells. The machine type is in the
// facts, because the command line may have an alias.
func sourceOf(ctx context.Context, e *endpoint.Endpoint) (*source, error) {
	h, err := connect.HostOf(ctx, e)
	if errors.Is(err, connect.ErrElsewhere) {
		return nil, setting.Errorf("source", "",
			"a destination like it needs its process: give it as a unix socket of this machine, or of another host (ssh://, lxc://)")
	}
	if err != nil {
		return nil, err
	}
	found, err := facts.Inspect(ctx, e, plan.Options{})
	if err != nil {
		return nil, err
	}
	proc := connect.Handle(e)
	if proc == nil {
		return nil, errors.New("launch destination: the process behind the monitor is not known")
	}
	p, err := launch.Look(ctx, h, proc.PID())
	if err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	if !p.IsQEMU() {
		return nil, fmt.Errorf("launch destination: process %d behind %s is no QEMU but %s: start the destination yourself",
			p.PID, e.Name, cmp.Or(p.Program, "not to be looked at"))
	}
	return &source{p, h, proc, found}, nil
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
func versionOf(ctx context.Context, at host.Host, c host.Command) (string, error) {
	var out bytes.Buffer
	c.Args, c.Stdout = append(slices.Clone(c.Args), "--version"), &out
	proc, err := at.Start(ctx, c)
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

// listenAcross sees to it that a source in another network can reach the destination: on one machine a socket in the
// new folder can be reached from any, 127.0.0.1 from none. Where a destination on another host listens, connect.Listen
// finds.
func listenAcross(p *plan.Plan, change launch.Options, to string) error {
	host, _, _ := net.SplitHostPort(strings.TrimPrefix(p.Listen, "tcp:"))
	ip := net.ParseIP(host)
	switch local := p.Listen == "" || host == "localhost" || ip.IsLoopback(); {
	case !local || p.Tunnel != "" || p.Connect != "" || p.Listen == "" && change.OtherHost:
	case p.Listen == "" && p.TLS == nil:
		p.Listen = "unix:" + filepath.Join(change.Dir, "migration.sock")
	default:
		return setting.Errorf("listen", p.Listen, "the source is in another network than the destination: give "+
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
