package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
)

// What is spread comes to what was counted, whatever its fractions, and is not told before its time is over.
func TestSpread(t *testing.T) {
	m := &meter{start: time.Hour}
	m.lag()
	var s wire.Status
	m.read(&s, wire.Bins{}, time.Hour+10*time.Second, false)
	if s.Events != 0 || len(s.Bins) != 0 {
		t.Errorf("before the first report: %+v", s)
	}
	rest, at, all := 0.0, time.Hour, 0.0
	for i := range 100 {
		n := 0.3 + float64(i%7)*11.9
		to := at + time.Second + time.Duration(i%5)*13*time.Millisecond
		rest = m.spread(at, to, n+rest)
		at, all = to, all+n
	}
	m.read(&s, wire.Bins{Max: -1}, at+time.Hour, false)
	if float64(s.Events) > all || float64(s.Events) < all-1 {
		t.Errorf("%d events, want %.1f", s.Events, all)
	}
	var sum uint64
	for next := int64(0); ; next = s.Next {
		s.Bins = nil
		m.read(&s, wire.Bins{From: next}, at, true)
		for _, n := range s.Bins {
			sum += n
		}
		if len(s.Bins) == 0 {
			break
		}
	}
	if sum != s.Events {
		t.Errorf("the bins have %d of %d events", sum, s.Events)
	}
	m = &meter{}
	m.lag()
	m.spread(0, time.Second, 1000)
	m.read(&s, wire.Bins{}, 5*time.Second, false)
	s.Bins = nil
	m.read(&s, wire.Bins{}, 5*time.Second, false)
	for i, n := range s.Bins {
		if n < 8 || n > 11 {
			t.Errorf("bin %d has %d of 1000 events in a second", i, n)
		}
	}
	if len(s.Bins) != 100 {
		t.Errorf("%d bins of a second", len(s.Bins))
	}
}

// Process 1 reaps orphans, and takes nobody's status away that is waited for.
func TestReap(t *testing.T) {
	var c children
	for range 20 {
		own := &exec.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", "exit 7"}}
		if err := c.start(own); err != nil {
			t.Fatal(err)
		}
		orphan := exec.Command("/bin/sh", "-c", "exit 3")
		if err := orphan.Start(); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-stop:
					return
				default:
					c.reap()
				}
			}
		}()
		if err := c.wait(own); err == nil || err.Error() != "exit status 7" {
			t.Errorf("a child of ours: %v", err)
		}
		for i := 0; ; i++ {
			if err := unix.Kill(orphan.Process.Pid, 0); err == unix.ESRCH {
				break
			}
			if i > 2000 {
				t.Fatal("the orphan stays a zombie")
			}
			time.Sleep(5 * time.Millisecond)
		}
		close(stop)
		<-done
		_ = orphan.Process.Release()
	}
}

// script is a program of a test's.
func script(t *testing.T, text string) []string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{name}
}

const forever = "\nwhile :; do sleep 0.05; done"

// runTool runs a workload until it has made so many reports, or ends; want is part of its error.
func runTool(t *testing.T, load workload, reports int, want string) wire.Tooled {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m := &meter{start: newMonotonic().now()}
	done := make(chan error, 1)
	go func() { done <- load.run(ctx, m) }()
	var err error
	ended := false
	for deadline := time.Now().Add(20 * time.Second); !ended && load.result().(wire.Tooled).Reports < reports; {
		select {
		case err = <-done:
			ended = true
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %d reports: %+v", reports, load.result())
		}
	}
	if !ended {
		cancel()
		err = <-done
	}
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want an error with %q", err, want)
	}
	return load.result().(wire.Tooled)
}

func TestSysbench(t *testing.T) {
	for _, c := range []struct {
		name, script, want string
		reports            int
	}{
		{"in order", "echo Threads started!; for i in 1 2 3; do echo \"[ ${i}s ] thds: 1 eps: 100.00 lat (ms,95%): 0.5\"; sleep 0.05; done" + forever, "", 3},
		{"one left out", "for i in 1 3 4; do echo \"[ ${i}s ] thds: 1 eps: 100.00 lat (ms,95%): 0.5\"; sleep 0.05; done" + forever, "", 3},
		{"one twice", "echo '[ 1s ] thds: 1 eps: 9.00 lat (ms,95%): 0.5'; echo '[ 1s ] thds: 1 eps: 9.00 lat (ms,95%): 0.5'" + forever, "reported second 1 after 1", 9},
		{"dies", "echo '[ 1s ] thds: 1 eps: 9.00 lat (ms,95%): 0.5'; echo FATAL: no memory >&2; exit 3", "ended by itself (exit status 3): it said", 9},
		{"dies in order", "echo done", "ended by itself", 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAgent(newMonotonic())
			r := &reporter{counter: counter{a: a, name: "sysbench"}, read: (*reporter).sysbench, args: script(t, c.script)}
			done := runTool(t, r, c.reports, c.want)
			if c.want != "" {
				return
			}
			if done.Reports < c.reports || done.Events <= 0 || done.Time <= 0 {
				t.Errorf("%+v", done)
			}
			var note wire.Note
			var counted wire.Counted
			if err := json.Unmarshal(<-a.notes, &note); err != nil || note.Event != wire.EventCounted || json.Unmarshal(note.Data, &counted) != nil || counted.Workload != "sysbench" || counted.To <= counted.From {
				t.Errorf("%v %+v %+v", err, note, counted)
			}
		})
	}
}

