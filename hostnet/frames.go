package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
)

// EtherTypes of announcements.
const (
	ARP  = unix.ETH_P_ARP
	RARP = unix.ETH_P_RARP
)

// Frame is one Ethernet frame that a device received.
type Frame struct {
	At   time.Time // by the kernel's own stamp, on the clock of the frame's host
	Type uint16    // EtherType: ARP, RARP, 0x0800 for IPv4, ...
}

// FrameWatch sees frames from one MAC address on one device. The kernel throws away what is not asked for.
type FrameWatch struct {
	stop  context.CancelFunc
	ended chan struct{}
	seen  []Frame // the reader's until ended is closed
}

// WatchAnnouncements watches the link's bridge for the frames by which that MAC address tells where it is: RARP (RFC
// 903), which QEMU sends for a guest that it has taken over, and ARP, the guest's own.
func (n *Network) WatchAnnouncements(mac string) (*FrameWatch, error) {
	return n.watchFrames(linkHost, n.bridge, mac, 0, []uint32{RARP, ARP})
}

// WatchFirstFrame watches a TAP of a host for the first frame that the guest behind it sends from that MAC address, and
// looks no further.
func (n *Network) WatchFirstFrame(host, tap, mac string) (*FrameWatch, error) {
	return n.watchFrames(host, tap, mac, 1, nil)
}

// watchFrames watches for frames that the device receives, of some types or of any, at most limit of them or, if that
// is 0, all.
func (n *Network) watchFrames(name, device, mac string, limit int, types []uint32) (*FrameWatch, error) {
	at := n.Host(name)
	if name == linkHost {
		at = n.observer
	}
	fail := func(err error) (*FrameWatch, error) {
		return nil, fmt.Errorf("watch frames on %s of %s: %w", device, name, err)
	}
	if at == nil {
		return fail(errors.New("no such host"))
	}
	ctx, stop := context.WithCancel(context.Background())
	w := &FrameWatch{stop: stop, ended: make(chan struct{})}
	ready := make(chan error, 2)
	go func() {
		err := framesTask().Run(ctx, at, frameSpec{device, mac, limit, types}, func(f frames) error {
			if f.Ready {
				ready <- nil
			}
			w.seen = append(w.seen, f.Frames...)
			return nil
		})
		ready <- err
		close(w.ended)
	}()
	select {
	case err := <-ready:
		if err != nil {
			w.Close()
			return fail(err)
		}
		return w, nil
	case <-time.After(undoLimit):
		w.Close()
		return fail(fmt.Errorf("not begun within %s", undoLimit))
	}
}

// frameSpec is what to watch for.
type frameSpec struct {
	Device string
	MAC    string   // of the sender
	Limit  int      // at most so many; 0: all
	Types  []uint32 // EtherTypes; none: all
}

// frames are some of those that were seen.
type frames struct {
	Ready  bool // the watch has begun
	Frames []Frame
}

// framesTask watches for frames on a device of a host. What came before it is told to end is given.
func framesTask() host.Task[frameSpec, frames] {
	return host.Task[frameSpec, frames]{Name: "hostnet.frames",
		Work: func(ctx context.Context, at host.Host, s frameSpec, give func(frames) error) error {
			fd, err := s.open(at)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			var stop [2]int // a pipe: closing its writing end ends the reader
			if err := unix.Pipe2(stop[:], unix.O_CLOEXEC); err != nil {
				return os.NewSyscallError("pipe2", err)
			}
			defer unix.Close(stop[0])
			closed := make(chan struct{})
			cancel := context.AfterFunc(ctx, func() { unix.Close(stop[1]); close(closed) })
			defer func() {
				if cancel() {
					unix.Close(stop[1])
				} else {
					<-closed
				}
			}()
			if err := give(frames{Ready: true}); err != nil {
				return err
			}
			return s.read(at, fd, stop[0], give)
		}}
}

// open is a socket that receives the frames.
func (s frameSpec) open(at host.Host) (fd int, err error) {
	address, err := net.ParseMAC(s.MAC)
	if err != nil {
		return -1, err
	}
	if len(address) != 6 {
		return -1, fmt.Errorf("%s is no Ethernet address", s.MAC)
	}
	filter, err := frameFilter(address, s.Types)
	if err != nil {
		return -1, err
	}
	err = host.In(at, func() error {
		d, err := net.InterfaceByName(s.Device)
		if err != nil {
			return err
		}
		// Without a protocol it receives nothing until it is bound, when the filter is there.
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		}
		if err == nil {
			all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: d.Index})
		}
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	return fd, err
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

// read gives what comes until the pipe is closed, or there were enough.
func (s frameSpec) read(at host.Host, fd, stop int, give func(frames) error) error {
	frame, control := make([]byte, headerBytes), make([]byte, 128)
	seen := 0
	for {
		wait := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(wait, -1); err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		var some frames
		for s.Limit == 0 || seen < s.Limit {
			n, more, _, _, err := unix.Recvmsg(fd, frame, control, 0)
			if err != nil || n < headerBytes {
				break
			}
			seen++
			age := ageOf(control[:more], time.Now())
			some.Frames = append(some.Frames, Frame{At: at.Now().Add(-age), Type: binary.BigEndian.Uint16(frame[12:])})
		}
		if len(some.Frames) > 0 {
			if err := give(some); err != nil {
				return err
			}
		}
		if wait[1].Revents != 0 || s.Limit > 0 && seen == s.Limit {
			return nil
		}
	}
}

// ageOf is how long ago the kernel received what we have now: the time since its stamp. 0 where it gave none.
func ageOf(control []byte, now time.Time) time.Duration {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SO_TIMESTAMPNS ||
			len(m.Data) < int(unsafe.Sizeof(unix.Timespec{})) {
			continue
		}
		at := time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		if age := now.Round(0).Sub(at); age > 0 && age < undoLimit {
			return age
		}
	}
	return 0
}

// Close ends the watch and returns what came; a second Close returns the same.
func (w *FrameWatch) Close() []Frame {
	w.stop()
	<-w.ended
	return w.seen
}
