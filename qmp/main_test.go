package qmp_test

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"qmigrate/qmp"
	"qmigrate/qmp/qmptest"
)

var update = flag.Bool("update", false, "record the transcripts anew from real QEMUs")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// versions are those that have transcripts, and that a complete test run has as programs.
var versions = []string{"7.2", "10.0", "11.1"}

const transcripts = "../testdata/transcripts"

// wirePath stands in transcripts for the folder of the test that was recorded.
const wirePath = "/run/qmigrate"

// findQEMU is the program of that version: QMIGRATE_QEMU_7_2 and the like, or what make deps has unpacked. Without it
// the test is skipped, or fails with QMIGRATE_REQUIRE_QEMU=1.
func findQEMU(t testing.TB, version string) string {
	t.Helper()
	variable := "QMIGRATE_QEMU_" + strings.ReplaceAll(version, ".", "_")
	if path := os.Getenv(variable); path != "" {
		return path
	}
	cache := os.Getenv("QMIGRATE_CACHE")
	if cache == "" {
		if dir, err := os.UserCacheDir(); err == nil {
			cache = filepath.Join(dir, "qmigrate")
		}
	}
	path := filepath.Join(cache, "qemu-"+version, "qemu-system-x86_64")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	text := fmt.Sprintf("no QEMU %s: %s is not set and %s is not there (make deps)", version, variable, path)
	if os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1" {
		t.Fatal(text)
	}
	t.Skip(text)
	return ""
}

// startQEMU runs QEMU until the test ends. Its monitors are the sockets named in the folder returned.
func startQEMU(t testing.TB, version string, monitors []string, args ...string) (dir string) {
	t.Helper()
	program := findQEMU(t, version)
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	args = append([]string{"-display", "none", "-nodefaults"}, args...)
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "FOLDER", dir)
	}
	for _, m := range monitors {
		args = append(args, "-qmp", "unix:"+filepath.Join(dir, m)+",server=on,wait=off")
	}
	var log bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	for _, m := range monitors {
		for {
			nc, err := net.Dial("unix", filepath.Join(dir, m))
			if err == nil {
				nc.Close()
				break
			}
			select {
			case <-ended:
				t.Fatalf("%s ended: %s", program, &log)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	return dir
}

// guestArgs is the smallest machine that migrates.
var guestArgs = []string{"-machine", "pc-q35-7.2", "-accel", "tcg", "-m", "64", "-S"}

// lab is what a test runs on: a QEMU, or two, or their transcripts.
type lab struct {
	version string
	dir     string // where QEMU's files are, as its commands have to name it
	dial    func(monitor string) (net.Conn, error)
	trace   func(monitor string) func(sent bool, line []byte)
	ended   func(monitor string) // notes that QEMU hung up
}

// conn connects to a monitor for the length of the test.
func (l *lab) conn(t *testing.T, monitor string) *qmp.Conn {
	t.Helper()
	nc, err := l.dial(monitor)
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(limit(t), nc, qmp.Options{Trace: l.trace(monitor)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// sampler is conn for a Sampler.
func (l *lab) sampler(t *testing.T, monitor string) *qmp.Sampler {
	t.Helper()
	nc, err := l.dial(monitor)
	if err != nil {
		t.Fatal(err)
	}
	s, err := qmp.NewSampler(limit(t), &traced{Conn: nc, trace: l.trace(monitor)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// traced gives a Sampler what qmp.Options.Trace is for a Conn.
type traced struct {
	net.Conn
	trace func(sent bool, line []byte)
	buf   []byte
}

func (c *traced) Write(b []byte) (int, error) {
	c.note(true, b)
	return c.Conn.Write(b)
}

func (c *traced) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.buf = append(c.buf, b[:n]...)
	if i := bytes.LastIndexByte(c.buf, '\n'); i >= 0 {
		for s := bufio.NewScanner(bytes.NewReader(c.buf[:i])); s.Scan(); {
			c.note(false, s.Bytes())
		}
		c.buf = c.buf[i+1:]
	}
	return n, err
}

func (c *traced) note(sent bool, line []byte) {
	if c.trace != nil {
		c.trace(sent, line)
	}
}

// limit is a context that ends long after a test should have.
func limit(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// forEachMonitor runs f on every real QEMU and on the transcripts of every version. Guests are QEMU's arguments by the
// name of the monitor, which is its transcript's name too. With -update the real run is recorded.
func forEachMonitor(t *testing.T, guests map[string][]string, f func(t *testing.T, l *lab)) {
	for _, version := range versions {
		folder := filepath.Join(transcripts, "qemu-"+version)
		t.Run("real/qemu-"+version, func(t *testing.T) {
			l := &lab{version: version}
			dirs := make(map[string]string)
			for role, args := range guests {
				dirs[role] = startQEMU(t, version, []string{role}, args...)
			}
			var err error
			if l.dir, err = os.MkdirTemp("", "qmp"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(l.dir) })
			l.dial = func(role string) (net.Conn, error) { return net.Dial("unix", filepath.Join(dirs[role], role)) }
			var mu sync.Mutex
			recorders := make(map[string]*qmptest.Recorder)
			l.trace = func(role string) func(bool, []byte) {
				if !*update {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				r := recorders[role]
				if r == nil {
					r = new(qmptest.Recorder)
					r.Add(qmptest.Comment, "Recorded from a real QEMU: go test ./qmp -run "+strings.Split(t.Name(), "/")[0]+" -update")
					recorders[role] = r
				} else {
					r.Add(qmptest.Action, "next")
				}
				return r.Trace
			}
			l.ended = func(role string) {
				if r := recorders[role]; r != nil {
					r.Add(qmptest.Action, "close")
				}
			}
			f(t, l)
			if t.Failed() {
				return
			}
			for role, r := range recorders {
				if err := os.MkdirAll(folder, 0o755); err != nil {
					t.Fatal(err)
				}
				text := r.Transcript(l.dir, wirePath).String()
				if err := os.WriteFile(filepath.Join(folder, role+".qmp"), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
		t.Run("transcript/qemu-"+version, func(t *testing.T) {
			l := &lab{version: version, dir: wirePath, trace: func(string) func(bool, []byte) { return nil }, ended: func(string) {}}
			sockets := make(map[string]string)
			for role := range guests {
				sockets[role] = qmptest.Serve(t, filepath.Join(folder, role+".qmp"))
			}
			l.dial = func(role string) (net.Conn, error) { return net.Dial("unix", sockets[role]) }
			f(t, l)
		})
	}
}
