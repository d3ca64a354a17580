package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

// man prints the manual page, from what the help is made of.
func (c *commands) man() *cli.Command {
	return &cli.Command{Name: "man", Usage: "print the manual page, for man(1)", Action: func(x *cli.Context) error {
		if x.Args().Present() {
			return usagef("man takes no arguments, found %q: `qmigrate man | man -l -` shows the page", x.Args().First())
		}
		_, err := io.WriteString(c.stdout, manual(newApp(c)))
		return err
	}}
}

// manual is the program's manual page as troff with the macros of man(7).
func manual(app *cli.App) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"%s %s\" \"User Commands\"\n.nh\n.ad l\n", strings.ToUpper(app.Name), app.Name,
		troff(app.Version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", app.Name, troff(app.Usage))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\nCOMMAND [flags] [arguments]\n", app.Name)
	b.WriteString(".SH COMMANDS\n")
	manualCommands(&b, app.Commands)
	for _, c := range app.Commands {
		manualCommand(&b, app.Name, c)
	}
	fmt.Fprintf(&b, ".SH EXIT STATUS\n%s\n", troff(exitStatuses))
	return b.String()
}

func manualCommands(b *strings.Builder, all []*cli.Command) {
	for _, c := range all {
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", c.Name, troff(c.Usage))
	}
}

// manualCommand is a command's section, and those of its subcommands.
func manualCommand(b *strings.Builder, parent string, c *cli.Command) {
	name := parent + " " + c.Name
	if len(c.Flags) == 0 && len(c.Subcommands) == 0 && c.Description == "" && c.ArgsUsage == "" {
		return // the list of commands says it all
	}
	fmt.Fprintf(b, ".SH %s\n%s\n.PP\n.B %s\n", strings.ToUpper(troff(name)), troff(c.Usage), troff(synopsis(name, c)))
	for line := range strings.Lines(c.Description) {
		fmt.Fprintf(b, ".PP\n%s\n", troff(strings.TrimSpace(line)))
	}
	manualCommands(b, c.Subcommands)
	for title, flags := range underHeadings(c.Flags) {
		fmt.Fprintf(b, ".SS %s\n", troff(title))
		for _, f := range flags {
			placeholder, text, value := flagText(f)
			fmt.Fprintf(b, ".TP\n\\fB%s\\fR", troff("--"+f.Names()[0]))
			if placeholder != "" {
				fmt.Fprintf(b, " \\fI%s\\fR", troff(placeholder))
			}
			if value != "" {
				text += " (default " + value + ")"
			}
			fmt.Fprintf(b, "\n%s\n", troff(text))
		}
	}
	for _, sub := range c.Subcommands {
		manualCommand(b, name, sub)
	}
}

// troff writes a text so that it is taken as it stands, wherever its lines begin.
func troff(text string) string {
	text = strings.NewReplacer("\\", "\\e", "-", "\\-", "`", "\\(ga", "'", "\\(aq", "~", "\\(ti", "^",
		"\\(ha").Replace(text)
	if strings.HasPrefix(text, ".") {
		text = "\\&" + text
	}
	return text
}
