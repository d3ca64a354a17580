package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// greetingLimit is how long a connection may take to be ready when the caller's context sets no deadline.
const greetingLimit = 5 * time.Second

// greetingSize bounds what is read from a peer that has not yet proved to be QMP. QEMU's greeting has about 150 bytes.
const greetingSize = 64 << 10

const busyHint = "another client may hold this monitor, for QEMU serves one at a time, or it is no QMP monitor"

// Options of a connection. The zero value is useful.
type Options struct {
	Logger *slog.Logger // wire lines at debug level, as attribute "line"; nil is silent
	// every message but the greeting's failure, without its line end; must not keep line nor call the Conn; nil is none
	Trace func(sent bool, line []byte)
}

// trace reports one wire line.
func (o *Options) trace(sent bool, line []byte) {
	if o.Trace != nil {
		o.Trace(sent, line)
	}
	if o.Logger != nil && o.Logger.Enabled(context.Background(), slog.LevelDebug) {
		text := "received"
		if sent {
			text = "sent"
		}
		o.Logger.Debug(text, "line", string(line))
	}
}

// Conn is a connection to one monitor. All methods may be called at the same time.
type Conn struct {
	nc       net.Conn
	o        Options
	frames   framer
	greeting Greeting
	oob      bool
	writing  chan struct{} // holds one token: whoever has it writes
	done     chan struct{} // closed when the connection has ended
	reader   chan struct{} // closed when the reader has returned

	mu      sync.Mutex
	id      int64
	pending map[int64]chan result
	subs    map[*Subscription]struct{}
	err     error
	ended   bool
}

// result ends a call: a reply, QEMU's refusal, or the connection's end.
type result struct {
	reply json.RawMessage
	err   error
}

// Dial connects to the monitor at address ("unix" and a path, "tcp" and host:port) and makes it ready for commands.
// A context without a deadline gets one of five seconds.
func Dial(ctx context.Context, network, address string, o Options) (*Conn, error) {
	ctx, cancel := greetingContext(ctx)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		if errors.Is(err, syscall.EAGAIN) { // the queue of unaccepted clients is full
			err = fmt.Errorf("%w: %s", err, busyHint)
		}
		return nil, &OpError{"connect to monitor", err}
	}
	c, err := NewConn(ctx, nc, o)
	if err != nil {
		return nil, fmt.Errorf("connect to monitor %s: %w", address, err)
	}
	return c, nil
}

// NewConn makes a connected socket ready for commands: it waits for the greeting and negotiates, with out-of-band
// execution where QEMU offers it. Ctx bounds this wait only; without a deadline it gets one of five seconds. The Conn
// owns nc from here on, and closes it on an error.
func NewConn(ctx context.Context, nc net.Conn, o Options) (*Conn, error) {
	ctx, cancel := greetingContext(ctx)
	defer cancel()
	c := &Conn{
		nc: nc, o: o, frames: framer{r: nc},
		writing: make(chan struct{}, 1), done: make(chan struct{}), reader: make(chan struct{}),
		pending: make(map[int64]chan result), subs: make(map[*Subscription]struct{}),
	}
	var err error
	if c.greeting, err = readGreeting(ctx, nc, &c.frames, &c.o); err != nil {
		return nil, err
	}
	go c.read()
	args := map[string][]string{}
	if c.oob = slices.Contains(c.greeting.Capabilities, "oob"); c.oob {
		args["enable"] = []string{"oob"}
	}
	if err := c.Execute(ctx, "qmp_capabilities", args, nil); err != nil {
		c.Close()
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%s: %w", muteHint, err)
		}
		return nil, fmt.Errorf("negotiate with monitor: %w", err)
	}
	return c, nil
}

// greetingContext gives ctx the default deadline if it has none.
func greetingContext(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, greetingLimit)
}

