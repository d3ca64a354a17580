package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/experiment"
	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/hostnet"
	"qmigrate/testdata/experiments"
)

func (c *commands) run() *cli.Command {
	return &cli.Command{
		Name: "run", Usage: "an experiment: every combination of the values in a file, each several times; one that was " +
			"stopped goes on", ArgsUsage: "FILE.toml|NAME",
		Description: "NAME is one of the bundled studies: " + strings.Join(bundled(), ", ") +
			". docs/experiments.md has the file's whole " +
			"vocabulary.\n\nFactors, each a flag of demo or a part of one: " + strings.Join(experiment.Factors(), ", ") + ".",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "scale", Usage: "`NAME` run the file at one of the scales that it defines, such as small; " +
				"its real size if not given"},
			&cli.IntFlag{Name: "repeats", Usage: "`N` trials of each cell, whatever the file says"},
			&cli.IntFlag{Name: "seed", Usage: "`N` that the order of the trials is drawn from; the file's, or one at random, " +
				"if not given. The folder keeps it"},
			&cli.StringFlag{Name: "hosts", Usage: "`KIND` what the hosts of each cell are, whatever the file says: netns, lxc or " +
				"a hosts file, as of demo"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be run, and how long it would take; start and write nothing"},
			&cli.StringSliceFlag{Name: "learn", Usage: "`DIR` with records of the same cells, from which the estimate of time " +
				"learns too; may be given again"},
			&cli.StringFlag{Name: "out", Category: aboutOutput, Value: "out",
				Usage: "`DIR` append the records to DIR/records.jsonl; what is in it already is not run again"},
			&cli.BoolFlag{Name: "json", Category: aboutOutput, Usage: "print each record, one line, on standard output"},
			quietFlag(), logLevelFlag(),
		}, hostFlags()...),
		Action: c.runExperiment,
	}
}

// bundled are the names of the bundled studies.
func bundled() (names []string) {
	files, _ := fs.Glob(experiments.Files, "*.toml")
	for _, f := range files {
		names = append(names, strings.TrimSuffix(f, ".toml"))
	}
	return names
}

// readExperiment is the file's text, or that of a bundled study.
func readExperiment(name string) (file string, text []byte, err error) {
	text, err = os.ReadFile(name)
	if err == nil {
		return name, text, nil
	}
	missing := errors.Is(err, fs.ErrNotExist)
	// a folder of a study's name may be what --out made
	if filepath.Base(name) == name && (missing || errors.Is(err, syscall.EISDIR)) {
		inside := strings.TrimSuffix(name, ".toml") + ".toml"
		if text, err := experiments.Files.ReadFile(inside); err == nil {
			return inside, text, nil
		}
		if missing {
			return "", nil, usagef("no file %s, and no bundled study of that name: there are %s", name,
				strings.Join(bundled(), ", "))
		}
	}
	return "", nil, usageError{err}
}

func (c *commands) runExperiment(x *cli.Context) error {
	if x.Args().Len() != 1 {
		return usagef("run takes one file, or the name of a bundled study (%s), found %d", strings.Join(bundled(), ", "),
			x.Args().Len())
	}
	file, text, err := readExperiment(x.Args().First())
	if err != nil {
		return err
	}
	e, err := experiment.Parse(file, text, x.String("scale"))
	if err != nil {
		return usageError{some(err)}
	}
	if x.IsSet("repeats") {
		if x.Int("repeats") < 1 {
			return usagef("--repeats %d: at least 1", x.Int("repeats"))
		}
		e.SetRepeats(x.Int("repeats"))
	}
	if x.IsSet("hosts") {
		if err := e.SetHosts(x.String("hosts")); err != nil {
			return usageError{err}
		}
	}
	if x.IsSet("seed") {
		seed := int64(x.Int("seed"))
		e.Seed = &seed
	}
	logger, err := c.logger(x)
	if err != nil {
		return err
	}
	var learn []*record.Migration
	for _, dir := range x.StringSlice("learn") {
		records, err := record.Read(dir)
		if err != nil {
			return fmt.Errorf("--learn %s: %w", dir, err)
		}
		if len(records) == 0 {
			return usagef("--learn %s: there are no records in it: give what --out named", dir)
		}
		learn = append(learn, records...)
	}
	if err := e.Check(x.Context, schemas()); err != nil {
		var at *experiment.Error
		if errors.As(err, &at) {
			return usageError{some(err)}
		}
		return err
	}
	p, err := e.Plan(x.String("out"), learn)
	if err != nil {
		return err
	}
	if x.Bool("dry-run") {
		c.printPlan(e, p)
		c.printCells(e, p)
		return nil
	}
	folder, err := openFolder(x)
	if err != nil {
		return err
	}
	defer folder.Close()
	if slices.ContainsFunc(p.Left, func(t experiment.Trial) bool { return t.Lab.OnNamespaces() }) {
		if status, done, err := hostnet.Reexec(); err != nil {
			return err
		} else if done {
			return passOn(status)
		}
	}
	return c.runTrials(x, e, folder, experiment.Options{Owner: fmt.Sprintf("run-%d", os.Getpid()), Command: runCommand(x),
		Hosts: c.reach(x), Learn: learn, Schemas: schemas(), Logger: logger})
}

