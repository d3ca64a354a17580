package passthrough

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/digitalocean/go-libvirt"
)

// endLimit is how long libvirt may take to tell of a QEMU's end after its monitor was lost.
const endLimit = 2 * time.Second

// monitor is a domain's monitor as a connection: it reads requests and writes answers and events, as QEMU does.
type monitor struct {
	target Target
	virt   *libvirt.Libvirt
	below  net.Conn // to libvirt
	domain libvirt.Domain
	thread int // of QEMU's first vCPU, as libvirt's machine counts

	mu       sync.Mutex
	changed  *sync.Cond // any of what follows
	out      bytes.Buffer
	requests [][]byte // whole lines that wait
	half     []byte   // of a line
	farewell []byte   // the answer to a `quit` that is under way; nil: none is
	end      error    // of reading, after what is in out
}

func newMonitor(t Target) *monitor {
	m := &monitor{target: t}
	m.changed = sync.NewCond(&m.mu)
	return m
}

// event takes an event in its place among the answers.
func (m *monitor) event(e message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.ended {
		m.out.Write(m.farewell)
		m.finish(io.EOF)
		return
	}
	if m.end == nil {
		m.out.Write(e.line)
		m.changed.Broadcast()
	}
}

// finish ends the reading; the lock is held. The first reason counts.
func (m *monitor) finish(err error) {
	if m.end == nil {
		m.end = err
	}
	m.changed.Broadcast()
}

// Read gives what QEMU would have sent. It ends with io.EOF when the QEMU has ended, and with a *LostError when
// libvirt is gone.
func (m *monitor) Read(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.out.Len() == 0 && m.end == nil {
		m.changed.Wait()
	}
	if m.out.Len() > 0 {
		return m.out.Read(b)
	}
	return 0, m.end
}

// Write takes requests. It waits for nobody.
func (m *monitor) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.end != nil {
		return 0, m.end
	}
	m.half = append(m.half, b...)
	for {
		line, rest, whole := bytes.Cut(m.half, []byte("\n"))
		if !whole {
			break
		}
		m.requests = append(m.requests, bytes.Clone(line))
		m.half = bytes.Clone(rest)
	}
	m.changed.Broadcast()
	return len(b), nil
}

// Close ends the connection to libvirt. The QEMU does not mind.
func (m *monitor) Close() error {
	m.mu.Lock()
	m.finish(net.ErrClosed)
	m.mu.Unlock()
	return m.below.Close()
}

func (m *monitor) LocalAddr() net.Addr              { return m.below.LocalAddr() }
func (m *monitor) RemoteAddr() net.Addr             { return m.below.RemoteAddr() }
func (m *monitor) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (m *monitor) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (m *monitor) SetWriteDeadline(time.Time) error { return nil }

// watch ends the reading when libvirt has gone.
func (m *monitor) watch() {
	<-m.virt.Disconnected()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.finish(&LostError{"the daemon closed the connection"})
}

// serve carries the requests out, one after the other, as QEMU does.
func (m *monitor) serve() {
	for {
		m.mu.Lock()
		for len(m.requests) == 0 && m.end == nil {
			m.changed.Wait()
		}
		if m.end != nil {
			m.mu.Unlock()
			return
		}
		line := m.requests[0]
		m.requests = m.requests[1:]
		m.mu.Unlock()
		m.carry(line)
	}
}

