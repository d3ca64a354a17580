package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/lab"
	"qmigrate/engine/setting"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

func (c *commands) lab() *cli.Command {
	name := &cli.StringFlag{Name: "lab", Value: "lab", Usage: "`NAME` the lab's"}
	return &cli.Command{
		Name:  "lab",
		Usage: "the test bed: hosts, bridges, TAPs, a guest, and a destination that waits for it",
		Subcommands: []*cli.Command{
			{
				Name: "up", Usage: "make a lab that stands until `lab down`; needs root", ArgsUsage: "[NAME]",
				Flags: slices.Concat(flags(setting.Lab, aboutGuest, lab.Settings()), hostFlags(),
					[]cli.Flag{quietFlag(), logLevelFlag()}),
				Action: c.labUp,
			},
			{Name: "status", Usage: "which labs there are, and which side runs each guest", Flags: hostFlags(),
				Action: c.labStatus},
			{
				Name: "exec", Usage: "run a command on a host of the lab: a, b, or link (the observer)", ArgsUsage: "HOST COMMAND [ARG...]",
				Flags: append(hostFlags(), name), Action: c.labExec,
			},
			{
				Name: "rate", Usage: "change the rate of the workload in a lab's guest, dirty, while it runs: 5000/s; 0/s is as " +
					"fast as it can", ArgsUsage: "RATE",
				Flags: append(hostFlags(), name), Action: c.labRate,
			},
			{Name: "down", Usage: "remove a lab: its QEMUs, its network, its folder", ArgsUsage: "[NAME]", Flags: hostFlags(),
				Action: c.labDown},
		},
		Action: func(x *cli.Context) error {
			if x.Args().Present() {
				return usagef("lab %q: have up, status, exec, rate, down", x.Args().First())
			}
			return cli.ShowSubcommandHelp(x)
		},
	}
}

// labName is the argument of up and down.
func labName(x *cli.Context) (string, error) {
	if x.Args().Len() > 1 {
		return "", usagef("%s takes one name, found %q too", x.Command.Name, x.Args().Get(1))
	}
	name := first(x.Args().First(), "lab")
	if err := lab.CheckName(name); err != nil {
		return "", usageError{err}
	}
	return name, nil
}

func (c *commands) labUp(x *cli.Context) error {
	name, err := labName(x)
	if err != nil {
		return err
	}
	s, err := c.labSpec(x, setting.Lab)
	if err != nil {
		return err
	}
	if s.Workload.Type().Outside {
		return usagef("--workload %s: a part of it would end with this command: it is for `qmigrate demo`", s.Workload.Name)
	}
	if os.Geteuid() != 0 {
		return errors.New("lab up needs root, because its network outlives this command: run it with sudo; `qmigrate " +
			"demo` needs none")
	}
	said, err := lab.Sweep(x.Context, c.reach(x))
	for _, line := range said {
		fmt.Fprintln(c.stderr, fold(line, 2, page(c.stderr)))
	}
	if err != nil {
		return fmt.Errorf("clean up after a killed run: %w", err)
	}
	s.Owner = name
	l, err := lab.Up(x.Context, s)
	if err != nil {
		return err
	}
	listen := l.Listen()
	if err := l.Leave(); err != nil {
		return errors.Join(err, l.Close())
	}
	st := lab.Inspect(x.Context, c.reach(x), name)
	fmt.Fprintf(c.stdout, "lab %s is up: %s\n", name, st.Guest())
	if len(st.Sides) == 2 {
		fmt.Fprintf(c.stdout, "qmigrate migrate --source %s --destination %s --listen %s\n", st.Sides[0].Endpoint,
			st.Sides[1].Endpoint, listen)
	}
	return nil
}

func (c *commands) labStatus(x *cli.Context) error {
	labs, err := lab.List(x.Context, c.reach(x))
	if err != nil {
		return err
	}
	if len(labs) == 0 {
		fmt.Fprintln(c.stdout, "no labs")
	}
	for _, l := range labs {
		text := l.Owner + ": " + l.Guest()
		switch {
		case l.Kept && l.Dead():
			text += "; `qmigrate lab down " + l.Owner + "` removes the rest of it"
		case l.Kept:
			text += "; stands"
		case l.Owned:
			text = l.Owner + ": in use by a running qmigrate"
		default:
			text += "; left behind by a process that was killed: `qmigrate lab down " + l.Owner + "` removes it"
		}
		fmt.Fprintln(c.stdout, fold(text, 2, page(c.stdout)))
		for _, s := range l.Sides {
			state := s.RunState
			if s.Err != nil {
				state = s.Err.Error()
			}
			fmt.Fprintf(c.stdout, "  %s\n", fold(fmt.Sprintf("%s on %s, %s (pid %d): %s", s.Name, s.Host, s.Endpoint, s.PID,
				state), 4, page(c.stdout)))
		}
		if mend := l.Mend(); mend != "" {
			fmt.Fprintf(c.stdout, "  %s\n", fold(mend, 2, page(c.stdout)))
		}
	}
	return nil
}

func (c *commands) labExec(x *cli.Context) error {
	if x.Args().Len() < 2 {
		return usagef("lab exec takes a host (a, b or link) and a command: as in `qmigrate lab exec link ping -c3 " +
			"10.77.0.101`")
	}
	if err := lab.CheckName(x.String("lab")); err != nil {
		return usageError{err}
	}
	at, err := lab.Host(x.Context, c.reach(x), x.String("lab"), x.Args().First())
	if err != nil {
		return err
	}
	p, err := at.Start(x.Context, host.Command{Args: x.Args().Tail(), Stdin: c.stdin, Stdout: c.stdout, Stderr: c.stderr})
	if err != nil {
		return err
	}
	<-p.Done()
	var exit interface{ ExitCode() int } // of our child, or of a process on another host
	if errors.As(p.Err(), &exit) && exit.ExitCode() >= 0 {
		return passOn(exit.ExitCode())
	}
	return p.Err()
}

func (c *commands) labRate(x *cli.Context) error {
	if x.Args().Len() != 1 {
		return usagef("lab rate takes a rate: as in `qmigrate lab rate 5000/s`")
	}
	if err := lab.CheckName(x.String("lab")); err != nil {
		return usageError{err}
	}
	w, err := wire.ParseWorkload("dirty:rate=" + x.Args().First())
	if err != nil {
		return usagef("lab rate: %w", errors.Unwrap(err))
	}
	return lab.SetRate(x.Context, c.reach(x), x.String("lab"), w.Number("rate"))
}

func (c *commands) labDown(x *cli.Context) error {
	name, err := labName(x)
	if err != nil {
		return err
	}
	if st := lab.Inspect(x.Context, c.reach(x), name); st.Owned {
		return fmt.Errorf("lab %s is in use by a running qmigrate: stop that first", name)
	}
	removed, err := lab.Down(x.Context, c.reach(x), name)
	if len(removed) > 0 {
		fmt.Fprintf(c.stdout, "removed %s\n", strings.Join(removed, ", "))
	} else if err == nil {
		return fmt.Errorf("no lab %s: `qmigrate lab status` lists them", name)
	}
	return err
}