func (c *commands) runTrials(x *cli.Context, e *experiment.Experiment, folder *record.Folder,
	o experiment.Options) error {
	quiet := x.Bool("quiet")
	show := &progressView{w: c.stderr, terminal: newLiveLine(c.stderr)}
	if !quiet {
		o.Say = func(text string) { show.print(fold(text, 2, page(c.stderr))) }
	}
	o.Progress = func(p experiment.Progress) {
		if p.Record != nil && !p.WarmUp && x.Bool("json") {
			if line, err := json.Marshal(p.Record); err == nil {
				fmt.Fprintf(c.stdout, "%s\n", line)
			}
		}
		if !quiet {
			show.progress(p)
		}
	}
	defer show.close()
	ready := func(p *experiment.Plan) {
		if !quiet {
			c.printPlan(e, p)
		}
	}
	sum, err := e.Run(x.Context, folder, o, ready)
	show.close()
	if sum == nil {
		return err
	}
	if !quiet {
		c.printSummary(e, folder, sum)
	}
	switch {
	case err != nil && errors.Is(err, context.Canceled):
		return fmt.Errorf("%w: %d of %d trials are recorded; the same command goes on from there", err, sum.Before+sum.Done,
			sum.Total)
	case err != nil:
		return err
	case sum.Lost > 0:
		return fmt.Errorf("%s: see the records with guest_on none",
			plural(int64(sum.Lost), "guest was lost", "guests were lost"))
	case sum.Wrong > 0:
		return fmt.Errorf("the memory of %s was wrong after the migration: see memory_check in the records",
			plural(int64(sum.Wrong), "guest", "guests"))
	}
	return nil
}

// some is the first of many errors, a line each, and how many more there are.
func some(err error) error {
	const most = 10
	lines := strings.Split(err.Error(), "\n")
	if len(lines) <= most {
		return err
	}
	return fmt.Errorf("%s\n... and %d more", strings.Join(lines[:most], "\n"), len(lines)-most)
}

// runCommand is the command that makes the same folder again.
func runCommand(x *cli.Context) string {
	words := []string{"qmigrate", "run", x.Args().First()}
	for _, flag := range []string{"scale", "repeats", "seed", "hosts", "out"} {
		if x.IsSet(flag) {
			words = append(words, "--"+flag, fmt.Sprint(x.Value(flag)))
		}
	}
	return shellLine(words)
}

// printPlan says what is about to be done and what it costs.
func (c *commands) printPlan(e *experiment.Experiment, p *experiment.Plan) {
	say := func(format string, args ...any) {
		fmt.Fprintln(c.stderr, fold(fmt.Sprintf(format, args...), 2, page(c.stderr)))
	}
	scale := ""
	if e.Scale != "" {
		scale = ", scale " + e.Scale
	}
	say("%s%s: %s", e.Name, scale, cmp.Or(e.Title, "an experiment"))
	say("%s of %s, %d left; order drawn from seed %d; guests are booted once per %s",
		plural(int64(len(p.Trials)), "trial", "trials"), plural(int64(len(e.Cells)), "cell",
			"cells"), len(p.Left), p.Seed, e.Boot)
	if len(p.Left) > 0 {
		learnt := "by rule, for there are no records to learn from"
		if p.Estimate.Records > 0 {
			learnt = "learnt from " + plural(int64(p.Estimate.Records), "record", "records")
		}
		if p.Estimate.WarmUp > 0 {
			learnt += fmt.Sprintf("; %d more for warm-up", p.Estimate.WarmUp)
		}
		say("about %s, %s a trial (%s), %s over the link, %s of RAM for two QEMUs", rough(p.Estimate.Time),
			units.FormatDuration(p.Estimate.Time/time.Duration(len(p.Left)+p.Estimate.WarmUp)), learnt,
			units.FormatSize(p.Estimate.Bytes), units.FormatSize(p.Estimate.Memory))
	}
	if e.Shrink > 1 {
		say("this host is small: guests and their working sets are the study's divided by %d", e.Shrink)
	}
	for _, line := range e.Without {
		say("not in this file: %s", line)
	}
	for _, line := range e.LeftOut {
		say("left out here: %s", line)
	}
}

