package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
	"qmigrate/hostnet/host/sshtest"
	"qmigrate/qmp"
)

// sshLab is two hosts behind sshd's, and qmigrate that reaches them.
type sshLab struct {
	*sshtest.Hosts
	t    *testing.T
	a, b *sshtest.Host
	out  string
}

func newSSHLab(t *testing.T) *sshLab {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("QMIGRATE_BESIDE") == "1" {
			t.Fatal("make beside has a QEMU installed: ", err)
		}
		t.Skip("no QEMU is installed, as one is on both hosts here: `make beside` runs this with one")
	}
	s := sshtest.Start(t)
	return &sshLab{Hosts: s, t: t, a: s.Host("a"), b: s.Host("b"), out: t.TempDir()}
}

// qemu starts a QEMU on a host, which ends with the host at the latest, and has everybody reach its monitor.
func (s *sshLab) qemu(h *sshtest.Host, monitor string, args ...string) (end func()) {
	s.t.Helper()
	args = append([]string{"qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "32776k", // of a multiple of 256 KiB the record warns
		"-qmp", "unix:" + monitor + ",server=on,wait=off"}, args...)
	cmd := h.Command(s.t.Context(), args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	within.Until(s.t, "the monitor of a QEMU on "+h.Name, func() bool {
		select {
		case <-ended:
			s.t.Fatalf("QEMU on %s: %s", h.Name, said.String())
		default:
		}
		_, err := h.Run("chmod", "777", monitor)
		return err == nil
	})
	end = func() {
		for _, pid := range h.PIDs("qemu-system.*unix:" + monitor) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		<-ended
	}
	s.t.Cleanup(end)
	return end
}

// migrate runs qmigrate migrate.
func (s *sshLab) migrate(args ...string) (rec record.Migration, status int, said string) {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	status = run(within.Context(s.t), append([]string{"qmigrate", "migrate", "--ssh", s.SSH, "--json", "--out", s.out}, args...), nil,
		&stdout, &stderr)
	if status == 0 {
		if err := json.Unmarshal(stdout.Bytes(), &rec); err != nil {
			s.t.Fatal(err)
		}
	}
	return rec, status, stderr.String()
}

// refused is a migration that is refused, with these words in a line each, before anything was started or made.
func (s *sshLab) refused(h *sshtest.Host, folder string, want []string, args ...string) {
	s.t.Helper()
	before := h.PIDs("qemu-system")
	_, status, said := s.migrate(args...)
	var lines []string
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "qmigrate: ") {
			lines = append(lines, line)
		}
	}
	ok := status != 0 && len(lines) == len(want)
	for _, w := range want {
		ok = ok && slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, w) })
	}
	if !ok {
		s.t.Errorf("%q: status %d: %s; want %q", args, status, said, want)
	}
	if now := h.PIDs("qemu-system"); !slices.Equal(now, before) {
		s.t.Errorf("%q: QEMUs before %v, after %v", args, before, now)
	}
	if _, err := os.Stat(filepath.Join(h.Root, folder)); err == nil {
		s.t.Errorf("%q: %s is left on %s", args, folder, h.Name)
	}
}

