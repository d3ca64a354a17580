package main

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/setting"
	"qmigrate/engine/snapshot"
)

// fileFlags are those of save and restore.
func fileFlags(place setting.Place, format string) []cli.Flag {
	return slices.Concat([]cli.Flag{
		&cli.StringFlag{Name: "file", Category: aboutMigration, Usage: "`PATH` of the saved guest, on this machine"},
		&cli.StringFlag{Name: "format", Category: aboutMigration, Value: format,
			Usage: "`NAME` stream (every QEMU), or mapped-ram (9.0 and newer: each page has its place, so that several " +
				"threads can write and read)"},
		&cli.BoolFlag{Name: "direct-io", Category: aboutMigration,
			Usage: "mapped-ram: pass by the host's cache (QEMU 9.1 and newer)"},
		&cli.IntFlag{Name: "multifd-channels", Category: aboutMigration,
			Usage: "`N` mapped-ram: that many channels at once; 0 is one thread"},
	}, flags(place, aboutMigration, plan.Settings()), hostFlags(), outputFlags())
}

func (c *commands) save() *cli.Command {
	return &cli.Command{
		Name:  "save",
		Usage: "save a running guest into a file",
		Description: "The guest is stopped, written, and left paused (postmigrate) unless --continue is given. With " +
			"--background it runs on while it is written, and what is " +
			"saved is one instant near the beginning. The file appears under its name when all of it is on the disk; until " +
			"then, and after a failure, there is none, " +
			"and the guest runs on. It holds memory and devices, not disks.\n\n" +
			"  qmigrate save --source unix:/run/a --file /var/tmp/trial.guest\n" +
			"  qmigrate save --source unix:/run/a --file /var/tmp/trial.guest --background",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "source", Category: aboutMigration,
				Usage: "`E` endpoint of the QEMU that runs the guest, on this machine"},
			&cli.BoolFlag{Name: "background", Category: aboutMigration,
				Usage: "do not stop the guest for longer than its devices take (userfaultfd; QEMU 8.1 and newer)"},
			&cli.BoolFlag{Name: "continue", Category: aboutMigration, Usage: "run the guest again when it is saved"},
		}, fileFlags(setting.Save, snapshot.StreamFormat)...),
		Action: func(x *cli.Context) error { return c.runFile(x, "source", setting.Save, snapshot.Save) },
	}
}

func (c *commands) restore() *cli.Command {
	return &cli.Command{
		Name:  "restore",
		Usage: "run a saved guest",
		Description: "The destination waits with -incoming defer, with the machine type and memory of the guest in the " +
			"file. The file stays as it is. A restored guest is a second one if the " +
			"saved one still runs: end that first, above all where they share a disk.\n\n" +
			"  qmigrate restore --destination unix:/run/b --file /var/tmp/trial.guest",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "destination", Category: aboutMigration,
				Usage: "`E` endpoint of the QEMU that waits for it, on this machine"},
			&cli.BoolFlag{Name: "paused", Category: aboutMigration, Usage: "leave it paused"},
		}, fileFlags(setting.Restore, "")...),
		Action: func(x *cli.Context) error { return c.runFile(x, "destination", setting.Restore, snapshot.Restore) },
	}
}

// filer is snapshot.Save or snapshot.Restore.
type filer func(ctx context.Context, e *endpoint.Endpoint, p plan.Plan, f snapshot.File,
	o plan.Options) (*record.Migration, error)

// runFile is save or restore: side names the flag of the one endpoint.
func (c *commands) runFile(x *cli.Context, side string, place setting.Place, run filer) error {
	if x.Args().Present() {
		return usagef("%s takes no arguments, found %q", x.Command.Name, x.Args().First())
	}
	if x.String(side) == "" {
		return usagef("--%s is missing: give its QMP socket, as in --%s unix:/run/a.qmp", side, side)
	}
	if x.String("file") == "" {
		return usagef("--file is missing: give the saved guest's path, as in --file /var/tmp/a.guest")
	}
	f := snapshot.File{
		Format: x.String("format"), DirectIO: x.Bool("direct-io"), Channels: x.Int("multifd-channels"),
		Background: x.Bool("background"), Continue: x.Bool("continue"), Paused: x.Bool("paused"),
	}
	switch {
	case f.Format != "" && f.Format != snapshot.StreamFormat && f.Format != snapshot.MappedRAMFormat:
		return usagef("--format %s: have %s, %s", f.Format, snapshot.StreamFormat, snapshot.MappedRAMFormat)
	case f.Channels < 0 || f.Channels > 255:
		return usagef("--multifd-channels %d: QEMU takes 1 to 255, and 0 is one thread without them", f.Channels)
	case f.Background && f.Continue:
		return usagef("--continue is for a guest that is stopped: with --background it never is, leave one of them out")
	}
	var err error
	if f.Path, err = filepath.Abs(x.String("file")); err != nil {
		return err
	}
	p := plan.Plan{MaxBandwidth: -1}
	if err := set(x, place, plan.Settings(), &p); err != nil {
		return err
	}
	log, err := c.logger(x)
	if err != nil {
		return err
	}
	e, err := connect.Parse(x.String(side), c.reach(x))
	if err != nil {
		return usageError{err}
	}
	folder, err := openFolder(x)
	if err != nil {
		return err
	}
	defer folder.Close()
	rec, err := c.observe(x, log, p, func(p plan.Plan, o plan.Options) (*record.Migration,
		error) {
		return run(x.Context, e, p, f, o)
	})
	rec.Hosts.Kernel, rec.Hosts.CPU = connect.MachineOf(x.Context, e)
	return c.keep(x, folder, rec, err)
}
