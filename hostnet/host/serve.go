package host

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"
)

const (
	aliveEvery = 4 * time.Second  // that each side asks whether the other is still there
	aliveLimit = 10 * time.Second // for an answer, and for a write
	undoLimit  = 10 * time.Second // for what was begun to be undone when the channel has closed
)

// Helper is what a helper's program hands to Serve.
type Helper struct {
	Tasks []Served
	// Holds tells whether a process that the helper started, with this folder, may hold a guest. It then stays when the
	// channel closes. nil: each one may.
	Holds func(ctx context.Context, at Host, p Process, folder string) bool
	// Undo removes what a task noted with Note, by what it noted; the kinds are the task's.
	Undo map[string]func(ctx context.Context, at Host, what json.RawMessage) error
	// Clock is the host's realtime clock; nil: the kernel's. Tests have another.
	Clock *Drift
}

// Serve is the helper's side of a channel, on its standard streams. It returns when the channel has closed and what was
// made for it has been removed.
func (s Helper) Serve(in, out *os.File) error {
	// Caught, not ignored: a process that we start shall not ignore them. A broken channel is noticed by its reader.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGPIPE, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(caught)
	in, err := pollable(in)
	if err != nil {
		return err
	}
	if out, err = pollable(out); err != nil {
		return err
	}
	at := machine{clock: s.Clock}
	l, said := openLedger(at, s)
	content, err := selfContent()
	if err != nil {
		return err
	}
	folder, leave := socketFolder()
	defer leave()
	b, err := json.Marshal(hello{Protocol, os.Getpid(), content, folder, said})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%s%s\n", helloMark, b); err != nil {
		return err
	}
	session, err := yamux.Server(&pipes{in, &joined{WriteCloser: out}}, sessionConfig())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	srv := &server{Helper: s, at: at, ledger: l, session: session, processes: map[processKey]Process{}}
	go func() {
		for sig := range caught {
			if sig == syscall.SIGTERM {
				session.Close()
			}
		}
	}()
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			break
		}
		srv.all.Go(func() { srv.stream(ctx, stream) })
	}
	cancel()
	session.Close()
	ended := make(chan struct{})
	go func() { srv.all.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(undoLimit):
	}
	srv.lasting.Wait() // they need what was made
	undo, stop := context.WithTimeout(context.Background(), undoLimit)
	defer stop()
	l.close(undo, srv.stands())
	return nil
}

// pollable is a file of which a read under way ends when it is closed.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), f.Name()), f.Close()
}

// pipes are two streams as one.
type pipes struct {
	io.Reader
	io.Writer
}

func (p *pipes) Close() error {
	var errs []error
	for _, end := range []any{p.Reader, p.Writer} {
		if c, ok := end.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

func sessionConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	c.KeepAliveInterval, c.ConnectionWriteTimeout = aliveEvery, aliveLimit
	c.StreamOpenTimeout, c.StreamCloseTimeout = 0, 0
	c.AcceptBacklog = 1024
	c.MaxStreamWindowSize = 1 << 20
	return c
}

// server is one channel as the helper has it.
type server struct {
	Helper
	at      machine
	ledger  *ledger
	session *yamux.Session
	all     sync.WaitGroup // streams
	lasting sync.WaitGroup // tasks that go on

	mu        sync.Mutex
	processes map[processKey]Process // that it started or found
	left      bool                   // everything that was made is to stand
}

type processKey struct {
	pid   int
	start uint64
}

// stands tells whether everything that was made is to stand.
func (s *server) stands() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}

// stream serves one call.
func (s *server) stream(ctx context.Context, c *yamux.Stream) {
	defer c.Close()
	r := bufio.NewReader(c)
	var q request
	if err := readLine(r, &q); err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	call := &call{server: s, request: q, conn: c, r: r, at: s.at}
	if q.Like != nil {
		like, err := q.Like.like(ctx, s)
		if err != nil {
			call.answer(answer{}, err)
			return
		}
		call.at.like = like
	}
	serve, ok := map[string]func(context.Context){
		"dial": call.dial, "listen": call.listen, "start": call.start, "find": call.find, "signal": call.signal,
		"usage": call.usage, "threads": call.threads, "yield": call.yield, "read": call.read, "write": call.write,
		"mkdir": call.mkdir, "remove": call.remove, "stat": call.stat, "clock": call.clock, "task": call.task,
		"put": call.put, "tree": call.tree, "same": call.same, "leave": call.leave, "keep": call.keep,
	}[q.Op]
	if !ok {
		call.answer(answer{}, fmt.Errorf("%q is nothing that this helper can do", q.Op))
		return
	}
	serve(ctx)
}

