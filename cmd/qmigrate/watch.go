package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/setting"
)

func (c *commands) watch() *cli.Command {
	return &cli.Command{
		Name:      "watch",
		Usage:     "record a migration that somebody else drives",
		ArgsUsage: "SOURCE [DESTINATION]",
		Description: "Each is an endpoint, as `qmigrate migrate` takes it, of a monitor that nobody else uses. One monitor of " +
			"each QEMU is enough. Nothing is set on either. " +
			"Begin before the migration or in the middle of it. The command ends when the migration has ended. " +
			"Ctrl-C ends it earlier, with what was seen until then. " +
			"Without the destination it is not known when the guest ran there, so there is no wire downtime.\n\n" +
			"  qmigrate watch unix:/run/a-spare.qmp unix:/run/b-spare.qmp\n" +
			"  qmigrate watch ssh://host1/run/a-spare.qmp --timeout 1m --json",
		Flags: slices.Concat(flags(setting.Watch, aboutMigration, plan.Settings()), hostFlags(), []cli.Flag{noHelperFlag()},
			outputFlags()),
		Action: c.runWatch,
	}
}

func (c *commands) runWatch(x *cli.Context) error {
	words := x.Args().Slice()
	switch n := len(words); {
	case n < 1 || n > 2:
		return usagef("watch takes one or two endpoints, found %d: as in `qmigrate watch unix:/run/a-spare.qmp "+
			"unix:/run/b-spare.qmp`", n)
	case n == 2 && connect.Shared(words[0], words[1]) != "":
		return usagef("source and destination are the same QEMU, both name %s: give the monitors of two",
			connect.Shared(words[0], words[1]))
	}
	p, err := planOf(x, setting.Watch, plan.Settings())
	if err != nil {
		return err
	}
	log, err := c.logger(x)
	if err != nil {
		return err
	}
	ways := newWays(c.reach(x), x.Bool("no-helper"))
	defer ways.close()
	var ends [2]*endpoint.Endpoint // the second is nil without a destination
	for i, text := range words {
		if ends[i], err = ways.parse(x.Context, text); err != nil {
			return inFlags(err)
		}
	}
	folder, err := openFolder(x)
	if err != nil {
		return err
	}
	defer folder.Close()
	rec, err := c.observe(x, log, p, func(p plan.Plan, o plan.Options) (*record.Migration, error) {
		if !x.Bool("quiet") {
			o.Watching = func() {
				fmt.Fprintf(c.stderr, "watching %s: waiting for a migration to begin\n", strings.Join(words, ", "))
			}
		}
		return engine.Watch(x.Context, ends[0], ends[1], p, o)
	})
	ways.note(rec)
	rec.Hosts.Kernel, rec.Hosts.CPU = connect.MachineOf(x.Context, ends[0])
	return c.keep(x, folder, rec, err)
}
