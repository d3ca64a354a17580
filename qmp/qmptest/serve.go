package qmptest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Serve replays the transcript in the file at path on a unix socket and returns the socket's path. Connections are
// served one after another, as QEMU does: the first `! close` or `! next` ends what is for the first connection, and
// after the last part it begins again. A client that sends something else, or hangs up while commands are left, fails
// the test with what was expected and what came. The socket goes with the test.
func Serve(t testing.TB, path string) (socket string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("read transcript: %v", err)
	}
	script, err := Parse(b)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return ServeTranscript(t, filepath.Base(path), script)
}

// ServeTranscript is Serve for a transcript that is no file; name is for messages.
func ServeTranscript(t testing.TB, name string, script Transcript) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp") // t.TempDir may be too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "monitor.qmp")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, name: name, closed: make(chan struct{})}
	var running sync.WaitGroup
	running.Go(func() { s.serve(l, script.connections()) })
	t.Cleanup(func() {
		s.close()
		l.Close()
		running.Wait()
		os.RemoveAll(dir)
	})
	return socket
}

type server struct {
	t      testing.TB
	name   string
	closed chan struct{} // the test is over

	mu sync.Mutex
	nc net.Conn
}

func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.closed)
	if s.nc != nil {
		s.nc.Close()
	}
}

func (s *server) over() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

func (s *server) serve(l net.Listener, parts []Transcript) {
	for i := 0; ; i++ {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.over() {
			nc.Close()
		}
		s.nc = nc
		s.mu.Unlock()
		err = replay(nc, parts[i%len(parts)], s.closed)
		nc.Close()
		if err != nil && !s.over() {
			s.t.Errorf("%s:%v", s.name, err)
		}
	}
}

// identity is a command that waits for its reply: its id in the transcript and the client's.
type identity struct{ script, client json.RawMessage }

// errHungUp is a client that went away.
var errHungUp = errors.New("the client hung up")

// replay plays one connection's part; the error begins with the line where the client left the transcript.
func replay(nc net.Conn, part Transcript, closed <-chan struct{}) error {
	in := json.NewDecoder(nc)
	var waiting []identity
	for i, step := range part {
		switch step.Kind {
		case Sent:
			got, err := receive(in)
			if err != nil {
				return fmt.Errorf("%d: want %s\ngot: %w", step.Line, step.Text, err)
			}
			id, err := match(step.Text, got)
			if err != nil {
				return fmt.Errorf("%d: want %s\ngot  %s", step.Line, step.Text, got)
			}
			waiting = append(waiting, id)
		case Got:
			var line []byte
			line, waiting = answer(step.Text, waiting)
			if _, err := nc.Write(append(line, '\r', '\n')); err != nil {
				return left(part[i:])
			}
		case Action:
			verb, rest, _ := strings.Cut(step.Text, " ")
			switch verb {
			case "close":
				return nil
			case "sleep":
				d, _ := time.ParseDuration(rest)
				select {
				case <-time.After(d):
				case <-closed:
				}
			case "raw":
				b, _ := raw(rest)
				if _, err := nc.Write(b); err != nil {
					return left(part[i:])
				}
			}
		}
	}
	if got, err := receive(in); err == nil { // until the client hangs up
		last := 0
		if len(part) > 0 {
			last = part[len(part)-1].Line
		}
		return fmt.Errorf("%d: want nothing more\ngot  %s", last, got)
	}
	return nil
}

// left is the error of a client that hung up before the rest was played: only commands that are left count.
func left(rest Transcript) error {
	for _, s := range rest {
		if s.Kind == Sent {
			return fmt.Errorf("%d: want %s\ngot: %w", s.Line, s.Text, errHungUp)
		}
	}
	return nil
}

func receive(in *json.Decoder) (json.RawMessage, error) {
	var m json.RawMessage
	err := in.Decode(&m)
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		err = errHungUp
	}
	return m, err
}

// match compares two commands but for their ids.
func match(want string, got json.RawMessage) (identity, error) {
	a, ida, err := command([]byte(want))
	if err != nil {
		return identity{}, err
	}
	b, idb, err := command(got)
	if err != nil {
		return identity{}, err
	}
	if !reflect.DeepEqual(a, b) {
		return identity{}, errors.New("differs")
	}
	return identity{ida, idb}, nil
}

// command is a command without its id, and the id. Numbers are compared as they are written.
func command(b []byte) (m map[string]any, id json.RawMessage, err error) {
	o, err := object(string(b))
	if err != nil {
		return nil, nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		return nil, nil, err
	}
	delete(m, "id")
	return m, o["id"], nil
}

// answer gives a recorded reply the id of the command that it answers. Events stay as they are.
func answer(text string, waiting []identity) ([]byte, []identity) {
	m, err := object(text)
	if err != nil || m["return"] == nil && m["error"] == nil {
		return []byte(text), waiting
	}
	i := slices.IndexFunc(waiting, func(id identity) bool { return bytes.Equal(id.script, m["id"]) })
	if i < 0 || bytes.Equal(waiting[i].client, m["id"]) {
		if i >= 0 {
			waiting = slices.Delete(waiting, i, i+1)
		}
		return []byte(text), waiting
	}
	delete(m, "id")
	if waiting[i].client != nil {
		m["id"] = waiting[i].client
	}
	line, err := json.Marshal(m)
	if err != nil {
		return []byte(text), waiting
	}
	return line, slices.Delete(waiting, i, i+1)
}