func TestIperf(t *testing.T) {
	interval := func(from, to, resent int) string {
		return fmt.Sprintf("echo '[  5]   %d.00-%d.00   sec  1 MBytes  8000 Kbits/sec  %d   1.00 MBytes'\n", from, to, resent)
	}
	end := func(kbits, resent int) string {
		return fmt.Sprintf("trap \"echo '- - - - -'; echo '[  5]   0.00-2.00   sec  2 MBytes  %d Kbits/sec  %d   sender'; exit 1\" INT\n", kbits, resent)
	}
	for name, c := range map[string]struct{ script, want string }{
		"agrees":               {end(8000, 7) + interval(0, 1, 3) + interval(1, 2, 4) + forever, ""},
		"another sum":          {end(9000, 7) + interval(0, 1, 3) + interval(1, 2, 4) + forever, "counted 2250000 bytes in all, and its reports 2000000"},
		"other retransmits":    {end(8000, 8) + interval(0, 1, 3) + interval(1, 2, 4) + forever, "sent 8 segments again by its summary, 7 by its reports"},
		"cannot connect":       {"echo 'iperf3: error - unable to connect to server' >&2; exit 1", "unable to connect"},
		"ends by itself later": {interval(0, 1, 0) + "exit 0", "ended by itself"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &reporter{counter: counter{a: newAgent(newMonotonic()), name: "iperf3"}, read: (*reporter).iperf, end: unix.SIGINT, args: script(t, c.script)}
			done := runTool(t, r, 2, c.want)
			if c.want == "" && (done.Events != 2e6 || done.Retransmits == nil || *done.Retransmits != 7) {
				t.Errorf("%+v", done)
			}
		})
	}
}

func TestStressNG(t *testing.T) {
	const metrics = "echo 'stress-ng: metrc: [1] cpu  %d  1.00  0.5  0.0  7.0  13.0' >&2; sleep 0.02; exit %d"
	for name, c := range map[string]struct{ script, want string }{
		"passes":          {fmt.Sprintf(metrics, 7, 0), ""},
		"does not verify": {fmt.Sprintf(metrics, 7, 2), "failed its own check (exit status 2)"},
		"did nothing":     {fmt.Sprintf(metrics, 0, 0), "failed its own check"},
		"says nothing":    {"exit 0", "failed its own check"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &rounds{counter: counter{a: newAgent(newMonotonic()), name: "stress-ng"}, args: script(t, c.script)}
			if done := runTool(t, r, 3, c.want); c.want == "" && done.Events != float64(7*done.Reports) {
				t.Errorf("%+v", done)
			}
		})
	}
}

func TestDaemons(t *testing.T) {
	a := newAgent(newMonotonic())
	if _, err := a.newDaemons(daemon{script(t, "echo no such user >&2; exit 1"), 1}); err == nil || !strings.Contains(err.Error(), `ended by itself: it said "no such user"`) {
		t.Error(err)
	}
	if _, err := a.newDaemons(daemon{[]string{"redis-that-is-not-there"}, 1}); err == nil || !strings.Contains(err.Error(), "there is no redis-that-is-not-there in this guest") {
		t.Error(err)
	}
}

// A server's end is its own, whatever it has left running with its pipe.
func TestServerEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := newAgent(newMonotonic())
	left := filepath.Join(t.TempDir(), "pid")
	d, err := a.newDaemons(daemon{script(t, "setsid sleep 60 & echo $! > "+left+forever), l.Addr().(*net.TCPAddr).Port})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); word(left) == ""; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server did not start")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.run(ctx, nil); err != nil {
		t.Error(err)
	}
	pid, err := strconv.Atoi(word(left))
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
}

func TestPutFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	if _, err := putFile(wire.PutFile{Path: name, Data: []byte("secret"), Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(name)
	if b, readErr := os.ReadFile(name); err != nil || readErr != nil || string(b) != "secret" || info.Mode().Perm() != 0o600 {
		t.Errorf("%q %v %v %v", b, info.Mode(), err, readErr)
	}
	for _, f := range []wire.PutFile{{Path: "relative"}, {Path: filepath.Join(name, "in a file")}} {
		if _, err := putFile(f); err == nil {
			t.Errorf("%s was written", f.Path)
		}
	}
}
