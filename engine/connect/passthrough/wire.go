package passthrough

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"strconv"
)

// Numbers of libvirt's protocol. Source: src/rpc/virnetprotocol.x, src/remote/remote_protocol.x and qemu_protocol.x.
const (
	headerSize      = 28 // length, program, version, procedure, type, serial, status
	remoteProgram   = 0x20008086
	qemuProgram     = 0x20008087
	lifecycleEvent  = 318 // of remoteProgram
	monitorEvent    = 6   // of qemuProgram
	largestMessage  = 64 << 20
	lifecycleStops  = 5 // VIR_DOMAIN_EVENT_STOPPED: QEMU's end, however it came
	uuidSize        = 16
	maxStringLength = 4 << 20
)

// message is an event that libvirt sent: QEMU's as a line of QMP, or the end of the domain's QEMU.
type message struct {
	line  []byte
	ended bool
}

// tap reads along what libvirt sends, and hands over events before anybody sees the messages that came after them:
// go-libvirt gives events and answers by separate ways, which loses their order.
type tap struct {
	net.Conn
	event func(message)
	buf   []byte
}

func (t *tap) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	t.buf = append(t.buf, b[:n]...)
	for len(t.buf) >= headerSize {
		size := binary.BigEndian.Uint32(t.buf)
		if size < headerSize || size > largestMessage {
			return 0, errors.New("libvirt sent what is no message of its protocol")
		}
		if len(t.buf) < int(size) {
			break
		}
		if m, ok := decode(t.buf[4:size]); ok {
			t.event(m)
		}
		t.buf = t.buf[size:]
	}
	return n, err
}

// decode takes an event from a message without its length; others are not.
func decode(b []byte) (m message, ok bool) {
	program, procedure := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[8:])
	x := xdr{b: b[headerSize-4:]}
	switch {
	case program == remoteProgram && procedure == lifecycleEvent:
		x.word() // the callback
		x.domain()
		m.ended = x.word() == lifecycleStops
		return m, !x.short && m.ended
	case program == qemuProgram && procedure == monitorEvent:
		x.word()
		x.domain()
		name, seconds, micros, details := x.text(), x.long(), x.word(), "{}"
		if x.word() == 1 {
			details = x.text()
		}
		var data bytes.Buffer
		event, err := json.Marshal(name)
		if err != nil || json.Compact(&data, []byte(details)) != nil { // one line, whatever libvirt makes of it
			return m, false
		}
		m.line = append(m.line, `{"event":`+string(event)+`,"data":`+data.String()+`,"timestamp":{"seconds":`...)
		m.line = strconv.AppendInt(m.line, seconds, 10)
		m.line = append(m.line, `,"microseconds":`...)
		m.line = strconv.AppendUint(m.line, uint64(micros), 10)
		m.line = append(m.line, "}}\n"...)
		return m, !x.short
	}
	return m, false
}

// xdr reads XDR (RFC 4506); short is set where it ended too early.
type xdr struct {
	b     []byte
	short bool
}

func (x *xdr) take(n int) []byte {
	if n > len(x.b) {
		x.short, x.b = true, nil
		return make([]byte, min(n, 8))
	}
	b := x.b[:n]
	x.b = x.b[n:]
	return b
}

func (x *xdr) word() uint32 { return binary.BigEndian.Uint32(x.take(4)) }
func (x *xdr) long() int64  { return int64(binary.BigEndian.Uint64(x.take(8))) }

func (x *xdr) text() string {
	n := x.word()
	if n > maxStringLength {
		x.short = true
		return ""
	}
	s := string(x.take(int(n)))
	x.take(int(-n & 3))
	return s
}

func (x *xdr) domain() {
	x.text()
	x.take(uuidSize)
	x.word()
}
