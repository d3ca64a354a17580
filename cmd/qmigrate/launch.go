package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine"
	"qmigrate/guest"
	"qmigrate/guest/launch"
	"qmigrate/hostnet"
)

// launch starts the destination from the command line of the process behind the source's monitor.
func (c *commands) launch(x *cli.Context, src *engine.Endpoint) (*guest.VM, error) {
	dir, ok := strings.CutPrefix(x.String("destination"), "unix:")
	if !ok {
		return nil, usagef("--destination %s: with --launch give the folder that is to be made for it, as in unix:/run/b", x.String("destination"))
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	host, err := hostnet.Find(x.Context, x.String("destination-host"))
	if err != nil {
		return nil, usageError{err}
	}
	if _, err := host.Stat(filepath.Join(dir, guest.Control+".qmp")); err == nil {
		return nil, fmt.Errorf("launch destination: %s exists and has a monitor: if an interrupted migration left it, `qmigrate migrate --recover` with the same endpoints keeps the guest; then remove that folder, or give another one", dir)
	}
	if _, err := host.Stat(dir); err == nil {
		return nil, fmt.Errorf("launch destination: %s exists: give a folder that does not, it is made for the destination's sockets and logs", dir)
	}
	machine, line, err := commandLineOf(x.Context, src)
	if err != nil {
		return nil, err
	}
	change := launch.Options{Dir: dir, Machine: machine, OtherNetwork: x.String("destination-host") != "local", TAPs: map[string]string{}, Paths: map[string]string{}}
	if want := x.String("destination-qemu"); want != "" {
		b, err := guest.FindQEMU(x.Context, want)
		if err != nil {
			return nil, err
		}
		change.QEMU = b.Path
		line.env = nil // it says where the other one's parts are
	}
	for flag, into := range map[string]map[string]string{"tap": change.TAPs, "path": change.Paths} {
		for _, text := range x.StringSlice(flag) {
			from, to, ok := strings.Cut(text, "=")
			if !ok || from == "" || to == "" {
				return nil, usagef("--%s %s: write it as OLD=NEW", flag, text)
			}
			into[from] = to
		}
	}
	args, changes, err := launch.Destination(line.args, change)
	if err != nil {
		return nil, fmt.Errorf("launch destination: %w", err)
	}
	if !x.Bool("quiet") {
		printChanges(c.stderr, changes)
	}
	return guest.StartIncoming(x.Context, host, args, line.env, dir)
}

// printChanges says how the destination's command line differs from the source's, as a diff.
func printChanges(w io.Writer, all []launch.Change) {
	fmt.Fprintln(w, "launch: the destination's command line is the source's but for")
	for _, ch := range all {
		option := first(ch.Option, "program")
		if ch.From != "" {
			fmt.Fprintf(w, "  - %s\n", strings.TrimSpace(option+" "+ch.From))
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

// commandLineOf is that of the process behind a monitor, with the machine type that its monitor names: its own word
// may be an alias.
func commandLineOf(ctx context.Context, e *engine.Endpoint) (machine string, line commandLine, err error) {
	p, ok := e.Process.(*peer)
	if !ok {
		return "", line, usagef("--launch needs the source's process: give --source as a unix socket of this machine")
	}
	facts, err := engine.Inspect(ctx, e, engine.Options{})
	if err != nil {
		return "", line, err
	}
	if line, err = p.commandLine(); err != nil {
		return "", line, fmt.Errorf("launch destination: %w", err)
	}
	if !line.isQEMU() {
		return "", line, fmt.Errorf("launch destination: process %d behind %s is no QEMU but %s: start the destination yourself",
			p.proc.PID(), e.Name, first(line.program, "not to be looked at"))
	}
	return facts.Machine, line, nil
}
