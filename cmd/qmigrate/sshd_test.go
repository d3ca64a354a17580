package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
)

// sshKey makes a key pair and writes the private one.
func sshKey(t *testing.T, name string) ssh.PublicKey {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestSSHD sends a migration through a real sshd: by a unix socket and by TCP; and is refused by it, and refuses it, in clear words before anything is touched.
func TestSSHD(t *testing.T) {
	program, err := exec.LookPath("sshd")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/sshd"); err != nil {
			t.Skip("no sshd: apt-get install openssh-server")
		}
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := guesttest.Dir(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hostKey, key := sshKey(t, at("host")), sshKey(t, at("id"))
	other := sshKey(t, at("other"))
	write("authorized", string(ssh.MarshalAuthorizedKey(key)))
	write("known", knownhosts.Line([]string{address}, hostKey)+"\n")
	write("wrong", knownhosts.Line([]string{address}, other)+"\n")
	write("none", "")
	_, port, _ := net.SplitHostPort(address)
	write("config", strings.Join([]string{
		"ListenAddress 127.0.0.1", "Port " + port, "HostKey " + at("host"), "PidFile none", "UsePAM no", "StrictModes no", "PermitRootLogin prohibit-password",
		"AuthorizedKeysFile " + at("authorized"), "PasswordAuthentication no", "AllowTcpForwarding yes", "AllowStreamLocalForwarding yes", ""}, "\n"))
	if os.Geteuid() == 0 { // where sshd as root shuts its other half in: the service makes it, and nothing has started that
		if os.Mkdir("/run/sshd", 0o755) == nil {
			defer os.Remove("/run/sshd")
		}
	}
	if out, err := within.Command(t, program, "-t", "-f", at("config")).CombinedOutput(); err != nil {
		t.Skipf("sshd does not start here: %v: %s", err, out)
	}
	var said bytes.Buffer
	sshd := exec.Command(program, "-D", "-e", "-f", at("config"))
	sshd.Stderr = &said
	sshd.WaitDelay = time.Second
	if err := sshd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sshd.Process.Kill()
		_ = sshd.Wait()
	}()
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if nc, err := net.DialTimeout("tcp", address, time.Second); err == nil {
			nc.Close()
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("sshd does not listen: %s", said.String())
		}
	}
	qemu := guesttest.QEMU(t, "10.0")
	made := 0
	start := func(incoming bool) *guest.VM {
		made++
		vm, err := guest.Start(within.Context(t), host.Local(),
			guest.Spec{Name: fmt.Sprint(made), QEMU: qemu, Memory: 16 << 20, Dir: at(fmt.Sprint("q", made)), Incoming: incoming,
				Paused: incoming})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		})
		return vm
	}
	src := start(false)
	l, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := l.Addr().String()
	l.Close()
	for i, c := range []struct{ listen, identity, known, want string }{
		{"unix:" + at("m"), "id", "none", "is not in " + at("none")},
		{"unix:" + at("m"), "id", "wrong", "has another key than"},
		{"unix:" + at("m"), "other", "known", "does not let " + me.Username + " in"},
		{"unix:" + at("m"), "id", "known", ""},
		{"tcp:" + free, "id", "known", ""},
	} {
		dst := start(true)
		var stdout, stderr bytes.Buffer
		status := run(within.Context(t), []string{"qmigrate", "migrate", "--source", "unix:" + src.Spec().Dir, "--destination", "unix:" + dst.Spec().Dir, "--tunnel", "ssh",
			"--tunnel-to", "ssh://" + me.Username + "@" +
				address, "--tunnel-identity", at(c.identity), "--tunnel-known-hosts", at(c.known), "--listen", c.listen, "--json", "--quiet", "--out", at("out")}, nil, &stdout, &stderr)
		if c.want != "" {
			if status != 1 || !strings.Contains(stderr.String(), c.want) || strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("%d: status %d: %s", i, status, stderr.String())
			}
			continue
		}
		var rec record.Migration
		if err := json.Unmarshal(stdout.Bytes(), &rec); err != nil || status != 0 {
			t.Fatalf("%d: status %d: %v: %s; sshd: %s", i, status, err, stderr.String(), said.String())
		}
		if rec.GuestOn != record.Destination || rec.Tunnel == nil || rec.Tunnel.Kind != "ssh" || rec.Tunnel.Bytes == 0 {
			t.Errorf("%d: guest on %s, tunnel %+v, warnings %q", i, rec.GuestOn, rec.Tunnel, rec.Warnings)
		}
		src = dst
	}
}