// readGreeting waits for the greeting; on an error nc is closed. What a former client asked last may be answered to us,
// even before the greeting (seen on 7.2.22, once in some 3,000 connections that followed at once): that is left out.
func readGreeting(ctx context.Context, nc net.Conn, f *framer, o *Options) (g Greeting, err error) {
	begun := time.Now()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	heard := knockLater(ctx, nc)
	line, err := f.next(greetingSize)
	for err == nil && isReply(line) && !answersKnock(line) {
		line, err = f.next(greetingSize)
	}
	heard()
	if !stop() { // ctx has ended, and nc with it
		return g, &OpError{"greeting", fmt.Errorf("none came within %v: %s: %w", time.Since(begun).Round(time.Millisecond),
			busyHint, ctx.Err())}
	}
	var bad *notMessage
	switch {
	case err == nil && isReply(line):
		err = errGuestAgent
	case err == nil:
		if g, err = decodeGreeting(line); err == nil {
			o.trace(false, line)
			return g, nil
		}
	case errors.As(err, &bad):
		err = notQMP(bad.got)
	case errors.Is(err, errLong), errors.Is(err, io.ErrUnexpectedEOF):
		err = disconnected(fmt.Errorf("%w: %w", notQMP(f.buf[f.start:f.end]), err))
	case errors.Is(err, io.EOF):
		err = disconnected(errors.New("not a QMP monitor: greeting was \"\": it closed at once, as a forwarder (ssh -L, " +
			"socat) does whose far end is gone"))
	default:
		err = disconnected(err)
	}
	nc.Close()
	return g, &OpError{"greeting", err}
}

func isReply(line []byte) bool {
	value, refusal, ok := splitReply(line)
	return ok && (value != nil || refusal != nil)
}

// Greeting is what QEMU said of itself when the connection began.
func (c *Conn) Greeting() Greeting { return c.greeting }

// Done is closed when the connection has ended; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is nil while the connection lives, then the reason why it ended: an *OpError.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and every call and subscription on it. QEMU itself does not mind.
func (c *Conn) Close() error {
	c.end(&OpError{"close", net.ErrClosed})
	<-c.reader
	return nil
}

// fail ends every call, and lets the reader take in what QEMU has sent before: a QEMU that has died may have left
// events in the socket, and a command that cannot be written any more must not keep them from their subscribers. The
// reader then ends the connection.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	c.release()
	if c.nc.SetReadDeadline(time.Now().Add(drainLimit)) != nil {
		c.nc.Close() // no deadlines here
	}
}

// drainLimit is how long a connection that cannot be written to is still read: what is in the socket is read at once.
const drainLimit = time.Second

// release ends the calls that wait, with c.err; the lock is held.
func (c *Conn) release() {
	for id, ch := range c.pending {
		delete(c.pending, id)
		ch <- result{err: c.err}
	}
}

// end takes the connection down, once, for the reason given, or for that of fail before it.
func (c *Conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	if c.err == nil {
		c.err = err
	}
	c.nc.Close()
	c.release()
	for s := range c.subs {
		delete(c.subs, s)
		close(s.c)
	}
	close(c.done)
}

// Execute runs a command and waits for its reply. Args is nil or marshals to a JSON object; reply is nil or a pointer
// that the command's return value is unmarshalled into. A refusal is a *CommandError, a broken connection an *OpError.
// When ctx ends first its error is returned; QEMU may still carry the command out, and its late reply is dropped.
func (c *Conn) Execute(ctx context.Context, command string, args, reply any) error {
	return c.execute(ctx, "execute", command, args, reply, nil)
}

// ExecuteOOB is Execute past the queue of commands: QEMU's monitor thread runs it at once, even while another command
// or a stuck migration holds the main loop. Only a few commands allow it: migrate-recover, migrate-pause, yank.
func (c *Conn) ExecuteOOB(ctx context.Context, command string, args, reply any) error {
	if !c.oob {
		return fmt.Errorf("execute %s out of band: QEMU %v does not offer it on this monitor", command, c.greeting.Version)
	}
	return c.execute(ctx, "exec-oob", command, args, reply, nil)
}