// printCells lists the cells with what is left of each.
func (c *commands) printCells(e *experiment.Experiment, p *experiment.Plan) {
	left := map[*experiment.Cell]int{}
	for _, t := range p.Left {
		left[t.Cell]++
	}
	fmt.Fprintln(c.stderr)
	t := table{Align: "rrl"}
	t.Row("trials", "left", "cell")
	for _, cell := range e.Cells {
		t.Row(fmt.Sprint(cell.Sweep.Repeats), fmt.Sprint(left[cell]), cell.Name)
	}
	t.Print(c.stderr, page(c.stderr))
}

func (c *commands) printSummary(e *experiment.Experiment, folder *record.Folder, s *experiment.Summary) {
	say := func(format string, args ...any) {
		fmt.Fprintln(c.stderr, fold(fmt.Sprintf(format, args...), 2, page(c.stderr)))
	}
	if s.Done > 0 {
		text := fmt.Sprintf("%s in %s, %s: %.0f trials an hour, guests booted once per %s",
			plural(int64(s.Done), "trial", "trials"), rough(s.Elapsed),
			map[bool]string{true: "each completed",
				false: fmt.Sprintf("%d not completed", s.Failed)}[s.Failed == 0], s.PerHour(), e.Boot)
		if n := s.PerHourBooted(); n > 0 {
			text += fmt.Sprintf("; with a boot for each, by what a boot took (%s), it would have been %.0f",
				units.FormatDuration(s.Booted), n)
		}
		say("%s", text)
	}
	say("%d of %d trials are in %s/records.jsonl", s.Before+s.Done, s.Total, folder.Path())
}

// rough is a duration as people say it.
func rough(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}

// progressView shows a run: on a terminal one line that changes, and those of trials that failed; elsewhere a line for
// each trial.
type progressView struct {
	w        io.Writer
	terminal *liveLine // nil: no terminal

	mu   sync.Mutex
	now  experiment.Progress
	stop chan struct{} // of the ticking line; nil: none
	done sync.WaitGroup
}

func (v *progressView) print(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.terminal != nil {
		v.terminal.clear()
	}
	fmt.Fprintln(v.w, text)
}

func (v *progressView) progress(p experiment.Progress) {
	if v.terminal == nil {
		if p.Record != nil {
			v.print(fold(trialLine(p), 2, page(v.w)))
		}
		return
	}
	if p.Record != nil && p.Record.Outcome != record.Completed {
		v.print(fold(trialLine(p), 2, page(v.w)))
	}
	v.mu.Lock()
	v.now = p
	v.mu.Unlock()
	v.draw()
	if v.stop == nil {
		v.stop = make(chan struct{})
		v.done.Go(func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					v.draw()
				case <-v.stop:
					return
				}
			}
		})
	}
}

// draw is the one line: which trial, since when, how many failed, how long it will be.
func (v *progressView) draw() {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.now
	elapsed := time.Since(p.Begun)
	what := fmt.Sprintf("%d of %d", min(p.Done+1, p.Total), p.Total)
	if p.WarmUp {
		what = "warm-up"
	}
	text := fmt.Sprintf("%s  %.0f s  about %s left", what, elapsed.Seconds(), rough(max(p.Left-elapsed, 0)))
	if p.Failed > 0 {
		text += fmt.Sprintf("  %d not completed", p.Failed)
	}
	text += "  " + p.Trial.ID()
	text = strings.ToValidUTF8(text[:min(len(text), max(v.terminal.columns()-1, 0))], "")
	fmt.Fprintf(v.w, "\r\x1b[K%s", text)
}

// close ends the line; it is harmless twice.
func (v *progressView) close() {
	if v.stop != nil {
		close(v.stop)
		v.done.Wait()
		v.stop = nil
		v.terminal.clear()
	}
}

// trialLine is a trial that has ended, for people.
func trialLine(p experiment.Progress) string {
	r := p.Record
	what := fmt.Sprintf("%d/%d", p.Done, p.Total)
	if p.WarmUp {
		what = "warm-up"
	}
	text := fmt.Sprintf("%s %s: %s", what, p.Trial.ID(), r.Outcome)
	if r.Outcome == record.Completed {
		text += ", " + units.FormatDuration(r.Total.Wall)
		if r.Downtime.Wire != nil {
			text += ", downtime " + units.FormatDuration(*r.Downtime.Wire)
		}
	} else if r.Error != nil {
		text += ": " + r.Error.Message
	}
	if m := r.MemoryCheck; m != nil && m.PagesWrong > 0 {
		text += fmt.Sprintf("; %d pages are WRONG", m.PagesWrong)
	}
	if !p.WarmUp && p.Left > 0 {
		text += fmt.Sprintf(" (about %s left)", rough(p.Left))
	}
	return text
}
