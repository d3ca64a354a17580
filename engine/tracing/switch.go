package tracing

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/qmp"
)

// ErrOther is that another qmigrate has switched this QEMU's trace events on, and is at it.
var ErrOther = errors.New("another qmigrate has switched its trace events on")

// ErrNotItsLog is that a log did not get the line that its QEMU was made to write.
var ErrNotItsLog = errors.New("no line of this QEMU's came there")

// Request is the trace event of a command that a monitor got, by which Proves proves a log. Its line has the whole
// command.
const Request = "handle_qmp_command"

// Available are the events that a QEMU has, of those that are asked for, with the state of each. There are none in one
// that has no such command. It changes nothing.
func Available(ctx context.Context, c *qmp.Conn, names []string) (all []qmp.TraceEvent, err error) {
	each := make([][]qmp.TraceEvent, len(names))
	err = forEach(ctx, names, func(ctx context.Context, i int) (err error) {
		each[i], err = c.TraceEvents(ctx, names[i])
		if qmp.IsRefusal(err) { // it knows no such event, or no such command
			return nil
		}
		return err
	})
	absent := func(e qmp.TraceEvent) bool { return e.State == qmp.TraceUnavailable }
	return slices.DeleteFunc(slices.Concat(each...), absent), err
}

// forEach sends a command for each name, and waits for none before it sends the next: a QEMU that runs a guest answers
// when its main loop comes round.
func forEach(ctx context.Context, names []string, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	failed := make([]error, len(names))
	var all sync.WaitGroup
	for i := range names {
		all.Go(func() { failed[i] = do(ctx, i) })
	}
	all.Wait()
	return cmp.Or(failed...)
}

// Switch is one QEMU some of whose trace events were switched on.
type Switch struct {
	notes Notes
	who   string
	off   []string // those that were off, and are to be so again; nil: all is as it was

	Failed error // why Off did not succeed
}

// Reserve notes which of these events are off in a QEMU, before any of them is switched on. who is what Who says. What
// an interrupted qmigrate of ours has left counts as off.
func Reserve(notes Notes, who string, events []qmp.TraceEvent) (*Switch, error) {
	former, err := notes.read(who)
	if err != nil {
		return nil, err
	}
	s := &Switch{notes: notes, who: who}
	if former != nil {
		if former.By.lives() {
			return nil, ErrOther
		}
		s.off = former.Off
	}
	for _, e := range events {
		if e.State == qmp.TraceDisabled && !slices.Contains(s.off, e.Name) {
			s.off = append(s.off, e.Name)
		}
	}
	if len(s.off) == 0 {
		return s, nil
	}
	return s, notes.write(note{QEMU: who, Off: s.off, By: us()})
}

// On switches events on, all of which Reserve was told.
func (s *Switch) On(ctx context.Context, c *qmp.Conn, events []qmp.TraceEvent) error {
	var names []string
	for _, e := range events {
		if e.State == qmp.TraceDisabled {
			names = append(names, e.Name)
		}
	}
	return forEach(ctx, names, func(ctx context.Context, i int) error { return c.SetTraceEvent(ctx, names[i], true) })
}

// Off switches off again what was off, and removes the note. It is harmless twice. Where it does not succeed, Failed
// says why, and the note stays for the next command.
func (s *Switch) Off(ctx context.Context, c *qmp.Conn) {
	if s.off == nil {
		return
	}
	if s.Failed = off(ctx, c, s.off); s.Failed == nil {
		s.Gone()
	}
}

// Gone is for a QEMU that has ended: it removes the note.
func (s *Switch) Gone() { s.off, s.Failed = nil, s.notes.remove(s.who) }

// Proves makes a QEMU write a line that no other one writes, and looks for it in the log: the text of that line.
// Reserve was told its Request. patience is how long the line may take to be in the log, into which another program
// may write it. The error is ErrNotItsLog if it does not come.
func (s *Switch) Proves(ctx context.Context, c *qmp.Conn, log endpoint.TraceLog, patience time.Duration) ([]byte,
	error) {
	before, err := log.Read(ctx, 0)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	word := "qmigrate-" + strings.ToLower(rand.Text())
	if slices.Contains(s.off, Request) {
		if err := c.SetTraceEvent(limited, Request, true); err != nil {
			return nil, err
		}
	}
	_, err = c.TraceEvents(limited, word+"*") // no event has this name, so this asks nothing
	if slices.Contains(s.off, Request) {
		err = errors.Join(err, c.SetTraceEvent(limited, Request, false))
	}
	if err != nil {
		return nil, err
	}
	for begun := time.Now(); ; {
		lines, err := log.Read(ctx, before.Size, word)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(lines.Text)) {
			if strings.HasSuffix(line, "\n") {
				return []byte(line), nil
			}
		}
		if time.Since(begun) > patience {
			return nil, ErrNotItsLog
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
