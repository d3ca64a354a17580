package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// sampleCommand is the whole command: QEMU 7.2 reads its monitor a byte at a time, so an id would cost 35 us a call.
const sampleCommand = `{"execute":"query-migrate"}` + "\n"

// Sampler asks one monitor for query-migrate again and again, in lock step: no id, no goroutine, and no allocation
// while the answers hold nothing new. It owns its connection. Close and SetDeadline may be called at any time,
// QueryMigrate by one goroutine at a time.
type Sampler struct {
	nc      net.Conn
	frames  framer
	decode  migrationDecoder
	command []byte
	owed    int // answers to questions that were given up
	err     error
}

// NewSampler makes a connected socket ready for sampling. Ctx bounds this only; without a deadline it gets one of five
// seconds. The Sampler owns nc from here on; on an error nc has been closed.
func NewSampler(ctx context.Context, nc net.Conn) (*Sampler, error) {
	ctx, cancel := greetingContext(ctx)
	defer cancel()
	s := &Sampler{nc: nc, frames: framer{r: nc}, command: []byte(sampleCommand)}
	if _, err := readGreeting(ctx, nc, &s.frames, &Options{}); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	err := s.negotiate()
	if !stop() {
		err = &OpError{"qmp_capabilities", fmt.Errorf("%s: %w", muteHint, ctx.Err())}
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("negotiate with monitor: %w", err)
	}
	return s, nil
}

// negotiate ends with the answer to this very question: a former client's last one may be answered first, and in lock
// step every answer after it would be taken for the next one's.
func (s *Sampler) negotiate() error {
	const name, id = "qmp_capabilities", "sampler"
	if _, err := s.nc.Write([]byte(`{"execute":"` + name + `","id":"` + id + `"}` + "\n")); err != nil {
		return s.fail(name, err)
	}
	for {
		line, err := s.frames.next(0)
		if err != nil {
			return s.fail(name, err)
		}
		var r struct {
			ID    any           `json:"id"`
			Error *CommandError `json:"error"`
		}
		switch err := json.Unmarshal(line, &r); {
		case err != nil:
			return s.fail(name, &notMessage{bytes.Clone(line[:min(len(line), 4*quoted)])})
		case r.ID != id:
		case r.Error != nil:
			r.Error.Command = name
			return r.Error
		default:
			return nil
		}
	}
}

// QueryMigrate asks once and overwrites m with the answer. Events in between are skipped. After an error m is zero:
// *CommandError (QEMU refused; go on), an *OpError of os.ErrDeadlineExceeded (go on: the answer that is still to come
// is left out by the next call), or an *OpError that is final. Lists in m are shared with later answers: do not change
// them.
func (s *Sampler) QueryMigrate(m *MigrationInfo) error {
	*m = MigrationInfo{}
	if s.err != nil {
		return s.err
	}
	for s.owed > 0 {
		var refused *CommandError
		if _, err := s.reply("query-migrate"); err != nil && !errors.As(err, &refused) {
			return err
		}
		s.owed--
	}
	n, err := s.nc.Write(s.command)
	if err != nil {
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			return &OpError{"query-migrate", err}
		}
		return s.fail("query-migrate", err)
	}
	s.owed = 1
	answer, err := s.reply("query-migrate")
	if err != nil {
		var refused *CommandError
		if errors.As(err, &refused) {
			s.owed = 0
		}
		return err
	}
	s.owed = 0
	if err := s.decode.decode(answer, m); err != nil {
		return fmt.Errorf("decode reply to query-migrate: %w", err)
	}
	return nil
}

// Execute asks another question, between two of QueryMigrate's, on a Sampler that owes no answer. Args is nil or
// marshals to a JSON object; reply is nil or a pointer that the return value is unmarshalled into. Ctx bounds it; when
// it ends first, so does the Sampler.
func (s *Sampler) Execute(ctx context.Context, command string, args, reply any) error {
	if s.err != nil {
		return s.err
	}
	line, err := encodeRequest("execute", command, args, 0)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { s.nc.Close() })
	value, err := s.ask(command, line)
	if !stop() {
		s.err = &OpError{command, ctx.Err()}
		return s.err
	}
	if err != nil || reply == nil {
		return err
	}
	if err := json.Unmarshal(value, reply); err != nil {
		return fmt.Errorf("decode reply to %s: %w", command, err)
	}
	return nil
}

func (s *Sampler) ask(command string, line []byte) ([]byte, error) {
	if _, err := s.nc.Write(line); err != nil {
		return nil, s.fail(command, err)
	}
	return s.reply(command)
}

// reply reads up to the next reply and returns its value, which is valid until the next read.
func (s *Sampler) reply(command string) ([]byte, error) {
	for {
		line, err := s.frames.next(0)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, &OpError{command, err}
		}
		if err != nil {
			return nil, s.fail(command, err)
		}
		value, refusal, ok := splitReply(line)
		switch {
		case !ok:
			return nil, s.fail(command, &notMessage{bytes.Clone(line[:min(len(line), 4*quoted)])})
		case value != nil:
			return value, nil
		case refusal != nil:
			e := new(CommandError)
			if err := json.Unmarshal(refusal, e); err != nil {
				return nil, s.fail(command, err)
			}
			e.Command = command
			return nil, e
		}
	}
}

// splitReply takes a message apart: the text of its return value or of its error. Both are nil for an event, and ok is
// false if it is not JSON.
func splitReply(line []byte) (value, refusal []byte, ok bool) {
	p := scanner{b: line}
	if !p.take('{') {
		return nil, nil, false
	}
	event := false
	for again := !p.take('}'); again; {
		var key, v []byte
		if key, v, again, ok = p.member(); !ok {
			return nil, nil, false
		}
		switch string(key) {
		case "return":
			value = v
		case "error":
			refusal = v
		case "event":
			event = true
		}
	}
	if !p.end() {
		return nil, nil, false
	}
	if event {
		return nil, nil, true
	}
	if refusal != nil {
		value = nil
	}
	return value, refusal, true
}

func (s *Sampler) fail(op string, err error) error {
	if !errors.Is(err, net.ErrClosed) {
		err = disconnected(err)
	}
	s.err = &OpError{op, err}
	s.nc.Close()
	return s.err
}

// SetDeadline bounds the calls under way and those to come, as net.Conn's does; the zero time is no bound.
func (s *Sampler) SetDeadline(t time.Time) error { return s.nc.SetDeadline(t) }

// Close ends the connection, and a call under way with net.ErrClosed.
func (s *Sampler) Close() error {
	if err := s.nc.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return &OpError{"close", err}
	}
	return nil
}
