package qmp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// strangers are the services that a monitor's address may belong to by mistake, by the first bytes that they send.
var strangers = []struct{ begins, name string }{
	{"\xff", "it speaks telnet: give QEMU's -qmp tcp:HOST:PORT,server=on,wait=off instead of telnet:"},
	{"QEMU ", "it is QEMU's human monitor (HMP): give the address of its -qmp, or of a -mon with mode=control"},
	{"(qemu)", "it is QEMU's human monitor (HMP): give the address of its -qmp, or of a -mon with mode=control"},
	{"RFB ", "it is a VNC display: " + wantQMP},
	{"SSH-", "it is an SSH server: forward the monitor with ssh -L, and give the near end"},
	{"HTTP/", "it is an HTTP server: " + wantQMP},
	{"<", "it is an HTTP server: " + wantQMP},
	{"NBDMAGIC", "it is an NBD server: " + wantQMP},
	{"\x15\x03", "it speaks TLS: write the endpoint as tcp+tls:HOST:PORT?dir=FOLDER"},
	{"\x16\x03", "it speaks TLS: write the endpoint as tcp+tls:HOST:PORT?dir=FOLDER"},
	{"\x1b[", "it is a terminal, such as a serial console: " + wantQMP},
	{`{"execute"`, "it sends back what it gets, as a serial console does: " + wantQMP},
}

const wantQMP = "give the address of QEMU's -qmp"

// stranger says what a peer is that has sent got and no greeting; "" if its words tell nothing.
func stranger(got []byte) string {
	got = bytes.TrimLeft(got, " \r\n\t")
	for _, s := range strangers {
		if bytes.HasPrefix(got, []byte(s.begins)) {
			return ": " + s.name
		}
	}
	return ""
}

// notQMP is the error about a peer that has sent got in place of a greeting.
func notQMP(got []byte) error {
	return fmt.Errorf("not a QMP monitor: greeting was %s%s", quote(got), stranger(got))
}

// knock is sent to a TCP peer that says nothing: an HTTP server, a TLS server and a guest agent speak only when they
// are spoken to. A QMP monitor that is busy will refuse it and change nothing. A unix socket's listener is known
// without it.
const knock = `{"execute":"guest-ping","id":"` + knockID + `"}` + "\n"

const (
	knockID    = "knock"
	knockAfter = 2 * time.Second // QEMU greets within milliseconds
)

// knockLater knocks when nothing has come for a while; stop says that something has.
func knockLater(ctx context.Context, nc net.Conn) (stop func()) {
	if a := nc.RemoteAddr(); a == nil || a.Network() != "tcp" {
		return func() {}
	}
	t := time.AfterFunc(knockAfter, func() {
		if ctx.Err() == nil {
			_, _ = nc.Write([]byte(knock)) // what is wrong with it, the read tells
		}
	})
	return func() { t.Stop() }
}

// answersKnock tells whether a reply is one to the knock. Only a guest agent gives it before any greeting.
func answersKnock(line []byte) bool {
	m, err := decodeMessage(line)
	return err == nil && string(m.ID) == `"`+knockID+`"`
}

var errGuestAgent = errors.New("not a QMP monitor: it is a guest agent (QGA): " + wantQMP)

// muteHint is what may be wrong with a QEMU that has greeted and does not answer: the thread that greets is not the one
// that answers.
const muteHint = "it has greeted and does not answer: QEMU may wait for a client of another character device " +
	"(server=on without wait=off), or be stopped, or stuck"
