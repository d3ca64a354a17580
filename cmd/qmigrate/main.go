// Command qmigrate live-migrates QEMU guests by speaking QMP to both sides, and measures what happens.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"qmigrate/engine/record"
	"qmigrate/hostnet"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
)

// version is set by the Makefile.
var version = "devel"

func main() {
	hostnet.Main()
	keepToOurselves()
	os.Exit(run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// keepToOurselves keeps from the processes that we start what our parent left open for us: a QEMU that outlives us
// would hold a lock of flock(1), or a pipe that somebody reads to its end, for as long as its guest runs.
func keepToOurselves() {
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // a kernel before 5.11 has none
}

// Exit statuses.
const (
	statusDone    = 0
	statusFailed  = 1   // everything else, refusals before the first change included
	statusUsage   = 2   // the command line is wrong
	statusSafe    = 3   // `migrate` had been issued, and the guest is safe on the source
	statusSignals = 130 // the same after a signal
)

// errSignal is the cause of a context that a signal ended. It is a cancellation.
type errSignal struct{ os.Signal }

func (e errSignal) Error() string        { return "stopped by signal " + e.Signal.String() }
func (e errSignal) Is(target error) bool { return target == context.Canceled }

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// run is the whole program: it may be called by a test.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (status int) {
	defer func() {
		if p := recover(); p != nil { // the last line of defence: a person gets a sentence, and the stack goes into a file
			name := crashFile(p)
			fmt.Fprintf(stderr, "qmigrate: internal error: %v (details in %s); `qmigrate lab status` and query-status tell "+
				"where a guest is\n", p, name)
			status = statusFailed
		}
	}()
	ctx, stop := signalContext(ctx)
	defer stop()
	c := &commands{stdin: stdin, stdout: stdout, stderr: stderr, said: map[string]bool{}}
	c.hosts = &host.Pool{Program: helperbin.Helper, Said: func(at, text string) { fmt.Fprintf(stderr, "%s: %s\n", at, text) }}
	defer c.hosts.Close()
	app := newApp(c)
	args, err := arrange(app, args)
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	if err == nil {
		return statusDone
	}
	var child childStatus
	if errors.As(err, &child) {
		return int(child)
	}
	for _, line := range c.errorLines(err) {
		fmt.Fprintln(stderr, line)
	}
	return statusOf(ctx, err)
}

func statusOf(ctx context.Context, err error) int {
	var usage usageError
	var stage *record.StageError
	var sig errSignal
	safe := errors.As(err, &stage) && stage.Guest == record.Source
	switch {
	case errors.As(err, &usage):
		return statusUsage
	case errors.As(context.Cause(ctx), &sig) && (safe || stage == nil):
		return statusSignals
	case safe && stage.Issued:
		return statusSafe
	}
	return statusFailed
}

// signalContext ends with an errSignal at the first SIGINT, SIGTERM or SIGHUP. Later ones change nothing: what runs
// then is the undo. A reader of our output that goes away is only an error of that write: a SIGPIPE would leave a lab
// standing.
func signalContext(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals, pipes := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(pipes, unix.SIGPIPE)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	done := make(chan struct{})
	go func() {
		select {
		case s := <-signals:
			cancel(errSignal{s})
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		signal.Stop(pipes)
		close(done)
		cancel(nil)
	}
}

func crashFile(p any) string {
	f, err := os.CreateTemp("", "qmigrate-crash-*.txt")
	if err != nil {
		return "no file: " + err.Error()
	}
	defer f.Close()
	fmt.Fprintf(f, "qmigrate %s\n%v\n%s", version, p, debug.Stack())
	return f.Name()
}

func newApp(c *commands) *cli.App {
	app := &cli.App{
		Name:                 "qmigrate",
		Usage:                "live-migrate QEMU guests over QMP, and measure what happens",
		Version:              version,
		Reader:               c.stdin,
		Writer:               c.stdout,
		ErrWriter:            c.stderr,
		HideHelpCommand:      true,
		HideVersion:          true,
		EnableBashCompletion: true,
		Commands: []*cli.Command{
			c.demo(), c.run(), c.show(), c.report(), c.compare(), c.export(), c.migrate(), c.watch(), c.save(), c.restore(),
			c.caps(), c.lab(), c.hostsCommand(), c.doctor(), c.version(), c.completion(), c.man(),
		},
		ExitErrHandler: func(*cli.Context, error) {}, // run prints and decides
		OnUsageError:   onUsageError,
		Action:         func(x *cli.Context) error { return cli.ShowAppHelp(x) },
	}
	setHelp(app)
	for _, command := range app.Commands {
		setUsageErrors(command)
	}
	return app
}

// setUsageErrors has a command's errors name its flags.
func setUsageErrors(command *cli.Command) {
	command.OnUsageError = onUsageError
	if action := command.Action; action != nil {
		command.Action = func(x *cli.Context) error {
			if err := action(x); err != nil {
				return saidAsFlags{err, command.Flags}
			}
			return nil
		}
	}
	for _, sub := range command.Subcommands {
		setUsageErrors(sub)
	}
}

func onUsageError(x *cli.Context, err error, _ bool) error {
	name := "qmigrate"
	if x.Command != nil && x.Command.Name != "" {
		name = x.Command.HelpName
	}
	return usagef("%w: `%s --help` lists the flags", err, name)
}

// commands holds the program's streams; each subcommand is a method in a file of its own.
type commands struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	hosts          *host.Pool
	said           map[string]bool // lines of errors that have been printed
}

// errorLines are the lines of an error that have not been said yet: both sides may fail for the same reason. On a
// terminal they are folded.
func (c *commands) errorLines(err error) (lines []string) {
	if err == nil {
		return nil
	}
	for line := range strings.Lines(strings.TrimSpace(err.Error())) {
		line = "qmigrate: " + strings.TrimRight(line, "\n")
		if c.said[line] {
			continue
		}
		c.said[line] = true
		if columns(c.stderr) > 0 { // what reads a pipe takes a line whole
			line = fold(line, 2, page(c.stderr))
		}
		lines = append(lines, strings.Split(line, "\n")...)
	}
	return lines
}

// logger writes to standard error from the level asked for; a nil Logger is silent.
func (c *commands) logger(x *cli.Context) (*slog.Logger, error) {
	var level slog.Level
	text := x.String("log-level")
	if text == "" || text == "off" {
		return nil, nil
	}
	if err := level.UnmarshalText([]byte(text)); err != nil {
		return nil, usagef("--log-level %s: have debug, info, warn, error, off", text)
	}
	return slog.New(slog.NewTextHandler(c.stderr, &slog.HandlerOptions{Level: level})), nil
}

func (c *commands) version() *cli.Command {
	return &cli.Command{Name: "version", Usage: "print this program's version", Action: func(*cli.Context) error {
		_, err := fmt.Fprintln(c.stdout, "qmigrate", version)
		return err
	}}
}
