package load

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"qmigrate/engine/lab/observe"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// fakeRedis knows the commands that the writer sends; spoil may change what it holds.
type fakeRedis struct {
	listener net.Listener
	all      sync.WaitGroup
	answers  int // after so many to RPUSH a connection is cut instead; 0: never

	mu     sync.Mutex
	lists  map[string][]string
	pushes int
}

func serveRedis(t *testing.T, answers int) *fakeRedis {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeRedis{listener: l, lists: map[string][]string{}, answers: answers}
	f.all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.all.Go(func() { defer c.Close(); f.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); f.all.Wait() })
	return f
}

func (f *fakeRedis) serve(c net.Conn) {
	r := bufio.NewReader(c)
	line := func() string { s, _ := r.ReadString('\n'); return strings.TrimRight(s, "\r\n") }
	for {
		n, err := strconv.Atoi(strings.TrimPrefix(line(), "*"))
		if err != nil {
			return
		}
		var args []string
		for range n {
			line()
			args = append(args, line())
		}
		f.mu.Lock()
		switch args[0] {
		case "DEL":
			delete(f.lists, args[1])
			fmt.Fprint(c, ":0\r\n")
		case "RPUSH":
			f.lists[args[1]] = append(f.lists[args[1]], args[2])
			if f.pushes++; f.pushes == f.answers {
				f.mu.Unlock()
				return
			}
			fmt.Fprintf(c, ":%d\r\n", len(f.lists[args[1]]))
		case "LLEN":
			fmt.Fprintf(c, ":%d\r\n", len(f.lists[args[1]]))
		case "LRANGE":
			from, _ := strconv.Atoi(args[2])
			to, _ := strconv.Atoi(args[3])
			part := f.lists[args[1]][from:min(to+1, len(f.lists[args[1]]))]
			fmt.Fprintf(c, "*%d\r\n", len(part))
			for _, v := range part {
				fmt.Fprintf(c, "$%d\r\n%s\r\n", len(v), v)
			}
		case "INFO":
			const info = "# Server\r\nredis_version:9\r\n"
			fmt.Fprintf(c, "$%d\r\n%s\r\n", len(info), info)
		default:
			fmt.Fprintf(c, "-ERR unknown command '%s'\r\n", args[0])
		}
		f.mu.Unlock()
	}
}

// The writer finds each kind of damage, and none where there is none.
func TestRedisWriter(t *testing.T) {
	for name, c := range map[string]struct {
		answers             int
		spoil               func(lists map[string][]string)
		lost, wrong, resets int
	}{
		"whole":             {},
		"an answer is lost": {answers: 50, resets: 1},
		"a write is lost":   {spoil: func(l map[string][]string) { l[list(2)] = l[list(2)][:len(l[list(2)])-1] }, lost: 1},
		"one in the middle": {spoil: func(l map[string][]string) { l[list(1)] = slices.Delete(l[list(1)], 3, 4) }, lost: 1, wrong: -1},
		"all of a list":     {spoil: func(l map[string][]string) { l[list(3)] = nil }, lost: -1},
		"a changed value":   {spoil: func(l map[string][]string) { l[list(0)][2] = "x" + l[list(0)][2][1:] }, wrong: 1},
		"a write twice":     {spoil: func(l map[string][]string) { l[list(0)] = append(l[list(0)], l[list(0)][0]) }, wrong: 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := serveRedis(t, c.answers)
			host := toPort{host.Local(), f.listener.Addr().String()}
			w, err := startRedis(t.Context(), host, netip.MustParseAddr("127.0.0.1"), 0, 64,
				new(observe.Tallies).Row("redis_writes", "writes/s", "a test", time.Second))
			if err != nil {
				t.Fatal(err)
			}
			within.Until(t, "writes to each list", func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return slices.Min(w.acked[:]) > 30
			})
			w.stop()
			w.all.Wait()
			if c.spoil != nil {
				f.mu.Lock()
				c.spoil(f.lists)
				f.mu.Unlock()
			}
			r := w.finish(t.Context())
			check := func(what string, got int64, want int) {
				if want < 0 && got < 1 || want >= 0 && got != int64(want) {
					t.Errorf("%s: %d, want %d (-1: some)", what, got, want)
				}
			}
			check("lost", r.Lost, c.lost)
			check("wrong", r.Wrong, c.wrong)
			check("resets", int64(r.Resets), c.resets)
			if bad := len((&record.Tools{Redis: r}).Failures()) > 0; bad != (c.spoil != nil || c.resets > 0) {
				t.Errorf("%+v: a failure: %v", r, bad)
			}
			if r.Acknowledged < 120 || r.Connections != redisConnections || r.Longest == nil || r.Error != "" && c.spoil == nil {
				t.Errorf("%+v", r)
			}
		})
	}
}

