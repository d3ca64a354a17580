package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest/within"
)

// count is a task of the tests: it gives the numbers up to the one that it is given, and then waits for its end if that
// is below 0.
func count() Task[int, int] {
	return Task[int, int]{Name: "test.count", Work: func(ctx context.Context, at Host, to int, give func(int) error) error {
		for i := range max(to, -to) {
			if err := give(i); err != nil {
				return err
			}
		}
		if to >= 0 {
			return nil
		}
		removed, err := Note(ctx, "test", "a mark", at.Name(), false)
		if err != nil {
			return err
		}
		<-ctx.Done()
		removed()
		return nil
	}}
}

// lasts is a lasting task of the tests: it makes a folder and has it until a file "end" is in it.
func lasts() Task[string, int] {
	return Task[string, int]{Name: "test.lasts", Lasting: true, Work: func(ctx context.Context, _ Host, dir string, give func(int) error) error {
		removed, err := Note(ctx, "test", dir, dir, false)
		if err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		_ = give(os.Getpid()) // whoever has got it may be gone by now
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(dir, "end")); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		err = os.RemoveAll(dir)
		removed()
		return err
	}}
}

// serveTests makes the test's own program a helper.
func serveTests() {
	if len(os.Args) != 2 || os.Args[1] != "serve" {
		return
	}
	clock, err := ParseDrift(os.Getenv("QMIGRATE_TEST_CLOCK"))
	if err == nil {
		err = Helper{Tasks: []Served{count(), lasts()}, Clock: clock,
			Undo: map[string]func(context.Context, Host, json.RawMessage) error{
				"test": func(_ context.Context, _ Host, what json.RawMessage) error {
					var name string
					return errors.Join(json.Unmarshal(what, &name), os.RemoveAll(name))
				},
			},
			Holds: func(_ context.Context, _ Host, _ Process, folder string) bool {
				return strings.Contains(folder, "holds")
			},
		}.Serve(os.Stdin, os.Stdout)
	}
	if err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	os.Exit(0)
}

