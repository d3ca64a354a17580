package flat

import (
	"io"
	"reflect"
	"strconv"
	"time"

	"github.com/parquet-go/parquet-go"
)

// groupRows is how many rows are held until they are written as one row group.
const groupRows = 20_000

// parquetWriter writes one optional column for each of the table's, compressed with zstd. A time is a TIMESTAMP in ns,
// UTC.
type parquetWriter struct {
	w       *parquet.GenericWriter[any]
	columns []Column
	row     parquet.Row
	held    int
}

// NewParquet writes a file whose columns stand in the table's order. The unit of each column that has one is in the
// file's metadata, as unit:NAME.
func NewParquet(w io.Writer, columns []Column) (Writer, error) {
	types := map[Type]reflect.Type{
		Int: reflect.TypeFor[*int64](), Float: reflect.TypeFor[*float64](), Bool: reflect.TypeFor[*bool](),
		Text: reflect.TypeFor[*string](), Time: reflect.TypeFor[*time.Time](),
	}
	fields := make([]reflect.StructField, len(columns))
	options := []parquet.WriterOption{parquet.Compression(&parquet.Zstd), parquet.CreatedBy("qmigrate", "", "")}
	for i, c := range columns {
		tag := c.Name + ",optional"
		if c.Type == Time {
			tag += ",timestamp(nanosecond)"
		}
		// a struct's order is the file's; a name of a group's would be sorted
		fields[i] = reflect.StructField{Name: "F" + strconv.Itoa(i), Type: types[c.Type],
			Tag: reflect.StructTag(`parquet:"` + tag + `"`)}
		if c.Unit != "" {
			options = append(options, parquet.KeyValueMetadata("unit:"+c.Name, c.Unit))
		}
	}
	schema := parquet.SchemaOf(reflect.New(reflect.StructOf(fields)).Interface())
	return &parquetWriter{w: parquet.NewGenericWriter[any](w, append(options, schema)...), columns: columns}, nil
}

func (p *parquetWriter) Write(row []any) error {
	p.row = p.row[:0]
	for i, v := range row {
		cell, level := parquet.NullValue(), 0
		switch v := v.(type) {
		case nil:
		case time.Time:
			cell, level = parquet.Int64Value(v.UnixNano()), 1
		default:
			cell, level = parquet.ValueOf(v), 1
		}
		p.row = append(p.row, cell.Level(0, level, i))
	}
	if _, err := p.w.WriteRows([]parquet.Row{p.row}); err != nil {
		return err
	}
	if p.held++; p.held < groupRows {
		return nil
	}
	p.held = 0
	return p.w.Flush()
}

func (p *parquetWriter) Close() error { return p.w.Close() }