// TestLaunchSSH: a destination like its source is started on another machine, as its user there, with its own TAP and the
// disk that both have; it stays when qmigrate ends. The way back is through a tunnel. What that host has not got is
// refused by name.
func TestLaunchSSH(t *testing.T) {
	s := newSSHLab(t)
	shared, err := os.MkdirTemp("/var/tmp", "qmt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shared) })
	disk := filepath.Join(shared, "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{shared: 0o777, disk: 0o666} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	end := s.qemu(s.a, "/tmp/a.qmp", "-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n",
		"-drive", "if=none,id=d,format=raw,cache=none,file="+disk, "-device", "virtio-blk-pci,drive=d", "-serial", "file:/tmp/serial",
		"-vnc", "127.0.0.1:7")
	endOther := s.qemu(s.b, "/tmp/other.qmp", "-vnc", "127.0.0.1:99")
	words := []string{"--source", "ssh://a/tmp/a.qmp", "--destination", "ssh://b/tmp/b", "--launch"}
	for want, more := range map[string][]string{
		"that names the host already":               {"--destination-host", "local"},
		"--destination ssh://b: with --launch give": {"--destination", "ssh://b"},
		"--launch and --no-helper":                  {"--no-helper"},
	} {
		s.refused(s.b, "tmp/b", []string{want}, append(slices.Clone(words), more...)...)
	}
	s.refused(s.b, "tmp/b", []string{"interface none of host ssh://b: it is not there", "/tmp/none of host ssh://b: it is not there",
		"TCP port 5999 of host ssh://b: somebody has it; --path OLD=NEW, --port OLD=NEW, --tap OLD=NEW"},
		append(slices.Clone(words), "--tap", "tap0=none", "--path", disk+"=/tmp/none", "--port", "5907=5999")...)
	endOther()
	// an image that the source's host alone has, and then another one of that name
	image := filepath.Join(s.a.Root, "tmp/own.img")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	endOwn := s.qemu(s.a, "/tmp/own.qmp", "-blockdev", "file,node-name=d,filename=/tmp/own.img", "-device", "virtio-blk-pci,drive=d")
	ownWords := []string{"--source", "ssh://a/tmp/own.qmp", "--destination", "ssh://b/tmp/b", "--launch"}
	s.refused(s.b, "tmp/b", []string{"/tmp/own.img of host ssh://b: it is not there"}, ownWords...)
	copied := filepath.Join(s.b.Root, "tmp/own.img")
	if err := os.WriteFile(copied, make([]byte, 1<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(copied, 0o666); err != nil {
		t.Fatal(err)
	}
	s.refused(s.b, "tmp/b", []string{"that of host ssh://b is another file than the source's"}, ownWords...)
	rec, status, said := s.migrate(append(ownWords, "--path", "/tmp/own.img=/tmp/own.img", "--mirror", "d")...)
	if status != 0 || rec.GuestOn != record.Destination {
		t.Fatalf("mirrored: status %d: %s", status, said)
	}
	endOwn()
	for _, pid := range s.b.PIDs("qemu-system") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if _, status, said = s.migrate(words...); status == 0 || !strings.Contains(said, "/tmp/b exists and has a monitor") {
		t.Errorf("a folder that is there: status %d: %s", status, said)
	}
	words[3] = "ssh://b/tmp/b2"
	rec, status, said = s.migrate(words...)
	if status != 0 || rec.GuestOn != record.Destination || rec.Hosts.Destination != "ssh://b" {
		t.Fatalf("status %d: %+v: %s", status, rec.Hosts, said)
	}
	if !strings.Contains(said, "it is started on ssh://b as user 61234 of there; the source is user 0") {
		t.Errorf("it says %s", said)
	}
	t.Log(rec.Warnings)
	for _, w := range rec.Warnings {
		if strings.Contains(w, "disk") {
			t.Errorf("a doubt about a disk that both have: %s", w)
		}
	}
	pids := s.b.PIDs("qemu-system")
	if len(pids) != 1 {
		t.Fatalf("QEMUs on b when qmigrate has ended: %v", pids)
	}
	if info, err := os.Stat(fmt.Sprintf("/proc/%d", pids[0])); err != nil || info.Sys().(*syscall.Stat_t).Uid != 61234 {
		t.Errorf("it is not user 61234's: %v", err)
	}
	end()
	rec, status, said = s.migrate("--source", "ssh://b/tmp/b2", "--destination", "ssh://a/tmp/a2", "--launch", "--tunnel", "tls")
	if status != 0 || rec.GuestOn != record.Destination || rec.Tunnel == nil || rec.Tunnel.Bytes == 0 {
		t.Fatalf("back: status %d: %+v: %s", status, rec.Tunnel, said)
	}
	t.Log(rec.Warnings, rec.Tunnel)
	for _, h := range []*sshtest.Host{s.a, s.b} {
		if left, _ := filepath.Glob(filepath.Join(h.Root, "tmp/qmigrate-*")); len(left) > 0 {
			t.Errorf("left on %s: %v", h.Name, left)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(shared, ".*")); len(left) > 0 {
		t.Errorf("left beside the disk: %v", left)
	}
}

// TestNoHelper: a migration between two machines that nothing of qmigrate's is on.
func TestNoHelper(t *testing.T) {
	s := newSSHLab(t)
	s.qemu(s.a, "/tmp/a.qmp", "-qmp", "unix:/tmp/spare.qmp,server=on,wait=off")
	if out, err := s.a.Run("chmod", "777", "/tmp/spare.qmp"); err != nil {
		t.Fatal(out)
	}
	if _, err := s.b.Run("mkdir", "-m", "755", "/tmp/b"); err != nil {
		t.Fatal(err)
	}
	s.qemu(s.b, "/tmp/b/control.qmp", "-incoming", "defer", "-qmp", "unix:/tmp/b/events.qmp,server=on,wait=off")
	if out, err := s.b.Run("chmod", "777", "/tmp/b/events.qmp"); err != nil {
		t.Fatal(out)
	}
	s.refused(s.b, "none", []string{"a container is reached by a helper in it: leave --no-helper out"}, "--no-helper", "--source", "ssh://a/tmp/a.qmp",
		"--destination", "lxc://b/tmp/b")
	s.refused(s.b, "none", []string{"no monitor answers at /tmp/none of ssh://b"}, "--no-helper", "--source", "ssh://a/tmp/a.qmp",
		"--destination", "ssh://b/tmp/none")
	s.refused(s.b, "none", []string{"its files cannot be written from here"}, "--no-helper", "--source", "ssh://a/tmp/a.qmp",
		"--destination", "ssh://b/tmp/b", "--tls", "x509")
	var watched record.Migration
	var watching sync.WaitGroup
	var watchSaid output
	watching.Go(func() { // beside it, through a spare monitor
		var stdout bytes.Buffer
		status := run(within.Context(t), []string{"qmigrate", "watch", "--no-helper", "--ssh", s.SSH, "--json", "--out", t.TempDir(),
			"ssh://a/tmp/spare.qmp"}, nil, &stdout, &watchSaid)
		if err := json.Unmarshal(stdout.Bytes(), &watched); status != 0 || err != nil {
			t.Errorf("watch: status %d: %v: %s", status, err, watchSaid.String())
		}
	})
	within.Until(t, "watching", func() bool { return strings.Contains(watchSaid.String(), "waiting for a migration") })
	rec, status, said := s.migrate("--no-helper", "--source", "ssh://a/tmp/a.qmp", "--destination", "ssh://b/tmp/b")
	if status != 0 || rec.GuestOn != record.Destination {
		t.Fatalf("status %d: %s", status, said)
	}
	within.Wait(t, "the watching's end", &watching)
	if watched.Outcome != record.Completed || *watched.Total.Transferred != *rec.Total.Transferred {
		t.Errorf("watched: %s %+v, driven: %+v", watched.Outcome, watched.Total, rec.Total)
	}
	if rec.Hosts.CPU != "" || rec.Hosts.Kernel != "" || rec.Sampling.QEMUCPU != nil {
		t.Errorf("it knows %+v %+v", rec.Hosts, rec.Sampling)
	}
	if !slices.ContainsFunc(rec.Warnings, func(w string) bool { return strings.Contains(w, "no helper on the hosts") }) {
		t.Errorf("%q", rec.Warnings)
	}
	t.Log(rec.Warnings)
	for _, h := range s.All {
		if _, err := os.Stat(filepath.Join(h.Root, h.Home, ".cache")); err == nil {
			t.Errorf("qmigrate left something on %s", h.Name)
		}
	}
}

// TestLaunchFarBeside: source and destination on one host behind a channel. What the source holds there is asked there:
// the destination's display is moved into a socket, its files into the new folder.
func TestLaunchFarBeside(t *testing.T) {
	hosts := hosttest.New(t, nil)
	dir := guesttest.Dir(t)
	d := &draw{Rand: rand.New(rand.NewPCG(1, 1)), t: t, dir: dir}
	src, err := guest.StartIncoming(within.Context(t), host.Local(), host.Command{Args: []string{guesttest.QEMU(t, "10.0"), "-nodefaults",
		"-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "32776k", "-vnc", "127.0.0.1:" + strconv.Itoa(d.display()),
		"-serial", "file:" + dir + "/serial",
		"-chardev", "socket,id=control,server=on,wait=off,path=" + dir + "/a/control.qmp", "-mon",
		"chardev=control,mode=control"}}, filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	var stdout, stderr bytes.Buffer
	status := run(within.Context(t), []string{"qmigrate", "migrate", "--ssh", hosts.Program, "--json", "--out", dir + "/out", "--launch",
		"--source", "ssh://a" + dir + "/a", "--destination", "ssh://a" + dir + "/b"}, nil, &stdout, &stderr)
	var rec record.Migration
	if err := json.Unmarshal(stdout.Bytes(), &rec); err != nil || status != 0 || rec.GuestOn != record.Destination {
		t.Fatalf("status %d: %v: %s", status, err, stderr.String())
	}
	for _, want := range []string{"+ -vnc unix:" + dir + "/b/vnc.sock (the source's own)", "+ -serial file:" + dir + "/b/serial (the source's own)"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("it lacks %q: %s", want, stderr.String())
		}
	}
	pid := pidOf(t, dir+"/b/control.qmp") // it is there when qmigrate has ended
	if pid == 0 || pid == src.Process().PID() {
		t.Fatalf("process %d has the guest", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// TestTunnelOutlives: qmigrate is killed in a post-copy through a tunnel between two hosts. The halves go on, and the
// guest arrives whole.
func TestTunnelOutlives(t *testing.T) {
	hosts := hosttest.New(t, nil)
	dir := guesttest.Dir(t)
	ask := func(name string) *qmp.Conn { // by a monitor that qmigrate does not use
		t.Helper()
		nc, err := host.Local().Dial(within.Context(t), "unix", dir+"/"+name+".more")
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
	start := func(name string, more ...string) *qmp.Conn {
		at := filepath.Join(dir, name)
		args := append([]string{guesttest.QEMU(t, "10.0"), "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "64",
			"-chardev", "socket,id=control,server=on,wait=off,path=" + at + "/control.qmp", "-mon", "chardev=control,mode=control",
			"-qmp", "unix:" + at + ".more,server=on,wait=off"}, more...)
		vm, err := guest.StartIncoming(within.Context(t), host.Local(), host.Command{Args: args}, at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { vm.Close() })
		return ask(name)
	}
	src, dst := start("a"), start("b", "-incoming", "defer", "-S")
	others, _ := filepath.Glob("/tmp/qmigrate-tunnel-*")
	cmd := within.Command(t, "qmigrate", "migrate", "--ssh", hosts.Program, "--quiet", "--out", dir+"/out", "--mode", "post-copy", "--tunnel",
		"tls", "--source", "ssh://a"+dir+"/a", "--destination", "ssh://b"+dir+"/b", "--max-bandwidth", "64KiB/s",
		"--parameter", "max-postcopy-bandwidth=32768")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	status := func(c *qmp.Conn) string {
		info, err := c.QueryMigrate(within.Context(t))
		if err != nil {
			t.Fatal(err, said.String())
		}
		return info.Status
	}
	within.Until(t, "the post-copy", func() bool { return status(src) == "postcopy-active" && status(dst) == "postcopy-active" })
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if s := status(src); s != "postcopy-active" {
		t.Fatalf("it was over when qmigrate was killed: %s", s)
	}
	within.Until(t, "the post-copy to complete", func() bool {
		if s := status(src); s != "postcopy-active" && s != "completed" {
			t.Fatalf("the source is %s", s)
		}
		return status(dst) == "completed"
	})
	within.Until(t, "the tunnel's folders to go", func() bool {
		left, _ := filepath.Glob("/tmp/qmigrate-tunnel-*")
		return !slices.ContainsFunc(left, func(f string) bool { return !slices.Contains(others, f) })
	})
}

// TestLaunchFarApart: between this machine and a host behind a channel, either way. The disk is the same file on both, and
// that is found out.
func TestLaunchFarApart(t *testing.T) {
	hosts := hosttest.New(t, nil)
	for _, way := range [][2]string{{"unix:", "ssh://b"}, {"ssh://a", "unix:"}} {
		t.Run(way[0]+" to "+way[1], func(t *testing.T) {
			dir := guesttest.Dir(t)
			disk := filepath.Join(dir, "disk")
			if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			src, err := guest.StartIncoming(within.Context(t), host.Local(), host.Command{Args: []string{guesttest.QEMU(t, "10.0"),
				"-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "32776k",
				"-drive", "if=none,id=d,format=raw,cache=none,file=" + disk, "-device", "virtio-blk-pci,drive=d",
				"-chardev", "socket,id=control,server=on,wait=off,path=" + dir + "/a/control.qmp", "-mon", "chardev=control,mode=control"}},
				filepath.Join(dir, "a"))
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			var stdout, stderr bytes.Buffer
			status := run(within.Context(t), []string{"qmigrate", "migrate", "--ssh", hosts.Program, "--json", "--out", dir + "/out",
				"--launch", "--source", way[0] + dir + "/a", "--destination", way[1] + dir + "/b"}, nil, &stdout, &stderr)
			var rec record.Migration
			if err := json.Unmarshal(stdout.Bytes(), &rec); err != nil || status != 0 || rec.GuestOn != record.Destination {
				t.Fatalf("status %d: %v: %s", status, err, stderr.String())
			}
			for _, w := range rec.Warnings {
				if strings.Contains(w, "disk") {
					t.Error(w)
				}
			}
			if err := syscall.Kill(pidOf(t, dir+"/b/control.qmp"), syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		})
	}
}