// call is one call being served.
type call struct {
	*server
	request
	at   machine
	conn *yamux.Stream
	r    *bufio.Reader
	mu   sync.Mutex
}

// answer writes one line; the error is that of writing.
func (c *call) answer(a answer, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.Error = toWire(err)
	return writeLine(c.conn, a)
}

// untilGone calls cancel when the caller has closed its side.
func (c *call) untilGone(cancel context.CancelFunc) {
	go func() {
		_, _ = io.Copy(io.Discard, c.r)
		cancel()
	}()
}

func (c *call) dial(ctx context.Context) {
	nc, err := c.at.Dial(ctx, c.Network, c.Address)
	if err != nil {
		_ = c.answer(answer{}, err)
		return
	}
	defer nc.Close()
	a := answer{Peer: Listener(nc), Network: nc.RemoteAddr().Network(), Address: nc.RemoteAddr().String()}
	if c.answer(a, nil) == nil {
		c.relay(nc)
	}
}

// relay carries bytes both ways until one of both ends closes. A caller that closes lets go of the other end at once: a
// monitor is free then for the next.
func (c *call) relay(nc net.Conn) {
	stop := make(chan struct{})
	defer close(stop)
	go func() { // neither direction may wait for the other side of a closed channel
		select {
		case <-c.session.CloseChan():
			nc.Close()
		case <-stop:
		}
	}()
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(nc, c.r)
		nc.Close()
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0)) // nobody reads it any more
	})
	both.Go(func() {
		_, _ = io.Copy(c.conn, nc)
		c.conn.Close()
	})
	both.Wait()
}

