package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/connect/beside"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/setting"
)

func (c *commands) migrate() *cli.Command {
	return &cli.Command{
		Name:  "migrate",
		Usage: "migrate a running QEMU guest",
		Description: "An endpoint is unix:PATH of a QMP socket, unix:FOLDER with control.qmp (and events.qmp and " +
			"sampler.qmp), the same of another host as lxc://NAME/PATH or ssh://[USER@]HOST[:PORT]/PATH, libvirt:URI?domain=NAME, tcp:HOST:PORT, or tcp+tls:HOST:PORT?dir=FOLDER where the monitor is encrypted and FOLDER has our " +
			"certificate. " +
			"The destination waits with -incoming defer; it need not be paused. The source QEMU is left in postmigrate: end " +
			"it when you like.\n\n" +
			"  qmigrate migrate --source unix:/run/a --destination unix:/run/b\n" +
			"  qmigrate migrate --source unix:/run/a.qmp --destination unix:/run/b --launch",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "source", Category: aboutMigration, Usage: "`E` endpoint of the QEMU that runs the guest"},
			&cli.StringFlag{Name: "destination", Category: aboutMigration, Usage: "`E` endpoint of the QEMU that waits for it"},
		}, flags(setting.Migrate, aboutMigration, plan.Settings()), []cli.Flag{
			&cli.StringFlag{Name: "tunnel-to", Category: aboutMigration,
				Usage: "`ssh://USER@HOST[:PORT]` the sshd of the destination's host, for --tunnel ssh; --listen is as that host has it"},
			&cli.StringFlag{Name: "tunnel-identity", Category: aboutMigration,
				Usage: "`FILE` private key for it, not encrypted; ~/.ssh/id_ed25519 if not given"},
			&cli.StringFlag{Name: "tunnel-known-hosts", Category: aboutMigration,
				Usage: "`FILE` which key that host has; ~/.ssh/known_hosts if not given"},
			&cli.StringFlag{Name: "tunnel-hosts", Category: aboutMigration, DefaultText: "the endpoints' hosts",
				Usage: "`SOURCE,DESTINATION` where the tunnel's halves are: local or netns:NAME"},
			&cli.StringFlag{Name: "tunnel-address", Category: aboutMigration,
				DefaultText: "127.0.0.1 on one machine, else what the far half's host has",
				Usage:       "`ADDRESS` of the destination's host, on which the tunnel's far half listens"},
			&cli.BoolFlag{Name: "recover", Category: aboutMigration,
				Usage: "end what an interrupted migration left between these two, and run the guest where that is safe"},
			&cli.BoolFlag{Name: "launch", Category: aboutLaunch,
				Usage: "start the destination from the source's own command line, its sockets in the new folder that " +
					"--destination unix:FOLDER, ssh://HOST/FOLDER or lxc://NAME/FOLDER names"},
			&cli.StringFlag{Name: "destination-host", Category: aboutLaunch, Value: "local",
				Usage: "`HOST` where to start it on this machine, local or netns:NAME"},
			&cli.StringFlag{Name: "destination-qemu", Category: aboutLaunch, Usage: "`QEMU` another one, a path or a version"},
			&cli.StringSliceFlag{Name: "tap", Category: aboutLaunch,
				Usage: "`OLD=NEW` the destination's TAP for one of the source's; may be given again"},
			&cli.StringSliceFlag{Name: "port", Category: aboutLaunch,
				Usage: "`OLD=NEW` the destination's TCP or UDP port for one of the source's; may be given again"},
			&cli.StringSliceFlag{Name: "path", Category: aboutLaunch,
				Usage: "`OLD=NEW` the destination's file for one of the source's, such as the image of a disk that is mirrored; " +
					"may be given again"},
		}, append(hostFlags(), noHelperFlag()), outputFlags()),
		Action: c.runMigrate,
	}
}

func (c *commands) runMigrate(x *cli.Context) error {
	p, err := migrateWords(x)
	if err != nil {
		return err
	}
	at, err := tunnelPlace(x)
	if err != nil {
		return err
	}
	log, err := c.logger(x)
	if err != nil {
		return err
	}
	ways := newWays(c.reach(x), x.Bool("no-helper"))
	defer ways.close()
	src, err := ways.parse(x.Context, x.String("source"))
	at.Hosts = c.hosts
	if err != nil {
		return inFlags(err)
	}
	o := plan.Options{Logger: log, Schemas: schemas(), Traces: traces()}
	if x.Bool("recover") {
		return c.recover(x, ways, src, p, o)
	}
	return c.move(x, ways, src, p, o, at)
}

// migrateWords is the plan, and refuses what the words alone show to be wrong.
func migrateWords(x *cli.Context) (p plan.Plan, err error) {
	if x.Args().Present() {
		return p, usagef("migrate takes no arguments, found %q", x.Args().First())
	}
	for _, flag := range []string{"source", "destination"} {
		if x.String(flag) == "" {
			return p, usagef("--%s is missing: give its QMP socket, as in --%s unix:/run/%s.qmp", flag, flag, flag)
		}
	}
	if both := connect.Shared(x.String("source"), x.String("destination")); both != "" {
		return p, usagef("--source and --destination are the same QEMU, both name %s: give the monitors of two", both)
	}
	for _, flag := range []string{"destination-host", "destination-qemu", "tap", "path", "port"} {
		if x.IsSet(flag) && !x.Bool("launch") {
			return p, usagef("--%s is for --launch: give that too, or leave it out", flag)
		}
	}
	if x.Bool("no-helper") && x.Bool("launch") {
		return p, usagef("--launch and --no-helper: a destination is started by a helper: leave one of them out")
	}
	if p, err = planOf(x, setting.Migrate, plan.Settings()); err != nil {
		return p, err
	}
	// QEMU removes what is there before it listens, whatever it is
	here := !strings.HasPrefix(x.String("destination"), "lxc:") && !strings.HasPrefix(x.String("destination"), "ssh:")
	if name, ok := strings.CutPrefix(p.Listen, "unix:"); ok && here {
		if info, err := os.Lstat(name); err == nil && info.Mode().Type() != os.ModeSocket {
			return p, usagef("--listen %s: %s exists and is no socket, and QEMU would remove it: give another path", p.Listen,
				name)
		}
		if path, err := filepath.Abs(name); err == nil && !x.Bool("recover") && connect.Listens(x.Context, name, path) {
			return p, usagef("--listen %s: somebody listens there already, and QEMU would take it away: give another path",
				p.Listen)
		}
	}
	return p, nil
}

