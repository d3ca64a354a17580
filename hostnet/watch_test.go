package hostnet

import (
	"bytes"
	"context"
	"net"
	"os"
	"testing"
	"time"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/internal/netns"
)

// frame is an Ethernet broadcast from a MAC address behind the header of 10 zero bytes that a TAP with IFF_VNET_HDR
// has.
func frame(from net.HardwareAddr) []byte {
	f := append(make([]byte, 10), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(append(f, from...), 0x88, 0xb5) // the EtherType for local experiments
	return append(f, make([]byte, 46)...)
}

// await reads changes until one is as wanted.
func await(t *testing.T, w *Watch, want Change) Change {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case c, ok := <-w.C:
			if !ok {
				t.Fatalf("the watch ended before %+v", want)
			}
			if c.Host == want.Host && c.Port == want.Port && c.Kind == want.Kind && c.Action == want.Action && c.IP == want.IP &&
				(want.MAC == nil || bytes.Equal(c.MAC, want.MAC)) {
				return c
			}
		case <-timeout:
			t.Fatalf("waited in vain for %+v", want)
		}
	}
}

func TestWatchSeesAMove(t *testing.T) {
	n := apply(t, Spec{})
	began := time.Now()
	w, err := n.Watch(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	taps := map[string]*os.File{}
	for _, host := range []string{"a", "b"} {
		err := netns.In(n.spec.namespace(host), func() (err error) {
			taps[host], err = openTAP("qmigtap0", false)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer taps[host].Close()
	}
	inject := func(host string, want ...Change) {
		t.Helper()
		// A port forwards from a moment after its device was opened, so the frame is sent until it is seen.
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				_, _ = taps[host].Write(frame(mac))
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}()
		defer func() { close(stop); within.Receive(t, "the frames' end", stopped) }()
		var last time.Time
		left := len(want)
		for left > 0 {
			var c Change
			select {
			case c = <-w.C:
			case <-time.After(20 * time.Second):
				t.Fatalf("waited in vain for %+v", want)
			}
			if c.At.Before(began) || c.At.After(time.Now()) {
				t.Errorf("time %s of %+v", c.At, c)
			}
			for _, one := range want {
				if c.Kind == FDB && c.Action == Add && !c.Local && c.Host == one.Host && c.Port == one.Port &&
					c.Bridge == bridgeName && bytes.Equal(c.MAC, mac) {
					left--
					last = c.At
				}
			}
		}
		if last.IsZero() {
			t.Error("no time")
		}
	}
	inject("a", Change{Host: "a", Port: "qmigtap0"}, Change{Host: "link", Port: "qmigup-a"},
		Change{Host: "b", Port: "qmigup0"})
	inject("b", Change{Host: "b", Port: "qmigtap0"}, Change{Host: "link", Port: "qmigup-b"},
		Change{Host: "a", Port: "qmigup0"})

	c, err := n.Observer().Dial(within.Context(t), "udp", n.Address("a").String()+":9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	await(t, w, Change{Host: "link", Port: bridgeName, Kind: Neighbour, Action: Add, IP: n.Address("a"),
		MAC: hardwareAddr(n.spec.namespace("a"))})
	if d := w.Dropped(); d != 0 {
		t.Errorf("%d changes dropped", d)
	}

	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for ok := true; ok; { // closed, so this ends
		_, ok = within.Receive(t, "the end of changes", w.C)
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	n := apply(t, Spec{})
	ctx, cancel := context.WithCancel(within.Context(t))
	w, err := n.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for ok := true; ok; {
		_, ok = within.Receive(t, "the end of changes", w.C)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWatchCountsWhatItDrops(t *testing.T) {
	n := apply(t, Spec{})
	w, err := n.Watch(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var tap *os.File
	err = netns.In(n.spec.namespace("a"), func() (err error) {
		tap, err = openTAP("qmigtap0", false)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	i := 0
	wait(t, "drops", func() bool {
		for range 2 * watchBuffer {
			_, _ = tap.Write(frame(net.HardwareAddr{0x52, 0x54, 0, 1, byte(i >> 8), byte(i)}))
			i++
		}
		return w.Dropped() > 0
	})
}