// request is a QMP command; one that is to go out of band goes in band.
type request struct {
	Execute   string          `json:"execute"`
	OutOfBand string          `json:"exec-oob,omitempty"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	ID        json.RawMessage `json:"id,omitempty"`
}

// carry carries one request out and puts the answer.
func (m *monitor) carry(line []byte) {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		m.answer(nil, refusal("GenericError", "not a request: "+err.Error()))
		return
	}
	if r.Execute == "" {
		r.Execute = r.OutOfBand
	}
	if r.Execute == "qmp_capabilities" { // libvirt has negotiated, and for itself
		m.answer(r.ID, json.RawMessage(`{"return":{}}`))
		return
	}
	if r.Execute == "quit" { // QEMU may be gone before libvirt has read its answer; that it is gone libvirt knows
		m.mu.Lock()
		m.farewell = answered(r.ID, json.RawMessage(`{"return":{}}`))
		m.mu.Unlock()
	}
	reply, err := m.execute(request{Execute: r.Execute, Arguments: r.Arguments})
	var e libvirt.Error
	switch {
	case err == nil:
		m.answer(r.ID, reply)
	case errors.As(err, &e) && m.ends(libvirt.ErrorNumber(e.Code)): // whether it was carried out is not known
		m.awaitEnd()
	case errors.As(err, &e):
		m.answer(r.ID, refusal("GenericError", "libvirt refuses it: "+e.Message))
	default:
		m.mu.Lock()
		m.finish(&LostError{err.Error()})
		m.mu.Unlock()
	}
}

// execute passes a command to QEMU and gives its answer, with all events that QEMU sent before it put.
func (m *monitor) execute(r request) (json.RawMessage, error) {
	command, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	reply, err := m.virt.QEMUDomainMonitorCommand(m.domain, string(command), 0)
	if err != nil {
		return nil, err
	}
	// libvirt's main loop sends events by a timer of its own, at the latest in the round in which it sends the answer
	// (src/conf/object_event.c, virObjectEventStateQueue; src/rpc/virnetserverclient.c). So they are there before the
	// answer to whatever is asked after it.
	_, err = m.virt.ConnectGetLibVersion()
	return json.RawMessage(reply), err
}

func refusal(class, text string) json.RawMessage {
	b, _ := json.Marshal(map[string]map[string]string{"error": {"class": class, "desc": text}})
	return b
}

// answer puts an answer of QEMU's.
func (m *monitor) answer(id, reply json.RawMessage) {
	line := answered(id, reply)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.farewell = nil
	if m.end == nil {
		m.out.Write(line)
		m.changed.Broadcast()
	}
}

// answered is the line of an answer, with the id that the caller gave in place of libvirt's.
func answered(id, reply json.RawMessage) []byte {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(reply, &all); err != nil {
		_ = json.Unmarshal(refusal("GenericError", "libvirt gave an answer that is no JSON object: "+err.Error()), &all)
	}
	delete(all, "id")
	if id != nil {
		all["id"] = id
	}
	line, _ := json.Marshal(all) // each of them is JSON
	return append(line, '\n')
}

// runs tells whether libvirt has a QEMU of the domain.
func (m *monitor) runs() (bool, error) {
	state, _, err := m.virt.DomainGetState(m.domain, 0)
	if libvirt.IsNotFound(err) {
		return false, nil
	}
	s := libvirt.DomainState(state)
	return err != nil || s != libvirt.DomainShutoff && s != libvirt.DomainCrashed, err
}

// ends tells whether libvirt's error comes from the QEMU's end. One that is no refusal may be the end of QEMU's
// monitor, which libvirt's state follows a moment later.
func (m *monitor) ends(code libvirt.ErrorNumber) bool {
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		m.mu.Lock()
		over := m.end != nil
		m.mu.Unlock()
		if over {
			return true
		}
		if runs, err := m.runs(); err == nil && !runs {
			return true
		}
		vague := code == libvirt.ErrInternalError || code == libvirt.ErrSystemError || code == libvirt.ErrOperationFailed
		if !vague || time.Since(begun) > endLimit {
			return false
		}
	}
}

// awaitEnd waits for libvirt's word that the QEMU has ended, which comes after all events of it.
func (m *monitor) awaitEnd() {
	late := time.AfterFunc(endLimit, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.finish(&LostError{"it does not tell how the QEMU ended"})
	})
	defer late.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.end == nil {
		m.changed.Wait()
	}
}

// subscribe asks for QEMU's events and for the domain's end.
func (m *monitor) subscribe() error {
	only := libvirt.OptDomain{m.domain}
	if _, err := m.virt.ConnectDomainEventCallbackRegisterAny(int32(libvirt.DomainEventIDLifecycle), only); err != nil {
		return err
	}
	_, err := m.virt.QEMUConnectDomainMonitorEventRegister(only, nil, 0)
	return err
}

// Thread is the number of a thread of the domain's QEMU, as libvirt's machine counts; 0 if QEMU told none.
func (m *monitor) Thread() int { return m.thread }

// learn asks for a thread of QEMU's.
func (m *monitor) learn() error {
	reply, err := m.execute(request{Execute: "query-cpus-fast"})
	if err != nil {
		return err
	}
	var answer struct {
		Return []struct {
			Thread int `json:"thread-id"`
		}
	}
	if json.Unmarshal(reply, &answer) == nil && len(answer.Return) > 0 {
		m.thread = answer.Return[0].Thread
	}
	return nil
}

// greet makes the greeting that QEMU's own monitor would have sent.
func (m *monitor) greet() ([]byte, error) {
	reply, err := m.execute(request{Execute: "query-version"})
	if err != nil {
		return nil, err
	}
	var answer struct{ Return json.RawMessage }
	if err := json.Unmarshal(reply, &answer); err != nil || answer.Return == nil {
		return nil, fmt.Errorf("ask for QEMU's version: the answer is %.100s", reply)
	}
	return fmt.Appendf(nil, `{"QMP":{"version":%s,"capabilities":["oob"]}}`, answer.Return), nil
}
