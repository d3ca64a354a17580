package host

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

// Far is a host that a helper stands on: a container, or a machine behind ssh. It lasts until its channel closes. From
// then on every call fails with a *ChannelError, and nothing is known of the host's processes any more.
type Far struct {
	*channel
	like *wireLike // nil: processes are started as the helper is
}

// channel is the way to one helper.
type channel struct {
	name    string
	hello   hello
	session *yamux.Session
	child   Process       // the program that carries the channel; nil: none
	said    func() string // by that program on its standard error

	next  atomic.Uint64
	mu    sync.Mutex
	lists map[uint64]*farListener
	once  sync.Once
}

// ChannelError says that the channel to a host is closed. It says nothing of the host's processes: they may run on.
type ChannelError struct {
	Host string
	Err  error
}

func (e *ChannelError) Error() string {
	return fmt.Sprintf("the channel to host %s is closed: %v; what runs there may run on", e.Host, e.Err)
}

func (e *ChannelError) Unwrap() error { return e.Err }

// OnTheWay says that what was lost is the way to something: see endpoint.WayError.
func (e *ChannelError) OnTheWay() {}

// Name is the host as users write it.
func (f *Far) Name() string { return f.name }

// Folder is the folder on the host for what this user runs there: sockets, logs. Its path is short, because a unix
// socket's has 107 bytes. It need not be there; what is there is this user's alone.
func (f *Far) Folder() string { return f.hello.Folder }

// Said is what the helper found of others that had been killed, a sentence each.
func (f *Far) Said() []string { return f.hello.Said }

// Closed is closed when the channel is.
func (f *Far) Closed() <-chan struct{} { return f.session.CloseChan() }

// Close ends the channel: the helper removes what it made and goes.
func (f *Far) Close() error {
	f.once.Do(func() {
		f.session.Close()
		if f.child == nil {
			return
		}
		select { // the helper undoes what it made before it ends
		case <-f.child.Done():
		case <-time.After(undoLimit):
			ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
			defer cancel()
			_ = f.child.Kill(ctx)
		}
	})
	return nil
}

// Leave has everything that was made on the host stand when the channel closes.
func (f *Far) Leave(ctx context.Context) error {
	_, err := f.ask(ctx, request{Op: "leave"})
	return err
}

// Keep has a file or folder that was made on the host stand when the channel closes.
func (f *Far) Keep(ctx context.Context, name string) error {
	_, err := f.ask(ctx, request{Op: "keep", Name: name})
	return err
}

// lost is the error of a closed channel, with what its program said.
func (f *Far) lost(err error) error {
	if f.said != nil {
		if said := f.said(); said != "" {
			err = errors.New(said)
		}
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, yamux.ErrSessionShutdown) {
		err = errors.New("its other end has gone, or does not answer")
	}
	return &ChannelError{f.name, err}
}

// stream is one call under way.
type stream struct {
	far *Far
	c   *yamux.Stream
	r   *bufio.Reader
}

// begin opens a stream with its request and reads the answer.
func (f *Far) begin(ctx context.Context, q request) (*stream, answer, error) {
	if err := ctx.Err(); err != nil {
		return nil, answer{}, err
	}
	if q.Like == nil {
		q.Like = f.like
	}
	c, err := f.session.OpenStream()
	if err != nil {
		return nil, answer{}, f.lost(err)
	}
	s := &stream{f, c, bufio.NewReader(c)}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := writeLine(c, q); err != nil {
		s.close()
		return nil, answer{}, f.lost(err)
	}
	a, err := s.read(ctx)
	if err != nil {
		s.close()
		return nil, answer{}, err
	}
	if !stop() && ctx.Err() != nil {
		s.close()
		return nil, answer{}, ctx.Err()
	}
	return s, a, nil
}

// read reads the next answer; one that carries an error is that error.
func (s *stream) read(ctx context.Context) (a answer, err error) {
	err = readLine(s.r, &a)
	switch {
	case err == nil:
		return a, a.Error.err()
	case ctx.Err() != nil:
		return a, ctx.Err()
	}
	return a, s.far.lost(err)
}

func (s *stream) close() { s.c.Close() }

// ask is a call with one answer.
func (f *Far) ask(ctx context.Context, q request) (answer, error) {
	s, a, err := f.begin(ctx, q)
	if err != nil {
		return a, err
	}
	s.close()
	return a, nil
}

