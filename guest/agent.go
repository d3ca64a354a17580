package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"qmigrate/guest/wire"
)

// ErrAgentGone is what every call on an Agent wraps once its connection has ended.
var ErrAgentGone = errors.New("the guest agent's connection has ended")

// AgentError is a request that the agent refused, in its own words.
type AgentError struct {
	Do   string
	Text string
}

func (e *AgentError) Error() string { return "guest agent: " + e.Do + ": " + e.Text }

// Beat is one heartbeat that arrived over virtio-serial.
type Beat struct {
	Seq     uint64
	Clock   time.Duration // the guest's CLOCK_MONOTONIC when it sent the beat
	Arrived time.Time     // our clock, monotonic, when its bytes had been read
}

// Agent is the host's side of the line to the agent in a guest. After a migration the source's Agent is at its end, and
// the destination's port takes a new one: the agent in the guest is the same and answers at once.
type Agent struct {
	nc       net.Conn
	requests chan *agentCall
	beats    chan Beat
	dropped  atomic.Uint64
	garbage  atomic.Uint64
	done     chan struct{}
	workers  sync.WaitGroup

	mu    sync.Mutex
	err   error // why it ended; set before done is closed
	id    uint64
	calls map[uint64]*agentCall
	subs  map[*NoteSubscription]struct{}
	ready *wire.Hello // the ready note, if it was seen
	known chan struct{}
}

type agentCall struct {
	ctx   context.Context
	id    uint64
	line  []byte
	reply chan wire.Reply // holds one
}

// beatBuffer is how many beats wait for a slow reader: 5 s of them at 5 ms.
const beatBuffer = 1024

// NewAgent speaks over nc, which it owns from now on.
func NewAgent(nc net.Conn) *Agent {
	a := &Agent{
		nc: nc, requests: make(chan *agentCall), beats: make(chan Beat, beatBuffer), done: make(chan struct{}),
		// An answer to the former host side may still come out of the port: no id of ours may equal one of its.
		id:    rand.Uint64N(1<<52) + 1,
		calls: map[uint64]*agentCall{}, subs: map[*NoteSubscription]struct{}{}, known: make(chan struct{}),
	}
	a.workers.Add(2)
	go a.read()
	go a.write()
	return a
}

// Call asks the agent to do something (the Do constants of package wire); args is nil or marshals to an object, result
// is nil or points to what the reply holds. The agent's refusal is an *AgentError. If ctx ends first the agent may
// still do it.
func (a *Agent) Call(ctx context.Context, do string, args, result any) error {
	fail := func(err error) error { return fmt.Errorf("ask guest agent to %s: %w", do, err) }
	req := wire.Request{Do: do}
	if args != nil {
		b, err := json.Marshal(args)
		if err != nil {
			return fail(err)
		}
		req.Args = b
	}
	a.mu.Lock()
	a.id++
	req.ID = a.id
	a.mu.Unlock()
	line, err := wire.Line(req)
	if err != nil {
		return fail(err)
	}
	c := &agentCall{ctx: ctx, id: req.ID, line: line, reply: make(chan wire.Reply, 1)}
	a.mu.Lock()
	a.calls[c.id] = c
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.calls, c.id)
		a.mu.Unlock()
	}()
	select {
	case a.requests <- c:
	case <-ctx.Done():
		return fail(ctx.Err())
	case <-a.done:
		return fail(a.Err())
	}
	var r wire.Reply
	select {
	case r = <-c.reply:
	case <-ctx.Done():
		return fail(ctx.Err())
	case <-a.done:
		select {
		case r = <-c.reply: // it was the last line
		default:
			return fail(a.Err())
		}
	}
	if r.Error != "" {
		return &AgentError{Do: do, Text: r.Error}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.Result, result); err != nil {
		return fail(fmt.Errorf("read the reply: %w", err))
	}
	return nil
}

// Ready waits until the agent has answered, however long the guest takes to boot: QEMU keeps what we say until the
// guest opens the port.
func (a *Agent) Ready(ctx context.Context) (wire.Hello, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		hello wire.Hello
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		var h wire.Hello
		err := a.Call(ctx, wire.DoHello, nil, &h)
		answers <- answer{h, err}
	}()
	select {
	case r := <-answers:
		return r.hello, r.err
	case <-a.known: // the note came first, or a former host side's answer was lost with it
		cancel()
		<-answers
		a.mu.Lock()
		defer a.mu.Unlock()
		return *a.ready, nil
	}
}

