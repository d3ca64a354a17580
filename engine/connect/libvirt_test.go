package connect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
	"qmigrate/hostnet/libvirtd"
	"qmigrate/hostnet/lxc"
	"qmigrate/qmp"
)

// virts are two hosts with a libvirtd each.
type virts struct {
	*libvirtd.Network
	qemu string
}

// uri is libvirt's of a host, as this machine reaches it.
func (v virts) uri(host string) string { return "qemu+unix:///system?socket=" + v.Daemon(host).Socket }

func (v virts) endpoint(t *testing.T, host, domain string) *endpoint.Endpoint {
	t.Helper()
	e, err := Parse("libvirt:"+v.uri(host)+"&domain="+domain, nil)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// virsh runs virsh on a host's libvirt and gives what it said.
func (v virts) virsh(t *testing.T, host string, words ...string) string {
	t.Helper()
	out, err := within.Command(t, "virsh", append([]string{"-c", v.uri(host)}, words...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("virsh %v on %s: %v: %s", words, host, err, out)
	}
	return strings.TrimSpace(string(out))
}

// domain starts, or only defines, a domain that boots nothing. One with incoming waits for a guest.
func (v virts) domain(t *testing.T, host, name, more string, words ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "domain.xml")
	xml := fmt.Sprintf("<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>%s</name>"+
		"<uuid>6b3a3e0e-0f6b-4f0b-9c39-0a3f7a1f0a01</uuid><memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc-q35-7.2'>"+
		"hvm</type></os><features><acpi/></features><devices><emulator>%s</emulator><memballoon model='none'/></devices>%s</domain>",
		name, v.qemu, more)
	if err := os.WriteFile(file, []byte(xml), 0o644); err != nil {
		t.Fatal(err)
	}
	v.virsh(t, host, append(words, file)...)
}

const deferred = "<qemu:commandline><qemu:arg value='-incoming'/><qemu:arg value='defer'/></qemu:commandline>"

// source starts a domain on a until the test ends.
func (v virts) source(t *testing.T) *endpoint.Endpoint {
	t.Helper()
	v.domain(t, "a", "g", "", "create")
	t.Cleanup(func() { v.destroy("a") })
	return v.endpoint(t, "a", "g")
}

// pair is a source, and a domain on b that waits for its guest.
func (v virts) pair(t *testing.T) (src, dst *endpoint.Endpoint) {
	t.Helper()
	v.domain(t, "b", "g", deferred, "create", "--paused")
	t.Cleanup(func() { v.destroy("b") })
	return v.source(t), v.endpoint(t, "b", "g")
}

// behindSSH is a domain by a helper on a host that ssh reaches, and that is this machine.
func (v virts) behindSSH(t *testing.T, pool *host.Pool, host string) *endpoint.Endpoint {
	t.Helper()
	e, err := Parse("libvirt:qemu+ssh://"+host+"/system?socket="+v.Daemon(host).Socket+"&domain=g", pool)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// destroy ends a domain that may have ended.
func (v virts) destroy(host string) {
	_ = exec.Command("virsh", "-c", v.uri(host), "destroy", "g").Run()
}

// TestLibvirt: domains of two real libvirts, by their monitor passthrough.
func TestLibvirt(t *testing.T) {
	if err := libvirtd.Check(within.Context(t)); err != nil {
		guesttest.Unable(t, err)
	}
	qemu := guesttest.QEMU(t, "10.0")
	pool := &host.Pool{Program: helperbin.Helper}
	t.Cleanup(func() { pool.Close() })
	n, err := libvirtd.Spec{QEMU: map[string]string{"a": qemu, "b": qemu}, Spec: lxc.Spec{Pool: pool, Dir: t.TempDir(),
		ReadOnly: []string{filepath.Dir(qemu)}, Spec: hostnet.Spec{Owner: fmt.Sprintf("lvc%d", os.Getpid())}}}.Apply(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	v := virts{n, qemu}
	t.Run("refused", v.refused)
	t.Run("monitor", v.monitor)
	t.Run("migrate", func(t *testing.T) {
		src, dst := v.pair(t)
		v.migrate(t, src, dst, "lxc:qmig-")
	})
	t.Run("migrate behind ssh", func(t *testing.T) {
		v.pair(t)
		far := hosttest.New(t, nil).Pool
		v.migrate(t, v.behindSSH(t, far, "a"), v.behindSSH(t, far, "b"), "ssh://a lxc:qmig-")
	})
	t.Run("watch", v.watch)
	t.Run("destination ends", v.ends)
	t.Run("libvirt ends", v.lost) // the last: one libvirtd is no more
}

func (v virts) refused(t *testing.T) {
	v.domain(t, "a", "off", "", "define")
	for text, want := range map[string]string{
		"libvirt:" + v.uri("a") + "&domain=none":          "libvirt knows no domain none",
		"libvirt:" + v.uri("a") + "&domain=off":           "domain off is shut off",
		"libvirt:" + v.uri("a") + "-ro&domain=off":        "domain off is shut off",
		"libvirt:" + v.uri("a") + "x&domain=off":          "does libvirtd run there?",
		"libvirt:" + v.uri("a") + "&domain=off&option=on": "unknown option option",
	} {
		e, err := Parse(text, nil)
		if err == nil {
			_, err = e.Control(within.Context(t))
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", text, err)
		}
	}
	v.virsh(t, "a", "undefine", "off")
	v.source(t)
	e, err := Parse("libvirt:"+v.uri("a")+"-ro&domain=g", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Control(within.Context(t)); err == nil || !strings.Contains(err.Error(), "the connection is read-only") {
		t.Errorf("a read-only connection: %v", err)
	}
}

// connected is a connection to an endpoint's monitor, until the test ends.
func connected(t *testing.T, e *endpoint.Endpoint) *qmp.Conn {
	t.Helper()
	nc, err := e.Control(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(within.Context(t), nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// monitor: what package qmp and the engine take for granted of a monitor.
func (v virts) monitor(t *testing.T) {
	e := v.source(t)
	c := connected(t, e)
	ctx := within.Context(t)
	var refused *qmp.CommandError
	if err := c.Execute(ctx, "no-such", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Errorf("an unknown command: %v", err)
	}
	if err := c.ExecuteOOB(ctx, "migrate-pause", nil, nil); !errors.As(err, &refused) {
		t.Errorf("out of band: %v", err)
	}
	if err := c.ExecuteFiles(ctx, "getfd", map[string]string{"fdname": "x"}, nil, os.Stdin); err == nil ||
		!strings.Contains(err.Error(), "only unix sockets carry them") {
		t.Errorf("a descriptor: %v", err)
	}
	cpus, err := c.CPUs(ctx)
	if err != nil || len(cpus) != 1 || !e.Process.HasThread(cpus[0].Thread) || e.Process.HasThread(1) {
		t.Errorf("the process does not have the vCPU of %v, %v", cpus, err)
	}
	sub := c.Subscribe(1000)
	defer sub.Close()
	for i := range 50 { // an event is there before the answer to the command that QEMU sent it in
		for command, want := range map[string]string{"stop": "STOP", "cont": "RESUME"} {
			if i%2 == 0 == (command == "stop") {
				continue
			}
			if err := c.Execute(ctx, command, nil, nil); err != nil {
				t.Fatal(err)
			}
			select {
			case ev := <-sub.C:
				if ev.Name != want || time.Since(ev.QEMUTime) > time.Minute {
					t.Fatalf("after %s: %+v", command, ev)
				}
			default:
				if i > 0 { // the first may change nothing
					t.Fatalf("after %s number %d no event", command, i)
				}
			}
		}
	}
	if err := c.Execute(ctx, "quit", nil, nil); err != nil {
		t.Error(err)
	}
	within.Receive(t, "the end of the monitor", c.Done())
	if endpoint.WayLost(c.Err()) {
		t.Errorf("QEMU's end is taken for the loss of libvirt: %v", c.Err())
	}
	within.Receive(t, "the end of the process", e.Process.Done())
}

// migrate: the engine moves a domain's guest into a domain that waits for it.
func (v virts) migrate(t *testing.T, src, dst *endpoint.Endpoint, from string) {
	if left := LeftInLibvirt(src); !strings.Contains(left, "destroy g") {
		t.Errorf("what is left: %q", left)
	}
	rec, err := engine.Migrate(within.Context(t), src, dst, plan.Plan{Listen: fmt.Sprintf("tcp:%s:0", v.Address("b"))}, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if rec.GuestOn != record.Destination || rec.Downtime.Wire == nil || rec.Downtime.WireError == nil {
		t.Errorf("guest on %s, downtime %+v", rec.GuestOn, rec.Downtime)
	}
	if a, b := v.virsh(t, "a", "domstate", "g"), v.virsh(t, "b", "domstate", "g"); a != "paused" || b != "running" {
		t.Errorf("libvirt has the source as %s and the destination as %s", a, b)
	}
	if !strings.HasPrefix(rec.Hosts.Source, from) {
		t.Errorf("the source is on %s, want %s", rec.Hosts.Source, from)
	}
	parts := 0
	for _, part := range rec.Anatomy {
		if part.Device != "" {
			parts++
		}
	}
	if parts == 0 {
		t.Errorf("no device in the anatomy, warnings %v", rec.Warnings)
	}
}

// watch: a migration that libvirt drives is looked at through its own monitor.
func (v virts) watch(t *testing.T) {
	src := v.source(t)
	t.Cleanup(func() { v.destroy("b") })
	looks := make(chan struct{})
	moved := make(chan string, 1)
	go func() {
		<-looks
		out, err := exec.Command("virsh", "-c", v.uri("a"), "migrate", "--live", "--p2p", "g", v.Daemon("b").URI).CombinedOutput()
		if err != nil {
			moved <- fmt.Sprintf("%v: %s", err, out)
		}
		close(moved)
	}()
	rec, err := engine.Watch(within.Context(t), src, nil, plan.Plan{}, plan.Options{Watching: func() { close(looks) }})
	if err != nil {
		t.Fatal(err)
	}
	if said, _ := within.Receive(t, "virsh", moved); said != "" {
		t.Fatal("virsh migrate: ", said)
	}
	if rec.Watched == nil || rec.Outcome != record.Completed || len(rec.Passes) == 0 {
		t.Errorf("%+v", rec)
	}
	// libvirt ends the source as soon as the guest has left: then its totals are not known, and that is said.
	if said := strings.Contains(strings.Join(rec.Warnings, "\n"), "was gone before its last figures"); said != (rec.Total.Transferred == nil) {
		t.Errorf("totals %+v, warnings %q", rec.Total, rec.Warnings)
	}
	if got := v.virsh(t, "b", "domstate", "g"); got != "running" {
		t.Errorf("the domain that moved is %s", got)
	}
}

// ends: somebody destroys the destination in the middle of it.
func (v virts) ends(t *testing.T) {
	src, dst := v.pair(t)
	begun := make(chan struct{})
	go func() {
		<-begun
		v.destroy("b")
	}()
	once := false
	rec, err := engine.Migrate(within.Context(t), src, dst, plan.Plan{Listen: fmt.Sprintf("tcp:%s:0", v.Address("b")),
		MaxBandwidth: 100 << 10}, plan.Options{Sampled: func(s record.Sample) {
		if s.Status == "active" && !once {
			once = true
			close(begun)
		}
	}})
	if err == nil || rec.GuestOn != record.Source {
		t.Errorf("guest on %s, %v", rec.GuestOn, err)
	}
	if got := v.virsh(t, "a", "domstate", "g"); got != "running" {
		t.Errorf("the source is %s", got)
	}
	if !once {
		close(begun)
	}
}

// lost: libvirt dies, and its domain's QEMU does not.
func (v virts) lost(t *testing.T) {
	e := v.source(t)
	c := connected(t, e)
	direct, err := host.Local().Dial(context.Background(), "unix", v.Daemon("a").Socket)
	if err != nil {
		t.Fatal(err)
	}
	daemon := host.Listener(direct)
	direct.Close()
	if daemon < 2 || syscall.Kill(daemon, syscall.SIGKILL) != nil {
		t.Fatalf("libvirtd is process %d", daemon)
	}
	within.Receive(t, "the end of the monitor", c.Done())
	if !endpoint.WayLost(c.Err()) {
		t.Errorf("the loss of libvirt is taken for QEMU's end: %v", c.Err())
	}
	select {
	case <-e.Process.Done():
		t.Error("QEMU is taken for dead")
	default:
	}
	if _, err := e.Control(within.Context(t)); err == nil || errors.Is(err, syscall.ECONNREFUSED) || !endpoint.WayLost(err) {
		t.Errorf("that nobody listens is taken for QEMU's end: %v", err)
	}
}

// TestParseLibvirt: what a libvirt: endpoint names.
func TestParseLibvirt(t *testing.T) {
	for text, want := range map[string]string{
		"libvirt:qemu:///system?domain=g":                              "qemu:///system",
		"libvirt:qemu+unix:///system?socket=/run/x&domain=g":           "qemu+unix:///system?socket=/run/x",
		"libvirt:qemu+ssh://lab@h:2222/system?domain=g":                "qemu+ssh://lab@h:2222/system",
		"libvirt:qemu+ssh://h/session?socket=/run/user/1/l&domain=a-b": "qemu+ssh://h/session?socket=/run/user/1/l",
	} {
		if e, err := Parse(text, &host.Pool{}); err != nil || e.Libvirt.URI != want || e.Files {
			t.Errorf("%s: %+v, %v", text, e, err)
		}
	}
	for text, want := range map[string]string{
		"libvirt:":                                       "libvirt:qemu:///system?domain=NAME",
		"libvirt:qemu:///system":                         "the domain is missing",
		"libvirt:qemu:///session?domain=g":               "found by its socket",
		"libvirt:test:///default?domain=g":               "no libvirt of QEMU's",
		"libvirt:qemu:///system?socket=/x&domain=g":      "have qemu:///system, qemu+unix:",
		"libvirt:qemu+tcp://h/system?domain=g":           "have qemu:///system, qemu+unix:",
		"libvirt:qemu+ssh://h/system?domain=g&keyfile=x": "unknown option keyfile",
		"libvirt:qemu+unix:///system?socket=x&domain=g":  "no path that begins with /",
		"libvirt:qemu+ssh://a:b@h/system?domain=g":       "a password has no place here",
	} {
		if _, err := Parse(text, &host.Pool{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	one, other := "libvirt:qemu:///system?domain=g", "libvirt:qemu:///system?domain=h"
	if Shared(one, one) == "" || Shared(one, other) != "" {
		t.Errorf("shared: %q, %q", Shared(one, one), Shared(one, other))
	}
	if _, err := Parse("libvirt:qemu+ssh://h/system?domain=g", nil); err == nil || !strings.Contains(err.Error(), "no host is reached") {
		t.Error(err)
	}
}
