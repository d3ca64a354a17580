package hosttest

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
)

// What is done to a channel is what its name says, and the host is found again.
func TestChannel(t *testing.T) {
	h := New(t, map[string]Machine{"KillSSH": {Env: []string{"QMIGRATE_TEST=it's"}, Enter: []string{"env"}}})
	t.Run("each", func(t *testing.T) { // at the same time, because two of them take 14 s to be noticed
		for name, do := range map[string]func(*Channel){"KillSSH": (*Channel).KillSSH, "KillHelper": (*Channel).KillHelper,
			"StopSSH": (*Channel).StopSSH, "StopHelper": (*Channel).StopHelper} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				testChannel(t, h, name, do)
			})
		}
	})
	begun := time.Now()
	if err := h.Pool.Close(); err != nil {
		t.Error(err)
	}
	t.Log("closed within", time.Since(begun))
}

func testChannel(t *testing.T, h *Hosts, name string, do func(*Channel)) {
	at, err := h.Pool.Find(within.Context(t), "ssh://"+name)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := at.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := at.Start(within.Context(t), host.Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(p.PID(), syscall.SIGKILL)
	c := h.Channel(name)
	do(c)
	within.Receive(t, "the channel's end", at.(*host.Far).Closed())
	lost := new(host.ChannelError)
	if _, err := at.Stat(file); !errors.As(err, &lost) {
		t.Errorf("%v, want a *ChannelError", err)
	}
	select {
	case <-p.Done():
		t.Error("the process is taken for dead")
	default:
	}
	c.Continue()
	again, err := h.Pool.Find(within.Context(t), "ssh://"+name)
	if err != nil || again == at {
		t.Fatalf("%v, %v", again, err)
	}
	if _, err := again.Stat("/"); err != nil {
		t.Error(err)
	}
	within.Until(t, "what the first helper made to be removed", func() bool {
		_, err := os.Stat(file)
		return errors.Is(err, os.ErrNotExist)
	})
}
