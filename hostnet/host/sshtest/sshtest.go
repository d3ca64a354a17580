// Package sshtest gives tests hosts behind ssh: a and b on one link, each with a sshd, a host key and users, and a jump
// host in front of them. Each has namespaces of its own for everything but the processor: network, processes, mounts
// (so /tmp, /run, /home, /root and the users are not this machine's) and name. They are reached by OpenSSH with an
// ssh_config that has a ProxyJump. Nothing of the machine changes, and nothing is left when the test ends: killing a
// host's first process ends all of it.
//
// It needs root, util-linux, iproute2 and OpenSSH's client and server. It imports no package of ours but within.
package sshtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmigrate/guest/guesttest/within"
)

const (
	// Jump is the name of the host in front of the others.
	Jump = "jump"
	// User is who logs in on a host that is not Root.
	User   = "lab"
	userID = 61234
	subnet = "10.78.0.%d/24"
)

// HostSpec is one host.
type HostSpec struct {
	Name string // "a"
	// Root: the user is root there. Else it is User, who may open the TAP but may not make one.
	Root bool
	// Share are folders of this machine that the host has too, under the same names: it may not write to them.
	Share []string
}

// Hosts are hosts that are up, until the test ends.
type Hosts struct {
	Dir   string  // of all of it, on this machine
	SSH   string  // a program that is OpenSSH with Config as the user's
	Jump  *Host   // in front of the others
	All   []*Host // as they were asked for
	Known string  // the file of known host keys

	t      testing.TB
	config string
}

// Host is one of them.
type Host struct {
	Name    string
	URL     string     // "ssh://a"
	User    string     // who logs in
	Address netip.Addr // on the link; it is the bridge's
	Bridge  string     // "br0": eth0, the way to the link, and TAP are its ports
	TAP     string     // "tap0": made beforehand, for the user; "" on the jump host
	// Root is a folder of this machine in which the host's /tmp, /run, /home and /root are.
	Root string
	Home string // the user's, on the host

	hosts  *Hosts
	number int
	share  []string
	init   *exec.Cmd
	alive  io.Closer // the host's first process ends when it is closed
	pid    int       // its first process, as this machine counts
}

// Start starts the hosts; without any a, whose user is root, and b, whose user is not.
func Start(t testing.TB, specs ...HostSpec) *Hosts {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for the namespaces of the hosts and the users there")
	}
	for _, tool := range []string{"/usr/sbin/sshd", "ssh", "ssh-keygen", "unshare", "nsenter", "ip", "pgrep"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, fmt.Errorf("%w: apt-get install openssh-server openssh-client util-linux iproute2 procps", err))
		}
	}
	if len(specs) == 0 {
		specs = []HostSpec{{Name: "a", Root: true}, {Name: "b"}}
	}
	dir, err := os.MkdirTemp("", "s") // short, for the paths of unix sockets are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s := &Hosts{Dir: dir, SSH: filepath.Join(dir, "ssh"), Known: filepath.Join(dir, "known_hosts"), t: t,
		config: filepath.Join(dir, "ssh_config")}
	s.key(filepath.Join(dir, "id"))
	s.write(s.SSH, 0o755, "#!/bin/sh\nexec ssh -F %s \"$@\"\n", s.config)
	for i, spec := range append([]HostSpec{{Name: Jump, Root: true}}, specs...) {
		h := &Host{Name: spec.Name, URL: "ssh://" + spec.Name, User: User, Home: "/home/" + User, Bridge: "br0", TAP: "tap0",
			Root: filepath.Join(dir, spec.Name), hosts: s, number: i, share: spec.Share}
		if spec.Root {
			h.User, h.Home = "root", "/root"
		}
		last := 1
		if i > 0 {
			last = 10 + i
		}
		h.Address = netip.MustParsePrefix(fmt.Sprintf(subnet, last)).Addr()
		h.make()
		if i == 0 {
			s.Jump, h.TAP = h, ""
		} else {
			s.All = append(s.All, h)
		}
		h.Start()
		t.Cleanup(h.Kill)
	}
	return s
}

// missing skips the test, or fails it where everything should be there.
func missing(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
}

