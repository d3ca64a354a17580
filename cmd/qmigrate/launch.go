package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"qmigrate/engine"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/guest"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// launched is a destination that we started; nil if it was there before.
type launched struct {
	*guest.VM
	doubts   []string         // for the record
	forwards []launch.Forward // ports that the source holds until its guest has gone
}

// Close ends it.
func (l *launched) Close() error {
	if l == nil {
		return nil
	}
	return l.VM.Close()
}

// launch starts the destination from the command line of the process behind the source's monitor. Until it runs nothing
// has changed; if it fails nothing is left of it. p.Listen is filled in where the default cannot be reached.
func (c *commands) launch(x *cli.Context, src *endpoint.Endpoint, p *plan.Plan) (*launched, error) {
	dir, at, err := launchFolder(x)
	if err != nil {
		return nil, err
	}
	found, proc, err := processOf(x.Context, src)
	if err != nil {
		return nil, err
	}
	change := launch.Options{Dir: dir, Machine: found.Machine, ReadFile: proc.ReadFile,
		AskCID: launch.AskCID, Media: media(found, *p),
		Paths: map[string]string{}, TAPs: map[string]string{}, Ports: map[string]string{}}
	for flag, into := range map[string]map[string]string{"tap": change.TAPs, "path": change.Paths, "port": change.Ports} {
		for _, text := range x.StringSlice(flag) {
			from, to, ok := strings.Cut(text, "=")
			if !ok || from == "" || to == "" {
				return nil, usagef("--%s %s: write it as OLD=NEW", flag, text)
			}
			into[from] = to
		}
	}
	network, err := networkOf(x.String("destination-host"))
	if err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	whole := *proc
	if x.String("destination-qemu") != "" {
		whole.Changed = false // another program takes its place
	}
	like, among, err := whole.Beside()
	if err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	if among {
		if x.String("destination-qemu") != "" {
			return nil, usagef("--destination-qemu: the source has another root than we, so its destination can only be " +
				"the QEMU that it runs: leave it out, or start the destination yourself")
		}
		if change.Dir, err = proc.Folder(dir); err != nil {
			return nil, fmt.Errorf("launch destination: %w", err)
		}
		like.Among = src.Process.(*peer).proc
		if !x.IsSet("destination-host") {
			like.Network, network = true, proc.Network
		}
	}
	if like != nil {
		if at, err = host.As(at, *like); err != nil {
			return nil, fmt.Errorf("launch destination: %w", err)
		}
	}
	if change.OtherNetwork = network != proc.Network; change.OtherNetwork {
		if err := listenAcross(x, p, change.Dir); err != nil {
			return nil, err
		}
	}
	l := &launched{}
	env := proc.Env
	if want := x.String("destination-qemu"); want != "" {
		b, err := guest.FindQEMU(x.Context, want)
		if err != nil {
			return nil, err
		}
		change.QEMU, env = b.Path, proc.EnvFor()
	}
	if proc.Changed && change.QEMU == "" {
		now, err := versionOf(x.Context, at, proc)
		if err != nil {
			return nil, fmt.Errorf("launch destination: %s has been replaced since the source was started from it: %w: "+
				"name another with --destination-qemu", proc.Program, err)
		}
		l.doubts = append(l.doubts, fmt.Sprintf("%s has been replaced since the source, QEMU %s, was started from it: "+
			"the destination is QEMU %s", proc.Program, found.Version, now))
	}
	if err := launch.Room(memoryOf(found)); err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	if change.Held, err = launch.ReadHeld(proc.PID); err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	machine := ""
	if change.QEMU != "" {
		machine = found.Machine
	}
	if change.Plugged, err = pluggedIn(x.Context, src, machine); err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	line, err := launch.Destination(proc.Args, change)
	if err != nil {
		return nil, launchError(err)
	}
	l.forwards = line.Forwards
	l.doubts = append(l.doubts, line.Doubts...)
	l.doubts = append(l.doubts, proc.Less()...)
	if m := proc.Manager(); m != "" {
		l.doubts = append(l.doubts, m+" owns the source: when the source ends it may be started again, on the disks that "+
			"the destination has by then; disable it there first")
	}
	if !x.Bool("quiet") {
		if like != nil {
			fmt.Fprintf(c.stderr, "launch: it is started as user %d, group %d, as the source is\n", like.UID, like.GID)
		}
		if among {
			fmt.Fprintf(c.stderr, "launch: it is started among the files of process %d, which has %s as %s\n", proc.PID, dir,
				change.Dir)
		}
		printChanges(c.stderr, line.Changes)
		for _, d := range l.doubts {
			fmt.Fprintln(c.stderr, "launch:", d)
		}
	}
	command := host.Command{Args: line.Args, Env: env, Only: true, Dir: proc.Dir}
	if l.VM, err = guest.StartIncoming(x.Context, at, command, dir); err != nil {
		return nil, pluggedError(err, change.Plugged)
	}
	if err := l.noteForwards(); err != nil {
		return nil, errors.Join(fmt.Errorf("launch destination: %w", err), l.Close())
	}
	return l, nil
}

