package hostnet

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/internal/netns"
)

// EtherTypes of announcements.
const (
	ARP  = unix.ETH_P_ARP
	RARP = unix.ETH_P_RARP
)

// Frame is one Ethernet frame that a device received.
type Frame struct {
	At   time.Time // by the kernel's own stamp
	Type uint16    // EtherType: ARP, RARP, 0x0800 for IPv4, ...
}

// FrameWatch sees frames from one MAC address on one device. The kernel throws away what is not asked for.
type FrameWatch struct {
	fd   int
	stop [2]int // a pipe: closing its writing end ends the reader
	all  sync.WaitGroup
	once sync.Once

	seen []Frame
}

// WatchAnnouncements watches the link's bridge for the frames by which that MAC address tells where it is: RARP (RFC
// 903), which QEMU sends for a guest that it has taken over, and ARP, the guest's own.
func (n *Network) WatchAnnouncements(mac string) (*FrameWatch, error) {
	return n.watchFrames(linkHost, bridgeName, mac, 0, []uint32{RARP, ARP})
}

// WatchFirstFrame watches a TAP of a host for the first frame that the guest behind it sends from that MAC address, and
// looks no further.
func (n *Network) WatchFirstFrame(host, tap, mac string) (*FrameWatch, error) {
	return n.watchFrames(host, tap, mac, 1, nil)
}

// watchFrames watches for frames that the device receives, of some types or of any, at most limit of them or, if that
// is 0, all.
func (n *Network) watchFrames(host, device, mac string, limit int, types []uint32) (*FrameWatch, error) {
	fail := func(err error) (*FrameWatch, error) {
		return nil, fmt.Errorf("watch frames on %s of %s: %w", device, host, err)
	}
	address, err := net.ParseMAC(mac)
	if err != nil {
		return fail(err)
	}
	if len(address) != 6 {
		return fail(fmt.Errorf("%s is no Ethernet address", mac))
	}
	filter, err := frameFilter(address, types)
	if err != nil {
		return fail(err)
	}
	w := &FrameWatch{fd: -1}
	err = netns.In(n.spec.namespace(host), func() error {
		d, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		// Without a protocol it receives nothing until it is bound, when the filter is there.
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptSockFprog(w.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: d.Index})
	})
	if err == nil {
		err = unix.Pipe2(w.stop[:], unix.O_CLOEXEC)
	}
	if err != nil {
		if w.fd >= 0 {
			unix.Close(w.fd)
		}
		return fail(err)
	}
	w.all.Go(func() { w.read(limit) })
	return w, nil
}

// frameFilter takes frames that came in (not those that go out by the device), from an address, of one of the types.
func frameFilter(from net.HardwareAddr, types []uint32) ([]unix.SockFilter, error) {
	program := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(binary.BigEndian.Uint16(from)), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadAbsolute{Off: 8, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(from[2:]), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
	if len(types) > 0 {
		program = append(program, bpf.LoadAbsolute{Off: 12, Size: 2})
		for i, t := range types {
			program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: t, SkipTrue: uint8(len(types) - i)})
		}
		program = append(program, bpf.RetConstant{Val: 0})
	}
	raw, err := bpf.Assemble(append(program, bpf.RetConstant{Val: headerBytes}))
	if err != nil {
		return nil, err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return filter, nil
}

// headerBytes are an Ethernet header's.
const headerBytes = 14

func (w *FrameWatch) read(limit int) {
	frame, control := make([]byte, headerBytes), make([]byte, 128)
	for {
		if limit > 0 && len(w.seen) == limit && w.fd >= 0 {
			unix.Close(w.fd)
			w.fd = -1 // which poll passes over
		}
		wait := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}, {Fd: int32(w.stop[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(wait, -1); err != nil && err != unix.EINTR {
			return
		}
		for limit == 0 || len(w.seen) < limit {
			n, more, _, _, err := unix.Recvmsg(w.fd, frame, control, 0)
			if err != nil || n < headerBytes {
				break
			}
			w.seen = append(w.seen, Frame{At: stamped(control[:more], time.Now()), Type: binary.BigEndian.Uint16(frame[12:])})
		}
		if wait[1].Revents != 0 {
			return
		}
	}
}

// stamped is when the kernel received what we have now, on our monotonic clock: now less the age of its stamp. Both
// readings of the realtime clock are a moment apart.
func stamped(control []byte, now time.Time) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return now
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SO_TIMESTAMPNS ||
			len(m.Data) < int(unsafe.Sizeof(unix.Timespec{})) {
			continue
		}
		at := time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		if age := now.Round(0).Sub(at); age > 0 && age < undoLimit {
			return now.Add(-age)
		}
	}
	return now
}

// Close ends the watch and returns what came; a second Close returns the same.
func (w *FrameWatch) Close() []Frame {
	w.once.Do(func() {
		unix.Close(w.stop[1])
		w.all.Wait()
		unix.Close(w.stop[0])
		if w.fd >= 0 {
			unix.Close(w.fd)
		}
	})
	return w.seen
}
