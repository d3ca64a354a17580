package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"qmigrate/engine/lab"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/image"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/lxc"
	"qmigrate/qmp"
)

// TestScripts plays the stories of testdata/scripts. Beside testscript's own commands they have:
//
//	status N PROGRAM ARG...        run a program, which has to exit with status N
//	start NAME PROGRAM ARG...      run one beside the script
//	await NAME REGEXP              until its standard error has that
//	interrupt NAME [SIGNAL]        SIGINT, or another by its name
//	finish NAME N                  until it exits, with status N; its output is then stdout and stderr
//	oneline                        the last program's standard error is one line of ours, and no stack
//	lines FILE [stdout]            the last program's standard error, or output, has these lines, in this order, as regular expressions
//	startqemu VERSION DIR [ARG...] a QEMU without a guest's system, with control, events and sampler.qmp in DIR
//	killqemu DIR                   SIGKILL
//	dead DIR                       nobody listens there any more
//	quit DIR                       tell a QEMU that a program of the story started to quit
//	runstate DIR STATE             what its query-status says
//	remember DIR                   note what can be asked of a QEMU's migration and run state
//	unchanged DIR                  it is as it was
//	hold SOCKET                    be a client of that monitor until the script ends
//	fakeqmp SOCKET FILE [answer=N] [repeat] [close]
//	                               a monitor that answers the first N commands with {}, sends FILE before and after, its last
//	                               line for ever or once, and hangs up or is silent
//	refusal FILE STAGE REGEXP      the JSON line is the record of what was refused there
//	record FILE plain|lab [KEY=VALUE...]
//	                               the JSON line has the shape of a record; KEYs are paths, as in memory_check.pages_wrong
//
//	mostly-down FILE               and its wire downtime is most of the time from STOP
//
// and the conditions [root], [mounts] (mount namespaces can be had), [lab] (a lab can be had: a guest's image, hosts) and
// [containers] (by liblxc).
func TestScripts(t *testing.T) {
	cache, err := guest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                filepath.Join("..", "..", "testdata", "scripts"),
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			s := &story{t: e.T().(testing.TB), work: e.WorkDir, running: map[string]*program{}, vms: map[string]*guest.VM{}, memory: map[string][]byte{}}
			e.Values[storyKey{}] = s
			e.Defer(s.close)
			for _, kv := range os.Environ() {
				if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "QMIGRATE_") {
					e.Setenv(name, value)
				}
			}
			e.Setenv("QMIGRATE_CACHE", cache)
			e.Setenv("LAB", labOfTests())
			e.Setenv("BIN", filepath.SplitList(e.Getenv("PATH"))[0]) // where qmigrate is, and nothing else
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			return nil
		},
		Condition: condition(t),
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": status, "start": start, "await": await, "interrupt": interrupt, "finish": finish, "oneline": oneline, "lines": lines,
			"startqemu": startQEMU, "killqemu": killQEMU, "quit": quit, "dead": dead, "runstate": runState, "remember": remember, "unchanged": unchanged,
			"hold": hold, "fakeqmp": fakeQMP, "record": checkRecord, "mostly-down": mostlyDown, "refusal": refusal,
		},
	})
}

func condition(t *testing.T) func(string) (bool, error) {
	labWorks := sync.OnceValues(func() (bool, error) {
		_, err := image.Build(within.Context(t), image.Spec{})
		if err == nil {
			_, err = guest.FindQEMU(within.Context(t), "10.0")
		}
		if err != nil && os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1" {
			return false, err
		}
		if missing := hostnet.Check(within.Context(t)).Missing(); err == nil && len(missing) > 0 {
			err = fmt.Errorf("%s: %s", missing[0].Name, missing[0].Reason)
		}
		if err != nil {
			t.Logf("no lab: %v", err)
		}
		return err == nil, nil
	})
	return func(name string) (bool, error) {
		switch name {
		case "root":
			return os.Geteuid() == 0 && !hostnet.Inside(), nil
		case "mounts":
			return within.Command(t, "unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt").Run() == nil, nil
		case "lab":
			if testing.Short() {
				return false, nil
			}
			return labWorks()
		case "containers":
			usable, err := lxc.Managers(within.Context(t))
			ok := slices.Contains(usable, host.LibLXC)
			if !ok && os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1" && os.Geteuid() == 0 {
				return false, fmt.Errorf("no containers by liblxc: %w", err)
			}
			return ok, nil
		}
		return false, fmt.Errorf("unknown condition %s", name)
	}
}

