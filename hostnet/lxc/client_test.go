package lxc

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/netns"
)

// lxd starts an LXD of the test's own, which no other program knows of: its folder is the test's, its network a
// namespace that the test made, and its mounts are in a namespace that ends with it.
func lxd(t *testing.T) {
	t.Helper()
	for _, program := range []string{"lxd", "lxc"} {
		if _, err := exec.LookPath(program); err != nil {
			guesttest.Unable(t, err)
		}
	}
	if os.Geteuid() != 0 {
		guesttest.Unable(t, "not root")
	}
	dir, err := os.MkdirTemp("", "lxd") // its sockets' names are short
	if err == nil {
		err = os.Chmod(dir, 0o711) // containers' root is nobody here
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("LXD_DIR", filepath.Join(dir, "d"))
	t.Setenv("LXD_CONF", filepath.Join(dir, "c")) // of the command
	name := "qmig-" + owner() + "-lxd"
	if _, err := netns.Create(name); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	daemon := exec.Command("sh", "-c", "umask 022; exec lxd --group root") // as its service has it, whatever ours is
	daemon.Stdout, daemon.Stderr, daemon.WaitDelay = &said, &said, time.Second
	daemon.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if err := netns.In(name, daemon.Start); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	t.Cleanup(func() {
		_ = daemon.Process.Signal(unix.SIGPWR) // it ends its containers too
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = daemon.Process.Kill()
			t.Error("LXD does not end; it said: ", said.String())
			<-ended
		}
		if err := unix.Unmount(netns.Path(name), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		if err := os.Remove(netns.Path(name)); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, words := range [][]string{{"lxd", "waitready", "--timeout", "60"}, {"lxc", "storage", "create", "default", "dir"}} {
		if out, err := within.Command(t, words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s; LXD said: %s", words, err, out, said.String())
		}
	}
}

// refused looks for a host that cannot be reached: the error is one line that says this.
func refused(t *testing.T, p *host.Pool, name, want string) {
	t.Helper()
	_, err := p.Find(within.Context(t), name)
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v, want %q", name, err, want)
	}
}

// byName finds LXD's containers as a user writes them, and stops one of them.
func byName(t *testing.T, n *Network) {
	t.Helper()
	name, p := n.spec.container("a"), pool(t)
	for _, one := range []string{"lxc:" + name, "lxc:lxd/" + name} {
		if at, err := p.Find(within.Context(t), one); err != nil {
			t.Error(err)
		} else if out := run(t, at, "cat", "/proc/sys/kernel/hostname"); strings.TrimSpace(out) != name {
			t.Errorf("%s is %s", one, out)
		}
	}
	if _, err := client(host.LXD).run(within.Context(t), nil, "stop", "--force", n.spec.container("b")); err != nil {
		t.Fatal(err)
	}
	for one, want := range map[string]string{
		"lxc:lxd/" + n.spec.container("b"): "Instance is not running\": start it: `lxc start " + n.spec.container("b") + "`",
		"lxc:lxd/nosuch":                   "Instance not found\": it has no container of that name: `lxc list`",
		"lxc:nosuch":                       "no container of that name: asked were [liblxc lxd]",
		"lxc:liblxc/nosuch":                "Failed to get init pid\": there is no such container, or it does not run",
	} {
		refused(t, p, one, want)
	}
	t.Setenv("LXD_DIR", t.TempDir())
	refused(t, p, "lxc:lxd/"+name+"x", "no such file or directory\": its daemon does not run")
	refused(t, p, "lxc:nosuch", "lxd cannot be asked")
	t.Setenv("PATH", t.TempDir())
	refused(t, p, "lxc:nosuch", "neither liblxc (lxc-attach), LXD (lxc) nor Incus (incus) is installed")
	refused(t, p, "lxc:liblxc/nosuch", "executable file not found in $PATH: as root run `apt install lxc`")
}

// TestLXD: containers of LXD, and of Incus by a stand-in for its command, from this machine's files only.
func TestLXD(t *testing.T) {
	programs := programs(t)
	lxd(t)
	t.Run("lxd", func(t *testing.T) {
		n := apply(t, Spec{Manager: host.LXD, ReadOnly: programs, Spec: hostnet.Spec{Rate: 12_500_000}})
		reach(t, n)
		observed(t, n)
		shares(t, n)
		if ids := strings.Fields(run(t, n.Host("a"), "cat", "/proc/self/uid_map")); len(ids) != 3 || ids[1] == "0" {
			t.Errorf("users of the container: %v", ids)
		}
		s := n.spec
		s.Dir = t.TempDir()
		if _, err := s.Apply(within.Context(t)); err == nil || !strings.Contains(err.Error(), "there already") {
			t.Errorf("the same once more: %v", err)
		}
		t.Run("by name", func(t *testing.T) { byName(t, n) })
		for range 2 {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("incus", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "incus"), []byte("#!/bin/sh\nexec lxc \"$@\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		n := apply(t, Spec{Manager: host.Incus, Spec: hostnet.Spec{Hosts: []hostnet.HostSpec{{Name: "a"}}}})
		run(t, n.Host("a"), "ip", "link", "show", n.TAP("a"))
		if name, want := n.Host("a").Name(), "lxc:incus/"+n.spec.container("a"); name != want {
			t.Errorf("host %s, want %s", name, want)
		}
	})
	t.Run("killed", func(t *testing.T) {
		owner := owner()
		cmd, said := maker(t, host.LXD, owner)
		if line, err := said.ReadString('\n'); line != "made\n" {
			t.Errorf("%q, %v", line, err)
		}
		got := removes(t, cmd, host.LXD, owner)
		for _, want := range []string{"container qmig-" + owner + "-a", "container qmig-" + owner + "-b",
			"namespace qmig-" + owner + "-link"} {
			if !slices.Contains(got, want) {
				t.Errorf("removed %q, not %s", got, want)
			}
		}
		after := time.Duration(rand.N(500)) * time.Millisecond
		cmd, _ = maker(t, host.LXD, owner)
		time.Sleep(after) // wherever it is by then
		t.Logf("after %s: %v", after, removes(t, cmd, host.LXD, owner))
	})
	// The daemon's own is as it was.
	for _, words := range [][]string{{"list"}, {"image", "list"}, {"network", "list"}} {
		out, err := client(host.LXD).run(within.Context(t), nil, append(words, "--format", "csv")...)
		if err != nil || strings.Contains(string(out), "qmig-lxct") {
			t.Errorf("%v: %s, %v", words, out, err)
		}
	}
}
