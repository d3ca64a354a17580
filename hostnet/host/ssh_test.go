package host

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host/sshtest"
)

// sshPool finds the hosts of a test.
func sshPool(t *testing.T, s *sshtest.Hosts) *Pool {
	p := &Pool{Program: helperbin.Helper, SSH: SSH{Program: s.SSH}}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// TestSSH: a host behind a jump host is a host, and its user is who the ssh_config says. It may be a noisy one.
func TestSSH(t *testing.T) {
	s := sshtest.Start(t)
	p := sshPool(t, s)
	noise := "echo welcome; echo to a noisy login >&2; printf 'no line'\n"
	if err := os.WriteFile(filepath.Join(s.Host("b").Root, "home/lab/.bashrc"), []byte(noise), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, at := range s.All {
		h, err := p.Find(within.Context(t), at.URL)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		c, err := h.Start(within.Context(t), Command{Args: []string{"sh", "-c", "whoami; hostname; pwd"}, Stdout: &out})
		if err != nil {
			t.Fatal(err)
		}
		<-c.Done()
		if want := at.User + "\n" + at.Name + "\n" + at.Home + "\n"; out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
	}
}

// TestSSHConfig: ssh is the user's own: what it is told by Match, Include and a ControlMaster counts, and an option
// that is given comes first.
func TestSSHConfig(t *testing.T) {
	s := sshtest.Start(t, sshtest.HostSpec{Name: "a", Root: true})
	included := filepath.Join(s.Dir, "included")
	if err := os.WriteFile(included, []byte("Host alias\n HostName 10.78.0.11\n HostKeyAlias a\n ProxyJump jump\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Configure("Match originalhost alias", " User root", "Host *", " ControlMaster auto", " ControlPath "+s.Dir+"/c-%n",
		" ControlPersist 60", "Include "+included)
	for range 2 {
		p := sshPool(t, s)
		if _, err := p.Find(within.Context(t), "ssh://alias"); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	logins, err := os.ReadFile(filepath.Join(s.Host("a").Root, "mnt/log"))
	if n := strings.Count(string(logins), "Accepted publickey"); err != nil || n != 1 {
		t.Errorf("%d logins through one ControlMaster, %v", n, err)
	}
	for _, name := range []string{"alias", "jump"} {
		if out, err := within.Command(t, s.SSH, "-O", "exit", name).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	p := sshPool(t, s)
	p.SSH.Options = []string{"User=nobody", "ControlPath=none"}
	if _, err := p.Find(within.Context(t), "ssh://alias"); err == nil || !strings.Contains(err.Error(), `"nobody@10.78.0.11: Permission denied`) {
		t.Error(err)
	}
}

// askTests makes the test's own program one that finds a host.
func askTests() {
	if len(os.Args) != 4 || os.Args[1] != "ask" {
		return
	}
	p := &Pool{Program: helperbin.Helper, SSH: SSH{Program: os.Args[2]}}
	_, err := p.Find(context.Background(), os.Args[3])
	fmt.Printf("found: %v\n", err)
	if tty := terminal(); tty != nil {
		fmt.Println("in the foreground")
	}
	p.Close()
	os.Exit(0)
}

// TestSSHAsks: ssh asks on the terminal, if there is one, and gives it back; without one nothing is asked.
func TestSSHAsks(t *testing.T) {
	s := sshtest.Start(t, sshtest.HostSpec{Name: "a", Root: true})
	if out, err := within.Command(t, "ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", filepath.Join(s.Dir, "id")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.Configure("Host jump", " ControlMaster auto", " ControlPath "+s.Dir+"/c", " ControlPersist 60") // asked once for each hop
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		noTerminals(t, err)
	}
	defer master.Close()
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		noTerminals(t, err)
	}
	defer tty.Close()
	for _, asks := range []bool{false, true} {
		var out bytes.Buffer
		cmd := within.Command(t, "/proc/self/exe", "ask", s.SSH, "ssh://a")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: asks}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if asks {
			go func() {
				var said string
				b := make([]byte, 1000)
				for times := 0; times < 2; {
					n, err := master.Read(b)
					if err != nil {
						return
					}
					if said += string(b[:n]); strings.Count(said, "Enter passphrase") > times {
						times++
						_, _ = io.WriteString(master, "secret\n")
					}
				}
			}()
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		want := "found: <nil>\nin the foreground\n"
		if !asks {
			want = `"root@jump: Permission denied (publickey)."`
		}
		if !strings.Contains(out.String(), want) {
			t.Errorf("asks %v: %s", asks, &out)
		}
	}
	_ = within.Command(t, s.SSH, "-O", "exit", "jump").Run()
}

// TestSSHRefused: what is wrong with a host is told in one line, which names the host and says what to try.
func TestSSHRefused(t *testing.T) {
	s := sshtest.Start(t)
	a, b := s.Host("a"), s.Host("b")
	program, err := helperbin.Helper()
	if err != nil {
		t.Fatal(err)
	}
	content, _ := contentOf(bytes.NewReader(program))
	rewrite := func(name, old, new string) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(strings.ReplaceAll(string(b), old, new)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(name, options string) {
		if out, err := a.Run("sh", "-c", "mkdir -p "+name+" && mount -t tmpfs -o "+options+" none "+name); err != nil {
			t.Fatal(out)
		}
		a.Setenv("QMIGRATE_CACHE=" + name)
	}
	standIn := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		host string
		make func()
		want []string
	}{
		{"unknown key", "ssh://a", func() { rewrite(s.Known, "a "+a.HostKey(), "") }, []string{`ssh says "Host key verification failed.": log in once by hand, ` + "`ssh a`"}},
		{"unknown key of the jump host", "ssh://a", func() { rewrite(s.Known, "jump "+s.Jump.HostKey(), "") }, []string{`on the way there ssh says "Host key verification failed."`}},
		{"wrong key", "ssh://a", func() { rewrite(s.Known, a.HostKey(), b.HostKey()) }, []string{`ssh says "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!"`, `-R "a"`}},
		{"wrong key of the jump host", "ssh://a", func() { rewrite(s.Known, s.Jump.HostKey(), b.HostKey()) }, []string{`on the way there ssh says "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!"`, `-R "jump"`}},
		{"login refused", "ssh://b", func() { b.Admit(false) }, []string{`ssh says "lab@10.78.0.12: Permission denied (publickey).": it does not let you in: try `}},
		{"login refused by the jump host", "ssh://b", func() { s.Jump.Admit(false) }, []string{`on the way there ssh says "root@jump: Permission denied (publickey)."`}},
		{"other user", "ssh://other@b", func() {}, []string{`ssh says "other@10.78.0.12: Permission denied (publickey)."`, "`ssh other@b`"}},
		{"no sshd", "ssh://b", func() { b.SSHD(false) }, []string{`on the way there ssh says "channel 0: open failed: connect failed: Connection refused": no sshd listens there`}},
		{"no sshd here", "ssh://127.0.0.1:1", func() {}, []string{`ssh says "ssh: connect to host 127.0.0.1 port 1: Connection refused": no sshd listens there`}},
		{"no name", "ssh://nowhere.invalid", func() {}, []string{`ssh says "ssh: Could not resolve hostname nowhere.invalid: `, "no such name"}},
		{"no name behind the jump host", "ssh://far.invalid", func() { s.Configure("Host far.invalid", " ProxyJump jump") }, []string{`on the way there ssh says "channel 0: open failed: connect failed: `, "the jump host knows no such name"}},
		{"not there", "ssh://gone", func() { s.Configure("Host gone", " ProxyJump jump", " HostName 10.78.0.77", "ConnectTimeout 5") }, []string{`on the way there ssh says "channel 0: open failed: connect failed: No route to host": is it on`}},
		{"bad config", "ssh://a", func() { s.Configure("NoSuchOption yes") }, []string{`Bad configuration option: nosuchoption": see your ssh_config`}},
		{"no space", "ssh://a", func() { mount("/run/small", "size=64k") }, []string{"the helper (", "KiB) could not be written there: folder /run/small/helper, 64 KiB free: make room, or give another folder as `cache`"}},
		{"noexec", "ssh://a", func() { mount("/run/noexec", "noexec") }, []string{"the helper may not be run there: /run/noexec/helper/", "noexec"}},
		{"read-only", "ssh://a", func() { mount("/run/ro", "ro") }, []string{"folder /run/ro/helper, for the helper, cannot be made there"}},
		{"machine", "ssh://a", func() {
			standIn(filepath.Join(a.Root, "root/bin/uname"), "echo aarch64")
			a.Setenv("PATH=" + a.Home + "/bin:/usr/bin:/bin")
		}, []string{"that machine is aarch64, and the helper is a program for x86_64"}},
		{"version", "ssh://a", func() {
			standIn(filepath.Join(a.Root, "root/cache/helper", content), `printf '\001qmigrate-helper {"protocol":99}\n'; cat >/dev/null`)
			a.Setenv("QMIGRATE_CACHE=" + a.Home + "/cache")
		}, []string{"its helper is another one: it has version 99 of the protocol, and this qmigrate has version ", "rm " + a.Home + "/cache/helper/"}},
		{"other program", "ssh://a", func() {
			standIn(filepath.Join(a.Root, "root/cache2/helper", content), `printf '\001qmigrate-helper {"protocol":1,"content":"abc"}\n'; cat >/dev/null`)
			a.Setenv("QMIGRATE_CACHE=" + a.Home + "/cache2")
		}, []string{"its helper is another one: it has content abc, ", "rm " + a.Home + "/cache2/helper/"}},
		{"helper that ends", "ssh://a", func() {
			standIn(filepath.Join(a.Root, "root/cache3/helper", content), `echo its own trouble >&2; exit 1`)
			a.Setenv("QMIGRATE_CACHE=" + a.Home + "/cache3")
		}, []string{"its helper, " + a.Home + "/cache3/helper/", "ends at once (exit status 1): its own trouble"}},
		{"no sh", "ssh://a", func() { a.Setenv("PATH=/nowhere") }, []string{`ssh says "bash: line 1: sh: command not found": its login shell finds no sh`}},
		{"no login", "ssh://a", func() {
			standIn(filepath.Join(a.Root, "root/.bashrc"), "echo This account is currently not available.; exit 1")
		}, []string{`ssh says "This account is currently not available.": that user may not log in`}},
		{"talks for ever", "ssh://a", func() { standIn(filepath.Join(a.Root, "root/.bashrc"), "yes") }, []string{"its login says more than 256 KiB", ".bashrc"}},
		{"exits", "ssh://a", func() { standIn(filepath.Join(a.Root, "root/.bashrc"), "exit 0") }, []string{"its login runs no sh and says nothing (exit status 0)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.make()
			p := sshPool(t, s)
			_, err := p.Find(within.Context(t), c.host)
			if err == nil || !strings.HasPrefix(err.Error(), "reach host "+c.host+": ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("want one line about host %s: %v", c.host, err)
			}
			for _, want := range c.want {
				if !strings.Contains(fmt.Sprint(err), want) {
					t.Errorf("%v\nlacks %s", err, want)
				}
			}
			s.KnowAll()
			s.Configure()
			a.Setenv()
			b.Admit(true)
			s.Jump.Admit(true)
			_ = os.Remove(filepath.Join(a.Root, "root/.bashrc"))
		})
	}
}

// noTerminals skips a test that needs a terminal where there is none, as in some containers; CI has them.
func noTerminals(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1" {
		t.Fatal("no pseudo terminals: ", err)
	}
	t.Skip("no pseudo terminals here: ", err)
}
