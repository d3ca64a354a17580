package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
)

// newTool makes the workloads that are programs; ok is false for others.
func (a *agent) newTool(w wire.Workload) (load workload, ok bool, err error) {
	vcpus := strconv.Itoa(runtime.NumCPU())
	switch w.Name {
	case "sysbench":
		load = &reporter{counter: counter{a: a, name: w.Name}, read: (*reporter).sysbench,
			args: []string{"sysbench", "cpu", "--threads=" + vcpus, "--time=0", "--events=0", "--report-interval=1", "run"}}
	case "iperf3":
		r := &reporter{counter: counter{a: a, name: w.Name}, read: (*reporter).iperf, end: unix.SIGINT,
			args: []string{"iperf3", "-c", a.boot.Gateway.String(), "-p", strconv.Itoa(wire.IperfPort), "-t", "0", "-i", "1",
				"-f", "k", "--forceflush"}}
		if w.Choice("direction") == "receive" {
			r.args = append(r.args, "-R")
		}
		load = r
	case "stress-ng":
		load = &rounds{counter: counter{a: a, name: w.Name},
			args: []string{"stress-ng", "--cpu", vcpus, "--cpu-method", w.Choice("method"), "--timeout", "1", "--verify",
				"--metrics-brief", "--temp-path", "/tmp"}}
	case "redis":
		load, err = a.newDaemons(redisDaemon())
	case "ssh":
		load, err = a.newDaemons(sshDaemon())
	case "survive":
		load, err = a.newSurvive()
	default:
		return nil, false, nil
	}
	return load, true, err
}

// program is one of the guest's programs with the environment that a login would give it.
func program(args ...string) (*exec.Cmd, error) {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"}
	path := args[0]
	if !strings.HasPrefix(path, "/") {
		for dir := range strings.SplitSeq(strings.TrimPrefix(env[0], "PATH="), ":") {
			if _, err := os.Stat(dir + "/" + args[0]); err == nil {
				path = dir + "/" + args[0]
				break
			}
		}
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("there is no %s in this guest", args[0])
	}
	return &exec.Cmd{Path: path, Args: args, Env: env, Dir: "/"}, nil
}

// counter passes on what a tool reported: to the workload's meter, on the guest's clock, and to the host as it is told.
type counter struct {
	a    *agent
	name string

	mu       sync.Mutex
	reports  int
	events   float64
	from, to time.Duration // of all reports
	resent   *int64
	carry    float64 // the fraction of an event that the meter has not got yet
}

// count takes a report of so many events between two times of the guest's clock.
func (c *counter) count(m *meter, from, to time.Duration, events float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reports == 0 {
		c.from = from
	}
	c.reports++
	c.events += events
	c.to = to
	c.carry = m.spread(from, to, events+c.carry)
	c.a.note(wire.EventCounted, wire.Counted{Workload: c.name, Events: events, From: from, To: to})
}

func (c *counter) result() any {
	c.mu.Lock()
	defer c.mu.Unlock()
	return wire.Tooled{Reports: c.reports, Events: c.events, Time: c.to - c.from, Retransmits: c.resent}
}

// reporter is a program that runs all the time and prints a line about each second.
type reporter struct {
	counter
	args []string
	end  unix.Signal // by which it ends in order; 0: SIGKILL
	read func(r *reporter, m *meter, line string, last, now time.Duration) (counted bool, err error)

	second  int     // sysbench's last
	whole   float64 // iperf3's own sum; 0: not seen
	summary bool
}

// lastLines is how much of what a program said is kept for its error.
const lastLines = 5

