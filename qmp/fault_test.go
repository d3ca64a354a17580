package qmp_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"qmigrate/qmp"
	"qmigrate/qmp/qmptest"
)

const (
	greetingLine = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}` + "\r\n"
	readyLine    = `{"return": {}, "id": 1}` + "\r\n"
)

// fake is a monitor that does whatever f does, on the far end of a unix socket pair. The near end is returned.
func fake(t testing.TB, f func(nc net.Conn)) net.Conn {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	near, err := net.Dial("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	os.RemoveAll(dir)
	var running sync.WaitGroup
	running.Go(func() { f(far); far.Close() })
	t.Cleanup(func() { near.Close(); far.Close(); running.Wait() })
	return near
}

// ready greets and negotiates as QEMU does, then f goes on with the client's lines.
func ready(f func(nc net.Conn, in *bufio.Reader)) func(net.Conn) {
	return func(nc net.Conn) {
		in := bufio.NewReader(nc)
		io.WriteString(nc, greetingLine)
		in.ReadString('\n')
		io.WriteString(nc, readyLine)
		f(nc, in)
	}
}

// connect is a Conn to a fake that has negotiated.
func connect(t testing.TB, f func(nc net.Conn, in *bufio.Reader)) *qmp.Conn {
	t.Helper()
	c, err := qmp.NewConn(limit(t), fake(t, ready(f)), qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestNotQMP(t *testing.T) {
	for name, test := range map[string]struct{ greeting, want string }{
		"ssh":       {"SSH-2.0-OpenSSH_9.2p1\r\n", `not a QMP monitor: greeting was "SSH-2.0-OpenSSH_9.2p1": it is an SSH server`},
		"http":      {"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n", `not a QMP monitor: greeting was "HTTP/1.1 400 Bad Request": it is an HTTP server`},
		"http body": {"<!DOCTYPE HTML>\n<html>", `it is an HTTP server`},
		"hmp":       {"QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) ", `greeting was "QEMU 10.0.2 monitor - type 'help' for more information": it is QEMU's human monitor (HMP)`},
		"telnet":    {"\xff\xfb\x01\xff\xfb\x03\xff\xfb\x00\xff\xfd\x00" + greetingLine, `it speaks telnet: give QEMU's -qmp tcp:HOST:PORT,server=on,wait=off`},
		"vnc":       {"RFB 003.008\n", `it is a VNC display`},
		"nbd":       {"NBDMAGICIHAVEOPT", `it is an NBD server`},
		"console":   {"\x1b[2J\x1b[01;01H", `it is a terminal`},
		"long":      {strings.Repeat("x", 500) + "\n", `greeting was "` + strings.Repeat("x", 60) + `"...`},
		"binary":    {"\x16\x03\x01\x02", `greeting was "\x16\x03\x01\x02"`},
		"json":      {`{"jsonrpc": "2.0"}` + "\n", `greeting was "{\"jsonrpc\": \"2.0\"}"`},
		"half":      {`{"QMP": {"ver`, `greeting was "{\"QMP\": {\"ver"`},
		"closed":    {"", `greeting was "": it closed at once`},
		"event":     {`{"event": "STOP"}` + "\n", `greeting was "{\"event\": \"STOP\"}"`},
		"unending":  {`{"QMP": "` + strings.Repeat("x", 100<<10), `greeting was "{\"QMP\": \"xxx`},
		"brackets":  {strings.Repeat(`{"a":[`, 50<<10), `greeting was "{\"a\":[{`},
		"half line": {"{\"QMP\":\n{", `greeting was "{\"QMP\":"`},
	} {
		t.Run(name, func(t *testing.T) {
			for _, kind := range []string{"Conn", "Sampler"} {
				nc := fake(t, func(nc net.Conn) { io.WriteString(nc, test.greeting) })
				var err error
				if kind == "Conn" {
					_, err = qmp.NewConn(limit(t), nc, qmp.Options{})
				} else {
					_, err = qmp.NewSampler(limit(t), nc)
				}
				var broken *qmp.OpError
				if !errors.As(err, &broken) || broken.Op != "greeting" || !strings.Contains(err.Error(), test.want) || len(err.Error()) > 400 {
					t.Errorf("%s: %v\nwant %s", kind, err, test.want)
				}
			}
		})
	}
}

