package engine_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/sshtest"
	"qmigrate/qmp"
)

// fault is what happens to a migration between two hosts behind channels, or to what is between.
type fault struct {
	what  string        // one of faults
	side  record.Holder // on whose way
	kind  string        // of migration: pre-copy, post-copy, mirror
	after time.Duration // from the first command
	back  time.Duration // until it is mended, if it can be; 0: when the migration has ended, or after 45 s
}

// faults are what can be killed, stopped or cut.
func faults() []string {
	return []string{"ssh killed", "ssh stopped", "sshd killed", "sshd stopped", "helper killed", "helper stopped",
		"QEMU killed", "QEMU stopped", "link cut"}
}

func (f fault) String() string {
	back := "for good"
	if f.back > 0 {
		back = "for " + f.back.Round(time.Millisecond).String()
	}
	return fmt.Sprintf("%s %s of %s at %s %s", f.kind, f.what, f.side, f.after.Round(time.Millisecond), back)
}

func drawFault(random *rand.Rand, kind, what string) fault {
	f := fault{what: what, kind: kind, side: []record.Holder{record.Source, record.Destination}[random.IntN(2)],
		after: time.Duration(random.Int64N(int64(2500 * time.Millisecond)))}
	if random.IntN(2) == 0 {
		f.back = time.Duration(random.Int64N(int64(5 * time.Second)))
	}
	return f
}

// TestChannelFaults migrates between two hosts behind ssh while something between qmigrate and a QEMU, a QEMU or
// the link is killed, stopped or cut at a random moment. No two guests run, where the guest is said to be it is, none is
// lost without a word, and the next connection to the hosts finds it and leaves nothing there.
func TestChannelFaults(t *testing.T) {
	random := seed(t)
	kinds := []string{"pre-copy", "post-copy", "mirror"}
	versions := guesttest.Versions()
	all := faults()
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for i := range chaos(t, len(kinds)) {
		k, turn := i%len(kinds), i/len(kinds)
		f := drawFault(random, kinds[k], all[(turn+3*k)%len(all)]) // each kind meets each fault
		version := versions[i%len(versions)]
		t.Run(fmt.Sprintf("qemu-%s %d %s", version, i, f), func(t *testing.T) {
			t.Parallel()
			f.run(t, guesttest.QEMU(t, version))
		})
	}
}

// far is a QEMU on a host behind ssh, seen from beside it.
type far struct {
	host    *sshtest.Host
	folder  string // of its sockets, on the host
	disk    string // "": none
	process host.Process
}