func (c *call) listen(ctx context.Context) {
	l, err := c.at.Listen(ctx, c.Network, c.Address)
	if err != nil {
		_ = c.answer(answer{}, err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.untilGone(cancel)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	if err := c.answer(answer{Network: l.Addr().Network(), Address: l.Addr().String()}, nil); err != nil {
		return
	}
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		c.all.Go(func() {
			defer nc.Close()
			out, err := c.session.OpenStream()
			if err != nil {
				return
			}
			defer out.Close()
			if writeLine(out, answer{ID: c.ID, Network: nc.RemoteAddr().Network(), Address: nc.RemoteAddr().String()}) != nil {
				return
			}
			(&call{server: c.server, conn: out, r: bufio.NewReader(out)}).relay(nc)
		})
	}
}

func (c *call) read(context.Context) {
	b, err := c.at.ReadFile(c.Name)
	if c.answer(answer{Size: int64(len(b))}, err) == nil && err == nil {
		_, _ = c.conn.Write(b)
	}
}

func (c *call) write(context.Context) {
	data, err := readSized(c.r, c.Size)
	if err != nil {
		return
	}
	_, existed := os.Lstat(c.Name)
	err = c.at.WriteFile(c.Name, data, c.Mode)
	if err == nil && existed != nil {
		c.ledger.made(entry{Kind: madeFile, Path: c.Name})
	}
	_ = c.answer(answer{}, err)
}

func (c *call) mkdir(context.Context) {
	first := firstMissing(c.Name)
	err := c.at.MkdirAll(c.Name, c.Mode)
	if err == nil && first != "" {
		c.ledger.made(entry{Kind: madeFile, Path: first})
	}
	_ = c.answer(answer{}, err)
}

func (c *call) remove(context.Context) {
	err := c.at.RemoveAll(c.Name)
	if err == nil {
		c.ledger.gone(func(e entry) bool { return e.Path == c.Name })
	}
	_ = c.answer(answer{}, err)
}

func (c *call) stat(context.Context) {
	info, err := c.at.Stat(c.Name)
	if err != nil {
		_ = c.answer(answer{}, err)
		return
	}
	_ = c.answer(answer{Name: info.Name(), Size: info.Size(), Mode: info.Mode(), ModTime: info.ModTime()}, nil)
}

// clock answers each line with the time, until the caller has enough.
func (c *call) clock(context.Context) {
	for {
		if c.answer(answer{Time: c.at.Now().UnixNano()}, nil) != nil {
			return
		}
		if _, err := c.r.ReadByte(); err != nil {
			return
		}
	}
}

func (c *call) leave(context.Context) {
	c.server.mu.Lock()
	c.left = true
	c.server.mu.Unlock()
	_ = c.answer(answer{}, nil)
}

func (c *call) keep(context.Context) {
	c.ledger.gone(func(e entry) bool { return e.Kind == madeFile && e.Path == c.Name })
	_ = c.answer(answer{}, nil)
}

func (c *call) task(ctx context.Context) {
	for _, t := range c.Tasks {
		if t.name() != c.Name {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		if t.lasting() { // the caller ends it, but a channel that closes does not
			c.lasting.Add(1)
			defer c.lasting.Done()
			ctx, cancel = context.WithCancel(context.WithoutCancel(ctx))
			defer cancel()
			go func() {
				var end answer
				if readLine(c.r, &end) == nil && end.Ended {
					cancel()
				}
			}()
		} else {
			c.untilGone(cancel)
		}
		ctx = context.WithValue(ctx, ledgerKey{}, c.ledger)
		err := t.serve(ctx, c.at, c.Input, func(out any) error {
			b, err := json.Marshal(out)
			if err != nil {
				return err
			}
			if err := c.answer(answer{Output: b}, nil); err != nil || t.lasting() {
				return err
			}
			return ctx.Err() // who is told to end has one last word
		})
		_ = c.answer(answer{Ended: true}, err)
		return
	}
	_ = c.answer(answer{Ended: true}, fmt.Errorf("task %s is none of this helper's", c.Name))
}

func (w *wireLike) like(ctx context.Context, s *server) (*Like, error) {
	l := &Like{UID: w.UID, GID: w.GID, Groups: w.Groups, Capabilities: w.Capabilities, NoNewPrivileges: w.NoNewPrivileges,
		Network: w.Network}
	if w.AmongPID != 0 {
		p, err := s.process(ctx, w.AmongPID, w.AmongStart)
		if err != nil {
			return nil, err
		}
		l.Among = p
	}
	return l, nil
}

// process is one that was started here, or else the one that is found.
func (s *server) process(ctx context.Context, pid int, start uint64) (Process, error) {
	s.mu.Lock()
	p, ok := s.processes[processKey{pid, start}]
	s.mu.Unlock()
	if ok {
		select {
		case <-p.Done():
			s.mu.Lock()
			delete(s.processes, processKey{pid, start})
			s.mu.Unlock()
			return nil, fmt.Errorf("find process %d: %w", pid, os.ErrProcessDone)
		default:
			return p, nil
		}
	}
	p, err := s.at.FindProcess(ctx, pid, start)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.processes[processKey{pid, start}] = p
	s.mu.Unlock()
	return p, nil
}

func (c *call) start(ctx context.Context) {
	w := c.Command
	if w == nil {
		_ = c.answer(answer{}, errors.New("start process: no program given"))
		return
	}
	cmd := Command{Args: w.Args, Env: w.Env, Only: w.Only, Dir: w.Dir, Umask: w.Umask, Log: w.Log}
	var in *io.PipeWriter
	if w.Stdin {
		var r *io.PipeReader
		r, in = io.Pipe()
		defer in.Close()
		cmd.Stdin = r
	}
	if w.Stdout {
		cmd.Stdout = streamWriter(func(b []byte) error { return c.answer(answer{Stdout: b}, nil) })
	}
	if w.Stderr {
		cmd.Stderr = streamWriter(func(b []byte) error { return c.answer(answer{Stderr: b}, nil) })
	}
	// Its first line may not be overtaken by what the process says.
	c.mu.Lock()
	p, err := c.at.Start(ctx, cmd)
	if err != nil {
		c.mu.Unlock()
		_ = c.answer(answer{}, err)
		return
	}
	key := processKey{p.PID(), p.StartTime()}
	c.server.mu.Lock()
	c.processes[key] = p
	c.server.mu.Unlock()
	detached := !cmd.attached()
	if detached {
		c.ledger.made(entry{Kind: madeProcess, PID: key.pid, Start: key.start, Path: folderOf(cmd.Log), Name: cmd.Args[0]})
	}
	_ = writeLine(c.conn, answer{PID: key.pid, Start: key.start})
	c.mu.Unlock()
	go func() {
		for {
			var a answer
			if err := readLine(c.r, &a); err != nil {
				break
			}
			if in != nil && len(a.Stdin) > 0 {
				if _, err := in.Write(a.Stdin); err != nil {
					break
				}
			}
			if in != nil && a.Ended {
				in.Close()
			}
		}
		if in != nil {
			in.Close()
		}
		if !detached {
			_ = p.Signal(syscall.SIGKILL) // nobody hears it any more
		}
	}()
	select {
	case <-p.Done():
	case <-ctx.Done():
		if !detached {
			kill, stop := context.WithTimeout(context.Background(), undoLimit)
			defer stop()
			_ = p.Kill(kill)
		}
		return
	}
	c.ledger.gone(func(e entry) bool { return e.PID == key.pid && e.Start == key.start })
	a := answer{Ended: true}
	if err := p.Err(); err != nil {
		a.Status = err.Error()
	}
	if u, err := p.Usage(); err == nil {
		a.Usage = &u
	}
	_ = c.answer(a, nil)
}

type streamWriter func([]byte) error

func (w streamWriter) Write(b []byte) (int, error) {
	if err := w(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// find finds a process and tells when it has ended.
func (c *call) find(ctx context.Context) {
	start := c.Start
	if start == 0 { // whoever has the number now
		var err error
		if start, err = StartTime(c.PID); err != nil {
			_ = c.answer(answer{}, err)
			return
		}
	}
	p, err := c.process(ctx, c.PID, start)
	if err != nil {
		_ = c.answer(answer{}, err)
		return
	}
	if c.answer(answer{PID: p.PID(), Start: p.StartTime()}, nil) != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.untilGone(cancel)
	select {
	case <-p.Done():
		_ = c.answer(answer{Ended: true}, nil)
	case <-ctx.Done():
	}
}

func (c *call) signal(ctx context.Context) {
	p, err := c.process(ctx, c.PID, c.Start)
	if err == nil {
		err = p.Signal(syscall.Signal(c.Signal))
	}
	_ = c.answer(answer{}, err)
}

func (c *call) usage(ctx context.Context) {
	p, err := c.process(ctx, c.PID, c.Start)
	var u Usage
	if err == nil {
		u, err = p.Usage()
	}
	_ = c.answer(answer{Usage: &u}, err)
}

func (c *call) threads(context.Context) {
	all, err := threads(c.PID)
	_ = c.answer(answer{Threads: all}, err)
}

// yield makes threads give way until the caller closes its side by an answer that says so. It goes on if the channel
// closes.
func (c *call) yield(context.Context) {
	undo, err := yield(c.PID, c.Threads)
	if c.answer(answer{}, err) != nil || err != nil {
		return
	}
	var a answer
	if readLine(c.r, &a) == nil && a.Ended {
		_ = c.answer(answer{}, undo())
	}
}

// put makes a file of this user's cache from what follows, whole or not at all.
func (c *call) put(context.Context) {
	name, have, err := c.cached(c.Name, c.Size)
	if c.answer(answer{Name: name, Ended: have}, err) != nil || err != nil || have {
		return
	}
	_ = c.answer(answer{Name: name}, receive(io.LimitReader(c.r, c.Size), name, c.Size, c.Mode))
}

// Listener is the process that listens on a unix socket of this machine; 0 if it is not known. SO_PEERCRED of the
// client is the process that called listen(2). A process of another PID namespace shows as 0, socket activation as 1.
func Listener(nc net.Conn) (pid int) {
	if far, ok := nc.(*farConn); ok {
		return far.peer
	}
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil && cred.Pid > 1 {
			pid = int(cred.Pid)
		}
	})
	return pid
}
