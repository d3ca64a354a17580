package flat

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"qmigrate/engine/record"
)

// Scan yields the records of folders one after the other, with the folder of each. A folder without records is an
// error. What is no record is passed over and told by warn: half a line that a crash left, a damaged line, one of
// another schema.
func Scan(folders []string, warn func(string)) iter.Seq2[Row, error] {
	return scan(folders, warn, record.Decode, func(folder string, m *record.Migration) Row { return Row{folder, m} })
}

// Row is one record and the folder that it is in, as it was given.
type Row struct {
	Folder string
	*record.Migration
}

// batchBytes is about how much one worker decodes at a time.
const batchBytes = 512 << 10

// batch is some lines, and what became of them.
type batch[T any] struct {
	folder string
	text   []byte
	ends   []int // of the lines
	first  int   // number of the first line
	rows   []T
	bad    []string
	err    error // of reading: the last batch
	done   chan struct{}
}

// scan decodes with all processors, and yields in order what take makes of each record. Take is called by several
// goroutines at once.
func scan[T any](folders []string, warn func(string), decode func([]byte) (*record.Migration, error),
	take func(folder string, m *record.Migration) T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		workers := runtime.GOMAXPROCS(0)
		queue, work, stop := make(chan *batch[T], 2*workers), make(chan *batch[T], 2*workers), make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() {
			defer close(queue)
			defer close(work)
			read(folders, func(b *batch[T]) bool {
				select {
				case <-stop:
					return false
				case queue <- b:
				}
				if b.err != nil || len(b.ends) == 0 {
					close(b.done)
					return b.err == nil
				}
				work <- b // workers wait for nobody
				return true
			})
		})
		for range workers {
			all.Go(func() {
				for b := range work {
					b.decodeAll(decode, take)
					close(b.done)
				}
			})
		}
		defer func() {
			close(stop)
			for range queue { // what was begun ends
			}
			all.Wait()
		}()
		for b := range queue {
			<-b.done
			for _, text := range b.bad {
				warn(text)
			}
			for _, row := range b.rows {
				if !yield(row, nil) {
					return
				}
			}
			if b.err != nil {
				var none T
				yield(none, b.err)
				return
			}
		}
	}
}

// read hands out the lines of all folders; it ends when give says so.
func read[T any](folders []string, give func(*batch[T]) bool) {
	for _, folder := range folders {
		if !readFolder(folder, give) {
			return
		}
	}
}

func readFolder[T any](folder string, give func(*batch[T]) bool) bool {
	fail := func(err error) bool { return give(&batch[T]{err: err, done: make(chan struct{})}) }
	file, err := os.Open(filepath.Join(folder, record.RecordsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return fail(fmt.Errorf("%s has no %s: give a folder that records were written to", folder, record.RecordsFile))
	}
	if err != nil {
		return fail(fmt.Errorf("read records: %w", err))
	}
	defer file.Close()
	room := int64(batchBytes + 64<<10)
	if info, err := file.Stat(); err == nil && info.Size() > 0 {
		room = min(room, info.Size())
	}
	r := record.NewReader(file)
	fresh := func() *batch[T] {
		return &batch[T]{folder: folder, first: r.Number() + 1, text: make([]byte, 0, room), done: make(chan struct{})}
	}
	for b := fresh(); ; {
		line, err := r.Line()
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			if n := r.Half(); n > 0 {
				b.bad = append(b.bad, fmt.Sprintf("%s ends in half a line of %d bytes, which a crash left: it is no record", folder,
					n))
			}
			if len(b.ends) > 0 && err != nil {
				return give(b) && fail(err)
			}
			b.err = err
			return give(b)
		}
		b.text = append(b.text, line...)
		b.ends = append(b.ends, len(b.text))
		if len(b.text) >= batchBytes {
			if !give(b) {
				return false
			}
			b = fresh()
		}
	}
}

// decodeAll decodes the lines of a batch.
func (b *batch[T]) decodeAll(decode func([]byte) (*record.Migration, error), take func(string, *record.Migration) T) {
	b.rows = make([]T, 0, len(b.ends))
	begin := 0
	for i, end := range b.ends {
		m, err := decode(b.text[begin:end])
		begin = end
		if err != nil {
			b.bad = append(b.bad, fmt.Sprintf("%s: line %d is passed over: %v", b.folder, b.first+i, err))
			continue
		}
		b.rows = append(b.rows, take(b.folder, m))
	}
	b.text = nil
}