func (r *reporter) run(ctx context.Context, m *meter) error {
	m.lag()
	cmd, err := program(r.args...)
	if err != nil {
		return err
	}
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	last := r.a.clock.now()
	if err := r.a.children.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", r.args[0], err)
	}
	ended := make(chan error, 1)
	go func() {
		err := r.a.children.wait(cmd)
		in.Close()
		ended <- err
	}()
	asked := make(chan struct{})
	halt := context.AfterFunc(ctx, func() {
		close(asked)
		if r.end == 0 {
			stop(cmd, unix.SIGKILL)
			return
		}
		stop(cmd, r.end)
		time.AfterFunc(stopLimit/2, func() { stop(cmd, unix.SIGKILL) })
	})
	defer halt()
	var said []string
	var wrong error
	for lines := bufio.NewScanner(out); lines.Scan(); {
		now := r.a.clock.now()
		counted, err := r.read(r, m, lines.Text(), last, now)
		if counted {
			last = now
		}
		if wrong == nil && err != nil {
			wrong = err
			stop(cmd, unix.SIGKILL)
		}
		if said = append(said, strings.TrimSpace(lines.Text())); len(said) > lastLines {
			said = said[1:]
		}
	}
	_, _ = io.Copy(io.Discard, out) // after a line that was too long
	err = <-ended
	select {
	case <-asked: // it had to end
	default:
		if wrong == nil {
			wrong = fmt.Errorf("%s ended by itself (%v): it said %q", r.args[0], err, strings.Join(said, "; "))
		}
	}
	if wrong == nil {
		wrong = r.agree()
	}
	return wrong
}

// sysbench reads a line of sysbench's. It leaves a second out when it gets no processor for so long; the rate that
// follows is over the whole time.
func (r *reporter) sysbench(m *meter, line string, last, now time.Duration) (bool, error) {
	second, rate, ok := wire.Sysbench(line)
	if !ok {
		return false, nil
	}
	if second <= r.second {
		return false, fmt.Errorf("sysbench reported second %d after %d", second, r.second)
	}
	from := max(last, now-time.Second)
	if r.second > 0 {
		from = last
	}
	r.second = second
	r.count(m, from, now, rate*(now-from).Seconds())
	return true, nil
}

// iperf reads a line of iperf3's. The last one before the end may be of less than a second.
func (r *reporter) iperf(m *meter, line string, last, now time.Duration) (bool, error) {
	if strings.HasPrefix(line, "- - -") {
		r.summary = true
	}
	i, ok := wire.ParseIperf(line)
	if !ok {
		return false, nil
	}
	if r.summary {
		if mine := map[bool]string{false: "sender", true: "receiver"}[r.args[len(r.args)-1] == "-R"]; i.Whole == mine {
			r.whole = i.Bytes
			r.mu.Lock()
			defer r.mu.Unlock()
			if i.Retransmits != nil && r.resent != nil && *i.Retransmits != *r.resent {
				return false, fmt.Errorf("iperf3 sent %d segments again by its summary, %d by its reports", *i.Retransmits,
					*r.resent)
			}
		}
		return false, nil
	}
	from := now - time.Duration((i.To-i.From)*1e9)
	if r.reports > 0 {
		from = last
	}
	if i.Retransmits != nil {
		r.mu.Lock()
		if r.resent == nil {
			r.resent = new(int64)
		}
		*r.resent += *i.Retransmits
		r.mu.Unlock()
	}
	r.count(m, from, now, i.Bytes)
	return true, nil
}

// agree compares a program's own sum, where it prints one, with that of its reports: its times have two digits behind
// the point.
func (r *reporter) agree() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.whole == 0 {
		return nil
	}
	if difference := (r.whole - r.events) / r.whole; difference > 0.02 || difference < -0.02 {
		return fmt.Errorf("%s counted %.0f bytes in all, and its reports %.0f", r.args[0], r.whole, r.events)
	}
	return nil
}

// rounds is a program that is run again and again, a second each time; the time in which it starts counts.
type rounds struct {
	counter
	args []string
}

func (r *rounds) run(ctx context.Context, m *meter) error {
	m.lag()
	last := r.a.clock.now()
	for ctx.Err() == nil {
		cmd, err := program(r.args...)
		if err != nil {
			return err
		}
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := r.a.children.start(cmd); err != nil {
			return fmt.Errorf("start %s: %w", r.args[0], err)
		}
		halt := context.AfterFunc(ctx, func() { stop(cmd, unix.SIGKILL) })
		err = r.a.children.wait(cmd)
		stopped := !halt()
		now := r.a.clock.now()
		if stopped {
			return nil
		}
		var ops uint64
		found := false
		for line := range strings.Lines(said.String()) {
			if n, ok := wire.StressNG(line, "cpu"); ok {
				ops, found = n, true
			}
		}
		if err != nil || !found || ops == 0 {
			return fmt.Errorf("%s failed its own check (%v): it said %q", r.args[0], err, strings.TrimSpace(said.String()))
		}
		r.count(m, last, now, float64(ops))
		last = now
	}
	return nil
}

