package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// tools are what a workload has outside of the guest: the reports that a program in the guest makes, the other end of iperf3, and sessions that have
// to survive. The zero value is that of a workload that has none of it.
type tools struct {
	workload wire.Workload
	packages string // file with the guest's packages
	iperf    *iperfServer
	ssh      *sshSession
	redis    *redisWriter
	tally    *Tally // of the program's reports
	notes    []*guest.NoteSubscription
	all      sync.WaitGroup

	mu   sync.Mutex
	last time.Time     // when the last report came
	came chan struct{} // holds one, after a report
}

// watched is how many reports of a program there are before the first command and after the end: rates are of no less.
const watched = 3

// startWorkload starts the guest's workload with its parts outside, when there is a first report of a program that makes some.
func (l *Lab) startWorkload(ctx context.Context) (err error) {
	if err := l.tools.close(); err != nil { // of a former migration
		return err
	}
	w := l.spec.Workload
	t := &tools{workload: w, packages: filepath.Join(filepath.Dir(l.spec.Guest.Image.Root), debian.Packages), came: make(chan struct{}, 1)}
	l.tools = t
	observer, address := l.network.Observer(), l.network.GuestAddress(0)
	var keys sshKeys
	if w.Name == "ssh" || w.Name == "survive" {
		if keys, err = makeKeys(ctx, l.agent); err != nil {
			return fmt.Errorf("give the guest its ssh keys: %w", err)
		}
	}
	if w.Name == "iperf3" {
		if t.iperf, err = l.startIperf(ctx); err != nil {
			return err
		}
		if err := l.save(); err != nil { // so that a killed run's is found
			return err
		}
	}
	if report := w.Type().Report; report > 0 {
		t.tally = l.row(w.Name, w.Type().Event+"s/s", "the reports of "+w.Name+" in the guest, about one a second, by their arrivals at this program", report)
		t.follow(l.agent)
	}
	if err := l.agent.Call(ctx, wire.DoWorkloadStart, w, &l.workload); err != nil {
		return fmt.Errorf("start workload: %w", err)
	}
	if w.Name == "redis" || w.Name == "survive" {
		row := l.row("redis_writes", "writes/s", "writes that the guest's redis acknowledged to the observer, by its clock", time.Second)
		if t.redis, err = startRedis(ctx, observer, address, w.Number("rate"), int(w.Number("value")), row); err != nil {
			return err
		}
	}
	if w.Name == "ssh" || w.Name == "survive" {
		row := l.row("ssh_lines", "lines/s", "lines of the command in the ssh session, by the observer's clock", time.Second)
		if t.ssh, err = startSSH(ctx, observer, address, keys, w.Duration("interval"), row); err != nil {
			return err
		}
	}
	if t.tally == nil {
		return nil
	}
	first, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	if err := t.report(first); err != nil {
		if _, failed := l.progress(first, l.agent); failed != nil && ctx.Err() == nil {
			err = failed
		}
		return fmt.Errorf("wait for a first report of %s: %w", w.Name, err)
	}
	return nil
}

// row is the tally of that name: the lab's next migration has the same.
func (l *Lab) row(name, unit, source string, bin time.Duration) *Tally {
	for _, t := range l.tallies {
		if t.name == name {
			return t
		}
	}
	return l.Tally(name, unit, source, bin)
}

// follow takes in the reports that come over an agent's line, until that line ends.
func (t *tools) follow(a *guest.Agent) {
	if t == nil || t.tally == nil {
		return
	}
	notes := a.Notes(1 << 10)
	t.notes = append(t.notes, notes)
	t.all.Go(func() {
		for n := range notes.C {
			var c wire.Counted
			if n.Event == wire.EventCounted && json.Unmarshal(n.Data, &c) == nil && c.Workload == t.workload.Name {
				t.take(c, time.Now())
			}
		}
	})
}

