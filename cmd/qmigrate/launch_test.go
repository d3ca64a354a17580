package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/connect/beside"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// drawsVariable is how many command lines TestLaunchDrawn draws; seedVariable begins with another.
const (
	drawsVariable = "QMIGRATE_LAUNCH_DRAWS"
	seedVariable  = "QMIGRATE_LAUNCH_SEED"
)

// draw is a source's command line that is being drawn, and the words of --launch that go with it.
type draw struct {
	*rand.Rand
	t       *testing.T
	dir     string
	n       int // of names in dir
	args    []string
	flags   []string
	refused bool // one of its options cannot be had twice, and nothing else is named for it
	images  []string
	close   []io.Closer
	exit    bool // it begins in preconfig
	board   bool // it needs a CPU and buses
	newest  bool // this QEMU has options of 11.1
}

func (d *draw) add(args ...string) { d.args = append(d.args, args...) }
func (d *draw) coin() bool         { return d.IntN(2) == 0 }
func (d *draw) id() string         { d.n++; return fmt.Sprintf("x%d", d.n) }
func (d *draw) path() string       { return filepath.Join(d.dir, d.id()) }
func (d *draw) switchOn() string   { return []string{"server", "server=on", "server=yes"}[d.IntN(3)] }

// port is one that is free for now, for TCP and UDP.
func (d *draw) port() string {
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			d.t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		u, err := net.ListenPacket("udp", "127.0.0.1:"+port)
		l.Close()
		if err == nil {
			u.Close()
			return port
		}
	}
}

// needsPort names another port for one that nothing else can stand for, or leaves it to be refused.
func (d *draw) needsPort() (port string) {
	if port = d.port(); d.coin() {
		d.flags = append(d.flags, "--port", port+"="+d.port())
	} else {
		d.refused = true
	}
	return port
}