// launchFolder is the folder that is to be made for the destination, and its host.
func launchFolder(x *cli.Context) (string, host.Host, error) {
	dir, ok := strings.CutPrefix(x.String("destination"), "unix:")
	if !ok {
		return "", nil, usagef("--destination %s: with --launch give the folder that is to be made for it, as in unix:/run/b",
			x.String("destination"))
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, err
	}
	at, err := host.Find(x.Context, x.String("destination-host"))
	if err != nil {
		return "", nil, usageError{err}
	}
	if _, err := at.Stat(filepath.Join(dir, guest.Control+".qmp")); err == nil {
		return "", nil, fmt.Errorf("launch destination: %s exists and has a monitor: if an interrupted migration left it, "+
			"`qmigrate migrate --recover` with the same endpoints keeps the guest; then remove that folder, or give another one", dir)
	}
	if _, err := at.Stat(dir); err == nil {
		return "", nil, fmt.Errorf("launch destination: %s exists: give a folder that does not, "+
			"it is made for the destination's sockets and logs", dir)
	}
	return dir, at, nil
}

// processOf is the process behind a monitor, and the facts that this monitor tells. The machine type is in the facts,
// because the command line may have an alias.
func processOf(ctx context.Context, e *endpoint.Endpoint) (*facts.Facts, *launch.Process, error) {
	p, ok := e.Process.(*peer)
	if !ok {
		return nil, nil, usagef("--launch needs the source's process: give --source as a unix socket of this machine")
	}
	found, err := facts.Inspect(ctx, e, plan.Options{})
	if err != nil {
		return nil, nil, err
	}
	proc, err := p.process()
	if err != nil {
		return nil, nil, fmt.Errorf("launch destination: %w", err)
	}
	if !proc.IsQEMU() {
		return nil, nil, fmt.Errorf("launch destination: process %d behind %s is no QEMU but %s: start the destination yourself",
			proc.PID, e.Name, first(proc.Program, "not to be looked at"))
	}
	return found, proc, nil
}