// take takes one report. It spans the time since the one before: a guest that stood still meanwhile says less a second.
func (t *tools) take(c wire.Counted, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	from := now.Add(c.From - c.To)
	if !t.last.IsZero() {
		from = t.last
	}
	t.last = now
	t.tally.Add(from, now, c.Events)
	select {
	case t.came <- struct{}{}:
	default:
	}
}

// report waits for a report.
func (t *tools) report(ctx context.Context) error {
	if t == nil || t.tally == nil {
		return nil
	}
	select {
	case <-t.came:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// watch is how long the guest is to be watched before the first command, or after the end, if it would else be so long.
func (t *tools) watch(usual time.Duration) time.Duration {
	if t == nil {
		return usual
	}
	return max(usual, watched*t.workload.Type().Report)
}

// settle waits for a report of a time after this one.
func (t *tools) settle(ctx context.Context) {
	if t == nil || t.tally == nil {
		return
	}
	select {
	case <-t.came: // one of before
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, lastLimit)
	defer cancel()
	_ = t.report(ctx) // a program that makes none has ended, and says so itself
}

// finish ends the parts outside, before the guest's workload is stopped, and puts what they found into the record. rest is called with the workload's own end.
func (t *tools) finish(ctx context.Context, rec *record.Migration) (rest func(wire.Status)) {
	if t == nil || t.workload.Type().Guest == "" {
		return func(wire.Status) {}
	}
	r := &record.Tools{}
	rec.Tools = r
	if t.ssh != nil {
		r.SSH, t.ssh = t.ssh.finish(), nil
	}
	if t.redis != nil {
		r.Redis, t.redis = t.redis.finish(ctx), nil
	}
	return func(s wire.Status) {
		if t.tally != nil {
			r.Program = t.program(ctx, s)
		}
		for _, text := range r.Failures() {
			rec.Warn("%s", text)
		}
	}
}

// judge is the error of a workload that did not survive: one for all that the record has of it.
func (t *tools) judge(rec *record.Migration) error {
	if all := rec.ToolFailures(); len(all) > 0 {
		return workloadError{t.workload.Name, strings.Join(all, "; ")}
	}
	return nil
}

// program is what became of the program that is the workload.
func (t *tools) program(ctx context.Context, s wire.Status) *record.Program {
	p := &record.Program{Name: t.workload.Name, Version: version(t.packages, t.workload.Name)}
	var done wire.Tooled
	switch err := s.ReadResult(&done); {
	case s.State == wire.Failed:
		p.Error = s.Error
	case s.State != wire.Done:
		p.Error = "it was not stopped"
	case err != nil:
		p.Error = err.Error()
	case done.Reports == 0 || done.Events <= 0:
		p.Error = "it has reported nothing"
	}
	p.Reports, p.Events, p.Time, p.Retransmits = done.Reports, done.Events, done.Time, done.Retransmits
	if t.iperf == nil {
		return p
	}
	other, err := t.iperf.finish(ctx)
	t.iperf = nil
	switch {
	case err != nil && p.Error == "":
		p.Error = err.Error()
	case err == nil:
		p.OtherEnd = record.Of(int64(other.Bytes))
		if p.Retransmits == nil {
			p.Retransmits = other.Retransmits
		}
		// What was under way when the client ended is lost by design: buffers of both ends, at most.
		if difference := p.Events - other.Bytes; p.Error == "" && max(difference, -difference) > 0.02*p.Events+underWay {
			p.Error = fmt.Sprintf("the guest's end counted %.0f bytes, the observer's %.0f", p.Events, other.Bytes)
		}
	}
	return p
}

// underWay is what TCP may hold in its buffers, both ends together, in bytes: tcp_wmem and tcp_rmem of Linux by default.
const underWay = 10 << 20

// version is that of a Debian package in a list of NAME_VERSION_ARCHITECTURE; empty if it is not there.
func version(list, name string) string {
	b, _ := os.ReadFile(list)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+"_"); ok {
			v, _, _ := strings.Cut(rest, "_")
			return strings.ReplaceAll(v, "%3a", ":")
		}
	}
	return ""
}

