package main

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/fit"
	"qmigrate/engine/lab"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/setting"
)

// flags are the settings of a table that can be given at a place, as flags.
func flags[T any](place setting.Place, category string, table []setting.Setting[T]) (all []cli.Flag) {
	for _, s := range setting.At(place, table) {
		switch usage := "`" + s.Shape + "` " + s.Help; {
		case s.Shape == "":
			all = append(all, &cli.BoolFlag{Name: s.Name, Category: category, Usage: s.Help})
		case s.List:
			all = append(all, &cli.StringSliceFlag{Name: s.Name, Category: category, Usage: usage + "; may be given again"})
		default:
			all = append(all, &cli.StringFlag{Name: s.Name, Category: category, Value: cmp.Or(s.Own[place], s.Default),
				DefaultText: s.Otherwise(place), Usage: usage})
		}
	}
	return all
}

// set reads the flags of a table's settings into what they set: what was given, and else what holds at the place.
func set[T any](x *cli.Context, place setting.Place, table []setting.Setting[T], into *T) error {
	for _, s := range setting.At(place, table) {
		var text string
		switch {
		case s.List:
			text = strings.Join(x.StringSlice(s.Name), ",")
		case s.Shape != "":
			text = x.String(s.Name)
		case x.IsSet(s.Name):
			text = strconv.FormatBool(x.Bool(s.Name))
		}
		if text == "" && !x.IsSet(s.Name) {
			continue
		}
		if err := s.Set(into, text); err != nil {
			return usageError{err}
		}
	}
	return nil
}

// saidAsFlags is an error in which the setting that it is about is written as a flag, if the command has one.
type saidAsFlags struct {
	error
	flags []cli.Flag
}

func (s saidAsFlags) Unwrap() error { return s.error }

func (s saidAsFlags) Error() string {
	text := s.error.Error()
	var e *setting.Error
	if errors.As(s.error, &e) && slices.ContainsFunc(s.flags, func(f cli.Flag) bool { return f.Names()[0] == e.Setting }) {
		text = strings.Replace(text, e.Error(), "--"+e.Error(), 1)
	}
	return text
}

// outputFlags are those of every command that makes a record.
func outputFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "out", Category: aboutOutput, Value: "out", Usage: "`DIR` append the record to " +
			"DIR/records.jsonl"},
		&cli.BoolFlag{Name: "json", Category: aboutOutput, Usage: "print the record, one line, on standard output"},
		detailsFlag(),
		quietFlag(),
		logLevelFlag(),
	}
}

func detailsFlag() cli.Flag {
	return &cli.BoolFlag{Name: "details", Category: aboutOutput,
		Usage: "print everything that was measured, not one screen of it"}
}

func quietFlag() cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Category: aboutOutput, Usage: "print nothing but errors, and what --json prints"}
}

func logLevelFlag() cli.Flag {
	return &cli.StringFlag{Name: "log-level", Category: aboutOutput, Value: "off", Usage: "`LEVEL` log to standard " +
		"error: debug (each QMP line), info (each stage), warn, error, off"}
}

// demoSettings are those of a plan for demo, which has one mode more.
func demoSettings() []setting.Setting[plan.Plan] {
	all := plan.Settings()
	mode := &all[slices.IndexFunc(all, func(s setting.Setting[plan.Plan]) bool { return s.Name == "mode" })]
	modes := mode.Apply
	mode.Help += "; colo (a secondary is kept in step and takes over)"
	mode.Apply = func(p *plan.Plan, text string) error {
		if p.Mode = record.Mode(text); p.Mode == record.COLOMode {
			return nil
		}
		return modes(p, text)
	}
	return all
}

// planOf reads the flags of a migration.
func planOf(x *cli.Context, place setting.Place, table []setting.Setting[plan.Plan]) (p plan.Plan, err error) {
	if place == setting.Migrate && record.Mode(x.String("mode")) == record.COLOMode {
		return p, usagef("--mode colo: a pair in step lives as long as the program that watches it: it is for `qmigrate " +
			"demo`, and for Go programs by colo.Protect")
	}
	if err := set(x, place, table, &p); err != nil {
		return p, err
	}
	if err := checkTunnel(x, p); err != nil {
		return p, err
	}
	if p.Mode == record.COLOMode || x.Bool("recover") {
		return p, nil
	}
	if err := fit.Check(p, nil, nil); err != nil {
		return p, usageError{err}
	}
	return p, nil
}

// labSpec reads the flags of a lab.
func (c *commands) labSpec(x *cli.Context, place setting.Place) (s lab.Spec, err error) {
	if err := set(x, place, lab.Settings(), &s); err != nil {
		return s, err
	}
	if err := s.CheckHardware(); err != nil {
		return s, usageError{err}
	}
	s.Pool = c.reach(x)
	if s.Logger, err = c.logger(x); err != nil {
		return s, err
	}
	if !x.Bool("quiet") {
		s.Log = folding{c.stderr}
	}
	return s, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
