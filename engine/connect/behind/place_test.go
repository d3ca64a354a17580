package behind

import "testing"

func TestContainer(t *testing.T) {
	t.Parallel()
	for cgroup, want := range map[string]string{
		"0::/\n": "",
		"0::/lxc.payload.web/system.slice/qemu.service\n":                   "lxc:web",
		"12:pids:/\n1:name=systemd:/lxc/web/init.scope\n0::/\n":             "lxc:web",
		"0::/lxc.payload/web\n":                                             "lxc:web",
		"0::/lxc.monitor.web\n":                                             "",
		"0::/system.slice/docker-0123abcd.scope\n":                          "docker:0123abcd",
		"4:memory:/docker/0123abcd\n":                                       "docker:0123abcd",
		"0::/machine.slice/libpod-4567.scope/container\n":                   "podman:4567",
		"0::/machine.slice/libpod-conmon-4567.scope\n":                      "",
		`0::/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt/emulator`: "",
		"0::/user.slice/user-1000.slice/session-2.scope\n":                  "",
	} {
		if got := container(cgroup); got != want {
			t.Errorf("%q: %q, want %q", cgroup, got, want)
		}
	}
}
