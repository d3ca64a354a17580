package host

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// The channel between this program and a helper: a yamux session over the helper's standard streams. Each call is a
// stream of its own, which begins with a request, a line of JSON, and the answer to it, another one. What follows
// depends on the call. Streams that the helper opens bring connections that one of its listeners has accepted.

// Protocol is the version of what a helper and this program say to each other.
const Protocol = 1

// helloMark begins the line by which a helper says that it is there. What comes before it is a login's greeting.
const helloMark = "\x01qmigrate-helper "

// hello is what a helper says of itself.
type hello struct {
	Protocol int      `json:"protocol"`
	PID      int      `json:"pid"`
	Content  string   `json:"content"` // of its program: SHA-256, in hex
	Folder   string   `json:"folder"`  // see Far.Folder
	Said     []string `json:"said"`    // what it found of a helper that was killed, a sentence each
}

// request is the first line of a stream.
type request struct {
	Op      string          `json:"op"`
	Network string          `json:"network,omitempty"`
	Address string          `json:"address,omitempty"`
	Name    string          `json:"name,omitempty"`
	Size    int64           `json:"size,omitempty"`
	Mode    fs.FileMode     `json:"mode,omitempty"`
	PID     int             `json:"pid,omitempty"`
	Start   uint64          `json:"start,omitempty"`
	Signal  int             `json:"signal,omitempty"`
	Threads []int           `json:"threads,omitempty"`
	Command *wireCommand    `json:"command,omitempty"`
	Like    *wireLike       `json:"like,omitempty"`
	Input   json.RawMessage `json:"input,omitempty"` // of a task
	File    *fileIdentity   `json:"file,omitempty"`
	ID      uint64          `json:"id,omitempty"` // of a listener
}

// wireCommand is a Command without its streams.
type wireCommand struct {
	Args   []string `json:"args"`
	Env    []string `json:"env,omitempty"`
	Only   bool     `json:"only,omitempty"`
	Dir    string   `json:"dir,omitempty"`
	Umask  int      `json:"umask,omitempty"`
	Log    string   `json:"log,omitempty"`
	Stdin  bool     `json:"stdin,omitempty"`
	Stdout bool     `json:"stdout,omitempty"`
	Stderr bool     `json:"stderr,omitempty"`
}

// wireLike is a Like whose process is named by its number.
type wireLike struct {
	UID             int    `json:"uid"`
	GID             int    `json:"gid"`
	Groups          []int  `json:"groups,omitempty"`
	Capabilities    uint64 `json:"capabilities"`
	NoNewPrivileges bool   `json:"no_new_privileges,omitempty"`
	AmongPID        int    `json:"among_pid,omitempty"`
	AmongStart      uint64 `json:"among_start,omitempty"`
	Network         bool   `json:"network,omitempty"`
}

// answer is the second line of a stream, and each line of a process's or a task's.
type answer struct {
	Error   *wireError      `json:"error,omitempty"`
	PID     int             `json:"pid,omitempty"`
	Start   uint64          `json:"start,omitempty"`
	Size    int64           `json:"size,omitempty"`
	Address string          `json:"address,omitempty"`
	Network string          `json:"network,omitempty"`
	Peer    int             `json:"peer,omitempty"` // process that listens on a unix socket; 0 if not known
	ID      uint64          `json:"id,omitempty"`
	Time    int64           `json:"time_ns,omitempty"` // the host's realtime clock
	Name    string          `json:"name,omitempty"`
	Mode    fs.FileMode     `json:"mode,omitempty"`
	ModTime time.Time       `json:"mod_time,omitzero"`
	Threads []int           `json:"threads,omitempty"`
	Usage   *Usage          `json:"usage,omitempty"`
	Output  json.RawMessage `json:"output,omitempty"` // one of a task's
	Stdout  []byte          `json:"stdout,omitempty"`
	Stderr  []byte          `json:"stderr,omitempty"`
	Stdin   []byte          `json:"stdin,omitempty"`  // towards the helper
	Ended   bool            `json:"ended,omitempty"`  // the process, the task, or what is written to the process
	Status  string          `json:"status,omitempty"` // why a process ended; "" for status 0
}

// wireError is an error that keeps what callers ask of it.
type wireError struct {
	Text        string           `json:"text"`
	Errno       syscall.Errno    `json:"errno,omitempty"`
	Gone        bool             `json:"gone,omitempty"` // os.ErrProcessDone
	Late        bool             `json:"late,omitempty"` // os.ErrDeadlineExceeded
	Missing     bool             `json:"missing,omitempty"`
	Canceled    bool             `json:"canceled,omitempty"`
	Exists      bool             `json:"exists,omitempty"`
	Forbidden   bool             `json:"forbidden,omitempty"`
	Unsupported *wireUnsupported `json:"unsupported,omitempty"`
}

type wireUnsupported struct{ Feature, Reason, Mend string }

func toWire(err error) *wireError {
	if err == nil {
		return nil
	}
	w := &wireError{Text: err.Error(), Gone: errors.Is(err, os.ErrProcessDone),
		Late:     errors.Is(err, os.ErrDeadlineExceeded),
		Canceled: errors.Is(err, context.Canceled), Missing: errors.Is(err, fs.ErrNotExist),
		Exists: errors.Is(err, fs.ErrExist), Forbidden: errors.Is(err, fs.ErrPermission)}
	_ = errors.As(err, &w.Errno)
	if u := new(UnsupportedError); errors.As(err, &u) {
		w.Unsupported = &wireUnsupported{u.Feature, u.Reason, u.Mend}
	}
	return w
}

// farError is an error of a far host. It says what it said there, and is to errors.Is and errors.As what it was there.
type farError struct {
	text string
	is   []error
}

func (e *farError) Error() string   { return e.text }
func (e *farError) Unwrap() []error { return e.is }

func (w *wireError) err() error {
	if w == nil {
		return nil
	}
	e := &farError{text: w.Text}
	for _, known := range []struct {
		is  bool
		err error
	}{{w.Errno != 0, w.Errno}, {w.Gone, os.ErrProcessDone}, {w.Late, os.ErrDeadlineExceeded},
		{w.Missing, fs.ErrNotExist}, {w.Canceled, context.Canceled}, {w.Exists, fs.ErrExist},
		{w.Forbidden, fs.ErrPermission}} {
		if known.is {
			e.is = append(e.is, known.err)
		}
	}
	if u := w.Unsupported; u != nil {
		e.is = append(e.is, &UnsupportedError{Feature: u.Feature, Reason: u.Reason, Mend: u.Mend})
	}
	return e
}

// maxLine is the longest line that either side takes.
const maxLine = 64 << 20

// writeLine writes one message.
func writeLine(w io.Writer, message any) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// readLine reads one message. The error is io.EOF where none has begun.
func readLine(r *bufio.Reader, into any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return json.Unmarshal(line, into)
		case errors.Is(err, bufio.ErrBufferFull) && len(line) < maxLine:
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("a message of more than %d bytes", maxLine)
		case errors.Is(err, io.EOF) && len(line) > 0:
			return io.ErrUnexpectedEOF
		default:
			return err
		}
	}
}

// readSized reads what is announced to have so many bytes. The other side's word on that is no reason to make room.
func readSized(r io.Reader, size int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, size))
	if err == nil && int64(len(b)) != size {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}
