package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/record"
)

// tracer notes when each command leaves and when its answer is there, at the socket.
type tracer struct {
	mu    sync.Mutex
	spans []*span
}

// span is one command on one side, or the wait for a greeting.
type span struct {
	side, command  string
	sent, answered time.Time
}

// around puts the tracer between the engine and the monitors; a nil tracer leaves them alone.
func (t *tracer) around(src, dst *endpoint.Endpoint) {
	if t == nil {
		return
	}
	for side, e := range map[string]*endpoint.Endpoint{"source": src, "destination": dst} {
		for _, d := range []*endpoint.Dialer{&e.Control, &e.Events, &e.Sampler} {
			*d = t.dialer(side, *d)
		}
	}
}

func (t *tracer) dialer(side string, dial endpoint.Dialer) endpoint.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		begin := time.Now()
		nc, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		c := &tracedConn{Conn: nc, t: t, side: side, open: map[string]*span{}}
		c.open["greeting"] = t.begin(side, "connect + greeting", begin)
		return c, nil
	}
}

func (t *tracer) begin(side, command string, at time.Time) *span {
	s := &span{side: side, command: command, sent: at}
	t.mu.Lock()
	t.spans = append(t.spans, s)
	t.mu.Unlock()
	return s
}

// asked tells whether the command was sent to anybody.
func (t *tracer) asked(command string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.spans, func(s *span) bool { return s.command == command })
}

// tracedConn is a monitor's socket.
type tracedConn struct {
	net.Conn
	t    *tracer
	side string

	mu   sync.Mutex
	open map[string]*span // by id; the sampler's commands have none
	line []byte
}

// message is what of a line the tracer looks at.
type message struct {
	Execute string          `json:"execute"`
	ID      json.RawMessage `json:"id"`
	Event   string          `json:"event"`
	QMP     json.RawMessage `json:"QMP"`
}

func (c *tracedConn) Write(b []byte) (int, error) {
	now := time.Now()
	for line := range bytes.Lines(b) {
		var m message
		if json.Unmarshal(line, &m) == nil && m.Execute != "" {
			c.mu.Lock()
			c.open[string(m.ID)] = c.t.begin(c.side, m.Execute, now)
			c.mu.Unlock()
		}
	}
	return c.Conn.Write(b)
}

func (c *tracedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	now := time.Now()
	c.line = append(c.line, b[:n]...)
	for {
		end := bytes.IndexByte(c.line, '\n')
		if end < 0 {
			return n, err
		}
		var m message
		if json.Unmarshal(c.line[:end], &m) == nil && m.Event == "" {
			id := string(m.ID)
			if m.QMP != nil {
				id = "greeting"
			}
			c.mu.Lock()
			if s := c.open[id]; s != nil {
				c.t.mu.Lock()
				s.answered = now
				c.t.mu.Unlock()
				delete(c.open, id)
			}
			c.mu.Unlock()
		}
		c.line = c.line[end+1:]
	}
}

// summary says where the time from the first command to `migrate` went.
func (t *tracer) summary(rec *record.Migration) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	end := rec.End(record.Reservation)
	var spans []*span
	for _, s := range t.spans {
		if !s.answered.IsZero() && s.sent.Before(end) {
			spans = append(spans, s)
		}
	}
	slices.SortFunc(spans, func(a, b *span) int { return a.sent.Compare(b.sent) })
	var waiting time.Duration // at least one command is out
	until := rec.Origin
	for _, s := range spans {
		from := s.sent
		if from.Before(until) {
			from = until
		}
		if s.answered.After(from) {
			waiting += s.answered.Sub(from)
			until = s.answered
		}
	}
	slices.SortFunc(spans, func(a, b *span) int { return cmp.Compare(b.answered.Sub(b.sent), a.answered.Sub(a.sent)) })
	var slow []string
	for _, s := range spans[:min(6, len(spans))] {
		slow = append(slow, fmt.Sprintf("%s %s %.1f", s.side, s.command, s.answered.Sub(s.sent).Seconds()*1e3))
	}
	whole := end.Sub(rec.Origin)
	return fmt.Sprintf("%.1f ms to `migrate`: %.1f ms with one of %d commands under way, %.1f ms ours alone; the "+
		"slowest, in ms: %s (one traced run)",
		whole.Seconds()*1e3, waiting.Seconds()*1e3, len(spans), (whole-waiting).Seconds()*1e3, strings.Join(slow, ", "))
}
