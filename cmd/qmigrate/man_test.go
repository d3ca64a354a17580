package main

import (
	"io"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// Every command and flag that the help lists is in the manual, and no line of a text is taken for a macro.
func TestManual(t *testing.T) {
	t.Parallel()
	app := newApp(&commands{stdout: io.Discard, stderr: io.Discard})
	page := manual(app)
	for _, c := range app.Commands {
		for _, one := range append([]*cli.Command{c}, c.Subcommands...) {
			if !strings.Contains(page, "\n.B "+one.Name+"\n"+troff(one.Usage)+"\n") {
				t.Errorf("no command %s", one.Name)
			}
			for _, f := range one.Flags {
				placeholder, text, _ := flagText(f)
				for _, want := range []string{"\n\\fB" + troff("--"+f.Names()[0]) + "\\fR", troff(placeholder), troff(text)} {
					if !strings.Contains(page, want) {
						t.Errorf("flag --%s of %s: no %q", f.Names()[0], one.Name, want)
					}
				}
			}
		}
	}
	for line := range strings.Lines(page) {
		macro, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		known := strings.Contains(" .TH .SH .SS .PP .TP .B .nh .ad ", " "+macro+" ")
		if (line[0] == '.' || line[0] == '\'') && !known || strings.Contains(line, "`") {
			t.Errorf("line %q", line)
		}
	}
	const text = `.a 'b' \c -d`
	if got, want := troff(text), `\&.a \(aqb\(aq \ec \-d`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
