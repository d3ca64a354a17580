package main

import (
	"io"

	"github.com/urfave/cli/v2"
)

// completion prints a script that asks qmigrate itself for the words that may come next. The cli package tells words
// from their explanations by $SHELL, so each script names its shell.
func (c *commands) completion() *cli.Command {
	scripts := map[string]string{
		"bash": `_qmigrate() {
	local IFS=$'\n'
	local words=("${COMP_WORDS[@]:0:COMP_CWORD}" "${COMP_WORDS[COMP_CWORD]}")
	COMPREPLY=($(compgen -W "$(SHELL=bash "${words[@]}" --generate-bash-completion 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o bashdefault -o default -F _qmigrate qmigrate
`,
		"zsh": `#compdef qmigrate
_qmigrate() {
	local -a found
	found=("${(@f)$(SHELL=zsh "${(@)words[1,CURRENT-1]}" "${words[CURRENT]}" --generate-bash-completion 2>/dev/null)}")
	if [[ -n $found[1] ]]; then _describe qmigrate found; else _files; fi
}
if [[ $funcstack[1] == _qmigrate ]]; then _qmigrate "$@"; else compdef _qmigrate qmigrate; fi
`,
		"fish": `function __qmigrate_words
	set -l words (commandline -opc) (commandline -ct)
	SHELL=fish $words --generate-bash-completion 2>/dev/null
end
complete -c qmigrate -a '(__qmigrate_words)'
`,
	}
	return &cli.Command{
		Name: "completion", Usage: "print the shell's completion script", ArgsUsage: "bash|zsh|fish",
		Action: func(x *cli.Context) error {
			script, ok := scripts[x.Args().First()]
			if !ok {
				return usagef("completion takes the name of a shell, bash, zsh or fish, found %q: "+
					"as in `source <(qmigrate completion bash)`", x.Args().First())
			}
			_, err := io.WriteString(c.stdout, script)
			return err
		},
	}
}
