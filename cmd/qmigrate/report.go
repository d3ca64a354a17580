package main

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/report"
)

func (c *commands) report() *cli.Command {
	return &cli.Command{
		Name:      "report",
		Usage:     "tables and figures from records",
		ArgsUsage: "DIR...",
		Description: "Reads records.jsonl (and samples/ of the migrations that are drawn one by one) of each DIR and " +
			"nothing else. Writes report.html, one page that needs no network, and " +
			"figures/ with each figure as SVG and CSV and each table as CSV, into the first DIR or --out; prints the results " +
			"on standard output. What an earlier report wrote is replaced. " +
			"docs/report.md says what is in it.\n\n" +
			"  qmigrate report out\n" +
			"  qmigrate report monday tuesday --out both",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Category: aboutOutput,
				Usage: "`DIR` write report.html and figures/ there instead of the first DIR"},
			&cli.StringSliceFlag{Name: "trial", Category: aboutOutput,
				Usage: "`ID` draw this migration's passes and timeline (an id, or a trial's name); may be given again; without " +
					"it, of each mode a typical one"},
			quietFlag(),
		},
		Action: c.runReport,
	}
}

func (c *commands) runReport(x *cli.Context) error {
	dirs, err := recordFolders(x, "report")
	if err != nil {
		return err
	}
	out := x.String("out")
	if out == "" {
		out = dirs[0]
	}
	r, err := report.Build(dirs, report.Options{Command: reportCommand(x, dirs), Trials: x.StringSlice("trial")})
	if err != nil {
		return err
	}
	if err := r.Write(out); err != nil {
		return err
	}
	if !x.Bool("quiet") {
		printReport(c.stdout, r)
		fmt.Fprintf(c.stderr, "\nreport    %s\n%s in %s\n", filepath.Join(out, "report.html"),
			plural(int64(len(r.Figures)), "figure", "figures"), filepath.Join(out, "figures"))
	}
	return nil
}

// reportCommand is the command line as a person would type it.
func reportCommand(x *cli.Context, dirs []string) string {
	words := append([]string{"qmigrate", "report"}, dirs...)
	if out := x.String("out"); out != "" {
		words = append(words, "--out", out)
	}
	for _, id := range x.StringSlice("trial") {
		words = append(words, "--trial", id)
	}
	return shellLine(words)
}

// shellLine are the words as a person would type them into a shell.
func shellLine(words []string) string {
	quoted := slices.Clone(words)
	for i, w := range quoted {
		if w == "" || strings.ContainsAny(w, " \t\n'\"\\$`&|;<>()*?[]#~") {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// printReport prints the warnings and the tables.
func printReport(w io.Writer, r *report.Report) {
	fmt.Fprintf(w, "%s\n%s\n", r.Title, fold(r.Summary, 0, page(w)))
	if len(r.Warnings) > 0 {
		fmt.Fprintf(w, "\nwarnings of the records\n")
		for _, x := range r.Warnings {
			fmt.Fprintf(w, "%5d x  %s\n", x.Count, fold(printable(x.Text), 9, page(w)))
		}
	}
	for _, x := range r.Tables {
		fmt.Fprintf(w, "\n%s\n", fold(x.Title, 0, page(w)))
		if x.Text != "" {
			fmt.Fprintf(w, "%s\n", fold(x.Text, 0, page(w)))
		}
		t := table{Align: x.Align}
		for _, row := range append([][]string{x.Head}, x.Rows...) {
			cells := make([]string, len(row))
			for i, cell := range row {
				cells[i] = printable(cell)
			}
			t.Row(cells...)
		}
		t.Print(w, page(w))
	}
}

// printable keeps what a record holds from steering a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
}
