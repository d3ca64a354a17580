// Package qmptest is a monitor for tests: it replays what a real QEMU said on a real socket to the real client, records
// such transcripts, and measures round trips.
package qmptest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kind is what a step of a transcript does; it is the line's first character.
type Kind byte

// The kinds of step.
const (
	Sent    Kind = '>' // a command that the client has to send now
	Got     Kind = '<' // a message that the client gets
	Action  Kind = '!' // close, raw TEXT, sleep DURATION, next
	Comment Kind = '#'
)

// Step is one line of a transcript.
type Step struct {
	Kind Kind
	Text string // without the kind and the space behind it
	Line int    // its number in the file, from 1; 0 if it was recorded
}

func (s Step) String() string { return strings.TrimRight(string(rune(s.Kind))+" "+s.Text, " ") }

// Transcript is a conversation with a monitor:
//
//	# a comment
//	< {"QMP": ...}                              the client gets this
//	> {"execute": "query-status", "id": 1}      the client has to send this; any id will do
//	< {"return": {...}, "id": 1}                it gets this with its own id
//	! sleep 50ms
//	! raw "{\"half\r\n"                         bytes as they are, as a Go string or bare
//	! close                                     the monitor hangs up; what follows is for the next connection
//	! next                                      the client has to hang up; the same
//
// A command without id takes the next reply without one. A reply that shall reach a client without an id, for a command
// that had one, is written without id under a command that is written with one.
type Transcript []Step

// Parse reads a transcript. Blank lines are left out.
func Parse(b []byte) (Transcript, error) {
	var t Transcript
	n := 0
	for line := range bytes.Lines(b) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		s := Step{Kind: Kind(line[0]), Text: string(bytes.TrimSpace(line[1:])), Line: n}
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("parse transcript line %d: %w", n, err)
		}
		t = append(t, s)
	}
	return t, nil
}

func (s Step) check() error {
	switch s.Kind {
	case Comment:
		return nil
	case Sent, Got:
		if _, err := object(s.Text); err != nil {
			return fmt.Errorf("want a JSON object, got %q: %w", s.Text, err)
		}
		return nil
	case Action:
		verb, rest, _ := strings.Cut(s.Text, " ")
		switch verb {
		case "close", "next":
			if rest == "" {
				return nil
			}
		case "sleep":
			_, err := time.ParseDuration(rest)
			return err
		case "raw":
			_, err := raw(rest)
			return err
		}
		return fmt.Errorf("unknown action %q", s.Text)
	}
	return fmt.Errorf("want >, <, ! or #, got %q", s.String())
}

// raw is what `! raw` sends.
func raw(text string) ([]byte, error) {
	if !strings.HasPrefix(text, `"`) {
		return []byte(text), nil
	}
	s, err := strconv.Unquote(text)
	return []byte(s), err
}

// object decodes a JSON object by its members.
func object(text string) (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, fmt.Errorf("null")
	}
	return m, nil
}

// String is the transcript as Parse reads it.
func (t Transcript) String() string {
	var b strings.Builder
	for _, s := range t {
		b.WriteString(s.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// connections cuts the transcript into what is for one connection each.
func (t Transcript) connections() []Transcript {
	var list []Transcript
	begin := 0
	for i, s := range t {
		if s.Kind == Action && (s.Text == "close" || s.Text == "next") {
			list = append(list, t[begin:i+1])
			begin = i + 1
		}
	}
	if slices.ContainsFunc(t[begin:], func(s Step) bool { return s.Kind != Comment }) || len(list) == 0 {
		list = append(list, t[begin:])
	}
	return list
}

// Recorder makes a transcript of a live connection: its Trace goes into qmp.Options.
type Recorder struct {
	mu    sync.Mutex
	steps Transcript
}

// Trace notes one message.
func (r *Recorder) Trace(sent bool, line []byte) {
	kind := Got
	if sent {
		kind = Sent
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, Step{Kind: kind, Text: string(bytes.TrimSpace(line))})
}

// Add notes a comment or an action.
func (r *Recorder) Add(kind Kind, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, Step{Kind: kind, Text: text})
}

// Transcript is what has been noted so far. Replace holds pairs of old and new text, for paths of this machine.
func (r *Recorder) Transcript(replace ...string) Transcript {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := slices.Clone(r.steps)
	change := strings.NewReplacer(replace...)
	for i := range t {
		t[i].Text = change.Replace(t[i].Text)
	}
	return t
}