// recover ends what an interrupted migration left.
func (c *commands) recover(x *cli.Context, ways *ways, src *endpoint.Endpoint, p plan.Plan, o plan.Options) error {
	dst, err := ways.parse(x.Context, x.String("destination"))
	if err != nil {
		return inFlags(err)
	}
	guest, said, err := engine.Recover(x.Context, src, dst, p, o)
	if err != nil {
		return err
	}
	if guest == record.Destination {
		n, err := c.recoverForwards(x, src, dst)
		if err != nil {
			return fmt.Errorf("%s; %w", said, err)
		}
		if n > 0 {
			said += fmt.Sprintf("; port forwardings moved to the destination: %d", n)
		}
	}
	if left := connect.LeftInLibvirt(src); left != "" && guest == record.Destination {
		said += "; " + left
	}
	fmt.Fprintln(c.stderr, said)
	return nil
}

// recoverForwards moves the ports that a launched destination has still to get.
func (c *commands) recoverForwards(x *cli.Context, src, dst *endpoint.Endpoint) (n int, err error) {
	_, folder, err := connect.Folder(x.String("destination"))
	if err != nil || x.Bool("no-helper") { // it was not launched, or its files cannot be read
		return 0, nil
	}
	at, err := connect.HostOf(x.Context, dst)
	if err != nil {
		return 0, err
	}
	return beside.RecoverForwards(x.Context, src, dst, at, folder)
}

// move migrates. With --launch it starts the destination first.
func (c *commands) move(x *cli.Context, ways *ways, src *endpoint.Endpoint, p plan.Plan, o plan.Options,
	at connect.TunnelPlace) error {
	folder, err := openFolder(x)
	if err != nil {
		return err
	}
	defer folder.Close()
	var started *beside.Launched
	if x.Bool("launch") {
		if err := checkWords(x.Context, src, p, o); err != nil {
			return err
		}
		if started, err = c.launch(x, src, &p); err != nil {
			return err
		}
	}
	dst, err := ways.parse(x.Context, x.String("destination"))
	if err != nil {
		return errors.Join(inFlags(err), started.Close())
	}
	if err := c.carryOver(x, started, src, dst, p); err != nil {
		return errors.Join(err, started.Close())
	}
	if err := ways.listen(x.Context, &p, src, dst); err != nil {
		return errors.Join(inFlags(err), started.Close())
	}
	through, err := connect.TunnelBetween(x.Context, &p, src, dst, at)
	if err != nil {
		return errors.Join(inFlags(err), started.Close())
	}
	credentials, err := connect.Secure(x.Context, &p, src, dst)
	if err != nil {
		through.Close()
		return errors.Join(inFlags(err), started.Close())
	}
	rec, err := c.observe(x, o.Logger, p, func(p plan.Plan, o plan.Options) (*record.Migration, error) {
		return engine.Migrate(x.Context, src, dst, p, o)
	})
	through.Note(rec)
	ways.note(rec)
	if left := connect.LeftInLibvirt(src); left != "" && rec.GuestOn == record.Destination {
		rec.Warn("%s", left)
	}
	started.MoveForwards(x.Context, src, dst, rec)
	if started != nil {
		for _, d := range started.Doubts {
			rec.Warn("%s", d)
		}
	}
	if p.TLS != nil && rec.MayGoOn() {
		rec.Warn("the TLS credentials stay in %s and %s: a post-copy that goes on may need them", p.TLS.SourceDir,
			p.TLS.DestinationDir)
		if err := credentials.Keep(x.Context); err != nil {
			rec.Warn("the TLS credentials may be removed: %v", err)
		}
	} else if removeErr := credentials.Remove(); removeErr != nil {
		rec.Warn("the TLS credentials could not be removed: %v", removeErr)
	}
	rec.Hosts.Kernel, rec.Hosts.CPU = connect.MachineOf(x.Context, src)
	// A destination that we started is ended when it surely has not got the guest. Where that is not known, it stays.
	if started != nil && (rec.GuestOn == record.Source || rec.Error != nil &&
		(rec.Error.Stage == record.Initialization || rec.Error.Stage == record.Reservation)) {
		if closeErr := started.Close(); closeErr != nil {
			rec.Warn("the destination that was launched could not be ended: %v", closeErr)
		}
	}
	if rec.GuestOn == record.Destination {
		if err := started.Leave(context.WithoutCancel(x.Context)); err != nil {
			rec.Warn("the next connection to its host names the destination as left behind: %v", err)
		}
	}
	return c.keep(x, folder, rec, err)
}

// checkWords refuses what the source's QEMU does not know of the plan's capabilities and parameters, before a
// destination is started.
func checkWords(ctx context.Context, src *endpoint.Endpoint, p plan.Plan, o plan.Options) error {
	if len(p.Capabilities)+len(p.Parameters) == 0 {
		return nil
	}
	found, err := facts.Inspect(ctx, src, o)
	if err != nil {
		return err
	}
	return fit.CheckWords(p, found)
}
