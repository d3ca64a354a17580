// Command bench measures what qmigrate itself costs, side by side with what it is compared to, in one run: `make
// bench`.
//
// The figures are printed as a table and written to bench/NAME.json, with every single value. A target that is not met
// is said, and is no failure: a busy machine is none of the program's fault. The exit status is 1 only where something
// broke.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/guest"
	"qmigrate/guest/image"
	"qmigrate/hostnet"
)

// bench is what every section needs.
type bench struct {
	quick    bool
	qmigrate string         // the program, for what is measured from outside
	qemus    []guest.Binary // 10.0 and 7.2
	image    guest.Image
	dir      string // for sockets and records; short, for the paths of unix sockets are
	out      io.Writer
}

// section is one group of figures: a table, and a file.
type section struct {
	name string
	run  func(*bench, context.Context, *Result) error
}

func main() {
	hostnet.Main()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	sections := []section{
		{"roundtrip", (*bench).roundTrip},
		{"engine", (*bench).engine},
		{"anatomy", (*bench).anatomy},
		{"process", (*bench).process},
		{"ready", (*bench).ready},
		{"network", (*bench).network},
		{"hosts", (*bench).hosts},
		{"secure", (*bench).secure},
		{"agent", (*bench).agent},
		{"trials", (*bench).trials},
		{"report", (*bench).report},
		{"records", (*bench).records},
	}
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	b := &bench{out: out}
	flags.BoolVar(&b.quick, "quick", false, "few repetitions: below a minute")
	flags.StringVar(&b.qmigrate, "qmigrate", "bin/qmigrate", "the program, as `make build` leaves it")
	to := flags.String("out", "bench", "folder of the JSON files")
	only := flags.String("only", "", "comma-separated sections: "+strings.Join(names, ", "))
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	var errs []error
	var all []Figure
	for _, s := range sections {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), s.name) {
			continue
		}
		r := newResult(s.name, b.quick)
		if err := s.run(b, ctx, r); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
		r.finish()
		r.print(out)
		all = append(all, r.Figures...)
		errs = append(errs, r.write(filepath.Join(*to, s.name+".json")))
		if ctx.Err() != nil {
			break
		}
	}
	summary(out, all)
	return errors.Join(errs...)
}

// prepare finds what is measured; whatever is missing is said before anything starts.
func (b *bench) prepare(ctx context.Context) error {
	for _, version := range []string{"10.0", "7.2"} {
		q, err := guest.FindQEMU(ctx, version)
		if err != nil {
			return err
		}
		b.qemus = append(b.qemus, q)
	}
	var err error
	if b.image, err = image.Build(ctx, image.Spec{}); err != nil {
		return err
	}
	if _, err := os.Stat(b.qmigrate); err != nil {
		return fmt.Errorf("%w: `make build` makes it", err)
	}
	if b.qmigrate, err = filepath.Abs(b.qmigrate); err != nil {
		return err
	}
	b.dir, err = os.MkdirTemp("", "qmb")
	return err
}

// pick is the number of repetitions.
func (b *bench) pick(quick, full int) int {
	if b.quick {
		return quick
	}
	return full
}