// Host is the host of that name.
func (s *Hosts) Host(name string) *Host {
	s.t.Helper()
	i := slices.IndexFunc(s.All, func(h *Host) bool { return h.Name == name })
	if i < 0 {
		s.t.Fatalf("no host %s", name)
	}
	return s.All[i]
}

// Configure puts lines in front of the ssh_config: the first value of an option counts. Without lines it is as Start
// wrote it.
func (s *Hosts) Configure(lines ...string) {
	s.t.Helper()
	jump := fmt.Sprintf("nsenter -t %d -m -u -i -n -p /usr/sbin/sshd -i -E /mnt/log -f /mnt/sshd_config", s.Jump.pid)
	lines = append(slices.Clone(lines), "Host "+Jump, " ProxyCommand "+jump, " User root", " HostKeyAlias "+Jump)
	for _, h := range s.All {
		lines = append(lines, "Host "+h.Name, " HostName "+h.Address.String(), " User "+h.User, " HostKeyAlias "+h.Name,
			" ProxyJump "+Jump)
	}
	lines = append(lines, "Host *", " IdentityFile "+filepath.Join(s.Dir, "id"), " IdentitiesOnly yes",
		" IdentityAgent none", " UserKnownHostsFile "+s.Known, " GlobalKnownHostsFile none", " ConnectTimeout 20")
	s.write(s.config, 0o600, "%s\n", strings.Join(lines, "\n"))
}

// KnowAll makes the file of known host keys hold the right key of every host.
func (s *Hosts) KnowAll() {
	s.t.Helper()
	var lines strings.Builder
	for _, h := range append([]*Host{s.Jump}, s.All...) {
		fmt.Fprintf(&lines, "%s %s", h.Name, h.HostKey())
	}
	s.write(s.Known, 0o600, "%s", lines.String())
}

// SetLink takes a host off the link, or puts it back. Whoever came through the jump host loses the way to it, too.
func (s *Hosts) SetLink(h *Host, up bool) {
	s.t.Helper()
	to := "down"
	if up {
		to = "up"
	}
	s.Jump.must("ip", "link", "set", h.port(), to)
}