// story is one script's own state.
type story struct {
	t       testing.TB
	work    string
	running map[string]*program
	vms     map[string]*guest.VM
	memory  map[string][]byte
	closers []func()
}

type storyKey struct{}

func of(ts *testscript.TestScript) *story { return ts.Value(storyKey{}).(*story) }

func (s *story) close() {
	for _, p := range s.running {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
	for _, f := range slices.Backward(s.closers) {
		f()
	}
	for _, vm := range s.vms {
		if err := vm.Close(); err != nil {
			s.t.Error(err)
		}
	}
	if !s.t.Failed() {
		return
	}
	for _, pid := range processesOf(s.work) { // a story that failed has not ended what its programs started
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	switch path.Base(s.t.Name()) { // these stories alone make them, and may be running
	case "lab":
		_, _ = lab.Down(ctx, new(host.Pool), labOfTests())
	case "containers":
		_, _ = lab.Down(ctx, new(host.Pool), labOfTests()+"c")
		_, _ = lab.Down(ctx, new(host.Pool), labOfTests()+"k")
	}
}

// program is one that runs beside the script.
type program struct {
	cmd            *exec.Cmd
	stdout, stderr output
}

// output is a buffer that may be looked at while a program writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// patience ends a program that hangs: no story's takes half of it.
const patience = time.Minute

func startProgram(ts *testscript.TestScript, args []string) *program {
	p := &program{cmd: exec.Command(args[0], args[1:]...)}
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if name := filepath.Join(dir, args[0]); !strings.Contains(args[0], "/") {
			if info, err := os.Stat(name); err == nil && info.Mode()&0o111 != 0 {
				p.cmd.Path, p.cmd.Err = name, nil
				break
			}
		}
	}
	p.cmd.Dir = ts.MkAbs(".")
	for _, name := range environment(ts) {
		p.cmd.Env = append(p.cmd.Env, name+"="+ts.Getenv(name))
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.WaitDelay = time.Second
	ts.Check(p.cmd.Start())
	return p
}

// environment is the names of what a script's programs get.
func environment(ts *testscript.TestScript) []string {
	names := []string{"HOME", "PATH", "TMPDIR", "WORK", "LAB", "GORACE", "TERM", "NO_COLOR"}
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "QMIGRATE_") {
			names = append(names, name)
		}
	}
	return slices.Compact(append(names, "QMIGRATE_CACHE"))
}

// wait waits for the program and gives the script its output.
func (p *program) wait(ts *testscript.TestScript, want string) {
	hung := time.AfterFunc(patience, func() { _ = p.cmd.Process.Signal(syscall.SIGQUIT) })
	err := p.cmd.Wait()
	hung.Stop()
	_, _ = io.WriteString(ts.Stdout(), p.stdout.String())
	_, _ = io.WriteString(ts.Stderr(), p.stderr.String())
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v: %v", p.cmd.Args, err)
	}
	if got := strconv.Itoa(p.cmd.ProcessState.ExitCode()); got != want {
		said := p.stdout.String() + p.stderr.String()
		ts.Fatalf("%v: exit status %s, want %s\n%s", p.cmd.Args, got, want, said[:min(len(said), 4000)])
	}
}

func status(ts *testscript.TestScript, _ bool, args []string) {
	startProgram(ts, args[1:]).wait(ts, args[0])
}

func start(ts *testscript.TestScript, _ bool, args []string) {
	of(ts).running[args[0]] = startProgram(ts, args[1:])
}

