package qmptest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t testing.TB, text string) Transcript {
	t.Helper()
	script, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return script
}

// talk replays the script's first part to a client that writes lines and reads as much as it gets.
func talk(t *testing.T, script string, lines ...string) (got string, err error) {
	t.Helper()
	near, far := net.Pipe()
	near.SetDeadline(time.Now().Add(10 * time.Second))
	ended := make(chan error, 1)
	go func() {
		err := replay(far, parse(t, script).connections()[0], nil)
		far.Close()
		ended <- err
	}()
	all := make(chan string)
	go func() { b, _ := io.ReadAll(near); all <- string(b) }()
	for _, l := range lines {
		io.WriteString(near, l)
	}
	select {
	case err = <-ended:
		near.Close()
		return <-all, err
	case <-time.After(100 * time.Millisecond): // it waits for the client to hang up
		near.Close()
		return <-all, <-ended
	}
}

func TestReplay(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		lines  []string
		want   string
	}{
		"the client's id": {"> {\"execute\": \"a\", \"id\": 1}\n< {\"return\": {}, \"id\": 1}", []string{`{"id":"x7","execute":"a"}`}, `{"id":"x7","return":{}}`},
		"no id in client": {"> {\"execute\": \"a\", \"id\": 1}\n< {\"return\": {}, \"id\": 1}", []string{`{"execute":"a"}`}, `{"return":{}}`},
		"no id in script": {"> {\"execute\": \"a\"}\n< {\"return\": {}}", []string{`{"execute":"a", "id": 5}`}, `{"id":5,"return":{}}`},
		"no ids":          {"> {\"execute\": \"a\"}\n< {\"return\":  {}}", []string{`{"execute":"a"}`}, `{"return":  {}}`},
		"error without id": {"> {\"execute\": \"a\", \"id\": 1}\n< {\"error\": {\"class\": \"C\", \"desc\": \"d\"}}", []string{`{"execute":"a", "id": 5}`},
			`{"error": {"class": "C", "desc": "d"}}`},
		"event between": {"> {\"execute\": \"a\", \"id\": 1}\n< {\"event\": \"E\"}\n< {\"return\": 1, \"id\": 1}", []string{`{"execute":"a", "id": 5}`},
			`{"event": "E"}{"id":5,"return":1}`},
		"crossed": {"> {\"execute\": \"a\", \"id\": 1}\n> {\"execute\": \"b\", \"id\": 2}\n< {\"return\": 2, \"id\": 2}\n< {\"return\": 1, \"id\": 1}",
			[]string{`{"execute":"a", "id": 11}`, `{"execute":"b", "id": 12}`}, `{"id":12,"return":2}{"id":11,"return":1}`},
		"raw and close":  {"! raw \"a\\r\\n\"\n! raw half\n! sleep 1ms\n! close\n> {}", nil, "a\r\nhalf"},
		"order of names": {"> {\"execute\": \"a\", \"arguments\": {\"x\": 1, \"y\": [\"s\"]}}", []string{`{"arguments":{"y":["s"],"x":1},"execute":"a"}` + "\r\n"}, ""},
		"empty":          {"# nothing", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := talk(t, test.script, test.lines...)
			if name != "raw and close" {
				got = strings.ReplaceAll(got, "\r\n", "")
			}
			if err != nil || got != test.want {
				t.Errorf("got %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

// TestReplayFails is what Serve is for: every way to leave a transcript has to be noticed.
func TestReplayFails(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		lines  []string
		want   string
	}{
		"other command":   {"#\n> {\"execute\": \"a\"}", []string{`{"execute":"b"}`}, "2: want {\"execute\": \"a\"}\ngot  {\"execute\":\"b\"}"},
		"number as text":  {"> {\"execute\": \"a\", \"arguments\": {\"x\": 1}}", []string{`{"execute":"a","arguments":{"x":"1"}}`}, "1: want"},
		"other number":    {"> {\"execute\": \"a\", \"arguments\": {\"x\": 9007199254740993}}", []string{`{"execute":"a","arguments":{"x":9007199254740992}}`}, "1: want"},
		"more argument":   {"> {\"execute\": \"a\"}", []string{`{"execute":"a","arguments":{}}`}, "1: want"},
		"not an object":   {"> {\"execute\": \"a\"}", []string{`[1]`}, "1: want"},
		"not JSON":        {"> {\"execute\": \"a\"}", []string{`hello`}, "1: want"},
		"hung up":         {"> {\"execute\": \"a\"}", nil, "the client hung up"},
		"hung up later":   {"> {\"execute\": \"a\"}\n< {\"return\": {}}\n> {\"execute\": \"b\"}", []string{`{"execute":"a"}`}, "the client hung up"},
		"one too many":    {"> {\"execute\": \"a\"}", []string{`{"execute":"a"}`, `{"execute":"c"}`}, "1: want nothing more\ngot  {\"execute\":\"c\"}"},
		"nothing to send": {"# nothing", []string{`{"execute":"c"}`}, "want nothing more"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := talk(t, test.script, test.lines...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, %v; want %s", got, err, test.want)
			}
		})
	}
}

// failing is a test that notes its failure.
type failing struct {
	testing.TB
	errors chan string
}

func (f *failing) Errorf(format string, args ...any) { f.errors <- fmt.Sprintf(format, args...) }

func TestServeFailsTheTest(t *testing.T) {
	f := &failing{TB: t, errors: make(chan string, 1)}
	name := filepath.Join(t.TempDir(), "script.qmp")
	if err := os.WriteFile(name, []byte("\n# a\n> {\"execute\": \"a\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("unix", Serve(f, name))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, `{"execute": "b"}`)
	if got := <-f.errors; !strings.HasPrefix(got, "script.qmp:3: want ") {
		t.Errorf("got %s", got)
	}
}

func TestServeConnections(t *testing.T) {
	socket := ServeTranscript(t, "three", parse(t, "< {\"n\": 1}\n! close\n< {\"n\": 2}\n> {}\n! next\n< {\"n\": 3}\n"))
	for _, want := range []string{"1", "2", "3", "1", "2"} {
		nc, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(nc).ReadString('\n')
		if err != nil || line != "{\"n\": "+want+"}\r\n" {
			t.Errorf("got %q, %v; want %s", line, err, want)
		}
		if want == "2" {
			io.WriteString(nc, "{}")
		}
		nc.Close()
	}
}

func TestRecorder(t *testing.T) {
	var r Recorder
	r.Add(Comment, "by hand")
	r.Trace(false, []byte("{\"QMP\": {}}\r\n"))
	r.Trace(true, []byte(`{"execute": "/tmp/x/y"}`))
	r.Add(Action, "close")
	want := "# by hand\n< {\"QMP\": {}}\n> {\"execute\": \"/run/y\"}\n! close\n"
	if got := r.Transcript("/tmp/x", "/run").String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := parse(t, want).String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestTranscripts reads all that there are; a folder without any is a mistake.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("../../testdata/transcripts/*/*.qmp")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		script, err := Parse(b)
		if err != nil || script.String() != string(b) {
			t.Errorf("%s: %v, or not as it is written", name, err)
		}
		if strings.Contains(string(b), "/tmp") || strings.Contains(string(b), "/home") {
			t.Errorf("%s has a path of the machine that recorded it", name)
		}
	}
}

func TestParseBad(t *testing.T) {
	for _, text := range []string{"x", "> 5", "< [", "> null", "! jump", "! sleep", "! sleep 5", "! raw \"x", "! close now", "!"} {
		if s, err := Parse([]byte("# fine\n" + text)); err == nil || s != nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v, %v", text, s, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("../../testdata/transcripts/*/*.qmp")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("! raw \"a\\r\"\r\n!  sleep  5ms \n#\n#x\n\n>{}\n! raw\n! next"))
	f.Fuzz(func(t *testing.T, b []byte) {
		script, err := Parse(b)
		if err != nil {
			if script != nil {
				t.Fatalf("%v beside %v", script, err)
			}
			return
		}
		again, err := Parse([]byte(script.String()))
		if err != nil {
			t.Fatalf("%q became %q: %v", b, script, err)
		}
		for i := range script {
			script[i].Line = again[i].Line // blank lines are not kept
		}
		if !reflect.DeepEqual(script, again) {
			t.Fatalf("%q became %q", b, again)
		}
		n := 0
		for _, part := range script.connections() {
			n += len(part)
		}
		if n > len(script) || len(script.connections()) == 0 {
			t.Fatalf("%d steps in %q", n, script)
		}
	})
}