// daemon is a program that listens.
type daemon struct {
	args []string
	port int
}

func redisDaemon() daemon {
	// In memory alone: what is asked is whether the guest's memory arrives, not whether redis writes to a disk.
	return daemon{[]string{"redis-server", "--bind", "0.0.0.0", "--port", strconv.Itoa(wire.RedisPort), "--protected-mode",
		"no", "--save", "", "--appendonly", "no",
		"--dir", "/tmp", "--loglevel", "warning"}, wire.RedisPort}
}

func sshDaemon() daemon {
	return daemon{[]string{"/usr/sbin/sshd", "-D", "-e"}, wire.SSHPort} // sshd wants to be called by its whole path
}

// daemons are programs that are used from outside.
type daemons struct {
	a    *agent
	cmds []*exec.Cmd
	said []*tail
	done chan int // which has ended
}

// tail keeps the end of what a program says.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	t.b = t.b[max(0, len(t.b)-1024):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}

// listenLimit is how long a server may take to listen, on the guest's clock.
const listenLimit = 30 * time.Second

// newDaemons starts programs and waits until each of them listens.
func (a *agent) newDaemons(all ...daemon) (_ *daemons, err error) {
	d := &daemons{a: a, done: make(chan int, len(all))}
	defer func() {
		if err != nil {
			d.kill()
		}
	}()
	for i, one := range all {
		cmd, err := program(one.args...)
		if err != nil {
			return nil, err
		}
		said := &tail{}
		cmd.Stdout, cmd.Stderr = said, said
		cmd.WaitDelay = time.Second // what sshd has started for a session may outlive it, with the same pipe
		if err := a.children.start(cmd); err != nil {
			return nil, err
		}
		d.cmds, d.said = append(d.cmds, cmd), append(d.said, said)
		go func() {
			_ = a.children.wait(cmd) // what it said is told
			d.done <- i
		}()
	}
	for i, one := range all {
		for start := a.clock.now(); ; time.Sleep(20 * time.Millisecond) {
			nc, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(one.port)), time.Second)
			if err == nil {
				nc.Close()
				break
			}
			select {
			case i := <-d.done:
				d.done <- i
				return nil, d.ended(i)
			default:
			}
			if a.clock.now()-start > listenLimit {
				return nil, fmt.Errorf("%s does not listen: %w; it said %q", one.args[0], err, d.said[i])
			}
		}
	}
	return d, nil
}

func (d *daemons) ended(i int) error {
	return fmt.Errorf("%s ended by itself: it said %q", d.cmds[i].Args[0], d.said[i])
}

func (d *daemons) kill() {
	for _, cmd := range d.cmds {
		stop(cmd, unix.SIGKILL)
	}
}

func (d *daemons) run(ctx context.Context, _ *meter) (err error) {
	left := len(d.cmds)
	select {
	case i := <-d.done:
		left--
		err = d.ended(i)
	case <-ctx.Done():
	}
	d.kill()
	for ; left > 0; left-- {
		select {
		case <-d.done:
		case <-time.After(stopLimit / 2):
			return errors.Join(err, errors.New("a daemon does not end"))
		}
	}
	return err
}

func (d *daemons) result() any { return nil }

// survive is what has to survive a migration, at once: daemons, and the web server that the agent has itself.
type survive struct {
	*web
	daemons *daemons
}

func (a *agent) newSurvive() (workload, error) {
	d, err := a.newDaemons(redisDaemon(), sshDaemon())
	if err != nil {
		return nil, err
	}
	s, err := a.newTraffic(wire.WebPort)
	if err != nil {
		d.kill()
		return nil, err
	}
	return &survive{&web{traffic: s, size: int(wire.SurviveWeb().Number("size"))}, d}, nil
}

// run ends all of it when a part of it ends.
func (s *survive) run(ctx context.Context, m *meter) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	s.daemons.a.spawn("daemons", func() {
		defer cancel()
		ended <- s.daemons.run(ctx, m)
	})
	err := s.web.run(ctx, m)
	cancel()
	return errors.Join(err, <-ended)
}