func await(ts *testscript.TestScript, _ bool, args []string) {
	p, re := of(ts).running[args[0]], regexp.MustCompile(args[1])
	for deadline := time.Now().Add(patience); !re.MatchString(p.stderr.String()); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("%v never said %q but\n%s", p.cmd.Args, args[1], p.stderr.String())
		}
	}
}

func interrupt(ts *testscript.TestScript, _ bool, args []string) {
	sig := map[string]os.Signal{"": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP,
		"KILL": syscall.SIGKILL}[strings.Join(args[1:], "")]
	ts.Check(of(ts).running[args[0]].cmd.Process.Signal(sig))
}

func finish(ts *testscript.TestScript, _ bool, args []string) {
	p := of(ts).running[args[0]]
	delete(of(ts).running, args[0])
	p.wait(ts, args[1])
}

func oneline(ts *testscript.TestScript, _ bool, _ []string) {
	text := ts.ReadFile("stderr")
	if !strings.HasPrefix(text, "qmigrate: ") || strings.Count(text, "\n") != 1 || strings.Contains(text, "panic") || strings.Contains(text, "internal error") {
		ts.Fatalf("standard error is not one line of ours:\n%s", text)
	}
}

func lines(ts *testscript.TestScript, _ bool, args []string) {
	rest := strings.Split(ts.ReadFile(append(args, "stderr")[1]), "\n")
	for want := range strings.Lines(ts.ReadFile(args[0])) {
		want = strings.TrimSpace(want)
		i := slices.IndexFunc(rest, regexp.MustCompile(want).MatchString)
		if want == "" {
			continue
		}
		if i < 0 {
			ts.Fatalf("no line %q in\n%s", want, strings.Join(rest, "\n"))
		}
		rest = rest[i+1:]
	}
}

func startQEMU(ts *testscript.TestScript, _ bool, args []string) {
	s, dir := of(ts), ts.MkAbs(args[1])
	bin := guesttest.QEMU(s.t, args[0])
	spec := guest.Spec{Name: "story", QEMU: bin, Memory: 16 << 20, Dir: dir}
	for i, word := range args[2:] {
		switch {
		case word == "incoming":
			spec.Incoming, spec.Paused = true, true
		case strings.HasPrefix(word, "memory="):
			mib, err := strconv.Atoi(word[len("memory="):])
			ts.Check(err)
			spec.Memory = int64(mib) << 20
		case strings.HasPrefix(word, "machine="):
			spec.Machine = word[len("machine="):]
		case strings.HasPrefix(word, "cpu="):
			spec.CPU = word[len("cpu="):]
		default:
			spec.Extra = args[2+i:]
		}
		if spec.Extra != nil {
			break
		}
	}
	vm, err := guest.Start(within.Context(s.t), host.Local(), spec)
	ts.Check(err)
	s.vms[dir] = vm
}

func killQEMU(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(of(ts).vms[ts.MkAbs(args[0])].Kill(within.Context(of(ts).t)))
}

