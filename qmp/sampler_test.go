package qmp_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"qmigrate/qmp"
)

const (
	sampleLine  = `{"execute":"query-migrate"}` + "\n"
	activeReply = `{"return": {"expected-downtime": 300, "status": "active", "setup-time": 1, "total-time": 1530, "new": [{"a": "}"}, null], ` +
		`"ram": {"total": 67641344, "postcopy-requests": 0, "dirty-sync-count": 3, "multifd-bytes": 0, "pages-per-second": 32760, ` +
		`"page-size": 4096, "remaining": 9596928, "mbps": 268.5, "transferred": 155142, "duplicate": 14150, "dirty-pages-rate": 12, ` +
		`"skipped": 0, "normal-bytes": 8192, "normal": 2}, "cpu-throttle-percentage": 20}}` + "\r\n"
)

// samplerReady is the reply to a Sampler's qmp_capabilities.
const samplerReady = `{"return": {}, "id": "sampler"}` + "\r\n"

// TestFormerClient: what was asked by a client that has gone is answered to the next one, before the greeting or after it.
func TestFormerClient(t *testing.T) {
	stale := `{"return": {"status": "cancelled"}, "id": 38}` + "\r\n" + `{"error": {"class": "GenericError", "desc": "no"}, "id": 39}` + "\r\n" + `{"return": {"status": "cancelled"}}` + "\r\n"
	for name, script := range map[string][2]string{"before the greeting": {stale + greetingLine, ""}, "after it": {greetingLine, stale}} {
		t.Run(name, func(t *testing.T) {
			play := func(ready, answer string) net.Conn {
				return fake(t, func(nc net.Conn) {
					in := bufio.NewReader(nc)
					io.WriteString(nc, script[0])
					in.ReadString('\n')
					io.WriteString(nc, script[1]+ready)
					in.ReadString('\n')
					io.WriteString(nc, answer)
					io.Copy(io.Discard, in)
				})
			}
			s, err := qmp.NewSampler(limit(t), play(samplerReady, activeReply))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var m qmp.MigrationInfo
			if err := s.QueryMigrate(&m); err != nil || m.Status != "active" {
				t.Errorf("%+v, %v", m, err)
			}
			c, err := qmp.NewConn(limit(t), play(readyLine, `{"return": {"status": "running", "running": true}, "id": 2}`+"\r\n"), qmp.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if st, err := c.QueryStatus(limit(t)); err != nil || !st.Running {
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
}

// sampling is a Sampler whose monitor answers what reply gives for the n-th question.
func sampling(t testing.TB, reply func(n int) string) *qmp.Sampler {
	t.Helper()
	nc := fake(t, func(nc net.Conn) {
		in := bufio.NewReader(nc)
		io.WriteString(nc, greetingLine)
		in.ReadString('\n')
		io.WriteString(nc, samplerReady)
		for n := 0; ; n++ {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			if line != sampleLine {
				t.Errorf("got %q, want %q", line, sampleLine)
			}
			io.WriteString(nc, reply(n))
		}
	})
	s, err := qmp.NewSampler(limit(t), nc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSamplerValues(t *testing.T) {
	s := sampling(t, func(int) string { return `{"event": "STOP", "data": {"return": 1}}` + "\r\n" + activeReply })
	m := qmp.MigrationInfo{ErrorDesc: "old", PostcopyBytes: 7, Has: ^qmp.Fields(0)}
	if err := s.QueryMigrate(&m); err != nil {
		t.Fatal(err)
	}
	want := qmp.MigrationInfo{
		Has: qmp.FieldStatus | qmp.FieldTotalTime | qmp.FieldSetupTime | qmp.FieldExpectedDowntime | qmp.FieldTransferred | qmp.FieldRemaining |
			qmp.FieldTotal | qmp.FieldNormal | qmp.FieldNormalBytes | qmp.FieldMultifdBytes | qmp.FieldDuplicate | qmp.FieldDirtyPagesRate |
			qmp.FieldPagesPerSecond | qmp.FieldDirtySyncCount | qmp.FieldPageSize | qmp.FieldPostcopyRequests | qmp.FieldThroughput | qmp.FieldThrottlePercent,
		Status: "active", TotalTime: 1530 * time.Millisecond, SetupTime: time.Millisecond, ExpectedDowntime: 300 * time.Millisecond,
		Transferred: 155142, Remaining: 9596928, Total: 67641344, NormalBytes: 8192, Normal: 2, Duplicate: 14150, DirtyPagesRate: 12,
		PagesPerSecond: 32760, DirtySyncCount: 3, PageSize: 4096, Throughput: 268.5e6 / 8, ThrottlePercent: 20,
	}
	if !equal(m, want) {
		t.Errorf("got  %+v\nwant %+v", m, want)
	}
}

// equal compares what the parser set; the lists are compared elsewhere.
func equal(a, b qmp.MigrationInfo) bool {
	a.BlockedReasons, a.SocketAddress, b.BlockedReasons, b.SocketAddress = nil, nil, nil, nil
	return len(a.BlockedReasons) == len(b.BlockedReasons) && structString(a) == structString(b)
}

func TestSamplerAllocations(t *testing.T) {
	for name, reply := range map[string]string{
		"active":  activeReply,
		"unknown": strings.ReplaceAll(activeReply, `"active"`, `"a-status-of-a-newer-qemu"`),
		"event":   `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION_PASS", "data": {"pass": 1}}` + "\r\n" + activeReply,
		"failed":  `{"return": {"status": "failed", "error-desc": "a reason", "blocked-reasons": ["a", "b"]}}` + "\r\n",
		"address": `{"return": {"socket-address": [{"path": "/run/m.sock", "type": "unix"}], "status": "setup"}}` + "\r\n",
		"idle":    `{"return": {}}` + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			// the fake must not allocate either, for AllocsPerRun counts the whole process
			answer, buf := []byte(reply), make([]byte, 4096)
			nc := fake(t, func(nc net.Conn) {
				io.WriteString(nc, greetingLine)
				nc.Read(buf)
				io.WriteString(nc, samplerReady)
				for {
					if _, err := nc.Read(buf); err != nil {
						return
					}
					nc.Write(answer)
				}
			})
			s, err := qmp.NewSampler(limit(t), nc)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var m qmp.MigrationInfo
			if n := testing.AllocsPerRun(200, func() {
				if err := s.QueryMigrate(&m); err != nil {
					t.Fatal(err)
				}
			}); n != 0 {
				t.Errorf("%v allocations a call, want 0", n)
			}
		})
	}
}

func TestSamplerUnknown(t *testing.T) {
	replies := []string{
		`{"return": {"status": "teleporting"}}`,
		`{"return": {"status": "\u0061ctive", "\u0072am": {"total": 5}}}`,
		`{"return": {"status": 5, "total-time": "long", "downtime": 1.5, "ram": 3, "blocked-reasons": {}}}`,
		`{"return": {"total-time": 9223372036854775807, "ram": {"total": 9223372036854775808, "remaining": -9223372036854775808, "mbps": 1e999, "normal": 1e3}}}`,
		`{"return": {"ram": {"total": 5, "normal": 1}, "ram": {"total": 6}, "status": "a", "status": null}}`,
		`{"return": {"blocked-reasons": ["x"], "error-desc": "\"why\""}}`,
	}
	want := []qmp.MigrationInfo{
		{Has: qmp.FieldStatus, Status: "teleporting"},
		{Has: qmp.FieldStatus | qmp.FieldTotal, Status: "active", Total: 5},
		{},
		{Has: qmp.FieldTotalTime | qmp.FieldRemaining, TotalTime: 9223372036854 * time.Millisecond, Remaining: -9223372036854775808},
		{Has: qmp.FieldTotal, Total: 6},
		{Has: qmp.FieldBlockedReasons | qmp.FieldErrorDesc, ErrorDesc: `"why"`},
	}
	s := sampling(t, func(n int) string { return replies[n] + "\r\n" })
	for i := range replies {
		var m qmp.MigrationInfo
		if err := s.QueryMigrate(&m); err != nil || !equal(m, want[i]) {
			t.Errorf("%s\ngot  %+v, %v\nwant %+v", replies[i], m, err, want[i])
		}
	}
}

func TestSamplerRefused(t *testing.T) {
	replies := []string{`{"error": {"class": "GenericError", "desc": "not now", "command": "x"}}`, `{"return": {"status": "none"}}`, `{"return": [1]}`, `{"return": {"status": "setup"}}`}
	s := sampling(t, func(n int) string { return replies[n] + "\r\n" })
	m := qmp.MigrationInfo{Has: 1}
	var refused *qmp.CommandError
	if err := s.QueryMigrate(&m); !errors.As(err, &refused) || *refused != (qmp.CommandError{Command: "query-migrate", Class: "GenericError", Desc: "not now"}) || m.Has != 0 {
		t.Errorf("%+v, %v", m, err)
	}
	if err := s.QueryMigrate(&m); err != nil || m.Status != "none" {
		t.Errorf("after a refusal: %+v, %v", m, err)
	}
	if err := s.QueryMigrate(&m); err == nil || m.Has != 0 {
		t.Errorf("an array: %+v, %v", m, err)
	}
	if err := s.QueryMigrate(&m); err != nil || m.Status != "setup" {
		t.Errorf("after an array: %+v, %v", m, err)
	}
}

// TestSamplerDeadline has an answer that comes too late: the next call must not take it for its own.
func TestSamplerDeadline(t *testing.T) {
	release := make(chan struct{})
	s := sampling(t, func(n int) string {
		if n == 0 {
			<-release
			return `{"return": {"status": "setup"}}` + "\r\n"
		}
		return `{"return": {"status": "active"}}` + "\r\n"
	})
	var m qmp.MigrationInfo
	for range 2 {
		s.SetDeadline(time.Now().Add(10 * time.Millisecond))
		var broken *qmp.OpError
		if err := s.QueryMigrate(&m); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &broken) || errors.Is(err, qmp.ErrDisconnected) {
			t.Errorf("%v", err)
		}
	}
	close(release)
	s.SetDeadline(time.Time{})
	if err := s.QueryMigrate(&m); err != nil || m.Status != "active" {
		t.Errorf("%+v, %v; want active, the answer to this question", m, err)
	}
}

func TestSamplerDeath(t *testing.T) {
	for n := range len(activeReply) {
		nc := fake(t, func(nc net.Conn) {
			io.WriteString(nc, greetingLine+samplerReady+activeReply[:n])
			nc.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, nc)
		})
		s, err := qmp.NewSampler(limit(t), nc)
		if err != nil {
			t.Fatal(err)
		}
		m := qmp.MigrationInfo{Has: 1}
		err = s.QueryMigrate(&m)
		if n == len(activeReply)-2 || n == len(activeReply)-1 { // only the line's end is missing
			if err != nil {
				t.Errorf("whole answer: %v", err)
			}
			continue
		}
		checkDisconnected(t, n, err)
		if m.Has != 0 {
			t.Errorf("cut after %d bytes: %+v", n, m)
		}
		checkDisconnected(t, n, s.QueryMigrate(&m))
		s.Close()
	}
}

func TestSamplerGarbage(t *testing.T) {
	for _, reply := range []string{"hello", `{"return": tru}`, `{"return": {"status": }}`, `{"return": {"a": "` + "\n", `{"return":[}`, `{"error": 5}`} {
		s := sampling(t, func(int) string { return reply + "\r\n" })
		checkDisconnected(t, 0, s.QueryMigrate(new(qmp.MigrationInfo)))
	}
}

func TestSamplerClose(t *testing.T) {
	asked := make(chan struct{})
	s := sampling(t, func(int) string { close(asked); time.Sleep(10 * time.Millisecond); return "" })
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := s.QueryMigrate(new(qmp.MigrationInfo)); !errors.Is(err, net.ErrClosed) || errors.Is(err, qmp.ErrDisconnected) {
			t.Errorf("%v", err)
		}
	})
	<-asked
	s.Close()
	wait.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func structString(m qmp.MigrationInfo) string { return fmt.Sprintf("%+v", m) }