// grammar is what a command line is drawn from: options that open, create or hold something.
var grammar = []func(*draw){
	func(d *draw) { d.add("-qmp", "unix:"+d.path()+","+d.switchOn()+",wait=off") },
	func(d *draw) { d.add("-monitor", "tcp:127.0.0.1:"+d.port()+",server=on,wait=off") },
	func(d *draw) { d.add("-qmp", "telnet::"+d.port()+",server,nowait") },
	func(d *draw) { d.add("-serial", "file:"+d.path()) },
	func(d *draw) { d.add("-serial", "mon:unix:"+d.path()+",server,nowait") },
	func(d *draw) { d.board = true; d.add("-debugcon", []string{"null", "stdio", "pty", "vc"}[d.IntN(4)]) },
	func(d *draw) { d.add("-serial", "udp:127.0.0.1:9@127.0.0.1:"+d.needsPort()) },
	func(d *draw) {
		d.add("-chardev", "socket,id="+d.id()+",path="+d.path()+",server=on,wait=off,logfile="+d.path())
	},
	func(d *draw) { // a name that the source's path maps to itself is the source's
		p := d.path()
		d.add("-chardev", "socket,id="+d.id()+",path="+p+",server=on,wait=off")
		to := d.path()
		if d.coin() {
			to, d.refused = p, true
		}
		d.flags = append(d.flags, "--path", p+"="+to)
	},
	func(d *draw) {
		d.add("-chardev", "socket,id="+d.id()+",path=qmigrate-test-"+filepath.Base(d.dir)+d.id()+
			",abstract=on,server=on,wait=off")
	},
	func(d *draw) {
		d.add("-chardev", "socket,id="+d.id()+",host=127.0.0.1,port="+d.port()+",server=on,wait=off,telnet=on")
	},
	func(d *draw) { // a socket that somebody else serves
		p := d.path()
		d.listen(p)
		d.add("-chardev", "socket,id="+d.id()+",path="+p)
		if d.refused = d.refused || d.coin(); !d.refused {
			to := d.path()
			d.listen(to)
			d.flags = append(d.flags, "--path", p+"="+to)
		}
	},
	func(d *draw) {
		d.add("-chardev", "udp,id="+d.id()+",host=127.0.0.1,port=9,localaddr=127.0.0.1,localport="+d.needsPort())
	},
	func(d *draw) { d.add("-chardev", "file,id="+d.id()+",path="+d.path()) },
	func(d *draw) { d.add("-chardev", "ringbuf,id="+d.id()+",logfile="+d.path()) },
	func(d *draw) { // a pipe of the host's
		p := d.path()
		if err := unix.Mkfifo(p, 0o600); err != nil {
			d.t.Fatal(err)
		}
		d.add("-chardev", "pipe,id="+d.id()+",path="+p)
		d.refused = true
	},
	func(d *draw) { d.add("-vnc", "unix:"+d.path()) },
	func(d *draw) { d.add("-vnc", "127.0.0.1:"+strconv.Itoa(d.display())+",websocket="+d.port()) },
	func(d *draw) { d.add("-display", "vnc=127.0.0.1:"+strconv.Itoa(d.display())) },
	func(d *draw) { d.board = true; d.add("-gdb", "tcp:127.0.0.1:"+d.port()) },
	func(d *draw) { d.board = true; d.add("-gdb", "unix:"+d.path()+",server=on,wait=off") },
	func(d *draw) { d.add("-pidfile", d.path()) },
	func(d *draw) { d.add("-D", d.path(), "-d", "guest_errors") },
	func(d *draw) { d.add("-trace", "file="+d.path()) },
	func(d *draw) {
		port, flags := d.port(), []string(nil)
		d.add("-netdev", "user,id="+d.id()+",hostfwd="+[]string{"tcp", "udp"}[d.IntN(2)]+":127.0.0.1:"+port+"-:22")
		if d.coin() {
			flags = []string{"--port", port + "=" + d.port()}
		}
		d.flags = append(d.flags, flags...)
	},
	func(d *draw) {
		d.add("-netdev", `{"type":"user","id":"`+d.id()+`","hostfwd":[{"str":"tcp:127.0.0.1:`+d.port()+`-:22"},{"str":"tcp:127.0.0.1:`+d.port()+`-:23"}]}`)
	},
	func(d *draw) { d.add("-netdev", "user,id="+d.id()+",guestfwd=tcp:10.0.2.100:80-file:"+d.path()) },
	func(d *draw) { d.add("-netdev", "socket,id="+d.id()+",listen=127.0.0.1:"+d.needsPort()) },
	func(d *draw) {
		d.add("-netdev", "socket,id="+d.id()+",udp=127.0.0.1:9,localaddr=127.0.0.1:"+d.needsPort())
	},
	func(d *draw) { d.add("-netdev", "socket,id="+d.id()+",mcast=230.0.0.1:"+d.port()) },
	func(d *draw) {
		d.add("-netdev", "stream,id="+d.id()+",server=on,addr.type=unix,addr.path="+d.path())
	},
	func(d *draw) {
		d.add("-netdev", `{"type":"stream","id":"`+d.id()+`","server":true,"addr":{"type":"inet","host":"127.0.0.1","port":"`+d.needsPort()+`"}}`)
	},
	func(d *draw) {
		d.add("-netdev", "dgram,id="+d.id()+",local.type=unix,local.path="+d.path()+",remote.type=unix,remote.path="+d.path())
	},
	func(d *draw) {
		d.add("-netdev", "dgram,id="+d.id()+",local.type=inet,local.host=127.0.0.1,local.port="+d.needsPort()+
			",remote.type=inet,remote.host=127.0.0.1,remote.port=9")
	},
	func(d *draw) {
		id := d.id()
		d.add("-netdev", "hubport,hubid=1,id="+id, "-object", "filter-dump,id="+d.id()+",netdev="+id+",file="+d.path())
	},
	func(d *draw) { // options in a file
		p := d.path()
		d.write(p, "[chardev \""+d.id()+"\"]\n  backend = \"socket\"\n  path = \""+d.path()+
			"\"\n  server = \"on\"\n  wait = \"off\"\n")
		d.add("-readconfig", p)
	},
	func(d *draw) {
		id := d.id()
		d.add("-chardev", "file,id="+id+",path="+d.path(), "-set", "chardev."+id+".path="+d.path())
	},
	func(d *draw) { d.add("-preconfig"); d.exit = true },
	func(d *draw) {
		if d.newest {
			d.add("-run-with", "exit-with-parent=on")
		}
	},
	func(d *draw) {
		p := d.path()
		d.add("-object", "memory-backend-file,id="+d.id()+",size=1M,share=on,mem-path="+p)
		if d.refused = d.refused || d.coin(); !d.refused {
			d.flags = append(d.flags, "--path", p+"="+d.path())
		}
	},
	func(d *draw) { d.add("-blockdev", "file,node-name="+d.id()+",read-only=on,filename="+d.image()) },
	func(d *draw) { d.add("-drive", "if=none,format=raw,readonly=on,file="+d.image()) },
	func(d *draw) { d.add("-drive", "if=none,format=raw,snapshot=on,file="+d.image()); d.refused = true },
	func(d *draw) { d.add("-object", "rng-random,id="+d.id()+",filename=/dev/urandom") },
}