// Some peers speak only when they are spoken to.
func TestKnock(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ answer, want string }{
		"guest agent":     {`{"return": {}, "id": "knock"}` + "\n", "it is a guest agent (QGA)"},
		"no agent":        {`{"id": "knock", "error": {"class": "CommandNotFound", "desc": "unknown"}}` + "\n", "it is a guest agent (QGA)"},
		"http":            {"HTTP/1.1 400 Bad Request\r\n\r\n", "it is an HTTP server"},
		"tls":             {"\x15\x03\x01\x00\x02\x02\x0a", "it speaks TLS: write the endpoint as tcp+tls:"},
		"echo":            {`{"execute":"guest-ping","id":"knock"}` + "\r\n", "it sends back what it gets"},
		"busy until then": {greetingLine + `{"id": "knock", "error": {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation"}}` + "\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				defer nc.Close()
				in := bufio.NewReader(nc)
				if line, _ := in.ReadString('\n'); !strings.Contains(line, `"guest-ping"`) {
					t.Errorf("the knock is %q", line)
				}
				io.WriteString(nc, test.answer)
				if test.want == "" {
					in.ReadString('\n') // qmp_capabilities: an answer that came before it would be nobody's
					io.WriteString(nc, readyLine)
				}
				io.Copy(io.Discard, in)
			}()
			c, err := qmp.Dial(limit(t), "tcp", l.Addr().String(), qmp.Options{})
			switch {
			case test.want == "" && err != nil, test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("%v\nwant %s", err, test.want)
			}
			if c != nil {
				c.Close()
			}
		})
	}
}

func TestBusyMonitor(t *testing.T) {
	silent := func(nc net.Conn) { io.Copy(io.Discard, nc) }
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := qmp.NewConn(ctx, fake(t, silent), qmp.Options{})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another client may hold this monitor") {
		t.Errorf("NewConn: %v", err)
	}
	if _, err = qmp.NewSampler(ctx, fake(t, silent)); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another client") {
		t.Errorf("NewSampler: %v", err)
	}
	canceled, stop := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, stop)
	if _, err = qmp.NewConn(canceled, fake(t, silent), qmp.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// a greeting and then nothing
	mute := func(nc net.Conn) { io.WriteString(nc, greetingLine); io.Copy(io.Discard, nc) }
	for _, dial := range []func(context.Context, net.Conn) error{
		func(ctx context.Context, nc net.Conn) error {
			_, err := qmp.NewConn(ctx, nc, qmp.Options{})
			return err
		},
		func(ctx context.Context, nc net.Conn) error { _, err := qmp.NewSampler(ctx, nc); return err },
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		if err := dial(ctx, fake(t, mute)); !errors.Is(err, context.DeadlineExceeded) ||
			!strings.Contains(err.Error(), "negotiate") ||
			!strings.Contains(err.Error(), "wait for a client of another character device") {
			t.Errorf("no reply to qmp_capabilities: %v", err)
		}
		cancel()
	}
}

// TestSecondClient is the case that TestBusyMonitor plays: the kernel accepts and QEMU never greets.
func TestSecondClient(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			dir := startQEMU(t, version, []string{"m"}, "-machine", "none")
			path := filepath.Join(dir, "m")
			first, err := qmp.Dial(limit(t), "unix", path, qmp.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			for range 4 { // until the socket's queue is full, and then more
				ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
				second, err := qmp.Dial(ctx, "unix", path, qmp.Options{})
				cancel()
				if err == nil {
					second.Close()
				}
				if err == nil || !strings.Contains(err.Error(), "another client may hold this monitor") {
					t.Errorf("second client: %v", err)
				}
			}
			if _, err := first.QueryStatus(limit(t)); err != nil {
				t.Errorf("first client: %v", err)
			}
		})
	}
}

