package report

import (
	"fmt"
	"strings"
	"testing"
)

// TestPageOrder: results that are read at a glance, then figures, then long tables.
func TestPageOrder(t *testing.T) {
	long := Table{Key: "results", Title: "Results by cell", Head: []string{"cell"}}
	for i := range glance + 1 {
		long.Rows = append(long.Rows, []string{fmt.Sprint(i)})
	}
	short := long
	short.Rows = long.Rows[:glance]
	environment := Table{Key: "environment", Title: "Environment", Head: []string{"what"}}
	for _, c := range []struct {
		tables []Table
		want   []string
	}{
		{[]Table{short, environment}, []string{`<h2 id="results">`, `<h2 id="figures">`, `<h2 id="tables">`, `<h2 id="environment">`}},
		{[]Table{long, environment}, []string{`<h2 id="figures">`, `<h2 id="tables">`, `<h2 id="results">`, `<h2 id="environment">`}},
	} {
		page, err := (&Report{Title: "x", Tables: c.tables}).HTML()
		if err != nil {
			t.Fatal(err)
		}
		rest := string(page)
		for _, heading := range c.want {
			_, after, ok := strings.Cut(rest, heading)
			if !ok {
				t.Fatalf("%s is not at its place", heading)
			}
			rest = after
		}
	}
}
