package main

import (
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/internal/near"
)

const completionFlag = "--generate-bash-completion"

// arrange puts a command's flags before its arguments, where the flag package looks for them, so that people may write
// them anywhere; turns `help COMMAND` into `COMMAND --help` and --version into a command; and refuses unknown commands
// and flags, with the names near them.
func arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) < 2 || args[len(args)-1] == completionFlag {
		return args, nil
	}
	out, rest := []string{args[0]}, args[1:]
	switch rest[0] {
	case "help":
		rest = append(slices.Clone(rest[1:]), "--help")
	case "--version", "-v":
		rest = []string{"version"}
	}
	name, commands, flags := app.Name, app.Commands, app.Flags
	for len(commands) > 0 && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		if rest[0] == "help" {
			rest = []string{"--help"}
			break
		}
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(rest[0]) })
		if i < 0 {
			var have []string
			for _, c := range commands {
				have = append(have, c.Name)
			}
			return nil, usagef("unknown command `%s %s`: %s", name, rest[0], near.Hint(rest[0], have))
		}
		name += " " + rest[0]
		out, rest = append(out, rest[0]), rest[1:]
		commands, flags = commands[i].Subcommands, commands[i].Flags
	}
	called := slices.Clone(out)
	var arguments []string
	for len(rest) > 0 {
		word := rest[0]
		if word == "--" || len(arguments) > 0 && name == "qmigrate lab exec" { // what follows is another program's
			arguments = append(arguments, strings.TrimPrefix(word, "--"))
			if word == "--" {
				arguments = arguments[:len(arguments)-1]
			}
			arguments = append(arguments, rest[1:]...)
			break
		}
		if len(word) < 2 || word[0] != '-' {
			arguments, rest = append(arguments, word), rest[1:]
			continue
		}
		if isHelp(word) {
			return append(called, "--help"), nil // of the command, whatever else the line says
		}
		n, err := flagWords(name, flags, rest)
		if err != nil {
			return nil, err
		}
		out, rest = append(out, rest[:n]...), rest[n:]
	}
	if len(arguments) > 0 {
		out = append(append(out, "--"), arguments...)
	}
	return out, nil
}

func isHelp(word string) bool { return slices.Contains([]string{"-h", "-help", "--h", "--help"}, word) }

// flagWords is how many of the words the flag takes that they begin with: 1 or 2.
func flagWords(command string, flags []cli.Flag, words []string) (int, error) {
	text, value, given := strings.Cut(strings.TrimLeft(words[0], "-"), "=")
	i := slices.IndexFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), text) })
	if i < 0 {
		var have []string
		for _, f := range flags {
			have = append(have, "--"+f.Names()[0])
		}
		if command == "qmigrate" {
			return 0, usagef("unknown flag --%s: a command comes first, as in `qmigrate demo --json`; `qmigrate help` lists them", text)
		}
		return 0, usagef("unknown flag --%s: %s", text, near.Or(text, have, "`"+command+" --help` lists the flags"))
	}
	if _, ok := flags[i].(*cli.BoolFlag); ok {
		if _, err := strconv.ParseBool(value); given && err != nil {
			return 0, usagef("--%s takes no value, found %q", text, value)
		}
		return 1, nil
	}
	n := 1
	if !given {
		if len(words) < 2 {
			placeholder, _, _ := flagText(flags[i])
			return 0, usagef("--%s needs a value: --%s %s", text, text, placeholder)
		}
		n, value = 2, words[1]
	}
	if _, ok := flags[i].(*cli.IntFlag); ok {
		if _, err := strconv.Atoi(value); err != nil {
			return 0, usagef("--%s %s: not a whole number", text, value)
		}
	}
	return n, nil
}
