// Package libvirtd runs libvirt's daemon on a lab's hosts.
//
// A host with a libvirtd is a privileged container of liblxc, which package lxc makes, in which the daemon runs. It has
// its own configuration, state and sockets, so the libvirtd of this machine is never touched. It goes with its
// container.
//
// It speaks to no libvirt: package engine/connect/passthrough does. It imports hostnet/lxc; labs, the commands and the
// helper may import it.
package libvirtd

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
	"qmigrate/hostnet/lxc"
)

// Mend installs what Check misses.
const Mend = "as root run `apt install --no-install-recommends libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients`"

// startLimit is how long a libvirtd may take to serve. It took 1.8 s on a busy machine of two processors.
const startLimit = 30 * time.Second

// Check says whether this machine can be the files of hosts with a libvirtd. It changes nothing. The error is an
// *host.UnsupportedError.
func Check(ctx context.Context) error {
	if _, err := lxc.Check(ctx, host.LibLXC); err != nil {
		return err
	}
	lacks := func(what string) error {
		return &host.UnsupportedError{Feature: "hosts with libvirt", Reason: what + " is not installed", Mend: Mend}
	}
	for _, program := range []string{"libvirtd", "virsh"} {
		if _, err := exec.LookPath(program); err != nil {
			return lacks(program)
		}
	}
	for _, pattern := range []string{"/usr/lib/*/libvirt", "/usr/lib/libvirt", "/usr/lib64/libvirt"} {
		if found, _ := filepath.Glob(pattern + "/connection-driver/libvirt_driver_qemu.so"); len(found) > 0 {
			return nil
		}
	}
	return lacks("libvirt's driver for QEMU")
}

// Daemon is a libvirtd of a host.
type Daemon struct {
	// URI is how its clients on the other hosts of the link reach it: qemu+tcp://ADDRESS/system, without authentication.
	URI string
	// Socket is its unix socket, in the folder that it was given.
	Socket string
}

// settings are those of a daemon that is to be.
type settings struct {
	Name    string // of the host, as its peers call it
	Address netip.Addr
	Peers   map[string]netip.Addr // all hosts of the link by their names, this one too
	Sockets string                // a folder for its sockets
	UUID    string                // the host's: libvirt refuses to migrate between two of the same
	QEMU    string                // the emulator of domains that name none; "": what the host has
}

// newUUID draws a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// start starts a daemon on a host and waits until it serves QEMU's domains.
func start(ctx context.Context, at host.Host, s settings) (Daemon, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	wrong := func(err error) (Daemon, error) {
		return Daemon{}, fmt.Errorf("start libvirtd on %s: %w", at.Name(), err)
	}
	if _, err := filesTask().Ask(ctx, at, s); err != nil {
		return wrong(err)
	}
	for _, words := range [][]string{{"libvirtd", "--daemon", "--listen"}, {"virsh", "-c", "qemu:///system", "uri"}} {
		if err := run(ctx, at, s.path(), words); err != nil {
			return wrong(err)
		}
	}
	return Daemon{URI: "qemu+tcp://" + s.Address.String() + "/system", Socket: path.Join(s.Sockets, "libvirt-sock")}, nil
}

