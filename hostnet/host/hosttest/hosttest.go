// Package hosttest gives tests hosts behind real channels without an sshd: ssh://NAME is this machine, behind a helper
// of its own. A small script stands in for OpenSSH's client. Whatever is between qmigrate and a QEMU there can be
// killed and stopped. Only tests may import it.
package hosttest

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
)

//go:embed ssh
var script []byte

// Machine is what stands behind one name.
type Machine struct {
	// Enter are the words before the login's shell, such as `ip netns exec NAME`; nil: this machine as it is. They end in
	// what becomes the shell, without a process in between.
	Enter []string
	Env   []string // added to the login's environment: QMIGRATE_HELPER_CLOCK=...
}

// Hosts are stand-ins for machines behind ssh.
type Hosts struct {
	Pool    *host.Pool // finds ssh://NAME; closed when the test ends
	Program string     // in place of ssh: `--ssh Program`

	dir string
	t   testing.TB
}

// New has any name be this machine, and those of machines as they are described.
func New(t testing.TB, machines map[string]Machine) *Hosts {
	t.Helper()
	dir, err := os.MkdirTemp("", "h")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	h := &Hosts{Program: filepath.Join(dir, "ssh"), dir: dir, t: t}
	put := func(name string, data []byte, perm os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), data, perm); err != nil {
			t.Fatal(err)
		}
	}
	put("ssh", script, 0o700)
	for name, m := range machines {
		var words strings.Builder
		for _, e := range m.Env {
			key, value, _ := strings.Cut(e, "=")
			fmt.Fprintf(&words, "export %s='%s'\n", key, strings.ReplaceAll(value, "'", `'\''`))
		}
		words.WriteString("exec")
		for _, w := range m.Enter {
			fmt.Fprintf(&words, " '%s'", strings.ReplaceAll(w, "'", `'\''`))
		}
		words.WriteString(` sh -c "$1"` + "\n")
		put(name+".login", []byte(words.String()), 0o600)
	}
	h.Pool = &host.Pool{Program: helperbin.Helper, SSH: host.SSH{Program: h.Program}}
	t.Cleanup(func() {
		h.Pool.Close()
		h.wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return h
}

// Refuse has no new channel to ssh://NAME be opened, until Accept.
func (h *Hosts) Refuse(name string) {
	if err := os.WriteFile(filepath.Join(h.dir, name+".refused"), nil, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// Accept ends Refuse.
func (h *Hosts) Accept(name string) {
	if err := os.Remove(filepath.Join(h.dir, name+".refused")); err != nil {
		h.t.Fatal(err)
	}
}

// wait sees to it that no helper outlives the test: those that were stopped go on, and whoever does not end is killed.
func (h *Hosts) wait() {
	all, _ := filepath.Glob(filepath.Join(h.dir, "*.login-*"))
	for _, f := range all {
		name, id, _ := strings.Cut(filepath.Base(f), ".login-")
		c := h.read(name, id)
		c.signal(syscall.SIGCONT)
		deadline := time.Now().Add(within.Limit)
		for c.lives() && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		if c.lives() {
			h.t.Errorf("the helper of ssh://%s goes on after its channel has closed", name)
			c.signal(syscall.SIGKILL)
		}
	}
}

// Channel is the processes that one channel consists of. Find it when it stands: the next one to the same host is
// another.
type Channel struct {
	h *Hosts

	ssh    int // process group of the stand-in for ssh, which carries the bytes
	login  int // the login's shell, in place of sshd's
	Helper int // the helper's process
}

// Channel is the newest channel to ssh://NAME.
func (h *Hosts) Channel(name string) *Channel {
	h.t.Helper()
	all, _ := filepath.Glob(filepath.Join(h.dir, name+".login-*"))
	var newest string
	var last time.Time
	for _, f := range all {
		if info, err := os.Stat(f); err == nil && !info.ModTime().Before(last) {
			newest, last = f, info.ModTime()
		}
	}
	if newest == "" {
		h.t.Fatalf("no channel to ssh://%s was opened", name)
	}
	_, id, _ := strings.Cut(filepath.Base(newest), ".login-")
	var c *Channel
	within.Until(h.t, "a helper on ssh://"+name, func() bool {
		c = h.read(name, id)
		return c.Helper != 0
	})
	return c
}

// read reads what the stand-in has written of one channel.
func (h *Hosts) read(name, id string) *Channel {
	number := func(f string) int {
		b, _ := os.ReadFile(f)
		n, _ := strconv.Atoi(string(bytes.TrimSpace(b)))
		return n
	}
	c := &Channel{h: h, login: number(filepath.Join(h.dir, name+".login-"+id))}
	c.ssh, _ = strconv.Atoi(id)
	for pid := c.login; pid != 0; { // the login's shell has a shell that has the helper
		pid = number(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasPrefix(exe, h.dir) {
			c.Helper = pid
		}
	}
	return c
}

func (c *Channel) lives() bool {
	for _, pid := range []int{c.login, c.Helper} {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); pid != 0 && err == nil && !bytes.Contains(b, []byte(") Z ")) {
			return true
		}
	}
	return false
}

func (c *Channel) signal(sig syscall.Signal) {
	if c.ssh > 1 {
		_ = syscall.Kill(-c.ssh, sig)
	}
	for _, pid := range []int{c.login, c.Helper} {
		if pid > 1 {
			_ = syscall.Kill(pid, sig)
		}
	}
}

func (c *Channel) send(pid int, sig syscall.Signal) {
	c.h.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		c.h.t.Fatalf("signal %d of the channel: %v", pid, err)
	}
}

// KillSSH kills the ssh process, and its connection ends: the helper's standard input is closed.
func (c *Channel) KillSSH() { c.send(-c.ssh, syscall.SIGKILL) }

// Continue has all that was stopped go on.
func (c *Channel) Continue() { c.signal(syscall.SIGCONT) }

// StopSSH has the link carry nothing any more, without a word to either side; Continue mends it.
func (c *Channel) StopSSH() { c.send(-c.ssh, syscall.SIGSTOP) }

// KillHelper kills the helper: it can undo nothing.
func (c *Channel) KillHelper() { c.send(c.Helper, syscall.SIGKILL) }

// StopHelper has the helper hang, and hold what it holds; Continue has it go on.
func (c *Channel) StopHelper() { c.send(c.Helper, syscall.SIGSTOP) }
