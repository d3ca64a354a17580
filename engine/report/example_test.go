package report_test

import (
	"fmt"
	"os"
	"path/filepath"

	"qmigrate/engine/record/recordtest"
	"qmigrate/engine/report"
)

// A report is made of the records in folders, by whatever run they were written there.
func ExampleBuild() {
	dir, err := os.MkdirTemp("", "report")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	// 18 plans, three times each.
	if err := recordtest.WriteFolder(dir, recordtest.Synthetic(1, 54)); err != nil {
		fmt.Println(err)
		return
	}

	r, err := report.Build([]string{dir}, report.Options{Command: "qmigrate report lab"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(r.Summary)
	fmt.Println(r.Tables[0].Title, "has", len(r.Tables[0].Rows), "rows")
	for _, f := range r.Figures[:2] {
		fmt.Println(f.Key+":", f.Title)
	}
	out := filepath.Join(dir, "out") // report.html, and a file for each table and figure
	fmt.Println(r.Write(out))
	// Output:
	// 54 migrations, 2026-11-01 08:00:00 to 2026-11-01 08:07:04 (UTC): 52 completed, 2 failed; 18 cells.
	// Results by cell has 18 rows
	// by-mode-dirty-rate-1000-s: Total time, downtime and bytes sent against mode (dirty-rate 1000/s)
	// by-mode-dirty-rate-4000-s: Total time, downtime and bytes sent against mode (dirty-rate 4000/s)
	// <nil>
}