// display is a VNC display that is free for now.
func (d *draw) display() int {
	for {
		n := d.IntN(2000) + 1000
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 5900+n)); err == nil {
			l.Close()
			return n
		}
	}
}

func (d *draw) write(name, content string) {
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *draw) image() string {
	p := d.path()
	d.write(p, strings.Repeat("\x00", 1<<16))
	d.images = append(d.images, p)
	return p
}

func (d *draw) listen(path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		d.t.Fatal(err)
	}
	d.close = append(d.close, l)
}

// state is what a source is and has: its sockets and open files, what lies in its folder, its run state.
func state(t *testing.T, pid int, dir string) string {
	t.Helper()
	h, err := launch.ReadHeld(pid)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, s := range h.Sockets {
		all = append(all, fmt.Sprintf("%s %s %v", s.Network, s.Address, s.Listening))
	}
	ours, err := launch.ReadHeld(os.Getpid()) // what our parent left open for all of us
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range h.Files {
		if slices.ContainsFunc(ours.Files, func(o launch.File) bool { return o.Path == f.Path }) {
			continue
		}
		all = append(all, "file "+f.Path)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, e.Name()), &st); err == nil {
			all = append(all, fmt.Sprintf("in its folder %s %d", e.Name(), st.Ino))
		}
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), "\n")
}

// stateOf is the state of a source that has come to rest: nobody is connected to its monitor, and it is the same twice.
// QEMU closes its end of a connection a moment after the other end was closed, and a log file that it has replaced when
// its RCU thread comes to it (util/log.c). A connection that stays open is a fault.
func stateOf(t *testing.T, pid int, dir, monitor string) string {
	t.Helper()
	before := ""
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(30 * time.Millisecond) {
		now := state(t, pid, dir)
		if now == before && !strings.Contains("\n"+now+"\n", "\nunix "+monitor+" false\n") {
			return now
		}
		if before = now; time.Now().After(deadline) {
			t.Fatalf("the source does not come to rest, or a connection to %s stays open:\n%s", monitor, now)
		}
	}
}

// tell gives a VM's control monitor a command.
func tell(t *testing.T, vm *guest.VM, do func(*qmp.Conn) error) {
	t.Helper()
	nc, err := vm.Dial(t.Context(), guest.Control)
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(t.Context(), nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := do(c); err != nil {
		t.Fatal(err)
	}
}

// Whatever a source has, --launch starts a second QEMU that takes nothing of it, or says in a line why not. Of
// QMIGRATE_LAUNCH_DRAWS command lines; QMIGRATE_LAUNCH_SEED begins elsewhere.
func TestLaunchDrawn(t *testing.T) {
	draws, seed := 20, 1
	for name, into := range map[string]*int{drawsVariable: &draws, seedVariable: &seed} {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			*into = n
		}
	}
	var started, refusals, impossible int
	for i := range draws {
		version := guesttest.Versions()[i%len(guesttest.Versions())]
		bin := guesttest.QEMU(t, version)
		t.Run(fmt.Sprintf("%d-qemu-%s", seed+i, version), func(t *testing.T) {
			switch launchDrawn(t, bin, version == "11.1", uint64(seed+i)) {
			case "started":
				started++
			case "refused":
				refusals++
			default:
				impossible++
			}
		})
	}
	t.Logf("%d drawn: %d started, %d refused, %d that this QEMU cannot have", draws, started, refusals, impossible)
	if draws > 5 && (started == 0 || refusals == 0 || impossible > draws/2) {
		t.Errorf("of %d command lines %d started, %d were refused, %d impossible: the draws show nothing", draws, started,
			refusals, impossible)
	}
}

