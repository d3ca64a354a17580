package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

// Monitor is a Conn behind go-qemu's Monitor interface, for programs that use go-qemu's qemu.Domain and the like. It
// has none of the limits of go-qemu's SocketMonitor: events that nobody reads block nothing, a reply may have any
// length, bytes that it returns are the caller's own, and a refusal is a *CommandError with its class.
type Monitor struct {
	dial func(context.Context) (net.Conn, error)

	mu     sync.Mutex
	conn   *Conn
	hungUp chan struct{} // closed by Disconnect
}

var _ goqemu.Monitor = (*Monitor)(nil)

// eventBuffer is how many events may wait for a reader of Events. A migration of hours has fewer.
const eventBuffer = 1024

// NewMonitor makes a Monitor that connects with dial.
func NewMonitor(dial func(context.Context) (net.Conn, error)) *Monitor { return &Monitor{dial: dial} }

// Connect dials and negotiates, within five seconds.
func (m *Monitor) Connect() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		return errors.New("connect monitor: it is connected")
	}
	ctx, cancel := greetingContext(context.Background())
	defer cancel()
	nc, err := m.dial(ctx)
	if err != nil {
		return &OpError{"connect to monitor", err}
	}
	if m.conn, err = NewConn(ctx, nc, Options{}); err != nil {
		m.conn = nil
		return err
	}
	m.hungUp = make(chan struct{})
	return nil
}

// Disconnect ends the connection, the streams of Events and the calls under way; after it the Monitor may Connect
// again.
func (m *Monitor) Disconnect() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn == nil {
		return nil
	}
	err := m.conn.Close()
	m.conn = nil
	close(m.hungUp)
	return err
}

// Conn is the connection below; nil when there is none.
func (m *Monitor) Conn() *Conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.conn
}

var errNotConnected = &OpError{"monitor", fmt.Errorf("not connected: %w", net.ErrClosed)}

// Run sends one command, the JSON text of an object with execute (or exec-oob) and arguments, and returns the reply's
// text: {"return": ...}, with the command's id if it had one.
func (m *Monitor) Run(command []byte) ([]byte, error) {
	c := m.Conn()
	if c == nil {
		return nil, errNotConnected
	}
	r, err := decodeCommand(command)
	if err != nil {
		return nil, err
	}
	how, name := "execute", r.Execute
	if name == "" {
		how, name = "exec-oob", r.ExecOOB
	}
	var args any
	if r.Arguments != nil {
		args = r.Arguments
	}
	var value json.RawMessage
	if how == "execute" {
		err = c.Execute(context.Background(), name, args, &value)
	} else {
		err = c.ExecuteOOB(context.Background(), name, args, &value)
	}
	if err != nil {
		return nil, err
	}
	out := append([]byte(`{"return": `), value...)
	if r.ID != nil {
		out = append(append(out, `, "id": `...), r.ID...)
	}
	return append(out, '}'), nil
}

// request is a command as programs write it.
type request struct {
	Execute   string          `json:"execute,omitempty"`
	ExecOOB   string          `json:"exec-oob,omitempty"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	ID        json.RawMessage `json:"id,omitempty"`
}

// decodeCommand refuses what QEMU would refuse without saying to whom.
func decodeCommand(b []byte) (*request, error) {
	r := new(request)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil {
		return nil, fmt.Errorf("decode command %s: %w", quote(b), err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("decode command %s: more than one", quote(b))
	}
	if (r.Execute == "") == (r.ExecOOB == "") {
		return nil, fmt.Errorf("decode command %s: want one of execute and exec-oob", quote(b))
	}
	return r, nil
}

// Events streams the events from now on, until ctx or the connection ends; the channel is closed then. Each call has a
// stream of its own. A reader that falls far behind misses events, and holds up nothing else.
func (m *Monitor) Events(ctx context.Context) (<-chan goqemu.Event, error) {
	m.mu.Lock()
	c, hungUp := m.conn, m.hungUp
	m.mu.Unlock()
	if c == nil {
		return nil, errNotConnected
	}
	sub := c.Subscribe(eventBuffer)
	out := make(chan goqemu.Event)
	go func() {
		defer close(out)
		defer sub.Close()
		for {
			select {
			case e, ok := <-sub.C:
				if !ok {
					return
				}
				select {
				case out <- goEvent(e):
				case <-ctx.Done():
					return
				case <-hungUp:
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// goEvent is e in go-qemu's type.
func goEvent(e Event) goqemu.Event {
	g := goqemu.Event{Event: e.Name}
	if json.Unmarshal(e.Data, &g.Data) != nil {
		g.Data = nil // none, or not an object
	}
	if !e.QEMUTime.IsZero() {
		g.Timestamp.Seconds = e.QEMUTime.Unix()
		g.Timestamp.Microseconds = int64(e.QEMUTime.Nanosecond() / 1000)
	}
	return g
}