func dead(ts *testscript.TestScript, _ bool, args []string) {
	for range 200 { // QEMU exits a moment after it has said that the migration failed
		c, err := net.DialTimeout("unix", filepath.Join(ts.MkAbs(args[0]), "control.qmp"), patience)
		if err != nil {
			return
		}
		c.Close()
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("a QEMU listens in %s", args[0])
}

func quit(ts *testscript.TestScript, _ bool, args []string) {
	ask(ts, args[0], func(ctx context.Context, c *qmp.Conn) error {
		err := c.Quit(ctx)
		select {
		case <-c.Done():
		case <-ctx.Done():
			err = errors.Join(err, ctx.Err())
		}
		return err
	})
}

// ask runs commands on a QEMU's control monitor.
func ask(ts *testscript.TestScript, dir string, f func(context.Context, *qmp.Conn) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := qmp.Dial(ctx, "unix", filepath.Join(ts.MkAbs(dir), "control.qmp"), qmp.Options{})
	ts.Check(err)
	defer c.Close()
	ts.Check(f(ctx, c))
}

func runState(ts *testscript.TestScript, _ bool, args []string) {
	ask(ts, args[0], func(ctx context.Context, c *qmp.Conn) error {
		s, err := c.QueryStatus(ctx)
		if err == nil && s.Status != args[1] {
			err = fmt.Errorf("%s is %s, want %s", args[0], s.Status, args[1])
		}
		return err
	})
}

func migrationState(ts *testscript.TestScript, dir string) (state []byte) {
	ask(ts, dir, func(ctx context.Context, c *qmp.Conn) error {
		for _, command := range []string{"query-status", "query-migrate", "query-migrate-capabilities", "query-migrate-parameters"} {
			var reply json.RawMessage
			if err := c.Execute(ctx, command, nil, &reply); err != nil {
				return err
			}
			state = append(append(state, reply...), '\n')
		}
		return nil
	})
	return state
}

func remember(ts *testscript.TestScript, _ bool, args []string) {
	of(ts).memory[args[0]] = migrationState(ts, args[0])
}

func unchanged(ts *testscript.TestScript, _ bool, args []string) {
	if now, was := migrationState(ts, args[0]), of(ts).memory[args[0]]; !bytes.Equal(now, was) {
		ts.Fatalf("%s was\n%sand is\n%s", args[0], was, now)
	}
}

func hold(ts *testscript.TestScript, _ bool, args []string) {
	c, err := net.DialTimeout("unix", ts.MkAbs(args[0]), patience)
	ts.Check(err)
	ts.Check(c.SetReadDeadline(time.Now().Add(patience)))
	_, err = c.Read(make([]byte, 1)) // it has been accepted
	ts.Check(err)
	s := of(ts)
	s.closers = append(s.closers, func() { c.Close() })
}

func fakeQMP(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[1])
	f := &fake{before: text}
	for _, word := range args[2:] {
		switch {
		case word == "repeat":
			before, last := text, ""
			if i := strings.LastIndex(strings.TrimSuffix(text, "\n"), "\n"); i >= 0 {
				before, last = text[:i+1], text[i+1:]
			}
			f.before, f.flood = before, last
		case word == "close":
			f.hangUp = true
		case strings.HasPrefix(word, "answer="):
			f.answers, _ = strconv.Atoi(word[len("answer="):])
		default:
			ts.Fatalf("fakeqmp: %s?", word)
		}
	}
	stop, err := f.serve(ts.MkAbs(args[0]))
	ts.Check(err)
	s := of(ts)
	s.closers = append(s.closers, stop)
}

func refusal(ts *testscript.TestScript, _ bool, args []string) {
	var r struct {
		Outcome string
		Error   struct{ Stage, Message string }
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &r))
	if r.Outcome != "failed" || r.Error.Stage != args[1] || !regexp.MustCompile(args[2]).MatchString(r.Error.Message) {
		ts.Fatalf("want a failure in %s by %s, got %+v", args[1], args[2], r)
	}
}

