package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/record"
	"qmigrate/engine/report/text"
)

func (c *commands) show() *cli.Command {
	return &cli.Command{
		Name: "show", Usage: "print a record again, as after the migration", ArgsUsage: "[DIR] [ID]",
		Description: "DIR is what --out named, out if none is given. ID is a record's id or the beginning of one, " +
			"or the name of an experiment's trial; without it the newest is shown.\n\n" +
			"  qmigrate show\n" +
			"  qmigrate show out 20261125T2019 --details",
		Flags: []cli.Flag{
			detailsFlag(),
			&cli.BoolFlag{Name: "json", Category: aboutOutput, Usage: "print the record's line of DIR/records.jsonl"},
		},
		Action: c.runShow,
	}
}

func (c *commands) runShow(x *cli.Context) error {
	dir, id, err := showArguments(x.Args().Slice())
	if err != nil {
		return err
	}
	r, line, err := c.find(dir, id)
	if err != nil {
		return err
	}
	if x.Bool("json") {
		_, err := c.stdout.Write(line)
		return err
	}
	var cause []string
	if r.Error != nil {
		why := fmt.Sprintf("%s: %s", r.Error.Stage, r.Error.Message)
		cause = strings.Split(fold(why, 2, page(c.stdout)), "\n")
	}
	printRecord(c.stdout, x, dir, r, cause)
	return nil
}

// showArguments reads [DIR] [ID]; one word alone is a folder if there is one of that name.
func showArguments(words []string) (dir, id string, err error) {
	switch len(words) {
	case 0:
		return "out", "", nil
	case 1:
		info, err := os.Stat(words[0])
		switch {
		case err == nil && info.IsDir():
			return words[0], "", nil
		case err == nil:
			return "", "", usagef("%s is no folder: give what --out named, as in `qmigrate show out`", words[0])
		case strings.ContainsRune(words[0], '/'):
			return "", "", usagef("no folder %s: give what --out named, as in `qmigrate show out`", words[0])
		}
		return "out", words[0], nil
	case 2:
		return words[0], words[1], nil
	}
	return "", "", usagef("show takes a folder and the id of a record, found %d words", len(words))
}

// find returns the record of that id and its line; the newest one if id is empty. What is no record is passed over with
// a warning.
func (c *commands) find(dir, id string) (found *record.Migration, line []byte, err error) {
	name := filepath.Join(dir, record.RecordsFile)
	file, err := os.Open(name)
	if err != nil {
		if info, statErr := os.Stat(dir); statErr != nil || !info.IsDir() {
			what := ""
			if id != "" {
				what = ", which should have record " + id
			}
			return nil, nil, usagef("no folder %s%s: give what --out named, as in `qmigrate show out`", dir, what)
		}
		return nil, nil, usagef("%s has no %s: give what --out named, as in `qmigrate show out`", dir, record.RecordsFile)
	}
	defer file.Close()
	var ids []string
	newest := ""
	for r := record.NewReader(file); ; {
		text, err := r.Line()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		m, err := record.Decode(text)
		if err != nil {
			fmt.Fprintf(c.stderr, "warning: %s: line %d: %v\n", name, r.Number(), err)
			continue
		}
		newest = max(newest, m.ID)
		switch {
		case id == "" && m.ID != newest, id != "" && !strings.HasPrefix(m.ID, id) && m.Trial != id:
			continue
		case m.ID == id || m.Trial == id:
			ids = nil
		}
		if !slices.Contains(ids, m.ID) {
			ids = append(ids, m.ID)
		}
		found, line = m, slices.Clone(text)
		if m.ID == id {
			break
		}
	}
	switch {
	case newest == "":
		return nil, nil, usagef("%s: no records in it: `qmigrate demo --out %s` makes one", dir, dir)
	case found == nil:
		return nil, nil, usagef("no record %s in %s: the newest is %s", id, dir, newest)
	case id != "" && len(ids) > 1:
		return nil, nil, usagef("%s is the beginning of %d ids in %s, such as %s and %s: give more of it", id, len(ids), dir,
			ids[0], ids[1])
	}
	return found, line, nil
}

// printRecord prints a record, in one screen or with all its details, and where it is; dir is empty where it could not
// be kept.
func printRecord(w io.Writer, x *cli.Context, dir string, r *record.Migration, cause []string) {
	p := paper(w)
	p.W = plain{w}
	var foot []string
	if dir != "" {
		foot = append(foot, fmt.Sprintf("record    %s, id %s", filepath.Join(dir, record.RecordsFile), r.ID))
	}
	if !x.Bool("details") {
		if dir != "" {
			foot = append(foot, "details   "+shellLine([]string{"qmigrate", "show", dir, r.ID, "--details"}))
		}
		p.Screen(r, cause, foot)
		return
	}
	p.Details(r)
	if dir != "" {
		foot = append([]string{""}, append(foot, "series    "+filepath.Join(dir, "samples", r.ID+".jsonl"))...)
	}
	for _, line := range append(foot, cause...) {
		fmt.Fprintln(p.W, line)
	}
}

// plain keeps the text of a record, which may be somebody else's, from steering a terminal.
type plain struct{ w io.Writer }

func (p plain) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		text, end := strings.CutSuffix(line, "\n")
		text = printable(text)
		if end {
			text += "\n"
		}
		if _, err := io.WriteString(p.w, text); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// keep writes the record and prints it, for people and for machines, with failed, the error that the migration ended
// with; it returns all that went wrong. A migration that was refused before anything changed is none: only --json tells
// of it.
func (c *commands) keep(x *cli.Context, folder *record.Folder, rec *record.Migration, failed error) error {
	refused := rec.Error != nil && rec.Error.Stage == record.Initialization
	dir := folder.Path()
	var err error
	if !refused {
		if err = folder.Append(rec); err != nil {
			dir = "" // there is nothing to point at
			err = fmt.Errorf("keep the record of this migration (%s, %s): %w", rec.Outcome, text.Holder(rec.GuestOn), err)
		}
	}
	if x.Bool("json") {
		line, jsonErr := json.Marshal(rec)
		if jsonErr == nil {
			_, jsonErr = fmt.Fprintf(c.stdout, "%s\n", line)
		}
		err = errors.Join(err, jsonErr)
	}
	failed = errors.Join(failed, err)
	if !x.Bool("quiet") && !refused {
		if !x.Bool("details") { // they begin with a blank line
			fmt.Fprintln(c.stderr)
		}
		printRecord(c.stderr, x, dir, rec, c.errorLines(failed))
	}
	return failed
}
