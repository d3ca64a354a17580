package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/report/flat"
	"qmigrate/internal/atomicfile"
)

func (c *commands) export() *cli.Command {
	var names, list []string
	for _, t := range flat.Tables() {
		names = append(names, t.Name)
		list = append(list, "  "+t.Name+": "+t.About)
	}
	return &cli.Command{
		Name:      "export",
		Usage:     "records as a flat table, for pandas, R, DuckDB or a spreadsheet",
		ArgsUsage: "DIR...",
		Description: "One row a migration, or one a pass, a stage, a sample; of several folders one table, with a column " +
			"that names the folder. A column's name is the record's keys " +
			"joined by _ and ends in its unit, as in downtime_wire_ns; an empty cell was not measured. docs/schema.md tells " +
			"what each is and who measured it. Failed migrations are rows too: " +
			"the column outcome says so.\n\n" +
			strings.Join(list, "\n") + "\n\n" +
			"  qmigrate export out > migrations.csv\n" +
			"  qmigrate export out --output passes.parquet --table passes",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "table", Value: names[0], Usage: "`NAME` " + strings.Join(names, ", ")},
			&cli.StringFlag{Name: "format", Usage: "`NAME` csv or parquet; by the output's ending if not given, else csv"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"},
				Usage: "`FILE` appears when all of it is written; standard output if not given"},
			&cli.BoolFlag{Name: "columns", Usage: "list the table's columns with type and unit, and read nothing"},
		},
		Action: c.runExport,
	}
}

func (c *commands) runExport(x *cli.Context) error {
	t, ok := flat.Find(x.String("table"))
	if !ok {
		var names []string
		for _, t := range flat.Tables() {
			names = append(names, t.Name)
		}
		return usagef("--table %s: have %s", x.String("table"), strings.Join(names, ", "))
	}
	if x.Bool("columns") {
		out := &table{Align: "lll"}
		out.Row("column", "type", "unit")
		for _, column := range t.Columns() {
			out.Row(column.Name, string(column.Type), column.Unit)
		}
		out.Print(c.stdout, page(c.stdout))
		return nil
	}
	folders, err := recordFolders(x, "export")
	if err != nil {
		return err
	}
	output, format := x.String("output"), x.String("format")
	if format == "" {
		format = "csv"
		if ext := filepath.Ext(output); ext != "" && ext != ".csv" {
			format = ext[1:]
		}
	}
	open, ok := map[string]func(io.Writer, []flat.Column) (flat.Writer, error){"csv": flat.NewCSV,
		"parquet": flat.NewParquet}[format]
	switch {
	case !ok:
		return usagef("format %s: have csv, parquet; --format NAME gives it, whatever the output is called", format)
	case output == "" && format == "parquet" && columns(c.stdout) > 0:
		return usagef("--format parquet is no text for a terminal: name a file, as in --output %s.parquet", t.Name)
	}
	var warned []string
	write := func(w io.Writer) (int, error) {
		b := bufio.NewWriterSize(w, 1<<20)
		n, err := flat.Export(folders, t, func(text string) { warned = append(warned, text) },
			func(cols []flat.Column) (flat.Writer, error) { return open(b, cols) })
		return n, errors.Join(err, b.Flush())
	}
	rows := 0
	if output == "" {
		rows, err = write(c.stdout)
	} else {
		err = writeFile(output, func(w io.Writer) (err error) {
			rows, err = write(w)
			return err
		})
	}
	printWarnings(c.stderr, warned)
	if err != nil {
		return fmt.Errorf("export %s: %w", t.Name, err)
	}
	if output != "" {
		fmt.Fprintf(c.stderr, "%s of %s in %s\n", plural(int64(rows), "row", "rows"), t.Name, output)
	}
	return nil
}

// recordFolders are a command's arguments, each of which has records.
func recordFolders(x *cli.Context, command string) ([]string, error) {
	folders := x.Args().Slice()
	if len(folders) == 0 {
		return nil, usagef("%s takes folders of records: give what --out named, as in `qmigrate %s out`", command, command)
	}
	for i, f := range folders {
		folders[i] = filepath.Clean(f)
	}
	return folders, nil
}

func printWarnings(w io.Writer, all []string) {
	const most = 10
	for i, text := range all {
		if i == most {
			fmt.Fprintf(w, "warning: and %s like these\n", plural(int64(len(all)-most), "more", "more"))
			return
		}
		fmt.Fprintln(w, "warning:", text)
	}
}

// writeFile replaces name by what write writes, or leaves it as it was.
func writeFile(name string, write func(io.Writer) error) error {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() { // a pipe, /dev/null
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	if err := atomicfile.WriteFunc(name, 0o644, write); err != nil {
		return fmt.Errorf("write %w", err)
	}
	return nil
}
