package main

import (
	"time"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/lab"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
)

// coloFlags are those of demo's mode colo.
func coloFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "colo-run", Category: aboutMigration, Value: "5s",
			Usage: "`TIME` colo: how long the two sides run in step before --kill, or before the secondary is let go"},
		&cli.StringFlag{Name: "checkpoint-delay", Category: aboutMigration, Value: "200ms",
			Usage: "`TIME` colo: between two checkpoints that no packet asks for"},
		&cli.StringFlag{Name: "kill", Category: aboutMigration,
			Usage: "`SIDE` colo: kill -9 the primary or the secondary at the end of --colo-run; the other one goes on"},
		&cli.BoolFlag{Name: "reprotect", Category: aboutMigration,
			Usage: "colo: give the guest a new secondary after --kill"},
	}
}

// coloRun is what demo does in mode colo.
type coloRun struct {
	delay time.Duration
	trial lab.COLOTrial
}

// coloRun reads the coloFlags and fits the lab to them; nil in every other mode, in which they are refused.
func (c *commands) coloRun(x *cli.Context, p plan.Plan, s *lab.Spec) (*coloRun, error) {
	if p.Mode != record.COLOMode {
		for _, f := range coloFlags() {
			if name := f.Names()[0]; x.IsSet(name) {
				return nil, usagef("--%s is for --mode colo, this one is %s", name, p.Mode)
			}
		}
		return nil, nil
	}
	for _, name := range []string{"policy", "tls", "tunnel", "transport", "channels"} {
		if x.IsSet(name) {
			return nil, usagef("--%s is not for --mode colo: its checkpoints go over a plain TCP stream", name)
		}
	}
	if s.Storage.Disks > 0 {
		return nil, usagef("--storage %s is not for --mode colo: it keeps memory and network in step, no disks, and both "+
			"sides would write to them", s.Storage.Kind)
	}
	r := &coloRun{trial: lab.COLOTrial{Reprotect: x.Bool("reprotect")}}
	var err error
	if r.trial.Run, err = units.Duration(x.String("colo-run")); err != nil {
		return nil, usagef("--colo-run: %w", err)
	}
	if r.trial.Run < 100*time.Millisecond {
		return nil, usagef("--colo-run %s: at least 100ms", x.String("colo-run"))
	}
	if r.delay, err = units.Duration(x.String("checkpoint-delay")); err != nil {
		return nil, usagef("--checkpoint-delay: %w", err)
	}
	if r.delay < time.Millisecond || r.delay%time.Millisecond != 0 || r.delay > time.Hour {
		return nil, usagef("--checkpoint-delay %s: QEMU takes whole milliseconds, and here up to 1h",
			x.String("checkpoint-delay"))
	}
	switch side := x.String("kill"); side {
	case "":
		if r.trial.Reprotect {
			return nil, usagef("--reprotect is for what is left after --kill: give that too, or leave it out")
		}
	case "primary":
		r.trial.Kill = record.Source
	case "secondary":
		r.trial.Kill = record.Destination
	default:
		return nil, usagef("--kill %q: have primary, secondary", side)
	}
	s.COLO = true
	if !x.IsSet("machine") {
		s.Guest.Machine = lab.COLOMachine
	}
	return r, nil
}
