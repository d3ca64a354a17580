package flat

import (
	"encoding/csv"
	"io"
	"strconv"
	"time"
)

// csvWriter writes RFC 4180: a line of names, then one a row; an empty cell is absent.
type csvWriter struct {
	w    *csv.Writer
	line []string
}

// NewCSV writes the names at once.
func NewCSV(w io.Writer, columns []Column) (Writer, error) {
	c := &csvWriter{w: csv.NewWriter(w), line: make([]string, len(columns))}
	for i := range columns {
		c.line[i] = columns[i].Name
	}
	return c, c.w.Write(c.line)
}

func (c *csvWriter) Write(row []any) error {
	for i, v := range row {
		c.line[i] = cellText(v)
	}
	return c.w.Write(c.line)
}

func (c *csvWriter) Close() error {
	c.w.Flush()
	return c.w.Error()
}

func cellText(v any) string {
	switch v := v.(type) {
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case bool:
		return strconv.FormatBool(v)
	case string:
		return v
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	}
	return ""
}
