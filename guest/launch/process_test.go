package launch

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"qmigrate/guest/guesttest"
)

func TestManager(t *testing.T) {
	for cgroup, want := range map[string]string{
		"0::/system.slice/vm-a.service\n":                                   "systemd (vm-a.service)",
		"12:pids:/x\n0::/system.slice/system-vm.slice/vm@1.service/vcpu\n":  "systemd (vm@1.service)",
		"0::/qemu.slice/100.scope\n":                                        "Proxmox VE (VM 100)",
		"0::/machine.slice/machine-qemu\\x2d1\\x2da.scope/libvirt/emulator": "libvirt (machine-qemu\\x2d1\\x2da.scope)",
		"0::/user.slice/user-0.slice/session-1.scope\n":                     "",
		"0::/user.slice/user-0.slice/user@0.service/app.slice/vm.service\n": "systemd (vm.service)",
		"0::/user.slice/user-0.slice/user@0.service/app.slice/a.scope\n":    "",
		"0::/\n": "", "": "",
	} {
		if got := manager(cgroup); got != want {
			t.Errorf("%q: %q", cgroup, got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	env := []string{"HOME=/root", "QEMU_MODULE_DIR=/m", "NOTIFY_SOCKET=/run/n", "LISTEN_FDS=2", "PWD=/srv",
		"LD_LIBRARY_PATH=/l", "TZ=", "rubbish"}
	keep, dir := environment(env, []string{"qemu"}, "/here")
	if want := []string{"HOME=/root", "QEMU_MODULE_DIR=/m", "PWD=/srv", "LD_LIBRARY_PATH=/l", "TZ="}; !slices.Equal(keep, want) || dir != "/here" {
		t.Errorf("%q %s", keep, dir)
	}
	if _, dir = environment(env, []string{"qemu", "--daemonize"}, "/"); dir != "/srv" {
		t.Errorf("a daemon was started in %s", dir)
	}
	p := Process{Env: keep}
	if parts, other := p.Parts(), p.EnvFor(); !slices.Equal(parts, []string{"QEMU_MODULE_DIR=/m", "LD_LIBRARY_PATH=/l"}) ||
		slices.Contains(other, "LD_LIBRARY_PATH=/l") || len(other) != 3 || len(p.Env) != 5 {
		t.Errorf("%q %q", parts, other)
	}
}

func TestRoom(t *testing.T) {
	const mi = 1 << 20
	machine := func(more map[string]string) fstest.MapFS {
		m := fstest.MapFS{"proc/meminfo": {Data: []byte("MemTotal: 8388608 kB\nMemAvailable:    1048576 kB\nSwapFree: 0 kB\n")}}
		for name, data := range more {
			m[name] = &fstest.MapFile{Data: []byte(data)}
		}
		return m
	}
	small := int64(100 * mi)
	huge := func(n int64) Memory { return Memory{Huge: map[int64]int64{2 * mi: n}} }
	const pages = "sys/kernel/mm/hugepages/hugepages-2048kB/"
	for _, c := range []struct {
		name   string
		root   fstest.MapFS
		need   Memory
		limits Limits
		cgroup string
		want   string // in the error; "" fits
	}{
		{"fits", machine(nil), Memory{Ordinary: 1024 * mi}, Limits{}, "0::/a\n", ""},
		{"too little", machine(nil), Memory{Ordinary: 1025 * mi}, Limits{}, "", "1024 MiB of memory and swap are free, and a second guest needs 1025 MiB"},
		{"address space", machine(nil), Memory{Ordinary: 101 * mi}, Limits{Space: &small}, "", "address space"},
		{"huge pages", machine(map[string]string{pages + "free_hugepages": "8\n", pages + "resv_hugepages": "0\n"}), huge(16 * mi), Limits{}, "", ""},
		{"huge pages that others have asked for", machine(map[string]string{pages + "free_hugepages": "8\n", pages + "resv_hugepages": "1\n"}), huge(16 * mi), Limits{}, "", "7 huge pages of 2048 KiB are free, and a second guest needs 8"},
		{"no such huge pages", machine(nil), Memory{Huge: map[int64]int64{1 << 30: 1}}, Limits{}, "", "hugepages-1048576kB/nr_hugepages"},
		{"group", machine(map[string]string{"sys/fs/cgroup/a/b/memory.max": "max\n",
			"sys/fs/cgroup/a/memory.max": "104857600\n", "sys/fs/cgroup/a/memory.current": "52428800\n",
			"sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 10485760\nactive_file 0\n"}), Memory{Ordinary: 61 * mi},
			Limits{}, "0::/a/b\n", "has room for 60 MiB"},
		{"group with room", machine(map[string]string{"sys/fs/cgroup/a/memory.max": "104857600\n", "sys/fs/cgroup/a/memory.current": "52428800\n"}), Memory{Ordinary: 50 * mi}, Limits{}, "0::/a\n", ""},
		{"group of version 1", machine(map[string]string{"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "104857600\n",
			"sys/fs/cgroup/memory/a/memory.usage_in_bytes": "104857600\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":   "9223372036854771712\n"}), Memory{Ordinary: mi}, Limits{},
			"9:cpu,cpuacct:/c\n8:memory:/a\n", "raise memory.limit_in_bytes"},
		{"nothing to read", fstest.MapFS{}, Memory{Ordinary: 1 << 40}, Limits{}, "0::/a\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := room(c.root, c.need, c.limits, c.cgroup)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// A program that is replaced or removed while it runs is seen, and so is the folder that it runs in.
func TestReadProcess(t *testing.T) {
	dir := guesttest.Dir(t)
	program := filepath.Join(dir, "qemu-like")
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	copyOf := func() {
		t.Helper()
		b, err := os.ReadFile(sleep)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(program+".new", b, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(program+".new", program); err != nil {
			t.Fatal(err)
		}
	}
	copyOf()
	cmd := exec.Command(program, "1000")
	cmd.Args[0], cmd.Dir, cmd.Env = "sleep", dir, []string{"QEMU_X=1", "NOTIFY_SOCKET=/x"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	look := func() *Process {
		t.Helper()
		p, err := ReadProcess(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := look()
	for ; len(p.Args) == 0; p = look() { // its exec has not ended
		time.Sleep(time.Millisecond)
	}
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		t.Fatal(err)
	}
	self, err := ReadProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if p.Program != real || p.Changed || !p.IsQEMU() || !slices.Equal(p.Args, []string{real, "1000"}) ||
		!slices.Equal(p.Command(), []string{real}) ||
		!slices.Equal(p.Env, []string{"QEMU_X=1"}) || p.Dir != filepath.Dir(real) || p.UID != os.Geteuid() ||
		p.Network != self.Network || !reflect.DeepEqual(p.Limits, self.Limits) {
		t.Errorf("%+v", p)
	}
	if err := p.Startable(); err != nil {
		t.Error(err)
	}
	copyOf()
	if p = look(); !p.Changed || p.Program != real || p.Startable() != nil {
		t.Errorf("replaced: %+v %v", p, p.Startable())
	}
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	if p = look(); !p.Changed || p.Startable() == nil {
		t.Errorf("removed: %+v", p)
	}
	p.UID++
	if err := p.Startable(); err == nil || !strings.Contains(err.Error(), "run qmigrate as that user") {
		t.Error(err)
	}
	if p, err := ReadProcess(1 << 30); err != nil || p.Program != "" || p.IsQEMU() {
		t.Errorf("%+v %v", p, err)
	}
}

func TestParseConfig(t *testing.T) {
	words, err := parseConfig([]byte("# qemu config file\n\n[chardev \"m2\"]\n  backend = \"socket\"\n  path=\"/run/a, b\"\n\n[machine]\n  type = \"q35\"\n[memory]\n size = \"64\"\n[rtc]\n[smp-opts]\n\tcpus = \"2\"\n"))
	want := []word{{raw: "-chardev", option: "-chardev", value: "id=m2,backend=socket,path=/run/a,, b"},
		{raw: "-machine", option: "-machine", value: "type=q35"},
		{raw: "-m", option: "-m", value: "size=64"}, {raw: "-smp", option: "-smp", value: "cpus=2"}}
	if err != nil || !reflect.DeepEqual(words, want) {
		t.Errorf("%+v %v", words, err)
	}
	for _, text := range []string{"[iscsi]\n", "key = \"value\"\n", "[chardev \"a\n", "[chardev]\nkey = value\n"} {
		if words, err := parseConfig([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, words)
		}
	}
}
