package sshtest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"qmigrate/guest/guesttest/within"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestHosts: both are there, apart from each other and from this machine, and what is switched off is off.
func TestHosts(t *testing.T) {
	s := Start(t)
	for _, h := range s.All {
		script := "whoami; hostname; echo $X; ls /tmp | wc -l; ps -e | wc -l; ip -br link show tap0; exec 3<>/dev/net/tun && echo tun"
		h.Setenv("X=y")
		out, err := within.Command(t, s.SSH, "-o", "BatchMode=yes", h.Name, script).CombinedOutput()
		if want := h.User + "\n" + h.Name + "\ny\n0\n"; err != nil || !strings.HasPrefix(string(out), want) || !strings.HasSuffix(string(out), "tun\n") {
			t.Errorf("%v: %s\n%s", err, out, h.log("log"))
		}
	}
	b := s.Host("b")
	if got := b.PIDs("^sshd: /usr"); len(got) != 1 {
		t.Errorf("sshd: %v", got)
	} else if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", got[0])); err != nil || string(status) != "sshd\n" {
		t.Errorf("process %d of this machine: %q, %v", got[0], status, err)
	}
	b.SSHD(false)
	if out, err := within.Command(t, s.SSH, "-o", "BatchMode=yes", "b", "true").CombinedOutput(); err == nil {
		t.Errorf("%s", out)
	}
	b.SSHD(true)
	b.Kill()
	b.Start()
	if out, err := within.Command(t, s.SSH, "-o", "BatchMode=yes", "b", "true").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
