package connect

import (
	"context"
	"strings"
	"testing"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
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