// begin starts a QEMU on the host as its user would, without qmigrate.
func (q *far) begin(t *testing.T, qemu string, memory int64, incoming, disk bool) {
	q.folder = "/tmp/q"
	s := guest.Spec{Name: q.host.Name, QEMU: qemu, Dir: q.folder, Memory: memory, Incoming: incoming, Paused: incoming}
	if disk {
		q.disk = filepath.Join(q.host.Root, "tmp", "disk")
		if err := storage.Create(q.disk, "raw", mirrorSize); err != nil {
			t.Fatal(err)
		}
		if !incoming {
			if err := storage.Fill(q.disk, 0, mirrorSize); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(q.disk, 0o666); err != nil {
			t.Fatal(err)
		}
		s.Disks = []guest.Disk{{Node: "disk0", Path: "/tmp/disk"}}
	}
	if err := os.Mkdir(q.here(""), 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := q.host.Command(context.Background(), append([]string{qemu}, s.Args()...)...)
	log, err := os.Create(q.here("log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reaped := make(chan struct{})
	go func() { _ = cmd.Wait(); close(reaped) }()
	t.Cleanup(func() {
		for _, pid := range q.pids() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = cmd.Process.Kill() // nsenter stops when its child is stopped
		within.Receive(t, "the end of a QEMU", reaped)
	})
	within.Until(t, "QEMU of host "+q.host.Name, func() bool {
		if status, err := q.ask(); err == nil {
			return status != ""
		}
		select {
		case <-reaped:
			b, _ := os.ReadFile(q.here("log"))
			t.Fatalf("QEMU of host %s does not start: %s", q.host.Name, b)
		case <-time.After(10 * time.Millisecond):
		}
		return false
	})
	for _, pid := range q.pids() {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil || strings.HasSuffix(exe, "nsenter") {
			continue
		}
		start, err := host.StartTime(pid)
		if err != nil {
			t.Fatal(err)
		}
		if q.process, err = host.FindProcess(pid, start); err != nil {
			t.Fatal(err)
		}
	}
	if q.process == nil {
		t.Fatal("its process is not found")
	}
}

// pids are the processes of its command line: QEMU's and, above it, nsenter.
func (q *far) pids() []int { return q.host.PIDs("[-]pidfile " + q.folder) }

// here is a file of the QEMU's folder as this machine has it.
func (q *far) here(role string) string {
	s := guest.Spec{Dir: filepath.Join(q.host.Root, q.folder)}
	if role == "" {
		return s.Dir
	}
	return s.Socket(role)
}

// ask asks the QEMU for its state, past all channels, on the monitor that the migration does not use.
func (q *far) ask() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, "unix", q.here(guest.Sampler))
	if err != nil {
		return "", err
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		return "", err
	}
	defer c.Close()
	status, err := c.QueryStatus(ctx)
	return status.Status, err
}

// state is ask, or "dead", or "silent".
func (q *far) state() string {
	if status, err := q.ask(); err == nil {
		return status
	}
	select {
	case <-q.process.Done():
		return "dead"
	case <-time.After(time.Second):
		return "silent"
	}
}

// endpoint is how the user names it.
func (q *far) endpoint() string {
	s := guest.Spec{Dir: q.folder}
	return q.host.URL + s.Socket(guest.Control) + "," + s.Socket(guest.Events)
}

// pairOfFar is the two QEMUs of a trial.
type pairOfFar struct {
	hosts    *sshtest.Hosts
	src, dst *far
}

func (p *pairOfFar) of(h record.Holder) *far {
	if h == record.Source {
		return p.src
	}
	return p.dst
}

// endpoints takes the trial to new channels.
func (p *pairOfFar) endpoints(t *testing.T, x *trial) *host.Pool {
	t.Helper()
	pool := &host.Pool{Program: helperbin.Helper, SSH: host.SSH{Program: p.hosts.SSH}}
	var err error
	if x.from, err = connect.Parse(p.src.endpoint(), pool); err != nil {
		t.Fatal(err)
	}
	if x.to, err = connect.Parse(p.dst.endpoint(), pool); err != nil {
		t.Fatal(err)
	}
	return pool
}

func (f fault) run(t *testing.T, qemu string) {
	cache, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	var share []string
	if strings.HasPrefix(qemu, cache) {
		share = []string{cache}
	}
	p := &pairOfFar{hosts: sshtest.Start(t, sshtest.HostSpec{Name: "a", Root: true, Share: share},
		sshtest.HostSpec{Name: "b", Root: true, Share: share})}
	p.src, p.dst = &far{host: p.hosts.Host("a")}, &far{host: p.hosts.Host("b")}
	memory := int64(256 << 20) // nearly all zeros, 9 bytes a page: the migration takes some two seconds
	if strings.Contains(qemu, "7.2") {
		memory = 128 << 20 // it sends less than newer ones, which do not go below 300 KB/s
	}
	p.src.begin(t, qemu, memory, false, f.kind == "mirror")
	p.dst.begin(t, qemu, memory, true, f.kind == "mirror")
	for _, h := range p.hosts.All {
		h.Setenv("QMIGRATE_CACHE=/tmp/cache")
	}
	x := &trial{}
	pool := p.endpoints(t, x)
	defer pool.Close()
	for _, h := range p.hosts.All { // the fault may come with the first command
		if _, err := pool.Find(within.Context(t), h.URL); err != nil {
			t.Fatal(err)
		}
	}
	const rate = 256 << 10
	uri := fmt.Sprintf("tcp:%s:4444", p.dst.host.Address)
	x.plan = plan.Plan{Mode: record.PreCopyMode, MaxBandwidth: rate, Listen: uri, StallLimit: time.Second,
		RecoverLimit: 2 * time.Second}
	switch f.kind {
	case "post-copy":
		x.plan.Mode, x.plan.Parameters = record.PostCopyMode, map[string]string{"max-postcopy-bandwidth": fmt.Sprint(rate)}
	case "mirror":
		x.plan.Mirror = plan.Mirror{Nodes: []string{"disk0"}, Listen: p.dst.host.Address.String()}
	}
	var timers []*time.Timer
	d := f.do(t, p, x)
	defer func() {
		if (t.Failed() || os.Getenv("QMIGRATE_SEED") != "") && x.trigger.triggered != nil {
			x.trigger.mu.Lock()
			defer x.trigger.mu.Unlock()
			t.Logf("error: %v\n%s", x.err, strings.Join(x.trigger.seen, "\n"))
		}
	}()
	x.run(t, never, f.after, func() {
		d.begin()
		timers = append(timers, time.AfterFunc(30*time.Second, x.cancel), // as a person would, who then looks for what hangs
			time.AfterFunc(cmp.Or(f.back, 45*time.Second), d.end))
	})
	for _, timer := range timers {
		timer.Stop()
	}
	x.a, x.b = p.src.state(), p.dst.state()
	if f.kind == "post-copy" && x.killed == record.Source && x.b == "running" {
		x.b = "silent" // it stands still at the first page that it misses
	}
	x.truth(t)
	x.say(t, f.String())
	ran := x.trigger.saw(record.Destination, event(record.Destination, "RESUME").text)
	d.end()
	pool.Close()
	f.again(t, p, x, ran)
}

// again is the next command, over new channels: it finds the guest, or says that it is lost, and nothing is left on the
// hosts.
func (f fault) again(t *testing.T, p *pairOfFar, x *trial, ran bool) {
	next := p.endpoints(t, x)
	again := plan.Plan{Listen: x.plan.Listen, StallLimit: time.Second, RecoverLimit: 15 * time.Second}
	for i := range 4 { // a helper that had hung may have the monitors for a while
		holder, said, err := engine.Recover(within.Context(t), x.from, x.to, again, plan.Options{})
		x.a, x.b = p.src.state(), p.dst.state()
		t.Logf("--recover: %s, source %s, destination %s: %s %v", holder, x.a, x.b, said, err)
		switch {
		case x.a == "running" && (ran || x.b == "running"):
			t.Fatalf("TWO GUESTS RUN after recovery: %s %v", said, err)
		case err == nil && (holder == record.Source && x.a != "running" || holder == record.Destination && x.b != "running"):
			t.Errorf("recovery says %q; source %s, destination %s", said, x.a, x.b)
		}
		if x.a == "running" || x.b == "running" {
			break
		}
		if i == 3 && x.killed == "" && !x.pausedByCancel() {
			t.Errorf("no QEMU was killed, and nobody runs the guest: source %s, destination %s: %s %v", x.a, x.b, said, err)
		}
	}
	if x.a != "running" && x.b != "running" && x.err == nil && x.killed != record.Destination {
		t.Error("nobody runs the guest, and the migration is said to have gone well")
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	if f.kind == "mirror" && x.b == "running" {
		a, errA := os.ReadFile(p.src.disk)
		b, errB := os.ReadFile(p.dst.disk)
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("the destination runs the guest on another disk than the source's: %v %v", errA, errB)
		}
	}
	for _, h := range p.hosts.All {
		ledgers, _ := filepath.Glob(filepath.Join(h.Root, "tmp/cache/helpers/*.jsonl"))
		if helpers := h.PIDs("/helper/"); len(ledgers)+len(helpers) > 0 {
			t.Errorf("left on host %s after the next connection: %v, helpers %v", h.Name, ledgers, helpers)
		}
	}
}

// doing is a fault that can be begun and, perhaps, mended.
type doing struct {
	start, mend func() // mend is nil where it cannot be
	begun       atomic.Bool
}

func (d *doing) begin() {
	d.start()
	d.begun.Store(true)
}

// end mends it, if it has begun. It is harmless twice.
func (d *doing) end() {
	if d.begun.Load() && d.mend != nil {
		d.mend()
	}
}

// do is how the fault is done.
func (f fault) do(t *testing.T, p *pairOfFar, x *trial) *doing {
	q := p.of(f.side)
	all := func(pids func() []int, sig syscall.Signal) func() {
		return func() {
			for _, pid := range pids() {
				_ = syscall.Kill(pid, sig) // it may have ended just now
			}
		}
	}
	ssh := func() []int { return p.hosts.Clients(q.host) }
	sshd := func() []int { return q.host.PIDs("sshd: ") } // the sessions; the one that listens is another
	helper := func() []int { return q.host.PIDs("/helper/[0-9a-f]+ serve") }
	d := &doing{}
	switch f.what {
	case "ssh killed":
		d.start = all(ssh, syscall.SIGKILL)
	case "ssh stopped":
		d.start, d.mend = all(ssh, syscall.SIGSTOP), all(ssh, syscall.SIGCONT)
	case "sshd killed":
		d.start = all(sshd, syscall.SIGKILL)
	case "sshd stopped":
		d.start, d.mend = all(sshd, syscall.SIGSTOP), all(sshd, syscall.SIGCONT)
	case "helper killed":
		d.start = all(helper, syscall.SIGKILL)
	case "helper stopped":
		d.start, d.mend = all(helper, syscall.SIGSTOP), all(helper, syscall.SIGCONT)
	case "QEMU killed":
		d.start = func() {
			x.killed = f.side
			if err := q.process.Kill(within.Context(t)); err != nil {
				t.Error(err)
			}
		}
	case "QEMU stopped":
		d.start = func() { _ = q.process.Signal(syscall.SIGSTOP) } // it may have been ended just now
		d.mend = func() { _ = q.process.Signal(syscall.SIGCONT) }
	case "link cut": // the channel to that host goes over it, too
		d.start, d.mend = func() { p.hosts.SetLink(q.host, false) }, func() { p.hosts.SetLink(q.host, true) }
	default:
		t.Fatalf("%q is none of %v", f.what, faults())
	}
	return d
}
