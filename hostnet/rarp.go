package hostnet

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// RARPWatch sees the announcements (RARP frames, RFC 903) by which a QEMU tells the network where a guest now is.
type RARPWatch struct {
	fd   int
	stop [2]int // a pipe: closing its writing end ends the reader
	all  sync.WaitGroup
	once sync.Once

	seen []time.Time
}

// WatchRARP watches the link's bridge for RARP frames from that MAC address. A time is when we received the frame: the kernel's own stamp would
// differ by what waking up takes.
func (n *Network) WatchRARP(mac string) (*RARPWatch, error) {
	address, err := net.ParseMAC(mac)
	if err != nil {
		return nil, fmt.Errorf("watch announcements: %w", err)
	}
	w := &RARPWatch{fd: -1}
	const protocol = unix.ETH_P_RARP
	swapped := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
	err = inNamespace(n.spec.namespace(linkHost), func() error {
		bridge, err := net.InterfaceByName(bridgeName)
		if err != nil {
			return err
		}
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(swapped))
		if err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: swapped, Ifindex: bridge.Index})
	})
	if err == nil {
		err = unix.Pipe2(w.stop[:], unix.O_CLOEXEC)
	}
	if err != nil {
		if w.fd >= 0 {
			unix.Close(w.fd)
		}
		return nil, fmt.Errorf("watch announcements: %w", err)
	}
	w.all.Go(func() { w.read(address) })
	return w, nil
}

func (w *RARPWatch) read(from net.HardwareAddr) {
	frame := make([]byte, 128)
	for {
		wait := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}, {Fd: int32(w.stop[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(wait, -1); err != nil && err != unix.EINTR {
			return
		}
		now := time.Now()
		for {
			n, _, err := unix.Recvfrom(w.fd, frame, 0)
			if err != nil || n < 14 {
				break
			}
			if string(frame[6:12]) == string(from) {
				w.seen = append(w.seen, now)
			}
		}
		if wait[1].Revents != 0 {
			return
		}
	}
}

// Close ends the watch and returns when the frames came; a second Close returns the same.
func (w *RARPWatch) Close() []time.Time {
	w.once.Do(func() {
		unix.Close(w.stop[1])
		w.all.Wait()
		unix.Close(w.stop[0])
		unix.Close(w.fd)
	})
	return w.seen
}
