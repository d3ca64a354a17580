package load

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet"
)

func TestMain(m *testing.M) {
	hostnet.Main()
	guesttest.Main(m)
}

// wait waits for something that arrives soon, and gives up late.
func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for ", what)
		}
	}
}

// echo serves one connection with f.
func echo(t *testing.T, f func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		f(c)
	}()
	t.Cleanup(func() { l.Close(); within.Receive(t, "the echo's end", done) })
	return netip.MustParseAddrPort(l.Addr().String())
}
