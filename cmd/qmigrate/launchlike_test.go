package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/launch"
)

// as is what a process is and where: users, groups, capabilities, root and namespaces.
func as(t *testing.T, pid int) string {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(status)) {
		switch name, _, _ := strings.Cut(line, ":"); name {
		case "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Umask":
			all = append(all, strings.TrimSpace(line))
		}
	}
	for _, name := range []string{"root", "cwd", "exe", "ns/mnt", "ns/pid", "ns/net", "ns/user"} {
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/%s", pid, name), &st); err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s %d:%d", name, st.Dev, st.Ino))
	}
	return strings.Join(all, "\n")
}

// A source of another user, in a chroot, or in a container has its destination as that user and in there. Root never
// runs the program of another as root. If a destination is refused, its source goes on.
func TestLaunchLike(t *testing.T) {
	guesttest.QEMU(t, "11.1")
	if os.Geteuid() != 0 {
		guesttest.Unable(t, "only root starts processes as another user")
	}
	bin := filepath.Dir(guesttest.QEMU(t, "11.1"))
	base := guesttest.Dir(t)
	jail := base + "/jail"
	for _, dir := range []string{"", "/usr", "/usr/lib", "/usr/share", "/tmp", "/proc", "/dev", "/etc"} {
		if err := os.Mkdir(jail+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{filepath.Dir(base), base} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(jail+"/tmp", 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share/qemu", "/usr/share/seabios"} {
		if out, err := exec.CommandContext(t.Context(), "cp", "-a", bin+part, jail+part).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.WriteFile(jail+"/etc/disk", make([]byte, 1<<16), 0o644); err != nil {
		t.Fatal(err)
	}
	// root and folder as the source has them
	qemu := func(root, folder string) []string {
		lib := root + "/usr/lib/x86_64-linux-gnu"
		return []string{lib + "/ld-linux-x86-64.so.2", "--library-path", lib, root + "/usr/bin/qemu-system-x86_64",
			"-L", root + "/usr/share/qemu", "-L", root + "/usr/share/seabios",
			"-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "64",
			"-blockdev", "file,node-name=d,read-only=on,filename=" + root + "/etc/disk", "-device", "virtio-blk-pci,drive=d",
			"-qmp", "unix:" + folder + "/qmp,server=on,wait=off"}
	}
	nobody := &syscall.Credential{Uid: 65534, Gid: 65533, Groups: []uint32{65533, 12345}}
	for _, c := range []struct {
		name string
		args []string
		attr syscall.SysProcAttr
		at   string // where the source's monitor and the destination's folder are for us
		to   string // the destination, if not in at
		want string // in the refusal
	}{
		{name: "user", args: qemu(jail, base+"/s"), at: base + "/s", attr: syscall.SysProcAttr{Credential: nobody}},
		{name: "user with capabilities", at: base + "/s", args: append([]string{"setpriv", "--reuid=65534", "--regid=65533",
			"--clear-groups", "--no-new-privs", "--bounding-set=-sys_admin"}, qemu(jail, base+"/s")...)},
		{name: "user and a folder that only root can make", args: qemu(jail, base+"/s"), at: base + "/s", to: base + "/b",
			attr: syscall.SysProcAttr{Credential: nobody}},
		{name: "runas", at: base + "/s", args: append(qemu(jail, base+"/s"), "-run-with", "user=65534:65533")},
		{name: "chroot", args: qemu("", "/tmp/s"), at: jail + "/tmp/s", attr: syscall.SysProcAttr{Chroot: jail}},
		{name: "chroot and user", args: qemu("", "/tmp/s"), at: jail + "/tmp/s",
			attr: syscall.SysProcAttr{Chroot: jail, Credential: nobody}},
		{name: "mounts", at: base + "/s", args: append([]string{"unshare", "--mount", "sh", "-c",
			"mount --bind " + jail + "/etc " + jail + `/dev && mount -t tmpfs tmpfs ` + jail + `/etc && cp ` + jail +
				`/dev/disk ` + jail + `/etc && exec "$@"`, "sh"}, qemu(jail, base+"/s")...)},
		{name: "container", at: jail + "/tmp/s", args: append([]string{"unshare", "--mount", "--pid", "--net", "--fork",
			"--mount-proc=" + jail + "/proc", "sh", "-c", `ip link set lo up && exec "$@"`, "sh", "chroot", "--groups=12345", "--userspec=65534:65533", jail},
			qemu("", "/tmp/s")...)},
		{name: "container of another file system", at: base + "/s", to: "proc", args: append([]string{"unshare", "--mount",
			"sh", "-c", "mount -t tmpfs tmpfs " + jail + "/tmp && mount --bind " + base + " " + jail + `/dev && mkdir ` + jail +
				`/tmp/t && exec chroot ` + jail + ` "$@"`, "sh"}, qemu("", "/dev/s")...)},
		{name: "folder elsewhere", args: qemu("", "/tmp/s"), at: jail + "/tmp/s", to: base + "/b",
			attr: syscall.SysProcAttr{Chroot: jail}, want: "such as unix:" + jail + "/tmp/b"},
		{name: "went to its root", at: base + "/s", args: append(qemu(jail, base+"/s"), "-run-with", "chroot="+jail+"/etc"),
			want: "as with -chroot"},
		{name: "users", at: base + "/s", args: append([]string{"unshare", "--user", "--map-root-user"},
			qemu(jail, base+"/s")...), want: "another user namespace"},
		{name: "filter", args: append(qemu("", "/tmp/s"), "-sandbox", "on"), at: jail + "/tmp/s",
			attr: syscall.SysProcAttr{Chroot: jail, Credential: nobody}, want: "(seccomp)"},
		{name: "several users", at: base + "/s", args: append([]string{"setpriv", "--ruid=65534"}, qemu(jail, base+"/s")...),
			want: "more than one user"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.Mkdir(c.at, 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(c.at, 0o777); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(c.at)
			var said strings.Builder
			cmd := exec.CommandContext(t.Context(), c.args[0], c.args[1:]...)
			cmd.SysProcAttr, cmd.Dir, cmd.Stderr, cmd.WaitDelay = &c.attr, "/", &said, time.Second
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			defer func() { _ = cmd.Process.Kill(); <-ended }()
			src, err := connect.Parse("unix:"+c.at+"/qmp", nil)
			if err != nil {
				t.Fatal(err)
			}
			var nc net.Conn
			for nc == nil {
				select {
				case err := <-ended:
					ended <- err
					t.Fatalf("the source ended: %v %s", err, said.String())
				case <-time.After(10 * time.Millisecond):
				}
				nc, _ = src.Control(t.Context())
			}
			nc.Close()
			behind, err := connect.Behind(src)
			if err != nil {
				t.Fatal(err)
			}
			pid := behind.PID
			defer func() { _ = unix.Kill(pid, unix.SIGKILL) }() // unshare may be between
			folder := c.at + "/b"
			switch c.to {
			case "":
			case "proc":
				folder = fmt.Sprintf("/proc/%d/root/tmp/t/b", pid)
			default:
				folder = c.to
			}
			if _, err := facts.Inspect(t.Context(), src, plan.Options{}); err != nil { // its start has ended then
				t.Fatal(err)
			}
			before, was := state(t, pid, c.at), as(t, pid)
			l, output, err := launchBeside(t, []string{"--source", "unix:" + c.at + "/qmp", "--destination", "unix:" + folder})
			if c.want != "" {
				if err == nil {
					l.Close()
				}
				if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v, want %q", err, c.want)
				}
				if after := state(t, pid, c.at); after != before {
					t.Errorf("the source had\n%s\nand has\n%s", before, after)
				}
				return
			}
			if err != nil {
				t.Fatal(err, output)
			}
			defer l.Close()
			is := as(t, l.Process().PID())
			was, is = without(was, "Umask"), without(is, "Umask")
			if was != is {
				t.Errorf("the source is\n%s\nthe destination\n%s", was, is)
			}
			dst, err := connect.Parse("unix:"+folder, nil)
			if err != nil {
				t.Fatal(err)
			}
			if rec, err := engine.Migrate(t.Context(), src, dst, plan.Plan{}, plan.Options{}); err != nil {
				t.Error(err, rec.Warnings)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(folder); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a folder is left: %v", err)
			}
			if h, err := launch.ReadHeld(pid); err != nil || len(h.Sockets) == 0 {
				t.Errorf("the source has gone: %+v %v", h, err)
			}
		})
	}
}

// without is a text without the lines that begin so.
func without(text, prefix string) string {
	var all []string
	for line := range strings.SplitSeq(text, "\n") {
		if !strings.HasPrefix(line, prefix) {
			all = append(all, line)
		}
	}
	return strings.Join(all, "\n")
}
