package connect

import (
	"context"
	"os"
	"strings"
	"testing"

	"qmigrate/engine/endpoint"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
)

// A name may stand for another machine when it is reached again: that our process is not there does not say that it is
// dead.
func TestPeerOfAnotherMachine(t *testing.T) {
	proc, err := host.Local().Start(within.Context(t), host.Command{Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	within.Receive(t, "its end", proc.Done())
	p := &peer{name: "ssh://a", proc: proc, done: make(chan struct{}),
		reach: func(context.Context) (host.Host, error) { return host.Local(), nil }}
	p.look.Boot = "another kernel"
	if err := p.Kill(within.Context(t)); err == nil || !strings.Contains(err.Error(), "not known whether") {
		t.Error(err)
	}
	select {
	case <-p.Done():
		t.Error("it is taken for dead")
	default:
	}
}

// A kernel is known by its clock, whatever its container says of itself; a machine behind ssh by its address alone.
func TestMachineOn(t *testing.T) {
	for _, x := range []struct {
		name, boot string
		ours       bool
		want       string
	}{{"ssh://a", "x", true, "ssh://a"}, {"lxc:a", "x", true, endpoint.ThisMachine}, {"lxc:a", "x", false, "x"}, {"lxc:a", "", false, "lxc:a"}} {
		if got := machineOn(x.name, x.boot, x.ours); got != x.want {
			t.Errorf("%+v: %s", x, got)
		}
	}
	far, err := hosttest.New(t, nil).Pool.Find(within.Context(t), "ssh://a")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []host.Host{host.Local(), far} {
		look, ours, err := lookAt(within.Context(t), h, os.Getpid())
		if err != nil || !ours || look.PID != os.Getpid() {
			t.Errorf("%s: %+v, %t, %v", h.Name(), look, ours, err)
		}
	}
}
