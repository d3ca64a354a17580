package libvirtd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/leak"
	"qmigrate/hostnet/internal/mark"
	"qmigrate/hostnet/lxc"
)

// applyVariable has this program make hosts for an owner, in a folder and with a QEMU, and wait to be killed.
const applyVariable = "QMIGRATE_LIBVIRTD_TEST_APPLY"

func spec(owner, dir, qemu string, pool *host.Pool) Spec {
	return Spec{QEMU: map[string]string{"a": qemu, "b": qemu}, Spec: lxc.Spec{Spec: hostnet.Spec{Owner: owner}, Dir: dir, Pool: pool,
		ReadOnly: []string{filepath.Dir(qemu)}}}
}

func TestMain(m *testing.M) {
	hostnet.Main()
	if words := os.Getenv(applyVariable); words != "" {
		f := strings.Fields(words)
		if _, err := spec(f[0], f[1], f[2], &host.Pool{Program: helperbin.Helper}).Apply(context.Background()); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("made")
		select {}
	}
	os.Setenv("GORACE", strings.TrimSpace("atexit_sleep_ms=0 "+os.Getenv("GORACE")))
	before := leak.Files()
	code := m.Run()
	if err := errors.Join(leak.Find(before), leftovers(mark.Prefix+owner)); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "leaked:", err)
		code = 1
	}
	os.Exit(code)
}

var owner = fmt.Sprintf("lvt%d", os.Getpid())

// leftovers are processes of containers of that name, whoever started them, and mounts, control groups and locks.
func leftovers(name string) error {
	var errs []error
	for _, pattern := range []string{"/proc/[0-9]*/cgroup", "/proc/[0-9]*/cmdline", "/proc/self/mountinfo"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
			if b, _ := os.ReadFile(file); strings.Contains(string(b), name) && len(line) > 0 { // the dead have none
				errs = append(errs, fmt.Errorf("%s has %s", file, name))
			}
		}
	}
	for _, folder := range []string{"/sys/fs/cgroup", "/run/lxc", "/run/netns"} {
		_ = filepath.WalkDir(folder, func(path string, _ os.DirEntry, _ error) error {
			if strings.Contains(filepath.Base(path), name) {
				errs = append(errs, errors.New(path))
			}
			return nil
		})
	}
	return errors.Join(errs...)
}

// virsh runs virsh and gives what it said.
func virsh(t *testing.T, words ...string) string {
	t.Helper()
	out, err := within.Command(t, "virsh", words...).CombinedOutput()
	if err != nil {
		t.Fatalf("virsh %v: %v: %s", words, err, out)
	}
	return strings.TrimSpace(string(out))
}

// domain starts a QEMU with nothing to boot.
func domain(t *testing.T, uri, qemu, name string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "domain.xml")
	xml := fmt.Sprintf("<domain type='qemu'><name>%s</name><memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc-q35-7.2'>"+
		"hvm</type></os><features><acpi/></features><devices><emulator>%s</emulator><memballoon model='none'/></devices></domain>",
		name, qemu)
	if err := os.WriteFile(file, []byte(xml), 0o644); err != nil {
		t.Fatal(err)
	}
	virsh(t, "-c", uri, "create", file)
}

func at(socket string) string { return "qemu+unix:///system?socket=" + socket }

// users starts a libvirtd as a user of this machine may have one: in no container, with namespaces of its own so that it
// is beside any other.
func users(t *testing.T) (uri string) {
	t.Helper()
	dir := t.TempDir()
	const script = `set -e
for d in /run/libvirt /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
	mkdir -p $d; mount -t tmpfs tmpfs $d
done
grep -v ^libvirt-qemu: /etc/passwd >$DIR/passwd; echo libvirt-qemu:x:64055:64055::/:/bin/false >>$DIR/passwd
grep -v ^libvirt-qemu: /etc/group >$DIR/group; echo libvirt-qemu:x:64055: >>$DIR/group
mount --bind $DIR/passwd /etc/passwd; mount --bind $DIR/group /etc/group
echo "unix_sock_dir = \"$DIR\"" >/etc/libvirt/libvirtd.conf
printf 'user = "+0"\ngroup = "+0"\nsecurity_driver = "none"\ncgroup_controllers = []\nstdio_handler = "file"\n' >/etc/libvirt/qemu.conf
exec libvirtd -p $DIR/pid`
	var said strings.Builder
	cmd := exec.Command("unshare", "--mount", "--net", "sh", "-c", script)
	cmd.Env = append(os.Environ(), "DIR="+dir)
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log("the user's libvirtd said: ", said.String())
		}
	})
	socket := filepath.Join(dir, "libvirt-sock")
	within.Until(t, "the user's libvirtd", func() bool { return exec.Command("virsh", "-c", at(socket), "uri").Run() == nil })
	return at(socket)
}

// TestHosts: two hosts each have a libvirtd that runs domains and moves them. After a kill of who made them nothing of
// it is left, and the user's own libvirtd and its domain were never touched.
func TestHosts(t *testing.T) {
	if err := Check(within.Context(t)); err != nil {
		guesttest.Unable(t, err)
	}
	qemu := guesttest.QEMU(t, "10.0")
	dir := t.TempDir()
	cmd := within.Command(t, "/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", applyVariable, owner, dir, qemu))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := lxc.Remove(context.Background(), owner, host.LibLXC); err != nil {
			t.Error(err)
		}
	}()
	beside := users(t)
	domain(t, beside, qemu, "theirs")
	t.Cleanup(func() {
		if out, err := exec.Command("virsh", "-c", beside, "destroy", "theirs").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	before := virsh(t, "-c", beside, "domid", "theirs") + virsh(t, "-c", beside, "domstate", "--reason", "theirs")
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "made\n" {
		t.Fatalf("%q, %v", line, err)
	}
	a, b := at(filepath.Join(dir, "shared/a/libvirt-sock")), at(filepath.Join(dir, "shared/b/libvirt-sock"))
	if got := virsh(t, "-c", a, "hostname"); got != "a" {
		t.Errorf("host a calls itself %s", got)
	}
	domain(t, a, qemu, "g")
	virsh(t, "-c", a, "migrate", "--live", "--p2p", "g", "qemu+tcp://b/system")
	if got := virsh(t, "-c", b, "domstate", "g"); got != "running" {
		t.Errorf("the domain that moved is %s", got)
	}
	if got := virsh(t, "-c", a, "list", "--all", "--name"); got != "" {
		t.Errorf("host a has %s still", got)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	removed, err := lxc.Remove(within.Context(t), owner, host.LibLXC)
	if err != nil {
		t.Error(err)
	}
	for _, name := range []string{"a", "b"} {
		if want := "container " + mark.Prefix + owner + "-" + name; !slices.Contains(removed, want) {
			t.Errorf("removed %v, want %s in it", removed, want)
		}
	}
	if err := leftovers(mark.Prefix + owner); err != nil {
		t.Error(err)
	}
	if after := virsh(t, "-c", beside, "domid", "theirs") + virsh(t, "-c", beside, "domstate", "--reason", "theirs"); after != before {
		t.Errorf("the user's domain was %s and is %s", before, after)
	}
}

// TestWithout: names whose lines are replaced are left out, others stay.
func TestWithout(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(file, []byte("root:x:0:0::/:\nlibvirt-qemu:x:1:1::/:\nlibvirt-qemu2:x:2:2::/:"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, want := without(file, user), "root:x:0:0::/:\nlibvirt-qemu2:x:2:2::/:\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