// Dial connects to an address as the host sees it. The end of the connection is that of the far one; a channel that
// closes is a *ChannelError instead.
func (f *Far) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	s, a, err := f.begin(ctx, request{Op: "dial", Network: network, Address: address})
	if errno := syscall.Errno(0); errors.As(err, &errno) { // as this machine's would be
		return nil, &net.OpError{Op: "dial", Net: network, Addr: farAddr{network, address},
			Err: os.NewSyscallError("connect", errno)}
	}
	if err != nil {
		return nil, err
	}
	return &farConn{stream: s, remote: farAddr{a.Network, a.Address}, peer: a.Peer}, nil
}

// Listen listens on the host.
func (f *Far) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	l := &farListener{far: f, id: f.next.Add(1), conns: make(chan net.Conn), closed: make(chan struct{})}
	f.mu.Lock()
	f.lists[l.id] = l
	f.mu.Unlock()
	s, a, err := f.begin(ctx, request{Op: "listen", Network: network, Address: address, ID: l.id})
	if err != nil {
		l.forget()
		return nil, err
	}
	l.stream, l.addr = s, farAddr{a.Network, a.Address}
	go func() {
		_, _ = io.Copy(io.Discard, s.r) // nothing comes but the end of the far socket
		l.Close()
	}()
	return l, nil
}

// ListenPacket is not to be had: what receives datagrams is a task.
func (f *Far) ListenPacket(context.Context, string, string) (net.PacketConn, error) {
	return nil, &UnsupportedError{Feature: "datagrams of host " + f.name, Reason: "they do not go through a channel"}
}

// accept hands the connections that the helper's listeners accepted to ours.
func (f *Far) accept() {
	for {
		c, err := f.session.AcceptStream()
		if err != nil {
			return
		}
		go func() {
			s := &stream{f, c, bufio.NewReader(c)}
			var a answer
			if readLine(s.r, &a) != nil {
				s.close()
				return
			}
			f.mu.Lock()
			l := f.lists[a.ID]
			f.mu.Unlock()
			if l == nil {
				s.close()
				return
			}
			select {
			case l.conns <- &farConn{stream: s, remote: farAddr{a.Network, a.Address}}:
			case <-l.closed:
				s.close()
			case <-f.Closed():
			}
		}()
	}
}

// FindProcess finds a process of the host.
func (f *Far) FindProcess(ctx context.Context, pid int, startTime uint64) (Process, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("find process %d: no process number given", pid)
	}
	s, a, err := f.begin(ctx, request{Op: "find", PID: pid, Start: startTime})
	if err != nil {
		return nil, err
	}
	p := &farProcess{far: f, pid: a.PID, start: a.Start, done: make(chan struct{}), stream: s}
	go p.watch(nil)
	return p, nil
}

// ReadFile reads a file of the host.
func (f *Far) ReadFile(name string) ([]byte, error) {
	s, a, err := f.begin(context.Background(), request{Op: "read", Name: name})
	if err != nil {
		return nil, err
	}
	defer s.close()
	b, err := readSized(s.r, a.Size)
	if err != nil {
		return nil, f.lost(err)
	}
	return b, nil
}

