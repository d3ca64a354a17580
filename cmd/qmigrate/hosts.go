package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/record/units"
	"qmigrate/engine/report/text"
	"qmigrate/guest"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/hosts"
)

func (c *commands) hostsCommand() *cli.Command {
	return &cli.Command{
		Name: "hosts", Usage: "the hosts of a hosts file: docs/hosts.md",
		Subcommands: []*cli.Command{{
			Name: "check", ArgsUsage: "FILE.toml",
			Usage: "try all that a migration between the hosts needs, and say what is missing, with the command that mends it",
			Flags: append([]cli.Flag{&cli.BoolFlag{Name: "json", Category: aboutOutput,
				Usage: "print what was found, one line, on standard output"}}, hostFlags()...),
			Action: c.checkHosts,
		}},
		Action: func(x *cli.Context) error {
			if x.Args().Present() {
				return usagef("hosts %q: have check", x.Args().First())
			}
			return cli.ShowSubcommandHelp(x)
		},
	}
}

func (c *commands) checkHosts(x *cli.Context) error {
	if x.Args().Len() != 1 {
		return usagef("hosts check takes one file, found %d", x.Args().Len())
	}
	f, err := hosts.Read(x.Args().First())
	if err != nil {
		return usageError{err}
	}
	r := f.Check(x.Context, c.reach(x), func(ctx context.Context, at host.Host, path string) (string, string, error) {
		b, err := guest.FindQEMUOn(ctx, at, "", path)
		return b.Path, b.Version, err
	})
	if err := x.Context.Err(); err != nil {
		return err
	}
	if x.Bool("json") {
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.stdout, "%s\n", line)
		return r.Err()
	}
	c.printHosts(r)
	return r.Err()
}

// printHosts prints what was found of each host, of each pair, and what to do.
func (c *commands) printHosts(r *hosts.Report) {
	width := min(page(c.stdout), 80)
	yes := func(ok bool) string {
		if ok {
			return "yes"
		}
		return "no"
	}
	all := text.Table{Align: "lrllllrr"}
	all.Row("host", "reached", "QEMU", "KVM", "TAP", "bridge", "clock", "memory")
	for _, h := range r.Hosts {
		if !h.Reached {
			all.Row(h.Name, "no", "", "", "", "", "", "")
			continue
		}
		all.Row(h.Name, units.FormatDuration(h.Took.Round(time.Millisecond)), first(h.QEMU, "-"), yes(h.KVM), yes(h.TAP),
			yes(h.Bridge), clockText(h.Offset, h.OffsetError), units.FormatSize(h.Memory))
	}
	all.Print(c.stdout, width)
	if len(r.Pairs) > 0 {
		fmt.Fprintln(c.stdout)
		pairs := text.Table{Align: "lrrlll"}
		pairs.Row("pair", "TCP", "round trip", "guest", "observer", "")
		for _, p := range r.Pairs {
			speed, trip, verdict := "-", "-", "ready"
			if p.RoundTrip > 0 {
				speed, trip = units.FormatRate(p.Throughput), units.FormatDuration(p.RoundTrip)
			}
			if !p.OK {
				verdict = "not ready"
			}
			pairs.Row(p.Source+" to "+p.Destination, speed, trip, p.Guest, first(p.Observer, "this machine"), verdict)
		}
		pairs.Print(c.stdout, width)
	}
	say := func(who string, all []hosts.Problem) {
		for _, p := range all {
			fmt.Fprintf(c.stdout, "\n%s\n", fold(who+": "+p.String(), 2, width))
		}
	}
	for _, h := range r.Hosts {
		say(h.Name, h.Problems)
	}
	for _, p := range r.Pairs {
		say(p.Source+" to "+p.Destination, p.Problems)
	}
}

// clockText is how far a host's clock is off, within what error.
func clockText(offset, err time.Duration) string {
	if err == 0 {
		return "this one"
	}
	sign := "+"
	if offset < 0 {
		sign = "-"
	}
	return sign + units.FormatDuration(offset.Abs()) + " +-" + units.FormatDuration(err)
}

// hostFindings is what a doctor finds on another host.
func (c *commands) hostFindings(ctx context.Context, pool *host.Pool, name string) ([]finding, error) {
	at, err := pool.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	looked, err := hostnet.LookTask().Ask(ctx, at, hostnet.Look{})
	if err != nil {
		return nil, fmt.Errorf("look at host %s: %w", name, err)
	}
	found, err := hostnet.CheckTask().Ask(ctx, at, struct{}{})
	if err != nil {
		return nil, fmt.Errorf("check host %s: %w", name, err)
	}
	all := []finding{{name: "reached", ok: true, text: fmt.Sprintf("as %s; Linux %s, %s free", looked.User, looked.Kernel,
		units.FormatSize(looked.Memory))}}
	clock, err := at.Clock(ctx)
	f := finding{name: "clock", ok: err == nil, text: clockText(clock.Offset, clock.Error)}
	if err != nil {
		f.text = err.Error()
	}
	all = append(all, f)
	for _, one := range found {
		// Whoever has TAPs, a bridge and QEMU there needs no more of the kernel.
		optional := one.Optional || !looked.Root && one.Name != hostnet.CapTUN
		all = append(all, finding{one.Name, one.Reason, one.Mend, one.OK, optional})
	}
	q, err := guest.FindQEMUOn(ctx, at, "", "")
	where := q.Path
	if strings.Contains(where, "/files/") {
		where = "this machine's, sent there"
	}
	f = finding{name: "QEMU", ok: err == nil, text: q.Version + ", " + where,
		mend: "apt-get install qemu-system-x86 there, or `qmigrate doctor --mend` here: then it is sent"}
	if err != nil {
		f.text = err.Error()
	}
	kvm := looked.KVM
	return append(all, f, finding{kvm.Name, first(kvm.Reason, "/dev/kvm opens; whether a guest really boots under it is tried "+
		"at the first lab there"), kvm.Mend, kvm.OK, true}), nil
}

// hostFlags are those of every command that reaches other hosts.
func hostFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "ssh", Category: aboutHosts, Value: "ssh", Usage: "`PATH` OpenSSH's client, for ssh:// hosts"},
		&cli.StringSliceFlag{Name: "ssh-option", Category: aboutHosts,
			Usage: "`OPTION` for ssh -o, such as ProxyJump=HOST; may be given again"},
	}
}

// reach is the hosts as the command's flags say how to reach them.
func (c *commands) reach(x *cli.Context) *host.Pool {
	c.hosts.SSH = host.SSH{Program: x.String("ssh"), Options: x.StringSlice("ssh-option")}
	return c.hosts
}
