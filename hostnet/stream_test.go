package hostnet

import (
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWatchStream: what a host sends to another is seen when it comes out of the link; acknowledgements, the other
// direction and other hosts are not.
func TestWatchStream(t *testing.T) {
	n := apply(t, Spec{})
	w, err := n.WatchStream("a", "b")
	if errors.Is(err, unix.EPERM) && Inside() {
		t.Skip("a user namespace may not load the kernel's programs: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	back, err := n.WatchStream("b", "a")
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	l, err := n.Host("b").Listen(t.Context(), "tcp", net.JoinHostPort(n.Address("b").String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := n.Host("a").Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if all := w.Last(); len(all) != 0 {
		t.Fatalf("frames without bytes: %v", all)
	}
	const frames = streamFrames + 10 // the first ones are forgotten
	var began time.Time
	for i := range frames {
		if i == frames-1 {
			began = time.Now()
		}
		if _, err := conn.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(far, make([]byte, 1)); err != nil { // each in its own frame
			t.Fatal(err)
		}
	}
	ended := time.Now()
	all := w.Last()
	if len(all) != streamFrames || !slices.IsSortedFunc(all, time.Time.Compare) {
		t.Fatalf("%d frames, want %d in order", len(all), streamFrames)
	}
	if last := all[len(all)-1]; last.Before(began) || last.After(ended) {
		t.Errorf("the last frame at %s, not between %s and %s", last, began, ended)
	}
	if all := back.Last(); len(all) != 0 {
		t.Errorf("frames of the other direction: %v", all)
	}
	w.Close()
	if again := w.Last(); len(again) != len(all) {
		t.Errorf("%d frames after Close", len(again))
	}
	if _, err := n.WatchStream("a", "nobody"); err == nil {
		t.Error("a stream to nobody")
	}
}
