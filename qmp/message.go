package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// framer cuts a stream into JSON objects, one message each. It goes by brackets and not by lines, so that a monitor
// with pretty=on is understood too, and it has no limit but memory. The state survives a read that timed out.
type framer struct {
	r          io.Reader
	buf        []byte
	start, end int    // the unread part of buf
	pos        int    // the next byte to look at
	open       []byte // the brackets that will close those that are open
	text       bool
	escaped    bool
	newline    bool      // the last byte inside an object was a line's end
	at         time.Time // when the last read returned
}

const (
	smallBuffer = 8 << 10 // more than a query-migrate reply and than most others
	largeBuffer = 1 << 20 // a buffer that grew beyond this is given back
)

// notMessage is what came in place of a JSON object.
type notMessage struct{ got []byte }

func (e *notMessage) Error() string { return "not a QMP message: " + quote(e.got) }

var errLong = errors.New("no end of the first message within the limit")

// next returns the next message; it is valid until the following call. A limit of 0 is none.
func (f *framer) next(limit int) ([]byte, error) {
	if f.start == f.end && len(f.buf) > largeBuffer {
		f.buf, f.start, f.end, f.pos = nil, 0, 0, 0
	}
	for {
		for f.pos < f.end {
			b := f.buf[f.pos]
			f.pos++
			switch {
			case f.text:
				switch {
				case b < ' ': // JSON has no control characters in strings: this is half a message
					return nil, f.reject()
				case f.escaped:
					f.escaped = false
				case b == '\\':
					f.escaped = true
				case b == '"':
					f.text = false
				}
				continue
			case b == '\n':
				f.newline = len(f.open) > 0
			case b == ' ' || b == '\t' || b == '\r':
				f.newline = false
			case len(f.open) == 0 && b != '{':
				f.start = f.pos - 1
				return nil, f.reject()
			case b == '{' || b == '[':
				if f.newline { // pretty-printed lines are indented, so this is a new message after half of one
					return nil, f.reject()
				}
				if len(f.open) == 0 {
					f.start = f.pos - 1
				}
				f.open = append(f.open, b+2) // ASCII has the closing ones two further on
			case b == '}' || b == ']':
				f.newline = false
				if f.open[len(f.open)-1] != b {
					return nil, f.reject()
				}
				if f.open = f.open[:len(f.open)-1]; len(f.open) == 0 {
					m := f.buf[f.start:f.pos]
					f.start = f.pos
					return m, nil
				}
			case b == '"':
				f.text, f.newline = true, false
			default:
				f.newline = false
			}
			if len(f.open) == 0 {
				f.start = f.pos // white space between messages
			}
		}
		if limit > 0 && f.end-f.start > limit {
			return nil, errLong
		}
		if err := f.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads once, having made room.
func (f *framer) fill() error {
	switch {
	case f.buf == nil:
		f.buf = make([]byte, smallBuffer)
	case f.start == f.end:
		f.start, f.end, f.pos = 0, 0, 0
	case f.end == len(f.buf) && f.start > 0:
		n := copy(f.buf, f.buf[f.start:f.end])
		f.pos -= f.start
		f.start, f.end = 0, n
	case f.end == len(f.buf):
		f.buf = append(f.buf, make([]byte, len(f.buf))...)
	}
	n, err := f.r.Read(f.buf[f.end:])
	f.at = time.Now()
	f.end += n
	if n > 0 {
		return nil // an error will come again
	}
	if err == io.EOF && len(f.open) > 0 {
		return fmt.Errorf("in the middle of a message: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// reject reports the unread part; it has to be copied, for the error outlives the buffer.
func (f *framer) reject() error {
	got := f.buf[f.start:f.end]
	return &notMessage{bytes.Clone(got[:min(len(got), 4*quoted)])}
}

// quoted is how much of a stranger's words an error repeats.
const quoted = 60

// quote is the first line of b, shortened, as a Go string.
func quote(b []byte) string {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimRight(line, "\r")
	if len(line) > quoted {
		return strconv.Quote(string(line[:quoted])) + "..."
	}
	return strconv.Quote(string(line))
}

// message is any line from QEMU after the greeting: a reply (Return or Error) or an event.
type message struct {
	ID     json.RawMessage `json:"id,omitempty"`
	Return json.RawMessage `json:"return,omitempty"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error,omitempty"`
	Event     string          `json:"event,omitempty"`
	Data      json.RawMessage `json:"data,omitempty"`
	Timestamp *struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp,omitempty"`
}

// decodeMessage copies what it keeps. What it does not know, it leaves out.
func decodeMessage(line []byte) (*message, error) {
	m := new(message)
	if err := json.Unmarshal(line, m); err != nil {
		return nil, fmt.Errorf("decode message %s: %w", quote(line), err)
	}
	return m, nil
}

// event is m as an Event that arrived at the time given.
func (m *message) event(arrived time.Time) Event {
	e := Event{Name: m.Event, Data: m.Data, Arrived: arrived}
	if t := m.Timestamp; t != nil && t.Seconds >= 0 { // -1 when QEMU could not tell the time
		e.QEMUTime = time.Unix(t.Seconds, t.Microseconds*1000)
	}
	return e
}

// Version is a QEMU's version as its greeting has it.
type Version struct {
	Major, Minor, Micro int
	Package             string // the packager's own words, may be ""
}

// String is the version as in "10.0.2".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Greeting is QEMU's first message on a connection.
type Greeting struct {
	Version      Version
	Capabilities []string // of the protocol, not of migration: "oob"
}

// decodeGreeting gives an error on whatever is not a QMP greeting.
func decodeGreeting(line []byte) (Greeting, error) {
	var g struct {
		QMP *struct {
			Version struct {
				QEMU struct {
					Major int `json:"major"`
					Minor int `json:"minor"`
					Micro int `json:"micro"`
				} `json:"qemu"`
				Package string `json:"package"`
			} `json:"version"`
			Capabilities []json.RawMessage `json:"capabilities"`
		}
	}
	if err := json.Unmarshal(line, &g); err != nil || g.QMP == nil {
		return Greeting{}, notQMP(line)
	}
	v := g.QMP.Version
	r := Greeting{Version: Version{v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro, v.Package}}
	for _, c := range g.QMP.Capabilities {
		var s string
		if json.Unmarshal(c, &s) == nil {
			r.Capabilities = append(r.Capabilities, s)
		}
	}
	return r, nil
}
