package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/image"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// chaos is how many times qmigrate is killed at random: QMIGRATE_CHAOS, or a few.
func chaos(t *testing.T, few int) int {
	t.Helper()
	text := os.Getenv("QMIGRATE_CHAOS")
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("QMIGRATE_CHAOS=%s: %v", text, err)
	}
	return n
}

// dice are thrown from QMIGRATE_SEED or the clock; the seed is printed.
func dice(t *testing.T) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if text := os.Getenv("QMIGRATE_SEED"); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("QMIGRATE_SEED=%d", n)
	return rand.New(rand.NewPCG(n, n))
}

// ends are two QEMUs, the first running its firmware, the second waiting for it.
type ends struct{ src, dst *guest.VM }

func startEnds(t *testing.T, qemu string) *ends {
	t.Helper()
	dir := guesttest.Dir(t)
	var e ends
	for _, side := range []struct {
		vm   **guest.VM
		name string
	}{{&e.src, "a"}, {&e.dst, "b"}} {
		vm, err := guest.Start(within.Context(t), host.Local(), guest.Spec{
			Name: side.name, QEMU: qemu, Memory: 64 << 20, Dir: filepath.Join(dir, side.name), Incoming: side.name == "b", Paused: side.name == "b",
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		})
		*side.vm = vm
	}
	return &e
}