// close ends everything without asking.
func (t *tools) close() error {
	if t == nil {
		return nil
	}
	t.ssh.close()
	t.redis.close()
	err := t.iperf.close()
	for _, n := range t.notes {
		n.Close()
	}
	t.all.Wait()
	return err
}

// iperfServer is the other end of the guest's iperf3: a process in the observer's namespace, that serves one test.
type iperfServer struct {
	proc  host.Process
	tally *Tally

	mu        sync.Mutex
	rest      []byte // of a line
	listening chan struct{}
	ready     sync.Once
	last      time.Time
	summary   bool
	whole     *wire.Iperf
	resent    *int64
	said      []string
}

func (l *Lab) startIperf(ctx context.Context) (*iperfServer, error) {
	folder := filepath.Dir(l.spec.Guest.Image.Root)
	name := map[string]string{"send": "iperf3_received", "receive": "iperf3_sent"}[l.spec.Workload.Choice("direction")]
	s := &iperfServer{listening: make(chan struct{}), tally: l.row(name, "bytes/s", "the reports of iperf3 on the observer, one a second, by its clock", time.Second)}
	args := debian.Run(filepath.Join(folder, debian.Files), "usr/bin/iperf3", "-s", "-1", "-B", l.network.Gateway().String(), "-p", fmt.Sprint(wire.IperfPort), "-i", "1", "-f", "k", "--forceflush")
	var err error
	if s.proc, err = l.network.Observer().Start(ctx, host.Command{Args: args, Stdout: s, Stderr: s}); err != nil {
		return nil, fmt.Errorf("start iperf3 on the observer: %w", err)
	}
	limit, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	select {
	case <-s.listening:
		return s, nil
	case <-s.proc.Done():
		err = errors.New("it ended")
	case <-limit.Done():
		err = context.Cause(limit)
	}
	s.mu.Lock()
	said := strings.Join(s.said, "; ")
	s.mu.Unlock()
	return nil, errors.Join(fmt.Errorf("start iperf3 on the observer: %w: it said %q", err, said), s.close())
}

// Write takes what the server prints.
func (s *iperfServer) Write(b []byte) (int, error) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest = append(s.rest, b...)
	for {
		line, rest, ok := bytes.Cut(s.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		s.line(string(line), now)
		s.rest = append([]byte{}, rest...)
	}
}

func (s *iperfServer) line(text string, now time.Time) {
	if strings.HasPrefix(text, "Server listening") {
		s.ready.Do(func() { close(s.listening) })
	}
	if s.said = append(s.said, text); len(s.said) > 5 {
		s.said = s.said[1:]
	}
	s.summary = s.summary || strings.HasPrefix(text, "- - -")
	i, ok := wire.ParseIperf(text)
	switch {
	case !ok:
	case s.summary:
		if i.Bytes > 0 {
			s.whole = &i
		}
	default:
		from := now.Add(-time.Duration((i.To - i.From) * 1e9))
		if !s.last.IsZero() {
			from = s.last
		}
		s.tally.Add(from, now, i.Bytes)
		s.last = now
		if i.Retransmits != nil {
			if s.resent == nil {
				s.resent = new(int64)
			}
			*s.resent += *i.Retransmits
		}
	}
}

// finish waits for the server's end, which follows its client's, and returns its summary.
func (s *iperfServer) finish(ctx context.Context) (wire.Iperf, error) {
	limit, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	select {
	case <-s.proc.Done():
	case <-limit.Done():
		return wire.Iperf{}, errors.Join(errors.New("iperf3 on the observer does not end"), s.close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole == nil {
		return wire.Iperf{}, fmt.Errorf("iperf3 on the observer printed no summary: it said %q", strings.Join(s.said, "; "))
	}
	if s.whole.Retransmits == nil {
		s.whole.Retransmits = s.resent
	}
	return *s.whole, nil
}

func (s *iperfServer) close() error {
	if s == nil || s.proc == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), serverLimit)
	defer cancel()
	return s.proc.Kill(ctx)
}
