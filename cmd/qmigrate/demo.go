package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"qmigrate/engine/colo"
	"qmigrate/engine/lab"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/setting"
	"qmigrate/guest"
	"qmigrate/guest/image"
	"qmigrate/hostnet"
	"qmigrate/qmp"
)

func (c *commands) demo() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "two hosts, a guest with a workload, one live migration, and what happened",
		Flags: slices.Concat(flags(setting.Demo, aboutMigration, demoSettings()), coloFlags(),
			flags(setting.Demo, aboutGuest, lab.Settings()), hostFlags(),
			outputFlags(), []cli.Flag{
				&cli.BoolFlag{Name: "keep", Category: aboutOutput,
					Usage: "leave the hosts and both QEMUs standing, for `qmigrate lab status|exec|down`"},
			}),
		Action: c.runDemo,
	}
}

func (c *commands) runDemo(x *cli.Context) error {
	if x.Args().Present() {
		return usagef("demo takes no arguments, found %q", x.Args().First())
	}
	p, err := planOf(x, setting.Demo, demoSettings())
	if err != nil {
		return err
	}
	s, err := c.labSpec(x, setting.Demo)
	if err != nil {
		return err
	}
	if err := s.CheckTransport(p); err != nil {
		return usageError{err}
	}
	paired, err := c.coloRun(x, p, &s)
	if err != nil {
		return err
	}
	if !hostnet.Inside() { // else it has been done
		if err := s.Check(x.Context, p, schemas()); err != nil {
			return err
		}
	}
	folder, err := openFolder(x)
	if err != nil {
		return err
	}
	defer folder.Close()
	if os.Geteuid() != 0 && s.OnNamespaces() { // in there no package can be fetched
		if _, err := image.Build(x.Context, s.ForHardware()); err != nil {
			return err
		}
	}
	if s.OnNamespaces() {
		if status, done, err := hostnet.Reexec(); err != nil {
			return err
		} else if done {
			return passOn(status)
		}
	}
	if hostnet.Inside() && s.Log != nil && os.Geteuid() == 0 {
		fmt.Fprintln(c.stderr, "not root: the lab runs in user and network namespaces of its own")
	}
	if paired != nil && !x.IsSet("machine") && s.Log != nil {
		fmt.Fprintf(s.Log, "machine %s: a secondary cannot follow a q35, demo's usual one\n", lab.COLOMachine)
	}
	said, err := lab.Sweep(x.Context, c.reach(x))
	for _, line := range said {
		fmt.Fprintln(c.stderr, fold(line, 2, page(c.stderr)))
	}
	if err != nil {
		return fmt.Errorf("clean up after a killed run: %w", err)
	}
	s.Owner = fmt.Sprintf("demo-%d", os.Getpid())
	l, err := lab.Up(x.Context, s)
	if err != nil {
		return err
	}
	rec, err := c.observe(x, s.Logger, p, func(p plan.Plan, o plan.Options) (*record.Migration, error) {
		if paired != nil {
			return l.COLO(x.Context, colo.Plan{Plan: p, CheckpointDelay: paired.delay}, paired.trial, o)
		}
		return l.Migrate(x.Context, p, o)
	})
	if rec != nil {
		err = c.keep(x, folder, rec, err)
	}
	if x.Bool("keep") && rec != nil {
		err = errors.Join(err, l.Leave())
		fmt.Fprintf(c.stderr, "kept: `qmigrate lab status` shows it, `qmigrate lab down %s` removes it\n", s.Owner)
		return err
	}
	if down := l.Close(); down != nil {
		err = errors.Join(err, fmt.Errorf("remove the lab: %w", down))
	}
	if err == nil && rec != nil && rec.MemoryCheck != nil && rec.MemoryCheck.PagesWrong > 0 {
		err = fmt.Errorf("the guest's memory is wrong on the destination: %d of %d pages", rec.MemoryCheck.PagesWrong,
			rec.MemoryCheck.PagesChecked)
	}
	if err == nil {
		err = wrongDisks(rec)
	}
	if err == nil {
		err = wrongTools(rec)
	}
	return err
}

// openFolder is --out, proved writable.
func openFolder(x *cli.Context) (*record.Folder, error) {
	folder, err := record.OpenFolder(x.String("out"))
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return nil, fmt.Errorf("%w: free some space, or give another folder with --out DIR", err)
	case err != nil:
		return nil, fmt.Errorf("%w: give another folder with --out DIR", err)
	}
	return folder, nil
}

// childStatus is that of a child which has said itself what was wrong.
type childStatus int

func (s childStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// passOn hands a child's exit status on; 0 is no error.
func passOn(status int) error {
	if status == 0 {
		return nil
	}
	return childStatus(status)
}

// observe runs one migration with the live line on a terminal.
func (c *commands) observe(x *cli.Context, log *slog.Logger, p plan.Plan,
	migrate func(plan.Plan, plan.Options) (*record.Migration, error)) (*record.Migration, error) {
	o := plan.Options{Logger: log, Schemas: schemas(), Traces: traces()}
	if !x.Bool("quiet") {
		if line := newLiveLine(c.stderr); line != nil {
			o.Sampled, o.Mirrored = line.sample, line.mirrored
			defer line.clear()
		}
	}
	return migrate(p, o)
}

// schemas is the cache of what known QEMU binaries say of themselves; without a cache folder each is asked each time.
func schemas() qmp.SchemaCache {
	dir, err := guest.CacheDir()
	if err != nil {
		return qmp.SchemaCache{}
	}
	return qmp.SchemaCache{Dir: dir + "/schema"}
}

// traces is the folder of the notes that say what of a QEMU's trace events was switched on and is to be switched off.
func traces() string {
	dir, err := guest.CacheDir()
	if err != nil {
		return ""
	}
	return dir + "/traces"
}