// A list that redis refuses to append to, and one that is no redis at all, are failures and no lost writes.
func TestRedisRefuses(t *testing.T) {
	for name, answer := range map[string]string{"refused": "-OOM command not allowed\r\n", "nonsense": "hello\r\n",
		"too long": "$99999999\r\n"} {
		t.Run(name, func(t *testing.T) {
			c := &redisConn{r: bufio.NewReader(strings.NewReader(answer))}
			v, err := c.answer()
			if err == nil || v != nil {
				t.Errorf("%v %v", v, err)
			}
		})
	}
}

// What a session's lines say is taken for what it is.
func TestSSHLines(t *testing.T) {
	for name, c := range map[string]struct {
		lines       []string
		received    int64
		lost        int64
		ended, fine bool
	}{
		"all":             {[]string{"0", "1", "2", "end 3"}, 3, 0, true, true},
		"one is missing":  {[]string{"0", "2", "end 3"}, 2, 1, true, true},
		"the last ones":   {[]string{"0", "1", "end 5"}, 2, 3, true, true},
		"one comes twice": {[]string{"0", "1", "1"}, 2, 0, false, false},
		"half a line":     {[]string{"0", "1", "en"}, 2, 0, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &sshSession{tally: new(observe.Tallies).Row("ssh_lines", "lines/s", "a test", time.Second),
				first: make(chan struct{})}
			fine := true
			for _, line := range c.lines {
				fine = fine && s.take(line, time.Now())
			}
			if got := s.next - s.lost; got != c.received || s.lost != c.lost || s.ended != c.ended || fine != c.fine {
				t.Errorf("%d received, %d lost, ended %v, fine %v (%v)", got, s.lost, s.ended, fine, s.err)
			}
		})
	}
}

// The server's lines come in any pieces.
func TestIperfServer(t *testing.T) {
	s := &iperfServer{listening: make(chan struct{}),
		tally: new(observe.Tallies).Row("iperf3_received", "bytes/s", "a test", time.Second)}
	for _, piece := range []string{"-----------\nServer list", "ening on 5201 (test #1)\n",
		"[  5]   0.00-1.00   sec  1 MBytes  8000 Kbits/sec\n[  5]   1.00-2.00  ",
		" sec  1 MBytes  16000 Kbits/sec\n", "- - - - - -\n[  5]   0.00-2.10   sec  3 MBytes  12000 Kbits/sec                  receiver\n"} {
		if n, err := s.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	select {
	case <-s.listening:
	default:
		t.Error("it does not listen")
	}
	if s.whole == nil || math.Abs(s.whole.Bytes-3.15e6) > 1 {
		t.Errorf("the whole is %+v", s.whole)
	}
	if spans := s.tally.Take(); len(spans) != 2 || spans[0].N != 1e6 || spans[1].N != 2e6 {
		t.Errorf("%+v", spans)
	}
}

func TestVersion(t *testing.T) {
	name := filepath.Join(t.TempDir(), "packages")
	if err := os.WriteFile(name, []byte("redis-tools_5%3a7.0.15-1_amd64\nsysbench_1.0.20+ds-5_amd64\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]string{"sysbench": "1.0.20+ds-5", "redis-tools": "5:7.0.15-1", "sys": ""} {
		if got := version(name, program); got != want {
			t.Errorf("%s %s, want %s", program, got, want)
		}
	}
}

// toPort is a host from which every address is one on this machine.
type toPort struct {
	host.Host
	address string
}

func (h toPort) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return h.Host.Dial(ctx, network, h.address)
}

// A program that failed, was not stopped, or reported nothing has not passed; and only what has passed is no failure.
func TestProgram(t *testing.T) {
	w := wire.Workload{Name: "sysbench"}
	good := []byte(`{"reports":3,"events":9.5,"time_ns":3000000000}`)
	for name, c := range map[string]struct {
		status wire.Status
		want   string
	}{
		"passed":           {wire.Status{Workload: w, State: wire.Done, Result: good}, ""},
		"failed":           {wire.Status{Workload: w, State: wire.Failed, Error: "sysbench reported second 3 after 1", Result: good}, "second 3 after 1"},
		"not stopped":      {wire.Status{Workload: w, State: wire.Running, Result: good}, "not stopped"},
		"does not answer":  {wire.Status{}, "not stopped"},
		"without a result": {wire.Status{Workload: w, State: wire.Done}, "has no result"},
		"without a report": {wire.Status{Workload: w, State: wire.Done, Result: []byte(`{}`)}, "reported nothing"},
	} {
		tools := &Tools{workload: w, tally: new(observe.Tallies).Row("x", "events/s", "a test", time.Second)}
		rec := &record.Migration{}
		tools.Finish(t.Context(), rec)(c.status)
		all := rec.ToolFailures()
		if (len(all) == 0) != (c.want == "") || c.want != "" && !strings.Contains(strings.Join(all, ""), c.want) ||
			len(rec.Warnings) != len(all) {
			t.Errorf("%s: %q, warnings %q", name, all, rec.Warnings)
		}
	}
}
