package report

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// indexFile lists what a report left in the folder figures: the next one knows by it what is its own to remove.
const indexFile = "index.csv"

// readIndex returns the files that the index names; none if it cannot be read.
func readIndex(name string) []string {
	file, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil || len(rows) == 0 {
		return nil
	}
	var names []string
	for _, row := range rows[1:] {
		if len(row) > 0 && row[0] == filepath.Base(row[0]) && (filepath.Ext(row[0]) == ".svg" || filepath.Ext(row[0]) == ".csv") {
			names = append(names, row[0])
		}
	}
	return names
}

// writeWhole replaces name by a file with that content, or leaves it as it was.
func writeWhole(name string, content []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		if at := new(os.PathError); errors.As(err, &at) {
			err = fmt.Errorf("%s: %w: name another folder with --out", name, at.Err) // and not the file that is renamed to it
		}
		return fmt.Errorf("write report: %w", err)
	}
	_, err = tmp.Write(content)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}
