package main

import (
	"cmp"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// The headings under which help lists flags, in this order.
const (
	aboutGuest     = "Guest and hosts (what qmigrate starts)"
	aboutMigration = "Migration"
	aboutLaunch    = "Launching the destination"
	aboutHosts     = "Reaching hosts"
	aboutOutput    = "Output"
)

const helpWidth = 80

const exitStatuses = "0 done; 1 failed, or refused before anything was changed; 2 the command line is wrong; " +
	"3 not migrated, and the guest is safe on the source; 130 the same after a signal."

// setHelp gives the program and each command its help as plain text, which the cli package prints as it stands.
func setHelp(app *cli.App) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n\nUsage: %s COMMAND [flags] [arguments]\n\n", app.Name, app.Usage, app.Name)
	listCommands(&b, app.Commands)
	b.WriteString("\n" + fold("`"+app.Name+" help COMMAND` describes a command. Exit status: "+exitStatuses, 0,
		helpWidth) + "\n")
	app.CustomAppHelpTemplate = b.String()
	for _, c := range app.Commands {
		setCommandHelp(app.Name, c)
	}
}

func setCommandHelp(parent string, c *cli.Command) {
	c.HideHelpCommand = true
	name := parent + " " + c.Name
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nUsage: %s\n", fold(name+": "+c.Usage, 0, helpWidth), synopsis(name, c))
	if c.Description != "" {
		b.WriteString("\n")
		for line := range strings.Lines(c.Description) {
			b.WriteString(fold(strings.TrimRight(line, "\n"), 0, helpWidth) + "\n")
		}
	}
	if len(c.Subcommands) > 0 {
		b.WriteString("\n")
		listCommands(&b, c.Subcommands)
	}
	listFlags(&b, c.Flags)
	c.CustomHelpTemplate = b.String()
	for _, sub := range c.Subcommands {
		setCommandHelp(name, sub)
	}
}

// synopsis is how a command is called.
func synopsis(name string, c *cli.Command) string {
	if len(c.Subcommands) > 0 {
		name += " COMMAND"
	}
	if len(c.Flags) > 0 {
		name += " [flags]"
	}
	if c.ArgsUsage != "" {
		name += " " + c.ArgsUsage
	}
	return name
}

func listCommands(b *strings.Builder, all []*cli.Command) {
	for _, c := range all {
		fmt.Fprintf(b, "  %-12s%s\n", c.Name, fold(c.Usage, 14, helpWidth))
	}
}

func listFlags(b *strings.Builder, flags []cli.Flag) {
	const column = 28
	for title, of := range underHeadings(flags) {
		fmt.Fprintf(b, "\n%s\n", title)
		for _, f := range of {
			placeholder, text, value := flagText(f)
			left := strings.TrimRight("  --"+f.Names()[0]+" "+placeholder, " ")
			if value != "" {
				text += " (default " + value + ")"
			}
			if len(left) > column-2 {
				left += "\n" + strings.Repeat(" ", column)
			} else {
				left += strings.Repeat(" ", column-len(left))
			}
			fmt.Fprintf(b, "%s%s\n", left, fold(text, column, helpWidth))
		}
	}
}

// underHeadings yields the headings that flags are listed under, each with its flags.
func underHeadings(flags []cli.Flag) iter.Seq2[string, []cli.Flag] {
	return func(yield func(string, []cli.Flag) bool) {
		for _, category := range []string{aboutMigration, aboutLaunch, aboutHosts, aboutGuest, "", aboutOutput} {
			of := slices.DeleteFunc(slices.Clone(flags), func(f cli.Flag) bool {
				c, ok := f.(cli.CategorizableFlag)
				return !ok || c.GetCategory() != category
			})
			if len(of) > 0 && !yield(cmp.Or(category, "Flags"), of) {
				return
			}
		}
	}
}

// flagText takes a flag's usage apart: "`PLACEHOLDER` text".
func flagText(f cli.Flag) (placeholder, text, value string) {
	switch f := f.(type) {
	case *cli.StringFlag:
		text, value = f.Usage, cmp.Or(f.DefaultText, f.Value)
	case *cli.StringSliceFlag:
		text = f.Usage
	case *cli.IntFlag:
		text, value = f.Usage, fmt.Sprint(f.Value)
	case *cli.BoolFlag:
		text = f.Usage
	}
	if rest, ok := strings.CutPrefix(text, "`"); ok {
		placeholder, text, _ = strings.Cut(rest, "` ")
	}
	return placeholder, text, value
}

// folding folds the lines that are written to it, each whole.
type folding struct{ w io.Writer }

func (f folding) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		if _, err := fmt.Fprintln(f.w, fold(strings.TrimRight(line, "\n"), 2, page(f.w))); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
