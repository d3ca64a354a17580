package report

import (
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"

	"qmigrate/internal/atomicfile"
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
		if len(row) > 0 && row[0] == filepath.Base(row[0]) &&
			(filepath.Ext(row[0]) == ".svg" || filepath.Ext(row[0]) == ".csv") {
			names = append(names, row[0])
		}
	}
	return names
}

// saveFile replaces a file of the report.
func saveFile(name string, content []byte) error {
	if err := atomicfile.Write(name, content, 0o644); err != nil {
		return fmt.Errorf("write report: %w: name another folder", err)
	}
	return nil
}
