package on

import "testing"

func TestThreadName(t *testing.T) {
	for comm, want := range map[string]string{"CPU 0/TCG": "vcpu0", "CPU 12/KVM": "vcpu12", "ALL CPUs/TCG": "vcpus",
		"mig/src/main": "migration", "live_migration": "migration", "multifdsend_1": "migration",
		"return path": "migration", "call_rcu": "", "qemu-system-x86": "?", "IO mon_iothread": "", "CPU x/TCG": ""} {
		if name, known := threadName(comm); known != (want != "?") || known && name != want {
			t.Errorf("%s: %q %t, want %q", comm, name, known, want)
		}
	}
}