func TestDialNothing(t *testing.T) {
	_, err := qmp.Dial(context.Background(), "unix", filepath.Join(t.TempDir(), "none"), qmp.Options{})
	var broken *qmp.OpError
	if !errors.As(err, &broken) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestDeath cuts a conversation after every byte of what the monitor says: every call has to end, with the right error.
func TestDeath(t *testing.T) {
	script := greetingLine + readyLine + `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}` + "\r\n" +
		`{"return": {"status": "running", "running": true}, "id": 2}` + "\r\n"
	for n := range len(script) {
		nc := fake(t, func(nc net.Conn) {
			io.WriteString(nc, script[:n])
			nc.(*net.UnixConn).CloseWrite() // a reset would lose what is on its way
			io.Copy(io.Discard, nc)
		})
		c, err := qmp.NewConn(limit(t), nc, qmp.Options{})
		if err == nil {
			sub := c.Subscribe(1)
			var wait sync.WaitGroup
			for range 3 {
				wait.Go(func() {
					if _, err := c.QueryStatus(limit(t)); err != nil {
						checkDisconnected(t, n, err)
					}
				})
			}
			wait.Wait()
			<-c.Done()
			checkDisconnected(t, n, c.Err())
			for range sub.C {
			}
			_, err = c.QueryStatus(limit(t))
			c.Close()
			c.Close()
		}
		checkDisconnected(t, n, err)
	}
}

func checkDisconnected(t *testing.T, n int, err error) {
	t.Helper()
	var broken *qmp.OpError
	if !errors.Is(err, qmp.ErrDisconnected) || !errors.As(err, &broken) {
		t.Errorf("cut after %d bytes: %v; want an OpError of ErrDisconnected", n, err)
	}
}

func TestGarbage(t *testing.T) {
	for name, garbage := range map[string]string{
		"text":         "hello\n",
		"half a line":  "{\"return\": {\"status\": \"runn\r\n" + readyLine,
		"half an item": "{\"return\": \r\n{\"return\": {}, \"id\": 2}\r\n",
		"bracket":      "}\n",
		"no JSON":      "{return: 3}\n",
		"wrong types":  `{"error": "no"}` + "\n",
		"array":        "[1]\n",
		"zeros":        strings.Repeat("\x00", 9000),
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, func(nc net.Conn, in *bufio.Reader) {
				in.ReadString('\n')
				io.WriteString(nc, garbage)
				io.Copy(io.Discard, in)
			})
			_, err := c.QueryStatus(limit(t))
			checkDisconnected(t, 0, err)
			if len(err.Error()) > 400 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestHarmless(t *testing.T) {
	c := connect(t, func(nc net.Conn, in *bufio.Reader) {
		in.ReadString('\n')
		for _, line := range []string{
			"\r\n \t\n", `{"novelty": 1}`, `{"return": {}, "id": 77}`, `{"return": {}, "id": "x"}`, `{"return": {}}`, `{"return": {}, "id": 1}`,
			`{"error": {"class": "GenericError", "desc": "late"}, "id": 78}`, `{"event": "NEW", "data": 5}`,
			"{\n    \"return\": {\n        \"status\": \"new-status\",\n        \"running\": false,\n        \"list\": [\n            1\n        ]\n    },\n    \"id\": 2\n}",
		} {
			io.WriteString(nc, line+"\r\n")
		}
		io.Copy(io.Discard, in)
	})
	sub := c.Subscribe(1)
	s, err := c.QueryStatus(limit(t))
	if want := (qmp.Status{Status: "new-status"}); err != nil || s != want {
		t.Errorf("%+v, %v; want %+v", s, err, want)
	}
	if e := <-sub.C; e.Name != "NEW" || string(e.Data) != "5" || !e.QEMUTime.IsZero() {
		t.Errorf("event %+v", e)
	}
}

func TestErrorWithoutID(t *testing.T) {
	c := connect(t, func(nc net.Conn, in *bufio.Reader) {
		in.ReadString('\n')
		in.ReadString('\n')
		io.WriteString(nc, `{"error": {"class": "GenericError", "desc": "JSON parse error, invalid keyword 'x'"}}`+"\r\n")
		io.Copy(io.Discard, in)
	})
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			_, err := c.QueryStatus(limit(t))
			checkDisconnected(t, 0, err)
			var broken *qmp.OpError
			if !strings.Contains(err.Error(), "invalid keyword 'x'") || !errors.As(err, &broken) || broken.Op != "query-status" {
				t.Errorf("%v", err)
			}
		})
	}
	wait.Wait()
}

func TestReplyOrder(t *testing.T) {
	const n = 20
	c := connect(t, func(nc net.Conn, in *bufio.Reader) {
		for range n {
			in.ReadString('\n')
		}
		for id := n + 1; id > 1; id-- { // ids begin at 2 behind qmp_capabilities
			fmt.Fprintf(nc, `{"return": %d, "id": %d}`+"\r\n", id, id)
			fmt.Fprint(nc, `{"event": "TICK"}`+"\r\n")
		}
		io.Copy(io.Discard, in)
	})
	var wait sync.WaitGroup
	var mu sync.Mutex
	seen := make(map[int]bool)
	for range n {
		wait.Go(func() {
			var id int
			if err := c.Execute(limit(t), "x", nil, &id); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			seen[id] = true
		})
	}
	wait.Wait()
	if len(seen) != n {
		t.Errorf("%d different replies, want %d", len(seen), n)
	}
}