// Beats is one channel for the Agent's life, closed at its end. A reader that is too slow loses beats: see
// BeatsDropped.
func (a *Agent) Beats() <-chan Beat { return a.beats }

// BeatsDropped counts the beats for which Beats had no room.
func (a *Agent) BeatsDropped() uint64 { return a.dropped.Load() }

// Garbage counts the lines that were neither a reply, a note nor a beat. One after the dial is a half line.
func (a *Agent) Garbage() uint64 { return a.garbage.Load() }

// Done is closed when the connection has ended; Err then says why.
func (a *Agent) Done() <-chan struct{} { return a.done }

// Err is nil while the connection stands, and afterwards wraps ErrAgentGone.
func (a *Agent) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// Close ends the connection and waits for its goroutines; harmless twice.
func (a *Agent) Close() error {
	a.end(fmt.Errorf("%w: closed", ErrAgentGone))
	a.workers.Wait()
	return nil
}

// NoteSubscription is a share in the agent's unasked notes, beats excepted.
type NoteSubscription struct {
	C       <-chan wire.Note // closed at the end of the connection or of the subscription
	c       chan wire.Note
	a       *Agent
	dropped atomic.Uint64
}

// Notes subscribes to the notes from now on; up to buffer of them wait for the reader, later ones are dropped.
func (a *Agent) Notes(buffer int) *NoteSubscription {
	c := make(chan wire.Note, max(buffer, 1))
	s := &NoteSubscription{C: c, c: c, a: a}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		close(c)
	} else {
		a.subs[s] = struct{}{}
	}
	return s
}

// Dropped counts the notes for which there was no room.
func (s *NoteSubscription) Dropped() uint64 { return s.dropped.Load() }

// Close ends the subscription; harmless twice.
func (s *NoteSubscription) Close() {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if _, ok := s.a.subs[s]; ok {
		delete(s.a.subs, s)
		close(s.c)
	}
}

func (a *Agent) end(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return
	}
	a.err = err
	_ = a.nc.Close() // the first error is the one that is told
	for s := range a.subs {
		close(s.c)
	}
	clear(a.subs)
	close(a.done)
}

func (a *Agent) write() {
	defer a.workers.Done()
	for {
		select {
		case c := <-a.requests:
			if c.ctx.Err() != nil {
				continue
			}
			if _, err := a.nc.Write(c.line); err != nil {
				a.end(fmt.Errorf("%w: write: %w", ErrAgentGone, err))
				return
			}
		case <-a.done:
			return
		}
	}
}

func (a *Agent) read() {
	defer a.workers.Done()
	defer close(a.beats)
	r := bufio.NewReaderSize(a.nc, 64<<10)
	var long []byte // a line that is longer than the reader's buffer
	skip := false   // it is even longer than MaxLine
	for {
		line, err := r.ReadSlice('\n')
		arrived := time.Now()
		if errors.Is(err, bufio.ErrBufferFull) {
			if skip = skip || len(long)+len(line) > wire.MaxLine; skip {
				long = nil
			} else {
				long = append(long, line...)
			}
			continue
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				a.end(fmt.Errorf("%w: QEMU closed the port", ErrAgentGone))
			} else {
				a.end(fmt.Errorf("%w: read: %w", ErrAgentGone, err))
			}
			return
		}
		switch {
		case skip:
			a.garbage.Add(1)
		case long != nil:
			a.take(append(long, line...), arrived)
		default:
			a.take(line, arrived)
		}
		long, skip = nil, false
	}
}

func (a *Agent) take(line []byte, arrived time.Time) {
	if len(line) == 1 { // the newline that begins a line
		return
	}
	if b, ok := wire.ParseBeat(line); ok {
		select {
		case a.beats <- Beat{Seq: b.Seq, Clock: b.Clock, Arrived: arrived}:
		default:
			a.dropped.Add(1)
		}
		return
	}
	m, err := wire.DecodeMessage(line)
	if err != nil {
		a.garbage.Add(1)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.Reply != nil {
		if c := a.calls[m.Reply.ID]; c != nil {
			delete(a.calls, c.id)
			c.reply <- *m.Reply
		}
		return
	}
	if m.Note.Event == wire.EventReady && a.ready == nil {
		var h wire.Hello
		if json.Unmarshal(m.Note.Data, &h) == nil {
			a.ready = &h
			close(a.known)
		}
	}
	for s := range a.subs {
		select {
		case s.c <- *m.Note:
		default:
			s.dropped.Add(1)
		}
	}
}
