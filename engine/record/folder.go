package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"qmigrate/internal/atomicfile"
)

// RecordsFile is the file of a folder that holds its records.
const RecordsFile = "records.jsonl"

// Folder is an --out directory: records.jsonl with one migration a line, and samples/ID.jsonl with its time series.
type Folder struct {
	dir  string
	made bool // the folder was not there before
}

// OpenFolder creates dir if need be and proves that records can be written there, before anything is started: it
// writes, syncs and removes a block of the size that one migration's series may need.
func OpenFolder(dir string) (*Folder, error) {
	if dir == "" {
		return nil, errors.New("open record folder: it has no name")
	}
	_, err := os.Lstat(dir)
	f := &Folder{dir: dir, made: errors.Is(err, fs.ErrNotExist)}
	if err := os.MkdirAll(filepath.Join(dir, "samples"), 0o755); err != nil {
		return nil, fmt.Errorf("open record folder: %w", err)
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return nil, fmt.Errorf("open record folder: %w", err)
	}
	defer os.Remove(probe.Name())
	_, err = probe.Write(make([]byte, probeBytes))
	err = errors.Join(err, probe.Sync(), probe.Close())
	if err != nil {
		os.Remove(probe.Name())
		f.Close()
		return nil, fmt.Errorf("prove that %s can be written: %w", dir, err)
	}
	return f, nil
}

// Close removes the folder again if OpenFolder made it and nothing has been written. It is harmless twice.
func (f *Folder) Close() {
	if f.made {
		_ = os.Remove(filepath.Join(f.dir, "samples")) // refused where there is something in it
		_ = os.Remove(f.dir)
	}
}

// probeBytes is what OpenFolder proves to be free: a record and half a minute of samples at 10 ms (about 300 bytes
// each).
const probeBytes = 1 << 20

// Path is the folder's name as it was given.
func (f *Folder) Path() string { return f.dir }

// SamplesPath is the file that holds the series of the migration with that id.
func (f *Folder) SamplesPath(id string) string { return filepath.Join(f.dir, "samples", id+".jsonl") }

// Append writes the series and then the record: a record's line never stands without its series. Each is written whole
// or not at all; a line that a crash left half written is cut off first.
func (f *Folder) Append(m *Migration) error {
	var series bytes.Buffer
	for i := range m.Samples {
		line, err := json.Marshal(&m.Samples[i])
		if err != nil {
			return fmt.Errorf("encode sample: %w", err)
		}
		series.Write(line)
		series.WriteByte('\n')
	}
	line, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	if err := atomicfile.Write(f.SamplesPath(m.ID), series.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write samples: %w", err)
	}
	if err := appendLine(filepath.Join(f.dir, RecordsFile), append(line, '\n')); err != nil {
		return fmt.Errorf("append record: %w", err)
	}
	return nil
}

// appendLine appends one line and syncs it. What follows the last newline is the rest of a write that a crash cut
// short; it goes. A write that fails half-way is taken back.
func appendLine(name string, line []byte) (err error) {
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	end, err := wholeLines(file)
	if err != nil {
		return err
	}
	if err := file.Truncate(end); err != nil {
		return err
	}
	if _, err := file.WriteAt(line, end); err != nil {
		return errors.Join(err, file.Truncate(end))
	}
	if err := file.Sync(); err != nil || end > 0 {
		return err
	}
	return atomicfile.SyncFolder(filepath.Dir(name)) // the file may be new
}

// wholeLines returns the offset just behind the file's last newline.
func wholeLines(file *os.File) (int64, error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	block := make([]byte, 64<<10)
	for end := size; end > 0; {
		n := min(end, int64(len(block)))
		if _, err := file.ReadAt(block[:n], end-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(block[:n], '\n'); i >= 0 {
			return end - n + int64(i) + 1, nil
		}
		end -= n
	}
	return 0, nil
}

// Decode reads one record; unknown keys, from a newer qmigrate, are passed over. On an error the record is nil.
func Decode(line []byte) (*Migration, error) {
	m := new(Migration)
	if err := json.Unmarshal(line, m); err != nil {
		return nil, fmt.Errorf("decode record: %w", err)
	}
	if m.Schema != Schema {
		return nil, fmt.Errorf("decode record: schema is %q, this program reads %q", m.Schema, Schema)
	}
	return m, nil
}
