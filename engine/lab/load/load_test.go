package load

import (
	"bytes"
	"encoding/base64"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"qmigrate/engine/record"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// webServer answers as the guest does, by net/http; before, if there is one, may do it itself.
func webServer(t *testing.T, size int, before func(n uint64, w http.ResponseWriter) (done bool)) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseUint(strings.TrimPrefix(r.URL.Path, "/"), 10, 64)
		if err != nil {
			t.Errorf("asked for %s", r.URL.Path)
		}
		if before != nil && before(n, w) {
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(size))
		_, _ = w.Write(wire.Pattern(make([]byte, 0, size), n, 0))
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func workload(t *testing.T, text string) wire.Workload {
	t.Helper()
	w, err := wire.ParseWorkload(text)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestWebClient: what a server does is what is counted, connection by connection.
func TestWebClient(t *testing.T) {
	hangUp := func(w http.ResponseWriter) bool {
		nc, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = nc.(*net.TCPConn).SetLinger(0) // a reset
			nc.Close()
		}
		return true
	}
	for _, c := range []struct {
		name                   string
		before                 func(n uint64, w http.ResponseWriter) bool
		errors, resets, wrong  int // of 30 requests; errors are at least
		reconnects, unanswered int
	}{
		{name: "answers"},
		{name: "resets one", before: func(n uint64, w http.ResponseWriter) bool { return n == 7 && hangUp(w) }, errors: 1, resets: 1, reconnects: 1},
		{name: "another status", before: func(n uint64, w http.ResponseWriter) bool {
			if n == 7 {
				w.WriteHeader(http.StatusTeapot)
			}
			return n == 7
		}, errors: 1, wrong: 1, reconnects: 1},
		{name: "another's body", before: func(n uint64, w http.ResponseWriter) bool {
			if n == 9 {
				_, _ = w.Write(wire.Pattern(make([]byte, 0, 1000), 8, 0))
			}
			return n == 9
		}, errors: 1, wrong: 1, reconnects: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var served atomic.Int64
			address := webServer(t, 1000, func(n uint64, w http.ResponseWriter) bool {
				defer served.Add(1)
				return c.before != nil && c.before(n, w)
			})
			began := time.Now()
			client := newWebClient(host.Local(), address, workload(t, "web:rate=1000/s,connections=3,size=1000B"))
			if err := client.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			within.Until(t, "30 requests", func() bool { return served.Load() >= 30 })
			client.Stop()
			rec := &record.Migration{Origin: client.due(10).Add(-time.Microsecond),
				Total: record.Total{Wall: 10 * time.Millisecond}}
			if err := client.Note(rec, began, client.until.Add(time.Microsecond)); (err != nil) != (c.wrong > 0) {
				t.Errorf("the workload's check: %v", err)
			}
			web := rec.Web
			if web.Resets != c.resets || web.Wrong != c.wrong || web.Reconnects != c.reconnects || web.Unanswered != 0 ||
				len(web.Phases) != 3 || len(rec.Warnings) != c.errors {
				t.Fatalf("%+v, warnings %q", web, rec.Warnings)
			}
			all, failed := 0, 0
			for i, p := range web.Phases {
				all, failed = all+p.Requests, failed+p.Errors
				if want := []int{10, 10}; i < 2 && p.Requests != want[i] {
					t.Errorf("%s: %d requests, want %d", p.Phase, p.Requests, want[i])
				}
				if p.P50 <= 0 || p.P99 < p.P50 || p.P999 < p.P99 || p.Max < p.P999 {
					t.Errorf("%s: percentiles %v %v %v %v", p.Phase, p.P50, p.P99, p.P999, p.Max)
				}
				if _, err := base64.StdEncoding.DecodeString(p.Histogram); err != nil {
					t.Error(err)
				}
				h, err := hdrhistogram.Decode([]byte(p.Histogram))
				if err != nil || h.TotalCount() != int64(p.Requests-p.Errors) || h.ValueAtPercentile(50) < int64(p.P50) {
					t.Errorf("%s: histogram %v, %v", p.Phase, h, err)
				}
			}
			if all != int(served.Load()) || failed != c.errors {
				t.Errorf("%d requests, %d failed; served %d", all, failed, served.Load())
			}
		})
	}
	if err := newWebClient(host.Local(), "127.0.0.1:1", workload(t, "web")).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "connect to the guest's web server") {
		t.Errorf("nobody serves: %v", err)
	}
}