// launchDrawn draws a command line and says what came of it.
func launchDrawn(t *testing.T, bin string, newest bool, seed uint64) string {
	base := guesttest.Dir(t)
	d := &draw{Rand: rand.New(rand.NewPCG(seed, 0)), t: t, dir: filepath.Join(base, "a"), newest: newest}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, c := range d.close {
			c.Close()
		}
	}()
	for range 2 + d.IntN(5) {
		grammar[d.IntN(len(grammar))](d)
	}
	monitors := filepath.Join(base, "m")
	machine := []string{bin, "-nodefaults", "-machine", "none"}
	if d.board {
		machine = []string{bin, "-nodefaults", "-machine", "q35", "-accel", "tcg", "-m", "16"}
	}
	args := slices.Concat(machine, []string{"-chardev",
		"socket,id=control,server=on,wait=off,path=" + monitors + "/control.qmp", "-mon", "chardev=control,mode=control"},
		d.args)
	if !slices.Contains(args, "-display") {
		args = append(args, "-display", "none")
	}
	src, err := guest.StartIncoming(t.Context(), host.Local(), host.Command{Args: args}, monitors)
	if err != nil {
		t.Logf("%q: %v", d.args, err)
		return "impossible"
	}
	defer src.Close()
	if d.exit {
		var refused error
		tell(t, src, func(c *qmp.Conn) error { refused = c.Execute(t.Context(), "x-exit-preconfig", nil, nil); return nil })
		if refused != nil { // it tries the rest of its options only now
			t.Logf("%q: %v", d.args, refused)
			return "impossible"
		}
	}
	pid := src.Process().PID()
	before := stateOf(t, pid, d.dir, monitors+"/control.qmp")
	l, said, err := launchBeside(t, append([]string{"--source", "unix:" + monitors, "--destination",
		"unix:" + base + "/b"}, d.flags...))
	complain := func(format string, args ...any) {
		t.Helper()
		t.Errorf(format+"\nsource %q\nflags %q\nsaid %s", append(args, d.args, d.flags, said)...)
	}
	refused, ended := (*launch.ArgumentError)(nil), (*guest.StartError)(nil)
	switch {
	case errors.As(err, &ended) && strings.Contains(ended.Log, "in use"): // somebody took the port that was free
		return "impossible"
	case err != nil && !errors.As(err, &refused):
		complain("neither started nor refused: %v", err)
	case d.refused != (err != nil):
		complain("refused %v, want %v: %v", err != nil, d.refused, err)
	}
	after := stateOf(t, pid, d.dir, monitors+"/control.qmp")
	if err != nil {
		if after != before {
			complain("refused, and the source had\n%s\nand has\n%s", before, after)
		}
		if _, err := os.Lstat(base + "/b"); err == nil {
			complain("refused, and a folder is left")
		}
	} else {
		for line := range strings.SplitSeq(before, "\n") { // a name that --path gave may be new in its folder
			if !strings.Contains("\n"+after+"\n", "\n"+line+"\n") {
				complain("the source had %s", line)
			}
		}
		theirs, herr := launch.ReadHeld(l.Process().PID())
		if herr != nil {
			t.Fatal(herr)
		}
		for _, s := range theirs.Sockets {
			if strings.Contains("\n"+before+"\n", fmt.Sprintf("\n%s %s %v\n", s.Network, s.Address, s.Listening)) &&
				!strings.Contains(strings.Join(d.args, " "), "mcast") {
				complain("both hold %s %s", s.Network, s.Address)
			}
		}
		for _, f := range theirs.Files {
			if strings.Contains("\n"+before+"\n", "\nfile "+f.Path+"\n") && !slices.Contains(d.images, f.Path) {
				complain("both write %s", f.Path)
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(base + "/b"); err == nil {
			complain("ended, and a folder is left")
		}
	}
	tell(t, src, func(c *qmp.Conn) error {
		s, err := c.QueryStatus(t.Context())
		if err == nil && s.Status != "running" {
			complain("the source is %s", s.Status)
		}
		return err
	})
	if err != nil {
		return "refused"
	}
	return "started"
}

// launchBeside does what `migrate --launch` does until the migration begins.
func launchBeside(t *testing.T, flags []string) (l *beside.Launched, said string, err error) {
	var stderr bytes.Buffer
	c := &commands{stdout: io.Discard, stderr: &stderr}
	command := c.migrate()
	command.Action = func(x *cli.Context) error {
		src, err := connect.Parse(x.String("source"), nil)
		if err == nil {
			l, err = c.launch(x, src, &plan.Plan{})
		}
		return err
	}
	app := &cli.App{Commands: []*cli.Command{command}, ExitErrHandler: func(*cli.Context, error) {}, Writer: io.Discard,
		ErrWriter: io.Discard}
	err = app.RunContext(t.Context(), append([]string{"qmigrate", "migrate", "--launch"}, flags...))
	return l, stderr.String(), err
}

// A port that leads to the guest goes with it: the source has it until the guest has moved, the destination afterwards.
// One that cannot be moved is a warning that says what to do.
func TestLaunchForwards(t *testing.T) {
	bin := guesttest.QEMU(t, "10.0")
	base := guesttest.Dir(t)
	d := &draw{Rand: rand.New(rand.NewPCG(1, 1)), t: t, dir: base}
	tcp, udp := d.port(), d.port()
	start := func(dir string) *guest.VM {
		t.Helper()
		vm, err := guest.StartIncoming(t.Context(), host.Local(),
			host.Command{Args: []string{bin, "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m",
				"63",
				"-chardev", "socket,id=control,server=on,wait=off,path=" + dir +
					"/control.qmp", "-mon", "chardev=control,mode=control",
				"-netdev", "user,id=u,hostfwd=tcp:127.0.0.1:" + tcp + "-:22", "-device", "virtio-net-pci,netdev=u",
				"-netdev", `{"type":"user","id":"v","hostfwd":[{"str":"udp:127.0.0.1:` + udp +
					`-:53"}]}`, "-device", "virtio-net-pci,netdev=v"}}, dir)
		if err != nil {
			t.Fatal(err)
		}
		return vm
	}
	src := start(base + "/a")
	defer src.Close()
	has := func(pid int) string {
		t.Helper()
		h, err := launch.ReadHeld(pid)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, s := range h.Sockets {
			if strings.HasSuffix(s.Address, ":"+tcp) || strings.HasSuffix(s.Address, ":"+udp) {
				all = append(all, s.Network)
			}
		}
		slices.Sort(all)
		return strings.Join(all, " ")
	}
	if got := has(src.Process().PID()); got != "tcp udp" {
		t.Fatalf("the source holds %q of its ports", got)
	}
	l, said, err := launchBeside(t, []string{"--source", "unix:" + base + "/a", "--destination", "unix:" + base + "/b"})
	if err != nil {
		t.Fatal(err, said)
	}
	defer l.Close()
	if got := has(src.Process().PID()); got != "tcp udp" || len(l.Forwards) != 2 || has(l.Process().PID()) != "" {
		t.Errorf("before the guest has moved the source has %q, the destination %q, and %d are to move", got,
			has(l.Process().PID()), len(l.Forwards))
	}
	ends := map[string]*endpoint.Endpoint{}
	for _, name := range []string{"a", "b"} {
		if ends[name], err = connect.Parse("unix:"+base+"/"+name, nil); err != nil {
			t.Fatal(err)
		}
	}
	rec := &record.Migration{GuestOn: record.Source}
	l.MoveForwards(t.Context(), ends["a"], ends["b"], rec)
	if got := has(src.Process().PID()); got != "tcp udp" || len(rec.Warnings) > 0 {
		t.Errorf("the guest stays, and its source has %q: %q", got, rec.Warnings)
	}
	rec, err = engine.Migrate(t.Context(), ends["a"], ends["b"], plan.Plan{}, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := len(rec.Warnings)
	l.Forwards = append(l.Forwards, launch.Forward{Netdev: "none", Rule: "tcp:127.0.0.1:" + d.port() + "-:22"})
	l.MoveForwards(t.Context(), ends["a"], ends["b"], rec)
	if got, then := has(src.Process().PID()), has(l.Process().PID()); got != "" || then != "tcp udp" {
		t.Errorf("after the guest has moved the source has %q, the destination %q: %q", got, then, rec.Warnings)
	}
	if w := rec.Warnings[before:]; len(w) != 1 || !strings.Contains(w[0], "`hostfwd_add none tcp:") {
		t.Errorf("%q", w)
	}
}

// TestForwardsRecovered kills `migrate --launch` when the guest has just left the source: --recover moves its ports.
func TestForwardsRecovered(t *testing.T) {
	bin := guesttest.QEMU(t, "10.0")
	for attempt := range 10 {
		base := guesttest.Dir(t)
		port := (&draw{Rand: rand.New(rand.NewPCG(uint64(attempt), 7)), t: t, dir: base}).port()
		args := []string{bin, "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "64",
			"-qmp", "unix:" + base + "/look,server=on,wait=off",
			"-netdev", "user,id=u,hostfwd=tcp:127.0.0.1:" + port + "-:22", "-device", "virtio-net-pci,netdev=u"}
		for _, role := range []string{guest.Control, guest.Events, guest.Sampler} {
			args = append(args, "-qmp", "unix:"+base+"/a/"+role+".qmp,server=on,wait=off")
		}
		src, err := guest.StartIncoming(t.Context(), host.Local(), host.Command{Args: args}, base+"/a")
		if err != nil {
			t.Fatal(err)
		}
		ends := []string{"--source", "unix:" + base + "/a", "--destination", "unix:" + base + "/b", "--out", base + "/out"}
		cmd := qmigrate(t, append([]string{"migrate", "--launch"}, ends...)...)
		look, err := qmp.Dial(t.Context(), "unix", base+"/look", qmp.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for {
			if s, err := look.QueryStatus(t.Context()); err != nil {
				t.Fatal(err)
			} else if s.Status == "postmigrate" {
				break
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		look.Close()
		_, err = os.Stat(base + "/b/forwards.json")
		left := err == nil
		var out string
		for range 2 { // again, it changes nothing
			recovery := qmigrate(t, append([]string{"migrate", "--recover"}, ends...)...)
			status, said := result(t, recovery)
			if out += said; status != 0 {
				t.Fatalf("--recover ends with status %d: %s", status, said)
			}
		}
		holder := 0
		for _, pid := range []int{src.Process().PID(), pidOf(t, base+"/b/control.qmp")} {
			h, err := launch.ReadHeld(pid)
			if err != nil {
				t.Fatal(err)
			}
			if slices.ContainsFunc(h.Sockets, func(s launch.Socket) bool { return strings.HasSuffix(s.Address, ":"+port) }) {
				holder = pid
			}
		}
		destination := pidOf(t, base+"/b/control.qmp")
		if holder != destination || strings.Contains(out, "moved to the destination: 1") != left {
			t.Errorf("process %d has the port, the destination is %d; it was left: %t: %s", holder, destination, left, out)
		}
		if _, err := os.Stat(base + "/b/forwards.json"); err == nil {
			t.Error("the list is left")
		}
		_ = unix.Kill(destination, unix.SIGKILL)
		if err := src.Close(); err != nil {
			t.Error(err)
		}
		if left {
			return
		}
	}
	t.Error("qmigrate was never killed in time")
}

// pidOf is the process that listens on a socket.
func pidOf(t *testing.T, socket string) int {
	t.Helper()
	e, err := connect.Parse("unix:"+socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := e.Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	p, err := connect.Behind(e)
	if err != nil {
		t.Fatal(err)
	}
	return p.PID
}

// A QEMU that we start outlives us: it must not hold what our parent left open.
func TestKeepToOurselves(t *testing.T) {
	fd, err := unix.Open(filepath.Join(guesttest.Dir(t), "lock"), unix.O_CREAT|unix.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags != 0 {
		t.Fatal(flags, err)
	}
	keepToOurselves()
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags != unix.FD_CLOEXEC {
		t.Errorf("a child gets it: %d %v", flags, err)
	}
}