// WriteFile writes a file of the host.
func (f *Far) WriteFile(name string, data []byte, perm fs.FileMode) error {
	c, err := f.session.OpenStream()
	if err != nil {
		return f.lost(err)
	}
	s := &stream{f, c, bufio.NewReader(c)}
	defer s.close()
	if err := writeLine(c, request{Op: "write", Name: name, Size: int64(len(data)), Mode: perm, Like: f.like}); err != nil {
		return f.lost(err)
	}
	_, err = s.send(context.Background(), func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	return err
}

// MkdirAll makes a folder of the host.
func (f *Far) MkdirAll(name string, perm fs.FileMode) error {
	_, err := f.ask(context.Background(), request{Op: "mkdir", Name: name, Mode: perm})
	return err
}

// RemoveAll removes a file or folder of the host.
func (f *Far) RemoveAll(name string) error {
	_, err := f.ask(context.Background(), request{Op: "remove", Name: name})
	return err
}

// Stat looks at a file of the host.
func (f *Far) Stat(name string) (fs.FileInfo, error) {
	a, err := f.ask(context.Background(), request{Op: "stat", Name: name})
	if err != nil {
		return nil, err
	}
	return farInfo{a}, nil
}

type farInfo struct{ a answer }

func (i farInfo) Name() string       { return i.a.Name }
func (i farInfo) Size() int64        { return i.a.Size }
func (i farInfo) Mode() fs.FileMode  { return i.a.Mode }
func (i farInfo) ModTime() time.Time { return i.a.ModTime }
func (i farInfo) IsDir() bool        { return i.a.Mode.IsDir() }
func (i farInfo) Sys() any           { return nil }

// Put sees to it that the host has this file of ours, and says where. One that is mounted there, under the same name,
// is there. Another is sent to the user's cache, once: files of the same content and name are one.
func (f *Far) Put(ctx context.Context, name string) (there string, err error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	if a, err := f.ask(ctx, request{Op: "same", Name: name, File: identify(info)}); err != nil || a.Ended {
		return name, err
	}
	content, err := contentOf(file)
	if err != nil {
		return "", err
	}
	s, a, err := f.begin(ctx, request{Op: "put", Name: content + "/" + filepath.Base(name), Size: info.Size(),
		Mode: info.Mode().Perm()})
	if err != nil || a.Ended {
		return a.Name, err
	}
	defer s.close()
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	a, err = s.send(ctx, func(w io.Writer) error {
		_, err := io.Copy(w, file)
		return err
	})
	return a.Name, err
}

// send writes what follows a request, and then the end of our side, and reads the answer. That may come before all is
// written, as where the host has no room: then nobody reads the rest.
func (s *stream) send(ctx context.Context, write func(io.Writer) error) (a answer, err error) {
	stop := context.AfterFunc(ctx, func() { _ = s.c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var answerErr error
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		a, answerErr = s.read(ctx)
		_ = s.c.SetWriteDeadline(time.Unix(1, 0))
	}()
	err = write(s.c)
	s.close() // our side: nothing more comes
	<-answered
	if answerErr != nil && (err == nil || isTimeout(err) || s.far.session.IsClosed()) {
		err = answerErr
	}
	return a, err
}

// Now is our clock: the host's is known by Clock, or by the instants that a task gives.
func (f *Far) Now() time.Time { return time.Now() }

// Clock asks clockTrips times: the quickest answer of some is the truest. Where a round trip takes long, fewer have to
// do: no more are begun after clockLimit.
const (
	clockTrips = 16
	clockLeast = 4
	clockLimit = 200 * time.Millisecond
)

// Clock compares the host's realtime clock with ours.
func (f *Far) Clock(ctx context.Context) (Clock, error) {
	var best Clock
	begun, n := time.Now(), 0
	err := f.clocks(ctx, func(c Clock) bool {
		if n == 0 || c.Error < best.Error {
			best = c
		}
		n++
		return n < clockLeast || n < clockTrips && time.Since(begun) < clockLimit
	})
	return best, err
}

// clocks compares the clocks as long as each wants more, each time in one round trip: the host's instant lies between
// our question and its answer.
func (f *Far) clocks(ctx context.Context, each func(Clock) bool) error {
	s, _, err := f.begin(ctx, request{Op: "clock"})
	if err != nil {
		return err
	}
	defer s.close()
	stop := context.AfterFunc(ctx, func() { _ = s.c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for { // the first answer took longer: it opened the stream
		before := time.Now()
		if _, err := s.c.Write([]byte{'\n'}); err != nil {
			return f.lost(err)
		}
		a, err := s.read(ctx)
		if err != nil {
			return err
		}
		trip := time.Since(before)
		middle := before.Add(trip / 2)
		theirs := time.Unix(0, a.Time)
		if !each(Clock{Offset: theirs.Sub(middle.Round(0)), Error: trip/2 + 1, At: middle}) {
			return nil
		}
	}
}

// task runs one on the host.
func (f *Far) task(ctx context.Context, name string, input json.RawMessage, take func(json.RawMessage) error) error {
	c, err := f.session.OpenStream()
	if err != nil {
		return f.lost(err)
	}
	s := &stream{f, c, bufio.NewReader(c)}
	defer s.close()
	if err := writeLine(c, request{Op: "task", Name: name, Input: input, Like: f.like}); err != nil {
		return f.lost(err)
	}
	end := sync.OnceFunc(func() { // the work undoes what it made, and says when it has
		_ = writeLine(c, answer{Ended: true})
		_ = c.Close()
		_ = c.SetReadDeadline(time.Now().Add(2 * undoLimit))
	})
	stop := context.AfterFunc(ctx, end)
	defer stop()
	var refused error
	for {
		a, err := s.read(context.Background())
		switch {
		case refused != nil && (err != nil || a.Ended):
			return refused
		case err != nil && ctx.Err() != nil && !a.Ended:
			return context.Cause(ctx)
		case err != nil || a.Ended:
			return err
		case refused == nil:
			if refused = take(a.Output); refused != nil {
				end()
			}
		}
	}
}

// as is the host with files and processes of another user.
func (f *Far) as(l Like) *Far {
	w := &wireLike{UID: l.UID, GID: l.GID, Groups: l.Groups, Capabilities: l.Capabilities,
		NoNewPrivileges: l.NoNewPrivileges, Network: l.Network}
	if l.Among != nil {
		w.AmongPID, w.AmongStart = l.Among.PID(), l.Among.StartTime()
	}
	return &Far{f.channel, w}
}