// ExecuteFiles is Execute with descriptors that travel in the same message (SCM_RIGHTS), for getfd and add-fd. The
// caller still owns, and closes, its files. The connection has to be a unix socket.
func (c *Conn) ExecuteFiles(ctx context.Context, command string, args, reply any, files ...*os.File) error {
	return c.execute(ctx, "execute", command, args, reply, files)
}

func (c *Conn) execute(ctx context.Context, how, command string, args, reply any, files []*os.File) error {
	id, ch, err := c.register()
	if err != nil {
		return callError(command, err)
	}
	defer c.forget(id)
	line, err := encodeRequest(how, command, args, id)
	if err != nil {
		return err
	}
	if err := c.write(ctx, command, line, files); err != nil {
		return err
	}
	var r result
	select {
	case r = <-ch:
	case <-ctx.Done():
		select {
		case r = <-ch: // both at once: it has been done
		default:
			return fmt.Errorf("execute %s: %w", command, ctx.Err())
		}
	}
	if r.err != nil {
		return callError(command, r.err)
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(r.reply, reply); err != nil {
		return fmt.Errorf("decode reply to %s: %w", command, err)
	}
	return nil
}

// callError is a call's own view of a refusal or of the connection's end.
func callError(command string, err error) error {
	var refused *CommandError
	var ended *OpError
	switch {
	case errors.As(err, &ended): // first, for what ended a connection may be a refusal that names no command
		return &OpError{command, ended.Err}
	case errors.As(err, &refused):
		return &CommandError{command, refused.Class, refused.Desc}
	}
	return err
}

// encodeRequest is a command as it goes over the wire, line end included.
func encodeRequest(how, command string, args any, id int64) ([]byte, error) {
	name, err := json.Marshal(command)
	if err != nil {
		return nil, fmt.Errorf("encode command name: %w", err)
	}
	line := make([]byte, 0, 128)
	line = append(line, `{"`...)
	line = append(line, how...)
	line = append(line, `":`...)
	line = append(line, name...)
	if args != nil {
		a, err := json.Marshal(args)
		if err != nil {
			return nil, fmt.Errorf("encode arguments of %s: %w", command, err)
		}
		switch {
		case bytes.Equal(a, []byte("null")):
		case a[0] != '{':
			return nil, fmt.Errorf("encode arguments of %s: %s is not an object", command, quote(a))
		default:
			line = append(line, `,"arguments":`...)
			line = append(line, a...)
		}
	}
	line = append(line, `,"id":`...)
	line = strconv.AppendInt(line, id, 10)
	return append(line, '}', '\n'), nil
}

func (c *Conn) register() (int64, chan result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.id++
	ch := make(chan result, 1)
	c.pending[c.id] = ch
	return c.id, ch, nil
}

func (c *Conn) forget(id int64) {
	c.mu.Lock()
	delete(c.pending, id)
	c.mu.Unlock()
}

// write sends one line. A context that ends while nothing has left yet costs this call only; half a line ends the
// connection.
func (c *Conn) write(ctx context.Context, command string, line []byte, files []*os.File) error {
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return fmt.Errorf("execute %s: %w", command, ctx.Err())
	case <-c.done:
		return callError(command, c.Err())
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("execute %s: %w", command, err)
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		if c.nc.SetWriteDeadline(time.Unix(1, 0)) != nil {
			c.nc.Close() // no deadlines here
		}
	})
	c.o.trace(true, line[:len(line)-1])
	n, err := c.send(line, files)
	if !stop() {
		<-stopped
		c.nc.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return nil
	case n == 0 && errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, errFile):
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("execute %s: %w", command, err)
	}
	c.fail(&OpError{"write", disconnected(err)})
	return callError(command, c.Err())
}

var errFile = errors.New("pass descriptor")