func (s *Hosts) key(name string) {
	s.t.Helper()
	cmd := within.Command(s.t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", name)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
}

func (s *Hosts) write(name string, mode os.FileMode, format string, args ...any) {
	s.t.Helper()
	if err := errors.Join(mkdir(filepath.Dir(name)), os.WriteFile(name, fmt.Appendf(nil, format, args...), mode),
		os.Chmod(name, mode)); err != nil {
		s.t.Fatal(err)
	}
}

// mkdir makes a folder, and those above it, that everybody may look into, whatever the umask is.
func mkdir(name string) error {
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	return errors.Join(mkdir(filepath.Dir(name)), os.Mkdir(name, 0o755), os.Chmod(name, 0o755))
}

// make makes the host's folders and files; they outlive Kill.
func (h *Host) make() {
	t, s := h.hosts.t, h.hosts
	t.Helper()
	at := func(parts ...string) string { return filepath.Join(append([]string{h.Root}, parts...)...) }
	for name, mode := range map[string]os.FileMode{"tmp": 0o777 | os.ModeSticky, "run": 0o755, "run/sshd": 0o755,
		"root": 0o700, "home": 0o755, "home/" + User: 0o755, "mnt": 0o755} {
		if err := errors.Join(mkdir(at(name)), os.Chmod(at(name), mode)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range h.share {
		if err := mkdir(at(dir)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(at("home", User), userID, userID); err != nil {
		t.Fatal(err)
	}
	s.key(at("mnt", "host_key"))
	s.write(at("mnt", "passwd"), 0o644, "root:x:0:0::/root:/bin/bash\nsshd:x:102:65534::/run/sshd:/bin/false\n"+
		"nobody:x:65534:65534::/nonexistent:/bin/false\n%s:x:%d:%d::/home/%s:/bin/bash\n", User, userID, userID, User)
	s.write(at("mnt", "group"), 0o644, "root:x:0:\nnogroup:x:65534:\n%s:x:%d:\n", User, userID)
	s.write(at("mnt", "shadow"), 0o600, "root:*:1::::::\n%s:*:1::::::\n", User)
	s.write(at("mnt", "sshd_config"), 0o600, "%s\n", strings.Join([]string{"Port 22", "HostKey /mnt/host_key",
		"PidFile none", "UsePAM no", "StrictModes no", "PermitRootLogin prohibit-password", "AuthorizedKeysFile /mnt/authorized_keys",
		"PasswordAuthentication no", "KbdInteractiveAuthentication no", "UseDNS no", "MaxStartups 200", "MaxSessions 100",
		"PermitUserEnvironment yes", "PrintMotd no"}, "\n"))
	h.Admit(true)
	h.Setenv()
}

// Admit sets whether the host lets the user's key in.
func (h *Host) Admit(admit bool) {
	h.hosts.t.Helper()
	key := []byte("# none\n")
	if admit {
		var err error
		if key, err = os.ReadFile(filepath.Join(h.hosts.Dir, "id.pub")); err != nil {
			h.hosts.t.Fatal(err)
		}
	}
	h.hosts.write(filepath.Join(h.Root, "mnt", "authorized_keys"), 0o644, "%s", key)
}

// Setenv sets the environment of the user's logins from now on: NAME=VALUE.
func (h *Host) Setenv(env ...string) {
	h.hosts.t.Helper()
	h.hosts.write(filepath.Join(h.Root, h.Home, ".ssh", "environment"), 0o644, "%s\n", strings.Join(env, "\n"))
}

// HostKey is the host's public key, a line.
func (h *Host) HostKey() string {
	h.hosts.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.Root, "mnt", "host_key.pub"))
	if err != nil {
		h.hosts.t.Fatal(err)
	}
	return string(b)
}

// boot is run by the host's first process, with the host's folder, its name and what it shares. sshd is started again
// when it is killed; that process ends with its standard input.
const boot = `set -e
root=$1
hostname "$2"
shift 2
for d; do mount --bind "$d" "$root$d"; mount -o remount,ro,bind "$root$d"; done
mount --bind "$root/mnt" /mnt
for f in passwd group shadow; do mount --bind "$root/mnt/$f" /etc/$f; done
for d in run root home; do mount --rbind "$root/$d" /$d; done
if [ -c /dev/net/tun ]; then
 mount -t tmpfs -o mode=755 none /dev/net
 mknod -m 666 /dev/net/tun c 10 200 || umount /dev/net
fi
mount --rbind "$root/tmp" /tmp
cd /
trap 'exit 0' TERM
exec 3<&0 0</dev/null
(trap - TERM; cat <&3 >/dev/null; kill -TERM 1) &
exec 3<&-
set +e
while :; do
 [ -e /mnt/no-sshd ] || /usr/sbin/sshd -D -E /mnt/log -f /mnt/sshd_config &
 wait $!
 sleep 0.1
done
`

// Start starts a host that has been killed.
func (h *Host) Start() {
	t, s := h.hosts.t, h.hosts
	t.Helper()
	if h.init != nil {
		return
	}
	_ = os.Remove(filepath.Join(h.Root, "mnt", "log"))
	h.init = exec.Command("unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--mount", "--uts", "--ipc",
		"--net", "sh", "-c", boot, "sh", h.Root, h.Name)
	h.init.Args = append(h.init.Args, h.share...)
	log, err := os.OpenFile(filepath.Join(h.Root, "mnt", "boot.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	h.init.Stdout, h.init.Stderr = log, log
	if h.alive, err = h.init.StdinPipe(); err == nil {
		err = h.init.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	children := fmt.Sprintf("/proc/%d/task/%d/children", h.init.Process.Pid, h.init.Process.Pid)
	within.Until(t, "the first process of host "+h.Name, func() bool {
		b, err := os.ReadFile(children)
		if err != nil {
			t.Fatalf("host %s does not start: %s", h.Name, h.log("boot.log"))
		}
		h.pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
		return err == nil
	})
	h.network()
	if h.number > 0 {
		within.Until(t, "sshd of host "+h.Name, func() bool {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", h.pid)); err != nil {
				t.Fatalf("host %s does not start: %s%s", h.Name, h.log("boot.log"), h.log("log"))
			}
			time.Sleep(5 * time.Millisecond)
			return strings.Contains(h.log("log"), "Server listening")
		})
	}
	s.KnowAll()
	s.Configure()
}

func (h *Host) log(name string) string {
	b, _ := os.ReadFile(filepath.Join(h.Root, "mnt", name))
	return string(b)
}

func (h *Host) port() string { return "to-" + h.Name }

// network connects the host to the link, which is a bridge of the jump host.
func (h *Host) network() {
	h.hosts.t.Helper()
	// Its hardware address is given: the neighbours know it from before Kill.
	script := fmt.Sprintf("ip link set lo up; ip link add br0 address 02:51:4d:00:00:%02x type bridge forward_delay 0 "+
		"mcast_snooping 0; ip addr add %s/24 dev br0; ip link set br0 up\n", h.number, h.Address)
	if h.number > 0 {
		link := fmt.Sprintf("ip link del %s 2>/dev/null; ip link add %s type veth peer name eth0 netns %d && "+
			"ip link set %s master br0 up", h.port(), h.port(), h.pid, h.port())
		h.hosts.nsenter(h.hosts.Jump.pid, "-n", "sh", "-c", link)
		owner := ""
		if h.User != "root" {
			owner = " user " + strconv.Itoa(userID)
		}
		script += "ip link set eth0 master br0 up; ip tuntap add tap0 mode tap vnet_hdr" + owner +
			"; ip link set tap0 master br0 up\n"
	}
	h.hosts.nsenter(h.pid, "-n", "sh", "-ec", script)
}

func (s *Hosts) nsenter(pid int, args ...string) {
	s.t.Helper()
	cmd := within.Command(s.t, "nsenter", append([]string{"-t", strconv.Itoa(pid)}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %v: %s", args, err, out)
	}
}

// Command is a program that root runs on the host, without ssh.
func (h *Host) Command(ctx context.Context, words ...string) *exec.Cmd {
	args := append([]string{"-t", strconv.Itoa(h.pid), "-m", "-u", "-i", "-n", "-p"}, words...)
	return exec.CommandContext(ctx, "nsenter", args...)
}

// Run is what a program says that root runs on the host.
func (h *Host) Run(words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within.Limit)
	defer cancel()
	out, err := h.Command(ctx, words...).CombinedOutput()
	return string(out), err
}

func (h *Host) must(words ...string) string {
	h.hosts.t.Helper()
	out, err := h.Run(words...)
	if err != nil {
		h.hosts.t.Fatalf("%s: %q: %v: %s", h.Name, words, err, out)
	}
	return out
}

// PIDs are the processes of the host whose command line matches, as pgrep -f has it and as this machine counts.
func (h *Host) PIDs(pattern string) (all []int) {
	h.hosts.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within.Limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, "pgrep", "--ns", strconv.Itoa(h.pid), "--nslist", "pid", "-f", pattern).Output()
	if exit := new(exec.ExitError); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		h.hosts.t.Fatal(err)
	}
	for _, f := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(f); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// SSHD switches the host's sshd off, its sessions included, or on again.
func (h *Host) SSHD(on bool) {
	t := h.hosts.t
	t.Helper()
	mark := filepath.Join(h.Root, "mnt", "no-sshd")
	if on {
		if err := os.Remove(mark); err != nil {
			t.Fatal(err)
		}
		within.Until(t, "sshd of host "+h.Name, func() bool {
			_, err := h.Run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/22")
			return err == nil
		})
		return
	}
	h.hosts.write(mark, 0o644, "")
	h.KillSSHD()
}

// Clients are the ssh processes of this machine that have a connection to the host.
func (s *Hosts) Clients(h *Host) (all []int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within.Limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, "pgrep", "-f", "^ssh -F "+s.config+" .*-- "+h.Name+" ").Output()
	if exit := new(exec.ExitError); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		s.t.Fatal(err)
	}
	for _, f := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(f); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// KillSSHD kills the host's sshd and its sessions. Another one is started.
func (h *Host) KillSSHD() { _, _ = h.Run("pkill", "-KILL", "-x", "sshd") }

// Kill ends the host: each of its processes. Its files stay; Start starts it again.
func (h *Host) Kill() {
	if h.init == nil {
		return
	}
	_ = syscall.Kill(h.pid, syscall.SIGKILL) // its parent reaps it, and ends
	_ = h.init.Wait()
	h.alive.Close()
	h.init = nil
}