// TestWebWaits: a server that stands still delays every request that was due meanwhile, and each latency says so; those
// that it never answers are counted too.
func TestWebWaits(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	address := webServer(t, 8, func(n uint64, w http.ResponseWriter) bool {
		if n == 5 {
			close(asked)
			<-release
		}
		return false
	})
	client := newWebClient(host.Local(), address, workload(t, "web:rate=500/s,connections=1,size=8B"))
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-asked
	time.Sleep(time.Until(client.due(40)))
	released := time.Now()
	close(release)
	time.Sleep(time.Until(client.due(45)))
	client.Stop()
	n := 0
	for _, r := range client.conns[0].asked {
		if at := r.due.Sub(client.start); r.due.Before(released) && at >= client.due(5).Sub(client.start) {
			if n++; r.latency < released.Sub(r.due) {
				t.Errorf("due at %v, %v before it could be answered: %v", at, released.Sub(r.due), r.latency)
			}
		}
	}
	if n < 35 {
		t.Errorf("%d requests were due meanwhile, want 35 at least", n)
	}

	hang := make(chan struct{})
	defer close(hang)
	asked = make(chan struct{})
	address = webServer(t, 8, func(n uint64, w http.ResponseWriter) bool {
		if n == 5 {
			close(asked)
			<-hang
		}
		return false
	})
	client = newWebClient(host.Local(), address, workload(t, "web:rate=500/s,connections=1,size=8B"))
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-asked
	time.Sleep(time.Until(client.due(20)))
	client.grace = time.Millisecond
	client.Stop()
	if c := client.conns[0]; len(c.asked) != 5 || c.unanswered < 16 {
		t.Errorf("%d answered, %d not; want 5 and at least 16", len(c.asked), c.unanswered)
	}

	// One that is only slow is given the time that all its answers take.
	address = webServer(t, 8, func(uint64, http.ResponseWriter) bool {
		time.Sleep(30 * time.Millisecond)
		return false
	})
	client = newWebClient(host.Local(), address, workload(t, "web:rate=1000/s,connections=1,size=8B"))
	client.grace = 2 * time.Second
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(client.due(100)))
	client.Stop()
	if c := client.conns[0]; len(c.asked) < 100 || c.unanswered > 0 {
		t.Errorf("%d answered, %d not; want 100 at least, and none", len(c.asked), c.unanswered)
	}
}

// guestStream is the guest's end: it sends the pattern and checks what it gets; alter may change what is sent.
func guestStream(t *testing.T, alter func(position uint64, b []byte) bool) string {
	return within.Echo(t, func(c net.Conn) {
		go func() {
			for position := uint64(0); ; position += 16 {
				b := wire.Pattern(make([]byte, 0, 128), 0, position)
				if alter != nil && !alter(position, b) {
					c.Close()
					return
				}
				if _, err := c.Write(b); err != nil {
					return
				}
				time.Sleep(100 * time.Microsecond)
			}
		}()
		var got []byte
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if len(got) < 64<<10 {
				got = append(got, b[:n]...)
			}
			if err != nil {
				break
			}
		}
		if want := wire.Pattern(make([]byte, 0, len(got)&^7), 0, 0); !bytes.Equal(got[:len(got)&^7], want) {
			t.Errorf("the guest got something else than the pattern in %d bytes", len(got))
		}
	}).String()
}

// TestStreamer: what comes is checked and counted, bin by bin, and what breaks is told.
func TestStreamer(t *testing.T) {
	for _, c := range []struct {
		name   string
		rate   string
		alter  func(position uint64, b []byte) bool
		broken string
	}{
		{"at a rate", "256KiB/s", nil, ""},
		{"as fast as it goes", "0B/s", nil, ""},
		{"a wrong byte", "256KiB/s", func(position uint64, b []byte) bool { b[77] ^= map[bool]byte{true: 1}[position == 640]; return true }, errStream.Error()},
		{"hangs up", "256KiB/s", func(position uint64, b []byte) bool { return position < 640 }, ": "},
	} {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			s := newStreamer(host.Local(), guestStream(t, c.alter), workload(t, "tcp:rate="+c.rate))
			if err := s.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			within.Until(t, "some bytes", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.err != nil || c.broken == "" && s.received.Load() > 10_000
			})
			time.Sleep(3 * streamBin) // for bins to be whole
			s.Stop()
			rec := &record.Migration{Origin: began}
			if err := s.Note(rec, began, time.Now()); (err != nil) != (c.broken == errStream.Error()) {
				t.Errorf("the workload's check: %v", err)
			}
			x := rec.Stream
			if x.Survived != (c.broken == "") || !strings.Contains(x.Broken, c.broken) || x.Received == 0 ||
				x.Retransmits == nil {
				t.Errorf("%+v", x)
			}
			if c.broken != "" {
				return
			}
			if x.Acked == 0 {
				t.Error("nothing was acknowledged")
			}
			if len(rec.Timeline) != 3 || rec.Timeline[0].Name != "tcp_received" || rec.Timeline[1].Name != "tcp_acked" {
				t.Fatalf("%d rows", len(rec.Timeline))
			}
			sum := 0.0
			for _, v := range rec.Timeline[0].Values {
				if v != nil {
					sum += *v * streamBin.Seconds()
				}
			}
			if sum <= 0 || sum > float64(x.Received)+1 {
				t.Errorf("%v bytes in the bins of %d", sum, x.Received)
			}
		})
	}
	if err := newStreamer(host.Local(), "127.0.0.1:1", workload(t, "tcp")).Start(t.Context()); err == nil {
		t.Error("connected to nobody")
	}
}

// TestWebLongWait: a guest that stood still for longer than a minute has percentiles that say so.
func TestWebLongWait(t *testing.T) {
	origin := time.Now()
	var asked []request
	for i := range 100 {
		asked = append(asked, request{due: origin.Add(time.Duration(i) * time.Second),
			latency: 3*time.Minute - time.Duration(i)*time.Second})
	}
	c := &webClient{rate: 1, size: 1, number: 1, conns: []*webConn{{asked: asked}}}
	rec := &record.Migration{Origin: origin, Total: record.Total{Wall: 100 * time.Second}}
	if err := c.Note(rec, origin.Add(-time.Second), origin.Add(101*time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, p := range rec.Web.Phases {
		if p.Phase == "during" && (p.P50 < 2*time.Minute || p.P99 < 2*time.Minute+50*time.Second || p.P99 > p.Max ||
			p.Max != 3*time.Minute) {
			t.Errorf("p50 %v, p99 %v, max %v of latencies from 81 s to 180 s", p.P50, p.P99, p.Max)
		}
	}
}
