package record_test

import (
	"fmt"
	"strings"

	"qmigrate/engine/record"
)

// Two migrations, the second of which a newer program wrote, and half a line that a crash left.
const twoRecords = `{"schema":"qmigrate/record/1","id":"a","mode":"pre-copy","outcome":"completed","downtime":{"wire_ns":8100000,"wire_error_ns":2000}}
{"schema":"qmigrate/record/1","id":"b","mode":"pre-copy","outcome":"failed","error":{"stage":"pre-copy","message":"the link is down"},"key_of_a_newer_program":1}
{"schema":"qmigrate/record/1","id":"c","mo`

// Records are read one at a time, so that a file of any length will do. What was not measured is a nil pointer, never
// zero.
func ExampleReader() {
	r := record.NewReader(strings.NewReader(twoRecords)) // an os.File of records.jsonl
	for m, err := range r.All() {
		if err != nil {
			fmt.Println(err) // a line that is no record; the loop may go on
			continue
		}
		switch wire := m.Downtime.Wire; {
		case m.Outcome != record.Completed:
			fmt.Println(m.ID, m.Outcome, "in", m.Error.Stage)
		case wire == nil:
			fmt.Println(m.ID, "has no wire downtime")
		default:
			fmt.Println(m.ID, "stood still for", *wire, "+/-", *m.Downtime.WireError)
		}
	}
	fmt.Println("half a line:", r.Half() > 0)
	// Output:
	// a stood still for 8.1ms +/- 2µs
	// b failed in pre-copy
	// half a line: true
}

// A single line, as --json prints it.
func ExampleDecode() {
	m, err := record.Decode([]byte(`{"schema":"qmigrate/record/1","mode":"stop-and-copy","total":{"wall_ns":2500000000}}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(m.Mode, m.Total.Wall, m.Total.Transferred == nil)
	// Output: stop-and-copy 2.5s true
}