// checkRecord holds a record against the list of keys that scripts may count on.
func checkRecord(ts *testscript.TestScript, _ bool, args []string) {
	text := strings.TrimSpace(ts.ReadFile(args[0]))
	if strings.Contains(text, "\n") {
		ts.Fatalf("more than one line:\n%s", text)
	}
	var wrong []string
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	var r any
	ts.Check(json.Unmarshal([]byte(text), &r))
	keys := recordKeys
	if args[1] == "lab" {
		keys += labKeys
	}
	for _, key := range strings.Fields(keys) {
		if _, ok := lookup(r, key); !ok {
			bad("the record has no %s", key)
		}
	}
	var sum float64
	var names []string
	stages, _ := lookup(r, "stages")
	next := 0.0
	for _, s := range stages.([]any) {
		name, _ := lookup(s, "name")
		begin, _ := lookup(s, "start_ns")
		d, _ := lookup(s, "duration_ns")
		if begin.(float64) != next {
			bad("stage %v begins at %v, the one before it ended at %v", name, begin, next)
		}
		next = begin.(float64) + d.(float64)
		sum += d.(float64)
		names = append(names, name.(string))
	}
	if wall, _ := lookup(r, "total.wall_ns"); sum != wall {
		bad("the stages' durations sum to %v, the wall time is %v", sum, wall)
	}
	want := "initialization reservation pre-copy stop-and-copy commitment activation"
	if _, mirrored := lookup(r, "mirrors"); mirrored {
		want = strings.Replace(want, "pre-copy", "storage pre-copy", 1)
	}
	if got := strings.Join(names, " "); got != want {
		bad("stages: %s; want %s", got, want)
	}
	downtimes := 0
	d, _ := lookup(r, "downtime")
	for key := range d.(map[string]any) {
		if !strings.HasSuffix(key, "_error_ns") {
			downtimes++
		}
	}
	if args[1] == "lab" && downtimes < 5 {
		bad("%d downtimes, want at least 5: %v", downtimes, d)
	}
	for _, kv := range args[2:] {
		key, want, _ := strings.Cut(kv, "=")
		var value any
		if json.Unmarshal([]byte(want), &value) != nil {
			value = want
		}
		if got, ok := lookup(r, key); !ok || !reflect.DeepEqual(got, value) {
			bad("%s is %v, want %v", key, got, value)
		}
	}
	if len(wrong) > 0 {
		ts.Fatalf("%s\n%s", strings.Join(wrong, "\n"), text)
	}
}

func mostlyDown(ts *testscript.TestScript, _ bool, args []string) {
	var r any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &r))
	down, _ := lookup(r, "downtime.wire_ns")
	total, _ := lookup(r, "total.qemu_total_ns")
	if down, total := down.(float64), total.(float64); down < 0.9*total {
		ts.Fatalf("down for %v ns of %v", down, total)
	}
}

// The keys of a completed migration's record, by path; names of list elements stand for each element.
const recordKeys = `schema id started_at name mode outcome guest_on plan parameters capabilities
	qemu.source_version qemu.destination_version qemu.accelerator qemu.machine qemu.memory_bytes qemu.vcpus
	hosts.source hosts.destination stages.name stages.start_ns stages.duration_ns
	passes.pass passes.start_ns passes.duration_ns
	total.wall_ns total.qemu_total_ns total.qemu_setup_ns total.transferred_bytes total.normal_pages total.duplicate_pages
	downtime.qemu_ns downtime.wire_ns downtime.wire_error_ns downtime.status_ns downtime.status_error_ns
	sampling.samples sampling.period_p50_ns sampling.period_p99_ns sampling.longest_unanswered_ns
`

// Those of a lab; what a sample tells of a pass is absent from one that had none, which a lab's takes too long for.
const labKeys = `passes.transferred_bytes passes.remaining_bytes passes.dirty_pages passes.throughput_bytes_per_s
	workload hosts.kernel hosts.cpu
	downtime.ping_ns downtime.ping_error_ns downtime.heartbeat_ns downtime.heartbeat_error_ns downtime.guest_clock_ns downtime.tcp_ns downtime.tcp_error_ns
	guest.clock_slip_ns guest.slowdown_percent guest.events_before_per_s guest.events_during_per_s
	network.pings_sent network.pings_lost network.tcp_survived network.retransmits network.announce_to_first_packet_ns
	memory_check.pages_checked memory_check.pages_wrong sampling.qemu_cpu_ns
`

// lookup follows a path of keys; through a list it needs the rest of the path in every element.
func lookup(v any, path string) (any, bool) {
	key, rest, more := strings.Cut(path, ".")
	m, ok := v.(map[string]any)
	if !ok {
		return nil, false
	}
	v, ok = m[key]
	if list, isList := v.([]any); isList && more {
		for _, e := range list {
			if _, ok := lookup(e, rest); !ok {
				return nil, false
			}
		}
		return list, len(list) > 0
	}
	if !ok || !more {
		return v, ok
	}
	return lookup(v, rest)
}
