package load

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/lab/observe"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// Tools are what a workload has outside of the guest: the reports that a program in the guest makes, the other end of
// iperf3, and sessions that have to survive. Nil is a workload that has none of it.
type Tools struct {
	spec     ToolSpec
	workload wire.Workload
	packages string // file with the guest's packages
	iperf    *iperfServer
	ssh      *sshSession
	redis    *redisWriter
	tally    *observe.Tally // of the program's reports
	notes    []*guest.NoteSubscription
	all      sync.WaitGroup

	mu   sync.Mutex
	last time.Time     // when the last report came
	came chan struct{} // holds one, after a report
}

// firstLimit is how long a program may take to its first report, under TCG and on a busy machine.
const firstLimit = 60 * time.Second

// watched is how many reports of a program there are before the first command and after the end: rates are of no less.
const watched = 3

// ToolSpec is what they are, as data.
type ToolSpec struct {
	Workload       wire.Workload
	Root           string // image of the guest's file system; beside it are its programs and the list of its packages
	Observer       host.Host
	Guest, Gateway netip.Addr // the guest's address, and the observer's
	Rows           *observe.Tallies
	Save           func() error // writes down that a process has begun, so that a killed run's is found
}

// NewTools are those of a workload that has not started.
func NewTools(s ToolSpec) *Tools {
	return &Tools{spec: s, workload: s.Workload, packages: filepath.Join(filepath.Dir(s.Root), debian.Packages),
		came: make(chan struct{}, 1)}
}

// Start starts the guest's workload with its parts outside, and waits for the first report of a program that makes
// some. After an error Close ends what has begun.
func (t *Tools) Start(ctx context.Context, agent *guest.Agent) (err error) {
	w, s := t.workload, t.spec
	var keys sshKeys
	if w.Name == "ssh" || w.Name == "survive" {
		if keys, err = makeKeys(ctx, agent); err != nil {
			return fmt.Errorf("give the guest its ssh keys: %w", err)
		}
	}
	if w.Name == "iperf3" {
		if t.iperf, err = startIperf(ctx, s); err != nil {
			return err
		}
		if err := s.Save(); err != nil {
			return err
		}
	}
	if report := w.Type().Report; report > 0 {
		t.tally = s.Rows.Row(w.Name, w.Type().Event+"s/s",
			"the reports of "+w.Name+" in the guest, about one a second, by their arrivals at this program", report)
		t.Follow(agent)
	}
	if err := agent.Call(ctx, wire.DoWorkloadStart, w, nil); err != nil {
		return fmt.Errorf("start workload: %w", err)
	}
	if w.Name == "redis" || w.Name == "survive" {
		row := s.Rows.Row("redis_writes", "writes/s",
			"writes that the guest's redis acknowledged to the observer, by its clock", time.Second)
		if t.redis, err = startRedis(ctx, s.Observer, s.Guest, w.Number("rate"), int(w.Number("value")), row); err != nil {
			return err
		}
	}
	if w.Name == "ssh" || w.Name == "survive" {
		row := s.Rows.Row("ssh_lines", "lines/s", "lines of the command in the ssh session, by the observer's clock",
			time.Second)
		if t.ssh, err = startSSH(ctx, s.Observer, s.Guest, keys, w.Duration("interval"), row); err != nil {
			return err
		}
	}
	if t.tally == nil {
		return nil
	}
	first, cancel := context.WithTimeout(ctx, firstLimit)
	defer cancel()
	if err := t.report(first); err != nil {
		if _, failed := observe.Look(first, agent); failed != nil && ctx.Err() == nil {
			err = failed
		}
		return fmt.Errorf("wait for a first report of %s: %w", w.Name, err)
	}
	return nil
}

// Process is where the process of the workload's other end is found; nil: it has none.
func (t *Tools) Process() *ProcessState {
	if t == nil || t.iperf == nil {
		return nil
	}
	return stateOf(t.spec.Observer, t.iperf.proc)
}

// Follow takes in the reports that come over an agent's line, until that line ends.
func (t *Tools) Follow(a *guest.Agent) {
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
func (t *Tools) take(c wire.Counted, now time.Time) {
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
func (t *Tools) report(ctx context.Context) error {
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

// Watch is how long the guest is to be watched before the first command, or after the end, if it would else be so long.
func (t *Tools) Watch(usual time.Duration) time.Duration {
	if t == nil {
		return usual
	}
	return max(usual, watched*t.workload.Type().Report)
}

// Settle waits for a report of a time after this one.
func (t *Tools) Settle(ctx context.Context) {
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

// Finish ends the parts outside, before the guest's workload is stopped, and puts what they found into the record. rest
// is called with the workload's own end.
func (t *Tools) Finish(ctx context.Context, rec *record.Migration) (rest func(wire.Status)) {
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

// Judge is the error of a workload that did not survive: one for all that the record has of it.
func (t *Tools) Judge(rec *record.Migration) error {
	if all := rec.ToolFailures(); len(all) > 0 {
		return observe.WorkloadError{Name: t.workload.Name, Text: strings.Join(all, "; ")}
	}
	return nil
}

// program is what became of the program that is the workload.
func (t *Tools) program(ctx context.Context, s wire.Status) *record.Program {
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

// underWay is what TCP may hold in its buffers, both ends together, in bytes: tcp_wmem and tcp_rmem of Linux by
// default.
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

// Close ends everything without asking.
func (t *Tools) Close() error {
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
