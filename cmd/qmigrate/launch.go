package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/connect"
	"qmigrate/engine/connect/beside"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/setting"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
)

// inFlags puts flags in the place of the settings that an error names in backquotes.
func inFlags(err error) error {
	names := setting.Of(err)
	if names == nil {
		return err
	}
	text := err.Error()
	for _, name := range names {
		text = strings.ReplaceAll(text, "`"+name+"`", "--"+name)
	}
	if errors.As(err, new(*setting.Error)) {
		return usageError{err}
	}
	return inWords{text, err}
}

// inWords is an error in better words.
type inWords struct {
	text string
	error
}

func (e inWords) Error() string { return e.text }
func (e inWords) Unwrap() error { return e.error }

// launch is what the flags of --launch ask for.
func (c *commands) launch(x *cli.Context, src *endpoint.Endpoint, p *plan.Plan) (*beside.Launched, error) {
	s := beside.Spec{Hosts: c.hosts, QEMU: x.String("destination-qemu"), Paths: map[string]string{}, TAPs: map[string]string{},
		Ports: map[string]string{}}
	name, folder, err := connect.Folder(x.String("destination"))
	if err != nil {
		return nil, usagef("--destination %s: with --launch give the folder that is to be made for it, as in unix:/run/b, "+
			"ssh://HOST/run/b or lxc://NAME/run/b", x.String("destination"))
	}
	switch here := name == host.Local().Name(); {
	case here && x.IsSet("destination-host"):
		s.Host = x.String("destination-host")
	case !here && x.IsSet("destination-host"):
		return nil, usagef("--destination-host and --destination %s: that names the host already: leave --destination-host out",
			x.String("destination"))
	case !here:
		s.Host = name
	}
	if s.Folder = folder; name == host.Local().Name() {
		if s.Folder, err = filepath.Abs(folder); err != nil {
			return nil, err
		}
	}
	for flag, into := range map[string]map[string]string{"tap": s.TAPs, "path": s.Paths, "port": s.Ports} {
		for _, text := range x.StringSlice(flag) {
			from, to, ok := strings.Cut(text, "=")
			if !ok || from == "" || to == "" {
				return nil, usagef("--%s %s: write it as OLD=NEW", flag, text)
			}
			into[from] = to
		}
	}
	if !x.Bool("quiet") {
		s.Before = func(l *beside.Launched) {
			for _, n := range l.Notes {
				fmt.Fprintln(c.stderr, "launch:", n)
			}
			printChanges(c.stderr, l.Changes)
			for _, d := range l.Doubts {
				fmt.Fprintln(c.stderr, "launch:", d)
			}
		}
	}
	l, err := beside.Launch(x.Context, src, p, s)
	return l, inFlags(err)
}

// carryOver has a destination that was launched told what the source was told while it ran.
func (c *commands) carryOver(x *cli.Context, l *beside.Launched, src, dst *endpoint.Endpoint, p plan.Plan) error {
	said, err := l.CarryOver(x.Context, src, dst, p)
	if !x.Bool("quiet") {
		for _, s := range said {
			fmt.Fprintf(c.stderr, "launch: as the source was told while it ran: %s\n", s)
		}
	}
	return inFlags(err)
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
