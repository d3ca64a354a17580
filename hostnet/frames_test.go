package hostnet

import (
	"net"
	"os"
	"testing"
	"time"

	"qmigrate/hostnet/internal/netns"
)

// ethernet is a broadcast of a type from a MAC address, as a TAP with IFF_VNET_HDR takes it.
func ethernet(from net.HardwareAddr, etherType uint16) []byte {
	f := frame(from)
	f[10+12], f[10+13] = byte(etherType>>8), byte(etherType)
	return f
}

// TestFrames: the link sees announcements and no others, the TAP the first frame that comes out of it, and neither sees
// another's.
func TestFrames(t *testing.T) {
	n := apply(t, Spec{})
	mac, other := net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}, net.HardwareAddr{0x52, 0x54, 0, 1, 2, 4}
	taps := map[string]*os.File{}
	for _, host := range []string{"a", "b"} {
		if err := netns.In(n.spec.namespace(host),
			func() (err error) { taps[host], err = openTAP("qmigtap0", false); return err }); err != nil {
			t.Fatal(err)
		}
		defer taps[host].Close()
	}
	announced, err := n.WatchAnnouncements(mac.String())
	if err != nil {
		t.Fatal(err)
	}
	defer announced.Close()
	first, err := n.WatchFirstFrame("b", "qmigtap0", mac.String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	last, err := n.watchFrames("b", "qmigtap0", other.String(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	w, err := n.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	began := time.Now()
	send := func(host string, from net.HardwareAddr, types ...uint16) {
		t.Helper()
		for _, one := range types {
			if _, err := taps[host].Write(ethernet(from, one)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// What comes from a goes out by b's TAP: none of the guest's behind that.
	port := Change{Host: "link", Port: "qmigup-a", Kind: FDB, Action: Add, MAC: mac}
	for seen := false; !seen; {
		send("a", mac, RARP, 0x88b5, ARP)
		select {
		case c := <-w.C:
			seen = c.Host == port.Host && c.Port == port.Port && c.MAC.String() == mac.String()
		case <-time.After(20 * time.Millisecond):
		}
	}
	send("b", other, RARP, 0x88b5)
	send("b", mac, 0x88b5, ARP, RARP)
	await(t, w, Change{Host: "link", Port: "qmigup-b", Kind: FDB, Action: Add, MAC: mac})
	end := net.HardwareAddr{0x52, 0x54, 0, 1, 2, 5}
	send("b", end, RARP)
	await(t, w, Change{Host: "link", Port: "qmigup-b", Kind: FDB, Action: Add, MAC: end})
	now := time.Now()
	if got := first.Close(); len(got) != 1 || got[0].Type != 0x88b5 || got[0].At.Before(began) || got[0].At.After(now) {
		t.Errorf("the TAP saw %+v, want one frame of type 88b5", got)
	}
	if got := last.Close(); len(got) != 2 || got[0].Type != RARP || got[1].Type != 0x88b5 || got[1].At.Before(got[0].At) {
		t.Errorf("from the other address came %+v", got)
	}
	got := announced.Close()
	count := map[uint16]int{}
	for _, f := range got {
		count[f.Type]++
	}
	if count[RARP] < 1 || count[ARP] < 1 || len(count) != 2 {
		t.Errorf("announcements by type: %v", count)
	}
	if again := announced.Close(); len(again) != len(got) {
		t.Error("a second Close returns something else")
	}
	for _, bad := range []string{"", "x", "52:54:00:01:02:03:04:05"} {
		if _, err := n.WatchAnnouncements(bad); err == nil {
			t.Errorf("%q is a MAC address", bad)
		}
	}
	if _, err := n.WatchFirstFrame("b", "none", mac.String()); err == nil {
		t.Error("watches a TAP that is not there")
	}
}
