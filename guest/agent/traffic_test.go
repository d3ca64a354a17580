package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"qmigrate/guest/wire"
)

// address is where the running workload serves.
func address(t *testing.T, a *agent) string {
	t.Helper()
	switch l := must[*job](t)(a.currentJob()).load.(type) {
	case *web:
		return l.listener.Addr().String()
	case *stream:
		return l.listener.Addr().String()
	}
	t.Fatal("the workload does not serve")
	return ""
}

// TestWeb: a real HTTP client understands the server, which counts what it answered and refuses the rest.
func TestWeb(t *testing.T) {
	a := testAgent(t, newMonotonic())
	must[wire.Status](t)(a.startWorkload(must[wire.Workload](t)(wire.ParseWorkload("web:size=3001B"))))
	base := "http://" + address(t, a)
	client := http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for n := range uint64(20) {
		r := must[*http.Response](t)(client.Get(base + wire.WebPath(n)))
		body := must[[]byte](t)(io.ReadAll(r.Body))
		r.Body.Close()
		if r.StatusCode != 200 || !bytes.Equal(body, wire.Pattern(make([]byte, 0, 3001), n, 0)) {
			t.Errorf("request %d: %s, %d bytes", n, r.Status, len(body))
		}
	}
	for _, bad := range []string{"POST /1 HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET /1 HTTP/1.0\r\n\r\n", "x\r\n\r\n", "GET /" + strings.Repeat("1", 5000) + " HTTP/1.1\r\n\r\n", "GET /1 HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", 200) + "\r\n"} {
		c := must[net.Conn](t)(net.Dial("tcp", address(t, a)))
		if _, err := io.WriteString(c, bad); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil && answer.StatusCode != 400 { // with input unread, the kernel may reset instead
			t.Errorf("%.30q: %s", bad, answer.Status)
		}
		c.Close()
	}
	idle := must[net.Conn](t)(net.Dial("tcp", address(t, a))) // ends with the workload
	defer idle.Close()
	s := must[wire.Status](t)(a.stopWorkload(wire.Bins{}))
	var served wire.Served
	if err := json.Unmarshal(s.Result, &served); err != nil || s.State != wire.Done || s.Events != 20 || served.Requests != 20 || served.Refused != 6 || served.Connections < 7 {
		t.Errorf("%+v, %+v, %v", s, served, err)
	}
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives the workload")
	}
}

// TestStream: both directions carry the pattern; a byte that is another fails the workload.
func TestStream(t *testing.T) {
	for _, c := range []struct {
		spec    string
		spoil   bool
		state   string
		message string
	}{{"tcp:rate=1MiB/s", false, wire.Done, ""}, {"tcp:rate=0B/s", false, wire.Done, ""}, {"tcp:rate=1MiB/s", true, wire.Failed, "the stream from the observer is not what was sent"}} {
		t.Run(fmt.Sprint(c.spec, c.spoil), func(t *testing.T) {
			a := testAgent(t, newMonotonic())
			must[wire.Status](t)(a.startWorkload(must[wire.Workload](t)(wire.ParseWorkload(c.spec))))
			conn := must[net.Conn](t)(net.Dial("tcp", address(t, a)))
			defer conn.Close()
			const size = 40_000
			ours := wire.Pattern(make([]byte, 0, size), 0, 0)
			if c.spoil {
				ours[size-1] ^= 1
			}
			for _, part := range [][]byte{ours[:13], ours[13:5000], ours[5000:]} { // in parts of odd sizes
				must[int](t)(conn.Write(part))
			}
			if !c.spoil {
				theirs := make([]byte, size)
				must[int](t)(io.ReadFull(conn, theirs))
				if !bytes.Equal(theirs, ours) {
					t.Error("what came is not the pattern")
				}
			}
			j := must[*job](t)(a.currentJob())
			for c.spoil && j.running() || !c.spoil && j.status(a.clock, wire.Bins{}).Events < size {
				a.clock.sleep(1e6)
			}
			s := must[wire.Status](t)(a.stopWorkload(wire.Bins{}))
			var streamed wire.Streamed
			if err := json.Unmarshal(s.Result, &streamed); err != nil || s.State != c.state || !strings.HasPrefix(s.Error, c.message) || streamed.Connections != 1 || s.Events != streamed.Received {
				t.Errorf("%+v, %+v, %v", s, streamed, err)
			}
		})
	}
}