// farHost is this machine behind a helper of its own.
func farHost(t *testing.T, cache string, env ...string) *Far {
	t.Helper()
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	w := way{name: "test:far", env: env, explain: func(said string, err error) error { return errors.Join(err, errors.New(said)) }}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f, err := w.dial(ctx, program, cache)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFarFiles(t *testing.T) {
	f := farHost(t, t.TempDir())
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := f.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "file")
	data := bytes.Repeat([]byte("0123456789"), 300_000) // more than a stream's window
	if err := f.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := f.ReadFile(name); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	info, err := f.Stat(name)
	if err != nil || info.Size() != int64(len(data)) || info.Mode() != 0o600 || info.IsDir() || info.Name() != "file" {
		t.Errorf("%+v, %v", info, err)
	}
	_, err = f.Stat(name + "x")
	if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
	if err := f.RemoveAll(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	ours := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(ours, data, 0o755); err != nil {
		t.Fatal(err)
	}
	// The host has the very file under this name. By a name that means something here only, it is sent.
	if there, err := f.Put(within.Context(t), ours); err != nil || there != ours {
		t.Errorf("%s is there, and was sent to %s, %v", ours, there, err)
	}
	t.Chdir(filepath.Dir(ours))
	var there [2]string
	for i := range there {
		if there[i], err = f.Put(within.Context(t), filepath.Base(ours)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(there[i]); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if err := os.Chtimes(there[0], time.Unix(1, 0), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(there[0]); err != nil || there[0] == ours || there[0] != there[1] || info.ModTime() != time.Unix(1, 0) {
		t.Errorf("it was sent twice: %v, %v", there, err)
	}
}

func TestFarConnections(t *testing.T) {
	f := farHost(t, t.TempDir())
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				b := make([]byte, 100)
				for n := 0; !bytes.HasSuffix(b[:n], []byte("quit")); {
					if n, err = nc.Read(b); err != nil {
						return
					}
					_, _ = nc.Write(b[:n])
				}
			}()
		}
	}()
	nc, err := f.Dial(within.Context(t), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if pid := Listener(nc); pid != os.Getpid() {
		t.Errorf("process %d listens, want %d", pid, os.Getpid())
	}
	if _, err := nc.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 6)
	if _, err := io.ReadFull(nc, b); err != nil || string(b) != "hello\n" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := nc.Write([]byte("quit")); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(nc); err != nil || string(b) != "quit" { // the far end has closed, and the channel has not
		t.Errorf("%q, %v", b, err)
	}
	for range 2 {
		if err := nc.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := f.Dial(within.Context(t), "unix", path+"x"); !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
	far, err := f.Listen(within.Context(t), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out, err := net.Dial("tcp", far.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := far.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte("inward")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(in, b); err != nil || string(b) != "inward" {
		t.Errorf("%q, %v", b, err)
	}
	if err := far.Close(); err != nil {
		t.Error(err)
	}
	if _, err := far.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	// a channel that closes is not the end of what is behind it
	nc, err = f.Dial(within.Context(t), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	var lost *ChannelError
	if _, err := nc.Read(b); !errors.As(err, &lost) {
		t.Errorf("%v, want a *ChannelError", err)
	}
	if _, err := f.Dial(within.Context(t), "unix", path); !errors.As(err, &lost) {
		t.Errorf("%v, want a *ChannelError", err)
	}
}

// A caller that closes lets go of the far end, whatever that still has to say.
func TestFarLetsGo(t *testing.T) {
	f := farHost(t, t.TempDir())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		for b := make([]byte, 1<<16); err == nil; _, err = nc.Write(b) {
		}
	}()
	nc, err := f.Dial(within.Context(t), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	reading := make(chan error)
	go func() {
		_, err := io.ReadFull(nc, make([]byte, 1<<22))
		if err == nil {
			for !errors.Is(err, net.ErrClosed) && err == nil {
				_, err = nc.Read(make([]byte, 1))
			}
		}
		reading <- err
	}()
	nc.Close()
	if err, _ := within.Receive(t, "the reader's end", reading); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	within.Receive(t, "the far end's end", ended)
}

func TestFarProcesses(t *testing.T) {
	f := farHost(t, t.TempDir())
	var out, errs bytes.Buffer
	p, err := f.Start(within.Context(t), Command{Args: []string{"sh", "-c", "cat; echo bad >&2; exit 3"}, Stdin: strings.NewReader("in"),
		Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := p.Err(); err == nil || err.Error() != "exit status 3" || out.String() != "in" || errs.String() != "bad\n" {
		t.Errorf("%v, %q, %q", err, out.String(), errs.String())
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	if u, err := p.Usage(); err != nil || u.PeakRSS == 0 {
		t.Errorf("%+v, %v", u, err)
	}
	p, err = f.Start(within.Context(t), Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	again, err := f.FindProcess(within.Context(t), p.PID(), p.StartTime())
	if err != nil {
		t.Fatal(err)
	}
	if all, err := again.(Scheduled).Threads(); err != nil || !slices.Equal(all, []int{p.PID()}) {
		t.Errorf("%v, %v", all, err)
	}
	if err := p.Kill(within.Context(t)); err != nil {
		t.Error(err)
	}
	<-again.Done()
	<-p.Done()
	if err := p.Err(); err == nil || err.Error() != "signal: killed" {
		t.Error(err)
	}
	if _, err := f.FindProcess(within.Context(t), p.PID(), p.StartTime()); !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	if _, err := f.Start(within.Context(t), Command{Args: []string{"/no/such/program"}}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestFarTask(t *testing.T) {
	f := farHost(t, t.TempDir())
	for _, h := range []Host{f, Local()} {
		var got []int
		err := count().Run(within.Context(t), h, 1000, func(n int) error { got = append(got, n); return nil })
		if err != nil || len(got) != 1000 || got[999] != 999 {
			t.Errorf("%s: %d, %v", h.Name(), len(got), err)
		}
		ctx, cancel := context.WithCancel(within.Context(t))
		err = count().Run(ctx, h, -3, func(n int) error {
			if n == 2 {
				cancel()
			}
			return nil
		})
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", h.Name(), err)
		}
		enough := errors.New("enough")
		if err := count().Run(within.Context(t), h, 1e6, func(n int) error { return enough }); !errors.Is(err, enough) {
			t.Errorf("%s: %v", h.Name(), err)
		}
	}
	if err := (Task[int, int]{Name: "other"}).Run(within.Context(t), f, 1, nil); err == nil || !strings.Contains(err.Error(), "task other") {
		t.Error(err)
	}
}

// A clock that is off by 5 s and drifts by 300 ppm is known within the stated error.
func TestFarClock(t *testing.T) {
	d := Drift{Offset: 5 * time.Second, PPM: 300, From: time.Now().Add(-time.Hour)}
	f := farHost(t, t.TempDir(), "QMIGRATE_TEST_CLOCK="+strings.Join([]string{strconv.FormatInt(int64(d.Offset), 10), "300",
		strconv.FormatInt(d.From.UnixNano(), 10)}, ","))
	c, err := f.Clock(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	truth := d.At(c.At).Sub(c.At.Round(0))
	if c.Error <= 0 || (c.Offset-truth).Abs() > c.Error {
		t.Errorf("offset %v within %v, is %v", c.Offset, c.Error, truth)
	}
}

// What a helper made goes with it, but for a process that may hold a guest and what that needs. What one left that was
// killed, the next one removes.
func TestFarLeaves(t *testing.T) {
	for _, how := range []string{"closed", "helper killed"} {
		t.Run(how, func(t *testing.T) {
			cache, dir := t.TempDir(), t.TempDir()
			f := farHost(t, cache)
			start := func(folder string) Process {
				if err := f.MkdirAll(folder, 0o700); err != nil {
					t.Fatal(err)
				}
				p, err := f.Start(within.Context(t), Command{Args: []string{"sleep", "1000"}, Log: filepath.Join(folder, "log")})
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			goes, stays := start(filepath.Join(dir, "goes")), start(filepath.Join(dir, "holds"))
			defer syscall.Kill(stays.PID(), syscall.SIGKILL)
			if err := f.MkdirAll(filepath.Join(dir, "other"), 0o700); err != nil {
				t.Fatal(err)
			}
			if how == "closed" {
				f.Close()
			} else {
				if err := syscall.Kill(f.hello.PID, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				<-f.Closed()
				f.Close()
				if _, err := os.Stat(filepath.Join(dir, "other")); err != nil {
					t.Fatal("nobody could have removed it yet")
				}
			}
			next := farHost(t, cache)
			said := strings.Join(next.Said(), "\n")
			if !strings.Contains(said, "process "+strconv.Itoa(stays.PID())) {
				t.Errorf("it says %q, and nothing of process %d", said, stays.PID())
			}
			if _, err := FindProcess(goes.PID(), goes.StartTime()); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("the process that holds no guest: %v", err)
			}
			if _, err := FindProcess(stays.PID(), stays.StartTime()); err != nil {
				t.Errorf("the process that may hold a guest: %v", err)
			}
			var left []string
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				left = append(left, e.Name())
			}
			if !slices.Equal(left, []string{"holds"}) {
				t.Errorf("left: %v", left)
			}
			select {
			case <-stays.Done():
				t.Error("a process is taken for dead because its channel closed")
			default:
			}
		})
	}
}

// What a lasting task has stays when the channel closes, as long as the task goes on, and goes with a helper that is
// killed. A file may be kept.
func TestFarLasting(t *testing.T) {
	for _, how := range []string{"closed", "helper killed"} {
		t.Run(how, func(t *testing.T) {
			cache, dir := t.TempDir(), t.TempDir()
			f := farHost(t, cache)
			folder, kept := filepath.Join(dir, "tunnel"), filepath.Join(dir, "kept")
			if err := f.MkdirAll(kept, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := f.Keep(within.Context(t), kept); err != nil {
				t.Fatal(err)
			}
			begun := make(chan int, 1)
			go func() {
				_ = lasts().Run(within.Context(t), f, folder, func(pid int) error { begun <- pid; return nil })
			}()
			pid, _ := within.Receive(t, "the task's first word", begun)
			helper, err := FindProcess(pid, must(StartTime(pid)))
			if err != nil {
				t.Fatal(err)
			}
			if how == "helper killed" {
				if err := helper.Kill(within.Context(t)); err != nil {
					t.Fatal(err)
				}
				<-f.Closed()
				farHost(t, cache)
				if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the folder of a task whose helper was killed: %v", err)
				}
				return
			}
			f.session.Close() // and not Close, which would wait for the task
			<-f.Closed()
			other := farHost(t, cache) // it would remove what nobody has
			if said := other.Said(); len(said) > 0 {
				t.Errorf("%q", said)
			}
			if _, err := os.Stat(folder); err != nil {
				t.Error(err)
			}
			if err := os.WriteFile(filepath.Join(folder, "end"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			select {
			case <-helper.Done():
			case <-time.After(within.Limit):
				t.Error("the helper does not end with its task")
			}
			if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the folder of a task that has ended: %v", err)
			}
			if _, err := os.Stat(kept); err != nil {
				t.Error(err)
			}
			if left, _ := filepath.Glob(filepath.Join(cache, "helpers", strconv.Itoa(pid)+"-*")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A tree goes over once, whole and as it is; what is left out is no part of it.
func TestFarTree(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"bin/program": 0o755, "share/data": 0o640, "skipped": 0o644} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte(name), 100_000), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../bin/program", filepath.Join(dir, "share/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "read-only"), 0o555); err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	f := farHost(t, cache)
	skip := func(name string) bool { return name == "skipped" }
	there, err := f.PutTree(within.Context(t), dir, skip)
	if err != nil {
		t.Fatal(err)
	}
	ours, _ := treeItems(dir, skip)
	theirs, _ := treeItems(there, nil)
	if !slices.Equal(ours, theirs) || len(theirs) != 6 {
		t.Errorf("%+v\n%+v", ours, theirs)
	}
	if b, err := os.ReadFile(filepath.Join(there, "share/link")); err != nil || len(b) != 1_100_000 {
		t.Errorf("%d, %v", len(b), err)
	}
	before, _ := os.Stat(there)
	again, err := f.PutTree(within.Context(t), dir, skip)
	if after, _ := os.Stat(there); err != nil || again != there || !os.SameFile(before, after) {
		t.Errorf("%s, %v", again, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/program"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if other, err := f.PutTree(within.Context(t), dir, skip); err != nil || other == there {
		t.Errorf("%s, %v", other, err)
	}
	if entries, _ := os.ReadDir(filepath.Join(cache, "trees")); len(entries) != 2 {
		t.Errorf("%v", entries)
	}
}

// once is a context that ends as soon as it has been looked at.
type once struct {
	context.Context
	looked bool
}

func (o *once) Err() error {
	if o.looked {
		return context.Canceled
	}
	o.looked = true
	return nil
}

func (o *once) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

// A process that has been asked for is not forgotten because its caller waits no longer.
func TestFarStartIsWhole(t *testing.T) {
	f := farHost(t, t.TempDir())
	p, err := f.Start(&once{Context: t.Context()}, Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(within.Context(t)); err != nil {
		t.Error(err)
	}
}

// An answer that comes before everything was sent is heard: nobody reads the rest.
func TestFarAnswersEarly(t *testing.T) {
	f := farHost(t, t.TempDir())
	gone := f.as(Like{UID: os.Getuid(), GID: os.Getgid(), Among: &found{pid: 1 << 30, start: 1}})
	said := make(chan error, 1)
	go func() { said <- gone.WriteFile(filepath.Join(t.TempDir(), "x"), make([]byte, 4<<20), 0o600) }()
	if err, _ := within.Receive(t, "the answer", said); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("%v, want that the process is not there", err)
	}
}

// A size that the other side only claims is no reason to make room, nor to fall.
func TestReadSized(t *testing.T) {
	for _, size := range []int64{-1, 4, 1 << 62} {
		if b, err := readSized(strings.NewReader("abc"), size); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d: %q, %v", size, b, err)
		}
	}
	if b, err := readSized(strings.NewReader("abcd"), 3); err != nil || string(b) != "abc" {
		t.Errorf("%q, %v", b, err)
	}
}

// A process of which it is not known whether it is dead keeps its folder.
func TestLedgerKeepsWhatIsNotKnown(t *testing.T) {
	dir := t.TempDir()
	l := &ledger{at: machine{}, all: []entry{
		{Kind: madeFile, Path: dir},
		{Kind: madeProcess, PID: os.Getpid(), Path: dir, Name: "qemu"}, // its start time could not be read
	}}
	removed, kept, err := l.undo(within.Context(t))
	if err == nil || len(removed) > 0 || len(kept) != 2 || len(l.all) != 2 {
		t.Errorf("removed %v, kept %v, %v", removed, kept, err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}

// What a process needs that holds a guest, and whose folder is not known, may be anything.
func TestLedgerKeepsForAProcessWithoutFolder(t *testing.T) {
	dir := t.TempDir()
	start, err := StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	l := &ledger{at: machine{}, all: []entry{{Kind: madeFile, Path: dir}, {Kind: madeProcess, PID: os.Getpid(), Start: start}}}
	removed, kept, err := l.undo(within.Context(t))
	if err != nil || len(removed) > 0 || len(kept) != 2 {
		t.Errorf("removed %v, kept %v, %v", removed, kept, err)
	}
}

// What a helper left that was killed is not removed while another one has a process in it.
func TestLedgerOfOneAtWork(t *testing.T) {
	cache, dir := t.TempDir(), t.TempDir()
	t.Setenv(cacheVariable, cache)
	folder, err := runFolder()
	if err != nil {
		t.Fatal(err)
	}
	here, err := placeHere()
	if err != nil {
		t.Fatal(err)
	}
	start, err := StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	killed, working := filepath.Join(folder, ledgerName(1<<30, 1, here)), filepath.Join(folder, ledgerName(os.Getpid(), start, here))
	own := filepath.Join(dir, "own")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := (&ledger{all: []entry{{Kind: madeFile, Path: dir}}}).write(killed); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		work []entry
		left bool
	}{{[]entry{{Kind: madeProcess, PID: os.Getpid(), Start: start, Path: own}}, true}, {nil, false}} {
		if err := (&ledger{all: x.work}).write(working); err != nil {
			t.Fatal(err)
		}
		_, said := openLedger(machine{}, Helper{})
		if _, err := os.Stat(own); (err == nil) != x.left {
			t.Errorf("at work: %v; it says %q: %v", x.work, said, err)
		}
	}
}

// The ledgers of another host, in a home that both have, are that host's: here its processes seem dead.
func TestLedgerOfAnotherHost(t *testing.T) {
	cache, dir := t.TempDir(), t.TempDir()
	t.Setenv(cacheVariable, cache)
	folder, err := runFolder()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(folder, ledgerName(1<<30, 1, "another"))
	if err := (&ledger{all: []entry{{Kind: madeFile, Path: dir}}}).write(name); err != nil {
		t.Fatal(err)
	}
	l, said := openLedger(machine{}, Helper{})
	l.close(within.Context(t), false)
	if _, err := os.Stat(dir); err != nil || len(said) > 0 {
		t.Errorf("%v; it says %q", err, said)
	}
	if _, err := os.Stat(name); err != nil {
		t.Error(err)
	}
}

// A listener whose far socket has ended by itself says so.
func TestFarListenerEnds(t *testing.T) {
	f := farHost(t, t.TempDir())
	name := filepath.Join(t.TempDir(), "s")
	l, err := f.Listen(within.Context(t), "unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	none := unix.Rlimit{Cur: 3, Max: 3} // the helper cannot accept
	if err := unix.Prlimit(f.hello.PID, unix.RLIMIT_NOFILE, &none, nil); err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	if err, _ := within.Receive(t, "the listener's end", ended); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