func TestContextEnds(t *testing.T) {
	answer := make(chan struct{})
	c := connect(t, func(nc net.Conn, in *bufio.Reader) {
		in.ReadString('\n')
		<-answer
		io.WriteString(nc, `{"return": {"status": "late"}, "id": 2}`+"\r\n")
		in.ReadString('\n')
		io.WriteString(nc, `{"return": {"status": "right"}, "id": 3}`+"\r\n")
		io.Copy(io.Discard, in)
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.QueryStatus(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, qmp.ErrDisconnected) {
		t.Errorf("%v", err)
	}
	close(answer)
	if s, err := c.QueryStatus(limit(t)); err != nil || s.Status != "right" {
		t.Errorf("after a late reply: %+v, %v", s, err)
	}
	if _, err := c.QueryStatus(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("context that had ended before: %v", err)
	}
}

// TestStuckWrite has a monitor that reads nothing: the socket's buffer fills and the writer must not hang.
func TestStuckWrite(t *testing.T) {
	release := make(chan struct{})
	c := connect(t, func(net.Conn, *bufio.Reader) { <-release })
	defer close(release)
	big := map[string]string{"x": strings.Repeat("x", 4<<20)}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	queued := make(chan error)
	time.AfterFunc(time.Second, cancel)
	go func() { // waits for its turn to write
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		time.Sleep(200 * time.Millisecond)
		_, err := c.QueryStatus(ctx)
		queued <- err
	}()
	err := c.Execute(ctx, "big", big, nil)
	if err := <-queued; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("call behind a stuck one: %v", err)
	}
	checkDisconnected(t, 0, err) // half a command is on its way, so the connection is of no more use
	if _, err := c.QueryStatus(limit(t)); !errors.Is(err, qmp.ErrDisconnected) {
		t.Errorf("%v", err)
	}
}

func TestClose(t *testing.T) {
	c := connect(t, func(nc net.Conn, in *bufio.Reader) { io.Copy(io.Discard, in) })
	sub := c.Subscribe(1)
	failed := make(chan error)
	go func() { _, err := c.QueryStatus(limit(t)); failed <- err }()
	time.Sleep(5 * time.Millisecond)
	if c.Err() != nil {
		t.Error(c.Err())
	}
	c.Close()
	if err := <-failed; !errors.Is(err, net.ErrClosed) || errors.Is(err, qmp.ErrDisconnected) {
		t.Errorf("pending call: %v", err)
	}
	if _, ok := <-sub.C; ok {
		t.Error("subscription is open")
	}
	sub.Close()
	if _, ok := <-c.Subscribe(1).C; ok {
		t.Error("subscription to a closed connection is open")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestBadArguments(t *testing.T) {
	c := connect(t, func(nc net.Conn, in *bufio.Reader) { io.Copy(io.Discard, in) })
	for name, args := range map[string]any{"array": []int{1}, "channel": make(chan int), "number": 3} {
		if err := c.Execute(limit(t), "x", args, nil); err == nil || c.Err() != nil {
			t.Errorf("%s: %v, %v", name, err, c.Err())
		}
	}
	if err := c.SetMigrateParameters(limit(t), map[string]any{"downtime-limit": time.Second}); err == nil {
		t.Error("a Duration as parameter: want an error")
	}
	near, far := net.Pipe()
	defer far.Close()
	go func() { ready(func(nc net.Conn, in *bufio.Reader) { io.Copy(io.Discard, in) })(far) }()
	p, err := qmp.NewConn(limit(t), near, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.ExecuteFiles(limit(t), "getfd", nil, nil, os.Stdin); err == nil || p.Err() != nil {
		t.Errorf("descriptor over a pipe: %v, %v", err, p.Err())
	}
}

func TestNoOOB(t *testing.T) {
	script, err := qmptest.Parse([]byte(`
< {"QMP": {"version": {"qemu": {"micro": 0, "minor": 12, "major": 2}, "package": ""}, "capabilities": []}}
> {"execute": "qmp_capabilities", "arguments": {}}
< {"return": {}}
`))
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.Dial(limit(t), "unix", qmptest.ServeTranscript(t, "old", script), qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.ExecuteOOB(limit(t), "migrate-pause", nil, nil); err == nil || !strings.Contains(err.Error(), "2.12.0") {
		t.Errorf("%v", err)
	}
}

// TestFlood sends more events than anybody reads, with a reply behind them.
func TestFlood(t *testing.T) {
	const n = 50000
	c := connect(t, func(nc net.Conn, in *bufio.Reader) {
		in.ReadString('\n')
		out := bufio.NewWriter(nc)
		for i := range n {
			fmt.Fprintf(out, `{"timestamp": {"seconds": 1700000000, "microseconds": %d}, "event": "FLOOD", "data": {"n": %d}}`+"\r\n", i, i)
		}
		fmt.Fprint(out, `{"return": {"status": "dry"}, "id": 2}`+"\r\n")
		out.Flush()
		io.Copy(io.Discard, in)
	})
	idle, small := c.Subscribe(10), c.Subscribe(0)
	s, err := c.QueryStatus(limit(t))
	if err != nil || s.Status != "dry" {
		t.Fatalf("%+v, %v", s, err)
	}
	if idle.Dropped() != n-10 || small.Dropped() != n-1 {
		t.Errorf("dropped %d and %d, want %d and %d", idle.Dropped(), small.Dropped(), n-10, n-1)
	}
	for i := range 10 {
		e := <-idle.C
		if want := fmt.Sprintf(`{"n": %d}`, i); string(e.Data) != want || e.QEMUTime != time.Unix(1700000000, int64(i)*1000) {
			t.Errorf("event %+v, want %s", e, want)
		}
	}
	idle.Close()
	if _, ok := <-idle.C; ok {
		t.Error("closed subscription is open")
	}
}

// TestLongLine has replies and events far beyond any scanner's buffer, in pieces.
func TestLongLine(t *testing.T) {
	const n = 50 << 20
	long := bytes.Repeat([]byte("x"), n)
	c := connect(t, func(nc net.Conn, in *bufio.Reader) {
		in.ReadString('\n')
		io.WriteString(nc, `{"event": "LONG", "data": "`)
		nc.Write(long)
		io.WriteString(nc, `"}{"return": "`)
		nc.Write(long)
		io.WriteString(nc, `", "id": 2}`+"\r\n")
		in.ReadString('\n')
		io.WriteString(nc, `{"return": "short", "id": 3}`+"\r\n")
		io.Copy(io.Discard, in)
	})
	sub := c.Subscribe(1)
	var s string
	if err := c.Execute(limit(t), "x", nil, &s); err != nil || len(s) != n {
		t.Errorf("%d bytes, %v", len(s), err)
	}
	if e := <-sub.C; len(e.Data) != n+2 {
		t.Errorf("event of %d bytes", len(e.Data))
	}
	if err := c.Execute(limit(t), "x", nil, &s); err != nil || s != "short" {
		t.Errorf("%q, %v", s, err)
	}
}

func TestLogger(t *testing.T) {
	var log bytes.Buffer
	var lines []string
	o := qmp.Options{
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Trace:  func(sent bool, line []byte) { lines = append(lines, fmt.Sprint(sent, " ", string(line))) },
	}
	c, err := qmp.NewConn(limit(t), fake(t, ready(func(nc net.Conn, in *bufio.Reader) { io.Copy(io.Discard, in) })), o)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, want := range []string{"msg=sent line=", "msg=received line=", "qmp_capabilities"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log %s\nwant %s", &log, want)
		}
	}
	if len(lines) != 3 || lines[0] != "false "+strings.TrimSpace(greetingLine) || !strings.HasPrefix(lines[1], `true {"execute":"qmp_capabilities"`) {
		t.Errorf("traced %q", lines)
	}
}

// gate is a slog.Handler that holds the reader at a line until it is opened.
type gate struct {
	slog.Handler
	at   string
	held chan struct{} // closed when the reader has come to the line
	open chan struct{}
	once *sync.Once
}

func (g gate) Enabled(context.Context, slog.Level) bool { return true }
func (g gate) WithAttrs([]slog.Attr) slog.Handler       { return g }
func (g gate) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if strings.Contains(a.Value.String(), g.at) {
			g.once.Do(func() { close(g.held); <-g.open })
		}
		return true
	})
	return nil
}

// TestLastEvents: what a QEMU has sent before it died reaches the subscribers, also when a command that could not be
// written any more has told of its death before the events were read. Whether the guest has run may hang on the last
// of them.
func TestLastEvents(t *testing.T) {
	g := gate{at: "FIRST", held: make(chan struct{}), open: make(chan struct{}), once: new(sync.Once)}
	nc := fake(t, ready(func(nc net.Conn, _ *bufio.Reader) {
		io.WriteString(nc, `{"event":"FIRST"}`+"\n"+`{"event":"RESUME"}`+"\n")
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := qmp.NewConn(ctx, nc, qmp.Options{Logger: slog.New(g)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sub := c.Subscribe(8)
	<-g.held
	for c.Err() == nil { // the first may still be written
		limited, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		if c.Execute(limited, "query-status", nil, nil) == nil {
			t.Error("a dead QEMU has answered")
		}
		cancel()
	}
	close(g.open)
	var got []string
	for ev := range sub.C {
		got = append(got, ev.Name)
	}
	if len(got) != 2 || got[1] != "RESUME" {
		t.Errorf("the subscriber has %q", got)
	}
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "write") {
		t.Errorf("the connection ended for %v, want the write that failed first", err)
	}
}