// is asks a QEMU for its run state.
func is(t *testing.T, vm *guest.VM) string {
	t.Helper()
	select {
	case <-vm.Process().Done():
		return "dead"
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := qmp.Dial(ctx, "unix", vm.Spec().Socket(guest.Control), qmp.Options{})
	if err != nil {
		return "dead"
	}
	defer c.Close()
	s, err := c.QueryStatus(ctx)
	if err != nil {
		return "dead"
	}
	return s.Status
}

// states are both sides' run states. Two guests are the end of the test.
func (e *ends) states(t *testing.T) (a, b string) {
	t.Helper()
	a, b = is(t, e.src), is(t, e.dst)
	if a == "running" && b == "running" {
		t.Fatal("TWO GUESTS RUN")
	}
	return a, b
}

// qmigrate is this program as a process of its own.
func qmigrate(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("qmigrate")
	if err != nil {
		t.Fatal(err)
	}
	return within.Command(t, path, args...)
}

// result runs it to its end.
func result(t *testing.T, cmd *exec.Cmd) (status int, said string) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

func (e *ends) migrate(t *testing.T, more ...string) *exec.Cmd {
	args := []string{"migrate", "--source", "unix:" + e.src.Spec().Dir, "--destination", "unix:" + e.dst.Spec().Dir, "--out", filepath.Join(filepath.Dir(e.src.Spec().Dir), "out")}
	return qmigrate(t, append(args, more...)...)
}

// afterwards is what the next commands do after a kill: `migrate` goes on if nothing had happened, else names --recover, and that ends
// with one running guest; a second one changes nothing.
func (e *ends) afterwards(t *testing.T, where string) {
	t.Helper()
	a, b := e.states(t)
	row := fmt.Sprintf("| qmigrate | %s | source %s, destination %s |", where, a, b)
	status, said := result(t, e.migrate(t, "--quiet"))
	c, d := e.states(t)
	one := func() bool { return (c == "running") != (d == "running") }
	switch {
	case status == 0 && d == "running":
		t.Logf("%s the next migrate goes on |", row)
		return
	case status == statusFailed && c == "running" && d == "dead":
		t.Logf("%s refused: %s |", row, strings.TrimSpace(said)) // the undo had come to its end
		return
	case status != statusFailed || !strings.Contains(said, "--recover"):
		t.Fatalf("%s the next migrate ends with status %d and names no --recover: %s", row, status, said)
	}
	for n := range 2 {
		status, again := result(t, e.migrate(t, "--recover"))
		c, d = e.states(t)
		if n == 0 {
			t.Logf("%s refused: %s | --recover: %s |", row, strings.TrimSpace(said), strings.TrimSpace(again))
			if status != 0 && b == "dead" && c == "postmigrate" && strings.Contains(again, "`cont` on unix:"+e.src.Spec().Dir) {
				e.cont(t) // the undo was at its last step, which only a person can know
				if c, d = e.states(t); !one() {
					t.Fatalf("after the mend that was named: source %s, destination %s", c, d)
				}
				return
			}
			if status != 0 {
				t.Fatalf("--recover ends with status %d", status)
			}
		}
		if !one() {
			t.Fatalf("after --recover %d: source %s, destination %s: %s", n+1, c, d, again)
		}
	}
}

// cont continues the source by hand.
func (e *ends) cont(t *testing.T) {
	t.Helper()
	c, err := qmp.Dial(within.Context(t), "unix", e.src.Spec().Socket(guest.Control), qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Cont(within.Context(t)); err != nil {
		t.Fatal(err)
	}
}

// modes are the ways to migrate that differ in the order of events.
var modes = [...][]string{
	{"--mode", "pre-copy"},
	{"--mode", "stop-and-copy"},
	{"--mode", "pre-copy", "--capability", "return-path=on"},
	{"--mode", "pre-copy", "--capability", "pause-before-switchover=on"},
	{"--mode", "stop-and-copy", "--capability", "return-path=on", "--capability", "pause-before-switchover=on"},
}

// TestQmigrateKilledAtRandom kills -9 qmigrate at any moment of a migration that lasts about a second.
func TestQmigrateKilledAtRandom(t *testing.T) {
	random := dice(t)
	for i := range chaos(t, 4) {
		qemu := guesttest.QEMU(t, guesttest.Versions()[i%len(guesttest.Versions())])
		mode := modes[random.IntN(len(modes))]
		after := time.Duration(random.Int64N(int64(1500 * time.Millisecond)))
		t.Run(fmt.Sprint(i, after, mode), func(t *testing.T) {
			t.Parallel()
			e := startEnds(t, qemu)
			cmd := e.migrate(t, append(mode, "--max-bandwidth", "100KiB/s", "--quiet")...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after)
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()
			if cmd.ProcessState.Success() {
				if a, b := e.states(t); b != "running" {
					t.Errorf("done, with source %s, destination %s", a, b)
				}
				t.Logf("| - | %v | had ended |", after.Round(time.Millisecond))
				return
			}
			e.afterwards(t, after.Round(time.Millisecond).String())
		})
	}
}

// instant is a line on a monitor's wire: the moment at which qmigrate is killed.
type instant struct {
	side    string // a or b
	sent    bool   // by qmigrate, else by QEMU
	text    string
	deliver bool // the line still arrives
}

// instants are the commands and events that a step of the migration hangs on, in the order of the stages.
func instants() []instant {
	var all []instant
	for _, deliver := range []bool{false, true} {
		for _, c := range []struct{ side, command string }{
			{"a", "query-status"}, {"b", "query-chardev"}, // initialization
			{"b", "stop"}, {"b", "migrate-set-capabilities"}, {"b", "migrate-incoming"}, {"a", "migrate-set-parameters"}, // reservation
			{"a", "stop"}, {"a", "migrate"}, // pre-copy
			{"a", "migrate-continue"}, // stop-and-copy
			{"b", "cont"},             // activation
		} {
			all = append(all, instant{c.side, true, `"execute":"` + c.command + `"`, deliver})
		}
	}
	for _, c := range []struct{ side, event string }{
		{"a", `"active"`}, {"a", `"STOP"`}, {"a", `"pre-switchover"`}, {"a", `"status": "completed"`}, {"b", `"status": "completed"`}, {"b", `"RESUME"`},
	} {
		all = append(all, instant{c.side, false, c.event, false})
	}
	return all
}

func (i instant) String() string {
	from := "sends to "
	if !i.sent {
		from = "hears from "
	}
	text := from + i.side + " " + strings.NewReplacer(`"execute":`, "", `"`, "").Replace(i.text)
	if i.deliver {
		text += ", which arrives"
	}
	return text
}

// TestQmigrateKilledAtEdges kills -9 qmigrate as each of the commands leaves it, and as each of the events reaches it. A forwarder on
// every monitor sees to that.
func TestQmigrateKilledAtEdges(t *testing.T) {
	for v, version := range guesttest.Versions() {
		qemu := guesttest.QEMU(t, version)
		for n, at := range instants() {
			if os.Getenv("QMIGRATE_CHAOS") == "" && n%len(guesttest.Versions()) != v {
				continue
			}
			mode := modes[4] // every command is sent
			if strings.Contains(at.text, "RESUME") || n%3 == 0 && !strings.Contains(at.text, "stop") && !strings.Contains(at.text, "STOP") && !strings.Contains(at.text, "migrate-continue") && !strings.Contains(at.text, "pre-switchover") {
				mode = modes[0]
			}
			t.Run(fmt.Sprint(version, " ", at), func(t *testing.T) {
				t.Parallel()
				killAt(t, qemu, mode, "", at)
			})
		}
	}
}

// TestQmigrateKilledInUndo does so while it undoes a migration after Ctrl-C, early and when everything has been sent.
func TestQmigrateKilledInUndo(t *testing.T) {
	n := 0
	for _, mode := range [][]string{modes[0], modes[1]} {
		for _, interrupt := range []string{`"active"`, `"completed"`} {
			for _, at := range []instant{
				{"a", true, "migrate_cancel", false}, {"a", true, "migrate_cancel", true}, {"b", true, `"quit"`, false}, {"b", true, `"quit"`, true},
				{"a", true, `"cont"`, false}, {"a", true, `"cont"`, true},
			} {
				switch {
				case interrupt == `"completed"` && at.text == "migrate_cancel", interrupt == `"active"` && at.text == `"cont"` && mode[1] == "pre-copy",
					interrupt == `"active"` && at.text == `"quit"`: // the destination of a cancelled migration exits by itself
					continue // that is not sent then
				}
				n++
				qemu := guesttest.QEMU(t, guesttest.Versions()[n%len(guesttest.Versions())])
				t.Run(fmt.Sprint(mode[1], " interrupted at ", interrupt, ", ", at), func(t *testing.T) {
					t.Parallel()
					killAt(t, qemu, mode, interrupt, at)
				})
			}
		}
	}
}

// killAt kills qmigrate at an instant of a migration; before that it gets a SIGINT at an event of the source's, unless that is empty.
func killAt(t *testing.T, qemu string, mode []string, interrupt string, at instant) {
	t.Helper()
	e := startEnds(t, qemu)
	f := forward(t, e)
	cmd := qmigrate(t, append([]string{
		"migrate", "--source", "unix:" + filepath.Join(f.dir, "a"), "--destination", "unix:" + filepath.Join(f.dir, "b"),
		"--max-bandwidth", "1MiB/s", "--quiet", "--sample-interval", "0ms", "--out", filepath.Join(f.dir, "out"),
	}, mode...)...)
	killed, interrupted := false, interrupt == ""
	f.watch(func(side string, sent bool, line []byte) (deliver bool) {
		switch {
		case !interrupted && side == "b" && bytes.Contains(line, []byte(`"status": "completed"`)):
			return false // it would be done before the signal is taken
		case !interrupted && side == "a" && !sent && bytes.Contains(line, []byte(`"status": `+interrupt)):
			interrupted = true
			_ = cmd.Process.Signal(syscall.SIGINT)
			if interrupt == `"completed"` {
				time.Sleep(100 * time.Millisecond)
			}
		case !killed && interrupted && side == at.side && sent == at.sent && bytes.Contains(line, []byte(at.text)):
			killed = true
			_ = cmd.Process.Kill()
			return at.deliver
		}
		return true
	})
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	f.close()
	if !killed {
		t.Fatalf("that never came: %v: %s", err, &said)
	}
	e.afterwards(t, at.String())
}

// TestForwarder migrates over monitors that somebody forwards. When a forwarder stops, nothing follows for the QEMU behind it, and the
// process that listened, this test, is not ended for it.
func TestForwarder(t *testing.T) {
	for _, side := range []string{"", "a", "b"} {
		t.Run("without "+side, func(t *testing.T) {
			t.Parallel()
			e := startEnds(t, guesttest.QEMU(t, "10.0"))
			f := forward(t, e)
			defer f.close()
			f.watch(func(s string, sent bool, line []byte) bool {
				if s == "a" && side != "" && bytes.Contains(line, []byte(`"active"`)) {
					go f.stop(side)
				}
				return true
			})
			status, said := result(t, qmigrate(t, "migrate", "--source", "unix:"+filepath.Join(f.dir, "a"), "--destination", "unix:"+filepath.Join(f.dir, "b"),
				"--max-bandwidth", "256KiB/s", "--quiet", "--out", filepath.Join(f.dir, "out")))
			a, b := e.states(t)
			t.Logf("status %d, source %s, destination %s: %s", status, a, b, said)
			switch {
			case side == "" && (status != 0 || b != "running"):
				t.Errorf("a migration over forwarders failed")
			case side == "a" && (status != statusFailed || !strings.Contains(said, "not known which side") && !strings.Contains(said, "not known dead")):
				t.Errorf("the source could not be asked any more, and that is not said")
			case side == "a":
				e.afterwards(t, "without a")
			case side == "b" && a != "running":
				t.Errorf("the destination's monitors went away, and the guest does not run at the source")
			}
		})
	}
}

// forwarder stands between qmigrate and the monitors of two QEMUs.
type forwarder struct {
	dir       string
	mu        sync.Mutex // held while a line is looked at and passed on
	look      func(side string, sent bool, line []byte) (deliver bool)
	listeners map[string][]net.Listener
	conns     map[string][]net.Conn
	all       sync.WaitGroup
}

func forward(t *testing.T, e *ends) *forwarder {
	t.Helper()
	f := &forwarder{dir: guesttest.Dir(t), listeners: map[string][]net.Listener{}, conns: map[string][]net.Conn{}}
	for side, vm := range map[string]*guest.VM{"a": e.src, "b": e.dst} {
		if err := os.Mkdir(filepath.Join(f.dir, side), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, role := range []string{guest.Control, guest.Events, guest.Sampler} {
			l, err := net.Listen("unix", filepath.Join(f.dir, side, role+".qmp"))
			if err != nil {
				t.Fatal(err)
			}
			f.listeners[side] = append(f.listeners[side], l)
			f.all.Go(func() {
				for {
					client, err := l.Accept()
					if err != nil {
						return
					}
					qemu, err := net.Dial("unix", vm.Spec().Socket(role))
					if err != nil {
						client.Close()
						continue
					}
					for _, c := range []net.Conn{client, qemu} {
						_ = c.SetDeadline(time.Now().Add(within.Limit))
					}
					f.mu.Lock()
					f.conns[side] = append(f.conns[side], client, qemu)
					f.mu.Unlock()
					f.all.Go(func() { f.pass(side, true, client, qemu) })
					f.all.Go(func() { f.pass(side, false, qemu, client) })
				}
			})
		}
	}
	t.Cleanup(f.close)
	return f
}

func (f *forwarder) watch(look func(side string, sent bool, line []byte) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look = look
}

func (f *forwarder) pass(side string, sent bool, from io.Reader, to io.WriteCloser) {
	defer to.Close()
	r := bufio.NewReaderSize(from, 1<<20)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil && len(line) == 0 {
			return
		}
		f.mu.Lock()
		if f.look == nil || f.look(side, sent, line) {
			_, _ = to.Write(line)
		}
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// stop ends one side's forwarding.
func (f *forwarder) stop(side string) {
	for _, l := range f.listeners[side] {
		l.Close()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns[side] {
		c.Close()
	}
}

func (f *forwarder) close() {
	f.stop("a")
	f.stop("b")
	f.all.Wait()
}

// place is where a demo of the test runs, so that no other demo on this machine sees what it leaves: as root a mount namespace with a
// /run of its own; else the user's own folder for temporary files.
type place struct {
	t      *testing.T
	holder *exec.Cmd
	tmp    string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{t: t, tmp: guesttest.Dir(t)}
	if os.Geteuid() != 0 {
		return p
	}
	p.holder = exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "mount -t tmpfs run /run && echo ready && exec cat")
	in, err := p.holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.holder.Start(); err != nil {
		guesttest.Unable(t, "no mount namespace to run demos apart in: ", err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = p.holder.Process.Kill()
		_ = p.holder.Wait()
	})
	if err := out.(*os.File).SetReadDeadline(time.Now().Add(within.Limit)); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		guesttest.Unable(t, "no mount namespace with a /run of its own to run demos apart in: ", err)
	}
	return p
}

// command is a program in that place. It keeps its process number.
func (p *place) command(name string, args ...string) *exec.Cmd {
	p.t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		p.t.Fatal(err)
	}
	if p.holder != nil {
		args = append([]string{"--mount", "--target", strconv.Itoa(p.holder.Process.Pid), path}, args...)
		path = "nsenter"
	}
	cmd := within.Command(p.t, path, args...)
	cmd.Dir = p.tmp
	cmd.Env = append(os.Environ(), "TMPDIR="+p.tmp)
	return cmd
}

// demo is `qmigrate demo`, small.
func (p *place) demo() *exec.Cmd {
	return p.command("qmigrate", "demo", "--memory", "160MiB", "--quiet", "--json", "--out", filepath.Join(p.tmp, "out"))
}

// whole runs a demo to its end, which has to be a good one, and returns what it said and how long it took.
func (p *place) whole() (said string, took time.Duration) {
	p.t.Helper()
	cmd := p.demo()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	begun := time.Now()
	err := cmd.Run()
	var r struct {
		Outcome string `json:"outcome"`
		Check   struct {
			Checked int `json:"pages_checked"`
			Wrong   int `json:"pages_wrong"`
		} `json:"memory_check"`
	}
	if jsonErr := json.Unmarshal(out.Bytes(), &r); err != nil || jsonErr != nil || r.Outcome != "completed" || r.Check.Checked == 0 || r.Check.Wrong != 0 {
		p.t.Fatalf("demo: %v %v: %+v: %s", err, jsonErr, r, errs.String())
	}
	return errs.String(), time.Since(begun)
}

// left says what there is of demos: processes, namespaces and folders.
func (p *place) left() (left []string) {
	p.t.Helper()
	for _, pid := range processesOf(p.tmp) {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.Contains(line, []byte("qmig-demo-")) {
			left = append(left, fmt.Sprintf("process %d", pid))
		}
	}
	folders := filepath.Join(p.tmp, fmt.Sprintf("qmigrate-%d", os.Geteuid()))
	if p.holder != nil {
		folders = "/run/qmigrate"
	}
	out, _ := p.command("find", folders, "/run/netns", "-mindepth", "1", "-maxdepth", "1").Output()
	return append(left, strings.Fields(string(out))...)
}

// TestDemoKilled kills -9 a demo at any moment, boot, migration and checks: the next one says which side ran the guest, removes all of
// it, and works.
func TestDemoKilled(t *testing.T) {
	guesttest.Starts(t)
	if _, err := image.Build(within.Context(t), image.Spec{}); err != nil {
		if os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1" {
			t.Fatal(err)
		}
		guesttest.Unable(t, err)
	}
	random := dice(t)
	p := newPlace(t)
	_, took := p.whole()
	if left := p.left(); len(left) > 0 {
		t.Fatalf("a demo that was not killed leaves %q", left)
	}
	for i := range chaos(t, 2) {
		after := time.Duration(random.Int64N(int64(took)))
		cmd := p.demo()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait()
		owner := fmt.Sprintf("demo-%d", cmd.Process.Pid)
		left := p.left()
		_, status := result(t, p.command("qmigrate", "lab", "status"))
		status = strings.Join(strings.Fields(status), " ") // lines are as wide as the terminal
		if strings.Contains(status, "TWICE") {
			t.Fatalf("killed after %v: %s", after, status)
		}
		said, _ := p.whole()
		said = strings.Join(strings.Fields(said), " ")
		t.Logf("| demo | %v | %s | %s |", after.Round(time.Millisecond), status, said)
		if now := p.left(); len(now) > 0 {
			t.Fatalf("%d: killed after %v of %v: the next demo leaves %q of %q; it said %s", i, after, took, now, left, said)
		}
		if len(left) == 0 {
			continue // nothing had been made yet, or all had been removed
		}
		_, guest, _ := strings.Cut(status, owner+": ") // what lab status said of it
		guest, _, _ = strings.Cut(guest, ";")
		if guest == "source running, destination inmigrate" {
			guest = "source " // QEMU goes on alone, and may have moved it since
		}
		if strings.Contains(said, "source running, destination paused") {
			t.Errorf("the two sides were not asked together: %s", said)
		}
		if guest == "" || !strings.Contains(said, owner+" was left by a run that was killed ("+guest) {
			t.Errorf("killed after %v, left %q, and the next demo does not say %q: %s", after, left, guest, said)
		}
	}
}
