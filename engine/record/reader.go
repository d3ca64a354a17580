package record

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
)

// Reader reads records one after the other, however many there are: it holds one line at a time.
//
// A line counts as written when its newline is there. What follows the last newline is the rest of a write that a crash
// cut short: it is passed over, and Half tells how long it is. Keys that this program does not know, from a newer one,
// are passed over as well.
type Reader struct {
	r    *bufio.Reader
	line []byte // of a line that is longer than the buffer
	n    int
	half int
}

// NewReader reads from what holds one record a line, as records.jsonl does.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 64<<10)} }

// Line returns the next whole line with its newline, or io.EOF. The slice is good until the next call.
func (r *Reader) Line() ([]byte, error) {
	r.line = r.line[:0]
	for {
		part, err := r.r.ReadSlice('\n')
		switch {
		case err == nil:
			r.n++
			if len(r.line) == 0 {
				return part, nil
			}
			r.line = append(r.line, part...)
			return r.line, nil
		case errors.Is(err, bufio.ErrBufferFull):
			r.line = append(r.line, part...)
		case err == io.EOF:
			r.half = len(r.line) + len(part)
			return nil, io.EOF
		default:
			return nil, fmt.Errorf("read records: %w", err)
		}
	}
}

// Number is that of the line read last, from 1.
func (r *Reader) Number() int { return r.n }

// Half is the length in bytes of the half line at the end, once the end has been reached: 0 where there is none.
func (r *Reader) Half() int { return r.half }

// All yields the records in the order in which they were appended. A line that is no record yields an error that names
// its number; the loop may go on behind it. After an error of reading itself there is nothing more.
func (r *Reader) All() iter.Seq2[*Migration, error] {
	return func(yield func(*Migration, error) bool) {
		for {
			line, err := r.Line()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			m, err := Decode(line)
			if err != nil {
				err = fmt.Errorf("read records: line %d: %w", r.n, err)
			}
			if !yield(m, err) {
				return
			}
		}
	}
}

// Read returns the records of a folder in the order in which they were appended, and an error for the first line that
// is not one. Half a line at the end, left by a crash, is not a record and is passed over. For many records a Reader
// takes less memory.
func Read(dir string) ([]*Migration, error) {
	file, err := os.Open(filepath.Join(dir, RecordsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	defer file.Close()
	var all []*Migration
	for m, err := range NewReader(file).All() {
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// ReadSamples returns the time series of the migration with that id; none where it was not sampled.
func ReadSamples(dir, id string) ([]Sample, error) {
	file, err := os.Open((&Folder{dir: dir}).SamplesPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read samples: %w", err)
	}
	defer file.Close()
	var all []Sample
	for r := NewReader(file); ; {
		line, err := r.Line()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		var s Sample
		if err := json.Unmarshal(line, &s); err != nil {
			return nil, fmt.Errorf("read samples of %s: line %d: %w", id, r.Number(), err)
		}
		all = append(all, s)
	}
}