// send writes line, and files with its first byte.
func (c *Conn) send(line []byte, files []*os.File) (n int, err error) {
	if len(files) > 0 {
		u, ok := c.nc.(interface {
			WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error)
		})
		if !ok {
			return 0, fmt.Errorf("%w: only unix sockets carry them", errFile)
		}
		fds := make([]int, len(files))
		for i, f := range files {
			rc, err := f.SyscallConn() // not Fd, which would make the file blocking
			if err == nil {
				err = rc.Control(func(fd uintptr) { fds[i] = int(fd) })
			}
			if err != nil {
				return 0, fmt.Errorf("%w: %w", errFile, err)
			}
		}
		n, _, err = u.WriteMsgUnix(line, syscall.UnixRights(fds...), nil)
		runtime.KeepAlive(files)
		if err != nil || n == len(line) {
			return n, err
		}
	}
	m, err := c.nc.Write(line[n:])
	return n + m, err
}

// read is the reader: it runs until the connection ends and never waits for anybody but QEMU.
func (c *Conn) read() {
	defer close(c.reader)
	for {
		line, err := c.frames.next(0)
		if err == nil {
			c.o.trace(false, line)
			err = c.handle(line)
		}
		if err != nil {
			c.end(&OpError{"read", disconnected(err)})
			return
		}
	}
}

// handle gives one message to whom it is for. An error ends the connection.
func (c *Conn) handle(line []byte) error {
	m, err := decodeMessage(line)
	if err != nil {
		return err
	}
	if m.Event != "" {
		c.publish(m.event(c.frames.at))
		return nil
	}
	if m.Error == nil && m.Return == nil {
		return nil // a kind of message that a newer QEMU has
	}
	if m.ID == nil && m.Error != nil {
		return fmt.Errorf("error without id, so a command was garbled: %w", &CommandError{"", m.Error.Class, m.Error.Desc})
	}
	id, err := strconv.ParseInt(string(m.ID), 10, 64)
	if err != nil {
		return nil // not ours
	}
	c.mu.Lock()
	ch := c.pending[id]
	delete(c.pending, id)
	c.mu.Unlock()
	switch {
	case ch == nil: // its caller has gone
	case m.Error != nil:
		ch <- result{err: &CommandError{"", m.Error.Class, m.Error.Desc}}
	default:
		ch <- result{reply: m.Return}
	}
	return nil
}

// Event is one of QEMU's asynchronous messages. Events may overtake replies: subscribe before you send.
type Event struct {
	Name     string          // MIGRATION, STOP, RESUME, ...; may be one that this program has never heard of
	Data     json.RawMessage // nil if the event has none
	QEMUTime time.Time       // QEMU's stamp by the realtime clock of its host, in microseconds; zero if it had none
	Arrived  time.Time       // when it was read here, with the monotonic clock
}

// Subscription receives the events that arrive after Subscribe.
type Subscription struct {
	C <-chan Event // closed at the end of the connection or by Close

	c       chan Event
	conn    *Conn
	dropped atomic.Uint64
}

// Subscribe gives events a buffer of the size given. The reader never waits for a subscriber: events that find the
// buffer full are dropped and counted.
func (c *Conn) Subscribe(buffer int) *Subscription {
	s := &Subscription{c: make(chan Event, max(buffer, 1)), conn: c}
	s.C = s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		close(s.c)
	} else {
		c.subs[s] = struct{}{}
	}
	return s
}

// Dropped is how many events found the buffer full; none without a subscription.
func (s *Subscription) Dropped() uint64 {
	if s == nil {
		return 0
	}
	return s.dropped.Load()
}

// Close ends the subscription and closes C.
func (s *Subscription) Close() {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	if _, ok := s.conn.subs[s]; ok {
		delete(s.conn.subs, s)
		close(s.c)
	}
}

func (c *Conn) publish(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subs {
		select {
		case s.c <- e:
		default:
			s.dropped.Add(1)
		}
	}
}