// path has libvirt find its emulator in a folder of ours.
func (s settings) path() []string {
	if s.QEMU == "" {
		return nil
	}
	return []string{"PATH=" + own + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// run runs a command on a host to its end.
func run(ctx context.Context, at host.Host, env, words []string) error {
	var said bytes.Buffer
	p, err := at.Start(ctx, host.Command{Args: words, Env: env, Stdout: &said, Stderr: &said})
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		_ = p.Signal(syscall.SIGKILL) // whatever it has made goes with the container
		return fmt.Errorf("%s: %w", words[0], ctx.Err())
	}
	if err := p.Err(); err != nil {
		return fmt.Errorf("%s: %w: %s", words[0], err, lastLine(said.String()))
	}
	return nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// Tasks are all of the package's, for a helper to list.
func Tasks() []host.Served { return []host.Served{filesTask()} }

// filesTask gives a container the files that libvirtd and its QEMU driver want: folders to write in, and files in the
// place of this machine's. All of it is in the container's mount namespace.
func filesTask() host.Task[settings, struct{}] {
	return host.Task[settings, struct{}]{Name: "libvirtd.files",
		Work: func(_ context.Context, _ host.Host, s settings, give func(struct{}) error) error {
			if err := makeFiles(s); err != nil {
				return err
			}
			return give(struct{}{})
		}}
}

// own is where the files are that are mounted in the place of others.
const own = "/run/qmigrate-libvirtd"

// user is whom libvirt's QEMU driver looks for when it starts, whatever qemu.conf says (9.0). Its numbers are Debian's.
const user = "libvirt-qemu"

func makeFiles(s settings) error {
	for _, folder := range []string{"/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt"} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", folder, "tmpfs", unix.MS_NOSUID, "mode=0755"); err != nil {
			return &fs.PathError{Op: "mount", Path: folder, Err: err}
		}
	}
	for _, folder := range []string{own, "/run/libvirt", s.Sockets} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
	}
	if err := useQEMU(s.QEMU); err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n"
	for name, address := range s.Peers {
		hosts += address.String() + " " + name + "\n"
	}
	for file, text := range map[string]string{
		"/etc/passwd":     without("/etc/passwd", user) + user + ":x:64055:64055::/var/lib/libvirt:/bin/false\n",
		"/etc/group":      without("/etc/group", user, "libvirt") + user + ":x:64055:\nlibvirt:x:64056:\n",
		"/etc/hosts":      hosts,
		"/etc/machine-id": strings.ReplaceAll(s.UUID, "-", "") + "\n",
	} {
		if _, err := os.Stat(file); err != nil {
			continue // /etc is this machine's, read-only: what is not there cannot be put there
		}
		from := filepath.Join(own, filepath.Base(file))
		if err := os.WriteFile(from, []byte(text), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(from, file, "", unix.MS_BIND, ""); err != nil {
			return &fs.PathError{Op: "mount", Path: file, Err: err}
		}
	}
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	for _, name := range []string{"libvirt-sock", "libvirt-sock-ro", "libvirt-admin-sock"} { // for qemu:///system in there
		if err := os.Symlink(filepath.Join(s.Sockets, name), "/run/libvirt/"+name); err != nil {
			return err
		}
	}
	return errors.Join(os.WriteFile("/etc/libvirt/libvirtd.conf", []byte(daemonConf(s)), 0o644),
		os.WriteFile("/etc/libvirt/qemu.conf", []byte(qemuConf), 0o644))
}

// emulator is the name under which libvirt looks for a QEMU.
const emulator = "qemu-system-x86_64"

// useQEMU has libvirt find a QEMU. When libvirt asks one that is not installed for its types, it takes the installed
// QEMU's modules, and aborts because they are another build's (10.0 beside Debian's 7.2): so it sees none.
func useQEMU(qemu string) error {
	if qemu == "" {
		return nil
	}
	if err := os.Symlink(qemu, filepath.Join(own, emulator)); err != nil || strings.HasPrefix(qemu, "/usr/") {
		return err
	}
	modules, _ := filepath.Glob("/usr/lib/*/qemu")
	for _, folder := range modules {
		if err := unix.Mount("tmpfs", folder, "tmpfs", unix.MS_NOSUID, "mode=0755"); err != nil {
			return &fs.PathError{Op: "mount", Path: folder, Err: err}
		}
	}
	return nil
}

// without is a file like passwd(5) without the lines of some names.
func without(file string, names ...string) string {
	b, _ := os.ReadFile(file)
	var kept strings.Builder
next:
	for line := range strings.Lines(string(b)) {
		for _, name := range names {
			if strings.HasPrefix(line, name+":") {
				continue next
			}
		}
		kept.WriteString(line)
	}
	if text := kept.String(); text != "" && !strings.HasSuffix(text, "\n") {
		kept.WriteString("\n")
	}
	return kept.String()
}

func daemonConf(s settings) string {
	return fmt.Sprintf(`host_uuid = "%s"
unix_sock_dir = "%s"
unix_sock_rw_perms = "0700"
unix_sock_ro_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
listen_tls = 0
listen_tcp = 1
listen_addr = "%s"
auth_tcp = "none"
`, s.UUID, s.Sockets, s.Address)
}

// qemuConf has QEMU run as the container's root, write its logs itself (there is no virtlogd), and stay in the control
// group by which the container's processes are found.
const qemuConf = `user = "+0"
group = "+0"
security_driver = "none"
cgroup_controllers = []
stdio_handler = "file"
`