// pluggedIn is what the source's monitor plugged in and out; machine is as engine.ReadPlugged takes it.
func pluggedIn(ctx context.Context, src *endpoint.Endpoint, machine string) (launch.Plugged, error) {
	all, err := engine.ReadPlugged(ctx, src, machine, plan.Options{})
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

// networkOf is the network namespace of a host that --destination-host names.
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
func listenAcross(x *cli.Context, p *plan.Plan, dir string) error {
	host, _, _ := net.SplitHostPort(strings.TrimPrefix(p.Listen, "tcp:"))
	ip := net.ParseIP(host)
	switch local := p.Listen == "" || host == "localhost" || ip.IsLoopback(); {
	case !local || x.IsSet("tunnel") || p.Connect != "":
	case p.Listen == "" && p.TLS == nil:
		p.Listen = "unix:" + filepath.Join(dir, "migration.sock")
	default:
		return usagef("--listen %s: the source is in another network namespace than the destination: give "+
			"--listen tcp:ADDRESS:0 with an address of %s that the source can reach", p.Listen, x.String("destination-host"))
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

// launchError turns the settings that an option lacks into flags.
func launchError(err error) error {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	var flags []string
	for _, err := range all {
		refused := (*launch.ArgumentError)(nil)
		if !errors.As(err, &refused) || refused.Setting == "" {
			continue
		}
		flag := map[string]string{"Paths": "--path", "Ports": "--port", "TAPs": "--tap"}[refused.Setting]
		if !slices.Contains(flags, flag) {
			flags = append(flags, flag)
		}
	}
	err = fmt.Errorf("launch destination: %w", err)
	if len(flags) > 0 {
		slices.Sort(flags)
		err = fmt.Errorf("%w; %s OLD=NEW", err, strings.Join(flags, " OLD=NEW, "))
	}
	return err
}

// forwardLimit is the time that moving a port forwarding may take.
const forwardLimit = 10 * time.Second

// forwardsFile is the file in the destination's folder that has the forwardings until they have moved, for --recover.
const forwardsFile = "forwards.json"

// noteForwards writes it, before anything can move. What is cut off there belongs to a migration that never began.
func (l *launched) noteForwards() error {
	if len(l.forwards) == 0 {
		return nil
	}
	b, err := json.Marshal(l.forwards)
	if err != nil {
		return err
	}
	return l.Host().WriteFile(filepath.Join(l.Spec().Dir, forwardsFile), b, 0o600)
}

// moveForwards takes the ports that lead to the guest from the source and gives them to the destination, where the
// guest is now. What fails is a warning.
func (l *launched) moveForwards(ctx context.Context, src, dst *endpoint.Endpoint, rec *record.Migration) {
	if l == nil || len(l.forwards) == 0 || rec.GuestOn != record.Destination {
		return
	}
	failed := 0
	for _, f := range l.forwards {
		if err := moveForward(ctx, src, dst, f); err != nil {
			rec.Warn("%s", err)
			failed++
		}
	}
	if failed == 0 {
		if err := l.Host().RemoveAll(filepath.Join(l.Spec().Dir, forwardsFile)); err != nil {
			rec.Warn("the port forwardings have moved, and their list is left: %v", err)
		}
	}
}

// moveForward may be called again: the destination lets go of a port that it has already, and the source may have let
// go of it, or be dead.
func moveForward(ctx context.Context, src, dst *endpoint.Endpoint, f launch.Forward) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forwardLimit) // the guest has moved, Ctrl-C or not
	defer cancel()
	remove := "hostfwd_remove " + strings.TrimSpace(f.Netdev+" "+f.Address())
	_ = humanMonitor(ctx, dst, remove, "removed")
	removed := humanMonitor(ctx, src, remove, "removed")
	err := humanMonitor(ctx, dst, "hostfwd_add "+strings.TrimSpace(f.Netdev+" "+f.Rule), "")
	if err != nil {
		return fmt.Errorf("the port forwarding %s could not be moved to the destination: %w: end the source, then give the "+
			"destination's monitor `hostfwd_add %s`", f.Rule, cmp.Or(removed, err), strings.TrimSpace(f.Netdev+" "+f.Rule))
	}
	return nil
}

// recoverForwards moves what an interrupted `migrate --launch` had still to move. It says how many those were.
func recoverForwards(ctx context.Context, src, dst *endpoint.Endpoint, destination string) (n int, err error) {
	folder, ok := strings.CutPrefix(destination, "unix:")
	if !ok {
		return 0, nil
	}
	name := filepath.Join(folder, forwardsFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the port forwardings that are still to move: %w", err)
	}
	var all []launch.Forward
	if json.Unmarshal(b, &all) != nil { // cut off: see noteForwards
		return 0, nil
	}
	for _, f := range all {
		err = errors.Join(err, moveForward(ctx, src, dst, f))
	}
	if err != nil {
		return 0, err
	}
	return len(all), os.Remove(name)
}

// humanMonitor gives a command whose answer has to have a text in it; an answer of no words is that of a command that
// has nothing to say.
func humanMonitor(ctx context.Context, e *endpoint.Endpoint, line, want string) error {
	nc, err := e.Control(ctx)
	if err != nil {
		return err
	}
	conn, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		return err
	}
	defer conn.Close()
	said, err := conn.HumanMonitor(ctx, line)
	if said = strings.TrimSpace(said); err == nil && (want == "" && said != "" || !strings.Contains(said, want)) {
		err = fmt.Errorf("%s: %s", line, said)
	}
	return err
}

// printChanges says how the destination's command line differs from the source's, as a diff.
func printChanges(w io.Writer, all []launch.Change) {
	fmt.Fprintln(w, "launch: the destination's command line is the source's but for")
	for _, ch := range all {
		option := first(ch.Option, "program")
		if ch.From == ch.To {
			fmt.Fprintf(w, "  = %s (%s)\n", strings.TrimSpace(option+" "+strings.TrimPrefix(ch.To, option)), ch.Why)
			continue
		}
		if ch.From != "" {
			fmt.Fprintf(w, "  - %s\n", strings.TrimSpace(option+" "+strings.TrimPrefix(ch.From, option)))
		}
		switch {
		case ch.To == "":
			fmt.Fprintf(w, "    (%s)\n", ch.Why)
		case ch.To == option:
			fmt.Fprintf(w, "  + %s (%s)\n", option, ch.Why)
		default:
			fmt.Fprintf(w, "  + %s %s (%s)\n", option, ch.To, ch.Why)
		}
	}
}
